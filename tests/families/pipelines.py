# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Tiny pipelines with random weights, of the stock classes of the model families. The same call gives the same weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from trl_progrpo.families import Family
from trl_progrpo.policies import POLICIES
from trl_progrpo.testing import PROMPTS
from trl_progrpo.tiny import model_path


HIDDEN = 16

# The betas and final level of the Stable Diffusion checkpoints.
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def seeded(make: Callable[..., DiffusionPipeline]) -> Callable[..., DiffusionPipeline]:
    """Decorator: a pipeline maker draws its weights from seed 0, and its result is quiet and in evaluation mode."""

    @functools.wraps(make)
    def seeded_make(*args: Any, **kwargs: Any) -> DiffusionPipeline:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipeline = make(*args, **kwargs)
        pipeline.set_progress_bar_config(disable=True)
        for component in pipeline.components.values():
            if isinstance(component, torch.nn.Module):
                component.eval()
        return pipeline

    return seeded_make


def tokenizer() -> CLIPTokenizer:
    """The embedded model's CLIP tokenizer; a sequence has 10 tokens."""
    return CLIPTokenizer.from_pretrained(model_path() / "tokenizer")


def clip_config(hidden_size: int = HIDDEN) -> CLIPTextConfig:
    tokens = tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=hidden_size,
        projection_dim=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokens.model_max_length,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )


def vae(latent_channels: int = 4, **kwargs: Any) -> AutoencoderKL:
    """Two levels, so 2 pixels per latent."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=latent_channels,
        sample_size=16,
        **{"scaling_factor": 0.7, **kwargs},
    )


def unet(**kwargs: Any) -> UNet2DConditionModel:
    """Two levels of 8 and 16 channels, the inner one with cross-attention, on 8x8 latents."""
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": HIDDEN,
            "attention_head_dim": 2,
            "norm_num_groups": 2,
            **kwargs,
        }
    )


@seeded
def make_sd(scheduler: Any = None, **components: Any) -> StableDiffusionPipeline:
    """Stable Diffusion with 16x16 images; a DDIM scheduler of Stable Diffusion 1.x when there is no other."""
    return StableDiffusionPipeline(
        **{
            "vae": vae(),
            "text_encoder": CLIPTextModel(clip_config()),
            "tokenizer": tokenizer(),
            "unet": unet(),
            "scheduler": scheduler or PNDMScheduler(**STABLE_DIFFUSION, skip_prk_steps=True, set_alpha_to_one=False),
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
            **components,
        }
    )


@seeded
def make_sd2(**kwargs: Any) -> StableDiffusionPipeline:
    """Stable Diffusion 2.x: v-prediction, linear projections in the UNet."""
    scheduler = DDIMScheduler(
        **STABLE_DIFFUSION, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False
    )
    return make_sd(scheduler=scheduler, unet=unet(use_linear_projection=True), **kwargs)


@seeded
def make_sdxl(
    scheduler: Any = None, force_zeros_for_empty_prompt: bool = True, vae_kwargs: dict[str, Any] | None = None
) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL with 16x16 images; an Euler scheduler when there is no other, as on the Hub."""
    return StableDiffusionXLPipeline(
        vae=vae(force_upcast=True, **(vae_kwargs or {})),
        text_encoder=CLIPTextModel(clip_config()),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(2 * HIDDEN)),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet(
            cross_attention_dim=3 * HIDDEN,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=2 * HIDDEN + 6 * 8,
        ),
        scheduler=scheduler or EulerDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
        add_watermarker=False,
    )


@seeded
def make_sd3(with_t5: bool = True, **scheduler: Any) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 with 8x8 images, with or without its third text encoder."""
    tokens = tokenizer()
    t5 = T5Config(
        vocab_size=len(tokens), d_model=2 * HIDDEN, d_kv=8, d_ff=HIDDEN, num_layers=1, num_heads=2, is_gated_act=True
    )
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * HIDDEN,
            caption_projection_dim=16,
            pooled_projection_dim=2 * HIDDEN,
            pos_embed_max_size=6,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae=vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(clip_config()),
        tokenizer=tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()),
        tokenizer_2=tokenizer(),
        text_encoder_3=T5EncoderModel(t5) if with_t5 else None,
        tokenizer_3=tokens if with_t5 else None,
    )


@torch.no_grad()
def assert_equals_pipeline(family: Family, steps: int = 4) -> None:
    """The quick part of `check_family`, for variants: latents and images of the family's chain and of `pipeline(...)`."""
    latents = torch.randn(len(PROMPTS), *family.latent_shape, generator=torch.Generator().manual_seed(0))
    call = {"prompt": list(PROMPTS), "latents": latents, "num_inference_steps": steps, **family.pipeline_call_kwargs}
    stock, images = (family.pipeline(**call, output_type=kind).images for kind in ("latent", "pt"))
    schedule, conditioning = family.make_schedule(steps), family.encode_prompts(PROMPTS)
    policy = POLICIES.get(family.policies[0])().ode()
    for i, timestep in enumerate(schedule.timesteps):
        output = family.predict(family.denoiser, latents, timestep, conditioning)
        latents = policy.step(output, latents, schedule, i).mean
    torch.testing.assert_close(family.pipeline_latents(latents), stock, atol=5e-5, rtol=1e-5)
    torch.testing.assert_close(family.decode(latents), images, atol=1e-4, rtol=0)
