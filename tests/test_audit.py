# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import math

import pytest
import torch

from trl_progrpo.audit import MIN_GROUPS, AuditWatch, audit_metrics, audit_size, spreads
from trl_progrpo.pruning import PRUNING_RULES
from trl_progrpo.types import Conditioning, PruneRecord, Rollout, Schedule


def audited(preview, final, keep, step=1):
    """A rollout whose audit has these preview and final rewards `(P, G)`, and kept `keep` by its rule."""
    prompts, size = preview.shape
    kept = torch.zeros(prompts, size, dtype=torch.bool).scatter(1, keep, True)
    record = PruneRecord(
        step, torch.arange(prompts).repeat_interleave(size), torch.arange(size).repeat(prompts), preview.flatten(),
        kept.flatten(), final.flatten(),
    )  # fmt: skip
    empty = torch.empty(0)
    return Rollout(
        prompt_index=empty.long(), member=empty.long(), latents=empty, step_indices=(), log_probs=empty, rewards=empty,
        rewards_per_func=empty, conditioning=Conditioning({"x": torch.zeros(prompts, 1)}),
        schedule=Schedule.flow(torch.tensor([900.0, 500.0]), torch.tensor([0.9, 0.5, 0.0])), audit_records=(record,),
    )  # fmt: skip


def made(num_groups, noise, rule="ovf", seed=0):
    generator = torch.Generator().manual_seed(seed)
    final = torch.rand(num_groups, 12, generator=generator)
    preview = final + noise * torch.randn(num_groups, 12, generator=generator)
    return audited(preview, final, PRUNING_RULES.get(rule)(preview, 4, generator=generator))


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("prompts", [1, 4, 16])
def test_the_share_of_audited_groups_is_the_fraction(fraction, prompts):
    sizes = [audit_size(fraction, prompts, rollout) for rollout in range(200)]
    assert sum(sizes) == pytest.approx(200 * prompts * fraction, abs=1)
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= prompts


def test_metrics_are_about_final_rewards_of_whole_groups():
    final = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 1.0, 1.0]])
    preview = torch.tensor([[5.0, 6.0, 7.0, 8.0], [4.0, 3.0, 2.0, 1.0]])
    metrics = audit_metrics(audited(preview, final, torch.tensor([[0, 3], [0, 3]])))
    assert metrics["audit/step_1/reward_std_kept"] == pytest.approx((1.5 + 0.5) / 2)
    chance = (math.sqrt(final[0].var().item() / 2) + math.sqrt(final[1].var().item() / 2)) / 2
    assert metrics["audit/step_1/reward_std_random"] == pytest.approx(chance)
    second = -2 / math.sqrt(5)  # ranks 1.5 1.5 3.5 3.5 against 4 3 2 1
    assert metrics["audit/step_1/rank_corr"] == pytest.approx((1 + second) / 2)


def test_rewards_that_do_not_apply_are_left_out():
    final = torch.tensor([[0.0, 1.0, math.nan, 3.0]])
    kept, chance = spreads(audited(final.nan_to_num(), final, torch.tensor([[0, 2, 3]])).audit_records[0])
    assert kept.item() == pytest.approx(1.5)
    assert chance.isfinite().all()


class TestWatch:
    def test_good_previews_are_no_reason_to_warn(self):
        watch = AuditWatch()
        assert [watch.update(made(5, noise=0.05, seed=i)) for i in range(20)] == [None] * 20

    def test_useless_previews_are_told_once_with_the_cure(self):
        watch = AuditWatch()
        told = [watch.update(made(5, noise=50.0, seed=i)) for i in range(20)]
        [message] = [text for text in told if text]
        assert "no more reward spread than chance" in message
        assert "`prune_steps`" in message
        assert "correlation" in message
        assert told.index(message) >= MIN_GROUPS // 5 - 1

    def test_nothing_is_said_before_there_are_enough_groups(self):
        assert AuditWatch().update(made(MIN_GROUPS - 1, noise=50.0)) is None

    def test_rollouts_without_an_audit_are_passed_over(self):
        assert AuditWatch().update(made(MIN_GROUPS, 50.0).replace(audit_records=())) is None
