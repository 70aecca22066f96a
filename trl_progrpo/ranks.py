# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What processes tell one another beside the collectives: that one cannot go on, and small tensors."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast

from .heartbeats import ASK_EVERY, GRACE, Failure, Heartbeats, read_failure, serve_store, tell_failure


GATHERED = ("float32", "float64", "int64")
"""Types that [`RankWatch.gather`] carries."""

_CONNECTION_WORDS = ("connection", "gloo", "nccl", "socket", "broken pipe", "timed out")


class AnotherRankFailed(ValueError):
    """
    Another process cannot go on; says which one and why.

    Args:
        failure ([`Failure`]): what it told of itself, or its neighbours of it.

    Attributes:
        exit_status (`int`): with which a command ends for it.
    """

    def __init__(self, failure: Failure):
        super().__init__(failure.message)
        self.exit_status = failure.status


class RankWatch:
    """
    Lets all processes stop when one fails outside of a collective operation, in which they would wait for it until the
    collective's time-out; and carries small tensors.

    Processes tell each other through a key-value store, so no collective is needed; with one process it does nothing.

    Args:
        rank (`int`): this process.
        world_size (`int`): how many there are.
        store ([`~torch.distributed.Store`], *optional*): of all processes; needed with more than one. Used by one thread.
        heartbeats ([`Heartbeats`], *optional*): finds out about processes that end or freeze without a word.
    """

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        store: dist.Store | None = None,
        heartbeats: Heartbeats | None = None,
    ):
        self.rank, self.world_size, self.store, self.heartbeats = rank, world_size, store, heartbeats
        self._met = {"work": 0, "gather": 0}
        self._told = False
        if heartbeats is not None:
            # At the end of the process at the latest.
            weakref.finalize(self, heartbeats.leave)

    @classmethod
    def of(cls, state: PartialState) -> RankWatch:
        """That of a run; every process must call it."""
        if state.num_processes == 1:
            return cls()
        on_one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(state.num_processes)
        host = "127.0.0.1" if on_one_machine else os.environ.get("MASTER_ADDR", "127.0.0.1")
        store = serve_store(host) if state.process_index == 0 else None
        port = broadcast(torch.tensor([store.port if store else 0], device=state.device))
        return cls.joined(state.process_index, state.num_processes, host, int(port.item()), store)

    @classmethod
    def joined(cls, rank: int, world_size: int, host: str, port: int, store: dist.Store | None = None) -> RankWatch:
        """One with heartbeats, on the store that process 0 serves at `host` and `port`."""
        store = dist.TCPStore(host, port, is_master=False) if store is None else store
        return cls(rank, world_size, store, Heartbeats(rank, world_size, host, port))

    def leave(self) -> None:
        """Tells the others that this process ends in good order. Called at the end of Python, for those that end otherwise."""
        if self.heartbeats is not None:
            self.heartbeats.leave()

    def check(self) -> None:
        """
        Raises:
            AnotherRankFailed: if another process has failed.
        """
        if self.store is None:
            return
        self._stop_for(read_failure(self.store) if self.heartbeats is None else self.heartbeats.failure)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """
        While it lasts this process stops if another fails, be it from outside when it is stuck; and what is raised in it
        and not caught is told to the others.

        Raises:
            AnotherRankFailed: instead of the error that a collective operation makes of the loss of another process.
        """
        with self._on_duty(), self._sentence_before_sigterm():
            try:
                yield
            except BaseException as error:
                self._blame(error)
                raise

    @contextmanager
    def together(self) -> Iterator[None]:
        """
        A piece of work that all processes begin and end; none leaves it before all are done.

        Raises:
            AnotherRankFailed: in all processes but the one that failed in it.
        """
        with self._on_duty():
            try:
                self.check()
                yield
            except Exception as error:
                self._blame(error)
                raise
            if self.store is not None:
                with self._answered():
                    self._meet("work")

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """
        The tensors of all processes in order of rank, each of its own shape and dtype; all call it in the same order.

        Made for small ones: everything passes through process 0.

        Args:
            tensor (`torch.Tensor`): on the CPU, of a dtype in [`GATHERED`].

        Raises:
            AnotherRankFailed: if another process fails before it gives its own.
        """
        if self.store is None:
            return [tensor]
        number = self._met["gather"]
        packed = _pack(tensor)
        with self._on_duty(), self._answered():
            self.store.set(f"tensor/{number}/{self.rank}", packed)
            self._meet("gather")
            # All are here, so all have read those before.
            self.store.delete_key(f"tensor/{number - 1}/{self.rank}")
            return [
                _unpack(data)
                for data in self.store.multi_get([f"tensor/{number}/{rank}" for rank in range(self.world_size)])
            ]

    @contextmanager
    def _on_duty(self) -> Iterator[None]:
        if self.heartbeats is None:
            yield
            return
        self.heartbeats.on_duty += 1
        try:
            yield
        finally:
            self.heartbeats.on_duty -= 1

    @contextmanager
    def _sentence_before_sigterm(self) -> Iterator[None]:
        """
        A launcher that loses one process sends SIGTERM to the others, which is to end them no sooner than they have said
        why. Whoever asked for the signal first keeps it.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()
        if self.heartbeats is None or not in_main_thread or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
            yield
            return
        signal.signal(signal.SIGTERM, self._heed_sigterm)
        yield
        # Not after an error: the sentence is still to come.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _heed_sigterm(self, signum: int, frame: FrameType | None) -> None:
        if not self.heartbeats.forked():
            failure = self.heartbeats.find_out(2 * ASK_EVERY)
            if failure is not None and not self.heartbeats.noticed:
                self._raise(failure)
            if failure is not None and time.monotonic() < self.heartbeats.since + 2 * GRACE:
                return
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)

    def _meet(self, kind: str) -> None:
        """Waits until all processes have come here as often as this one."""
        number = self._met[kind]
        self._met[kind] += 1
        done = f"{kind}/{number}/done"
        if self.store.add(f"{kind}/{number}/arrived", 1) == self.world_size:
            self.store.set(done, "all")
            # All are here, so none is still waiting there.
            for key in ("arrived", "done"):
                self.store.delete_key(f"{kind}/{number - 1}/{key}")
        pause = 0.001
        # Not the store's own waiting, which writes a warning into the log at every time-out.
        while True:
            left = self.heartbeats.left if self.heartbeats is not None else set()
            if self.store.check([done]):
                return
            self._stop_for(read_failure(self.store))
            self.check()
            if left:
                self._raise(
                    Failure(min(left), f"process {min(left)} of {self.world_size} has ended before the others.")
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.02)

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Tells why the store does not answer: it went with process 0."""
        try:
            yield
        except dist.DistError as error:
            self._raise_cause(error)
            raise

    def _blame(self, error: BaseException) -> None:
        """Tells the others that this process cannot go on, or raises what it is that another cannot."""
        if self.store is None or self._told or isinstance(error, AnotherRankFailed):
            return
        if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _CONNECTION_WORDS):
            self._raise_cause(error)
        # What is wrong with a value is a mistake of the user's, and a sentence.
        mistake = isinstance(error, ValueError)
        reason = " ".join((str(error) if mistake else f"{type(error).__name__}: {error}").split())[:2000]
        message = f"process {self.rank} of {self.world_size} stopped the run: {reason}"
        with suppress(dist.DistError):
            # The first to fail is the one to blame.
            failure = tell_failure(self.store, Failure(self.rank, message, 2 if mistake else 1))
            self._told = failure.message == message
            if self.heartbeats is not None:
                self.heartbeats.noticed = True
                self.heartbeats.learn(failure)
                self.heartbeats.await_heard()

    def _raise_cause(self, error: Exception) -> None:
        failure = self.heartbeats.find_out(GRACE) if self.heartbeats is not None else None
        if failure is not None:
            self._raise(failure, error)

    def _stop_for(self, failure: Failure | None) -> None:
        if failure is not None and not self._told:
            self._raise(failure)

    def _raise(self, failure: Failure, cause: Exception | None = None) -> None:
        if self.heartbeats is not None:
            self.heartbeats.noticed = True
        raise AnotherRankFailed(failure) from cause


def _pack(tensor: torch.Tensor) -> bytes:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in GATHERED:
        raise ValueError(f"`tensor` is of {tensor.dtype}; gather one of {', '.join(GATHERED)}.")
    header = json.dumps([dtype, list(tensor.shape)]).encode()
    return header + b"\n" + tensor.detach().contiguous().numpy().tobytes()


def _unpack(data: bytes) -> torch.Tensor:
    header, _, values = data.partition(b"\n")
    dtype, shape = json.loads(header)
    return torch.from_numpy(np.ndarray(shape, dtype, bytearray(values)))
