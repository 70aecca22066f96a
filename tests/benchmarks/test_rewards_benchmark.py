# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The benchmark script runs; its numbers are nobody's business here."""

import importlib.util
from pathlib import Path

import pytest


@pytest.mark.slow
def test_it_prints_both_tables(monkeypatch, capsys):
    path = Path(__file__).resolve().parents[2] / "benchmarks/rewards.py"
    spec = importlib.util.spec_from_file_location("rewards_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arguments = (
        "--rewards shapes jpeg_compressibility --batch_sizes 1 2 --sizes 32 --seconds 0 --prompts 1 --rollouts 1"
    )
    monkeypatch.setattr("sys.argv", ["rewards.py", *arguments.split()])
    module.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines if "---" not in line] == [
        "Reward", "`shapes`", "`jpeg_compressibility`",
        "Previews by", "the tiny decoder", "the full decoder", "none: 24 per prompt, no pruning",
    ]  # fmt: skip
    assert lines[-1].endswith("| 0% |")
    assert not lines[-3].endswith("| 0% |")
