# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Defaults, arithmetic, and bad input: one sentence that names field, value and cure, before any weights are read."""

import json
import re
from dataclasses import fields

import pytest
import torch
from bad_inputs import CONFIGURATIONS
from datasets import Dataset
from peft import LoraConfig

from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
from trl_progrpo.data import check_datasets
from trl_progrpo.inherited import use_one_device


DATASET = Dataset.from_dict({"prompt": ["a red circle", "two blue squares", "a green triangle"]})


def reward(prompts, images, **columns):
    return [0.0] * len(prompts)


def test_of_several_gpus_one_process_takes_one(tmp_path):
    """The base class would split every batch over all that it sees."""
    args = ProGRPOConfig(output_dir=str(tmp_path), use_cpu=True)
    args._n_gpu = 2
    with pytest.warns(UserWarning, match="2 GPUs are visible, .* `--num_processes 2`"):
        use_one_device(args)
    assert args.n_gpu == 1
    assert args.train_batch_size == args.per_device_train_batch_size


@pytest.mark.parametrize(
    ("change", "needs"),
    [({"negative_prompt": "blurry"}, "guidance_scale"), ({"sde_window_start": 3}, "sde_window"),
     ({"sde_window": "fixed", "sde_window_interval": 3}, "sliding"),
     ({"ema_update_interval": 3}, "ema_decay"), ({"eval_use_ema": False}, "ema_decay"),
     ({"preview_downscale": 2}, "prune_steps"), ({"pruning_rule": "top_k"}, "num_expansions"),
     ({"prune_schedule_interval": 3}, "prune_schedule"), ({"prune_schedule_groups": 3}, "prune_schedule"),
     ({"preview_decoder": "taesd"}, "prune_steps"), ({"preview_batch_size": 2}, "prune_steps")],
)  # fmt: skip
def test_what_does_nothing_is_told(tmp_path, recwarn, change, needs):
    ProGRPOConfig(output_dir=str(tmp_path), use_cpu=True)
    assert not recwarn
    with pytest.warns(UserWarning, match=rf"`{list(change)[-1]}` is .*, which does nothing without .*{needs}"):
        ProGRPOConfig(output_dir=str(tmp_path), use_cpu=True, **change)


def test_gradient_checkpointing_is_no_deprecated_name(tmp_path, recwarn):
    assert ProGRPOConfig(output_dir=str(tmp_path), use_cpu=True, gradient_checkpointing=True).gradient_checkpointing
    assert not recwarn


def test_of_several_evaluation_sets_the_metric_names_one(no_weights, tmp_path):
    sets = {"birds": DATASET, "cats": DATASET}
    kwargs = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps", "use_cpu": True}
    args = ProGRPOConfig(output_dir=str(tmp_path), **kwargs)
    with pytest.raises(ValueError, match=r"`metric_for_best_model` is 'reward', .*as in birds_reward"):
        ProGRPOTrainer(model="shapes", reward_funcs=reward, args=args, train_dataset=DATASET, eval_dataset=sets)
    for name in ("cats_reward", "eval_birds_reward"):
        check_datasets(ProGRPOConfig(output_dir=str(tmp_path), metric_for_best_model=name, **kwargs), None, sets)


@pytest.fixture
def no_weights(monkeypatch):
    """Fails the test as soon as weights would be read."""
    import diffusers
    import safetensors.torch

    for name in ("DiffusionPipeline", "StableDiffusion3Pipeline", "SD3Transformer2DModel", "AutoencoderTiny"):
        monkeypatch.setattr(
            getattr(diffusers, name), "from_pretrained", lambda *args, **kwargs: pytest.fail("weights were read")
        )
    monkeypatch.setattr(safetensors.torch, "load_file", lambda *args, **kwargs: pytest.fail("weights were read"))


def assert_one_good_sentence(error, *expected):
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith((".", '".'))
    for text in expected:
        assert text in message
    # What is wrong, then what to do.
    cures = (
        "use|give|choose|check|start|end at|at least|must be|must fit|return|rename|did you mean|to add|its columns"
    )
    assert re.search(rf"[;:,] .*({cures})", message)


class TestDefaults:
    def test_the_default_configuration_can_be_built(self, tmp_path):
        config = ProGRPOConfig(output_dir=str(tmp_path))
        assert (config.num_generations, config.num_expansions, config.geometry(1).num_prompts) == (12, 12, 1)

    def test_the_papers_schedule_can_be_built(self, tmp_path):
        config = ProGRPOConfig(output_dir=str(tmp_path), num_expansions=48, prune_steps=[5, 7], prune_sizes=[24, 12])
        assert config.num_inference_steps == 10
        assert config.micro_steps_per_rollout == 1

    def test_arithmetic_of_a_rollout(self, make_config):
        config = make_config(
            per_device_train_batch_size=6, gradient_accumulation_steps=2, steps_per_generation=4, num_generations=4,
            num_iterations=3,
        )  # fmt: skip
        assert config.geometry(1).num_prompts == 6
        assert config.micro_steps_per_rollout == 12
        assert config.rollout_batch_size == 6
        assert make_config(rollout_batch_size=None).rollout_batch_size == 4

    def test_it_can_be_written_down_and_read_back(self, make_config):
        config = make_config(model_init_kwargs={"variant": "fp16"})
        written = json.loads(config.to_json_string())
        names = ("num_generations", "num_expansions", "prune_steps", "prune_sizes", "noise_level", "epsilon")
        again = make_config(**{name: written[name] for name in names})
        assert all(getattr(again, name) == getattr(config, name) for name in names)
        assert make_config(model_init_kwargs='{"variant": "fp16"}').model_init_kwargs == {"variant": "fp16"}

    def test_every_own_field_has_a_help_text_that_argparse_can_print(self):
        from trl_progrpo._trl import BaseConfig

        inherited = {f.name for f in fields(BaseConfig)}
        own = [f for f in fields(ProGRPOConfig) if f.name not in inherited]
        assert len(own) > 25
        for f in own:
            assert f.metadata.get("help", "").strip(), f.name
            assert f.metadata["help"] % {}, f.name
            assert re.search(rf"\b{f.name}\b", ProGRPOConfig.__doc__), f.name

    def test_half_precision_is_off_without_an_accelerator_that_has_it(self, tmp_path):
        assert ProGRPOConfig(output_dir=str(tmp_path)).bf16 == (
            torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        )


@pytest.mark.parametrize(("name", "text"), [("epsilon", "6e-3"), ("learning_rate", "1e-4"), ("num_expansions", "48")])
def test_a_number_given_as_text_is_refused(make_config, name, text):
    """As YAML gives `6e-3` to who reads it without the command line, which knows the types."""
    with pytest.raises(ValueError, match=rf"^`{name}` is the text '{text}'; give a number"):
        make_config(**{name: text})


@pytest.mark.parametrize(
    ("name", "value"),
    [("prune_steps", "57"), ("prune_sizes", {4: 1}), ("reward_weights", "12"), ("reward_weights", {1: 2}),
     ("preview_reward_weights", [True]), ("prune_steps", 5), ("reward_weights", ["1"])],
)  # fmt: skip
def test_what_is_no_list_of_numbers_is_not_read_letter_by_letter(make_config, name, value):
    with pytest.raises(ValueError, match=rf"^`{name}` is {re.escape(repr(value))}; give a list such as \["):
        make_config(**{name: value})


@pytest.mark.parametrize("name", ["seed", "learning_rate", "num_generations", "max_steps"])
def test_true_is_no_number(make_config, name):
    with pytest.raises(ValueError, match=f"^`{name}` is True; give a number"):
        make_config(**{name: True})


@pytest.mark.parametrize(
    "kwargs",
    [
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "2"}},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": "1e-5"}},
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": True}},
    ],
)
def test_keywords_of_the_schedule_that_are_no_numbers(make_config, kwargs):
    with pytest.raises(ValueError, match=r"^`lr_scheduler_kwargs` holds '.*; give a number, without quotes"):
        make_config(**kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 10}},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": '{"min_lr": 1e-5}'},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2}},
        {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"},
        # The defaults of the optimiser, so that nothing changes by giving them.
        {"optim": "rmsprop", "optim_args": "alpha=0.99,momentum=0"},
        {"model_init_kwargs": '{"revision": "007"}'},
        {"accelerator_config": '{"split_batches": "false"}'},
    ],
)
def test_keywords_that_work_are_kept(make_config, kwargs):
    config = make_config(**kwargs)
    if "model_init_kwargs" in kwargs:
        assert config.model_init_kwargs == {"revision": "007"}
    if "optim_args" in kwargs:
        assert config.optim_args == kwargs["optim_args"]


@pytest.mark.parametrize(
    ("fraction", "trained"), [(1.0, range(6)), (0.6, range(4)), (0.5, range(3)), (0.01, range(1)), (1 / 3, range(2))]
)
def test_a_share_of_the_noisy_steps_is_trained(make_config, fraction, trained):
    config = make_config(
        num_inference_steps=10, sde_window="fixed", sde_window_size=6, train_timestep_fraction=fraction
    )
    assert config.noise_steps(range(9)) == tuple(range(6))
    assert config.train_steps(range(9)) == tuple(trained)


@pytest.mark.parametrize(
    ("kwargs", "expected"), CONFIGURATIONS, ids=lambda value: ",".join(value) if isinstance(value, dict) else ""
)
def test_a_bad_value_is_refused(make_config, kwargs, expected):
    with pytest.raises(ValueError) as error:
        make_config(**kwargs)
    assert_one_good_sentence(error, *expected)


def test_an_output_folder_that_cannot_be_written(make_config, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError) as error:
        make_config(output_dir=str(tmp_path / "file" / "out"))
    assert_one_good_sentence(error, "`output_dir`", str(tmp_path / "file" / "out"), "cannot be written")


class TestBeforeAnyWeightsAreRead:
    @pytest.mark.parametrize(
        ("kwargs", "expected"),
        [
            ({"train_dataset": Dataset.from_dict({"caption": ["a"]})}, ("`train_dataset`", "'prompt'", "caption")),
            ({"train_dataset": Dataset.from_dict({"prompt": []})}, ("`train_dataset` is empty",)),
            ({"train_dataset": Dataset.from_dict({"prompt": [1, 2, 3]})}, ("`train_dataset` row 0 has 1",)),
            ({"train_dataset": DATASET.select([0])}, ("`train_dataset` has 1 prompts", "one rollout takes 2")),
            ({"eval_dataset": Dataset.from_dict({"prompt": [None]})}, ("`eval_dataset` row 0 has None",)),
            ({"eval_dataset": {"hard": Dataset.from_dict({"x": ["a"]})}}, ("`eval_dataset['hard']`", "'prompt'")),
            ({"reward_funcs": "shapess"}, ("unknown reward function 'shapess'", "'shapes'")),
            ({"reward_funcs": []}, ("`reward_funcs` is empty",)),
            ({"eval_reward_funcs": "nowhere.to.be.found"}, ("unknown reward function 'nowhere.to.be.found'",)),
            ({"reward_weights": [1.0, 2.0]}, ("`reward_weights` has 2 entries for 1 reward functions",)),
            ({"policy": "ddim"}, ("`policy` is 'ddim'", "StableDiffusion3Pipeline", "flow_sde")),
            ({"peft_config": LoraConfig(lora_dropout=0.1)}, ("`lora_dropout` is 0.1",)),
        ],
        ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
    )
    def test_what_does_not_fit(self, no_weights, make_config, pipeline_path, kwargs, expected):
        config = {name: kwargs.pop(name) for name in ("policy", "reward_weights") if name in kwargs}
        defaults = {"model": pipeline_path, "reward_funcs": reward, "train_dataset": DATASET}
        with pytest.raises(ValueError) as error:
            ProGRPOTrainer(**{**defaults, **kwargs}, args=make_config(**config))
        assert_one_good_sentence(error, *expected)

    def make(self, model, make_config):
        with pytest.raises(ValueError) as error:
            ProGRPOTrainer(model=model, reward_funcs=reward, args=make_config(), train_dataset=DATASET)
        return error

    def test_a_folder_that_is_no_pipeline(self, no_weights, make_config, tmp_path):
        folder = tmp_path / "empty"
        folder.mkdir()
        assert_one_good_sentence(self.make(str(folder), make_config), "`model`", str(folder), "model_index.json")

    def test_a_pipeline_class_that_no_family_serves(self, no_weights, make_config, tmp_path):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "MarigoldDepthPipeline"}))
        error = self.make(str(tmp_path), make_config)
        assert_one_good_sentence(error, "`model`", "MarigoldDepthPipeline", "StableDiffusion3Pipeline")

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
    def test_an_index_that_cannot_be_read(self, no_weights, make_config, tmp_path, content):
        (tmp_path / "model_index.json").write_text(content)
        assert_one_good_sentence(self.make(str(tmp_path), make_config), "`model`", str(tmp_path))

    @pytest.mark.parametrize("model", ["no-such-owner/no-such-model", "no/such/folder", "shape"])
    def test_a_name_that_is_nowhere(self, no_weights, make_config, model):
        assert_one_good_sentence(self.make(model, make_config), "`model`", repr(model))


def test_image_sizes_must_fit(make_config, make_pipeline):
    with pytest.raises(ValueError) as error:
        ProGRPOTrainer(model=make_pipeline(), reward_funcs=reward, args=make_config(height=9), train_dataset=DATASET)
    assert_one_good_sentence(error, "`height` is 9", "multiples of 4", "use 8")


def test_training_without_a_dataset(make_config, make_pipeline):
    trainer = ProGRPOTrainer(model=make_pipeline(), reward_funcs=reward, args=make_config())
    with pytest.raises(ValueError) as error:
        trainer.train()
    assert_one_good_sentence(error, "`train_dataset` is None")
    with pytest.raises(ValueError) as error:
        trainer.evaluate()
    assert_one_good_sentence(error, "`eval_dataset` is None")


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        ([0.5], "1 values for 12 images"),
        ([float("nan")] * 12, "nan for image 0"),
        (["good"] * 12, "'good'"),
        ({}, "dict"),
    ],
)
def test_a_bad_reward_stops_the_run_with_its_name(make_trainer, returned, named):
    def mine(prompts, images, **columns):
        return returned

    with pytest.raises(ValueError) as error:
        make_trainer(reward_funcs=mine).train()
    assert_one_good_sentence(error, "reward function `mine`", named)
