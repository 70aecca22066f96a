# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Qwen-Image."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..types import Conditioning, Schedule
from .base import Family, pad_and_cat, register_family, stack_conditionings, to_unit_range
from .flow_schedule import linear_flow_schedule, resolution_shift


@register_family
class QwenImageFamily(Family):
    """
    [`~diffusers.QwenImagePipeline`]: a rectified-flow transformer that reads the hidden states of Qwen2.5-VL.

    `guidance_scale` is the pipeline's `true_cfg_scale`, and the negative prompt is `" "` when there is none, as on the
    model's card; the pipeline itself leaves guidance off without one. The length of a token's prediction is that of
    the conditional side, whatever the scale.

    Latents are packed, `(patches, channels)`, as the pipeline takes and returns them. Prompts are padded to the
    longest one of either side and masked, which leaves the images as they are up to rounding.

    Raises:
        ValueError: if `max_sequence_length` is above 1024, the pipeline's limit, or the transformer is
            guidance-distilled; and what [`Family`] raises.
    """

    pipeline_classes = ("QwenImagePipeline",)
    lora_target_modules = ("to_k", "to_out.0", "to_q", "to_v")
    default_negative_prompt = " "

    @property
    def unused_parameters(self) -> tuple[str, ...]:
        """Name the last block's text stream, which nothing reads any more."""
        last = rf"transformer_blocks\.{self.denoiser.config.num_layers - 1}\."
        return (rf"{last}attn\.to_add_out\.", rf"{last}txt_mlp\.")

    def __init__(self, pipeline, **kwargs):
        super().__init__(pipeline, **kwargs)
        if self.max_sequence_length is None:
            self.max_sequence_length = 512
        if self.max_sequence_length > 1024:
            raise ValueError(
                f"`max_sequence_length` is {self.max_sequence_length}; QwenImagePipeline takes at most 1024."
            )
        if self.denoiser.config.guidance_embeds:
            # The flag is all there is: `QwenTimestepProjEmbeddings`, which would embed the scale, does not take it.
            raise ValueError(
                "`model` has a guidance-distilled transformer (`guidance_embeds` in its config), which diffusers' "
                "QwenImageTransformer2DModel cannot run; use a checkpoint without it."
            )

    @property
    def pipeline_call_kwargs(self):
        kwargs = {"height": self.height, "width": self.width, "true_cfg_scale": self.guidance_scale}
        if self.do_classifier_free_guidance:
            kwargs["negative_prompt"] = self.default_negative_prompt
        return {**kwargs, "max_sequence_length": self.max_sequence_length}

    @property
    def latent_shape(self) -> tuple[int, ...]:
        height, width = self._patches
        return (height * width, self.denoiser.config.in_channels)

    @property
    def _patches(self) -> tuple[int, int]:
        return (self.height // self.size_multiple, self.width // self.size_multiple)

    def encode_prompts(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> Conditioning:
        positive = self._embed(prompts)
        if not self.do_classifier_free_guidance:
            return _without_needless_mask(Conditioning(positive))
        negative = self._embed(negative_prompts or [self.default_negative_prompt] * len(prompts))
        # In one batch for the padding, then apart again.
        both = {name: pad_and_cat([positive[name], negative[name]]).chunk(2) for name in positive}
        sides = ({name: tensors[i] for name, tensors in both.items()} for i in range(2))
        return _without_needless_mask(Conditioning(*sides))

    def _embed(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Embeddings `(P, L, D)` and mask `(P, L)`, true for tokens."""
        embeds, mask = self.pipeline.encode_prompt(
            prompt=list(prompts), device=self.device, max_sequence_length=self.max_sequence_length
        )
        mask = torch.ones(embeds.shape[:2], device=embeds.device) if mask is None else mask
        return {"prompt_embeds": embeds.to(self.dtype), "prompt_embeds_mask": mask.bool()}

    def stack(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        masked = [_with_mask(conditioning) for conditioning in conditionings]
        return _without_needless_mask(stack_conditionings(masked, pad_and_cat))

    def count_tokens(self, prompt: str) -> int:
        # The end of the template behind the prompt counts, its beginning is cut off by the pipeline.
        text = self.pipeline.prompt_template_encode.format(prompt)
        return len(self.pipeline.tokenizer(text).input_ids) - self.pipeline.prompt_template_encode_start_idx

    def make_schedule(self, num_inference_steps: int) -> Schedule:
        scheduler = self.pipeline.scheduler
        return linear_flow_schedule(scheduler, num_inference_steps, resolution_shift(scheduler, self.latent_shape[0]))

    def denoise(self, denoiser, latents, timestep, tensors):
        return denoiser(
            hidden_states=latents,
            # Rounded to the latents' dtype before the division, like the pipeline.
            timestep=timestep.expand(latents.shape[0]).to(latents.dtype) / 1000,
            encoder_hidden_states=tensors["prompt_embeds"],
            encoder_hidden_states_mask=tensors.get("prompt_embeds_mask"),
            img_shapes=[[(1, *self._patches)]] * latents.shape[0],
            return_dict=False,
        )[0]

    def combine_guidance(self, unconditional: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
        combined = super().combine_guidance(unconditional, conditional)
        return combined * (conditional.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))

    def spatial_latents(self, latents: torch.Tensor) -> torch.Tensor:
        unpacked = self.pipeline._unpack_latents(latents, self.height, self.width, self.pipeline.vae_scale_factor)
        return unpacked[:, :, 0]

    def decode_spatial(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        latents = latents.to(vae.dtype)
        mean, std = (latents.new_tensor(vae.config[name]).view(-1, 1, 1) for name in ("latents_mean", "latents_std"))
        # The VAE is one for videos; an image is a video of one frame.
        return to_unit_range(vae.decode((latents * std + mean)[:, :, None], return_dict=False)[0][:, :, 0])


def _with_mask(conditioning: Conditioning) -> Conditioning:
    """The conditioning with the mask that [`_without_needless_mask`] may have left out."""

    def add(side):
        embeds = side["prompt_embeds"]
        everything = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        return {"prompt_embeds_mask": everything, **side}

    return Conditioning(add(conditioning.positive), conditioning.negative and add(conditioning.negative))


def _without_needless_mask(conditioning: Conditioning) -> Conditioning:
    """Like the pipeline: no mask where all prompts are equally long, for attention kernels without one are faster."""
    sides = [side for side in (conditioning.positive, conditioning.negative) if side is not None]
    if not all(side["prompt_embeds_mask"].all() for side in sides):
        return conditioning
    return Conditioning(*({"prompt_embeds": side["prompt_embeds"]} for side in sides))
