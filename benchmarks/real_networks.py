# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The networks of real models, with the shapes of their published configurations and random weights: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from trl_progrpo.families import FAMILIES


SD15_UNET = {"sample_size": 64, "cross_attention_dim": 768}
SDXL_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD35_MEDIUM = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 1024,
}
VAE_16 = {**VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}

# What makes each of them small; the rest of a configuration stays.
TINY_VAE = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2}
TINY = {
    "sdxl": {
        "sample_size": 4,
        "block_out_channels": (8, 8, 16),
        "transformer_layers_per_block": 1,
        "attention_head_dim": 2,
        "layers_per_block": 1,
        "norm_num_groups": 2,
    },
    "sd3.5-medium": {
        "sample_size": 4,
        "num_layers": 2,
        "num_attention_heads": 1,
        "attention_head_dim": 16,
        "caption_projection_dim": 16,
        "pos_embed_max_size": 8,
        "dual_attention_layers": (0,),
    },
    "flux.1-dev": {
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 1,
        "attention_head_dim": 16,
        "axes_dims_rope": (4, 4, 8),
    },
}

# Guidance, and the shapes of one prompt's conditioning.
RUNS: dict[str, dict[str, Any]] = {
    "sdxl": {
        "guidance_scale": 5.0,
        "conditioning": {"prompt_embeds": (77, 2048), "text_embeds": (1280,), "time_ids": (6,)},
    },
    "sd3.5-medium": {
        "guidance_scale": 4.5,
        "conditioning": {"prompt_embeds": (333, 4096), "pooled_prompt_embeds": (2048,)},
    },
    "flux.1-dev": {
        "guidance_scale": 3.5,
        "conditioning": {"prompt_embeds": (512, 4096), "pooled_prompt_embeds": (768,)},
    },
}


def make_pipeline(name: str, device: str, dtype: torch.dtype, smoke: bool = False) -> Any:
    """The pipeline without text encoders, with random weights: the denoiser in `dtype`, the VAE in fp32."""
    tiny = TINY[name] if smoke else {}

    def denoiser(cls: type, config: dict[str, Any]) -> torch.nn.Module:
        # Made in place: a second copy in fp32 would need twice the memory.
        torch.set_default_dtype(dtype)
        try:
            return cls(**{**config, **tiny})
        finally:
            torch.set_default_dtype(torch.float32)

    def vae(config: dict[str, Any]) -> AutoencoderKL:
        return AutoencoderKL(**{**config, **(TINY_VAE if smoke else {})})

    with torch.device(device):
        if name == "sdxl":
            return StableDiffusionXLPipeline(
                vae=vae({**VAE, "scaling_factor": 0.13025}),
                unet=denoiser(UNet2DConditionModel, SDXL_UNET),
                scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
                **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
                add_watermarker=False,
            )
        names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        if name == "sd3.5-medium":
            return StableDiffusion3Pipeline(
                vae=vae({**VAE_16, "scaling_factor": 1.5305, "shift_factor": 0.0609}),
                transformer=denoiser(SD3Transformer2DModel, SD35_MEDIUM),
                scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
                **dict.fromkeys((*names, "text_encoder_3", "tokenizer_3")),
            )
        return FluxPipeline(
            vae=vae({**VAE_16, "scaling_factor": 0.3611, "shift_factor": 0.1159}),
            transformer=denoiser(FluxTransformer2DModel, {"guidance_embeds": True}),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            **dict.fromkeys(names),
        )


def real_modules() -> dict[str, tuple[str, type, Any, str]]:
    """Networks whose shapes are known: pipeline class of the denoisers, class, configuration, what is known of it."""
    known, default = "published configuration", "defaults of the class in diffusers"
    return {
        "SD 1.5 UNet": ("StableDiffusionPipeline", UNet2DConditionModel, SD15_UNET, known),
        "SDXL UNet": ("StableDiffusionXLPipeline", UNet2DConditionModel, SDXL_UNET, known),
        "SD 3.5 Medium": ("StableDiffusion3Pipeline", SD3Transformer2DModel, SD35_MEDIUM, known),
        "FLUX.1-dev": ("FluxPipeline", FluxTransformer2DModel, {"guidance_embeds": True}, default),
        "FLUX.2-dev": ("Flux2Pipeline", Flux2Transformer2DModel, {}, default),
        "Qwen-Image": ("QwenImagePipeline", QwenImageTransformer2DModel, {}, default),
        "Z-Image": ("ZImagePipeline", ZImageTransformer2DModel, {}, default),
        "Sana 1.6B": ("SanaPipeline", SanaTransformer2DModel, {}, default),
        "VAE, 4 channels": ("", AutoencoderKL, VAE, known),
        "VAE, 16 channels": ("", AutoencoderKL, VAE_16, known),
        "VAE of FLUX.2": ("", AutoencoderKLFlux2, {}, default),
        "VAE of Qwen-Image": ("", AutoencoderKLQwenImage, {}, default),
        "VAE of Sana": ("", AutoencoderDC, {}, default),
        "CLIP-L": ("", CLIPTextModel, CLIPTextConfig(**CLIP_L), known),
        "CLIP-bigG": ("", CLIPTextModelWithProjection, CLIPTextConfig(**CLIP_G), known),
        "T5-XXL encoder": ("", T5EncoderModel, T5Config(**T5_XXL), known),
    }


CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}


def print_parameters(rank: int = 32) -> None:
    """A line per network: parameters, GiB in bf16, parameters of the family's default LoRA."""
    print(f"| Network | Parameters | bf16, GiB | LoRA, rank {rank} | Known from |\n|---|---|---|---|---|")
    for name, (pipeline, cls, config, source) in real_modules().items():
        with torch.device("meta"):
            module = cls(**config) if isinstance(config, dict) else cls(config)
        count = sum(parameter.numel() for parameter in module.parameters())
        lora = ""
        if pipeline:
            targets = tuple(f".{target}" for target in FAMILIES.get(pipeline).lora_target_modules)
            layers = [m for n, m in module.named_modules() if f".{n}".endswith(targets)]
            lora = f"{sum(rank * (m.in_features + m.out_features) for m in layers) / 1e6:.1f} M"
        print(f"| {name} | {count / 1e9:.3f} B | {2 * count / 2**30:.2f} | {lora} | {source} |", flush=True)
