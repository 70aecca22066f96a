# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""In which order a run consumes prompts: with an index, or from a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import datasets
import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, Sampler

from ..rewards import RowError
from ..seeds import derive_seed
from .prompts import check_prompt
from .rows import readable


STREAM_BUFFER = 1000
"""Rows of a stream among which the next one is drawn."""


def check_size(num_prompts: int, prompts_per_rollout: int) -> None:
    """
    Raises:
        ValueError: if a dataset of `num_prompts` is smaller than one rollout.
    """
    if num_prompts < prompts_per_rollout:
        raise ValueError(
            f"`train_dataset` has {num_prompts} prompts, but one rollout takes {prompts_per_rollout}; give more prompts, "
            "or lower `prompts_per_rollout` or, where that is unset, `per_device_train_batch_size` or `steps_per_generation`."
        )


def collate_rows(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """A list of rows as columns of plain Python values; nothing is tensorised, rewards want the values as they are."""
    return {name: [row[name] for row in rows] for name in rows[0]}


class RolloutSampler(Sampler[int]):
    """
    Dataset indices in the order a run consumes them: for each rollout the indices of all its prompts, repeated once for
    every micro-batch that is trained on that rollout. Every process is given all of them and takes its share.

    Each epoch is a fresh permutation seeded by `(seed, epoch)`, so a resumed run sees the same order. An epoch whose
    length is no multiple of `prompts_per_rollout` is filled up from the start of its permutation: every prompt is
    visited and none is dropped.

    Args:
        num_prompts (`int`): length of the dataset.
        prompts_per_rollout (`int`): prompts of one rollout over all processes.
        repeats (`int`): micro-batches per rollout.
        seed (`int`): the run's data seed.
        shuffle (`bool`, *optional*, defaults to `True`): keep the dataset's order when `False`.

    Raises:
        ValueError: if the dataset is smaller than one rollout.
    """

    def __init__(self, num_prompts: int, prompts_per_rollout: int, repeats: int, seed: int, shuffle: bool = True):
        check_size(num_prompts, prompts_per_rollout)
        self.num_prompts = num_prompts
        self.prompts_per_rollout = prompts_per_rollout
        self.repeats = repeats
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    @property
    def rollouts_per_epoch(self) -> int:
        return -(-self.num_prompts // self.prompts_per_rollout)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rollouts_per_epoch * self.prompts_per_rollout * self.repeats

    def __iter__(self) -> Iterator[int]:
        # A tensor: as a list of integers, the order of millions of prompts would take five times the memory.
        order = torch.arange(self.num_prompts)
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
            order = torch.randperm(self.num_prompts, generator=generator)
        size = self.prompts_per_rollout
        order = torch.cat([order, order[: self.rollouts_per_epoch * size - self.num_prompts]])
        for rollout in order.split(size):
            for _ in range(self.repeats):
                yield from rollout.tolist()


class RolloutStream(IterableDataset):
    """
    The rows of a stream in the order a run consumes them; what [`RolloutSampler`] is to a dataset with an index.

    It never ends: one pass over the data follows the other, and a rollout that a pass cannot fill is filled from the next,
    so every prompt is visited and none is dropped. Each pass is shuffled through a buffer, seeded by the run's seed and the
    number of the pass; a resumed run sees the same order by skipping what was consumed.

    Args:
        stream ([`~datasets.IterableDataset`]): the rows.
        prompt_column (`str`): where the prompts are.
        prompts_per_rollout (`int`): prompts of one rollout over all processes.
        repeats (`int`): micro-batches per rollout.
        seed (`int`): the run's data seed.
        shuffle (`bool`, *optional*, defaults to `True`): keep the stream's order when `False`.
        check (`Callable`, *optional*): is given every row as it comes, and raises an error for one that cannot be used.

    Raises:
        RowError: while iterating, at a row without a prompt, that `check` refuses, or that cannot be read.
        ValueError: after a pass that was smaller than one rollout.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        prompt_column: str,
        prompts_per_rollout: int,
        repeats: int,
        seed: int,
        shuffle: bool = True,
        check: Callable[[dict[str, Any]], None] | None = None,
    ):
        self.check = check
        self.stream = stream.shuffle(seed=derive_seed(seed), buffer_size=STREAM_BUFFER) if shuffle else stream
        self.prompt_column = prompt_column
        self.prompts_per_rollout = prompts_per_rollout
        self.repeats = repeats

    def set_epoch(self, epoch: int) -> None:
        """Nothing: passes over the data are counted here, for the loop takes an endless stream for a single epoch."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows = self._rows()
        while True:
            rollout = [next(rows) for _ in range(self.prompts_per_rollout)]
            for _ in range(self.repeats):
                yield from rollout

    def _rows(self) -> Iterator[dict[str, Any]]:
        for epoch in count():
            self.stream.set_epoch(epoch)
            passed = 0
            for row in self._read():
                passed += 1
                yield row
            check_size(passed, self.prompts_per_rollout)

    def _read(self) -> Iterator[dict[str, Any]]:
        rows = iter(readable(self.stream))
        for passed in count():
            try:
                row = next(rows, None)
            # What readers of all kinds of files raise.
            except (ValueError, TypeError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
                empty = [name for name, kind in (self.stream.features or {}).items() if "'null'" in repr(kind)]
                why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
                late = (
                    f" (column {', '.join(map(repr, empty))} has no value at the beginning of the data)"
                    if empty
                    else ""
                )
                raise RowError(
                    f"`train_dataset` cannot be read beyond row {passed} of this pass: {why}{late}; give every column values of "
                    "one type, and one in the first rows, or do not stream."
                ) from error
            except Exception as error:  # of a connection that breaks off, or of code of the user's
                raise RowError(
                    f"`train_dataset` cannot be read beyond row {passed} of this pass ({type(error).__name__}: {error}); mend "
                    "what it is read from."
                ) from error
            if row is None:
                return
            try:
                check_prompt(row.get(self.prompt_column), "`train_dataset` holds a row that", self.prompt_column)
            except ValueError as error:
                raise RowError(str(error)) from error
            if self.check is not None:
                self.check(row)
            yield row
