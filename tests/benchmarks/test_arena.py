# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The arena and its tools: small ones are run as a user would, and the arithmetic is checked where the answer is known."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml


FOLDER = Path(__file__).parents[2] / "benchmarks"

SMALL = {
    "num_generations": 4,
    "num_inference_steps": 3,
    "per_device_train_batch_size": 8,
    "rollout_batch_size": 16,
    "learning_rate": 1e-3,
}


@pytest.fixture
def arena_report(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import arena_report

    return arena_report


def run_arena(folder, arena, *flags):
    config = folder / "arena.yaml"
    config.write_text(yaml.safe_dump(arena, sort_keys=False))
    command = [sys.executable, str(FOLDER / "arena.py"), "--config", str(config), "--output_dir", str(folder), *flags]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_a_small_arena_runs_and_does_not_run_again(tmp_path):
    arena = {
        "methods": {"plain 4": {}, "post-hoc 8 to 4": {"num_expansions": 8}},
        "budget": {"teraflops": 0.004, "evaluations": 2},
        "seeds": [0],
        "common": SMALL,
        "eval_prompts": 8,
    }
    first = run_arena(tmp_path, arena)
    assert first.returncode == 0, first.stderr
    assert "| post-hoc 8 to 4 | 1 | 0.001 |" in first.stdout
    assert "Against *plain 4*" in first.stdout
    assert "[2/2]" in first.stdout
    lines = [json.loads(line) for line in (tmp_path / "runs" / "post_hoc_8_to_4-0.jsonl").read_text().splitlines()]
    points = [line for line in lines if "teraflops" in line]
    assert points[0]["teraflops"] == 0
    assert points[-1]["teraflops"] >= 0.004
    # 2 prompts, 8 trajectories of 3 steps each.
    assert points[-1]["network_evaluations"] == points[-1]["rollouts"] * 2 * 8 * 3
    assert (tmp_path / "curves.png").stat().st_size > 10_000

    again = run_arena(tmp_path, arena)
    assert again.returncode == 0
    assert "[" not in again.stdout
    assert again.stdout in first.stdout


def curves(arena_report, *slopes):
    """Curves that rise by `slope` per TFLOP, one seed each, and cost 10 seconds per TFLOP."""
    grid = {"teraflops": np.linspace(0, 2, 21), "seconds": np.linspace(0, 20, 21), "rollouts": np.linspace(0, 4, 21)}
    gain = {axis: np.outer(slopes, grid["teraflops"]) for axis in grid}
    return arena_report.Curves(list(range(len(slopes))), gain, grid, 4.0, 10.0, {})


def test_twice_the_slope_is_twice_as_fast(arena_report):
    slow, fast = curves(arena_report, 0.01, 0.03), curves(arena_report, 0.02, 0.06)
    found = arena_report.compare(fast, slow, "seconds")
    assert found["speed"] == pytest.approx(2)
    assert found["speed_interval"] == pytest.approx([2, 2])
    assert found["difference"] == pytest.approx((0.02 + 0.06) / 2)
    assert found["difference_interval"][0] >= 0.02


def test_a_gain_that_is_not_reached_is_no_speed(arena_report):
    found = arena_report.compare(curves(arena_report, 0.01, 0.01), curves(arena_report, 0.03, 0.02), "teraflops")
    assert found["speed"] == 0
    assert "never" in arena_report._times(found)


def test_only_common_seeds_are_compared(arena_report):
    found = arena_report.compare(curves(arena_report, 0.02, 0.9), curves(arena_report, 0.01), "teraflops")
    assert found["seeds"] == 1
    assert found["speed"] == pytest.approx(2)


def test_unknown_method_is_a_sentence(tmp_path):
    arena = {"methods": {"plain": {}}, "budget": {"teraflops": 1}, "seeds": [0]}
    found = run_arena(tmp_path, arena, "--only", "plane")
    assert found.returncode == 2
    assert "--only names plane; the file has plain." in found.stderr


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Runs a script of the folder in this process; returns what it printed."""

    def run(name, *argv):
        monkeypatch.syspath_prepend(FOLDER)
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_learning_signal_of_a_small_pool(run_script, tmp_path):
    small = ("--reference", 1, "--batches", 1, "--groups", 2, "--steps", 4, "--windows", 2, "--output_dir", tmp_path)
    printed = run_script("learning_signal.py", *small)
    assert "| plain 24 | 24 |" in printed
    assert "| 1.00 ± 0.00 |" in printed
    assert "| 1 | " in printed
    # Reference and pool are kept, and read again.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert run_script("learning_signal.py", *small) == printed
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


class TestSignal:
    """Pools whose answer is known: in each group the score function is exactly the reward plus noise."""

    @pytest.fixture
    def pool(self, monkeypatch):
        monkeypatch.syspath_prepend(FOLDER)
        from signal_pool import Pool

        draw = torch.Generator().manual_seed(0)
        rewards = torch.randn(400, 48, generator=draw)
        slopes = 0.1 * rewards[:, :, None] + torch.randn(400, 48, 2, generator=draw)
        previews = torch.stack([torch.randn(400, 48, generator=draw), rewards])
        unit = torch.tensor([1.0, 3.0, 0.0, 0.0, 0.0])
        return Pool(rewards, previews, slopes, torch.ones(2), torch.ones(2), unit, torch.tensor(3))

    def test_signal_is_the_sum_of_squares_over_the_cost(self, pool):
        from signal_score import Method, score

        plain = score(pool, Method("plain", 24))
        half = score(pool, Method("half", 24, 12))
        assert plain.cost == pytest.approx(24 * 3 + 24 * 2 * 3)
        assert half.cost == pytest.approx(24 * 3 + 12 * 2 * 3)
        # OVF keeps about nine tenths of the squares of normal rewards in half of the members.
        assert half.value * half.cost / (plain.value * plain.cost) == pytest.approx(0.92, abs=0.05)
        assert score(pool, Method("random", 24, 12, rule="random")).value < 0.75 * half.value

    def test_exact_previews_are_as_good_as_final_rewards_and_noise_is_random(self, pool):
        from signal_score import Method, score

        post_hoc = score(pool, Method("post-hoc", 24, 12))
        exact = score(pool, Method("exact", 24, 12, prune=((1, 12),)))
        blind = score(pool, Method("blind", 24, 12, prune=((0, 12),)))
        assert exact.value * exact.cost == pytest.approx(post_hoc.value * post_hoc.cost, rel=1e-5)
        assert blind.value * blind.cost < 0.7 * exact.value * exact.cost

    def test_a_preview_that_foretells_the_reward_leaves_nothing_to_learn(self, pool):
        from signal_score import Method, score

        foretold = score(pool, Method("", 24, trained=(1,), preview_baseline=True))
        assert abs(foretold.value) < 0.05 * score(pool, Method("", 24, trained=(1,))).value


def test_where_rewards_are_decided(run_script):
    printed = run_script(
        "where_decided.py", "--prompts", 3, "--families", 3, "--siblings", 3, "--steps", 4, "--window", 2
    )
    rows = [line.split("|")[1:3] for line in printed.splitlines() if "initial noise" in line or "step" in line]
    assert [name.strip() for name, _ in rows] == ["initial noise", "step 0", "step 1"]
    # Nothing is left to decide after the last noise.
    assert float(rows[-1][1]) == 0


def test_what_pruning_could_gain_at_best(run_script):
    printed = run_script(
        "ceiling.py", "--groups", 3, "--members", 8, "--lessons", 8, "--still_open", 2, "--siblings", 3
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows if row[0].isdigit()] == ["0", "1", "2", "3", "4", "5"]
    gains = {row[0]: float(row[2].split()[0]) for row in rows if len(row) == 3 and "±" in row[2]}
    # Who knows more, or pays less for it, gains more.
    assert gains["finished images only"] <= gains["previews"] <= gains["previews that cost nothing"]
    assert gains["the best guess there can be, for nothing"] < gains["final rewards, known in advance"]
    assert sum(" to " in row[0] for row in rows) == 3


def test_what_further_previews_would_be_worth(run_script):
    printed = run_script("look_ahead.py", "--groups", 3, "--members", 8)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    correlations, gains = ([row for row in rows if row[0].isdigit() and len(row) == cells] for cells in (8, 6))
    assert [row[:2] for row in correlations] == [[str(n), name] for n in range(4) for name in ("VAE", "small")]
    found = {(row[0], row[1]): [float(cell.split()[0]) for cell in row[2:]] for row in correlations}
    # One evaluation after a step is the output of the next: the program's preview after that.
    assert found["1", "VAE"][:-1] == found["0", "VAE"][1:]
    assert all(row[3].split()[0] <= row[4].split()[0] <= row[5].split()[0] for row in gains)
