# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The speed benchmark: its contenders do the same work. And the loops: the host does not wait for the device in them."""

import argparse
import importlib
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trl_progrpo import ExpandPruneSampler
from trl_progrpo.families import family_class
from trl_progrpo.metrics import MetricsBuffer
from trl_progrpo.policies import POLICIES
from trl_progrpo.types import to_device


TESTS = Path(__file__).parents[1]
PROMPTS = ["a red circle", "two blue squares"]


@pytest.fixture
def speed(monkeypatch):
    """The benchmark's modules, which find each other in the folder they lie in."""
    monkeypatch.syspath_prepend(str(TESTS.parent / "benchmarks"))
    names = ("speed_turns", "speed_calls", "speed_work", "speed_straight", "speed")
    yield argparse.Namespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        sys.modules.pop(name)


@pytest.fixture
def smoke(speed, tmp_path):
    args = argparse.Namespace(smoke=True, turns=1, threads=1, device="cpu", dtype="float32")
    return speed.speed_work.settings(args, tmp_path)


class TestBenchmark:
    @pytest.mark.slow
    def test_it_measures_and_prints_everything(self, speed, monkeypatch, capsys, tmp_path):
        arguments = ["--smoke", "--output", str(tmp_path / "speed.json")]
        monkeypatch.setattr("sys.argv", ["speed.py", *arguments])
        speed.speed.main()
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|") and "---" not in line]
        names, contenders = ["tiny shapes", "tiny Stable Diffusion"], ["Contender", "trl_progrpo", "straight loop"]
        assert [line.split("|")[1].strip() for line in lines] == ["Setting", *names] * 2 + contenders * 2
        found = json.loads((tmp_path / "speed.json").read_text())
        for turns in found["turns"].values():
            assert {name: len(taken) for name, taken in turns.items()} == {"trl_progrpo": 1, "straight loop": 1}

    def test_where_a_step_goes(self, speed, smoke):
        part = speed.speed.share_outside(smoke["tiny shapes"])
        assert 0 < part["outside_cpu"] < 1
        known = sum(part[f"{name}_cpu"] for name in speed.speed.PARTS)
        assert known == pytest.approx((1 - part["outside_cpu"]) * part["step_cpu"])
        assert all(part[f"{name}_cpu"] > 0 for name in speed.speed.PARTS)

    def test_a_rollout_and_its_calls(self, speed, smoke):
        part = speed.speed.rollout_over_units(smoke["tiny shapes"])
        # Three steps, and three times a decode and a reward: two checkpoints and the finished images.
        assert part["calls"] == 3 + 3 + 3
        assert part["bare"] > 0
        assert part["ratio"]["low"] <= part["ratio"]["median"] <= part["ratio"]["high"]

    def test_a_contender_takes_its_turns_in_a_process_of_its_own(self, speed, smoke):
        taken = speed.speed.race(smoke["tiny shapes"], {"straight loop": sys.executable})
        # The first of two is left out.
        [turn] = taken["straight loop"]
        assert turn["rollout_cpu"] > 0
        assert turn["update_cpu"] > 0
        assert 0 < turn["before"] <= turn["peak"]

    @pytest.mark.slow
    def test_a_contender_that_fails_is_told(self, speed, smoke):
        with pytest.raises(RuntimeError, match=r"speed_ddpo\.py ended early:(.|\n)*Error"):
            speed.speed.race(smoke["tiny shapes"], {"TRL DDPOTrainer": sys.executable})

    def test_an_unknown_setting_is_refused(self, speed, monkeypatch, capsys):
        monkeypatch.setattr("sys.argv", ["speed.py", "--smoke", "--settings", "huge"])
        with pytest.raises(SystemExit):
            speed.speed.main()
        assert "`settings` names ['huge']" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["tiny shapes", "tiny Stable Diffusion"])
    def test_the_straight_loop_does_the_same_work(self, speed, smoke, name, tmp_path):
        """The same calls of networks, decoders and rewards with the same numbers of rows, in the same order."""
        setting = replace(smoke[name], turns=1)
        turns = speed.speed_turns.Turns("cpu", wait=int, tell=lambda turn: None)
        trainer = speed.speed_work.make_trainer(setting, str(tmp_path))
        with speed.speed.watched(trainer, turns) as calls:
            trainer.train()
        kinds = ("rollout", "preview", "decode", "reward", "forward")
        ours = [call[:2] for call in calls.made if call[0] in kinds]

        straight = speed.speed_straight
        model, preview_decoder, optimizer = straight.make(setting)
        calls, rewards = speed.speed_calls.Calls(turns), [speed.speed_work.reward_of(setting)]
        before = [parameter.detach().clone() for parameter in optimizer.param_groups[0]["params"]]
        with (
            calls.watch(model.network, "forward", lambda: "forward" if torch.is_grad_enabled() else "rollout"),
            calls.watch(model.pipe.vae, "decode", "decode"),
            calls.watch(preview_decoder or model, "decode", "preview" if preview_decoder else "model"),
            calls.watch(rewards, 0, "reward"),
        ):
            batch = straight.sample(model, setting, preview_decoder, lambda **kwargs: rewards[0](**kwargs))
            straight.update(model, setting, optimizer, batch)
        theirs = [call[:2] for call in calls.made if call[0] in kinds]
        assert ours == theirs
        assert Counter(kind for kind, _ in ours)["rollout"] >= 3
        # And it learns from it.
        after = optimizer.param_groups[0]["params"]
        assert any(not torch.equal(old, new) for old, new in zip(before, after))

    def test_its_update_follows_the_same_policy(self, speed, smoke):
        """The straight loop's densities are those of its rollout until the weights move."""
        setting = smoke["tiny Stable Diffusion"]
        model, _, _ = speed.speed_straight.make(setting)
        batch = speed.speed_straight.sample(model, setting, None, speed.speed_work.brightness)
        with torch.no_grad():
            for s in range(setting.trained_steps):
                mean, std, _ = model.step(batch["path"][:, s], s, batch["prompt"], True)
                again = speed.speed_straight.log_density(batch["path"][:, s + 1], mean, std)
                torch.testing.assert_close(again, batch["log_probs"][:, s], rtol=0, atol=1e-5)

    def test_ratios_are_taken_turn_by_turn(self, speed, smoke):
        own = [
            {"rollout": r, "update": 1.0, "rollout_cpu": r, "update_cpu": 1.0, "peak": 3, "before": 1} for r in (1, 4)
        ]
        other = [{**turn, "rollout": 3 * turn["rollout"]} for turn in own]
        rows = speed.speed.compared({"trl_progrpo": own, "straight loop": other}, smoke["tiny shapes"])
        assert rows["straight loop"]["rollout"] == {"median": 3.0, "low": 3.0, "high": 3.0}
        assert rows["straight loop"]["rollout_cpu"]["median"] == 1
        assert rows["trl_progrpo"]["rollout, images/s"] == 8 / 2.5


class Waits(TorchDispatchMode):
    """
    Copies between host and device that let the host wait. The device is `meta`, which also refuses whatever would need a value.
    """

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # A scalar tensor on the host takes part as a number.
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor) and t.ndim > 0]
        blocking = not (kwargs.get("non_blocking") or (func is torch.ops.aten.copy_.default and args[2:] == (True,)))
        if len({tensor.device.type for tensor in tensors}) > 1 and blocking:
            self.found.append(str(func))
        return result


def rollout_on_a_device_without_values(pipeline):
    """All denoising steps with the network on `meta`, and two checkpoints between them."""
    family = family_class(pipeline)(pipeline)
    conditioning = family.encode_prompts(PROMPTS).to("meta")
    family.denoiser.to("meta")
    # Scores come to the host by their nature.
    family.decode = family.decode_preview = lambda latents, *_: torch.zeros(len(latents), 3, 8, 8)
    sampler = ExpandPruneSampler(
        family,
        POLICIES.get(family.policies[0])(),
        lambda prompts, images, columns, preview: torch.arange(len(prompts))[:, None].float(),
        reward_weights=torch.ones(1),
        num_inference_steps=4,
        num_generations=2,
        num_expansions=4,
        prune_steps=[0, 2],
        prune_sizes=[3, 2],
        rollout_batch_size=3,
    )
    with Waits() as waits:
        rollout = sampler.rollout(family.denoiser, PROMPTS, conditioning=conditioning)
    assert rollout.latents.device.type == "meta"
    return waits.found


class TestTheHostDoesNotWait:
    @pytest.mark.parametrize(
        ("module", "maker"),
        [
            pytest.param("pipelines", "make_sd", marks=pytest.mark.slow),
            pytest.param("pipelines", "make_sdxl", marks=pytest.mark.slow),
            ("pipelines", "make_sd3"),
            ("pipelines_flux", "tiny_flux"),
            ("pipelines_flux", "tiny_flux2_klein"),
        ],
    )
    def test_in_the_steps_of_a_rollout(self, monkeypatch, module, maker):
        monkeypatch.syspath_prepend(str(TESTS / "families"))
        assert rollout_on_a_device_without_values(getattr(importlib.import_module(module), maker)()) == []

    def test_a_wait_would_be_found(self, make_pipeline):
        pipeline = make_pipeline()
        forward = pipeline.transformer.forward

        def with_a_blocking_copy(hidden_states, **kwargs):
            return forward(hidden_states=hidden_states + torch.ones(1).to(hidden_states.device), **kwargs)

        pipeline.transformer.forward = with_a_blocking_copy
        # 8 rows in the first step, 6 in two more, 4 in the last; 3 a call.
        assert len(rollout_on_a_device_without_values(pipeline)) == 3 + 2 + 2 + 2

    def test_for_metrics(self):
        metrics = MetricsBuffer()
        # To ask for its value is an error.
        metrics.add("kl", torch.zeros((), device="meta"))
        assert metrics
        metrics.clear()
        assert not metrics

    def test_to_device_copies(self):
        index = torch.arange(3)
        assert to_device(index, "cpu") is index
        assert to_device(index, "meta").device.type == "meta"

    @pytest.mark.gpu
    def test_on_a_gpu(self, make_pipeline, make_trainer):
        trainer = make_trainer(model=make_pipeline(), use_cpu=False, guidance_scale=3.0)
        sampler, denoiser = trainer.sampler, trainer.family.denoiser
        sampler.rollout(denoiser, PROMPTS)
        step, log_ratio = sampler._step, trainer._step_loss

        def without_waiting(function):
            def called(*args):
                torch.cuda.set_sync_debug_mode("error")
                try:
                    return function(*args)
                finally:
                    torch.cuda.set_sync_debug_mode("default")

            return called

        sampler._step, trainer._step_loss = without_waiting(step), without_waiting(log_ratio)
        trainer.train()
        assert trainer.last_rollout.latents.is_cuda


class TestMetricsBuffer:
    def test_tensors_and_numbers_make_one_mean(self):
        metrics, alone = MetricsBuffer(), argparse.Namespace(num_processes=1)
        metrics.most_unread = 3
        for value in (
            1.0,
            torch.tensor(2.0),
            torch.tensor(4.0, dtype=torch.float64),
            torch.tensor(0.1),
            torch.tensor(5),
        ):
            metrics.add("a", value)
        metrics.add("b/max", torch.tensor(0.1))
        assert metrics.drain(alone) == {
            "a": (1 + 2 + 4 + torch.tensor(0.1).item() + 5) / 5,
            "b/max": torch.tensor(0.1).item(),
        }
        assert not metrics


class TestDtype:
    def test_it_follows_casts_and_another_network(self, make_family, make_pipeline):
        family = make_family()
        assert family.dtype == torch.float32
        family.pipeline.transformer.to(torch.bfloat16)
        assert family.dtype == torch.bfloat16
        family.pipeline.transformer = make_pipeline().transformer
        assert family.dtype == torch.float32

    def test_diffusers_is_asked_once(self, make_family, monkeypatch):
        family, asked = make_family(), []
        kind = type(family.denoiser)
        monkeypatch.setattr(kind, "dtype", property(lambda self: asked.append(self) or torch.float32))
        assert [family.dtype, family.dtype] == [torch.float32] * 2
        assert len(asked) == 1
