# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Which calls of networks, decoders, rewards and optimiser a program makes, and how long they take."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from speed_turns import Turns


class Calls:
    """
    Every call of the functions that are watched.

    Args:
        turns ([`Turns`]): has the clocks.
        echo (`bool`, *optional*, defaults to `False`): makes every call a second time, bare, before or after it by turns, and
            returns what the call in its place returned.

    Attributes:
        made (`list`): `(kind, rows, wall seconds, processor seconds)` in order.
        bare (`list[float]`): wall and processor seconds of all the second calls.
    """

    def __init__(self, turns: Turns, echo: bool = False):
        self.turns, self.echo = turns, echo
        self.made: list[tuple[str, int, float, float]] = []
        self.bare = [0.0, 0.0]

    def forget(self) -> None:
        """Begins anew."""
        self.made.clear()
        self.bare = [0.0, 0.0]

    @contextmanager
    def watch(self, owner: Any, name: str | int, kind: str | Callable[[], str]) -> Iterator[None]:
        """Notes the calls of `owner.name` (of a list `owner[name]`) inside the block."""
        function = owner[name] if isinstance(owner, list) else getattr(owner, name)

        @functools.wraps(function)
        def watched(*args, **kwargs):
            bare_first = len(self.made) % 2 == 1
            if self.echo and bare_first:
                self._call_bare(function, args, kwargs)
            wall, cpu = self.turns.now()
            result = function(*args, **kwargs)
            wall_after, cpu_after = self.turns.now()
            self.made.append(
                (kind() if callable(kind) else kind, _rows(args, kwargs), wall_after - wall, cpu_after - cpu)
            )
            if self.echo and not bare_first:
                self._call_bare(function, args, kwargs)
            return result

        put = owner.__setitem__ if isinstance(owner, list) else functools.partial(setattr, owner)
        put(name, watched)
        try:
            yield
        finally:
            put(name, function)

    def _call_bare(self, function: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        begun = self.turns.now()
        function(*args, **kwargs)
        ended = self.turns.now()
        self.bare = [total + after - before for total, before, after in zip(self.bare, begun, ended)]

    def around(self, kind: str, optimizer: torch.optim.Optimizer) -> list[Any]:
        """Notes the steps of an optimiser; returns the handles of its hooks."""
        begun: list[tuple[float, float]] = []

        def after(*_: Any) -> None:
            (wall, cpu), (wall_after, cpu_after) = begun.pop(), self.turns.now()
            self.made.append((kind, 0, wall_after - wall, cpu_after - cpu))

        before = optimizer.register_step_pre_hook(lambda *_: begun.append(self.turns.now()))
        return [before, optimizer.register_step_post_hook(after)]

    def seconds(self, *kinds: str) -> tuple[float, float]:
        """Wall and processor seconds of all calls of these kinds."""
        chosen = [call for call in self.made if call[0] in kinds]
        return sum(call[2] for call in chosen), sum(call[3] for call in chosen)


def _rows(args: tuple, kwargs: dict[str, Any]) -> int:
    """Length of the first argument that has rows."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, (torch.Tensor, list)) and getattr(value, "ndim", 1) > 0:
            return len(value)
    return 0
