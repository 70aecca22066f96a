# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What flow families share: their scheduler, its shift with the image size, and the schedule made of it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler

from ..types import Schedule


def check_euler(scheduler: Any) -> FlowMatchEulerDiscreteScheduler:
    """
    The scheduler, if its steps are Euler's, from noise to image and without noise of their own; images would not be those that
    are trained otherwise.

    Raises:
        ValueError: if they are not.
    """
    kind = type(scheduler).__name__
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise ValueError(
            f"`model` has a {kind}, but this family samples with Euler's steps; set `pipeline.scheduler` to "
            f"{euler_of(scheduler)}, or to that of the model's repository."
        )
    for option, effect in (
        ("stochastic_sampling", "draws noise of its own, and noise is the policy's"),
        ("invert_sigmas", "goes from image to noise"),
    ):
        if scheduler.config.get(option):
            raise ValueError(
                f"`model` has a {kind} with `{option}`, which {effect}; set it to False: `pipeline.scheduler = "
                f"{kind}.from_config(pipeline.scheduler.config, {option}=False)`."
            )
    return scheduler


def euler_of(scheduler: Any, **options: Any) -> str:
    """
    The code that makes an Euler scheduler with the noise levels of another.

    Args:
        scheduler: what the pipeline has.
        options: of the Euler scheduler, whatever the other has.
    """
    config = scheduler.config
    # The first is a leftover that tells FLUX pipelines to leave the noise levels to a scheduler that does not know it.
    left_over = ("use_flow_sigmas", "stochastic_sampling", "invert_sigmas")
    changes = {name: False for name in left_over if config.get(name)}
    if config.get("flow_shift", 1.0) != 1.0:
        changes["shift"] = config["flow_shift"]
    changes |= {name: value for name, value in options.items() if config.get(name, value) != value}
    if not changes:
        return "FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)"
    # Not as keywords: what the class does not know is taken from the config whatever they say.
    changed = ", ".join(f"{name!r}: {value!r}" for name, value in changes.items())
    return f"FlowMatchEulerDiscreteScheduler.from_config({{**pipeline.scheduler.config, {changed}}})"


def flow_schedule(scheduler: Any, *args: Any, **kwargs: Any) -> Schedule:
    """
    The noise path that the scheduler gives at these arguments of its `set_timesteps`. The scheduler is left as it is.
    """
    scheduler = copy.copy(scheduler)
    scheduler.set_timesteps(*args, **kwargs)
    return Schedule.flow(scheduler.timesteps, scheduler.sigmas)


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
    sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
    return flow_schedule(check_euler(scheduler), sigmas=sigmas, mu=mu)


def flux_schedule(scheduler: Any, num_inference_steps: int, mu: float) -> Schedule:
    """
    As [`linear_flow_schedule`]; but like the pipelines of FLUX it leaves the noise levels to a scheduler whose config says
    `use_flow_sigmas`, which `from_config` takes over from schedulers of other classes.
    """
    if check_euler(scheduler).config.get("use_flow_sigmas"):
        return flow_schedule(scheduler, num_inference_steps, mu=mu)
    return linear_flow_schedule(scheduler, num_inference_steps, mu)
