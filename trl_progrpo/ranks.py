# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What one process has to tell the others when it cannot go on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list


class AnotherRankFailed(ValueError):
    """Another process cannot go on; says which one and why."""


class RankWatch:
    """
    Lets all processes stop when one fails outside of a collective operation, in which they would wait for it until the
    collective's time-out.

    Processes tell each other through a key-value store, so no collective is needed; with one process it does nothing.

    Args:
        rank (`int`): this process.
        world_size (`int`): how many there are.
        store ([`~torch.distributed.Store`], *optional*): of all processes; needed with more than one.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, store: dist.Store | None = None):
        self.rank, self.world_size, self.store = rank, world_size, store
        self._meetings = 0

    @classmethod
    def of(cls, state: PartialState) -> RankWatch:
        """That of a run; every process must call it."""
        if state.num_processes == 1:
            return cls()
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False) if state.process_index == 0 else None
        [port] = broadcast_object_list([store.port if store else None])
        if store is None:
            store = dist.TCPStore(host, port, is_master=False)
        return cls(state.process_index, state.num_processes, store)

    def check(self) -> None:
        """
        Raises:
            AnotherRankFailed: if another process has failed.
        """
        if self.store is not None and self.store.check(["failure"]):
            rank, message = self.store.get("failure").decode().split(" ", 1)
            if int(rank) != self.rank:
                raise AnotherRankFailed(f"process {rank} of {self.world_size} stopped the run: {message}")

    @contextmanager
    def together(self) -> Iterator[None]:
        """
        A piece of work that all processes begin and end; none leaves it before all are done.

        Raises:
            AnotherRankFailed: in all processes but the one that failed in it.
        """
        self._meetings += 1
        done = f"done/{self._meetings}"
        try:
            self.check()
            yield
        except Exception as error:
            if self.store is not None and not isinstance(error, AnotherRankFailed):
                # The first to fail is the one to blame.
                self.store.compare_set("failure", "", f"{self.rank} {error}")
                self.store.set(done, "failed")
            raise
        if self.store is None:
            return
        if self.store.add(f"arrived/{self._meetings}", 1) == self.world_size:
            self.store.set(done, "all")
        while not self.store.check([done]):
            try:
                self.store.wait([done], timedelta(seconds=10))
            except dist.DistStoreError:
                continue  # the others may have much more to do
        self.check()
