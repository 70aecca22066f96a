# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""From the rollouts of all processes to micro-batches: what is trained, and what it weighs."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_geometry import geometries

from trl_progrpo.dealing import micro_batches, own_advantages, whole_groups
from trl_progrpo.geometry import Geometry
from trl_progrpo.ranks import RankWatch
from trl_progrpo.spread import Spread, _pack, _unpack
from trl_progrpo.types import Conditioning, Rollout, Schedule


SCHEDULE = Schedule.flow(torch.tensor([1.0]), torch.tensor([1.0, 0.0]))


def rollout_of(geometry, rank):
    """What a process samples: members 3, 6, 9, ... survive; rewards follow from slot and member."""
    slots = geometry.slots(rank)
    if geometry.placement == "spread":
        # Rows are dealt out as `Spread` does, the last one standing for those that are missing.
        first = rank * geometry.rows_per_process
        rows = torch.arange(first, first + geometry.rows_per_process).clamp(max=geometry.num_rows - 1)
    else:
        rows = torch.arange(len(slots) * geometry.num_generations)
    prompt, member = rows // geometry.num_generations, 3 * (rows % geometry.num_generations)
    rewards = (prompt + slots.start).float() + member / 100
    return Rollout(
        prompt_index=prompt,
        member=member,
        latents=torch.zeros(len(rows), 2, 1),
        step_indices=(0,),
        log_probs=torch.zeros(len(rows), 1),
        rewards=rewards,
        rewards_per_func=rewards[:, None],
        conditioning=Conditioning({"prompt": torch.zeros(len(slots), 1)}),
        schedule=SCHEDULE,
        first_slot=slots.start,
    )


@settings(max_examples=150, deadline=None)
@given(geometries(), st.integers(0, 4))
def test_every_survivor_of_the_plan_is_trained_once_and_weighs_the_same(geometry, turn):
    trained, weights = Counter(), Counter()
    for rank in range(geometry.num_processes):
        rollout = rollout_of(geometry, rank)
        groups = rollout.replace(advantages=torch.ones(geometry.num_rows))
        rollout = rollout.replace(advantages=own_advantages(rollout, groups, geometry, rank))
        batches = micro_batches(rollout, geometry, rank, turn, "cpu")
        assert len(batches) == geometry.num_updates * geometry.micro_batches
        for index, batch in enumerate(batches):
            counts = ~batch.rows.advantages.isnan()
            assert counts.sum() == batch.num_rows == counts[: batch.num_rows].sum()
            slots = (batch.rows.prompt_index[counts] + rollout.first_slot).tolist()
            trained.update(zip(slots, batch.rows.member[counts].tolist()))
            weights[index // geometry.micro_batches] += batch.num_rows * batch.scale / geometry.num_processes
    assert trained == Counter((p, 3 * m) for p in range(geometry.num_prompts) for m in range(geometry.num_generations))
    # An update without any row has nothing to weigh.
    assert all(weight == pytest.approx(1) or weight == 0 for weight in weights.values())


@settings(max_examples=100, deadline=None)
@given(geometries())
def test_every_group_is_judged_by_its_own_process(geometry):
    if geometry.placement == "spread":
        return
    judged = []
    for rank in range(geometry.num_processes):
        rollout = rollout_of(geometry, rank)
        groups = whole_groups(rollout, geometry, rank, None)
        judged += (groups.prompt_index.unique() + rollout.first_slot).tolist()
        advantages = own_advantages(rollout, groups.replace(advantages=groups.rewards), geometry, rank)
        rows = len(geometry.rows(rank))
        assert torch.equal(advantages[:rows], groups.rewards)
        assert advantages[rows:].isnan().all()
    assert judged == list(range(geometry.num_prompts))


def test_what_fills_up_has_no_advantage():
    geometry = Geometry(3, 2, 2, 1, 1, 4)
    rollout = rollout_of(geometry, 1)
    groups = whole_groups(rollout, geometry, 1, None)
    assert groups.prompt_index.tolist() == [0, 0]
    rollout = rollout.replace(
        advantages=own_advantages(rollout, groups.replace(advantages=torch.tensor([1.0, -1.0])), geometry, 1)
    )
    [batch] = micro_batches(rollout, geometry, 1, 0, "cpu")
    assert (len(batch.rows), batch.num_rows, batch.scale) == (4, 2, 2 / 6)
    assert batch.rows.advantages.tolist()[:2] == [1.0, -1.0]
    assert all(math.isnan(value) for value in batch.rows.advantages.tolist()[2:])


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_travel_as_bytes_and_arrive_as_they_were(rows):
    tensors = {
        "flag": torch.tensor([True, False, True])[:rows],
        "latents": torch.randn(rows, 2, 3, dtype=torch.bfloat16),
        "member": torch.arange(rows) - 7,
        "none": torch.empty(rows, 0),
        "log_probs": torch.tensor([[math.nan, -1.5], [0.0, 3.0], [1e-30, math.inf]])[:rows],
        "double": torch.rand(rows, dtype=torch.float64),
    }
    arrived = _unpack(_pack(tensors), tensors)
    assert list(arrived) == list(tensors)
    for name, tensor in tensors.items():
        torch.testing.assert_close(arrived[name], tensor, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9))
def test_shares_are_equal_and_hold_every_row(total, processes):
    spreads = [Spread(RankWatch(rank, processes)) for rank in range(processes)]
    assert len({len(spread.share(total)) for spread in spreads}) == 1
    assert [row for spread in spreads for row in spread.own(total)] == list(range(total))
    for rank, spread in enumerate(spreads):
        own = spread.own(total)
        assert spread.share(total)[: len(own)].tolist() == list(own)
        assert torch.equal(spreads[0].share(total, rank), spread.share(total))
