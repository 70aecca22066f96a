# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Windows of trained steps, alone and together with pruning and GRPO-Guard."""

import pytest
import torch

from trl_progrpo.adapters import trainable_parameters
from trl_progrpo.losses import guard_log_ratio
from trl_progrpo.windows import window_steps


STEPS = range(9)


def test_without_a_window_all_stochastic_steps_are_trained():
    assert window_steps(STEPS, None) == tuple(STEPS)


def test_fixed_window_starts_where_told():
    assert window_steps(STEPS, "fixed", size=3, start=2, rollout_index=7) == (2, 3, 4)


def test_sliding_window_moves_by_one_every_interval_and_starts_over():
    places = [window_steps(STEPS, "sliding", size=7, interval=2, rollout_index=i)[0] for i in range(8)]
    assert places == [0, 0, 1, 1, 2, 2, 0, 0]


def test_random_window_belongs_to_run_and_rollout():
    drawn = [window_steps(STEPS, "random", size=2, start=1, rollout_index=i, seed=3) for i in range(60)]
    assert drawn == [window_steps(STEPS, "random", size=2, start=1, rollout_index=i, seed=3) for i in range(60)]
    assert {window[0] for window in drawn} == set(range(1, 8))
    assert all(b == a + 1 for a, b in drawn)


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"kind": "middle"}, "fixed"),
        ({"kind": "fixed", "size": 10}, "sde_window_size"),
        ({"kind": "fixed", "size": 0}, "sde_window_size"),
        ({"kind": "random", "start": 9}, "sde_window_start"),
    ],
)
def test_windows_that_do_not_fit_are_refused(kwargs, word):
    with pytest.raises(ValueError, match=word):
        window_steps(STEPS, **kwargs)


@pytest.mark.parametrize("start", [3, 1, 0], ids=["checkpoint before", "checkpoint inside", "checkpoint after"])
@pytest.mark.parametrize("loss_type", ["grpo", "grpo_guard"])
def test_a_checkpoint_may_lie_before_inside_or_after_the_window(make_trainer, adapter_of, start, loss_type):
    """One checkpoint after step 2; the window is steps 3-4, 1-3 or 0-1."""
    size = {3: 2, 1: 3, 0: 2}[start]
    trainer = make_trainer(
        num_inference_steps=6,
        num_generations=2,
        num_expansions=6,
        prune_steps=[2],
        prune_sizes=[2],
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        steps_per_generation=2,
        sde_window="fixed",
        sde_window_size=size,
        sde_window_start=start,
        loss_type=loss_type,
        epsilon=1e-2,
        max_steps=2,
    )
    before = adapter_of(trainer)
    trainer.train()
    rollout = trainer.last_rollout
    assert rollout.step_indices == tuple(range(start, start + size))
    assert rollout.latents.shape[:2] == (4, size + 1)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log[0]["sampling/sampling_logp_difference/max"] < 1e-6
    after = adapter_of(trainer)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert log[0]["sampling/nfe"] == 2 * (6 * 3 + 2 * 3)


def test_steps_outside_the_window_run_the_ode(make_trainer):
    """Up to its own noise, a run with a window is the run without any noise; after it, it is not."""
    trainer = make_trainer(
        sde_window="fixed", sde_window_size=1, sde_window_start=1, prune_steps=None, prune_sizes=None
    )
    seen = []
    trainer.family.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"].clone()), with_kwargs=True
    )
    prompts = ["a red circle", "two blue squares"]
    trainer.sampler.rollout_batch_size = None
    for policy in (trainer.sampler.policy, trainer.sampler.policy.ode()):
        trainer.sampler.policy = policy
        with trainer._inference():
            trainer.sampler.rollout(trainer.family.denoiser, prompts, train_steps=(1,) if policy.noise_level else None)
    windowed, calm = seen[:4], seen[4:]
    assert torch.equal(windowed[0], calm[0])
    assert torch.equal(windowed[1], calm[1])
    assert not torch.allclose(windowed[2], calm[2], atol=1e-3)


def test_guard_off_policy_recovers_the_sampling_mean(make_trainer):
    """Drawing the noise again gives back the mean that the rollout sampled around."""
    trainer = make_trainer(loss_type="grpo_guard", steps_per_generation=4)
    trainer._rollout({"prompt": ["a red circle"] * trainer.geometry.num_prompts}, 0)
    rows = trainer.last_rollout
    for s, i in enumerate(rows.step_indices):
        transition = trainer._transition(trainer.family.denoiser, rows, s)
        mean = rows.latents[:, s + 1] - float(transition.std) * trainer.sampler.noise(rows, i)
        assert torch.allclose(mean, transition.mean, atol=1e-5)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_guard_off_policy_clips_nothing_before_the_first_update(make_trainer, storage, offload):
    """However the latents are rounded when they are stored, the old means are those of the rollout."""
    trainer = make_trainer(
        loss_type="grpo_guard", epsilon=1e-6, max_steps=2, logging_steps=1, offload_rollout=offload, rollout_waves=2,
        num_generations=2, num_expansions=4, prune_steps=[1], prune_sizes=[2], per_device_train_batch_size=1,
        gradient_accumulation_steps=1, steps_per_generation=4, rollout_batch_size=1, learning_rate=1e-2,
    )  # fmt: skip
    trainer.sampler.storage_dtype = storage
    trainer.train()
    assert trainer.last_rollout.latents.dtype == storage
    before, after = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert before["ratio/deviation"] < 1e-7
    assert before["clip_ratio/region_mean"] == 0
    assert after["ratio/deviation"] > 1e-6


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32], ids=str)
def test_guard_off_policy_measures_from_the_mean_of_the_rollout(make_trainer, storage):
    trainer = make_trainer(loss_type="grpo_guard", steps_per_generation=4, rollout_batch_size=None)
    trainer.sampler.storage_dtype = storage
    trainer._rollout({"prompt": ["a red circle"] * trainer.geometry.num_prompts}, 0)
    rows, denoiser = trainer.last_rollout, trainer.family.denoiser
    with torch.no_grad():
        old = [trainer._transition(denoiser, rows, s) for s in range(len(rows.step_indices))]
        for parameter in trainable_parameters(denoiser):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        for s, before in enumerate(old):
            now, following = trainer._transition(denoiser, rows, s), rows.latents[:, s + 1]
            log_prob = now.log_prob(following)
            ratio = trainer._log_ratio(now, log_prob, rows.log_probs[:, s], rows, s)
            expected = guard_log_ratio(log_prob, before.log_prob(following), now.kl(before), now.std)
            assert ratio.abs().max() > 1e-4
            assert torch.allclose(ratio, expected, atol=1e-6)
