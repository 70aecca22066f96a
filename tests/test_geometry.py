# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Whatever the numbers are: every row is trained once, in the update that it belongs to, by somebody who has it."""

import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trl_progrpo.arithmetic import count_work, resolved_arithmetic
from trl_progrpo.geometry import PLACEMENTS, Geometry


@st.composite
def geometries(draw):
    """Any that fits into its micro-batches, filled up to the last row or nearly empty."""
    processes, placement = draw(st.integers(1, 9)), draw(st.sampled_from(PLACEMENTS))
    prompts = draw(st.integers(1 if placement == "spread" else processes, 3 * processes + 2))
    generations, updates, micro_batches = draw(st.integers(2, 7)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    try:
        return Geometry(prompts, generations, processes, updates, micro_batches, draw(st.integers(1, 30)), placement)
    except ValueError:
        assume(False)


@settings(max_examples=300, deadline=None)
@given(geometries(), st.integers(0, 7))
def test_every_row_is_trained_once(geometry, turn):
    trained, at_once = Counter(), set()
    for update in range(geometry.num_updates):
        of_update = set()
        for rank in range(geometry.num_processes):
            batches = geometry.micro_batches_of(rank, update, turn)
            sizes = geometry.micro_batch_sizes(update, turn)
            assert len(batches) == len(sizes) == geometry.micro_batches
            assert all(1 <= size <= geometry.micro_batch_size for size in sizes)
            # What is missing is filled up: all make forward passes over as many rows.
            assert all(len(batch) <= size for batch, size in zip(batches, sizes))
            own = geometry.rows(rank)
            of_update |= {own[row] for batch in batches for row in batch}
            trained.update(own[row] for batch in batches for row in batch)
        assert len(of_update) == geometry.rows_of_update(update, turn)
        at_once.add(frozenset(of_update))
    assert trained == Counter(range(geometry.num_rows))


@settings(max_examples=200, deadline=None)
@given(geometries(), st.sampled_from(PLACEMENTS), st.integers(0, 7))
def test_a_row_belongs_to_the_same_update_on_any_number_of_processes(geometry, placement, turn):
    alone = replace(
        geometry, num_processes=1, micro_batches=1, micro_batch_size=geometry.num_rows, placement=placement
    )
    for update in range(geometry.num_updates):
        rows = [
            sorted(g.rows(r)[row] for r in range(g.num_processes) for b in g.micro_batches_of(r, update, turn) for row in b)
            for g in (geometry, alone)
        ]  # fmt: skip
        assert rows[0] == rows[1]


@settings(max_examples=200, deadline=None)
@given(geometries())
def test_prompts_are_sampled_where_their_rows_are_trained(geometry):
    slots = [geometry.slots(rank) for rank in range(geometry.num_processes)]
    # On every process as many, so that all make as many network calls.
    assert len({len(own) for own in slots}) == 1
    assert set(range(geometry.num_prompts)) <= {slot for own in slots for slot in own}
    if geometry.placement == "rank-local":
        own = [slot for rank, mine in enumerate(slots) for slot in mine[: geometry.own_prompts(rank)]]
        assert own == list(range(geometry.num_prompts))
        for rank, mine in enumerate(slots):
            rows = geometry.rows(rank)
            assert {row // geometry.num_generations for row in rows} == set(mine[: geometry.own_prompts(rank)])


@settings(max_examples=200, deadline=None)
@given(geometries())
def test_updates_have_of_every_group_as_many_but_for_one(geometry):
    for group in range(geometry.num_prompts):
        rows = range(group * geometry.num_generations, (group + 1) * geometry.num_generations)
        of_update = Counter()
        for update in range(geometry.num_updates):
            for rank in range(geometry.num_processes):
                own = geometry.rows(rank)
                of_update[update] += sum(
                    own[row] in rows for batch in geometry.micro_batches_of(rank, update) for row in batch
                )
        assert max(of_update.values()) - min(of_update.values()) <= 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match=r"`prompts_per_rollout` is 3, fewer than 4 processes; .*`group_placement` 'spread'"
    ):
        Geometry(3, 2, 4, 1, 1, 2)
    with pytest.raises(
        ValueError, match=r"gives each of 2 processes 6 trajectories .*`steps_per_generation` 1 is 5; raise"
    ):
        Geometry(4, 3, 2, 1, 1, 5)
    with pytest.raises(ValueError, match=r"gives the process 12 trajectories"):
        Geometry(4, 3, 1, 1, 2, 5, "spread")
    assert Geometry(1, 3, 4, 1, 1, 1, "spread").micro_batches_of(3, 0) == [[]]


class TestConfig:
    def test_as_many_groups_as_the_micro_batches_hold(self, make_config):
        config = make_config(per_device_train_batch_size=5, steps_per_generation=2, num_generations=4)
        assert config.geometry(1).num_prompts == 2
        assert config.geometry(3).num_prompts == 6
        config.group_placement = "spread"
        assert config.geometry(3).num_prompts == 7

    def test_arithmetic_in_words(self, make_config):
        config = make_config(
            per_device_train_batch_size=5, steps_per_generation=2, gradient_accumulation_steps=1, num_generations=3,
            num_expansions=7, prune_steps=[1], prune_sizes=[5], num_inference_steps=4, prompts_per_rollout=5, audit_fraction=0,
        )  # fmt: skip
        geometry = config.geometry(2)
        work = count_work(config, 1, 1, processes=2)
        assert resolved_arithmetic(config, geometry, work, 7) == [
            "rollout: 5 prompts on 2 processes (rank-local), 7 → 5 → 3 trajectories each, 144 network evaluations, 42 previews, "
            "30 images decoded, 72 reward calls",
            "         2 updates of 7 or 8 trajectories, in 1 micro-batch of 4 or 5 on each process; 1 further group and 3 rows "
            "of weight zero fill up uneven ends",
            "epoch:   7 prompts, 2 rollouts, 288 network evaluations, 84 previews, 60 images decoded, 144 reward calls, "
            "4 updates",
        ]
        even = resolved_arithmetic(config, Geometry(4, 3, 1, 2, 1, 6), work)
        assert even[1:] == ["         2 updates of 6 trajectories, in 1 micro-batch of 6"]

    @pytest.mark.parametrize("fraction", [0.05, 0.3, 0.77])
    def test_nothing_is_counted_in_fractions(self, make_config, fraction):
        config = make_config(
            per_device_train_batch_size=6, num_generations=3, num_expansions=7, prune_steps=[1], prune_sizes=[5],
            num_inference_steps=4, audit_fraction=fraction,
        )  # fmt: skip
        work = count_work(config, 1, 1)
        assert work.decodes % 1 > 0
        for line in resolved_arithmetic(config, config.geometry(), work, 7):
            assert not re.search(r"\d\.\d", line), line
            assert not re.search(
                r"(?<![\d,])1 (images|previews|evaluations|calls|trajectories|prompts|updates)", line
            ), line
