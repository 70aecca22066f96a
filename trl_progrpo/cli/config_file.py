# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""YAML of users: what a value is depends on the field it is for, so every one is kept as it was written, too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from .base import CommandError


_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
# As YAML 1.2 has them: 1e-4 is a number, 12:30:45 and 2024-01-01 are texts; and what begins with 0, as 007, is a text too.
_KINDS = {
    "null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    "bool": (
        re.compile("|".join(form for word in _TRUE + _FALSE for form in (word, word.title(), word.upper()))),
        list("tTfFyYnNoO"),
    ),
    "int": (re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*|0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+)"), list("-+0123456789")),
    "float": (
        re.compile(
            r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)(\.[0-9]*)?([eE][-+]?[0-9]+)?|[-+]?\.[0-9]+([eE][-+]?[0-9]+)?"
            r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
        ),
        list("-+.0123456789"),
    ),
    "merge": (re.compile("<<"), ["<"]),
}


class Plain(str):
    """
    A value without quotes that is no text to YAML: as it was written, for fields that are texts.

    Args:
        written (`str`): what stands in the file.
        value (`bool`, `int` or `float`): what it is elsewhere.
    """

    value: bool | int | float

    def __new__(cls, written: str, value: bool | int | float):
        text = super().__new__(cls, written)
        text.value = value
        return text

    def __repr__(self) -> str:
        """As sentences show it."""
        return repr(self.value) if isinstance(self.value, bool) else str(self)


class _Loader(yaml.SafeLoader):
    """Makes dictionaries, lists, texts, [`Plain`] and `None`."""

    yaml_implicit_resolvers = {}
    yaml_constructors = {
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("map", "seq", "str", "null")
    }

    def construct_mapping(self, node, deep=False):
        """Of a key that comes twice, YAML silently takes the last."""
        keys = [str(key.value).replace("-", "_") for key, _ in node.value]
        again = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if again is not None:
            raise CommandError(f"`{again}` comes twice in {self.name}; keep one of the lines.")
        return super().construct_mapping(node, deep)

    def make_bool(self, node) -> Plain:
        return Plain(node.value, node.value.lower() in _TRUE)

    def make_int(self, node) -> Plain:
        return Plain(node.value, int(node.value, 0))

    def make_float(self, node) -> Plain:
        return Plain(node.value, float(re.sub(r"\.(?=inf|nan)", "", node.value.lower())))


class _Dumper(yaml.SafeDumper):
    """Quotes what [`_Loader`] would not read as a text, beside what older readers would not."""


for _kind, (_pattern, _first) in _KINDS.items():
    _whole = re.compile(rf"(?:{_pattern.pattern})\Z")
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _whole, _first)
for _kind in ("bool", "int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", getattr(_Loader, f"make_{_kind}"))


def load_yaml(path: str, field: str = "--config") -> Any:
    """
    Return what a YAML file holds, numbers and truth values as [`Plain`].

    Args:
        path (`str`): the file, in UTF-8.
        field (`str`, *optional*, defaults to `"--config"`): what the user called it.

    Raises:
        CommandError: if the file cannot be read, is no valid YAML, or has a key twice.
    """
    try:
        loader = _Loader(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        cure = "check the path" if isinstance(error, OSError) else "save it as UTF-8, or check the path"
        raise CommandError(
            f"`{field}` {path!r} cannot be read ({getattr(error, 'strerror', error)}); {cure}."
        ) from error
    except yaml.YAMLError as error:
        raise _invalid(path, field, error) from error
    loader.name = path
    try:
        return loader.get_single_data()
    # The second for what is tagged as a number and is none, the last for what holds itself.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _invalid(path, field, error) from error
    finally:
        loader.dispose()


def _invalid(path: str, field: str, error: Exception) -> CommandError:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f", line {mark.line + 1}" if mark is not None else ""
    return CommandError(f"`{field}` {path!r}{where} is no valid YAML ({problem or error}); mend it.")


def to_values(data: Any) -> Any:
    """Return `data` with what [`Plain`] texts are to YAML in their places, at every depth: for what has no type of its own."""
    if isinstance(data, Plain):
        return data.value
    if isinstance(data, dict):
        return {to_values(key): to_values(value) for key, value in data.items()}
    return [to_values(value) for value in data] if isinstance(data, list) else data


def dump_yaml(data: Any, flow: bool | None = False, unicode: bool = True) -> str:
    """
    Return `data` as YAML that this module reads as it is, and most others do.

    Args:
        data (`Any`): of dictionaries, lists, texts, numbers, truth values and `None`.
        flow (`bool`, *optional*, defaults to `False`): on one line; `None` for what holds nothing but single values.
        unicode (`bool`, *optional*, defaults to `True`): letters beyond ASCII as they are, and not as escapes.
    """
    return yaml.dump(data, Dumper=_Dumper, allow_unicode=unicode, width=100, sort_keys=False, default_flow_style=flow)
