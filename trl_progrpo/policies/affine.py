# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The arithmetic shared by policies whose mean is a weighted sum of latents and network output."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch

from ..types import Schedule, Transition
from .base import Policy, check_level


class Coefficients(NamedTuple):
    """
    One step as five plain floats: `mean = latents * x + output * m`, `pred_original_sample = latents * x0_x + output *
    x0_m`, and the full standard deviation `std`.
    """

    x: float
    m: float
    std: float
    x0_x: float
    x0_m: float


class AffinePolicy(Policy):
    """
    A policy whose mean is affine in the latents and the network output, as in all samplers of this package.

    Subclasses give `coefficients` and `ode`. The sums of a paper's formula are collected in float64, where its
    cancellations cost nothing, and the tensors see one multiply-add in float32.
    """

    @abstractmethod
    def coefficients(self, schedule: Schedule, step_index: int) -> Coefficients:
        """The coefficients of step `step_index`; calls `check` first."""

    def step(
        self, model_output: torch.Tensor, latents: torch.Tensor, schedule: Schedule, step_index: int
    ) -> Transition:
        c = self.coefficients(schedule, step_index)
        dtype = torch.promote_types(latents.dtype, torch.float32)
        x, m = latents.to(dtype), model_output.to(dtype)
        return Transition(
            # Not a fused multiply-add: its rounding may depend on where a row lies in the batch.
            mean=x * c.x + m * c.m,
            std=torch.tensor(c.std, dtype=torch.float64),
            pred_original_sample=x * c.x0_x + m * c.x0_m,
            log_prob_reduction=self.log_prob_reduction,
        )

    def std(self, schedule: Schedule, step_index: int) -> float:
        return self.coefficients(schedule, step_index).std


class FlowPolicy(AffinePolicy):
    """
    Base of the policies for rectified flow, `x_s = (1 - s) x_0 + s eps` with velocity `v = eps - x_0`.

    With noise level 0 they are all the Euler step `x + (s' - s) v` of diffusers' `FlowMatchEulerDiscreteScheduler`.

    Args:
        noise_level (`float`): 0 is deterministic; the scale is the subclass's own.
        log_prob_reduction (`str`, *optional*, defaults to `"mean"`): see [`Transition`].

    Class attributes:
        max_noise_level (`float`): the largest legal noise level.
    """

    prediction_types = ("flow",)
    max_noise_level = float("inf")

    def __init__(self, noise_level: float, log_prob_reduction="mean"):
        super().__init__(log_prob_reduction)
        self.noise_level = check_level("noise_level", noise_level, self.max_noise_level)

    def ode(self) -> FlowPolicy:
        return type(self)(noise_level=0.0, log_prob_reduction=self.log_prob_reduction)

    def coefficients(self, schedule: Schedule, step_index: int) -> Coefficients:
        self.check(schedule, step_index)
        s, s_next = schedule.sigma(step_index), schedule.sigma(step_index + 1)
        if not 0 <= s_next < s <= 1:
            raise ValueError(
                f"step {step_index} goes from sigma {s:g} to {s_next:g}; the sigmas of a flow schedule must fall "
                "strictly from at most 1 to at least 0."
            )
        mean_x, mean_v, std = self._mean_and_std(s, s_next, schedule)
        return Coefficients(mean_x, mean_v, std, x0_x=1.0, x0_m=-s)

    @abstractmethod
    def _mean_and_std(self, s: float, s_next: float, schedule: Schedule) -> tuple[float, float, float]:
        """Weight of the latents, weight of the velocity, full standard deviation; `0 <= s_next < s <= 1`."""

    def stochastic_steps(self, schedule: Schedule) -> tuple[int, ...]:
        """
        The steps that carry noise in a rollout and may be trained: all but one that ends at sigma 0.

        Noise of that step would stay in the finished image, for no later step removes it. And diffusers' default sigmas
        end at .001 to .01 before 0, so its std is so small that the rounding of half-precision latents would decide
        the log-probability. `step` still follows the formula there. Flow-GRPO leaves the step out of the update
        (`timestep_fraction` 0.99) but keeps its noise in the rollout.
        """
        return tuple(i for i in super().stochastic_steps(schedule) if schedule.sigma(i + 1) > 0)
