# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Seconds per phase, for logs and tables; nothing decides on them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


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
            self._seconds[phase] += time.perf_counter() - start

    def drain(self) -> dict[str, float]:
        """The seconds per phase since the last call, and a fresh start."""
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds
