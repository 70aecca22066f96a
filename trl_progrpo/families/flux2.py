# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""FLUX.2: klein, with classifier-free or no guidance, and dev, with distilled guidance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu, format_input

from ..types import Conditioning, Schedule, to_device
from .base import Family, chat_tokens, register_family, to_unit_range
from .flow_schedule import flux_schedule
from .flux import DistilledGuidanceMixin


class _Flux2Base(Family):
    """
    The transformer and VAE of both FLUX.2 pipelines, for text to image.

    Latents are `(channels, height, width)` in patches of 2 x 2, as `pipeline(latents=...)` takes them, and normalised
    with the batch-norm statistics of the VAE. Preview decoders get them without patches, still normalised.
    """

    # Of the single-stream blocks only the fused input: the suffix of their `attn.to_out` is also that of a container in
    # the double-stream blocks, which PEFT refuses.
    lora_target_modules = ("attn.to_k", "attn.to_out.0", "attn.to_q", "attn.to_qkv_mlp_proj", "attn.to_v")

    def __init__(self, pipeline, **kwargs):
        super().__init__(pipeline, **kwargs)
        if self.max_sequence_length is None:
            self.max_sequence_length = pipeline.tokenizer_max_length

    @property
    def pipeline_call_kwargs(self):
        return {**super().pipeline_call_kwargs, "max_sequence_length": self.max_sequence_length}

    @property
    def latent_shape(self) -> tuple[int, ...]:
        patch = self.size_multiple
        return (self.denoiser.config.in_channels, self.height // patch, self.width // patch)

    def embed(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """One side of a [`Conditioning`]; prompts are padded to `max_sequence_length`, so sides fit each other."""
        embeds, _ = self.pipeline.encode_prompt(
            prompt=list(prompts), device=self.device, max_sequence_length=self.max_sequence_length
        )
        return {"prompt_embeds": embeds}

    def make_schedule(self, num_inference_steps: int) -> Schedule:
        _, height, width = self.latent_shape
        mu = compute_empirical_mu(image_seq_len=height * width, num_steps=num_inference_steps)
        return flux_schedule(self.pipeline.scheduler, num_inference_steps, mu)

    def guidance(self, latents: torch.Tensor) -> torch.Tensor | None:
        """The transformer's `guidance` input `(B,)` for latents of `B` rows, `None` if it has none."""
        return None

    def denoise(self, denoiser, latents, timestep, tensors):
        output = denoiser(
            hidden_states=self.pipeline._pack_latents(latents),
            # Rounded to the latents' dtype before the division, like the pipeline.
            timestep=timestep.expand(latents.shape[0]).to(latents.dtype) / 1000,
            guidance=self.guidance(latents),
            encoder_hidden_states=tensors["prompt_embeds"],
            # The same positions in every row; the transformer takes them without a batch dimension.
            txt_ids=to_device(self.pipeline._prepare_text_ids(tensors["prompt_embeds"][:1])[0], latents.device),
            img_ids=to_device(self.pipeline._prepare_latent_ids(latents[:1])[0], latents.device),
            return_dict=False,
        )[0]
        return output.transpose(1, 2).reshape(latents.shape)

    def spatial_latents(self, latents: torch.Tensor) -> torch.Tensor:
        return self.pipeline._unpatchify_latents(latents)

    def denormalised_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents `(B, channels, h, w)` as the VAE takes them, without patches, of latents `(B, *latent_shape)`."""
        vae = self.pipeline.vae
        mean = vae.bn.running_mean.view(1, -1, 1, 1)
        std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
        return self.spatial_latents(latents * std.to(latents) + mean.to(latents))

    def decode_spatial(self, latents: torch.Tensor) -> torch.Tensor:
        # The statistics are those of the channels of patches.
        patches = self.pipeline._patchify_latents(latents.to(self.pipeline.vae.dtype))
        return self._decode_denormalised(self.denormalised_latents(patches))

    def decode_preview(
        self, latents: torch.Tensor, decoder: torch.nn.Module | None = None, downscale: int = 1
    ) -> torch.Tensor:
        if decoder is not None or downscale == 1:
            return super().decode_preview(latents, decoder, downscale)
        # Averages over places in a patch have no statistics, and what is left may be no whole number of patches.
        denormalised = self.denormalised_latents(latents.to(self.pipeline.vae.dtype))
        return self._decode_denormalised(torch.nn.functional.avg_pool2d(denormalised, downscale))

    def _decode_denormalised(self, latents: torch.Tensor) -> torch.Tensor:
        return to_unit_range(self.pipeline.vae.decode(latents, return_dict=False)[0])


@register_family
class Flux2KleinFamily(_Flux2Base):
    """
    [`~diffusers.Flux2KleinPipeline`]: the base checkpoints with classifier-free guidance, the step-distilled ones
    (`is_distilled` in the pipeline's config) without.

    The pipeline's negative prompt is always empty; others are what its `negative_prompt_embeds` take.

    Raises:
        ValueError: if a step-distilled checkpoint, which ignores guidance, is given a scale above 1.
    """

    pipeline_classes = ("Flux2KleinPipeline",)

    def __init__(self, pipeline, **kwargs):
        super().__init__(pipeline, **kwargs)
        if pipeline.config.is_distilled and self.guidance_scale > 1:
            raise ValueError(
                f"`guidance_scale` is {self.guidance_scale}, but this Flux2KleinPipeline is step-distilled and would ignore "
                "it; use 1."
            )

    @property
    def why_no_negative_prompts(self) -> str | None:
        return (
            "this Flux2KleinPipeline is step-distilled and ignores them" if self.pipeline.config.is_distilled else None
        )

    def encode_prompts(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> Conditioning:
        if negative_prompts is not None and self.why_no_negative_prompts is not None:
            raise ValueError(f"`negative_prompts` are given, but {self.why_no_negative_prompts}; leave them unset.")
        if not self.do_classifier_free_guidance:
            return Conditioning(self.embed(prompts))
        return Conditioning(self.embed(prompts), self.embed(negative_prompts or [""] * len(prompts)))

    def count_tokens(self, prompt: str) -> int:
        return chat_tokens(self.pipeline.tokenizer, prompt, enable_thinking=False)

    def pipeline_latents(self, latents: torch.Tensor) -> torch.Tensor:
        return self.denormalised_latents(latents)


@register_family
class Flux2Family(DistilledGuidanceMixin, _Flux2Base):
    """[`~diffusers.Flux2Pipeline`]: FLUX.2-dev, whose guidance is distilled; prompts are not upsampled."""

    pipeline_classes = ("Flux2Pipeline",)

    def count_tokens(self, prompt: str) -> int:
        (messages,) = format_input(prompts=[prompt], system_message=self.pipeline.system_message)
        encoded = self.pipeline.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)
        ids = encoded["input_ids"]
        # A processor answers in batches, a tokenizer does not.
        return len(ids[0] if isinstance(ids[0], list) else ids)

    def pipeline_latents(self, latents: torch.Tensor) -> torch.Tensor:
        return self.pipeline._pack_latents(latents)
