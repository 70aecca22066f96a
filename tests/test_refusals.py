# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What cannot work, refused when it is asked for and in words that help; and options as the docs promise them."""

import functools

import pytest
import torch
from families.pipelines_flux import tiny_flux

from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
from trl_progrpo.cli import train
from trl_progrpo.cli.main import main
from trl_progrpo.rewards import RewardRunner


SHAPES = ["--model_name_or_path", "shapes", "--dataset_name", "shapes", "--reward_funcs", "shapes"]
TRAIN = [
    "train",
    *SHAPES,
    "--num_generations",
    "2",
    "--per_device_train_batch_size",
    "4",
    "--max_steps",
    "1",
    "--use_cpu",
]


def config(tmp_path, **kwargs):
    return ProGRPOConfig(str(tmp_path), num_generations=4, per_device_train_batch_size=4, use_cpu=True, **kwargs)


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """Whoever loads weights fails."""

    def load(*args, **kwargs):
        raise AssertionError("weights are loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trl_progrpo.progrpo_trainer.load_pipeline", load)
    monkeypatch.setattr("trl_progrpo.families.load_pipeline", load)


class TestTexts:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"negative_prompt": ["ugly", "blurry"]}, r"`negative_prompt` is .*; give one text, such as 'ugly, blurry'"),
            ({"negative_prompt": 5}, r"`negative_prompt` is 5; give one text\."),
            ({"prompt_column": ["prompt"]}, r"`prompt_column` is \['prompt'\]; give one text, such as 'prompt'\."),
            ({"policy": ("ddim",)}, r"`policy` is \('ddim',\); give one text, such as 'ddim'\."),
            ({"pruning_rule": None}, r"`pruning_rule` is None; give one text\."),
        ],
    )  # fmt: skip
    def test_that_are_none(self, tmp_path, changes, said):
        # Which puts other types into the fields of the class.
        train._parser()
        with pytest.raises(ValueError, match=said):
            config(tmp_path, **changes)


class TestNegativePrompts:
    def test_before_weights_are_loaded(self, tmp_path, no_weights, capsys):
        tiny_flux().save_pretrained(tmp_path / "flux")
        argv = ["--model_name_or_path", "flux", "--height", "16", "--width", "16", "--negative_prompt", "ugly"]
        assert main([*TRAIN, *argv, "--guidance_scale", "3.0"]) == 2
        assert main([*TRAIN, *argv, "--guidance_scale", "3.0", "--dry_run"]) == 2
        assert main(["sample", *argv, "--prompts", "a red circle"]) == 2
        said = capsys.readouterr().err
        assert said.count("`negative_prompt` is 'ugly', but the guidance of FluxPipeline is distilled") == 3


class TestSizes:
    @pytest.mark.parametrize("flag", ["--height", "--width"])
    def test_before_weights_are_loaded(self, no_weights, capsys, flag):
        for command in (TRAIN, [*TRAIN, "--dry_run"], ["plan", *SHAPES, "--use_cpu", "--no_time"]):
            assert main([*command, flag, "64"]) == 2
        assert main(["sample", *SHAPES[:2], flag, "64"]) == 2
        said = capsys.readouterr().err
        assert (
            said.count(f"`{flag[2:]}` is 64, but the position table of this SD3Transformer2DModel ends at 32 pixels")
            == 4
        )


def of_images(images):
    return [0.5] * len(images)


def by_position(prompts, images, /, **columns):
    return [0.5] * len(images)


def of_arguments(*arguments):
    return [0.5]


class Scorer:
    def __call__(self, prompt, image):
        return [0.5]


class TestRewards:
    @pytest.mark.parametrize(
        ("function", "name"),
        [
            (of_images, "prompts"),
            (torch.no_grad()(of_images), "prompts"),
            (by_position, "prompts"),
            (of_arguments, "prompts"),
            (Scorer(), "prompts"),
            (torch.nn.Identity(), "prompts"),
            (lambda prompts, image: [], "images"),
            (functools.partial(lambda prompts, images: [], "a"), "prompts"),
        ],
    )
    def test_that_cannot_be_called(self, function, name):
        with pytest.raises(ValueError, match=f"does not take `{name}`; reward functions are called with the keywords"):
            RewardRunner(["shapes", function])

    @pytest.mark.parametrize(
        "function",
        [
            lambda prompts, images: [],
            lambda **kwargs: [],
            lambda *, prompts, images, preview=False: [],
            torch.inference_mode()(lambda images, prompts: []),
            functools.partial(lambda scale, prompts, images: [], 2.0),
            functools.wraps(of_images)(lambda *args, **kwargs: []),
            max,
        ],
    )
    def test_that_can_be_called(self, function):
        RewardRunner(function)

    def test_before_weights_are_loaded(self, no_weights, tmp_path, monkeypatch, capsys):
        (tmp_path / "own_refused.py").write_text("def f(images): return [0.5] * len(images)\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        for flag in ("--reward_funcs", "--preview_reward_funcs", "--eval_reward_funcs"):
            assert main([*TRAIN, flag, "own_refused:f", "--dry_run"]) == 2
            assert main([*TRAIN, flag, "own_refused:f"]) == 2
        assert main(["score", "--reward", "own_refused:f", *SHAPES[:2], "--prompts", "a red circle"]) == 2
        assert capsys.readouterr().err.count("reward function `f` does not take `prompts`") == 7


class TestTrackers:
    @pytest.mark.parametrize(
        "flags",
        [["wandb", "tensorboard"], ["wandb,tensorboard"], ["wandb,", "tensorboard"], ["wandb, tensorboard", "wandb"]],
    )
    def test_several(self, tmp_path, flags):
        expected = ["wandb", "tensorboard"]
        (_, _, args), _ = train.read_run(
            [*TRAIN[1:], "--report_to", *flags, "--output_dir", str(tmp_path)], train._parser
        )
        assert args.report_to == expected
        assert config(tmp_path, report_to=flags).report_to == expected
        assert config(tmp_path, report_to=",".join(flags)).report_to == expected
        for value in (flags, ", ".join(flags)):
            file = tmp_path / "run.yaml"
            file.write_text(f"report_to: {value}\n")
            (_, _, args), _ = train.read_run(
                [*TRAIN[1:], "--config", str(file), "--output_dir", str(tmp_path)], train._parser
            )
            assert args.report_to == expected

    @pytest.mark.parametrize("value", ["none", None, [], ["none"], "", "None"])
    def test_none(self, tmp_path, value):
        assert config(tmp_path, report_to=value).report_to == []

    def test_unknown(self, capsys, no_weights):
        assert main([*TRAIN, "--report_to", "tensorboard", "wandbb", "--dry_run"]) == 2
        assert "`report_to` is 'wandbb'; use none, or some of" in capsys.readouterr().err

    @pytest.mark.parametrize("value", ["true", "1", "YES"])
    def test_wandb_disabled(self, tmp_path, monkeypatch, value):
        monkeypatch.setenv("WANDB_DISABLED", value)
        with pytest.warns(UserWarning, match="`report_to` has wandb, but WANDB_DISABLED is set"):
            assert config(tmp_path, report_to=["wandb", "tensorboard"]).report_to == ["tensorboard"]
        with pytest.warns(UserWarning, match="WANDB_DISABLED"):
            assert config(tmp_path, report_to="wandb").report_to == []
        assert "wandb" not in config(tmp_path, report_to="all").report_to

    @pytest.mark.parametrize("value", ["false", "", "0"])
    def test_wandb_not_disabled(self, tmp_path, monkeypatch, value):
        monkeypatch.setenv("WANDB_DISABLED", value)
        assert config(tmp_path, report_to="wandb").report_to == ["wandb"]


def test_methods_for_other_models(tmp_path):
    args = config(tmp_path, num_inference_steps=2, max_steps=1, report_to="none")
    trainer = ProGRPOTrainer("shapes", "shapes", args, ["a red circle"])
    with pytest.raises(NotImplementedError, match="`hyperparameter_search` is not supported: a trainer has one model"):
        trainer.hyperparameter_search(backend="optuna", hp_space=lambda trial: {})
    with pytest.raises(NotImplementedError, match="`predict` is for models with logits"):
        trainer.predict(["a red circle"])


class TestInPython:
    """The trainer itself asks a model that it is given by name before its weights load."""

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"height": 1024}, r"`height` is 1024, but the position table .* use at most"),
            ({"width": 12}, r"`width` is 12, but .* multiples of"),
            ({"negative_prompt": "ugly", "guidance_scale": 3.0, "flux": True}, r"`negative_prompt` is 'ugly', but .* unset"),
            ({"guidance_scale": 2.0, "max_sequence_length": 10_000, "flux": True}, r"`max_sequence_length` is 10000"),
        ],
    )  # fmt: skip
    def test_before_weights_load(self, tmp_path, no_weights, options, said):
        options = dict(options)
        model = "shapes"
        if options.pop("flux", False):
            model = str(tmp_path / "flux")
            tiny_flux().save_pretrained(model)
        args = config(tmp_path, **options)
        with pytest.raises(ValueError, match=said):
            ProGRPOTrainer(model, "jpeg_compressibility", args, ["a red circle"])
