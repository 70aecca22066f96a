# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import math
import statistics

import pytest
import torch

from trl_progrpo.advantages import comparable_rows, group_advantages, normalize_multi, weighted_rewards


NAN = float("nan")

REWARDS = torch.tensor([1.0, 7.0, 2.0, 9.0, 4.0, 5.0, 3.0])
PROMPTS = torch.tensor([40, -3, 40, -3, 40, 8, -3])


def naive(rewards, prompts, scale="group", eps=1e-4):
    result = []
    for prompt, reward in zip(prompts, rewards, strict=True):
        group = [r for r, p in zip(rewards, prompts, strict=True) if p == prompt]
        std = {"group": statistics.pstdev(group), "batch": statistics.pstdev(rewards), "none": 1.0 - eps}[scale]
        result.append((reward - statistics.fmean(group)) / (std + eps))
    return torch.tensor(result)


class TestGroupAdvantages:
    @pytest.mark.parametrize("scale", ["group", "batch", "none"])
    @pytest.mark.parametrize("eps", [1e-4, 1.0])
    def test_matches_a_naive_loop(self, scale, eps):
        advantages = group_advantages(REWARDS, PROMPTS, scale, eps)
        assert advantages.dtype == torch.float32
        expected = naive(REWARDS.tolist(), PROMPTS.tolist(), scale, eps)
        torch.testing.assert_close(advantages, expected, rtol=1e-6, atol=1e-7)

    def test_groups_are_not_told_apart_by_position(self):
        order = torch.tensor([3, 0, 6, 5, 1, 2, 4])
        advantages = group_advantages(REWARDS, PROMPTS)
        torch.testing.assert_close(group_advantages(REWARDS[order], PROMPTS[order]), advantages[order])

    def test_large_ids_are_not_merged(self):
        prompts = torch.tensor([2**53, 2**53 + 1] * 2)
        advantages = group_advantages(torch.tensor([0.0, 10.0, 2.0, 12.0]), prompts, "none")
        assert advantages.tolist() == [-1, -1, 1, 1]

    @pytest.mark.parametrize("scale", ["group", "batch", "none"])
    def test_no_spread_and_singletons_are_exactly_zero(self, scale):
        # The mean of three 0.1 is not 0.1 in floating point.
        rewards = torch.tensor([0.1, 0.1, 0.1, 5.0, 1.0, 2.0], dtype=torch.float64)
        advantages = group_advantages(rewards, torch.tensor([0, 0, 0, 1, 2, 2]), scale)
        assert advantages[:4].tolist() == [0, 0, 0, 0]
        assert advantages[5] > 0

    @pytest.mark.parametrize("scale", ["group", "batch", "none"])
    def test_invalid_rows_are_left_out(self, scale):
        rewards = torch.tensor([1.0, NAN, 2.0, 6.0, NAN, 3.0, NAN])
        prompts = torch.tensor([0, 0, 0, 0, 1, 1, 2])
        valid = ~rewards.isnan()
        advantages = group_advantages(rewards, prompts, scale)
        assert advantages[~valid].tolist() == [0, 0, 0]
        assert advantages[5] == 0
        torch.testing.assert_close(advantages[valid], group_advantages(rewards[valid], prompts[valid], scale))
        assert advantages[3] > 0.5

    @pytest.mark.parametrize("scale", ["group", "batch", "none"])
    def test_nothing_valid(self, scale):
        assert group_advantages(torch.full((3,), NAN), torch.zeros(3, dtype=torch.int64), scale).tolist() == [0, 0, 0]
        assert group_advantages(torch.empty(0), torch.empty(0, dtype=torch.int64), scale).shape == (0,)

    def test_large_offset(self):
        rewards = REWARDS.double()
        torch.testing.assert_close(group_advantages(rewards + 2.0**40, PROMPTS), group_advantages(rewards, PROMPTS))

    @pytest.mark.parametrize("batch_std", [0.0, 0.5, 3.0])
    def test_batch_std_of_the_caller(self, batch_std):
        advantages = group_advantages(REWARDS, PROMPTS, "batch", batch_std=batch_std)
        expected = group_advantages(REWARDS, PROMPTS, "none") / (batch_std + 1e-4)
        torch.testing.assert_close(advantages, expected)

    def test_no_gradient(self):
        assert not group_advantages(REWARDS.clone().requires_grad_(), PROMPTS).requires_grad

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"scale_rewards": "std"}, "`scale_rewards` is 'std'"),
            ({"batch_std": 1.0}, "`batch_std` is 1.0 with scale_rewards='group'"),
            ({"batch_std": NAN, "scale_rewards": "batch"}, "`batch_std` is nan"),
            ({"batch_std": -1.0, "scale_rewards": "batch"}, "`batch_std` is -1.0"),
            ({"prompt_index": PROMPTS.float()}, "identified by integers"),
            ({"prompt_index": PROMPTS[:3]}, "one group id per row"),
            ({"rewards": REWARDS.clone().index_fill_(0, torch.tensor([2]), math.inf)}, "1 rewards are infinite"),
        ],
    )
    def test_refusals(self, changes, message):
        with pytest.raises(ValueError, match=message):
            group_advantages(**{"rewards": REWARDS, "prompt_index": PROMPTS, **changes})


class TestWeightedRewards:
    def test_sums_what_applies(self):
        rewards = torch.tensor([[1.0, 2.0, 4.0], [NAN, 2.0, 4.0], [NAN, NAN, NAN]])
        total = weighted_rewards(rewards, [1.0, 0.5, -1.0])
        assert total.dtype == torch.float32
        torch.testing.assert_close(total, torch.tensor([-2.0, -3.0, NAN]), equal_nan=True)
        torch.testing.assert_close(weighted_rewards(rewards, torch.tensor([1.0, 0.5, -1.0])), total, equal_nan=True)

    @pytest.mark.parametrize("function", [weighted_rewards, lambda r, w: normalize_multi(r, torch.zeros(2).long(), w)])
    def test_refusals(self, function):
        with pytest.raises(ValueError, match="one weight per reward function"):
            function(torch.zeros(2, 3), [1.0, 2.0])
        with pytest.raises(ValueError, match="finite"):
            function(torch.zeros(2, 2), [1.0, NAN])


class TestNormalizeMulti:
    REWARDS = torch.stack([REWARDS, REWARDS.flip(0) * 100, (REWARDS - 4).square()], 1)
    WEIGHTS = (1.0, 0.5, 2.0)

    def test_matches_a_naive_loop(self):
        total = sum(
            weight * naive(self.REWARDS[:, i].tolist(), PROMPTS.tolist()).double()
            for i, weight in enumerate(self.WEIGHTS)
        )
        expected = (total - total.mean()) / (total.std(correction=0) + 1e-4)
        advantages = normalize_multi(self.REWARDS, PROMPTS, self.WEIGHTS)
        assert advantages.dtype == torch.float32
        torch.testing.assert_close(advantages.double(), expected, rtol=1e-5, atol=1e-6)

    def test_the_scale_of_a_reward_does_not_matter(self):
        scaled = self.REWARDS * torch.tensor([1.0, 1e4, 1.0])
        torch.testing.assert_close(
            normalize_multi(scaled, PROMPTS, self.WEIGHTS, eps=1e-12),
            normalize_multi(self.REWARDS, PROMPTS, self.WEIGHTS, eps=1e-12),
        )

    def test_unscaled_has_mean_zero_and_gives_the_scaled_one(self):
        unscaled = normalize_multi(self.REWARDS, PROMPTS, self.WEIGHTS, scale_batch=False)
        assert abs(unscaled.mean()) < 1e-6
        scaled = unscaled / (unscaled.square().mean().sqrt() + 1e-4)
        torch.testing.assert_close(normalize_multi(self.REWARDS, PROMPTS, self.WEIGHTS), scaled)

    def test_rows_and_rewards_that_do_not_apply(self):
        rewards = torch.tensor([[1.0, NAN], [3.0, NAN], [NAN, 1.0], [NAN, 9.0], [NAN, NAN]])
        prompts = torch.tensor([0, 0, 1, 1, 1])
        advantages = normalize_multi(rewards, prompts, [1.0, 1.0])
        torch.testing.assert_close(advantages, torch.tensor([-1.0, 1.0, -1.0, 1.0, 0.0]), rtol=0, atol=1e-3)
        assert advantages[4] == 0

    def test_no_spread_and_nothing_valid(self):
        assert normalize_multi(torch.full((4, 2), 0.1), PROMPTS[:4], [1.0, 1.0]).tolist() == [0] * 4
        assert normalize_multi(torch.full((4, 2), NAN), PROMPTS[:4], [1.0, 1.0]).tolist() == [0] * 4


def test_comparable_rows_have_a_reward_and_company():
    rewards = torch.tensor([1.0, NAN, 2.0, NAN, 3.0, NAN, 4.0, NAN])
    groups = torch.tensor([5, 5, 5, -1, -1, 9, 7, 7])
    assert comparable_rows(rewards, groups).nonzero().flatten().tolist() == [0, 2]
    assert not comparable_rows(torch.full((3,), NAN), torch.zeros(3, dtype=torch.int64)).any()
    with pytest.raises(ValueError, match="identified by integers"):
        comparable_rows(rewards, groups.float())
