# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Coefficients-Preserving Sampling."""

from __future__ import annotations

import math

from ..types import LogProbReduction, Schedule
from .affine import FlowPolicy
from .base import POLICIES


@POLICIES.register("flow_cps")
class FlowCPS(FlowPolicy):
    """
    Coefficients-Preserving Sampling (Flow-CPS, arXiv 2509.05952): DDIM's split of the next noise into a predicted and a
    fresh part, for flows.

    With `s = sigma_i`, `s' = sigma_{i+1}`, `x_0 = x - s v` and the predicted noise `x_1 = x + (1 - s) v`:

        std = s' sin(pi noise_level / 2),        mean = (1 - s') x_0 + sqrt(s'^2 - std^2) x_1

    so the noise in the next latents is `s'` in total, exactly what the network expects there, while an Euler-Maruyama
    step of [`FlowSDE`] leaves an excess of second order in the step.

    Deviation: the authors' log-probability is `mean(-(x' - mean)^2)`, without constants and without `1 / (2 std^2)`; here
    it is the true Gaussian density, like every other policy's. A clip width moved over from there means something
    else here: log ratios are `1 / (2 std^2)` times as large.

    Args:
        noise_level (`float`, *optional*, defaults to 0.7): the paper's `eta` in `[0, 1]`; 1 replaces all noise.
        log_prob_reduction (`str`, *optional*, defaults to `"mean"`): see [`Transition`].

    Raises:
        ValueError: if `noise_level` is outside `[0, 1]` or NaN.
    """

    max_noise_level = 1.0

    def __init__(self, noise_level: float = 0.7, log_prob_reduction: LogProbReduction = "mean"):
        super().__init__(noise_level, log_prob_reduction)

    def _mean_and_std(self, s: float, s_next: float, schedule: Schedule) -> tuple[float, float, float]:
        angle = math.pi * self.noise_level / 2
        # s' cos is sqrt(s'^2 - std^2) without the cancellation. At angle pi/2 float cosine is 6e-17, far below float32.
        signal, predicted = 1 - s_next, s_next * math.cos(angle)
        if self.noise_level == 0:
            # The same numbers, but without a last-bit difference from diffusers' Euler step.
            return 1.0, s_next - s, 0.0
        return signal + predicted, predicted * (1 - s) - signal * s, s_next * math.sin(angle)
