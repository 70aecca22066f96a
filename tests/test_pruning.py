# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_progrpo.pruning import PRUNING_RULES, none, ovf, random, top_bottom, top_k


ALL_RULES = [PRUNING_RULES.get(name) for name in PRUNING_RULES.names()]

INTEGERS = st.integers(-3, 3).map(float)
FLOATS = st.floats(-100, 100, width=32)


def variance(values):
    """Exact population variance."""
    values = [Fraction(value) for value in values]
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def best_variance(row, k):
    return max(variance(subset) for subset in itertools.combinations(row, k))


@st.composite
def groups(draw, elements):
    n = draw(st.integers(1, 9))
    rows = draw(st.lists(st.lists(elements, min_size=n, max_size=n), min_size=1, max_size=3))
    return rows, draw(st.integers(1, n))


@pytest.mark.parametrize("rule", ALL_RULES)
class TestEveryRule:
    @settings(derandomize=True, max_examples=30, deadline=None)
    @given(group=groups(INTEGERS))
    def test_returns_k_distinct_members_in_order(self, rule, group):
        rows, k = group
        kept = rule(torch.tensor(rows), k, generator=torch.Generator().manual_seed(0))
        assert kept.shape == (len(rows), k)
        assert kept.dtype == torch.int64
        for row in kept.tolist():
            assert row == sorted(set(row))
            assert 0 <= row[0]
            assert row[-1] < len(rows[0])

    def test_all_are_kept_when_k_is_n(self, rule):
        kept = rule(torch.tensor([[2.0, 1.0, 3.0], [0.0, 0.0, 1.0]]), 3)
        assert kept.tolist() == [[0, 1, 2]] * 2

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_refuses_what_is_not_finite(self, rule, bad):
        with pytest.raises(ValueError, match=r"`rewards\[1, 2\]` is"):
            rule(torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, bad]]), 2)

    @pytest.mark.parametrize("k", [0, -1, 4, 2.0, True])
    def test_refuses_k_out_of_range(self, rule, k):
        with pytest.raises(ValueError, match="`k` is"):
            rule(torch.tensor([[1.0, 2.0, 3.0]]), k)

    def test_refuses_other_shapes(self, rule):
        with pytest.raises(ValueError, match="one row per group"):
            rule(torch.tensor([1.0, 2.0]), 1)

    def test_integer_and_half_rewards(self, rule):
        kept = [
            rule(torch.tensor([[1, 4, 2, 2]], dtype=dtype), 2, generator=torch.Generator().manual_seed(3)).tolist()
            for dtype in (torch.int64, torch.bfloat16, torch.float32, torch.float64)
        ]
        assert kept.count(kept[0]) == 4

    def test_no_groups(self, rule):
        assert rule(torch.empty(0, 4), 2).shape == (0, 2)


class TestOVF:
    @settings(derandomize=True, max_examples=150, deadline=None)
    @given(group=groups(INTEGERS))
    def test_is_optimal_among_all_subsets_with_ties(self, group):
        rows, k = group
        for row, kept in zip(rows, ovf(torch.tensor(rows), k).tolist(), strict=True):
            assert variance([row[i] for i in kept]) == best_variance(row, k)

    @settings(derandomize=True, max_examples=150, deadline=None)
    @given(group=groups(FLOATS))
    def test_is_optimal_among_all_subsets(self, group):
        rows, k = group
        for row, kept in zip(rows, ovf(torch.tensor(rows), k).tolist(), strict=True):
            best = best_variance(row, k)
            assert best - variance([row[i] for i in kept]) <= best * Fraction(1, 10**12)

    @settings(derandomize=True, max_examples=60, deadline=None)
    @given(group=groups(INTEGERS))
    def test_offset_does_not_matter(self, group):
        rows, k = group
        rewards = torch.tensor(rows, dtype=torch.float64)
        assert torch.equal(ovf(rewards, k), ovf(rewards + 2.0**50, k))

    @settings(derandomize=True, max_examples=60, deadline=None)
    @given(group=groups(INTEGERS))
    def test_among_equal_rewards_the_lower_index_is_kept(self, group):
        rows, k = group
        for row, kept in zip(rows, ovf(torch.tensor(rows), k).tolist(), strict=True):
            dropped = set(range(len(row))) - set(kept)
            assert not any(row[i] == row[j] and j < i for i in kept for j in dropped)

    def test_half_and_half_is_not_always_the_best(self):
        rewards = torch.tensor([[10.0, 0.0, 0.1, 0.2]])
        assert ovf(rewards, 3).tolist() == [[0, 1, 2]]
        assert top_bottom(rewards, 3).tolist() == [[0, 1, 3]]

    def test_equal_splits_keep_more_of_the_best(self):
        # {0, 1, 3} and {0, 2, 3} have the same variance.
        assert ovf(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), 3).tolist() == [[0, 2, 3]]
        assert ovf(torch.tensor([[5.0, 7.0, 6.0, 7.0]]), 1).tolist() == [[1]]
        assert ovf(torch.full((1, 5), 0.1), 3).tolist() == [[0, 1, 2]]

    def test_groups_do_not_mix(self):
        rewards = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
        together = ovf(rewards, 3)
        assert torch.equal(together, torch.cat([ovf(row[None], 3) for row in rewards]))


class TestBaselines:
    def test_top_bottom(self):
        rewards = torch.tensor([[3.0, 1.0, 5.0, 2.0, 4.0, 0.0]])
        assert top_bottom(rewards, 4).tolist() == [[1, 2, 4, 5]]
        assert top_bottom(rewards, 3).tolist() == [[2, 4, 5]]
        assert top_bottom(torch.zeros(1, 6), 4).tolist() == [[0, 1, 2, 3]]

    def test_top_k(self):
        assert top_k(torch.tensor([[3.0, 1.0, 5.0, 2.0, 5.0, 5.0]]), 2).tolist() == [[2, 4]]

    def test_none_looks_at_no_reward(self):
        assert none(torch.tensor([[3.0, 1.0, 5.0], [9.0, 8.0, 7.0]]), 2).tolist() == [[0, 1], [0, 1]]

    def test_random_is_the_generators(self):
        rewards = torch.zeros(20, 10)
        draws = [random(rewards, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])
        assert len({tuple(row) for row in draws[0].tolist()}) > 10

    def test_random_is_uniform(self):
        kept = random(torch.zeros(20000, 5), 2, generator=torch.Generator().manual_seed(0))
        # Expected 8000 each with a standard deviation of 69.
        counts = kept.flatten().bincount(minlength=5)
        assert (counts - 8000).abs().max() < 300

    def test_random_without_generator_uses_the_global_one(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            first = random(torch.zeros(5, 9), 3)
            torch.manual_seed(0)
            assert torch.equal(first, random(torch.zeros(5, 9), 3))
            assert not torch.equal(first, random(torch.zeros(5, 9), 3))
