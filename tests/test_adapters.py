# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What a run leaves behind, read by stock diffusers."""

import json

import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file

from trl_progrpo.adapters import (
    ADAPTER_FILE,
    RAW_ADAPTER_FILE,
    adapters_disabled,
    add_adapter,
    base_of,
    default_lora_config,
    load_adapter,
    save_adapter,
    trainable_parameters,
)
from trl_progrpo.progrpo_trainer import EVAL_ROLLOUT
from trl_progrpo.seeds import INITIAL_NOISE, row_noise


def read(base, latents, kind, folder=None, **kwargs):
    """The images that stock diffusers makes of a folder; a process that lacks this package does it in `test_hub.py`."""
    from diffusers import DiffusionPipeline, SD3Transformer2DModel

    pipeline = DiffusionPipeline.from_pretrained(base, text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    if kind == "lora":
        pipeline.load_lora_weights(folder, **kwargs)
        [config] = pipeline.transformer.peft_config.values()
        assert (config.r, config.lora_alpha) == (4, 4), "r is lost, or the scale is not folded in"
    elif kind == "full":
        pipeline.transformer = SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer")
    return pipeline(
        PROMPTS, num_inference_steps=4, guidance_scale=1.0, height=8, width=8, max_sequence_length=0,
        latents=latents, output_type="pt",
    ).images  # fmt: skip


PROMPTS = ["a red circle", "two blue squares", "a green triangle"]


@pytest.fixture(scope="module")
def results(tmp_path_factory, make_pipeline, pipeline_path, redness):
    """Images of several runs, by their trainer and by stock diffusers."""
    from datasets import Dataset

    from trl_progrpo import ProGRPOConfig, ProGRPOTrainer

    root = tmp_path_factory.mktemp("runs")
    ours, folders = {}, {"base": {"kind": "base"}}

    def run(name, kind, **kwargs):
        peft = {"peft_config": LoraConfig(r=4, lora_alpha=8)} if kind == "lora" else {"peft_config": None}
        trainer = ProGRPOTrainer(
            model=make_pipeline(),
            reward_funcs=redness,
            args=ProGRPOConfig(
                output_dir=str(root / name),
                per_device_train_batch_size=4,
                num_generations=4,
                num_inference_steps=4,
                max_steps=2,
                learning_rate=0.05 if kind == "lora" else 5e-3,
                save_strategy="steps",
                save_steps=1,
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
                **kwargs,
            ),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
            **peft,
        )
        trainer.train()
        trainer.save_model()
        ours[name] = trainer.generate(PROMPTS)
        folders[name] = {"kind": kind, "folder": str(root / name)}
        return trainer

    trainer = run("lora", "lora")
    ours["base"] = trainer.generate(PROMPTS, adapter=False)
    folders["checkpoint"] = {"kind": "lora", "folder": str(root / "lora" / "checkpoint-2")}
    ours["checkpoint"] = ours["lora"]
    family = trainer.family
    latents = row_noise(family.latent_shape, trainer.args.seed, EVAL_ROLLOUT, range(3), [0] * 3, INITIAL_NOISE)
    averaged = run("average", "lora", ema_decay=0.5)
    folders["raw"] = {
        "kind": "lora",
        "folder": str(root / "average"),
        "weight_name": RAW_ADAPTER_FILE,
    }
    averaged.ema = None
    ours["raw"] = averaged.generate(PROMPTS)
    run("full", "full")

    theirs = {name: read(pipeline_path, latents, **how) for name, how in folders.items()}
    return root, ours, theirs


@pytest.mark.parametrize("name", ["base", "lora", "checkpoint", "average", "raw", "full"])
def test_stock_diffusers_makes_the_trainers_images(results, name):
    _, ours, theirs = results
    assert (ours[name] - theirs[name]).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["lora", "average", "raw", "full"])
def test_they_are_not_the_images_of_the_base_model(results, name):
    _, _, theirs = results
    assert (theirs[name] - theirs["base"]).abs().max() > 1e-3


def test_the_average_and_the_raw_weights_differ(results):
    root, _, theirs = results
    assert (theirs["average"] - theirs["raw"]).abs().max() > 1e-4
    average, raw = (load_file(root / "average" / name) for name in (ADAPTER_FILE, RAW_ADAPTER_FILE))
    assert average.keys() == raw.keys()
    assert any(not torch.equal(average[name], raw[name]) for name in raw)


def test_the_file_has_diffusers_layout_and_carries_its_config(results):
    root, _, _ = results
    with safe_open(root / "lora" / ADAPTER_FILE, "pt") as file:
        names, metadata = list(file.keys()), file.metadata()
    assert all(name.startswith("transformer.") and ".lora_" in name for name in names)
    config = json.loads(metadata["lora_adapter_metadata"])
    assert (config["transformer.r"], config["transformer.lora_alpha"]) == (4, 4)
    assert json.loads(metadata["trl_progrpo.lora_config"])["lora_alpha"] == 8
    assert config["transformer.base_model_name_or_path"] is None, "made in memory"


def test_nothing_else_is_written_into_a_run(results):
    root, _, _ = results
    files = {path.name for path in (root / "lora").iterdir() if path.is_file()}
    assert files == {ADAPTER_FILE, "README.md", "training_args.json"}
    assert not list((root / "lora").rglob("*.bin"))


class TestRoundTrip:
    def test_bit_for_bit(self, make_family, tmp_path):
        one, other = make_family(), make_family()
        for family in (one, other):
            add_adapter(family, LoraConfig(r=3, lora_alpha=7, init_lora_weights=False))
        before = [parameter.detach().clone() for parameter in trainable_parameters(other.denoiser)]
        save_adapter(one, str(tmp_path))
        load_adapter(other, str(tmp_path / ADAPTER_FILE))
        pairs = list(zip(trainable_parameters(one.denoiser), trainable_parameters(other.denoiser), strict=True))
        assert all(torch.equal(a, b) for a, b in pairs)
        assert any(not torch.equal(a, b) for a, b in zip(before, trainable_parameters(other.denoiser)))

    def test_the_same_seed_is_the_same_adapter(self, make_family, tmp_path):
        contents, metadata = [], []
        for name in ("a", "b"):
            torch.manual_seed(0)
            family = make_family()
            add_adapter(family, default_lora_config(family))
            save_adapter(family, str(tmp_path / name))
            contents.append(load_file(tmp_path / name / ADAPTER_FILE))
            with safe_open(tmp_path / name / ADAPTER_FILE, "pt") as file:
                metadata.append(file.metadata())
        assert metadata[0] == metadata[1]
        assert all(torch.equal(tensor, contents[1][name]) for name, tensor in contents[0].items())

    @pytest.mark.parametrize("base", ["user/base", None])
    def test_it_knows_its_base(self, base, make_family, tmp_path):
        family = make_family()
        add_adapter(family, default_lora_config(family))
        save_adapter(family, str(tmp_path), base_model=base)
        *_, metadata = type(family.pipeline).lora_state_dict(str(tmp_path), return_lora_metadata=True)
        assert base_of(metadata, family.denoiser_name) == base
        assert base_of(None, family.denoiser_name) is None

    def test_a_missing_file(self, make_family, tmp_path):
        with pytest.raises(ValueError, match=r"there is no adapter at '.*'; give a folder"):
            load_adapter(make_family(), str(tmp_path / ADAPTER_FILE))


class TestAddAdapter:
    def test_the_default_is_flow_grpos(self, make_family):
        family = make_family()
        config = default_lora_config(family)
        assert (config.r, config.lora_alpha, config.lora_dropout) == (32, 64, 0.0)
        add_adapter(family, config)
        adapted = {
            name.split(".lora_")[0].split(".", 2)[2]
            for name, p in family.denoiser.named_parameters()
            if "lora_" in name
        }
        assert adapted == set(family.lora_target_modules)

    def test_it_starts_as_no_change(self, make_family):
        family = make_family()
        conditioning = family.encode_prompts(PROMPTS)
        latents = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))

        def predict():
            with torch.no_grad():
                return family.predict(family.denoiser, latents, torch.tensor(500.0), conditioning)

        before = predict()
        add_adapter(family, LoraConfig(r=2))
        assert torch.equal(predict(), before)
        with torch.no_grad():
            for parameter in trainable_parameters(family.denoiser):
                parameter.add_(0.3)
        assert not torch.equal(predict(), before)
        with adapters_disabled(family.denoiser):
            assert torch.equal(predict(), before)
        assert not torch.equal(predict(), before)

    def test_the_adapter_is_on_again_after_an_error(self, make_family):
        family = make_family()
        add_adapter(family, LoraConfig(r=2))
        with pytest.raises(RuntimeError, match="broken"), adapters_disabled(family.denoiser):
            raise RuntimeError("broken")
        assert all(parameter.requires_grad for parameter in trainable_parameters(family.denoiser))
        assert len(trainable_parameters(family.denoiser)) > 0

    def test_it_is_fp32_on_a_half_precision_model(self, make_pipeline, make_family):
        pipeline = make_pipeline()
        pipeline.transformer.to(torch.bfloat16)
        family = make_family(pipeline)
        add_adapter(family, LoraConfig(r=2))
        assert {p.dtype for p in trainable_parameters(family.denoiser)} == {torch.float32}
        assert family.denoiser.proj_out.weight.dtype == torch.bfloat16
        assert family.dtype == torch.bfloat16

    def test_dropout_is_refused(self, make_family):
        with pytest.raises(ValueError, match=r"`lora_dropout` is 0.05; use 0"):
            add_adapter(make_family(), LoraConfig(r=2, lora_dropout=0.05))

    @pytest.mark.parametrize(
        ("change", "cure"),
        [({"bias": "all"}, "use 'none'"), ({"modules_to_save": ["proj_out"]}, "use None"),
         ({"init_lora_weights": "pissa"}, "use True or False or 'gaussian' or 'orthogonal'"),
         ({"init_lora_weights": "pissa_niter_4"}, "use True")],
    )  # fmt: skip
    def test_what_changes_the_model_itself_is_refused(self, make_family, change, cure):
        [name] = change
        with pytest.raises(ValueError, match=rf"`{name}` of the LoRA config is .*{cure}"):
            add_adapter(make_family(), LoraConfig(r=2, **change))
