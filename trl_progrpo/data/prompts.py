# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What counts as a prompt dataset, and what is wrong with one."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from ..words import counted


RESERVED_COLUMNS = ("prompts", "images", "preview")
"""Names under which reward functions get something else than a dataset column."""

LOOKED_AT = 10_000
"""Prompts of each dataset that are tokenised in advance to warn of those that are too long."""

_CHUNK = 10_000


def as_prompts(data: Any, prompt_column: str, name: str) -> Any:
    """
    What a user gives as a dataset, as rows with a prompt column: a list of texts becomes a [`~datasets.Dataset`].

    Raises:
        ValueError: if it is a single text, a dictionary of splits, or a table of pandas.
    """
    if isinstance(data, str):
        raise ValueError(
            f"`{name}` is the text {data!r}; give a list of prompts, or load a dataset by that name first."
        )
    if type(data).__module__.partition(".")[0] == "pandas":
        raise ValueError(
            f"`{name}` is a {type(data).__name__} of pandas; give `datasets.Dataset.from_pandas(...)` of it."
        )
    if isinstance(data, (DatasetDict, IterableDatasetDict)):
        raise ValueError(
            f"`{name}` holds the splits {', '.join(data)}; give one of them, e.g. dataset[{next(iter(data))!r}]."
        )
    if isinstance(data, (list, tuple)) and data and isinstance(data[0], str):
        for index, prompt in enumerate(data):
            check_prompt(prompt, f"`{name}` entry {index}")
        return Dataset.from_dict({prompt_column: list(data)})
    return data


def is_stream(dataset: Any) -> bool:
    """Whether rows come one after the other, without a length and an index."""
    return isinstance(dataset, IterableDataset)


def check_stream_options(max_steps: int, drop_text_encoders: bool) -> None:
    """
    Raises:
        ValueError: if a run on a stream has no last step, or wants to know all prompts beforehand.
    """
    if max_steps <= 0:
        raise ValueError("`train_dataset` is a stream, which has no length to count epochs by; set `max_steps`.")
    if drop_text_encoders:
        raise ValueError(
            "`drop_text_encoders` is True, which encodes all prompts before training, but those of a stream are not known "
            "before; set it to False, or do not stream."
        )


def check_prompts(dataset: Any, prompt_column: str, name: str, streams: bool = True) -> None:
    """
    Looks at a dataset before anything expensive happens. Of a stream only the first row can be looked at; the others are
    checked when they come, by [`RolloutStream`].

    Args:
        dataset (`Any`): what [`as_prompts`] gave.
        prompt_column (`str`): where the prompts are.
        name (`str`): the argument it was given as.
        streams (`bool`, *optional*, defaults to `True`): whether it may be a stream.

    Raises:
        ValueError: if the dataset is neither a stream nor has a length, is empty, lacks `prompt_column`, has a column that
            a reward function could not be given, or holds a prompt that is not a non-empty string.
    """
    if is_stream(dataset) and not streams:
        raise ValueError(
            f"`{name}` is a stream; give a fixed set of prompts, e.g. Dataset.from_list(list(stream.take(64)))."
        )
    if is_stream(dataset):
        # As it is stored: whether a picture in it can be decoded is not asked here.
        dataset = list((dataset if dataset.features is None else dataset.decode(False)).take(1))
    elif not hasattr(dataset, "__len__"):
        raise ValueError(
            f"`{name}` is {type(dataset).__name__}, which has no length; give a list of prompts, a `datasets.Dataset`, or a "
            "`datasets.IterableDataset` to stream."
        )
    if len(dataset) == 0:
        raise ValueError(f"`{name}` is empty; give at least one prompt.")
    if not hasattr(dataset, "column_names"):
        _check_rows(dataset, name)
    columns = list(getattr(dataset, "column_names", None) or dataset[0])
    if prompt_column not in columns:
        raise ValueError(
            f"`{name}` has no column {prompt_column!r} (`prompt_column`); its columns are {', '.join(columns)}."
        )
    for taken in sorted(set(RESERVED_COLUMNS) & set(columns) - {prompt_column}):
        raise ValueError(
            f"`{name}` has a column {taken!r}, the name under which reward functions get something else; rename it."
        )
    if isinstance(dataset, Dataset) and _is_text(dataset, prompt_column):
        index = _first_blank(dataset, prompt_column)
        if index is not None:
            check_prompt(dataset[index][prompt_column], f"`{name}` row {index}", prompt_column)
        return
    for index, prompt in enumerate(_column(dataset, prompt_column)):
        check_prompt(prompt, f"`{name}` row {index}", prompt_column)


def check_variety(dataset: Any, prompt_column: str, name: str) -> None:
    """
    Looks for prompts that come more than once, among the first [`LOOKED_AT`] rows; a stream is not looked at.

    Args:
        dataset (`Any`): what [`check_prompts`] has passed.
        prompt_column (`str`): where the prompts are.
        name (`str`): the argument it was given as.

    Raises:
        ValueError: if all of several rows are the same. A warning if some are.
    """
    if is_stream(dataset) or len(dataset) < 2:
        return
    prompts = list(islice(_column(dataset, prompt_column), LOOKED_AT))
    counts = Counter(prompts)
    # The same prompt with other columns, such as another target, is another task.
    stored = dataset.with_format("arrow") if isinstance(dataset, Dataset) else dataset
    rows = [repr(stored[index]) for index, prompt in enumerate(prompts) if counts[prompt] > 1]
    repeated = len(rows) - len(set(rows))
    if repeated == len(prompts) - 1:
        raise ValueError(
            f"`{name}` has {len(dataset)} rows, and all of them the prompt {prompts[0]!r} with the same columns; give different "
            "prompts, or a single row if only this one is to be trained on."
        )
    if repeated:
        warnings.warn(
            f"{repeated} of the first {counted(len(prompts), 'training prompt')} {'is' if repeated == 1 else 'are'} the same as "
            "one before, columns and all, and so trained on more often than others; remove repeated rows if that is not meant.",
            stacklevel=3,
        )


def _check_rows(rows: Sequence[Any], name: str) -> None:
    """A list is batched by the keys of its first row, so all rows must have them."""
    for index in range(len(rows)):
        if not isinstance(rows[index], Mapping):
            raise ValueError(
                f"`{name}` row {index} is {rows[index]!r}; give a list of texts, or of dictionaries that have the same keys."
            )
        if set(rows[index]) != set(rows[0]):
            raise ValueError(
                f"`{name}` row {index} has the keys {sorted(rows[index])} and row 0 {sorted(rows[0])}; give all rows the "
                "same keys, with None where a value is missing."
            )


def check_prompt(prompt: Any, where: str, prompt_column: str | None = None) -> None:
    """
    Raises:
        ValueError: if `prompt` is not a non-empty string, or is a conversation; the sentence begins with `where`.
    """
    if isinstance(prompt, str) and prompt.strip():
        return
    column = "" if prompt_column is None else f" in column {prompt_column!r}"
    if _is_conversation(prompt):
        name = repr(prompt_column or "prompt")
        raise ValueError(
            f"{where} has a conversation{column}, but an image model reads one text; keep that of a message, e.g. "
            f"dataset.map(lambda row: {{{name}: row[{name}][-1]['content']}})."
        )
    raise ValueError(f"{where} has {prompt!r}{column}; every prompt must be a non-empty string.")


def _is_conversation(prompt: Any) -> bool:
    """Whether it is a list of messages, as language models are trained on."""
    return (
        isinstance(prompt, (list, tuple)) and bool(prompt) and isinstance(prompt[0], Mapping) and "role" in prompt[0]
    )


def _is_text(dataset: Dataset, name: str) -> bool:
    kind = dataset.features.arrow_schema.field(name).type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _first_blank(dataset: Dataset, name: str) -> int | None:
    """Row of the first prompt that is missing or white space, looked for in Arrow: files have millions of rows."""
    texts, start = dataset.select_columns(name).with_format("arrow"), 0
    for table in texts.iter(_CHUNK):
        blank = blank_texts(table[name]).index(True).as_py()
        if blank >= 0:
            return start + blank
        start += len(table)
    return None


def blank_texts(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which of `texts` are missing or hold nothing but white space."""
    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(texts), ""), True)


def _column(dataset: Any, name: str) -> Iterable[Any]:
    if isinstance(dataset, Dataset):
        # Page by page, so that whoever stops early reads little.
        return (value for page in dataset.select_columns(name).iter(_CHUNK) for value in page[name])
    return (dataset[index][name] for index in range(len(dataset)))


def distinct_prompts(datasets: Iterable[Any], prompt_column: str, limit: int | None = None) -> list[str]:
    """
    The prompts of all datasets, each once, in the order of their first appearance; `None` is no dataset.

    Args:
        datasets (`Iterable`): datasets; a stream is left out, its prompts are not known yet.
        prompt_column (`str`): where they are.
        limit (`int`, *optional*): rows of each dataset that are read; all when unset.
    """
    given = [dataset for dataset in datasets if dataset is not None and not is_stream(dataset)]
    return list(dict.fromkeys(p for dataset in given for p in islice(_column(dataset, prompt_column), limit)))


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
