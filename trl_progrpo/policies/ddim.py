# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""DDIM with noise, as a policy."""

from __future__ import annotations

import math

from ..types import LogProbReduction, Schedule
from .affine import AffinePolicy, Coefficients
from .base import POLICIES, check_level


@POLICIES.register("ddim")
class DDIM(AffinePolicy):
    """
    The stochastic DDIM step (arXiv 2010.02502, formulas 12 and 16), which DDPO (arXiv 2305.13301) made a policy: for
    models that predict the noise, the clean sample or `v`.

    With `alpha, sigma` of this step, `alpha', sigma'` of the next, and `x_0`, `eps` from the network output:

        std = eta * (sigma' / sigma) sqrt(1 - alpha^2 / alpha'^2)
        mean = alpha' x_0 + sqrt(sigma'^2 - std^2) eps

    The sample equals diffusers' `DDIMScheduler.step(eta=eta)` with `clip_sample=False` and `thresholding=False` (clipping
    is not affine, and Stable Diffusion does not clip). A step whose noise level does not change (`steps_offset=0`)
    or that ends at `alpha' = 1` (`set_alpha_to_one`) has std 0; it is not one of the `stochastic_steps`.

    Args:
        eta (`float`, *optional*, defaults to 1.0): 0 is deterministic DDIM, 1 has the variance of DDPM.
        log_prob_reduction (`str`, *optional*, defaults to `"mean"`): see [`Transition`].

    Raises:
        ValueError: if `eta` is outside `[0, 1]` (more noise than the next level holds) or NaN.
    """

    prediction_types = ("epsilon", "v_prediction", "sample")

    def __init__(self, eta: float = 1.0, log_prob_reduction: LogProbReduction = "mean"):
        super().__init__(log_prob_reduction)
        self.eta = check_level("eta", eta, 1.0)

    def ode(self) -> DDIM:
        return type(self)(eta=0.0, log_prob_reduction=self.log_prob_reduction)

    def coefficients(self, schedule: Schedule, step_index: int) -> Coefficients:
        self.check(schedule, step_index)
        a, s = schedule.alpha(step_index), schedule.sigma(step_index)
        a_next, s_next = schedule.alpha(step_index + 1), schedule.sigma(step_index + 1)
        kind = schedule.prediction_type
        if s == 0 or a_next == 0 or (a == 0 and kind == "epsilon"):
            raise ValueError(
                f"step {step_index} goes from alpha {a:g}, sigma {s:g} to alpha {a_next:g}, where {kind!r} does not "
                "determine the clean sample; use a schedule with noise at its start and signal at its end "
                "(zero terminal SNR needs 'v_prediction')."
            )
        x0_x, x0_m, eps_x, eps_m = {
            "epsilon": lambda: (1 / a, -s / a, 0.0, 1.0),
            "v_prediction": lambda: (a, -s, s, a),
            "sample": lambda: (0.0, 1.0, 1 / s, -a / s),
        }[kind]()
        # Rounding may take both differences below 0 where they vanish.
        std = self.eta * s_next / s * math.sqrt(max(1 - (a / a_next) ** 2, 0.0))
        direction = math.sqrt(max(s_next**2 - std**2, 0.0))
        return Coefficients(
            a_next * x0_x + direction * eps_x, a_next * x0_m + direction * eps_m, std, x0_x=x0_x, x0_m=x0_m
        )
