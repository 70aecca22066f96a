# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Z-Image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas
from torch.nn.utils.rnn import pad_sequence

from ..types import Conditioning, Schedule
from .base import Family, chat_tokens, pad_and_cat, register_family, stack_conditionings, to_unit_range
from .flow_schedule import check_euler, flow_schedule, resolution_shift


@register_family
class ZImageFamily(Family):
    """
    [`~diffusers.ZImagePipeline`]: Z-Image, with classifier-free guidance, and Z-Image-Turbo, which wants none.

    Above 1, `guidance_scale` is the number that the pipeline takes, `conditional + guidance_scale * (conditional -
    unconditional)`: one less than elsewhere for the same effect. No guidance is 1 here as in all families, and 0 in
    the pipeline; its scales from there to 1 are not served. Its `cfg_normalization` and `cfg_truncation` stay off.

    The transformer takes each row's prompt tokens without padding; a [`Conditioning`] holds them padded, with their
    number.
    """

    pipeline_classes = ("ZImagePipeline",)
    lora_target_modules = ("to_k", "to_out.0", "to_q", "to_v")

    def __init__(self, pipeline, **kwargs):
        super().__init__(pipeline, **kwargs)
        if self.max_sequence_length is None:
            self.max_sequence_length = 512

    @property
    def max_size(self) -> tuple[int, int]:
        _, *patches = self.denoiser.config.axes_lens
        return tuple(count * self.size_multiple for count in patches)

    @property
    def default_size(self) -> int:
        return 1024

    @property
    def pipeline_call_kwargs(self):
        return {
            "height": self.height,
            "width": self.width,
            "guidance_scale": self.guidance_scale if self.do_classifier_free_guidance else 0.0,
            "max_sequence_length": self.max_sequence_length,
        }

    @property
    def latent_shape(self) -> tuple[int, ...]:
        factor = self.pipeline.vae_scale_factor
        return (self.denoiser.in_channels, self.height // factor, self.width // factor)

    def encode_prompts(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> Conditioning:
        positive, negative = self.pipeline.encode_prompt(
            # Copies: the pipeline writes its chat template into the lists it is given.
            prompt=list(prompts),
            negative_prompt=None if negative_prompts is None else list(negative_prompts),
            do_classifier_free_guidance=self.do_classifier_free_guidance,
            device=self.device,
            max_sequence_length=self.max_sequence_length,
        )
        embeds = pad_sequence([*positive, *negative], batch_first=True).to(self.dtype)
        lengths = torch.tensor([len(tokens) for tokens in [*positive, *negative]], device=embeds.device)
        sides = zip(embeds.split(len(prompts)), lengths.split(len(prompts)))
        return Conditioning(*({"prompt_embeds": embeds, "prompt_lengths": lengths} for embeds, lengths in sides))

    def stack(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        return stack_conditionings(conditionings, pad_and_cat)

    def count_tokens(self, prompt: str) -> int:
        return chat_tokens(self.pipeline.tokenizer, prompt, enable_thinking=True)

    def make_schedule(self, num_inference_steps: int) -> Schedule:
        scheduler = check_euler(self.pipeline.scheduler)
        _, height, width = self.latent_shape
        mu = resolution_shift(scheduler, (height // 2) * (width // 2))
        # Without dynamic shifting the scheduler ignores `mu`.
        return flow_schedule(scheduler, sigmas=get_default_z_image_sigmas(num_inference_steps), mu=mu)

    def denoise(self, denoiser, latents, timestep, tensors):
        lengths = tensors["prompt_lengths"].tolist()
        output = denoiser(
            list(latents.unsqueeze(2)),
            # The network's time runs from noise at 0 to data at 1, and so does its velocity.
            (1000 - timestep.expand(latents.shape[0])) / 1000,
            [embeds[:length] for embeds, length in zip(tensors["prompt_embeds"], lengths)],
            return_dict=False,
        )[0]
        return -torch.stack(output).squeeze(2)

    def combine_guidance(self, unconditional: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
        unconditional, conditional = unconditional.float(), conditional.float()
        return conditional + self.guidance_scale * (conditional - unconditional)

    def decode_spatial(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        latents = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        return to_unit_range(vae.decode(latents, return_dict=False)[0])
