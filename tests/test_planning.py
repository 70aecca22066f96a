# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What a schedule can gain, and what is said about it."""

import pytest
import torch

from trl_progrpo.cost import PruneSchedule, UnitCost, WorkCount
from trl_progrpo.planning import (
    Gain,
    Option,
    RecordedGroups,
    break_even,
    candidates,
    evaluate,
    expected_gain,
    propose,
    survivors,
    verdict,
)
from trl_progrpo.policies import FlowSDE
from trl_progrpo.pruning import ovf
from trl_progrpo.recording import record_groups
from trl_progrpo.sampler import ExpandPruneSampler


PRO = PruneSchedule(10, 12, 48, (5, 7), (24, 12))
POST_HOC = PruneSchedule(10, 12, 48)


def test_the_gain_of_given_rewards():
    gain = Gain.of(torch.tensor([[0.0, 2.0], [0.0, 6.0]]))
    assert gain == Gain(spread=2.0, signal=(2 + 18) / 2)


def test_plain_groups_have_a_formula():
    gain = expected_gain(PruneSchedule.plain(10, 6))
    drawn = Gain.of(torch.randn(200_000, 6, generator=torch.Generator().manual_seed(1)))
    assert gain.signal == 5
    assert drawn.signal == pytest.approx(gain.signal, rel=0.01)
    assert drawn.spread == pytest.approx(gain.spread, rel=0.005)


def test_exact_previews_select_as_finished_images_do():
    assert expected_gain(PRO, 1.0).signal == pytest.approx(expected_gain(POST_HOC).signal, rel=0.02)


def test_useless_previews_select_at_random():
    assert expected_gain(PRO, 0.0).signal == pytest.approx(11, rel=0.03)
    signals = [expected_gain(PRO, correlation / 5).signal for correlation in range(6)]
    assert signals == sorted(signals)


def test_signal_is_what_a_gradient_carries():
    """
    The derivation, tried out in one direction. Signal over noise of a group's update, squared, is proportional to the sum of
    squared deviations, with and without selection.
    """
    draw = torch.Generator().manual_seed(0)
    slope, groups = 0.1, 20_000
    ratios = []
    for schedule in (PruneSchedule.plain(10, 8), PruneSchedule(10, 8, 32)):
        reward = torch.randn(groups, schedule.num_expansions, generator=draw)
        noise = (1 - slope**2) ** 0.5 * torch.randn(reward.shape, generator=draw)
        direction = slope * reward + noise
        kept = survivors(schedule, {}, reward)
        reward, direction = reward.gather(1, kept), direction.gather(1, kept)
        gradient = ((reward - reward.mean(1, keepdim=True)) * direction).mean(1)
        ratios.append((gradient.mean() ** 2 / gradient.var()).item() / expected_gain(schedule).signal)
    assert ratios[0] == pytest.approx(slope**2, rel=0.15)
    assert ratios[1] == pytest.approx(slope**2, rel=0.15)


def test_survivors_follow_the_schedule():
    draw = torch.Generator().manual_seed(0)
    early, late, final = torch.randn(3, 5, 9, generator=draw)
    kept = survivors(PruneSchedule(4, 2, 9, (0, 2), (6, 4)), {0: early, 2: late}, final)
    for group in range(5):
        alive = ovf(early[group][None], 6)[0]
        alive = alive[ovf(late[group, alive][None], 4)[0]]
        alive = alive[ovf(final[group, alive][None], 2)[0]]
        assert kept[group].tolist() == alive.tolist()


class TestVerdict:
    plain = Option("plain GRPO with 12", PruneSchedule.plain(10, 12), 1.0)

    def test_a_schedule_that_cannot_pay(self):
        dear = Option("this run", PRO, 3.1)
        assert break_even(dear, [self.plain]) is None
        text = verdict(dear, [self.plain], "time")
        assert "costs more than it can gain" in text
        assert "for 3.10 times the time" in text
        assert "even if previews" in text

    def test_a_schedule_that_pays_with_good_previews(self):
        fair = Option("this run", PRO, 2.0)
        needed = break_even(fair, [self.plain])
        assert expected_gain(PRO, needed).signal / 2 >= 11
        assert expected_gain(PRO, needed - 0.02).signal / 2 < 11
        assert f"correlation of {needed:.2f}" in verdict(fair, [self.plain], "FLOPs")

    def test_a_schedule_that_costs_nothing_needs_no_previews(self):
        assert break_even(Option("this run", PRO, 0.5), [self.plain]) == 0

    def test_the_strongest_rival_counts(self):
        rivals = [self.plain, Option("post-hoc OVF 48 → 12", POST_HOC, 1.5)]
        text = verdict(Option("this run", PRO, 2.0), rivals, "time")
        assert "costs more than it can gain" in text
        assert "Post-hoc OVF 48 → 12 is the better use of it." in text

    def test_selection_on_finished_images(self):
        assert verdict(Option("this run", POST_HOC, 2.0), [self.plain], "time").startswith(
            "This pays: a group carries 3."
        )
        text = verdict(Option("this run", POST_HOC, 4.0), [self.plain], "time")
        assert "costs more" in text
        assert "previews" not in text


def recorded(correlations, groups=12, members=16, level=0.7, scale=1.0, seed=0):
    """Groups with normal rewards whose preview after step `i` correlates with them as `correlations[i]` says."""
    draw = torch.Generator().manual_seed(seed)
    final = torch.randn(groups, members, generator=draw)
    previews = {
        step: scale * (c * final + (1 - c**2) ** 0.5 * torch.randn(groups, members, generator=draw))
        for step, c in enumerate(correlations)
    }
    return RecordedGroups(level, previews, scale * final)


class TestSearch:
    def price(self, **unit):
        prices = UnitCost(**{"network": 1, "training": 0, "decode": 0, **unit})
        return lambda schedule: WorkCount.of(schedule).cost(prices).total

    def test_every_candidate_can_be_run(self):
        found = list(candidates(10, 12, 48))
        assert len(set(found)) == len(found) > 100
        assert all(one.num_generations == 12 and max(one.prune_steps, default=0) <= 8 for one in found)
        assert PruneSchedule.plain(10, 12) in found
        assert PruneSchedule(10, 12, 48, (5, 7), (24, 12)) in found
        assert {one.prune_steps[0] for one in candidates(50, 12, 48) if one.prune_steps} >= {0, 24, 48}
        assert list(candidates(2, 2, 2)) == [PruneSchedule.plain(2, 2)]

    def test_a_schedule_is_worth_what_it_would_have_kept(self):
        groups = recorded([0.5, 0.9])
        schedule = PruneSchedule(3, 4, 16, (1,), (4,))
        kept = survivors(schedule, groups.previews, groups.final)
        gain = Gain.of(groups.final.gather(1, kept))
        found = evaluate(schedule, groups, cost=2.0)
        assert (found.spread, found.signal) == pytest.approx((gain.spread, gain.signal))
        assert found.score == pytest.approx(gain.signal / 2)
        assert evaluate(schedule, groups, 2.0, "spread").score == pytest.approx(gain.spread / 2)

    def test_after_the_last_step_the_image_is_the_finished_one(self):
        groups = recorded([0.5, 0.9])
        late = evaluate(PruneSchedule(3, 4, 16, (2,), (4,)), groups, 1.0)
        assert late.signal == pytest.approx(evaluate(PruneSchedule(3, 4, 16), groups, 1.0).signal)

    def test_fewer_expansions_are_tried_on_subsets(self):
        found = evaluate(PruneSchedule.plain(3, 4), recorded([0.5, 0.5], groups=300), 1.0)
        assert found.signal == pytest.approx(3, rel=0.05)
        with pytest.raises(ValueError, match="16 trajectories per prompt were recorded"):
            evaluate(PruneSchedule(3, 4, 17), recorded([0.5]), 1.0)

    def test_good_early_previews_are_used(self):
        groups = recorded([0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0], members=48)
        found = propose([groups], self.price(training=0.5), 8, 4)
        assert found.schedule.prune_steps == (2,)
        assert found.schedule.num_expansions > 8

    def test_useless_previews_are_not(self):
        groups = recorded([0.0] * 7, members=48)
        assert propose([groups], self.price(training=20), 8, 4).schedule.prune_steps == ()

    def test_dear_previews_are_not_worth_it(self):
        groups = recorded([0.9] * 7)
        assert propose([groups], self.price(training=3), 8, 4).schedule.prune_steps
        assert not propose([groups], self.price(training=3, preview=30, decode=1), 8, 4).schedule.prune_steps

    def test_noise_with_more_spread_is_taken_and_a_tie_stays_with_the_run(self):
        calm, wild = recorded([0.9] * 7, level=0.5), recorded([0.9] * 7, level=1.0, scale=2.0)
        assert propose([calm, wild], self.price(), 8, 4).level == 1.0
        assert propose([calm, recorded([0.9] * 7, level=1.0)], self.price(), 8, 4).level == 0.5

    def test_rewards_that_do_not_apply_count_as_average_ones(self):
        groups = RecordedGroups(0.7, {0: torch.tensor([[1.0, torch.nan]])}, torch.tensor([[torch.nan, 3.0]]))
        assert groups.previews[0].tolist() == [[1, 1]]
        assert groups.final.tolist() == [[3, 3]]
        assert groups.spread == 0

    def test_no_spread_is_an_error(self):
        flat = RecordedGroups(0.7, {0: torch.ones(2, 8)}, torch.ones(2, 8))
        with pytest.raises(ValueError, match="without spread"):
            propose([flat], self.price(), 2, 4)


def test_recorded_groups_are_those_of_a_rollout(make_family, redness):
    """Previews at every step change nothing, and a schedule keeps of them whom the sampler would have kept."""
    from trl_progrpo.rewards import RewardRunner

    family = make_family()
    options = {"reward_weights": torch.ones(1), "num_inference_steps": 4, "seed": 5}
    pruning = {"num_generations": 3, "num_expansions": 8, "prune_steps": [1, 2], "prune_sizes": [5, 3]}
    sampler = ExpandPruneSampler(family, FlowSDE(noise_level=0.7), RewardRunner(redness), **options, **pruning)
    prompts = ["a red circle", "two blue squares"]
    with torch.no_grad():
        groups = record_groups(sampler, family.denoiser, prompts, level=0.7, num_expansions=8)
        rollout = sampler.rollout(family.denoiser, prompts)
    assert sorted(groups.previews) == [0, 1, 2]
    assert groups.final.shape == groups.previews[0].shape == (2, 8)
    kept = survivors(PruneSchedule(4, 3, 8, (1, 2), (5, 3)), groups.previews, groups.final)
    assert kept.flatten().tolist() == rollout.member.tolist()
    assert torch.allclose(groups.final.gather(1, kept).flatten(), rollout.rewards.double(), atol=1e-5)
    assert sampler.num_expansions == 8
    assert sampler.prune_at == {1: 5, 2: 3}
    correlations = groups.rank_correlations()
    assert correlations[2] > correlations[0]
