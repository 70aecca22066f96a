# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Prompts for `trl-progrpo train`: from a name to a training set and held-out prompts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from .base import CommandError, user_errors


if TYPE_CHECKING:
    from datasets import Dataset

    from .arguments import ScriptArguments


BUILDERS = {".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
"""Suffix of a local file -> builder of `datasets`."""

DEFAULT_TEST_SPLIT = "test"


def load_prompts(
    arguments: ScriptArguments, prompt_column: str = "prompt", seed: int = 0
) -> tuple[Dataset, Dataset | None]:
    """
    The training prompts, and the held-out prompts if there are any.

    The default split `"test"` may be missing from a dataset, then there are none; a split that was asked for may not.

    Args:
        arguments ([`~cli.arguments.ScriptArguments`]): which data.
        prompt_column (`str`, *optional*, defaults to `"prompt"`): name given to the only column of a text file.
        seed (`int`, *optional*, defaults to 0): fixes which `eval_samples` prompts are taken.

    Raises:
        CommandError: if the data cannot be read.
    """
    name, test_split = arguments.dataset_name, arguments.dataset_test_split
    train = _load(name, arguments.dataset_config, arguments.dataset_train_split, prompt_column, "dataset_train_split")
    if test_split is None:
        return train, None
    try:
        test = _load(name, arguments.dataset_config, test_split, prompt_column, "dataset_test_split")
    except CommandError:
        if test_split != DEFAULT_TEST_SPLIT:
            raise
        return train, None
    return train, take_prompts(test, arguments.eval_samples, seed)


def take_prompts(dataset: Dataset, count: int, seed: int = 0) -> Dataset:
    """`count` rows in a fixed random order, starting over when they are used up; all rows in order for 0."""
    if count == 0 or len(dataset) == 0:
        return dataset
    order = random.Random(seed).sample(range(len(dataset)), len(dataset))
    return dataset.select([order[i % len(order)] for i in range(count)])


def _load(name: str, config: str | None, split: str, prompt_column: str, field: str) -> Dataset:
    if name == "shapes":
        from ..tiny import load_shapes

        with user_errors():
            return load_shapes(split)

    import datasets

    path = Path(name).expanduser()
    if path.suffix in BUILDERS and not path.exists():
        raise CommandError(f"`dataset_name` is {name!r}, but there is no such file.")
    try:
        if path.is_file():
            if path.suffix not in BUILDERS:
                raise CommandError(
                    f"`dataset_name` is {name!r}, a file of unknown kind; use one of {', '.join(BUILDERS)}."
                )
            dataset = datasets.load_dataset(BUILDERS[path.suffix], data_files=str(path), split=split)
        else:
            dataset = datasets.load_dataset(name, config, split=split)
    except (ValueError, OSError, datasets.exceptions.DatasetGenerationError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CommandError(
            f"`dataset_name` {name!r} with `{field}` {split!r} could not be loaded ({reason}); check both."
        ) from error
    if dataset.column_names == ["text"]:
        dataset = dataset.filter(lambda row: bool(row["text"].strip())).rename_column("text", prompt_column)
    return dataset
