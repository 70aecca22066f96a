# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The same run on one, two and four processes: real ones, over gloo."""

import math

import pytest
import torch
from forks import Forks
from ranked import run
from safetensors.torch import load_file


# Nothing divides: five prompts, groups of seven, five and three, fifteen trajectories for two updates.
UNEVEN = {
    "prompts_per_rollout": 5, "num_generations": 3, "num_expansions": 7, "prune_steps": [1], "prune_sizes": [5],
    "num_inference_steps": 4, "steps_per_generation": 2, "rollout_batch_size": 4, "max_steps": 5, "learning_rate": 1e-3,
    "epsilon": 1e-2, "audit_fraction": 0.3, "seed": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def forks():
    with Forks() as forks:
        yield forks


@pytest.fixture(scope="module")
def alone(forks, pipeline_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    [told] = run(forks, folder, 1, model=pipeline_path, per_device_train_batch_size=8, **UNEVEN)
    return told, load_file(folder / "weights.safetensors")


def assert_same(told, alone, weights, folder):
    expected, expected_weights = alone
    for index, whole in enumerate(expected["rollouts"]):
        parts = [one["rollouts"][index] for one in told]
        rows = [row for part in parts for row in part["rows"]]
        assert [row[:2] for row in rows] == [row[:2] for row in whole["rows"]]
        values, expected_values = (torch.tensor([row[2:] for row in some]) for some in (rows, whole["rows"]))
        torch.testing.assert_close(values, expected_values, rtol=0, atol=2e-4)
        # Further groups are other processes', and judged alike.
        assert {tuple(k) for part in parts for k in part["kept"] if k[1] < 5} == {tuple(k) for k in whole["kept"]}
        assert all(part["left_out"] for part in parts)
    for step in range(5):
        trained = [row for one in told for at, _, rows in one["trained"] if at == step for row in rows]
        once = [row for at, _, rows in expected["trained"] if at == step for row in rows]
        assert sorted(trained) == sorted(once)
        # Every process makes forward passes over as many rows.
        assert len({tuple(size for at, size, _ in one["trained"] if at == step) for one in told}) == 1
    for name in ("loss", "grad_norm", "reward", "reward_std", "ratio/max", "prune/step_1/reward_std_before"):
        for one, other in zip(told[0]["logs"], expected["logs"]):
            # Of a rollout is told when it is new.
            values = one.get(name, math.nan), other.get(name, math.nan)
            assert values[0] == pytest.approx(values[1], rel=2e-3, abs=1e-6, nan_ok=True), (name, one["step"])
        assert any(name in entry for entry in expected["logs"])
    for name, value in load_file(folder / "weights.safetensors").items():
        torch.testing.assert_close(value, expected_weights[name], rtol=0, atol=weights)


@pytest.mark.parametrize(
    ("processes", "placement", "micro_batch"),
    [
        (2, "rank-local", 5),
        (2, "spread", 4),
        pytest.param(4, "rank-local", 3, marks=pytest.mark.slow),
        pytest.param(4, "spread", 2, marks=pytest.mark.slow),
    ],
)
def test_the_number_of_processes_changes_nothing(
    forks, pipeline_path, alone, tmp_path, processes, placement, micro_batch
):
    told = run(
        forks, tmp_path, processes, model=pipeline_path, per_device_train_batch_size=micro_batch,
        group_placement=placement, **UNEVEN,
    )  # fmt: skip
    assert_same(told, alone, 2e-5, tmp_path)
    moved = sum(one["rollouts"][-1]["bytes_sent"] for one in told)
    assert (moved > 0) == (placement == "spread")


@pytest.mark.slow
@pytest.mark.parametrize(("placement", "micro_batch"), [("rank-local", 5), ("spread", 4)])
def test_sharded_weights_do_not_wait_for_uneven_ends(forks, pipeline_path, alone, tmp_path, placement, micro_batch):
    """With FSDP2 every network call takes all processes: one call more on one of them, and the run would hang."""
    fsdp2 = {
        "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }  # fmt: skip
    told = run(
        forks, tmp_path, 2, fsdp2, model=pipeline_path, per_device_train_batch_size=micro_batch,
        group_placement=placement, **UNEVEN,
    )  # fmt: skip
    assert_same(told, alone, 2e-5, tmp_path)
