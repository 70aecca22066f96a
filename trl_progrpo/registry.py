# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Names for the package's open axes: a decorator here, an entry point elsewhere, or a dotted path. Standard library only."""

from __future__ import annotations

import difflib
import importlib
import operator
from collections.abc import Callable
from importlib import metadata
from typing import Any, TypeVar


T = TypeVar("T")


class Registry:
    """
    Maps names in a config to objects.

    Args:
        kind (`str`): what the objects are, for error messages, e.g. `"pruning rule"`.
        entry_point_group (`str`): the entry-point group in which other packages publish theirs, e.g.
            `"trl_progrpo.pruning_rules"`.

    Example:

    ```python
    >>> RULES = Registry("rule", "my_package.rules")
    >>> @RULES.register("first")
    ... def first(values):
    ...     return values[0]
    >>> RULES.get("first")([3, 4])
    3
    ```
    """

    def __init__(self, kind: str, entry_point_group: str):
        self.kind = kind
        self.entry_point_group = entry_point_group
        self._objects: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """
        Decorator that files an object under `name` and returns it unchanged.

        Raises:
            ValueError: if another object already has the name. The same definition again (a reloaded module) replaces
                the old one.
        """

        def decorator(obj: T) -> T:
            known = self._objects.get(name)
            if known is not None and _origin(known) != _origin(obj):
                raise ValueError(f"{self.kind} {name!r} is already {_origin(known)}; choose another name.")
            self._objects[name] = obj
            return obj

        return decorator

    def registered(self) -> dict[str, Any]:
        """The objects registered in this process, by name; entry points are not loaded."""
        return dict(self._objects)

    def names(self) -> list[str]:
        """All names `get` knows, sorted: registered ones and entry points (which are not loaded)."""
        return sorted({*self._objects, *(point.name for point in self._entry_points())})

    def get(self, name: str) -> Any:
        """
        The object called `name`: a registered name, else an entry point, else a dotted path (`"package.module:attr"` or
        `"package.module.attr"`), which is imported.

        Raises:
            ValueError: if nothing is called that; the message lists the known names and the nearest one.
            ImportError: if the module exists but one of its own imports fails.
        """
        if name in self._objects:
            return self._objects[name]
        for point in self._entry_points():
            if point.name == name:
                return point.load()
        module_name, attribute = _split_path(name)
        if not module_name or not attribute:
            raise self._unknown(name)
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # Only a wrong path is an unknown name; a dependency the module lacks is the user's real problem.
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise self._unknown(name, f"module {error.name!r} was not found") from error
        try:
            return operator.attrgetter(attribute)(module)
        except AttributeError as error:
            raise self._unknown(name, f"module {module_name!r} has no {attribute!r}") from error

    def _entry_points(self):
        return metadata.entry_points(group=self.entry_point_group)

    def _unknown(self, name: str, why: str = "") -> ValueError:
        names = self.names()
        nearest = difflib.get_close_matches(name, names, n=1)
        return ValueError(
            f"unknown {self.kind} {name!r}{f' ({why})' if why else ''}; "
            f"{f'did you mean {nearest[0]!r}? ' if nearest else ''}"
            f'known: {", ".join(names) or "none"}; or give a path "package.module:attr".'
        )


def _origin(obj: Any) -> str:
    owner = obj if hasattr(obj, "__qualname__") else type(obj)
    return f"{owner.__module__}.{owner.__qualname__}"


def _split_path(path: str) -> tuple[str, str]:
    separator = ":" if ":" in path else "."
    module_name, _, attribute = path.rpartition(separator)
    # A leading dot would be a relative import, which has no meaning in a config.
    return ("", "") if module_name.startswith(".") else (module_name, attribute)
