# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What tries something out on the networks of a run leaves them, and the random numbers, as they were."""

import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from trl_progrpo.activations import measure_activations, peak_bytes
from trl_progrpo.adapters import adapters_disabled, trainable_parameters
from trl_progrpo.calibration import calibration_config, measure_seconds, record_untrained
from trl_progrpo.flops import count_flops, unit_flops
from trl_progrpo.isolation import isolated
from trl_progrpo.stopwatch import Stopwatch
from trl_progrpo.testing import check_family, check_pruner, check_reward_func


def numbers():
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.nn.functional.scaled_dot_product_attention,
    ]


def state_of(module):
    """All of a module that is no value of a weight."""
    hooks = [name for name in vars(module) if name.endswith("_hooks")]
    parts = [
        (
            part.training,
            {name: len(vars(part)[name]) for name in hooks},
            {name: value for name, value in vars(part).items() if name == "gradient_checkpointing"},
            (part.disable_adapters, list(part.active_adapters)) if isinstance(part, BaseTunerLayer) else None,
        )
        for part in module.modules()
    ]
    return parts, [(id(p.grad), p.requires_grad) for p in module.parameters()]


def uneven(trainer):
    """The trainer in a state that nothing but its own history explains: gradients, modes, an adapter that is partly frozen."""
    denoiser = trainer.family.denoiser
    denoiser.train()
    list(denoiser.children())[-1].eval()
    first, *others = trainable_parameters(denoiser)
    first.requires_grad_(False)
    for parameter in others:
        parameter.grad = torch.full_like(parameter, 0.04)
    torch.manual_seed(5)
    trainer.family.pipeline.scheduler.set_timesteps(7)
    return trainer


@pytest.fixture
def trainer(make_trainer):
    return uneven(make_trainer())


@pytest.fixture
def left_as_found(trainer):
    """Asserts in the end that the trainer's networks, scheduler and all random numbers are as before."""
    family = trainer.family
    networks = [family.denoiser, family.pipeline.vae]
    scheduler = family.pipeline.scheduler

    def everything():
        return [state_of(network) for network in networks], numbers(), {k: id(v) for k, v in vars(scheduler).items()}

    weights = {name: value.clone() for name, value in family.denoiser.state_dict().items()}
    before = everything()
    yield
    assert everything() == before
    assert all(torch.equal(weights[name], value) for name, value in family.denoiser.state_dict().items())
    gradients = [p.grad for p in family.denoiser.parameters() if p.grad is not None]
    assert gradients
    assert all((grad == 0.04).all() for grad in gradients)


class Broken(Exception):
    pass


def breaking(monkeypatch, owner, name, after):
    """Makes the `after`-th call of a method raise; random numbers are drawn in all of them."""
    method, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        calls.append(None)
        torch.rand(1), random.random(), np.random.rand()
        if len(calls) == after:
            raise Broken
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def measured(trainer):
    return trainer.family, trainer._encode(["a red circle"])


def rows(trainer):
    return [{"prompt": "a red circle"}, {"prompt": "two blue squares"}]


def record(trainer):
    policy, steps = trainer.sampler.policy, trainer.stochastic_steps
    record_untrained(trainer, rows(trainer), 0.7, policy, steps, trainer.args.num_inference_steps, 2)


def sampled(trainer):
    trainer.generate(["a red circle"], adapter=False)


HELPERS = {
    "unit_flops": lambda trainer: unit_flops(*measured(trainer)),
    "measure_activations": lambda trainer: measure_activations(*measured(trainer)),
    "record_untrained": record,
    "generate": sampled,
}


@pytest.mark.parametrize("name", HELPERS)
def test_helpers(trainer, left_as_found, name):
    HELPERS[name](trainer)


@pytest.mark.parametrize(
    ("name", "after"),
    [("unit_flops", 1), ("unit_flops", 2), *(("measure_activations", n) for n in (1, 2, 6)), ("record_untrained", 3)],
)
def test_helpers_that_break_off(trainer, left_as_found, name, after, monkeypatch):
    breaking(monkeypatch, trainer.family, "denoise", after)
    with pytest.raises(Broken):
        HELPERS[name](trainer)


def test_rehearsal_of_an_update_that_breaks_off(make_trainer, monkeypatch):
    trainer = make_trainer(prune_schedule="auto", prune_steps=None, prune_sizes=None)
    uneven(trainer)
    with trainer._inference():
        rollout = trainer.sampler.rollout(trainer.family.denoiser, ["a red circle", "two blue squares"])
    for after in (None, 1, 2):
        before = state_of(trainer.family.denoiser), numbers()
        with monkeypatch.context() as patched, pytest.raises(Broken) if after else nullcontext():
            if after:
                breaking(patched, trainer.family, "denoise", after)
            trainer.auto_schedule._rehearse(rollout, Stopwatch(torch.device("cpu")))
        assert (state_of(trainer.family.denoiser), numbers()) == before


def test_choosing_a_schedule_draws_no_random_number_of_the_run(make_trainer):
    def lottery(prompts, images, **columns):
        return torch.rand(len(prompts)).tolist()

    trainer = make_trainer(prune_schedule="auto", prune_steps=None, prune_sizes=None, reward_funcs=lottery)
    uneven(trainer)
    before = state_of(trainer.family.denoiser), numbers()
    trainer.auto_schedule.before_rollout({"prompt": ["a red circle", "two blue squares"]}, 0)
    assert (state_of(trainer.family.denoiser), numbers()) == before


@pytest.mark.parametrize("broken", [False, True])
def test_inference_and_the_reference_restore_what_they_found(trainer, left_as_found, broken):
    denoiser = trainer.family.denoiser
    with pytest.raises(Broken) if broken else nullcontext():
        with trainer._inference(), adapters_disabled(denoiser):
            assert not any(part.training for part in denoiser.modules())
            with adapters_disabled(denoiser):
                pass
            assert all(part.disable_adapters for part in denoiser.modules() if isinstance(part, BaseTunerLayer))
            if broken:
                raise Broken


def test_an_adapter_that_is_off_stays_off(trainer):
    denoiser = trainer.family.denoiser
    denoiser.disable_adapters()
    before = state_of(denoiser)
    with adapters_disabled(denoiser):
        pass
    trainer.generate(["a red circle"], adapter=False)
    assert state_of(denoiser) == before


class TestCounting:
    @pytest.mark.parametrize("held", [False, True], ids=["no gradients", "gradients"])
    @pytest.mark.parametrize("broken", [False, True])
    def test_whatever_is_called_may_go_backwards(self, held, broken):
        network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5), torch.nn.Embedding(3, 4))
        leaf = torch.randn(4, 4, requires_grad=True)
        leaves = [leaf, *network.parameters()]
        for parameter in leaves if held else []:
            parameter.grad = torch.ones_like(parameter)
        before = [parameter.grad for parameter in leaves]

        def step():
            output = network[1](network[0](leaf)) * network[2](torch.tensor([1]))
            torch.utils.checkpoint.checkpoint(torch.sin, output, use_reentrant=False).sum().backward()
            assert all(parameter.grad is not None for parameter in leaves)
            if broken:
                raise Broken

        state = numbers()
        with pytest.raises(Broken) if broken else nullcontext():
            assert count_flops(step, gradients=True) == 3 * 2 * 4**3
        assert numbers() == state
        assert all(parameter.grad is grad for parameter, grad in zip(leaves, before))
        assert not held or all((grad == 1).all() for grad in before)

    def test_peak_bytes(self):
        network = torch.nn.Linear(4, 4)
        network(torch.ones(4)).sum().backward()
        before, values = [p.grad for p in network.parameters()], [p.grad.clone() for p in network.parameters()]
        fresh = torch.nn.Linear(4, 4)
        sizes = {peak_bytes(lambda n=n: n(torch.ones(2, 4)).sum().backward(), n) for n in (fresh, network)}
        assert len(sizes) == 1
        assert all(p.grad is None for p in fresh.parameters())
        assert all(p.grad is grad for p, grad in zip(network.parameters(), before))
        assert all(map(torch.equal, before, values))


def test_isolated_restores_whatever_is_changed_inside():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).eval()).requires_grad_(False)
    before = state_of(network), numbers()

    @isolated(network)
    def change():
        network.train().requires_grad_(True)
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        network(torch.ones(2)).sum().backward()
        raise Broken

    with pytest.raises(Broken):
        change()
    assert (state_of(network), numbers()) == before


class TestCheckers:
    def test_of_a_family(self, make_pipeline):
        pipeline = make_pipeline()
        before, scheduler = (state_of(pipeline.transformer), numbers()), dict(vars(pipeline.scheduler))
        check_family(pipeline, num_inference_steps=(2,), guidance_scales=(1.0,))
        assert (state_of(pipeline.transformer), numbers()) == before
        assert all(vars(pipeline.scheduler)[name] is value for name, value in scheduler.items())
        with pytest.raises(AssertionError):
            check_family(pipeline, num_inference_steps=(2,), guidance_scales=(1.0,), atol=0.0)
        assert numbers() == before[1]

    @pytest.mark.parametrize("broken", [False, True])
    def test_of_rewards_and_rules(self, broken):
        def reward(prompts, images, **columns):
            torch.manual_seed(0), random.random(), np.random.rand()
            return [0.5] * (len(prompts) - broken)

        def rule(rewards, k, generator=None):
            torch.rand(1)
            kept = torch.topk(rewards, k).indices.sort().values
            return kept if rewards.isfinite().all() or broken else None

        before = numbers()
        for check, checked in ((check_reward_func, reward), (check_pruner, rule)):
            with pytest.raises(AssertionError) if broken or checked is rule else nullcontext():
                check(checked)
            assert numbers() == before


def test_measuring_seconds_takes_its_clocks_away(make_trainer, make_config, tmp_path):
    trainer = make_trainer(calibration_config(make_config(), str(tmp_path / "small")))
    scorers = trainer.sampler.scorer, trainer.sampler.preview_scorer
    callbacks = list(trainer.callback_handler.callbacks)
    measure_seconds(trainer, 0.0)
    assert (trainer.sampler.scorer, trainer.sampler.preview_scorer) == scorers
    assert trainer.callback_handler.callbacks == callbacks
