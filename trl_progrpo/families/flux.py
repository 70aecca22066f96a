# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""FLUX.1 (dev and schnell), and what all families with distilled guidance share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..types import Conditioning, Schedule, to_device
from .base import Family, register_family, to_unit_range
from .flow_schedule import flux_schedule, resolution_shift


class DistilledGuidanceMixin:
    """
    For transformers that take the guidance scale as an input (`guidance_embeds` in their config): guidance costs no
    second network pass, and negative prompts are refused. The family gives `embed(prompts)`, the positive side.

    Args:
        pipeline ([`~diffusers.DiffusionPipeline`]): the loaded pipeline.
        guidance_scale (`float`, *optional*, defaults to 1.0): what the transformer is told, 1 and below included. A
            transformer without the embedding ignores it.
        kwargs: for [`Family`].

    Raises:
        ValueError: if guidance is negative, or above 1 for a transformer that ignores it; and what [`Family`] raises.
    """

    def __init__(self, pipeline: Any, *, guidance_scale: float = 1.0, **kwargs: Any):
        # Not passed on: the base class refuses scales below 1, which here are values like any other.
        super().__init__(pipeline, **kwargs)
        if not guidance_scale >= 0:
            raise ValueError(f"`guidance_scale` is {guidance_scale}; use 0 or more.")
        if guidance_scale > 1 and not self.denoiser.config.guidance_embeds:
            raise ValueError(
                f"`guidance_scale` is {guidance_scale}, but this {type(pipeline).__name__}'s transformer has no guidance "
                "embedding and would ignore it; use 1."
            )
        self.guidance_scale = guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return False

    @property
    def why_no_negative_prompts(self) -> str:
        return f"the guidance of {type(self.pipeline).__name__} is distilled into the transformer and ignores them"

    def guidance(self, latents: torch.Tensor) -> torch.Tensor | None:
        """The transformer's `guidance` input `(B,)` for latents of `B` rows."""
        if not self.denoiser.config.guidance_embeds:
            return None
        return torch.full(latents.shape[:1], self.guidance_scale, device=latents.device, dtype=torch.float32)

    def encode_prompts(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> Conditioning:
        if negative_prompts is not None:
            raise ValueError(f"`negative_prompts` are given, but {self.why_no_negative_prompts}; leave them unset.")
        return Conditioning(self.embed(prompts))


@register_family
class FluxFamily(DistilledGuidanceMixin, Family):
    """
    [`~diffusers.FluxPipeline`]: FLUX.1-dev, whose guidance is distilled, and FLUX.1-schnell, which has none.

    Latents are packed, `(patches, channels)`, as the pipeline takes and returns them. The pipeline's `true_cfg_scale`
    stays 1: classifier-free guidance on top of distilled guidance is not served.

    Raises:
        ValueError: if `max_sequence_length` is above 512, the pipeline's limit; and as [`DistilledGuidanceMixin`].
    """

    pipeline_classes = ("FluxPipeline",)
    lora_target_modules = (
        "attn.add_k_proj",
        "attn.add_q_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "attn.to_k",
        "attn.to_out.0",
        "attn.to_q",
        "attn.to_v",
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
    )
    optional_components = ("image_encoder", "feature_extractor")

    def __init__(self, pipeline, **kwargs):
        super().__init__(pipeline, **kwargs)
        if self.max_sequence_length is None:
            self.max_sequence_length = 512
        if self.max_sequence_length > 512:
            raise ValueError(f"`max_sequence_length` is {self.max_sequence_length}; FluxPipeline takes at most 512.")

    @property
    def pipeline_call_kwargs(self):
        return {**super().pipeline_call_kwargs, "max_sequence_length": self.max_sequence_length}

    @property
    def latent_shape(self) -> tuple[int, ...]:
        patch = self.size_multiple
        return ((self.height // patch) * (self.width // patch), self.denoiser.config.in_channels)

    def embed(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        embeds, pooled, _ = self.pipeline.encode_prompt(
            prompt=list(prompts), prompt_2=None, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def make_schedule(self, num_inference_steps: int) -> Schedule:
        scheduler = self.pipeline.scheduler
        return flux_schedule(scheduler, num_inference_steps, resolution_shift(scheduler, self.latent_shape[0]))

    def denoise(self, denoiser, latents, timestep, tensors):
        patches = (self.height // self.size_multiple, self.width // self.size_multiple)
        return denoiser(
            hidden_states=latents,
            # Rounded to the latents' dtype before the division, like the pipeline.
            timestep=timestep.expand(latents.shape[0]).to(latents.dtype) / 1000,
            guidance=self.guidance(latents),
            pooled_projections=tensors["pooled_prompt_embeds"],
            encoder_hidden_states=tensors["prompt_embeds"],
            txt_ids=latents.new_zeros(tensors["prompt_embeds"].shape[1], 3),
            # Made on the host by the pipeline, whose own copy would let the host wait for the device.
            img_ids=to_device(
                self.pipeline._prepare_latent_image_ids(len(latents), *patches, "cpu", latents.dtype), latents.device
            ),
            return_dict=False,
        )[0]

    def spatial_latents(self, latents: torch.Tensor) -> torch.Tensor:
        return self.pipeline._unpack_latents(latents, self.height, self.width, self.pipeline.vae_scale_factor)

    def decode_spatial(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        latents = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        return to_unit_range(vae.decode(latents, return_dict=False)[0])
