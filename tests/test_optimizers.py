# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Optimisers and schedules that transformers offers: which run, what a schedule-free one saves, and what resuming sets anew."""

import copy
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, Trainer, TrainerCallback
from transformers.training_args import OptimizerNames

from trl_progrpo.checkpoint_folders import check_checkpoint
from trl_progrpo.inherited import UNFIT_OPTIMIZERS
from trl_progrpo.optimizers import InitialSettings, averaged, averages, begin_averaging, end_averaging


NAMES = [name.value for name in OptimizerNames]
RESUMABLE = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2}


class ScheduleFreeSGD(torch.optim.Optimizer):
    """Schedule-free SGD (arXiv 2405.15682) as the package `schedulefree` has it: the weights are y in training, else x."""

    beta = 0.9

    def __init__(self, parameters, lr=1e-2):
        super().__init__(parameters, {"lr": lr, "k": 0, "train_mode": False})

    @torch.no_grad()
    def _go(self, train, weight):
        for group in self.param_groups:
            for p in group["params"] if group["train_mode"] != train else ():
                if "z" in self.state[p]:
                    p.lerp_(self.state[p]["z"], weight)
            group["train_mode"] = train

    def train(self):
        self._go(True, 1 - self.beta)

    def eval(self):
        self._go(False, 1 - 1 / self.beta)

    @torch.no_grad()
    def step(self, closure=None):
        assert all(group["train_mode"] for group in self.param_groups), "not in train mode"
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    z = self.state[p].setdefault("z", p.clone())
                    x = p.lerp(z, 1 - 1 / self.beta)
                    z.sub_(p.grad, alpha=group["lr"])
                    x.lerp_(z, 1 / group["k"])
                    p.copy_(x.lerp(z, 1 - self.beta))


class StopAfter(TrainerCallback):
    """Ends a run, and remembers the options with which its last update was made."""

    def __init__(self, step):
        self.step, self.group = step, None

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.group = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


@pytest.fixture
def make_schedule_free(make_trainer):
    """A function that returns a trainer with a schedule-free optimiser, of LoRA or of all weights."""

    def make(**kwargs):
        trainer = make_trainer(**{"max_steps": 3, "steps_per_generation": 4, **kwargs})

        def create_optimizer(model=None):
            if trainer.optimizer is None:
                trained = [p for p in trainer.model.parameters() if p.requires_grad]
                trainer.optimizer = ScheduleFreeSGD(trained, 10.0)
            return trainer.optimizer

        trainer.create_optimizer = create_optimizer
        return trainer

    return make


class TestNames:
    @pytest.mark.parametrize("name", NAMES)
    def test_every_name_runs_or_is_refused_with_the_reason(self, make_config, name):
        config, refusal = None, ""
        try:
            config = make_config(optim=name)
        except ValueError as error:
            refusal = str(error)
        if config is None:
            assert refusal.startswith(f"`optim` is {name!r}, which ")
            assert "use e.g." in refusal
            assert "\n" not in refusal
            return
        assert name not in UNFIT_OPTIMIZERS
        kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(config)
        kind([torch.nn.Parameter(torch.ones(2, 2))], **kwargs)

    def test_the_reference_tells_of_every_name(self):
        from pathlib import Path

        text = (Path(__file__).parents[1] / "docs" / "config.md").read_text()
        for name in [*NAMES, *(kind.value for kind in SchedulerType)]:
            assert f"`{name}`" in text, name

    @pytest.mark.parametrize("name", ["lomo", "galore_adamw", "apollo_adamw_layerwise", "grokadamw"])
    def test_what_cannot_be_resumed_or_updates_in_backward_is_refused(self, make_config, name):
        with pytest.raises(ValueError, match=rf"`optim` is '{name}', which is not supported: .*; use e.g. adamw"):
            make_config(optim=name)

    def test_a_name_that_is_none(self, make_config):
        with pytest.raises(ValueError, match=r"`optim` is 'adam'; use one of adamw_torch, "):
            make_config(optim="adam")

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"ema_decay": 0.9}, "`ema_decay` is 0.9, but `optim` 'schedule_free_adamw' keeps an average of its own"),
            ({"warmup_steps": 0.1}, "`warmup_steps` is 0.1, but .* counts steps; give a whole number"),
        ],
    )
    def test_what_does_not_go_with_an_average_of_its_own(self, make_config, monkeypatch, kwargs, message):
        monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(lambda *args: (None, {})))
        with pytest.raises(ValueError, match=message):
            make_config(optim="schedule_free_adamw", **kwargs)
        with pytest.warns(UserWarning, match="`lr_scheduler_type` is 'linear', but .* takes the place of a schedule"):
            make_config(optim="schedule_free_adamw", lr_scheduler_type="linear", warmup_steps=2)

    @pytest.mark.parametrize("kind", ["constant", "greedy"])
    def test_a_warm_up_that_nothing_has_is_told(self, make_config, kind):
        evaluation = {"eval_strategy": "steps", "eval_steps": 1} if kind == "greedy" else {}
        with pytest.warns(UserWarning, match="`warmup_steps` is 2, which does nothing without `lr_scheduler_type`"):
            make_config(warmup_steps=2, lr_scheduler_type=kind, **evaluation)


class TestScheduleFree:
    def test_what_is_saved_is_the_average_and_what_is_trained_lies_beside_it(
        self, make_schedule_free, adapter_of, tmp_path
    ):
        trainer = make_schedule_free(output_dir=str(tmp_path / "out"), **RESUMABLE)
        trainer.train()
        assert not averages(trainer.optimizer)
        trainer.save_model(str(tmp_path / "final"))
        final, last = tmp_path / "final", tmp_path / "out" / "checkpoint-3"
        saved, trained = (load_file(last / f"pytorch_lora_weights{raw}.safetensors") for raw in ("", "_raw"))
        at_the_end = load_file(final / "pytorch_lora_weights.safetensors")
        assert not (final / "pytorch_lora_weights_raw.safetensors").exists()
        assert any(not torch.equal(saved[name], trained[name]) for name in saved)
        for name in saved:
            assert torch.equal(saved[name], at_the_end[name])
        averages_now = adapter_of(trainer)
        trainer.optimizer.train()
        for name, y in adapter_of(trainer).items():
            z = trainer.optimizer.state[dict(trainer.family.denoiser.named_parameters())[name]].get("z", y)
            assert torch.allclose(averages_now[name], y.lerp(z, 1 - 1 / ScheduleFreeSGD.beta), atol=1e-6)

    def test_evaluating_does_not_change_what_is_trained(self, make_schedule_free, adapter_of, tmp_path):
        weights = []
        for name, evaluates in (("with", "steps"), ("without", "no")):
            trainer = make_schedule_free(
                output_dir=str(tmp_path / name),
                eval_strategy=evaluates,
                eval_steps=1 if evaluates == "steps" else None,
                eval_dataset=["a red circle"],
            )
            trainer.train()
            weights.append(adapter_of(trainer))
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    def test_rollouts_and_updates_use_the_same_weights(self, make_schedule_free, tmp_path):
        trainer = make_schedule_free(
            output_dir=str(tmp_path / "out"), eval_strategy="steps", eval_steps=1, eval_dataset=["a red circle"],
            max_steps=4, steps_per_generation=None,
        )  # fmt: skip
        trainer.train()
        drift = [
            entry["sampling/sampling_logp_difference/max"] for entry in trainer.state.log_history if "reward" in entry
        ]
        assert len(drift) == 4
        assert max(drift) < 1e-5

    @pytest.mark.parametrize("kind", ["lora", "all weights"])
    def test_a_resumed_run_is_the_same_bit_for_bit(self, make_schedule_free, adapter_of, tmp_path, kind):
        kwargs = {"peft_config": None} if kind == "all weights" else {}
        whole = make_schedule_free(output_dir=str(tmp_path / "whole"), **RESUMABLE, **kwargs)
        whole.train()
        resumed = make_schedule_free(output_dir=str(tmp_path / "resumed"), **kwargs)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
        expected, got = adapter_of(whole), adapter_of(resumed)
        assert all(torch.equal(expected[name], got[name]) for name in expected)
        # The same trainer goes back, from the average that it ended with.
        whole.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
        assert all(torch.equal(expected[name], weight) for name, weight in adapter_of(whole).items())

    def test_the_best_checkpoint_is_loaded_as_an_average(self, make_schedule_free, adapter_of, tmp_path):
        calls = []

        def falls(prompts, images, **columns):
            calls.append(0)
            return [-float(len(calls)) + 0.1 * i for i in range(len(prompts))]

        trainer = make_schedule_free(
            output_dir=str(tmp_path / "out"), reward_funcs=falls, eval_strategy="steps", eval_steps=1,
            eval_dataset=["a red circle"], load_best_model_at_end=True, num_validation_prompts=0, **RESUMABLE,
        )  # fmt: skip
        trainer.train()
        assert trainer.kept_step == 1
        trainer.save_model(str(tmp_path / "final"))
        best = load_file(tmp_path / "out" / "checkpoint-1" / "pytorch_lora_weights.safetensors")
        final = load_file(tmp_path / "final" / "pytorch_lora_weights.safetensors")
        assert all(torch.equal(best[name], final[name]) for name in best)

    def test_of_an_error_the_weights_in_training_come_back(self):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = ScheduleFreeSGD([weight])
        begin_averaging(optimizer)
        for _ in range(3):
            weight.grad = torch.arange(3.0)
            optimizer.step()
        trained = weight.detach().clone()
        with pytest.raises(ZeroDivisionError), averaged(optimizer, [weight]):
            1 / int(torch.equal(weight, trained))
        assert torch.equal(weight, trained)
        end_averaging(optimizer)
        with averaged(optimizer, [weight]):
            average = weight.detach().clone()
        assert torch.equal(weight, average)

    @pytest.mark.parametrize("name", ["schedule_free_adamw", "schedule_free_sgd", "schedule_free_radam"])
    def test_those_of_the_package(self, make_trainer, adapter_of, tmp_path, name):
        whole = make_trainer(output_dir=str(tmp_path / "whole"), optim=name, max_steps=3, **RESUMABLE)
        whole.train()
        resumed = make_trainer(output_dir=str(tmp_path / "resumed"), optim=name, max_steps=3, learning_rate=1e-2)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
        expected, got = adapter_of(whole), adapter_of(resumed)
        assert all(torch.equal(expected[name], got[name]) for name in expected)


class TestSchedulesThatWatch:
    WATCH = {"eval_strategy": "steps", "eval_steps": 1}

    @pytest.mark.parametrize("kind", ["reduce_lr_on_plateau", "greedy"])
    def test_more_is_better(self, make_config, kind):
        config = make_config(lr_scheduler_type=kind, **self.WATCH)
        assert config.metric_for_best_model == "reward"
        assert config.lr_scheduler_kwargs["mode"] == "max"
        assert (
            make_config(lr_scheduler_type=kind, greater_is_better=False, **self.WATCH).lr_scheduler_kwargs["mode"]
            == "min"
        )
        # Read again, as from training_args.json.
        again = make_config(lr_scheduler_type=kind, lr_scheduler_kwargs=config.lr_scheduler_kwargs, **self.WATCH)
        assert again.lr_scheduler_kwargs == config.lr_scheduler_kwargs

    @pytest.mark.parametrize("kind", ["reduce_lr_on_plateau", "greedy"])
    @pytest.mark.parametrize(
        ("keywords", "message"),
        [
            ({"mode": "min"}, "holds 'mode' 'min', with which the rate would be cut while `reward` gets better"),
            ({"min_lr": 1e-3}, "holds 'min_lr' 0.001, not below `learning_rate` 0.0003"),
        ],
    )
    def test_keywords_that_turn_it_round(self, make_config, kind, keywords, message):
        with pytest.raises(ValueError, match=message):
            make_config(lr_scheduler_type=kind, lr_scheduler_kwargs=keywords, **self.WATCH)

    @pytest.mark.parametrize("kind", ["reduce_lr_on_plateau", "greedy"])
    def test_the_rate_is_cut_while_the_reward_falls_and_not_while_it_rises(self, make_trainer, kind):
        rates = {}
        for direction in (1, -1):
            calls = []

            def reward(prompts, images, calls=calls, direction=direction, **columns):
                calls.append(0)
                return [direction * len(calls) + 0.01 * i for i in range(len(prompts))]

            trainer = make_trainer(
                reward_funcs=reward, prune_steps=None, prune_sizes=None, num_expansions=None, num_inference_steps=2,
                max_steps=4, eval_dataset=["a red circle"], learning_rate=1e-3, lr_scheduler_type=kind,
                lr_scheduler_kwargs={"patience": 0}, **self.WATCH,
            )  # fmt: skip
            trainer.train()
            rates[direction] = [e["learning_rate"] for e in trainer.state.log_history if "learning_rate" in e]
        assert rates[-1][-1] < rates[-1][0] <= rates[1][-1]


class TestResumedSettings:
    @pytest.fixture(scope="class")
    def start(self, pipeline_path, tmp_path_factory):
        """A run of two steps with a schedule, and its folder."""
        return tmp_path_factory.mktemp("start")

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({}, {"lr": 1e-2 * 3 / 4, "weight_decay": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}),
            ({"learning_rate": 1e-5}, {"lr": 1e-5 * 3 / 4, "initial_lr": 1e-5}),
            ({"weight_decay": 0.5}, {"weight_decay": 0.5, "lr": 1e-2 * 3 / 4}),
            ({"adam_beta1": 0.5, "adam_epsilon": 1e-4}, {"betas": (0.5, 0.999), "eps": 1e-4}),
            ({"max_steps": 8}, {"lr": 1e-2 * 7 / 8}),
            ({"warmup_steps": 2}, {"lr": 1e-2 / 2}),
            ({"lr_scheduler_type": "cosine"}, {"lr": 1e-2 * (1 + math.cos(math.pi / 4)) / 2}),
            ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2}}, {"lr": (1e-2 - 1e-7) * 9 / 16 + 1e-7}),
        ],
        ids=str,
    )  # fmt: skip
    def test_the_new_value_holds_from_the_next_step_on(self, make_trainer, start, change, expected):
        kwargs = {**RESUMABLE, "max_steps": 4, "lr_scheduler_type": "linear", "weight_decay": 0.1}
        if not (start / "checkpoint-1").exists():
            first = make_trainer(output_dir=str(start), **kwargs)
            first.add_callback(StopAfter(1))
            first.train()
        trainer = make_trainer(**{**kwargs, "save_strategy": "no", **change})
        seen = StopAfter(2)
        trainer.add_callback(seen)
        trainer.train(resume_from_checkpoint=str(start / "checkpoint-1"))
        for name, value in expected.items():
            assert seen.group[name] == pytest.approx(value, rel=1e-12), name
        logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
        assert logged[-1] == pytest.approx(seen.group["lr"], rel=1e-12)

    def test_steps_of_saving_and_logging_are_the_new_ones(self, make_trainer, tmp_path):
        kwargs = {"save_strategy": "steps", "learning_rate": 1e-2}
        make_trainer(output_dir=str(tmp_path / "one"), max_steps=1, save_steps=1, **kwargs).train()
        trainer = make_trainer(output_dir=str(tmp_path / "two"), max_steps=4, save_steps=3, logging_steps=2, **kwargs)
        trainer.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-1"))
        assert sorted(path.name for path in (tmp_path / "two").glob("checkpoint-*")) == [
            "checkpoint-3",
            "checkpoint-4",
        ]
        assert [e["step"] for e in trainer.state.log_history if "loss" in e] == [1, 2, 4]

    @pytest.mark.parametrize(
        ("make", "then", "now", "expected"),
        [
            (
                torch.optim.SGD,
                {"lr": 0.1, "momentum": 0.9},
                {"lr": 0.1, "momentum": 0.5},
                {"momentum": 0.5, "lr": 0.05},
            ),
            (
                torch.optim.SGD,
                {"lr": 0.1, "momentum": 0.9},
                {"lr": 0.3, "momentum": 0.9},
                {"momentum": 0.9, "lr": 0.3},
            ),
            (torch.optim.RMSprop, {"lr": 0.1, "alpha": 0.9}, {"lr": 0.1, "alpha": 0.8}, {"alpha": 0.8, "lr": 0.05}),
        ],
    )
    def test_keywords_of_an_optimiser_and_a_schedule_that_watches(self, make, then, now, expected):
        """The rate that the schedule has cut stays, unless another one is asked for; so does the best so far."""

        def made(keywords, patience):
            optimizer = make([torch.nn.Parameter(torch.zeros(2))], **keywords)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.5, patience=patience)
            settings = InitialSettings()
            settings.take(optimizer, scheduler)
            return optimizer, scheduler, settings

        optimizer, scheduler, settings = made(then, 0)
        for reward in (3.0, 2.0):
            scheduler.step(reward)
        resumed, schedule, new = made(now, 5)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        schedule.load_state_dict(copy.deepcopy(scheduler.state_dict()))
        new.load_state_dict(settings.state_dict())
        for name, value in expected.items():
            assert resumed.param_groups[0][name] == value
        assert schedule.patience == 5
        assert schedule.best == 3.0

    def test_rates_that_are_tensors_stay_the_same_tensors(self):
        def made(rate):
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=torch.tensor(rate))
            scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
            settings = InitialSettings()
            settings.take(optimizer, scheduler)
            return optimizer, scheduler, settings

        optimizer, scheduler, settings = made(0.5)
        optimizer.step()
        scheduler.step()
        assert settings.state_dict()["groups"][0]["lr"] == 0.5
        resumed, schedule, new = made(0.25)
        resumed.load_state_dict(optimizer.state_dict())
        schedule.load_state_dict(scheduler.state_dict())
        new.load_state_dict(settings.state_dict())
        assert isinstance(resumed.param_groups[0]["lr"], torch.Tensor)
        assert resumed.param_groups[0]["lr"].item() == 0.125

    def test_another_optimiser_has_another_state(self, make_trainer, make_config, tmp_path):
        make_trainer(output_dir=str(tmp_path / "out"), max_steps=1, **RESUMABLE).train()
        with pytest.raises(ValueError, match=r"`optim` is sgd, but adamw_torch_fused in the run that saved"):
            check_checkpoint(str(tmp_path / "out" / "checkpoint-1"), make_config(optim="sgd"))
