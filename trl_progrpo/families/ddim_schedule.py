# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""DDIM for any model that was trained on a table of betas: its scheduler and its noise path."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import torch
from diffusers import DDIMScheduler

from ..types import Schedule


PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

_OPTIONS_OF_OTHERS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
    "clip_sample",
    "thresholding",
)
"""Options that change the images and have no form in which a DDIM step is affine on the levels of the training."""


def explicit_config(scheduler: Any) -> dict[str, Any]:
    """
    The config of a scheduler as it is saved: every value by itself.

    In memory it also lists what was left at the class's default, which `from_config` of another class replaces by its own.
    """
    return {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}


def ddim_scheduler(scheduler: Any) -> DDIMScheduler:
    """
    The DDIM scheduler of the model that `scheduler` was written for, without clipping, which is not affine.

    Warns of what makes other images than `scheduler`. `timestep_spacing="linspace"` becomes `"leading"`: `DDIMScheduler.step`
    moves by a fixed stride, which never is the distance of such timesteps.

    Raises:
        ValueError: if the model was not trained on a table of betas, or predicts something else.
    """
    config, name = explicit_config(scheduler), type(scheduler).__name__
    kind = config.get("prediction_type", "epsilon")
    if "beta_schedule" not in config or kind not in PREDICTION_TYPES:
        raise ValueError(
            f"`model` has a {name} with prediction type {kind!r}, which has no DDIM form; this family serves models with a "
            f"beta schedule that predict {', '.join(PREDICTION_TYPES[:-1])} or {PREDICTION_TYPES[-1]}, so set "
            "`pipeline.scheduler` to that of the model's repository."
        )
    try:
        ddim = DDIMScheduler.from_config(config, clip_sample=False, thresholding=False)
    except NotImplementedError as error:
        raise ValueError(
            f"`model` has a {name} with the beta schedule {config['beta_schedule']!r}, which DDIMScheduler does not know; set "
            "`pipeline.scheduler` to DDIMScheduler.from_config(pipeline.scheduler.config, "
            "trained_betas=pipeline.scheduler.betas.tolist())."
        ) from error
    # A config also keeps what other classes once knew.
    known = inspect.signature(type(scheduler)).parameters
    changes = [f"without `{option}`" for option in _OPTIONS_OF_OTHERS if option in known and config.get(option)]
    if ddim.config.timestep_spacing == "linspace":
        ddim.register_to_config(timestep_spacing="leading")
        changes.append('with `timestep_spacing` "leading" for "linspace"')
    if changes or type(scheduler) is not DDIMScheduler:
        warnings.warn(
            f"`model` has a {name}, and is trained and sampled, by its `pipeline(...)` too, with the DDIMScheduler of the same "
            f"betas{''.join(f', {change}' for change in changes)}: the same seed gives other images than the {name}. To compare "
            "with another pipeline, give it the scheduler of this one; an adapter works with either.",
            stacklevel=2,
        )
    return ddim


def ddim_schedule(scheduler: DDIMScheduler, num_inference_steps: int) -> Schedule:
    """
    The noise path of `DDIMScheduler.step`: `num_train_timesteps // num_inference_steps` timesteps at a time, the last
    step to where that leads, or to the scheduler's final level if it leads below 0. The scheduler is left as it is.

    Raises:
        ValueError: if the first timestep lies behind the training's last (`steps_offset` with nearly as many steps); or if the
            stride misses the next timestep (`"trailing"` spacing with a number of steps that does not divide the training
            timesteps): diffusers would then give the network other latents than it announces.
    """
    scheduler = copy.copy(scheduler)
    scheduler.set_timesteps(num_inference_steps)
    timesteps, trained = scheduler.timesteps.cpu(), scheduler.config.num_train_timesteps
    if timesteps[0] >= trained:
        offset = scheduler.config.steps_offset
        fitting = max(n for n in range(1, num_inference_steps) if (n - 1) * (trained // n) + offset < trained)
        raise ValueError(
            f"`num_inference_steps` is {num_inference_steps}, and with `steps_offset` {offset} of the scheduler its first "
            f"timestep is {timesteps[0]}, but the model was trained on 0 to {trained - 1}; use {fitting} (in "
            "evaluation as `eval_num_inference_steps`)."
        )
    reached = timesteps - trained // num_inference_steps
    if not torch.equal(reached[:-1], timesteps[1:]):
        fitting = [n for n in range(1, trained + 1) if trained % n == 0]
        below = max(n for n in fitting if n < num_inference_steps)
        above = min(n for n in fitting if n > num_inference_steps)
        raise ValueError(
            f"`num_inference_steps` is {num_inference_steps}, but with {scheduler.config.timestep_spacing!r} timestep "
            f"spacing the steps of DDIM meet only if their number divides {trained}; use {below} or {above} (in evaluation as "
            "`eval_num_inference_steps`)."
        )
    table = scheduler.alphas_cumprod.cpu()
    final = scheduler.final_alpha_cumprod.cpu() if reached[-1] < 0 else table[reached[-1]]
    alphas_cumprod = torch.cat([table[timesteps], final[None]]).double()
    return Schedule(timesteps, alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt(), scheduler.config.prediction_type)
