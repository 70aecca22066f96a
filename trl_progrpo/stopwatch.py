# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Seconds per piece of work of a running trainer: every call of network, decoder and rewards timed by itself."""

from __future__ import annotations

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import torch

from .cost import UnitCost
from .sampler import ExpandPruneSampler


class Stopwatch:
    """
    Times the calls of a sampler, and passes of an update, one by one. What a row costs is the median over calls, so a call in
    which kernels are chosen or compiled does not count once there are two more.

    Args:
        device (`torch.device`): is waited for after every call, so that each has its own seconds.
        on_progress (`Callable[[str, int, int], None]`, *optional*): told what the sampler tells, see [`ExpandPruneSampler`].
    """

    def __init__(self, device: torch.device, on_progress: Callable[[str, int, int], None] | None = None):
        self.device = device
        self.on_progress = on_progress or (lambda phase, done, total: None)
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._done: dict[str, int] = defaultdict(int)
        self._last = 0.0

    def watch(self, sampler: ExpandPruneSampler) -> ExpandPruneSampler:
        """A copy of `sampler` that is timed."""
        watched = copy.copy(sampler)
        watched.on_progress = self._progress
        watched.preview_scorer = self._timed("preview_reward", sampler.preview_scorer)
        watched.scorer = self._timed("reward", sampler.scorer)
        self._last = self._now()
        return watched

    def time(self, kind: str, rows: int, work: Callable[[], object]) -> None:
        """Does `work` on so many rows and adds its seconds to those of this kind, a field of [`UnitCost`]."""
        start = self._now()
        work()
        self._last = self._now()
        self._seconds[kind].append((self._last - start) / rows)

    def unit_cost(self, nfe_per_row: int = 1) -> UnitCost:
        """
        Seconds per piece of work; 0 for what was never done.

        Args:
            nfe_per_row (`int`, *optional*, defaults to 1): network evaluations per row and step; 2 with guidance.
        """
        seconds = {"network": 0.0, "training": 0.0, "decode": 0.0}
        seconds |= {kind: statistics.median_low(calls) for kind, calls in self._seconds.items()}
        unit = UnitCost(**seconds)
        return replace(unit, network=unit.network / nfe_per_row, training=unit.training / nfe_per_row)

    def _progress(self, phase: str, done: int, total: int) -> None:
        # Rewards only tell when they begin.
        if phase != "reward":
            now, kind = self._now(), "network" if phase == "denoise" else phase
            self._seconds[kind].append((now - self._last) / (done - self._done[phase]))
            self._last, self._done[phase] = now, done % total
        self.on_progress(phase, done, total)

    def _timed(self, kind: str, scorer: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def scored(prompts, images, columns, preview):
            start = self._now()
            rewards = scorer(prompts, images, columns, preview=preview)
            self._last = self._now()
            self._seconds[kind].append((self._last - start) / rewards.numel())
            return rewards

        return scored

    def _now(self) -> float:
        return now(self.device)


def now(device: torch.device) -> float:
    """Seconds of the clock when all that was queued on a device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
