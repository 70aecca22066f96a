# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Sana 1.0 and 1.5."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from ..types import Conditioning, Schedule
from .base import Family, register_family, to_unit_range
from .flow_schedule import check_euler, euler_of, flow_schedule


@register_family
class SanaFamily(Family):
    """
    [`~diffusers.SanaPipeline`]: a rectified-flow transformer with linear attention, a 32-fold autoencoder and Gemma 2.

    Checkpoints come with a second-order [`~diffusers.DPMSolverMultistepScheduler`], whose step depends on the one
    before and so is no Gaussian over the next latents. The family sets the same scheduler with `solver_order=1` on the
    pipeline, which keeps the noise levels and timesteps of the checkpoint and is Euler's method; a trained adapter works with
    either. A [`~diffusers.FlowMatchEulerDiscreteScheduler`] is left as it is.

    Prompts are encoded after the pipeline's default `complex_human_instruction`, as in its own call, and
    `use_resolution_binning` is off: images have the size that was asked for.

    Raises:
        ValueError: as [`one_step_scheduler`], and what [`Family`] raises.
    """

    pipeline_classes = ("SanaPipeline",)
    lora_target_modules = ("to_k", "to_q", "to_v")

    def __init__(self, pipeline, **kwargs):
        super().__init__(pipeline, **kwargs)
        if self.max_sequence_length is None:
            self.max_sequence_length = 300
        pipeline.scheduler = one_step_scheduler(pipeline.scheduler)

    @property
    def size_multiple(self) -> int:
        # The pipeline asks for 32 whatever its VAE.
        return max(32, self.pipeline.vae_scale_factor * self.denoiser.config.patch_size)

    @property
    def default_size(self) -> int:
        return self.denoiser.config.sample_size * self.pipeline.vae_scale_factor

    @property
    def pipeline_call_kwargs(self):
        kwargs = {"max_sequence_length": self.max_sequence_length, "use_resolution_binning": False}
        return {**super().pipeline_call_kwargs, **kwargs}

    @property
    def latent_shape(self) -> tuple[int, ...]:
        factor = self.pipeline.vae_scale_factor
        return (self.denoiser.config.in_channels, self.height // factor, self.width // factor)

    def encode_prompts(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> Conditioning:
        call = inspect.signature(type(self.pipeline).__call__).parameters
        encoded = self.pipeline.encode_prompt(
            list(prompts),
            self.do_classifier_free_guidance,
            negative_prompt="" if negative_prompts is None else list(negative_prompts),
            device=self.device,
            max_sequence_length=self.max_sequence_length,
            complex_human_instruction=call["complex_human_instruction"].default,
        )
        sides = [encoded[:2], encoded[2:]] if self.do_classifier_free_guidance else [encoded[:2]]
        return Conditioning(
            *({"prompt_embeds": embeds.to(self.dtype), "prompt_attention_mask": mask} for embeds, mask in sides)
        )

    def count_tokens(self, prompt: str) -> int:
        # The pipeline counts the first token of the instruction and that of the prompt.
        return super().count_tokens(prompt) + 1

    def make_schedule(self, num_inference_steps: int) -> Schedule:
        return flow_schedule(self.pipeline.scheduler, num_inference_steps)

    def denoise(self, denoiser, latents, timestep, tensors):
        output = denoiser(
            latents,
            encoder_hidden_states=tensors["prompt_embeds"],
            encoder_attention_mask=tensors["prompt_attention_mask"],
            timestep=timestep.expand(latents.shape[0]) * self.denoiser.config.timestep_scale,
            return_dict=False,
        )[0]
        # Half of the channels of a network with learned variance.
        return output[:, : latents.shape[1]]

    def combine_guidance(self, unconditional: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
        return super().combine_guidance(unconditional.float(), conditional.float())

    def decode_spatial(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        latents = latents.to(vae.dtype) / vae.config.scaling_factor
        return to_unit_range(vae.decode(latents, return_dict=False)[0])


def one_step_scheduler(scheduler: Any) -> DPMSolverMultistepScheduler | FlowMatchEulerDiscreteScheduler:
    """
    A scheduler of the same noise levels whose steps are Euler's. Warns if it makes other images.

    Raises:
        ValueError: if the scheduler is neither of the two that Sana comes with, not set up for flows, or has noise levels that
            are not those of a flow; and as [`~flow_schedule.check_euler`].
    """
    kind, config = type(scheduler).__name__, scheduler.config
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        if config.use_dynamic_shifting:
            raise ValueError(
                f"`model` has a {kind} with `use_dynamic_shifting`, for which SanaPipeline gives no shift; set it to False: "
                f"`pipeline.scheduler = {kind}.from_config(pipeline.scheduler.config, use_dynamic_shifting=False)`."
            )
        return check_euler(scheduler)
    flow = config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction"
    if not isinstance(scheduler, DPMSolverMultistepScheduler) or not flow:
        raise ValueError(
            f"`model` has a {kind}, but SanaFamily samples with a FlowMatchEulerDiscreteScheduler or a "
            "DPMSolverMultistepScheduler for flows (`use_flow_sigmas`, 'flow_prediction'); set `pipeline.scheduler` to "
            f"{euler_of(scheduler, use_dynamic_shifting=False)}, or to that of the model's repository."
        )
    for option in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"):
        if config.get(option):
            raise ValueError(
                f"`model` has a {kind} with `{option}`, whose noise levels are not those of a flow; set it to False: "
                f"`pipeline.scheduler = {kind}.from_config(pipeline.scheduler.config, {option}=False)`."
            )
    # The two first-order forms without noise, dpmsolver and dpmsolver++, are the same step.
    steps = {"solver_order": 1, "algorithm_type": "dpmsolver++", "thresholding": False}
    changes = [
        f"`{name}` {config[name]!r}" for name, value in steps.items() if config[name] not in (value, "dpmsolver")
    ]
    if changes:
        warnings.warn(
            f"`model` has a {kind} with {', '.join(changes)}, and is trained and sampled, by its `pipeline(...)` too, with the "
            "first order of it on the same noise levels: the same seed gives other images. To compare with another pipeline, "
            "give it the scheduler of this one; an adapter works with either.",
            stacklevel=2,
        )
    return type(scheduler).from_config(config, **steps)
