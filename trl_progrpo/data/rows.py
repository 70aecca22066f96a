# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The rows of a dataset as rewards read them: what nobody reads is not decoded, and what cannot be scored is found early."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from datasets import Dataset, Features, IterableDataset
from datasets.features.features import require_decoding
from PIL import Image

from ..rewards import RewardFunc, RewardRunner, RowError, Unreadable, checked_columns, read_columns, row_checker
from .prompts import is_stream


_PAGE = 10_000
_DECODED_AT_A_TIME = 32
_NAMED = 10


def without_unread(dataset: Any, prompt_column: str, runners: Sequence[RewardRunner]) -> Any:
    """
    Return a dataset without the pictures, sounds and the like that no reward reads, so that they are never decoded.

    Args:
        dataset (`Any`): of any kind.
        prompt_column (`str`): where the prompts are.
        runners (`Sequence[RewardRunner]`): all that score its rows.
    """
    decodable = decodable_columns(dataset)
    # What a transform of the user's reads is not known.
    if not decodable or (getattr(dataset, "format", None) or {}).get("type") == "custom":
        return dataset
    read = {name for _, function in _functions(runners) for name in read_columns(function, decodable)}
    unread = [name for name in decodable if name not in read and name != prompt_column]
    # Not `remove_columns`, for which a stream decodes them.
    return dataset.select_columns([name for name in dataset.column_names if name not in unread]) if unread else dataset


def decodable_columns(dataset: Any) -> list[str]:
    """Return the columns whose values are decoded when a row is read, as far as they are known: pictures, sounds, videos."""
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping):
        return []
    return [name for name, feature in features.items() if require_decoding(feature)]


class DecodedRows:
    """
    A dataset with an index whose rows hold [`~rewards.Unreadable`] where a value cannot be decoded, in place of an error.

    Args:
        dataset ([`~datasets.Dataset`]): the rows.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return self.dataset[index]
        except Exception:  # every library that decodes has errors of its own
            return {name: self._value(name, index) for name in self.dataset.column_names}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def _value(self, name: str, index: int) -> Any:
        try:
            return self.dataset.select_columns(name)[index][name]
        except Exception as error:
            return Unreadable(error)


def readable(dataset: Any) -> Any:
    """
    Return a dataset with an index as [`DecodedRows`], a stream as an iterator of such rows, and what has nothing to decode as it
    is.
    """
    if not decodable_columns(dataset):
        return dataset
    return _decoded_stream(dataset) if is_stream(dataset) else DecodedRows(dataset)


def _decoded_stream(stream: IterableDataset) -> Iterator[dict[str, Any]]:
    features = {name: stream.features[name] for name in decodable_columns(stream)}
    for row in stream.decode(False):
        yield {name: _decoded(features[name], value) if name in features else value for name, value in row.items()}


def _decoded(feature: Any, value: Any) -> Any:
    try:
        return Features({"value": feature}).decode_example({"value": value})["value"]
    except Exception as error:
        return Unreadable(error)


def check_rows(
    dataset: Any, prompt_column: str, name: str, runners: Sequence[RewardRunner], on_error: str = "raise"
) -> None:
    """
    Look for rows that a reward cannot score, as far as it can tell without an image. Equal rows are looked at once; where a
    reward reads pictures, each of them is decoded, and of a stream there is the first row.

    Args:
        dataset (`Any`): with an index, or a stream.
        prompt_column (`str`): where the prompts are.
        name (`str`): what the sentence calls the dataset.
        runners (`Sequence[RewardRunner]`): all that score its rows.
        on_error (`str`, *optional*, defaults to `"raise"`): with `"skip"` there is a warning in place of the error.

    Raises:
        RowError: if there are such rows; names the first and counts the others.
    """
    functions = _functions(runners)
    bad: list[int] = []
    first, checks, seen = "", None, {}
    for index, row, key in _rows_to_check(dataset, prompt_column, [function for _, function in functions]):
        if key in seen:
            bad += [index] * seen[key]
            continue
        prompt, values = row[prompt_column], {name: value for name, value in row.items() if name != prompt_column}
        checks = checks or [row_checker(label, function, values) for label, function in functions]
        fault = next((told for check in checks if (told := check(prompt, values)) is not None), None)
        if key is not None:
            seen[key] = fault is not None
        if fault is not None:
            where = f"{name} row" if name.endswith(" a") else f"{name} row {index}"
            first = first or f"{where}{'' if repr(prompt) in str(fault) else f' (prompt {prompt!r})'}: {fault}"
            bad.append(index)
    if not bad:
        return
    if len(bad) > 1:
        named = ", ".join(map(str, bad[:_NAMED])) + (", ..." if len(bad) > _NAMED else "")
        first += f" {len(bad)} of {len(dataset)} rows cannot be scored: {named}."
    if on_error != "skip":
        raise RowError(first)
    warnings.warn(f'{first} With `on_reward_error="skip"` their images are left out of their groups.', stacklevel=3)


def stream_check(prompt_column: str, runners: Sequence[RewardRunner]) -> Callable[[Mapping[str, Any]], None]:
    """
    Return what [`RolloutStream`] asks about every row: it raises a [`~rewards.RowError`] for one that a reward cannot score.

    Args:
        prompt_column (`str`): where the prompts are.
        runners (`Sequence[RewardRunner]`): all that score the rows.
    """
    return lambda row: check_rows([row], prompt_column, "`train_dataset` holds a", runners)


Rows = Iterable[tuple[int, Mapping[str, Any], int | None]]


def _rows_to_check(dataset: Any, prompt_column: str, functions: Sequence[RewardFunc]) -> Rows:
    """Index, row and a key that equal rows share; without one each is looked at."""
    if is_stream(dataset):
        return ((0, row, None) for row in islice(readable(dataset), 1))
    if not isinstance(dataset, Dataset):
        # Rows of a list hold what they hold: nothing is known of their columns, nor whether values can be compared.
        return ((index, _loaded(dataset[index], functions), None) for index in range(len(dataset)))
    columns = [name for name in dataset.column_names if name != prompt_column]
    decodable = decodable_columns(dataset)
    read = {name for function in functions for name in read_columns(function, decodable)}
    read |= {name for function in functions for name in checked_columns(function, columns)}
    narrow = dataset.select_columns([prompt_column, *(name for name in columns if name in read)])
    if decodable_columns(narrow):
        return _decoded_rows(DecodedRows(narrow))
    return _keyed_rows(narrow) if any(hasattr(function, "check_row") for function in functions) else ()


def _decoded_rows(rows: DecodedRows) -> Rows:
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(rows), _DECODED_AT_A_TIME):
            indices = range(start, min(start + _DECODED_AT_A_TIME, len(rows)))
            yield from ((index, row, None) for index, row in zip(indices, pool.map(rows.__getitem__, indices)))


def _keyed_rows(dataset: Dataset) -> Rows:
    for start in range(0, len(dataset), _PAGE):
        page = dataset[start : start + _PAGE]
        for index, values in enumerate(zip(*page.values()), start):
            # A number and not the text, as there may be millions.
            yield index, dict(zip(page, values)), hash(repr(values))


def _loaded(row: Mapping[str, Any], functions: Iterable[RewardFunc]) -> Mapping[str, Any]:
    """With pictures that PIL has opened and not read yet read, or [`~rewards.Unreadable`]."""
    pictures = {name: value for name, value in row.items() if isinstance(value, Image.Image)}
    read = {name for function in functions for name in read_columns(function, pictures)} if pictures else ()
    found = dict(row)
    for name in read:
        try:
            pictures[name].load()
        except Exception as error:
            found[name] = Unreadable(error)
    return found


def _functions(runners: Sequence[RewardRunner]) -> list[tuple[str, RewardFunc]]:
    """Names and functions, each once: previews are often scored by the functions that are trained on."""
    return list({id(f): (label, f) for runner in runners for label, f in zip(runner.names, runner.functions)}.values())
