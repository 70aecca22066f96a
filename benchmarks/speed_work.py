# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The work that the contenders of `speed.py` are given, and this package as one of them."""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from speed_turns import Turns
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, TrainerCallback

from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
from trl_progrpo.tiny import load_pipeline, load_preview_decoder, load_shapes, model_path, shapes_reward


@dataclass(frozen=True)
class Setting:
    """
    What every contender does in its turn. Fields are those of [`ProGRPOConfig`], and these:

    Attributes:
        model (`str`): `"shapes"`, or the folder of a Stable Diffusion.
        prompts (`list[str]`): one group each.
        trained_steps (`int`): the first so many steps carry noise and are trained.
        train_batch_size (`int`): trajectories per forward and backward pass.
        accumulated_batches (`int`): such batches per optimiser update.
        turns (`int`): rollouts, each with its updates.
        threads (`int`): of torch.
    """

    model: str
    prompts: list[str]
    num_expansions: int
    num_generations: int
    prune_steps: tuple[int, ...] = ()
    prune_sizes: tuple[int, ...] = ()
    num_inference_steps: int = 10
    trained_steps: int = 6
    guidance_scale: float = 1.0
    noise_level: float = 0.7
    rollout_batch_size: int = 192
    train_batch_size: int = 48
    accumulated_batches: int = 1
    learning_rate: float = 3e-4
    turns: int = 6
    threads: int = 1
    device: str = "cpu"
    dtype: str = "float32"

    def argument(self) -> str:
        """As it is given to a worker."""
        return json.dumps(asdict(self))


def make_sd(folder: Path, channels: tuple[int, int], latents: int) -> str:
    """
    Writes a Stable Diffusion with random weights, two levels and 2 pixels per latent.

    Args:
        folder (`Path`): to be made.
        channels (`tuple[int, int]`): of the two levels of the UNet.
        latents (`int`): side of the latents.
    """
    tokens = CLIPTokenizer.from_pretrained(model_path() / "tokenizer")
    hidden = 2 * channels[0]
    text = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokens.model_max_length,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL(
                block_out_channels=channels,
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                norm_num_groups=4,
                latent_channels=4,
            ),
            text_encoder=CLIPTextModel(text),
            tokenizer=tokens,
            unet=UNet2DConditionModel(
                sample_size=latents,
                block_out_channels=channels,
                layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=hidden,
                attention_head_dim=4,
                norm_num_groups=4,
            ),
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                steps_offset=1,
                set_alpha_to_one=False,
                clip_sample=False,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    # Older releases of transformers read this tokenizer by its other name only.
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"CLIPTokenizer"', '"CLIPTokenizerFast"'))
    return str(folder)


def settings(args: argparse.Namespace, folder: Path) -> dict[str, Setting]:
    """What is measured, by name. Names that begin with `tiny` have networks too small for the targets."""
    captions = load_shapes("train")["prompt"]
    common = {"turns": args.turns + 1, "threads": args.threads, "device": args.device, "dtype": args.dtype}
    shapes = Setting(
        "shapes", captions[:: len(captions) // 4][:4], 48, 12, prune_steps=(5, 7), prune_sizes=(24, 12), **common
    )
    tiny_shapes = replace(
        shapes, prompts=captions[:1], num_expansions=8, num_generations=2, prune_sizes=(4, 2), rollout_batch_size=8,
        train_batch_size=2,
    )  # fmt: skip
    # The groups of two prompts in one batch.
    sd = Setting(
        "",
        captions[:2],
        4,
        4,
        trained_steps=10,
        guidance_scale=5.0,
        rollout_batch_size=8,
        train_batch_size=8,
        **common,
    )
    tiny_sd = replace(sd, model=make_sd(folder / "tiny", (8, 16), 8))
    if args.smoke:
        small = {"num_inference_steps": 3, "trained_steps": 2}
        return {
            "tiny shapes": replace(tiny_shapes, prune_steps=(0, 1), **small),
            "tiny Stable Diffusion": replace(tiny_sd, **small),
        }
    channels = tuple(args.sd_channels)
    return {
        "shapes": shapes,
        "Stable Diffusion": replace(sd, model=make_sd(folder / "sd", channels, args.sd_latents)),
        "tiny shapes": tiny_shapes,
        "tiny Stable Diffusion": tiny_sd,
    }


def load_models(setting: Setting) -> tuple[DiffusionPipeline, torch.nn.Module | None, LoraConfig]:
    """Pipeline, decoder of previews and configuration of the adapter."""
    dtype, device = getattr(torch, setting.dtype), setting.device
    if setting.model == "shapes":
        pipeline = load_pipeline(torch_dtype=dtype)
        decoder, rank, alpha = load_preview_decoder().to(device), 16, 32
    else:
        pipeline = StableDiffusionPipeline.from_pretrained(
            setting.model, torch_dtype=dtype, tokenizer=CLIPTokenizer.from_pretrained(model_path() / "tokenizer")
        )
        pipeline.set_progress_bar_config(disable=True)
        # What TRL's DDPO puts on.
        decoder, rank, alpha = None, 4, 4
    lora = LoraConfig(
        r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=["to_k", "to_out.0", "to_q", "to_v"]
    )
    return pipeline.to(device), decoder, lora


def brightness(prompts: list[str], images: torch.Tensor, **columns: Any) -> list[float]:
    """Mean of all pixels."""
    return images.float().mean((1, 2, 3)).tolist()


brightness.image_type = "pt"


def reward_of(setting: Setting) -> Callable[..., list[float]]:
    """The reward, `(prompts, images) -> list[float]`."""
    return shapes_reward if setting.model == "shapes" else brightness


def make_trainer(setting: Setting, folder: str, turns: Turns | None = None) -> ProGRPOTrainer:
    """This package at the same work."""
    pipeline, decoder, lora = load_models(setting)
    trained = len(setting.prompts) * setting.num_generations
    batches = trained // setting.train_batch_size
    config = ProGRPOConfig(
        output_dir=folder,
        num_generations=setting.num_generations,
        num_expansions=setting.num_expansions,
        prune_steps=list(setting.prune_steps) or None,
        prune_sizes=list(setting.prune_sizes) or None,
        num_inference_steps=setting.num_inference_steps,
        sde_window="fixed",
        sde_window_size=setting.trained_steps,
        guidance_scale=setting.guidance_scale,
        noise_level=setting.noise_level,
        rollout_batch_size=setting.rollout_batch_size,
        per_device_train_batch_size=setting.train_batch_size,
        steps_per_generation=batches,
        gradient_accumulation_steps=setting.accumulated_batches,
        learning_rate=setting.learning_rate,
        preview_decoder="shapes" if decoder is not None else None,
        max_steps=setting.turns * batches // setting.accumulated_batches,
        audit_fraction=0.0,
        bf16=setting.dtype == "bfloat16",
        use_cpu=setting.device == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = ProGRPOTrainer(
        model=pipeline,
        reward_funcs="shapes" if setting.model == "shapes" else brightness,
        args=config,
        train_dataset=list(setting.prompts),
        peft_config=lora,
    )
    if turns is not None:
        trainer.add_callback(_OneTurnPerRollout(turns, batches // setting.accumulated_batches))
        _call_after(trainer.sampler, "rollout", turns.sampled)
    return trainer


class _OneTurnPerRollout(TrainerCallback):
    """A turn ends where the next begins, so it holds everything: data, logs, callbacks."""

    def __init__(self, turns: Turns, updates: int):
        self.turns, self.updates = turns, updates

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step % self.updates == 0:
            self.turns.begin()

    def on_train_end(self, args, state, control, **kwargs):
        self.turns.end()


def _call_after(owner: Any, name: str, then: Callable[[], None]) -> None:
    function = getattr(owner, name)

    @functools.wraps(function)
    def called(*args, **kwargs):
        result = function(*args, **kwargs)
        then()
        return result

    setattr(owner, name, called)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--setting", type=json.loads, required=True)
    setting = Setting(**parser.parse_args().setting)
    torch.set_num_threads(setting.threads)
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(setting, folder, Turns(setting.device)).train()


if __name__ == "__main__":
    main()
