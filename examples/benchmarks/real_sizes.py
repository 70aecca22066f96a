# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
Time and memory of one rollout and one update at the sizes of real models, with random weights: nothing is downloaded.

```
python examples/benchmarks/real_sizes.py --model sd3.5-medium
python examples/benchmarks/real_sizes.py --parameters    # counts parameters, needs neither a GPU nor memory
python examples/benchmarks/real_sizes.py --smoke         # the same code on tiny networks, on the CPU
```

The denoiser and the VAE have the shapes of the published configurations. Text encoders are left out: the prompts' embeddings
are random, of the right shape, which is what a run with `drop_text_encoders` has in memory. Images are noise, so rewards
mean nothing.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
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

from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
from trl_progrpo.families import FAMILIES, Family
from trl_progrpo.types import Conditioning


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

# Side of the image, guidance, and the shapes of one prompt's conditioning.
RUNS: dict[str, dict[str, Any]] = {
    "sdxl": {
        "size": 1024,
        "guidance_scale": 5.0,
        "conditioning": {"prompt_embeds": (77, 2048), "text_embeds": (1280,), "time_ids": (6,)},
    },
    "sd3.5-medium": {
        "size": 512,
        "guidance_scale": 4.5,
        "conditioning": {"prompt_embeds": (333, 4096), "pooled_prompt_embeds": (2048,)},
    },
    "flux.1-dev": {
        "size": 512,
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


class RandomPrompts:
    """Stands in for the trainer's prompt cache: embeddings of the right shape, equal for equal prompts."""

    dropped = ()

    def __init__(self, family: Family, shapes: dict[str, tuple[int, ...]]):
        self.family, self.shapes = family, shapes

    def __call__(self, prompts: list[str], negative_prompt: str | None = None, device: Any = None) -> Conditioning:
        def side(seed: int) -> dict[str, torch.Tensor]:
            generator = torch.Generator().manual_seed(seed)
            drawn = {
                name: torch.randn(len(prompts), *shape, generator=generator) for name, shape in self.shapes.items()
            }
            return {name: tensor.to(self.family.device, self.family.dtype) for name, tensor in drawn.items()}

        return Conditioning(side(0), side(1) if self.family.do_classifier_free_guidance else None)


def brightness(prompts: list[str], images: torch.Tensor, **columns: Any) -> list[float]:
    """Mean of all pixels."""
    return images.float().mean((1, 2, 3)).tolist()


brightness.image_type = "pt"


def measure(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Seconds and bytes of one rollout and one update, after one of each to warm up."""
    device = "cpu" if args.smoke else "cuda"
    dtype = torch.float32 if args.smoke else torch.bfloat16
    run = RUNS[name]
    size = 32 if args.smoke else args.size or run["size"]
    pipeline = make_pipeline(name, device, dtype, args.smoke)
    with tempfile.TemporaryDirectory() as folder:
        config = ProGRPOConfig(
            output_dir=folder,
            height=size,
            width=size,
            guidance_scale=run["guidance_scale"],
            num_generations=args.num_generations,
            num_expansions=args.num_expansions,
            prune_steps=[(args.num_inference_steps - 1) // 2],
            prune_sizes=[args.num_generations],
            num_inference_steps=args.num_inference_steps,
            per_device_train_batch_size=args.batch_size,
            gradient_accumulation_steps=args.num_generations // args.batch_size,
            decode_batch_size=1,
            # Not `False`, which transformers warns about.
            gradient_checkpointing=args.gradient_checkpointing or None,
            max_steps=2,
            bf16=not args.smoke,
            use_cpu=args.smoke,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        dataset = Dataset.from_dict({"prompt": ["one", "two"]})
        trainer = ProGRPOTrainer(model=pipeline, reward_funcs=brightness, args=config, train_dataset=dataset)
        trainer.prompt_cache = RandomPrompts(trainer.family, run["conditioning"])
        if not args.smoke:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        trainer.train()
        total = time.perf_counter() - started
    last = [entry for entry in trainer.state.log_history if "reward" in entry][-1]
    seconds = {key.removeprefix("time/"): value for key, value in last.items() if key.startswith("time/")}
    if args.smoke:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    else:
        peak = torch.cuda.max_memory_allocated()
    parameters = sum(parameter.numel() for parameter in trainer.family.denoiser.parameters())
    trained = sum(p.numel() for p in trainer.family.denoiser.parameters() if p.requires_grad)
    return {
        "parameters": parameters,
        "trained parameters": trained,
        "size": size,
        "network evaluations": last["sampling/nfe"],
        **{f"seconds, {phase}": value for phase, value in seconds.items()},
        "seconds, both steps": total,
        "peak memory, GiB": peak / 2**30,
    }


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--model", choices=[*RUNS, "all"], default="all", help="which size to measure")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny networks on the CPU: only shows that the script works"
    )
    parser.add_argument("--parameters", action="store_true", help="count parameters and measure nothing")
    parser.add_argument("--size", type=int, help="side of the images in pixels; the model's usual one if unset")
    parser.add_argument("--num_expansions", type=int, default=8)
    parser.add_argument("--num_generations", type=int, default=4)
    parser.add_argument("--num_inference_steps", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=2, help="trajectories per micro-batch of the update")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    args = parser.parse_args()
    if args.parameters:
        print_parameters()
        return
    if args.smoke:
        args.num_expansions, args.num_generations, args.num_inference_steps, args.batch_size = 3, 2, 2, 2
    elif not torch.cuda.is_available():
        parser.error("there is no CUDA device; give --smoke to try the script on tiny networks, or --parameters.")
    for name in RUNS if args.model == "all" else [args.model]:
        print(f"{name}{' (smoke: tiny networks)' if args.smoke else f' on {torch.cuda.get_device_name()}'}")
        for key, value in measure(name, args).items():
            print(f"  {key}: {value:,}" if isinstance(value, int) else f"  {key}: {value:.3f}")


if __name__ == "__main__":
    main()
