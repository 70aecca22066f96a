# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What the README says of `make demo`, run as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


CONFIG = Path(__file__).parent.parent / "examples" / "configs" / "shapes_demo.yaml"


def run_demo(folder, *flags):
    """Trains in a fresh process; returns the evaluation results and what was printed."""
    command = [sys.executable, "-m", "trl_progrpo.cli", "train", "--config", str(CONFIG)]
    environment = {key: value for key, value in os.environ.items() if key != "CI"}
    done = subprocess.run(
        [*command, "--output_dir", str(folder), *flags],
        capture_output=True,
        text=True,
        env={**environment, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "eval_results.json").read_text()), done.stdout + done.stderr


def test_a_shortened_demo_leaves_everything_it_names(tmp_path):
    results, printed = run_demo(
        tmp_path, "--max_steps", "2", "--eval_samples", "16", "--per_device_train_batch_size", "12"
    )
    for name in (
        "pytorch_lora_weights.safetensors",
        "README.md",
        "before_after.png",
        "reward_curve.png",
        "prune_funnel.png",
    ):
        assert (tmp_path / name).stat().st_size > 1000, name
        assert name in printed
    assert results["before"]["eval_num_prompts"] == results["after"]["eval_num_prompts"] == 16
    assert "load_lora_weights" in printed


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "least"), [(0, 0.05), (1, 0.0), (2, 0.0)])
def test_the_demo_gains_on_held_out_prompts(tmp_path, seed, least):
    results, _ = run_demo(tmp_path, "--seed", str(seed))
    before, after = results["before"], results["after"]
    assert after["eval_num_prompts"] >= 512
    gain = after["eval_rewards/shapes/mean"] - before["eval_rewards/shapes/mean"]
    print(f"seed {seed}: {before['eval_rewards/shapes/mean']:.3f} -> {after['eval_rewards/shapes/mean']:.3f}")
    assert gain > max(least, 3 * after["eval_rewards/shapes/gain_stderr"])
