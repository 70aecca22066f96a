# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""From a dataset to the prompts of a rollout."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler

from .seeds import derive_seed


def check_prompts(dataset: Any, prompt_column: str, name: str) -> None:
    """
    Looks at a dataset before anything expensive happens.

    Raises:
        ValueError: if the dataset has no length, is empty, lacks `prompt_column`, has a column that a reward function could
            not be given, or holds a prompt that is not a non-empty string.
    """
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            f"`{name}` is {type(dataset).__name__}, which has no length; give a `datasets.Dataset`, e.g. one made from a list."
        )
    if len(dataset) == 0:
        raise ValueError(f"`{name}` is empty; give at least one prompt.")
    columns = getattr(dataset, "column_names", None) or list(dataset[0])
    if prompt_column not in columns:
        raise ValueError(
            f"`{name}` has no column {prompt_column!r} (`prompt_column`); its columns are {', '.join(columns)}."
        )
    for taken in ({"prompts", "images", "preview"} & set(columns)) - {prompt_column}:
        raise ValueError(
            f"`{name}` has a column {taken!r}, the name under which reward functions get something else; rename it."
        )
    for index, prompt in enumerate(_column(dataset, prompt_column)):
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(
                f"`{name}` row {index} has {prompt!r} in column {prompt_column!r}; every prompt must be a non-empty string."
            )


def _column(dataset: Any, name: str) -> Sequence[Any]:
    return dataset[name] if isinstance(dataset, Dataset) else [row[name] for row in dataset]


def distinct_prompts(datasets: Iterable[Any], prompt_column: str) -> list[str]:
    """The prompts of all datasets, each once, in the order of their first appearance; `None` is no dataset."""
    given = (dataset for dataset in datasets if dataset is not None)
    return list(dict.fromkeys(prompt for dataset in given for prompt in _column(dataset, prompt_column)))


def warn_about_long_prompts(prompts: Sequence[str], limit: int | None, count_tokens: Callable[[str], int]) -> None:
    """
    One warning if any prompt has more tokens than the model reads; they are trained on all the same.

    Args:
        prompts (`Sequence[str]`): distinct prompts.
        limit (`int`, *optional*): the most tokens that are read; no warning when unset.
        count_tokens (`Callable`): tokens of a prompt.
    """
    lengths = [count_tokens(prompt) for prompt in prompts] if limit is not None else []
    longer = [length for length in lengths if length > limit]
    if longer:
        warnings.warn(
            f"{len(longer)} of {len(prompts)} prompts have more than the {limit} tokens that the text encoder reads (the "
            f"longest has {max(longer)}), and what is beyond has no effect on the images; shorten them, or raise "
            "`max_sequence_length` if the model takes more. Prompts that differ only there stay separate groups.",
            stacklevel=3,
        )


def check_size(num_prompts: int, prompts_per_rollout: int) -> None:
    """
    Raises:
        ValueError: if a dataset of `num_prompts` is smaller than one rollout.
    """
    if num_prompts < prompts_per_rollout:
        raise ValueError(
            f"`train_dataset` has {num_prompts} prompts, but one rollout takes {prompts_per_rollout}; give more prompts, "
            "or lower `per_device_train_batch_size` or `steps_per_generation`, or raise `num_generations`."
        )


def collate_rows(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """A list of rows as columns of plain Python values; nothing is tensorised, rewards want the values as they are."""
    return {name: [row[name] for row in rows] for name in rows[0]}


class RolloutSampler(Sampler[int]):
    """
    Dataset indices in the order a run consumes them: for each rollout the indices of its prompts, repeated once for
    every micro-batch that is trained on that rollout.

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
        order = list(range(self.num_prompts))
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
            order = torch.randperm(self.num_prompts, generator=generator).tolist()
        size = self.prompts_per_rollout
        order += order[: self.rollouts_per_epoch * size - self.num_prompts]
        for start in range(0, len(order), size):
            for _ in range(self.repeats):
                yield from order[start : start + size]
