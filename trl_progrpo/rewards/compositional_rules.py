# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""GenEval's metadata: what it asks for, and whether detected objects meet it. Standard library and numpy only."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ..tiny.world import SHAPES, Caption, parse_caption
from .detectors import UNCLEAR, Detection


RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Relation to its direction (x, y) in an image; y grows downwards."""

EXTENT_TOLERANCE = 0.1
"""Part of both boxes' extents that an offset does not count, as in GenEval."""

MIN_DIRECTION = 0.5
"""Least part of the distance that lies along a relation's direction, as in GenEval: both hold on a diagonal."""

_KEYS = ("class", "count", "color", "position")

TAG_OF_KIND = {"single": "single_object", "count": "counting", "pair": "color_attr", "relation": "position"}


@dataclass(frozen=True)
class Wanted:
    """
    One entry of `include` or `exclude`.

    Args:
        label (`str`): class of the objects.
        count (`int`, *optional*, defaults to 1): in `include` at least as many, in `exclude` fewer.
        color (`str`, *optional*): of all of them.
        position (`tuple[str, int]`, *optional*): a relation of `RELATIONS` to the objects of an earlier entry of `include`.
    """

    label: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Specification:
    """What must be seen, and what must not."""

    include: tuple[Wanted, ...]
    exclude: tuple[Wanted, ...] = ()

    @property
    def classes(self) -> list[str]:
        """Every class that is asked about, each once."""
        return list(dict.fromkeys(wanted.label for wanted in (*self.include, *self.exclude)))


@dataclass(frozen=True)
class Judgement:
    """
    What an image deserves.

    Args:
        graded (`float`): mean of the parts, in [0, 1].
        strict (`bool`): whether everything holds.
    """

    graded: float
    strict: bool


def judge(
    specification: Specification, detections: Sequence[Detection], name_color: Callable[[tuple[float, ...]], str]
) -> Judgement:
    """
    Compares what was found with what is wanted; see [`compositional.GenEvalReward`].

    Args:
        specification ([`Specification`]): what is wanted.
        detections (`Sequence[Detection]`): what was found.
        name_color (`Callable`): from a box to the name of its colour, for detections without one.
    """
    by_class: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda detection: -detection.score):
        by_class.setdefault(detection.label, []).append(detection)
    parts: list[float] = []
    groups: list[list[Detection]] = []
    for wanted in specification.include:
        group = by_class.get(wanted.label, [])
        parts.append(min(len(group) / wanted.count, 1.0))
        if wanted.color is not None:
            group = [found for found in group if plain_color(found.color or name_color(found.box)) == wanted.color]
            parts.append(min(len(group) / wanted.count, 1.0))
        groups.append(group[: wanted.count])
        if wanted.position is not None:
            relation, target = wanted.position
            holds = [is_placed(a.box, relation, b.box) for a in groups[-1] for b in groups[target]]
            parts.append(sum(holds) / len(holds) if holds else 0.0)
    absent = [len(by_class.get(wanted.label, [])) < wanted.count for wanted in specification.exclude]
    there = sum(parts) / len(parts) if parts else 1.0
    graded = (sum(parts) + there * sum(absent)) / (len(parts) + len(absent))
    return Judgement(graded, strict=there == 1.0 and all(absent))


def is_placed(box: tuple[float, ...], relation: str, other: tuple[float, ...]) -> bool:
    """
    Whether a box lies in a relation to another: along that direction, their centres are apart by more than a tenth of both
    extents, and what is beyond is more than half of the whole distance.

    Args:
        box (`tuple[float, float, float, float]`): left, top, right, bottom.
        relation (`str`): a key of `RELATIONS`.
        other (`tuple[float, float, float, float]`): what `box` is compared with.
    """
    corners = np.array([box, other], dtype=np.float64).reshape(2, 2, 2)
    offset = corners[0].mean(0) - corners[1].mean(0)
    extents = (corners[:, 1] - corners[:, 0]).sum(0)
    beyond = np.sign(offset) * np.maximum(np.abs(offset) - EXTENT_TOLERANCE * extents, 0)
    return bool(beyond @ np.array(RELATIONS[relation]) > MIN_DIRECTION * np.linalg.norm(offset))


def read_specification(prompt: str, include: Any, exclude: Any) -> Specification | None:
    """
    The requirements of one row of a dataset; `None` where there are none.

    Args:
        prompt (`str`): named in error messages.
        include (`list[dict]`, `str` or `None`): entries of GenEval's metadata, or the same as JSON text.
        exclude (`list[dict]`, `str` or `None`): likewise.

    Raises:
        ValueError: if an entry makes no sense.
    """
    lists = {"include": include, "exclude": exclude}
    read: dict[str, tuple[Wanted, ...]] = {}
    for column, entries in lists.items():
        try:
            entries = json.loads(entries) if isinstance(entries, str) and entries.strip() else entries or []
            if not isinstance(entries, Sequence):
                raise TypeError(f"it is a {type(entries).__name__}, not a list")
            read[column] = tuple(_read_entry(entry, index) for index, entry in enumerate(entries))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(
                f"the dataset column `{column}` of the prompt {prompt!r} is {entries!r:.200} ({why}); give GenEval's metadata, "
                "such as [{'class': 'dog', 'count': 1}, {'class': 'cat', 'count': 1, 'position': ['left of', 0]}]."
            ) from error
    return Specification(**read) if any(read.values()) else None


def _read_entry(entry: Mapping[str, Any], index: int) -> Wanted:
    # Tables fill what an entry lacks with None.
    label, count, color = entry["class"], entry.get("count"), entry.get("color")
    unknown = [key for key, value in entry.items() if key not in _KEYS and value is not None]
    if unknown:
        raise ValueError(f"the key {unknown[0]!r} is none of {', '.join(_KEYS)}")
    count = 1 if count is None else count
    if not isinstance(label, str) or not label:
        raise ValueError(f"the class {label!r} is no name")
    if color is not None and not (isinstance(color, str) and color.strip()):
        raise ValueError(f"the color {color!r} is no name")
    if (
        not isinstance(count, Real)
        or isinstance(count, bool)
        or count in (math.inf, -math.inf)
        or count != int(count)
        or count < 1
    ):
        raise ValueError(f"the count {count!r} is no whole number from 1")
    position = entry.get("position")
    if position is not None:
        relation, target = position
        if relation not in RELATIONS:
            raise ValueError(f"the relation {relation!r} is none of {', '.join(RELATIONS)}")
        if not isinstance(target, Real) or isinstance(target, bool) or target != int(target):
            raise ValueError(f"the position of entry {index} refers to {target!r}, which is no whole number")
        position = (relation, int(target))
        if not 0 <= position[1] < index:
            raise ValueError(f"the position of entry {index} refers to entry {target}, which does not come before it")
    return Wanted(label, int(count), color and plain_color(color), position)


def plain_color(name: str) -> str:
    """A colour's name as it is compared: in small letters, and gray however it is spelt."""
    name = name.strip().casefold()
    return "gray" if name == "grey" else name


def shapes_metadata(caption: str | Caption) -> dict[str, Any]:
    """
    A caption of the shapes world as a row in GenEval's format: exactly its objects, in its relation, and nothing else.

    With [`detectors.ShapesDetector`] the strict reward of such a row agrees with the world's own verifier, except that a
    relation is GenEval's: it asks for a direction, the verifier for a margin.

    Returns:
        `dict`: `prompt`, `tag`, `include` and `exclude`.

    Raises:
        ValueError: if the text is no caption of the shapes world.
    """
    caption = parse_caption(caption) if isinstance(caption, str) else caption
    # The target of a relation comes first, for a position refers to an earlier entry.
    different = list(dict.fromkeys(reversed(caption.objects)))
    include = [
        {"class": thing.shape, "count": caption.objects.count(thing), "color": thing.color} for thing in different
    ]
    if caption.relation is not None:
        include[-1]["position"] = [caption.relation, 0]
    shapes = [thing.shape for thing in caption.objects]
    surplus = [{"class": shape, "count": shapes.count(shape) + 1} for shape in SHAPES]
    return {
        "prompt": str(caption),
        "tag": TAG_OF_KIND[caption.kind],
        "include": include,
        "exclude": [*surplus, {"class": UNCLEAR, "count": 1}],
    }
