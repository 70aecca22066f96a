# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""A run that was interrupted and resumed equals one that was not, bit for bit."""

import os
from pathlib import Path

import pytest
import torch


def optimiser_state(trainer):
    return [value for state in trainer.optimizer.state_dict()["state"].values() for value in state.values()]


def logged_after(trainer, step):
    """The log without what is measured in seconds, and without the summary of the run."""
    entries = [e for e in trainer.state.log_history if e["step"] > step and "train_runtime" not in e]
    return [{key: value for key, value in entry.items() if not key.startswith("time/")} for entry in entries]


PROMPTS = ["a red circle", "two blue squares", "a green triangle", "a yellow square", "three white circles"]

SCENES = {
    # 5 prompts, 2 per rollout: 3 rollouts an epoch.
    "at the end of a rollout": (2, 3, {}),
    "in the second epoch": (4, 5, {}),
    "between two epochs": (3, 4, {}),
    "between two updates of a rollout": (1, 4, {"steps_per_generation": 4}),
    "between two updates in the second epoch": (3, 4, {"steps_per_generation": 4, "num_prompts": 4}),
    "between two passes over a rollout": (3, 5, {"num_iterations": 2}),
    "between two updates of the second pass": (3, 5, {"num_iterations": 2, "steps_per_generation": 4}),
    "with an average": (2, 4, {"ema_decay": 0.5, "steps_per_generation": 4, "ema_update_interval": 1}),
    "with a rare average": (3, 6, {"ema_decay": 0.5, "ema_update_interval": 2}),
    "with a schedule and a KL": (2, 4, {"lr_scheduler_type": "linear", "warmup_steps": 2, "beta": 0.1}),
    "with a random window": (3, 4, {"sde_window": "random", "sde_window_size": 2, "steps_per_generation": 4}),
    "with a sliding window": (3, 4, {"sde_window": "sliding", "sde_window_size": 1, "num_iterations": 2}),
    "with normalised ratios": (1, 2, {"loss_type": "grpo_guard", "steps_per_generation": 4, "epsilon": 1e-6}),
    "with all weights": (1, 3, {"peft_config": None, "steps_per_generation": 4, "learning_rate": 1e-4}),
    "with all weights and an average": (2, 3, {"peft_config": None, "ema_decay": 0.5, "learning_rate": 1e-4}),
}


SLOW = {
    "with a rare average",
    "with a schedule and a KL",
    "with all weights and an average",
    "between two updates of the second pass",
    "with normalised ratios",
    "with a sliding window",
}


@pytest.mark.parametrize(
    "scene", [pytest.param(scene, marks=[pytest.mark.slow] if scene in SLOW else []) for scene in SCENES]
)
def test_resumed_equals_uninterrupted(make_trainer, adapter_of, tmp_path, scene):
    stop, steps, kwargs = SCENES[scene]
    kwargs = dict(kwargs)
    if "num_prompts" in kwargs:
        kwargs["prompts"] = PROMPTS[: kwargs.pop("num_prompts")]
    kwargs = {"learning_rate": 1e-2, "max_steps": steps, "save_strategy": "steps", "save_steps": stop, **kwargs}
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **kwargs)
    whole.train()
    torch.manual_seed(123)
    resumed = make_trainer(output_dir=str(tmp_path / "resumed"), **{**kwargs, "save_strategy": "no"})
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))

    assert resumed.state.global_step == steps
    expected, got = adapter_of(whole), adapter_of(resumed)
    assert expected.keys() == got.keys()
    for name in expected:
        assert torch.equal(expected[name], got[name]), name
    for one, other in zip(optimiser_state(whole), optimiser_state(resumed), strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    assert logged_after(whole, stop) == logged_after(resumed, stop)
    assert len(logged_after(whole, stop)) == steps - stop
    assert torch.equal(whole.last_rollout.latents, resumed.last_rollout.latents)
    if "ema_decay" in kwargs:
        assert whole.ema.optimization_step == resumed.ema.optimization_step
        for one, other in zip(whole.ema.shadow_params, resumed.ema.shadow_params, strict=True):
            assert torch.equal(one, other)


def test_the_interrupted_run_had_something_to_lose(make_trainer, adapter_of, tmp_path):
    """The scenes above could not pass if resuming loaded nothing."""
    kwargs = {"learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(output_dir=str(tmp_path / "whole"), max_steps=2, **kwargs)
    start = adapter_of(trainer)
    trainer.train()
    assert any(not torch.equal(start[name], weight) for name, weight in adapter_of(trainer).items())
    assert (tmp_path / "whole" / "checkpoint-1" / "pytorch_lora_weights.safetensors").is_file()


def test_true_resumes_from_the_newest_checkpoint(make_trainer, tmp_path):
    kwargs = {"save_strategy": "steps", "save_steps": 1, "output_dir": str(tmp_path / "out")}
    make_trainer(max_steps=2, **kwargs).train()
    trainer = make_trainer(max_steps=3, **kwargs)
    trainer.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in trainer.state.log_history if "reward" in entry] == [1, 2, 3]


def test_machines_that_would_go_on_from_different_steps(make_trainer, tmp_path, monkeypatch):
    kwargs = {"save_strategy": "steps", "save_steps": 1, "output_dir": str(tmp_path / "out")}
    make_trainer(max_steps=2, **kwargs).train()
    trainer = make_trainer(max_steps=3, **kwargs)
    monkeypatch.setattr(trainer.rank_watch, "gather", lambda tensor: [tensor, tensor - 1])
    with pytest.raises(
        ValueError, match=r"is of step 2 on process 0 and of step 1 on process 1, .* such as checkpoint-1"
    ):
        trainer.train(resume_from_checkpoint=True)


def test_beginning_afresh_beside_an_earlier_run_is_told(make_trainer, tmp_path):
    kwargs = {"save_strategy": "steps", "save_steps": 1, "output_dir": str(tmp_path / "out")}
    make_trainer(max_steps=2, **kwargs).train()
    with pytest.warns(
        UserWarning, match=r"`output_dir` .* holds checkpoint-2 of an earlier run, and this one starts afresh"
    ):
        make_trainer(max_steps=1, **kwargs).train()


def test_weights_of_another_kind_are_refused(make_trainer, tmp_path):
    kwargs = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-4}
    for name, peft in (("adapter", {}), ("whole", {"peft_config": None})):
        make_trainer(output_dir=str(tmp_path / name), **peft, **kwargs).train()
    kwargs["max_steps"] = 2
    with pytest.raises(
        ValueError, match="trained a LoRA adapter, and this one is to train all weights; use LoRA again"
    ):
        make_trainer(output_dir=str(tmp_path / "adapter"), peft_config=None, **kwargs).train(
            resume_from_checkpoint=True
        )
    with pytest.raises(ValueError, match="trained all weights, and this one is to train a LoRA adapter; train all"):
        make_trainer(output_dir=str(tmp_path / "whole"), **kwargs).train(resume_from_checkpoint=True)


def test_a_run_that_is_over_says_so(make_trainer, tmp_path):
    kwargs = {"save_strategy": "steps", "save_steps": 1, "output_dir": str(tmp_path / "out")}
    make_trainer(max_steps=2, **kwargs).train()
    with pytest.raises(ValueError, match=r"`max_steps` is 1, but .* is of step 2; raise it"):
        make_trainer(max_steps=1, **kwargs).train(resume_from_checkpoint=True)
    with pytest.warns(UserWarning, match="is of the last step, 2: nothing is left to train; raise `max_steps`"):
        make_trainer(max_steps=2, **kwargs).train(resume_from_checkpoint=True)


def test_a_path_object_is_a_path(make_trainer, tmp_path):
    with pytest.raises(ValueError, match=r"`resume_from_checkpoint` is .*nowhere'.* is no checkpoint folder"):
        make_trainer().train(resume_from_checkpoint=tmp_path / "nowhere")


def test_the_same_trainer_can_go_back_to_a_checkpoint(make_trainer, adapter_of, tmp_path):
    kwargs = {"save_strategy": "steps", "save_steps": 1, "num_iterations": 2, "learning_rate": 1e-2}
    trainer = make_trainer(max_steps=4, output_dir=str(tmp_path / "out"), **kwargs)
    trainer.train()
    expected = adapter_of(trainer)
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    for name, weight in adapter_of(trainer).items():
        assert torch.equal(weight, expected[name]), name


def test_a_checkpoint_inside_a_rollout_keeps_the_rollout_and_others_do_not(make_trainer, tmp_path):
    trainer = make_trainer(
        max_steps=2, steps_per_generation=4, save_strategy="steps", save_steps=1, output_dir=str(tmp_path / "out")
    )
    trainer.train()
    assert (tmp_path / "out" / "checkpoint-1" / "rollout_0.safetensors").is_file()
    assert not (tmp_path / "out" / "checkpoint-2" / "rollout_0.safetensors").exists()


@pytest.mark.parametrize("what", ["missing", "empty", "model"])
def test_a_folder_that_is_no_checkpoint_is_refused_in_one_sentence(make_trainer, pipeline_path, tmp_path, what):
    folder = {"missing": tmp_path / "missing", "empty": tmp_path / "empty", "model": Path(pipeline_path)}[what]
    if what == "empty":
        os.makedirs(folder)
    with pytest.raises(ValueError) as error:
        make_trainer().train(resume_from_checkpoint=str(folder))
    message = str(error.value)
    assert "\n" not in message
    assert "`resume_from_checkpoint`" in message
    assert repr(str(folder)) in message
    assert "give a `checkpoint-*` folder" in message


@pytest.fixture
def stopped_inside_a_rollout(make_trainer, tmp_path):
    """An output folder with checkpoints inside and after a rollout."""
    kwargs = {"save_strategy": "steps", "save_steps": 1, "output_dir": str(tmp_path / "out")}
    make_trainer(max_steps=2, steps_per_generation=4, **kwargs).train()
    return tmp_path / "out"


@pytest.mark.parametrize(
    "change",
    [{"noise_level": 0.3}, {"num_inference_steps": 3}, {"num_inference_steps": 8}, {"policy": "flow_cps"},
     {"sde_window": "fixed", "sde_window_size": 2}, {"guidance_scale": 2.0}],
    ids=str,
)  # fmt: skip
def test_how_a_rollout_was_sampled_cannot_change_while_it_is_trained_on(
    make_trainer, stopped_inside_a_rollout, tmp_path, change
):
    trainer = make_trainer(steps_per_generation=4, output_dir=str(tmp_path / "new"), max_steps=3, **change)
    name = next(iter(change))
    with pytest.raises(ValueError, match=rf"`{name}` is .* in the midst of a rollout; use that again"):
        trainer.train(resume_from_checkpoint=str(stopped_inside_a_rollout / "checkpoint-1"))
    trainer.train(resume_from_checkpoint=str(stopped_inside_a_rollout / "checkpoint-2"))
    assert trainer.state.global_step == 3


@pytest.mark.parametrize(("then", "now"), [(0.5, None), (None, 0.5)])
def test_an_average_neither_begins_nor_ends_in_the_middle(make_trainer, tmp_path, then, now):
    kwargs = {"save_strategy": "steps", "save_steps": 1, "output_dir": str(tmp_path / "out")}
    make_trainer(max_steps=1, ema_decay=then, **kwargs).train()
    with pytest.raises(ValueError, match=rf"`ema_decay` is {now}, but {then} in the run that saved"):
        make_trainer(max_steps=2, ema_decay=now, **kwargs).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 8}, "`r` of the LoRA config is 8, but 4 in"),
        ({"lora_alpha": 3}, "`lora_alpha` .* is 3, but 8 in"),
        ({"alpha_pattern": {"attn.to_q": 3}}, "`alpha_pattern` .* is {'attn.to_q': 3}, but {} in"),
        ({"use_rslora": True}, "`use_rslora` .* is True, but False in"),
        ({"target_modules": ["attn.to_q"]}, "other layers"),
    ],
)
def test_a_checkpoint_of_another_adapter_is_refused(make_trainer, tmp_path, change, message):
    from peft import LoraConfig

    make_trainer(max_steps=1, save_strategy="steps", save_steps=1, output_dir=str(tmp_path / "out")).train()
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, **change})
    with pytest.raises(ValueError, match=message):
        make_trainer(peft_config=config).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
