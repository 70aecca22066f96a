# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What can be told of a row of a dataset before an image is made of it: which columns are read, and whether it can be scored."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .base import RewardFunc
from .calls import accepted_keywords, named_keywords, raised_at, takes_all_keywords


class RowError(ValueError):
    """A row of a dataset that cannot be read, or that a reward cannot score; says which one, why, and what to do."""


class Unreadable:
    """
    Stands in a row for a value that could not be decoded, such as a damaged picture.

    Args:
        error (`Exception`): that decoding raised.
    """

    def __init__(self, error: Exception):
        # PIL names the object that it read from, which says nothing to anybody.
        told = re.sub(r" ?<\S+ object at \w+>", "", f"{type(error).__name__}: {error}")
        self.reason = " ".join(told.split())

    def __repr__(self) -> str:
        return f"Unreadable({self.reason!r})"


def read_columns(function: RewardFunc, columns: Iterable[str]) -> set[str]:
    """
    Return those of `columns` that a reward reads: all that its signature or that of its `check_row` names, and with `**kwargs`
    those of its attribute `dataset_columns`, or all where it has none.

    Args:
        function ([`~rewards.RewardFunc`]): the reward.
        columns (`Iterable[str]`): of a dataset, beside the prompts.
    """
    given = dict.fromkeys(columns)
    return {*accepted_keywords(function, given), *_for_check(function, given)} - {"prompt"}


def checked_columns(function: RewardFunc, columns: Iterable[str]) -> set[str]:
    """Return those of `columns` that the `check_row` of a reward is given; none where it has no such attribute."""
    return set(_for_check(function, dict.fromkeys(columns)))


def row_checker(
    name: str, function: RewardFunc, columns: Iterable[str]
) -> Callable[[str, Mapping[str, Any]], RowError | None]:
    """
    Return a function `(prompt, row) -> RowError | None` that tells what is wrong with a row: a value that the reward reads
    cannot be decoded, or its `check_row` refuses it; `None` if neither is so.

    Args:
        name (`str`): what the sentence calls the reward.
        function ([`~rewards.RewardFunc`]): the reward.
        columns (`Iterable[str]`): of the rows, beside the prompts.
    """
    columns = list(columns)
    read, check = sorted(read_columns(function, columns)), getattr(function, "check_row", None)
    asked = list(_for_check(function, dict.fromkeys(["prompt", *columns])))

    def fault(prompt: str, row: Mapping[str, Any]) -> RowError | None:
        for column in read:
            if isinstance(row[column], Unreadable):
                return RowError(
                    f"reward `{name}` reads the column {column!r}, whose value cannot be decoded ({row[column].reason}); "
                    "mend it, or put None there if the reward can do without."
                )
        return None if check is None else _refusal(name, check, {**row, "prompt": prompt}, asked)

    return fault


def _refusal(name: str, check: Callable[..., None], row: Mapping[str, Any], asked: Sequence[str]) -> RowError | None:
    raised = None
    try:
        returned = check(**{column: row[column] for column in asked})
    except ValueError as error:
        raised, said = error, " ".join(str(error).split()) or "it gives no reason"
        told = said if f"`{name}`" in said else f"reward `{name}`: {said}"
    except Exception as error:
        raised = error
        told = (
            f"`check_row` of reward `{name}` raised {type(error).__name__}: {error}{raised_at(error)}; mend it, or let it raise "
            "a ValueError that says what is wrong with the row."
        )
    else:
        if returned is None:
            return None
        if inspect.iscoroutine(returned):
            returned.close()  # or Python warns that nobody awaited it
        told = (
            f"`check_row` of reward `{name}` returned {returned!r:.80}; let it return nothing, and raise a ValueError that says "
            "what is wrong with the row."
        )
    fault = RowError(told)
    fault.__cause__ = raised
    return fault


def first_fault(
    name: str, function: RewardFunc, prompts: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> RowError | None:
    """Return what [`row_checker`] says of the first row that it refuses. A row that several images share is looked at once."""
    fault_of, seen = row_checker(name, function, columns), set()
    for index, prompt in enumerate(prompts):
        row = {column: values[index] for column, values in columns.items()}
        key = prompt, *map(id, row.values())
        fault = None if key in seen else fault_of(prompt, row)
        if fault is not None:
            return fault
        seen.add(key)
    return None


def _for_check(function: RewardFunc, given: Mapping[str, Any]) -> dict[str, Any]:
    """What `check_row` is given of `given`: what it names, and in its `**kwargs` what the reward reads."""
    check = getattr(function, "check_row", None)
    if check is None:
        return {}
    names = named_keywords(check)
    if takes_all_keywords(check):
        names |= {"prompt", *accepted_keywords(function, dict(given))}
    return {name: value for name, value in given.items() if name in names}
