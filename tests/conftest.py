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
def hub_world(tmp_path_factory, pipeline_path):
    """Runs that have pushed to a Hub on loopback, and fresh processes that have read from it; see `hub_world.py`."""
    from hub_world import make_world

    with make_world(tmp_path_factory.mktemp("hub"), pipeline_path) as world:
        yield world


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


# A documented run, made small: fewer trajectories, steps and pixels, the same schedule of checkpoints.
SMALL = {"per_device_train_batch_size": 2, "num_generations": 2, "steps_per_generation": 1, "max_steps": 1}
SMALL_EVALUATION = {"eval_num_inference_steps": 2, "per_device_eval_batch_size": 64}
SMALL_PRUNING = {"num_expansions": 4, "rollout_batch_size": 4}
QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
MOST_STEPS = 10


def small_config(kwargs):
    """The arguments of a documented configuration, made small."""
    small = {**kwargs, **SMALL, **SMALL_EVALUATION, **QUIET, "gradient_accumulation_steps": 1}
    if kwargs.get("prune_steps"):
        small.update(SMALL_PRUNING, prune_sizes=[3, 2][-len(kwargs["prune_steps"]) :])
    steps = kwargs.get("num_inference_steps", MOST_STEPS)
    if steps > MOST_STEPS:
        small["num_inference_steps"] = MOST_STEPS
        small["prune_steps"] = [step * MOST_STEPS // steps for step in kwargs.get("prune_steps", [])] or None
    if (kwargs.get("height") or 0) > 64:
        from tiny_hub import SIZE

        small.update(height=SIZE, width=SIZE)
    if kwargs.get("preview_decoder") != "shapes":
        small["preview_decoder"] = None
    return small


@pytest.fixture
def restored_registries(monkeypatch):
    from trl_progrpo.families import FAMILIES
    from trl_progrpo.policies import POLICIES
    from trl_progrpo.pruning import PRUNING_RULES
    from trl_progrpo.rewards import REWARDS

    for registry in (FAMILIES, POLICIES, PRUNING_RULES, REWARDS):
        monkeypatch.setattr(registry, "_objects", dict(registry._objects))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A function: the folder of the tiny pipeline that stands for a repository of the Hub; other names as they are."""
    from tiny_hub import MAKERS, save_tiny

    folder = tmp_path_factory.mktemp("hub")
    return lambda name: save_tiny(name, folder) if name in MAKERS else name


@pytest.fixture
def small_runs(monkeypatch, tmp_path, restored_registries, tiny_model):
    """What documentation and examples run is small, models of the Hub are tiny, relative paths lead to a temporary folder."""
    import sys
    from types import ModuleType

    import trl_progrpo

    config, trainer = trl_progrpo.ProGRPOConfig, trl_progrpo.ProGRPOTrainer

    def small_trainer(model, eval_dataset=None, **kwargs):
        if eval_dataset is not None and len(eval_dataset) > 4:
            eval_dataset = eval_dataset.select(range(4))
        return trainer(model=tiny_model(model), eval_dataset=eval_dataset, **kwargs)

    monkeypatch.setattr(trl_progrpo, "ProGRPOConfig", lambda **kwargs: config(**small_config(kwargs)), raising=False)
    monkeypatch.setattr(trl_progrpo, "ProGRPOTrainer", small_trainer, raising=False)
    # The reader's own package and prompts.
    package, rewards = ModuleType("my_package"), ModuleType("my_package.rewards")
    rewards.my_reward = lambda prompts, images, **columns: [
        float(image.convert("L").getpixel((0, 0))) for image in images
    ]
    monkeypatch.setitem(sys.modules, "my_package", package)
    monkeypatch.setitem(sys.modules, "my_package.rewards", rewards)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    monkeypatch.chdir(tmp_path)
