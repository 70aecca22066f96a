# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The SDE of DanceGRPO for flows."""

from __future__ import annotations

import math

from ..types import LogProbReduction, Schedule
from .affine import FlowPolicy
from .base import POLICIES


@POLICIES.register("dance_sde")
class DanceSDE(FlowPolicy):
    """
    The reverse-time SDE of DanceGRPO (arXiv 2505.07818) for rectified flow: like [`FlowSDE`], but with a diffusion
    coefficient that is the same at every step.

    With `s = sigma_i`, `s' = sigma_{i+1}`, `dt = s' - s < 0` and `x_0 = x - s v`, the score is
    `-(x - (1 - s) x_0) / s^2` and

        mean = x + v dt + noise_level^2 / 2 * (x - (1 - s) x_0) / s^2 * dt,        std = noise_level sqrt(-dt)

    On coarse schedules the score term, which grows as `1 / s`, overshoots at the end: keep `noise_level^2 |dt|` well
    below `s`.

    Args:
        noise_level (`float`, *optional*, defaults to 0.3): the paper's constant `eps_t` (its code: `eta`), at least 0.
        log_prob_reduction (`str`, *optional*, defaults to `"mean"`): see [`Transition`].

    Raises:
        ValueError: if `noise_level` is negative, infinite or NaN.
    """

    def __init__(self, noise_level: float = 0.3, log_prob_reduction: LogProbReduction = "mean"):
        super().__init__(noise_level, log_prob_reduction)

    def _mean_and_std(self, s: float, s_next: float, schedule: Schedule) -> tuple[float, float, float]:
        dt = s_next - s
        # x - (1 - s) x_0 = s (x + (1 - s) v): one power of s cancels.
        pull = 0.5 * self.noise_level**2 / s
        return 1 + pull * dt, (1 + pull * (1 - s)) * dt, self.noise_level * math.sqrt(-dt)
