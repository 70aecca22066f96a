# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Names for the package's open axes: a decorator here, an entry point elsewhere, or a dotted path. Standard library only."""

from __future__ import annotations

import difflib
import importlib
import operator
import os
import traceback
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
            ValueError: if nothing is called that; the message lists the known names and the nearest one. Or if what is called
                that cannot be imported; the message says why, and the cause has the traceback.
        """
        if not isinstance(name, str):
            raise ValueError(f'{self.kind} {name!r} is no name; give one, or a path "package.module:attr".')
        if name in self._objects:
            return self._objects[name]
        for point in self._entry_points():
            if point.name == name:
                return self._imported(name, point.load)
        module_name, attribute = _split_path(name)
        if not module_name or not attribute:
            raise self._unknown(name)
        try:
            module = self._imported(name, lambda: importlib.import_module(module_name))
        except ModuleNotFoundError as error:
            raise self._unknown(name, f"module {error.name!r} was not found") from error
        try:
            return operator.attrgetter(attribute)(module)
        except AttributeError as error:
            raise self._unknown(name, f"module {module_name!r} has no {attribute!r}") from error

    def _imported(self, name: str, load: Callable[[], Any]) -> Any:
        try:
            return load()
        except Exception as error:
            # Only a wrong path is an unknown name; a dependency the module lacks is the user's real problem.
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing is not None and f"{_split_path(name)[0]}.".startswith(f"{missing}."):
                raise
            raise ValueError(
                f"{self.kind} {name!r} cannot be imported ({type(error).__name__}: {error}{_place(error)}); install what is "
                "missing, or mend it."
            ) from error

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


def _place(error: BaseException) -> str:
    """The line of the user's that raised; a syntax error says it by itself."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = not isinstance(error, SyntaxError) and not frame.filename.startswith("<")
    return f", line {frame.lineno} of {os.path.basename(frame.filename)}" if where else ""


def _split_path(path: str) -> tuple[str, str]:
    separator = ":" if ":" in path else "."
    module_name, _, attribute = path.rpartition(separator)
    # A leading dot would be a relative import, which has no meaning in a config.
    return ("", "") if module_name.startswith(".") else (module_name, attribute)
