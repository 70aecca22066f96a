# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""DDIM for any model that was trained on a table of betas: its scheduler and its noise path."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from diffusers import DDIMScheduler

from ..types import Schedule


PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

# How the model was trained, and the offset, which the pipeline's constructor may have corrected. Carried over by value:
# `from_config` replaces what the old scheduler had by default with DDIM's defaults, which differ.
_CARRIED = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
    "steps_offset",
)


def ddim_scheduler(scheduler: Any) -> DDIMScheduler:
    """
    The DDIM scheduler of the model that `scheduler` was written for, without clipping, which is not affine.

    `timestep_spacing="linspace"` becomes `"leading"`, with a warning: `DDIMScheduler.step` moves by a fixed stride, which
    never is the distance of such timesteps.

    Raises:
        ValueError: if the model was not trained on a table of betas, or predicts something else.
    """
    config = scheduler.config
    kind = config.get("prediction_type", "epsilon")
    if "beta_schedule" not in config or kind not in PREDICTION_TYPES:
        raise ValueError(
            f"`model` has a {type(scheduler).__name__} with prediction type {kind!r}, which has no DDIM form; this family "
            f"serves models with a beta schedule that predict {', '.join(PREDICTION_TYPES[:-1])} or {PREDICTION_TYPES[-1]}."
        )
    changes = {name: config[name] for name in _CARRIED if name in config}
    ddim = DDIMScheduler.from_config(config, **changes, clip_sample=False, thresholding=False)
    if ddim.config.timestep_spacing == "linspace":
        warnings.warn(
            'the scheduler\'s timestep_spacing "linspace" does not fit DDIM, whose steps have a fixed stride; "leading" is '
            "used instead, for `pipeline(...)` too.",
            stacklevel=2,
        )
        ddim.register_to_config(timestep_spacing="leading")
    return ddim


def ddim_schedule(scheduler: DDIMScheduler, num_inference_steps: int) -> Schedule:
    """
    The noise path of `DDIMScheduler.step`: `num_train_timesteps // num_inference_steps` timesteps at a time, the last
    step to where that leads, or to the scheduler's final level if it leads below 0.

    Raises:
        ValueError: if the stride misses the next timestep (`"trailing"` spacing with a number of steps that does not
            divide the training timesteps): diffusers would then give the network other latents than it announces.
    """
    scheduler.set_timesteps(num_inference_steps)
    timesteps, trained = scheduler.timesteps.cpu(), scheduler.config.num_train_timesteps
    reached = timesteps - trained // num_inference_steps
    if not torch.equal(reached[:-1], timesteps[1:]):
        fitting = [n for n in range(1, trained + 1) if trained % n == 0]
        below = max(n for n in fitting if n < num_inference_steps)
        above = min(n for n in fitting if n > num_inference_steps)
        raise ValueError(
            f"`num_inference_steps` is {num_inference_steps}, but with {scheduler.config.timestep_spacing!r} timestep "
            f"spacing the steps of DDIM meet only if their number divides {trained}; use {below} or {above}."
        )
    table = scheduler.alphas_cumprod.cpu()
    final = scheduler.final_alpha_cumprod.cpu() if reached[-1] < 0 else table[reached[-1]]
    alphas_cumprod = torch.cat([table[timesteps], final[None]]).double()
    return Schedule(timesteps, alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt(), scheduler.config.prediction_type)
