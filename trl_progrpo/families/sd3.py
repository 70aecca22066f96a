# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Stable Diffusion 3 and 3.5 (medium and large), and the embedded shapes model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..types import Conditioning, Schedule
from .base import Family, register_family, to_unit_range
from .flow_schedule import check_euler, flow_schedule, resolution_shift


@register_family
class StableDiffusion3Family(Family):
    """
    [`~diffusers.StableDiffusion3Pipeline`]: a rectified-flow transformer with two CLIP encoders and an optional T5.

    Without T5 the family encodes no T5 tokens at all (`max_sequence_length=0`); the pipeline's own default would
    append 256 zero tokens, so pass the same value to `pipeline(...)` when comparing.
    """

    pipeline_classes = ("StableDiffusion3Pipeline",)
    lora_target_modules = (
        "attn.add_k_proj",
        "attn.add_q_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "attn.to_k",
        "attn.to_out.0",
        "attn.to_q",
        "attn.to_v",
    )
    optional_components = ("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor")

    def __init__(self, pipeline, **kwargs):
        super().__init__(pipeline, **kwargs)
        if self.max_sequence_length is None:
            self.max_sequence_length = 256 if pipeline.text_encoder_3 is not None else 0
        if self.max_sequence_length > 512:
            raise ValueError(
                f"`max_sequence_length` is {self.max_sequence_length}; StableDiffusion3Pipeline takes at most 512."
            )

    @property
    def size_multiple(self) -> int:
        return self.pipeline.vae_scale_factor * self.pipeline.patch_size

    @property
    def max_size(self) -> tuple[int, int] | None:
        patches = self.denoiser.config.pos_embed_max_size
        return None if patches is None else (patches * self.size_multiple,) * 2

    @property
    def pipeline_call_kwargs(self):
        return {**super().pipeline_call_kwargs, "max_sequence_length": self.max_sequence_length}

    @property
    def latent_shape(self) -> tuple[int, ...]:
        factor = self.pipeline.vae_scale_factor
        return (self.denoiser.config.in_channels, self.height // factor, self.width // factor)

    def encode_prompts(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> Conditioning:
        embeds, negative_embeds, pooled, negative_pooled = self.pipeline.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            prompt_3=None,
            negative_prompt=None if negative_prompts is None else list(negative_prompts),
            do_classifier_free_guidance=self.do_classifier_free_guidance,
            device=self.device,
            max_sequence_length=self.max_sequence_length,
        )
        negative = None
        if self.do_classifier_free_guidance:
            negative = {"prompt_embeds": negative_embeds, "pooled_prompt_embeds": negative_pooled}
        return Conditioning({"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}, negative)

    def make_schedule(self, num_inference_steps: int) -> Schedule:
        scheduler = check_euler(self.pipeline.scheduler)
        mu = None
        if scheduler.config.get("use_dynamic_shifting"):
            _, height, width = self.latent_shape
            patch = self.denoiser.config.patch_size
            mu = resolution_shift(scheduler, (height // patch) * (width // patch), max_shift=1.16)
        return flow_schedule(scheduler, num_inference_steps, mu=mu)

    def denoise(self, denoiser, latents, timestep, tensors):
        return denoiser(
            hidden_states=latents,
            timestep=timestep.expand(latents.shape[0]),
            encoder_hidden_states=tensors["prompt_embeds"],
            pooled_projections=tensors["pooled_prompt_embeds"],
            return_dict=False,
        )[0]

    def decode_spatial(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        latents = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        return to_unit_range(vae.decode(latents, return_dict=False)[0])
