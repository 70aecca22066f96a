# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""A random tiny Stable Diffusion 3 pipeline of stock classes, and trainers around it."""

import copy
import gc
import os


# Before huggingface_hub is imported: no test may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch


torch.set_num_threads(1)

PROMPTS = ["a red circle", "two blue squares", "a green triangle", "a yellow square", "three white circles"]


@pytest.fixture(scope="session")
def _components():
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    from trl_progrpo.tiny import model_path

    # Every `train()` collects garbage; it need not look through all of the imported libraries each time.
    gc.collect()
    gc.freeze()

    tokenizer = CLIPTokenizer.from_pretrained(model_path() / "tokenizer")

    def text_encoder():
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            projection_dim=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return CLIPTextModelWithProjection(config)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            "transformer": SD3Transformer2DModel(
                sample_size=4,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=32,
                caption_projection_dim=16,
                pooled_projection_dim=32,
                pos_embed_max_size=4,
            ),
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.5),
            "vae": AutoencoderKL(
                block_out_channels=(8, 8),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                layers_per_block=1,
                norm_num_groups=2,
                latent_channels=4,
                sample_size=8,
                scaling_factor=1.5,
                shift_factor=0.1,
                use_quant_conv=False,
                use_post_quant_conv=False,
                mid_block_add_attention=False,
            ),
            "text_encoder": text_encoder(),
            "text_encoder_2": text_encoder(),
            "text_encoder_3": None,
            "tokenizer": tokenizer,
            "tokenizer_2": tokenizer,
            "tokenizer_3": None,
        }


@pytest.fixture(scope="session")
def make_pipeline(_components):
    """A function that returns a fresh pipeline: always the same random weights, 8x8 images, latents 4x4x4."""
    from diffusers import StableDiffusion3Pipeline

    def make():
        pipeline = StableDiffusion3Pipeline(**copy.deepcopy(_components))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture(scope="session")
def pipeline_path(make_pipeline, tmp_path_factory):
    """The folder of the same pipeline."""
    path = tmp_path_factory.mktemp("pipeline") / "tiny"
    make_pipeline().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def make_family(make_pipeline):
    from trl_progrpo.families import StableDiffusion3Family

    def make(pipeline=None, **kwargs):
        return StableDiffusion3Family(pipeline or make_pipeline(), **kwargs)

    return make


@pytest.fixture(scope="session")
def redness():
    """A toy reward: how much more red than blue a picture is."""

    def redness(prompts, images, **columns):
        return (images[:, 0] - images[:, 2]).mean((1, 2)).tolist()

    redness.image_type = "pt"
    return redness


@pytest.fixture
def make_config(tmp_path):
    """A function that returns a small configuration: 2 prompts per rollout, 6 -> 4 at step 1 of 4 unless told otherwise."""
    from trl_progrpo import ProGRPOConfig

    def make(**kwargs):
        defaults = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "num_generations": 4,
            "num_expansions": 6,
            "prune_steps": [1],
            "prune_sizes": [4],
            "num_inference_steps": 4,
            "rollout_batch_size": 6,
            "max_steps": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 3,
        }
        return ProGRPOConfig(**{**defaults, **kwargs})

    return make


@pytest.fixture
def make_trainer(make_pipeline, make_config, redness):
    """A function that returns a trainer of the random pipeline; keywords of the config, of the trainer, or `prompts`."""
    from datasets import Dataset
    from peft import LoraConfig

    from trl_progrpo import ProGRPOTrainer

    def make(args=None, **kwargs):
        prompts = kwargs.pop("prompts", PROMPTS)
        names = ("model", "reward_funcs", "train_dataset", "eval_dataset", "callbacks", "peft_config", "optimizers")
        names += ("eval_reward_funcs", "preview_reward_funcs")
        given = {name: kwargs.pop(name) for name in names if name in kwargs}
        defaults = {
            "reward_funcs": redness,
            "train_dataset": Dataset.from_dict({"prompt": prompts}),
            "peft_config": LoraConfig(r=4, lora_alpha=8, init_lora_weights="gaussian"),
        }
        if "model" not in given:
            given["model"] = make_pipeline()
        return ProGRPOTrainer(args=args or make_config(**kwargs), **{**defaults, **given})

    return make


@pytest.fixture
def adapter_of():
    """A function that returns a copy of a trainer's trained weights."""

    def copy_of(trainer):
        named = trainer.family.denoiser.named_parameters()
        return {name: parameter.detach().clone() for name, parameter in named if parameter.requires_grad}

    return copy_of


@pytest.fixture(scope="session")
def replay():
    """A function that recomputes a rollout's log-probabilities `(B, S)` as an update would, in batches of its own."""

    @torch.no_grad()
    def replay(family, policy, rollout, batch_size=None):
        columns = []
        for s, step_index in enumerate(rollout.step_indices):
            parts = []
            for rows in torch.arange(len(rollout)).split(batch_size or len(rollout)):
                part = rollout.select(rows)
                timestep = part.schedule.timesteps[step_index]
                conditioning = part.conditioning.rows(part.prompt_index)
                output = family.predict(family.denoiser, part.latents[:, s], timestep, conditioning)
                transition = policy.step(output, part.latents[:, s], part.schedule, step_index)
                parts.append(transition.log_prob(part.latents[:, s + 1]))
            columns.append(torch.cat(parts))
        return torch.stack(columns, 1)

    return replay
