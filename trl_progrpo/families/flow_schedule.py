# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What flow families share: their scheduler, its shift with the image size, and the schedule made of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler

from ..types import Schedule


def check_euler(scheduler: Any) -> FlowMatchEulerDiscreteScheduler:
    """
    The scheduler, if its steps are Euler's and without noise of their own; images would not be those that are trained
    otherwise.

    Raises:
        ValueError: if they are not.
    """
    kind = type(scheduler).__name__
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise ValueError(
            f"`model` has a {kind}, but this family samples with Euler's steps; set `pipeline.scheduler` to "
            "FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config), or to that of the model's repository."
        )
    if scheduler.config.get("stochastic_sampling"):
        raise ValueError(
            f"`model` has a {kind} with `stochastic_sampling`, which draws noise of its own; set it to False, as noise is the "
            "policy's."
        )
    return scheduler


def resolution_shift(scheduler: Any, num_patches: int, max_shift: float = 1.15) -> float:
    """
    `mu` of `set_timesteps` for images of `num_patches` patches, as the pipelines' `calculate_shift`.

    Args:
        scheduler ([`~diffusers.FlowMatchEulerDiscreteScheduler`]): whose config gives the two ends of the line.
        num_patches (`int`): length of the sequence of image patches.
        max_shift (`float`, *optional*, defaults to 1.15): the upper end where the config says nothing.
    """
    config = scheduler.config
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low_shift, high_shift = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
    slope = (high_shift - low_shift) / (high - low)
    # In the order of the pipelines: the noise levels are to be theirs to the last bit.
    return num_patches * slope + (low_shift - slope * low)


def linear_flow_schedule(scheduler: Any, num_inference_steps: int, mu: float) -> Schedule:
    """
    Noise levels from 1 to `1 / num_inference_steps` in equal steps, then 0, shifted by the scheduler.

    A scheduler without dynamic shifting (FLUX.1-schnell's) ignores `mu`.

    Raises:
        ValueError: as [`check_euler`].
    """
    check_euler(scheduler)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_inference_steps, num_inference_steps), mu=mu)
    return Schedule.flow(scheduler.timesteps, scheduler.sigmas)
