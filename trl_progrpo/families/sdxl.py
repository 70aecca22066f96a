# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Stable Diffusion XL."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..types import Conditioning
from .base import register_family, to_unit_range
from .sd import StableDiffusionFamily


@register_family
class StableDiffusionXLFamily(StableDiffusionFamily):
    """
    [`~diffusers.StableDiffusionXLPipeline`]: a UNet with two CLIP encoders that is also told the image size.

    Size conditioning is the pipeline's default: an uncropped original of the size that is generated, on both sides of
    guidance. As there, a missing negative prompt means zero embeddings if the model wants `force_zeros_for_empty_prompt`.
    A VAE marked `force_upcast` overflows in fp16 and is moved to fp32. No watermark is put on decoded images.

    See [`StableDiffusionFamily`] for the scheduler and errors.
    """

    pipeline_classes = ("StableDiffusionXLPipeline",)
    optional_components = ("text_encoder", "tokenizer", "image_encoder", "feature_extractor")

    def __init__(self, pipeline, **kwargs):
        super().__init__(pipeline, **kwargs)
        if pipeline.vae.dtype == torch.float16 and pipeline.vae.config.force_upcast:
            pipeline.vae.to(torch.float32)

    def encode_prompts(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> Conditioning:
        embeds, negative_embeds, pooled, negative_pooled = self.pipeline.encode_prompt(
            prompt=list(prompts),
            device=self.device,
            do_classifier_free_guidance=self.do_classifier_free_guidance,
            negative_prompt=None if negative_prompts is None else list(negative_prompts),
        )
        size = (self.height, self.width)
        time_ids = self.pipeline._get_add_time_ids(size, (0, 0), size, embeds.dtype, pooled.shape[-1])
        time_ids = time_ids.to(embeds.device).repeat(len(prompts), 1)
        negative = None
        if self.do_classifier_free_guidance:
            negative = {"prompt_embeds": negative_embeds, "text_embeds": negative_pooled, "time_ids": time_ids}
        return Conditioning({"prompt_embeds": embeds, "text_embeds": pooled, "time_ids": time_ids}, negative)

    def denoise(self, denoiser, latents, timestep, tensors):
        return denoiser(
            latents,
            timestep,
            encoder_hidden_states=tensors["prompt_embeds"],
            added_cond_kwargs={"text_embeds": tensors["text_embeds"], "time_ids": tensors["time_ids"]},
            return_dict=False,
        )[0]

    def decode_spatial(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        latents = latents.to(vae.dtype)
        mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
        if mean is not None and std is not None:
            mean, std = (torch.tensor(value).view(1, -1, 1, 1).to(latents) for value in (mean, std))
            latents = latents * std / vae.config.scaling_factor + mean
        else:
            latents = latents / vae.config.scaling_factor
        return to_unit_range(vae.decode(latents, return_dict=False)[0])
