# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The ideas that the arena can switch on do what they say."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from trl_progrpo import ProGRPOConfig
from trl_progrpo.advantages import group_advantages
from trl_progrpo.seeds import INITIAL_NOISE
from trl_progrpo.tiny import load_shapes


FOLDER = Path(__file__).parents[2] / "benchmarks"
STEPS = 3


@pytest.fixture
def switches(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import arena_switches

    return arena_switches


@pytest.fixture
def make(switches, tmp_path):
    """A trainer with a switch on, for two prompts in groups of four."""

    def make(name, **settings):
        args = ProGRPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            seed=0,
            max_steps=2,
            learning_rate=1e-3,
            num_inference_steps=STEPS,
            num_generations=4,
            per_device_train_batch_size=8,
            preview_decoder="shapes",
            audit_fraction=0.0,
            **settings,
        )
        return switches.SWITCHES[name](
            model="shapes", reward_funcs="shapes", args=args, train_dataset=load_shapes("train").select(range(8))
        )

    return make


def roll(trainer, rollout_index=0):
    prompts = trainer.train_dataset[:2]["prompt"]
    with trainer._inference():
        return trainer.sampler.rollout(
            trainer.family.denoiser,
            prompts,
            conditioning=trainer.prompt_cache(prompts),
            rollout_index=rollout_index,
            train_steps=trainer.stochastic_steps,
        )


def noise(trainer, step):
    return trainer.sampler._noise(torch.zeros(4, dtype=torch.long), torch.arange(4), 0, range(2), step)


def test_partners_have_opposite_noise(make):
    trainer = make("antithetic")
    for step in (INITIAL_NOISE, 0, 1):
        drawn = noise(trainer, step)
        assert_close(drawn[0], -drawn[1])
        assert_close(drawn[2], -drawn[3])
        assert not torch.equal(drawn[0], drawn[2])
    # The path of the update begins with it, so training sees what was sampled.
    trainer.train()
    latents = trainer.last_rollout.latents[:, 0]
    assert_close(latents[0], -latents[1])


def test_a_group_starts_from_the_same_latents(make):
    trainer = make("shared_start")
    assert_close(noise(trainer, INITIAL_NOISE), noise(trainer, INITIAL_NOISE)[:1].expand(4, -1, -1, -1))
    assert len(noise(trainer, 0).unique(dim=0)) == 4


def test_survivors_go_on_twice(make):
    trainer = make("branching", num_expansions=8, prune_steps=[0], prune_sizes=[4])
    trainer.sampler.num_generations = 8
    rollout = roll(trainer)
    # 2 prompts: one step with 8 members, then 4 survivors and their siblings.
    assert rollout.cost.nfe == 2 * 8 * STEPS
    siblings = rollout.latents.view(8, 2, *rollout.latents.shape[1:])
    assert_close(siblings[:, 0, :2], siblings[:, 1, :2])
    assert all(not torch.equal(first, second) for first, second in siblings[:, :, 2])
    # The first of them is the trajectory that was kept.
    trainer.sampler.set_schedule(8)
    whole = roll(trainer)
    kept = [(whole.prompt_index == p) & (whole.member == m) for p, m in zip(rollout.prompt_index, rollout.member)]
    for path, row in list(zip(rollout.latents, kept))[::2]:
        assert_close(path, whole.latents[row][0])
    trainer.sampler.num_generations = 4
    trainer.train()


def test_more_of_groups_with_more_spread(make, switches):
    assert switches.shares(torch.tensor([1.0, 1.0, 1.0]), 4, 8) == [4, 4, 4]
    assert switches.shares(torch.tensor([0.0, 1.0, 3.0]), 4, 8) == [2, 2, 8]
    assert switches.shares(torch.tensor([0.0, 0.0, 9.0]), 4, 6) == [3, 3, 6]
    trainer = make("adaptive", num_expansions=8)
    rewards = torch.tensor([0.1, 0.2, 0.1, 0.2, 0.1, 0.2, 0.1, 0.2, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    trainer.sampler.scorer = lambda *args, **kwargs: rewards[:, None]
    rollout = roll(trainer)
    assert rollout.prompt_index.bincount().tolist() == [2, 6]
    assert rollout.rewards[2:].sort().values.tolist() == [0.0] * 3 + [1.0] * 3
    trainer.sampler.scorer = trainer.reward_runner
    trainer.train()


def test_advantages_are_those_of_the_whole_group(make):
    trainer = make("whole_group_advantages", num_expansions=8, prune_steps=[0], prune_sizes=[6])
    rollout = roll(trainer)
    found = trainer._advantages(rollout)
    first, last = rollout.prune_records
    for prompt in range(2):
        here = first.prompt_index == prompt
        rewards = torch.cat(
            [first.rewards[here & ~first.kept], last.rewards[last.prompt_index == prompt]]
        )  # two previews, six images
        expected = group_advantages(rewards, torch.zeros(8, dtype=torch.long))[2:]
        assert_close(found[rollout.prompt_index == prompt], expected[last.kept[last.prompt_index == prompt]])
    trainer.train()
    only_previews = rollout.replace(prune_records=(dataclasses.replace(last, step_index=1),))
    with pytest.raises(ValueError, match="last selection"):
        trainer._advantages(only_previews)


def test_a_head_takes_the_place_of_previews(make):
    trainer = make("latent_head", num_expansions=8, prune_steps=[1], prune_sizes=[6])
    taught = [roll(trainer, index) for index in range(2)]
    assert all(rollout.cost.preview_decodes == 0 for rollout in taught)
    # Nothing is known before the first lesson; then groups are pruned by what the head says.
    [features, target] = map(torch.cat, zip(*trainer.sampler.lessons))
    assert features.shape[0] == 2 * 2 * 6
    assert_close(target.view(-1, 6).mean(1), torch.zeros(4), atol=1e-6, rtol=0)
    said = trainer.sampler.guess(trainer.sampler.lessons[0][0])
    assert torch.corrcoef(torch.stack([said, trainer.sampler.lessons[0][1]]))[0, 1] > 0.3
    trainer.train()


def test_small_previews_are_made_large(make):
    trainer = make("small_previews", num_expansions=8, prune_steps=[1], prune_sizes=[4], preview_downscale=2)
    images = trainer.sampler._preview(torch.zeros(3, *trainer.family.latent_shape))
    assert images.shape == (3, 3, 32, 32)
    trainer.train()
