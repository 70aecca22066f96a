# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Seconds per phase, for logs and tables; nothing decides on them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


PHASES = ("schedule", "denoise", "preview", "decode", "reward", "update")
"""Phases in the order they happen; the first, choosing a schedule, only with `prune_schedule="auto"`."""


class PhaseTimer:
    """
    Adds up wall seconds per named phase.

    On an accelerator, work that was queued but not waited for is counted where the host next waits.
    """

    def __init__(self):
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(phase, time.perf_counter() - start)

    def add(self, phase: str, seconds: float) -> None:
        """Counts seconds that were measured elsewhere."""
        self._seconds[phase] += seconds

    def drain(self) -> dict[str, float]:
        """The seconds per phase since the last call, and a fresh start."""
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds


def phase_seconds(log_history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """
    Seconds per phase over the whole run, in the order they happen, with `"other"` up to the training time where that is known:
    of every call of `train()` that came to its end.
    """
    seconds: dict[str, float] = {}
    other = since = 0.0
    for entry in log_history:
        for key, value in entry.items():
            if key.startswith("time/"):
                name = key.removeprefix("time/")
                seconds[name] = seconds.get(name, 0.0) + value
                since += value
        if "train_runtime" in entry:
            other, since = other + max(0.0, entry["train_runtime"] - since), 0.0
    if not seconds:
        return {}
    ordered = {name: seconds[name] for name in [*PHASES, *sorted(set(seconds) - set(PHASES))] if name in seconds}
    return ordered | ({"other": other} if other > 0 else {})
