# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import json
import math
from itertools import combinations

import pytest
import torch

from trl_progrpo.advantages import comparable_rows
from trl_progrpo.metrics import (
    MetricsBuffer,
    group_std,
    prune_metrics,
    random_subset_std,
    rank_correlation,
    reward_counts,
    reward_metrics,
)
from trl_progrpo.types import Conditioning, PruneRecord, Rollout, Schedule


def naive_spearman(x, y):
    """Ranks by counting, ties by the mean of their places, then Pearson's formula; plain Python."""

    def ranks(values):
        places = sorted(values)
        return [sum(i for i, v in enumerate(places) if v == value) / places.count(value) for value in values]

    a, b = ranks(x), ranks(y)
    mean = (len(x) - 1) / 2
    covariance = sum((p - mean) * (q - mean) for p, q in zip(a, b))
    return covariance / math.sqrt(sum((p - mean) ** 2 for p in a) * sum((q - mean) ** 2 for q in b))


class TestRankCorrelation:
    @pytest.mark.parametrize("levels", [3, 5, 1000])
    def test_against_a_naive_one_with_ties(self, levels):
        generator = torch.Generator().manual_seed(levels)
        x, y = torch.randint(0, levels, (2, 30, 9), generator=generator).float()
        expected = torch.tensor([naive_spearman(a, b) for a, b in zip(x.tolist(), y.tolist())], dtype=torch.float64)
        torch.testing.assert_close(rank_correlation(x, y), expected, rtol=1e-12, atol=1e-12)

    def test_any_monotone_map_gives_one(self):
        x = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(rank_correlation(x, x.exp()), torch.ones(4, dtype=torch.float64))
        torch.testing.assert_close(rank_correlation(x, -x.sigmoid()), -torch.ones(4, dtype=torch.float64))

    def test_without_spread_or_with_nan_there_is_none(self):
        x = torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, math.nan], [1.0, 2.0, 3.0]])
        y = torch.tensor([[1.0, 2.0, 3.0]] * 3)
        assert rank_correlation(x, y).isnan().tolist() == [True, True, False]
        assert rank_correlation(y, x).isnan().tolist() == [True, True, False]

    def test_shape(self):
        assert rank_correlation(torch.randn(2, 3, 5), torch.randn(2, 3, 5)).shape == (2, 3)


class TestSpread:
    rewards = torch.tensor([0.1, 0.9, 0.4, 5.0, 1.0, 3.0, 2.0, 0.0])
    groups = torch.tensor([0, 0, 0, 0, 7, 7, 7, 7])

    def test_group_std_is_the_mean_population_deviation(self):
        expected = (self.rewards[:4].std(correction=0) + self.rewards[4:].std(correction=0)) / 2
        torch.testing.assert_close(group_std(self.rewards, self.groups), expected)
        shuffled = torch.randperm(8, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(group_std(self.rewards[shuffled], self.groups[shuffled]), expected)

    def test_constant_groups_have_exactly_none(self):
        assert group_std(torch.full((12,), 0.1), torch.arange(12) // 6) == 0

    @pytest.mark.parametrize("size", [1, 2, 3, 4])
    def test_a_random_subset_keeps_the_mean_over_all_subsets(self, size):
        expected = []
        for group in (self.rewards[:4], self.rewards[4:]):
            variances = [group[list(subset)].var(correction=0) for subset in combinations(range(4), size)]
            expected.append(torch.stack(variances).mean().sqrt())
        torch.testing.assert_close(random_subset_std(self.rewards, self.groups, size), torch.stack(expected).mean())

    def test_all_of_them_is_no_subset(self):
        torch.testing.assert_close(
            random_subset_std(self.rewards[:4], self.groups[:4], 4), group_std(self.rewards[:4], self.groups[:4])
        )

    def test_rows_without_a_reward_are_left_out(self):
        rewards = torch.cat([self.rewards, torch.full((3,), math.nan), torch.tensor([math.nan])])
        groups = torch.cat([self.groups, torch.tensor([9, 9, 9, 0])])
        torch.testing.assert_close(group_std(rewards, groups), group_std(self.rewards, self.groups))
        torch.testing.assert_close(
            random_subset_std(rewards, groups, 3), random_subset_std(self.rewards, self.groups, 3)
        )
        assert group_std(rewards[8:11], groups[8:11]).isnan()
        assert random_subset_std(rewards[8:11], groups[8:11], 2).isnan()


def make_rollout(records, prompt_index, member, rewards, steps=4):
    rows = len(rewards)
    return Rollout(
        prompt_index=torch.tensor(prompt_index),
        member=torch.tensor(member),
        latents=torch.zeros(rows, 2, 1),
        step_indices=(0,),
        log_probs=torch.zeros(rows, 1),
        rewards=torch.tensor(rewards),
        rewards_per_func=torch.tensor(rewards)[:, None],
        conditioning=Conditioning({"embeds": torch.zeros(2, 1)}),
        schedule=Schedule.flow(torch.arange(steps).flip(0), torch.linspace(1, 0, steps + 1)),
        prune_records=tuple(records),
    )


class TestPruneMetrics:
    def test_one_checkpoint_by_hand(self):
        previews = torch.tensor([0.0, 1.0, 2.0, 9.0, 4.0, 4.0, 1.0, 0.0])
        kept = torch.tensor([True, False, True, True, True, False, True, True])
        prompts, members = torch.tensor([0] * 4 + [1] * 4), torch.tensor([0, 1, 2, 3] * 2)
        record = PruneRecord(2, prompts, members, previews, kept)
        # The survivors' previews are 0 2 9 and 4 1 0: the final rewards agree in the first group and not in the second.
        rollout = make_rollout([record], [0, 0, 0, 1, 1, 1], [0, 2, 3, 0, 2, 3], [1.0, 2.0, 3.0, 1.0, 3.0, 2.0])
        metrics = prune_metrics(rollout)
        second = naive_spearman([4, 1, 0], [1, 3, 2])
        assert metrics["prune/step_2/rank_corr"] == pytest.approx((1.0 + second) / 2)
        assert metrics["prune/step_2/reward_std_before"] == pytest.approx(group_std(previews, prompts).item())
        assert metrics["prune/step_2/reward_std_after"] == pytest.approx(
            group_std(previews[kept], prompts[kept]).item()
        )
        assert metrics["prune/step_2/reward_std_random"] == pytest.approx(
            random_subset_std(previews, prompts, 3).item()
        )
        assert len(metrics) == 4

    def test_two_checkpoints_and_a_post_hoc_one(self):
        first = PruneRecord(
            1, torch.zeros(5, dtype=torch.int64), torch.arange(5), torch.tensor([5.0, 1.0, 4.0, 0.0, 3.0]),
            torch.tensor([True, True, True, False, True]),
        )  # fmt: skip
        last = PruneRecord(
            4, torch.zeros(4, dtype=torch.int64), torch.tensor([0, 1, 2, 4]), torch.tensor([1.0, 2.0, 3.0, 4.0]),
            torch.tensor([True, False, True, True]),
        )  # fmt: skip
        metrics = prune_metrics(make_rollout([first, last], [0, 0, 0], [0, 2, 4], [1.0, 3.0, 4.0]))
        assert metrics["prune/step_1/rank_corr"] == pytest.approx(naive_spearman([5, 4, 3], [1, 3, 4]))
        assert "prune/step_4/rank_corr" not in metrics
        assert metrics["prune/step_4/reward_std_after"] == pytest.approx(
            torch.tensor([1.0, 3, 4]).std(correction=0).item()
        )

    def test_previews_without_spread_have_no_correlation(self):
        record = PruneRecord(
            0, torch.zeros(3, dtype=torch.int64), torch.arange(3), torch.ones(3), torch.ones(3).bool()
        )
        metrics = prune_metrics(make_rollout([record], [0, 0, 0], [0, 1, 2], [1.0, 2.0, 3.0]))
        assert math.isnan(metrics["prune/step_0/rank_corr"])
        assert metrics["prune/step_0/reward_std_before"] == 0

    def test_no_pruning_no_metrics(self):
        assert prune_metrics(make_rollout([], [0, 0], [0, 1], [1.0, 2.0])) == {}


class TestRewardMetrics:
    def test_by_hand(self):
        nan = math.nan
        rewards = [1.0, 3.0, nan, 2.0, 2.0, nan, nan, nan, 8.0]
        advantages = torch.tensor([-1.0, 1.0, nan, 0.0, 0.0, nan, nan, nan, nan])
        rollout = make_rollout([], [0] * 3 + [1] * 3 + [2] * 3, [0, 1, 2] * 3, rewards)
        metrics = reward_metrics(rollout.replace(advantages=advantages), ["one"])
        assert metrics == pytest.approx(
            {
                "reward": 16 / 5, "rewards/one/mean": 16 / 5, "reward_std": 1 / 3, "frac_reward_zero_std": 1 / 2,
                "frac_groups_left_out": 1 / 3,
            }
        )  # fmt: skip

    def test_without_any_reward_there_is_nothing_to_tell_but_that(self):
        nan = torch.full((4,), math.nan)
        rollout = make_rollout([], [0, 0, 1, 1], [0, 1, 0, 1], nan.tolist()).replace(advantages=nan)
        told = {name: value for name, value in reward_metrics(rollout, ["one"]).items() if not math.isnan(value)}
        assert told == {"frac_groups_left_out": 1.0}


class TestMetricsBuffer:
    class Processes:
        """Two processes, the other of which gathered what it is made with."""

        num_processes, device = 2, "cpu"

        def __init__(self, other, weights=None):
            self.other = torch.tensor([[*other, *(weights or [1.0] * len(other))]])

        def gather(self, values):
            return torch.cat([values, self.other])

    class One:
        num_processes = 1

    def test_means_maxima_and_minima_without_nan(self):
        buffer = MetricsBuffer()
        assert not buffer
        for value in (1.0, torch.tensor(3.0), math.nan):
            for name in ("a", "a/max", "a/min"):
                buffer.add(name, value)
        buffer.add("silent", math.nan)
        assert buffer
        assert buffer.drain(self.One()) == {"a": 2.0, "a/max": 3.0, "a/min": 1.0}
        assert not buffer

    def test_over_processes(self):
        buffer = MetricsBuffer()
        for name, value in (("b/max", 1.0), ("a", 1.0), ("c/min", 1.0), ("mine", 5.0), ("theirs", math.nan)):
            buffer.add(name, value)
        # By name: a, b/max, c/min, mine, theirs.
        told = buffer.drain(self.Processes([3.0, 3.0, 3.0, math.nan, 7.0]))
        assert told == {"a": 2.0, "b/max": 3.0, "c/min": 1.0, "mine": 5.0, "theirs": 7.0}

    def test_a_value_may_say_what_it_weighs(self):
        buffer = MetricsBuffer()
        buffer.add("reward", 1.0, 3)
        buffer.add("reward", math.nan, 0)
        buffer.add("reward", 5.0, 1)
        state = json.loads(json.dumps(buffer.state_dict()))
        assert buffer.drain(self.One()) == {"reward": 2.0}
        buffer.load_state_dict(state)
        buffer.add("plain", 4.0)
        # The process weighs 3 where a value does not say.
        told = buffer.drain(self.Processes([0.0, 6.0], [1.0, 12.0]), weight=3)
        assert told == {"plain": 3.0, "reward": 5.0}
        buffer.load_state_dict({"old": [1.0, 2.0]})
        assert buffer.drain(self.One()) == {"old": 1.5}

    def test_errors_are_added_up_over_processes(self):
        buffer = MetricsBuffer()
        for count in (2, 4):
            buffer.add("reward_errors/timeout", count)
        assert buffer.drain(self.Processes([5.0])) == {"reward_errors/timeout": 8.0}

    def test_what_a_process_has_weighs_as_its_rows(self):
        """Two processes with as many rows, some without a reward, tell what one with all of them would."""
        nan = math.nan
        halves = [
            make_rollout([], [0, 0, 1, 1], [0, 1, 0, 1], rewards)
            for rewards in ([1.0, nan, 4.0, 2.0], [nan, nan, 3.0, 5.0])
        ]
        whole = make_rollout([], [0, 0, 1, 1, 2, 2, 3, 3], [0, 1] * 4, [1.0, nan, 4.0, 2.0, nan, nan, 3.0, 5.0])
        told = []
        for rollout in (*halves, whole):
            left_out = ~comparable_rows(rollout.rewards, rollout.prompt_index)
            rollout = rollout.replace(advantages=torch.where(left_out, nan, 0.0))
            buffer, counts = MetricsBuffer(), reward_counts(rollout, ["one"])
            for name, value in reward_metrics(rollout, ["one"]).items():
                buffer.add(name, value, counts[name])
            told.append(buffer)
        expected = told[2].drain(self.One())
        names = sorted(told[1]._values)
        value, weight = zip(*(told[1]._values[name][0] for name in names))
        assert told[0].drain(self.Processes(value, weight)) == pytest.approx(expected)
