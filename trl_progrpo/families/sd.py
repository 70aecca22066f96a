# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..types import Conditioning, Schedule
from .base import Family, register_family, to_unit_range
from .ddim_schedule import ddim_schedule, ddim_scheduler


@register_family
class StableDiffusionFamily(Family):
    """
    [`~diffusers.StableDiffusionPipeline`]: a UNet that predicts noise, v or the clean sample, with one CLIP encoder.

    The pipeline's scheduler is replaced by the [`~diffusers.DDIMScheduler`] of the same model, so that `pipeline(...)`
    samples as the family does. `guidance_rescale` is not supported. `decode` does not pass through a safety checker,
    which would hand black pictures to the reward; `pipeline(...)` keeps it.

    Raises:
        ValueError: as [`Family`] does, and if the model has no DDIM form or takes its guidance scale as an input.
    """

    pipeline_classes = ("StableDiffusionPipeline",)
    denoiser_name = "unet"
    lora_target_modules = ("to_k", "to_out.0", "to_q", "to_v")
    policies = ("ddim",)
    optional_components = ("safety_checker", "feature_extractor", "image_encoder")

    def __init__(self, pipeline, *, height: int | None = None, width: int | None = None, **kwargs):
        unet, factor = pipeline.unet.config, pipeline.vae_scale_factor
        size = [unet.sample_size] * 2 if isinstance(unet.sample_size, int) else unet.sample_size
        super().__init__(pipeline, height=height or size[0] * factor, width=width or size[1] * factor, **kwargs)
        if unet.time_cond_proj_dim is not None:
            raise ValueError(
                f"`model` is a {type(pipeline).__name__} distilled to few steps, with the guidance scale as an input of its "
                "UNet, which this family does not serve; use the model it was distilled from."
            )
        pipeline.scheduler = ddim_scheduler(pipeline.scheduler)

    @property
    def size_multiple(self) -> int:
        # The pipelines insist on 8, whatever their VAE.
        return max(8, self.pipeline.vae_scale_factor)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        factor = self.pipeline.vae_scale_factor
        return (self.denoiser.config.in_channels, self.height // factor, self.width // factor)

    def encode_prompts(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> Conditioning:
        embeds, negative_embeds = self.pipeline.encode_prompt(
            prompt=list(prompts),
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=self.do_classifier_free_guidance,
            negative_prompt=None if negative_prompts is None else list(negative_prompts),
        )
        negative = {"prompt_embeds": negative_embeds} if self.do_classifier_free_guidance else None
        return Conditioning({"prompt_embeds": embeds}, negative)

    def make_schedule(self, num_inference_steps: int) -> Schedule:
        return ddim_schedule(self.pipeline.scheduler, num_inference_steps)

    def denoise(self, denoiser, latents, timestep, tensors):
        return denoiser(latents, timestep, encoder_hidden_states=tensors["prompt_embeds"], return_dict=False)[0]

    def decode_spatial(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        latents = latents.to(vae.dtype) / vae.config.scaling_factor
        return to_unit_range(vae.decode(latents, return_dict=False)[0])
