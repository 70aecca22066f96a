# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The SDE of Flow-GRPO."""

from __future__ import annotations

import math

from ..types import LogProbReduction, Schedule
from .affine import FlowPolicy
from .base import POLICIES


_NEAR_THE_POLE = 0.99


@POLICIES.register("flow_sde")
class FlowSDE(FlowPolicy):
    """
    The reverse-time SDE of Flow-GRPO (arXiv 2505.05470), which has the marginals of the flow's ODE, discretised by
    Euler-Maruyama.

    With `s = sigma_i`, `s' = sigma_{i+1}`, `dt = s' - s < 0` and the diffusion coefficient
    `g = noise_level * sqrt(s / (1 - s))`:

        mean = x (1 + g^2 dt / (2 s)) + v (1 + g^2 (1 - s) / (2 s)) dt,        std = g sqrt(-dt)

    `g` has a pole at `s = 1`, so in a first step from above 0.99 `1 - sigmas[1]` of the schedule stands in for `1 - s`. The
    authors' code does so where `s` is exactly 1; schedules that begin a little below, as Sana's does at 0.9997, would get a
    std of 7 from the formula, which no later step could remove.

    Deviation: beside that, `std` is the FULL std and the KL of [`Transition`] uses it. Flow-GRPO's code omits `|dt|` from
    the KL of images, so for the same strength `beta` here is `|dt|` times a `beta` tuned there.

    Args:
        noise_level (`float`, *optional*, defaults to 0.7): the paper's `a`, at least 0.
        log_prob_reduction (`str`, *optional*, defaults to `"mean"`): see [`Transition`].

    Raises:
        ValueError: if `noise_level` is negative, infinite or NaN.
    """

    def __init__(self, noise_level: float = 0.7, log_prob_reduction: LogProbReduction = "mean"):
        super().__init__(noise_level, log_prob_reduction)

    def _mean_and_std(self, s: float, s_next: float, schedule: Schedule) -> tuple[float, float, float]:
        dt = s_next - s
        stand_in = min(s, schedule.sigma(1)) if s > _NEAR_THE_POLE else s
        g2 = self.noise_level**2 * s / (1 - stand_in)
        return 1 + g2 * dt / (2 * s), (1 + g2 * (1 - s) / (2 * s)) * dt, math.sqrt(g2 * -dt)
