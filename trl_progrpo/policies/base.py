# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What a sampling policy is: a map from a network output to a Gaussian over the next latents."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from numbers import Real
from typing import ClassVar

import torch

from ..registry import Registry
from ..types import LogProbReduction, Schedule, Transition


POLICIES = Registry("policy", "trl_progrpo.policies")


class Policy(ABC):
    """
    Base class of sampling policies.

    A policy holds its noise setting and nothing else; it is stateless, so rollout and update may share one object.

    Args:
        log_prob_reduction (`str`, *optional*, defaults to `"mean"`): see [`Transition`].

    Class attributes:
        prediction_types (`tuple[str, ...]`): the `Schedule.prediction_type`s it can step.
    """

    prediction_types: ClassVar[tuple[str, ...]]

    def __init__(self, log_prob_reduction: LogProbReduction = "mean"):
        if log_prob_reduction not in ("mean", "sum"):
            raise ValueError(f'`log_prob_reduction` is {log_prob_reduction!r}; use "mean" or "sum".')
        self.log_prob_reduction = log_prob_reduction

    @abstractmethod
    def step(
        self, model_output: torch.Tensor, latents: torch.Tensor, schedule: Schedule, step_index: int
    ) -> Transition:
        """
        The transition of step `step_index`.

        Args:
            model_output (`torch.Tensor` of shape `(B, *l)`): what the denoiser returned, guidance included, any dtype.
            latents (`torch.Tensor` of shape `(B, *l)`): the latents it was given.
            schedule ([`Schedule`]): the noise path.
            step_index (`int`): 0 is the noisiest step.

        Raises:
            ValueError: if the schedule's prediction type is none of `prediction_types`, or has no such step.
        """

    @abstractmethod
    def ode(self) -> Policy:
        """The same policy without noise: what runs outside the trained window and in evaluation."""

    def std(self, schedule: Schedule, step_index: int) -> float:
        """Standard deviation of step `step_index`, without running anything."""
        zeros = torch.zeros(1, 1, dtype=torch.float64)
        return float(self.step(zeros, zeros, schedule, step_index).std)

    def step_size(self, schedule: Schedule, step_index: int) -> float:
        """
        How far step `step_index` moves the latents, without noise, for one unit of network output: `|dt|` for flows, and for
        DDIM its equivalent in the parameterisation of the model (`alpha' |d(sigma / alpha)|` where it predicts the noise).
        """
        zeros, ones = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        return abs(float(self.ode().step(ones, zeros, schedule, step_index).mean))

    def stochastic_steps(self, schedule: Schedule) -> tuple[int, ...]:
        """The steps that carry noise in a rollout and may be trained; the sampler runs `ode()` at all others."""
        return tuple(i for i in range(schedule.num_steps) if self.std(schedule, i) > 0)

    def check(self, schedule: Schedule, step_index: int) -> None:
        """Raise the `ValueError`s that `step` promises."""
        if schedule.prediction_type not in self.prediction_types:
            # Third-party policies need not be classes, so what is registered may lack the attribute.
            fitting = [
                policy.__name__
                for _, policy in sorted(POLICIES.registered().items())
                if schedule.prediction_type in getattr(policy, "prediction_types", ())
            ]
            own = "flow" if self.prediction_types == ("flow",) else "/".join(self.prediction_types)
            raise ValueError(
                f"`policy` {type(self).__name__} steps {own} models, but this schedule predicts "
                f"{schedule.prediction_type!r}; use {' or '.join(fitting) or 'a policy written for it'}."
            )
        if not 0 <= step_index < schedule.num_steps:
            raise ValueError(
                f"`step_index` is {step_index}, but this schedule has {schedule.num_steps} steps; count from 0."
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


def noise_option(policy: Callable[..., Policy]) -> str:
    """
    Return the option of [`ProGRPOConfig`] that sets the noise of a policy: `eta` if it takes that, else `noise_level`.

    Args:
        policy (`Callable`): the class, or what else was registered to make one.
    """
    return "eta" if "eta" in inspect.signature(policy).parameters else "noise_level"


def check_level(name: str, value: float, high: float = math.inf) -> float:
    """
    `value` as a float, if it is finite and in `[0, high]`.

    Raises:
        ValueError: otherwise; `name` is the field the message names.
    """
    if not isinstance(value, Real) or not math.isfinite(value) or not 0 <= value <= high:
        upper = f"{high:g}" if high < math.inf else "any finite one"
        raise ValueError(f"`{name}` is {value!r}; use a number from 0 (no noise) to {upper}.")
    return float(value)
