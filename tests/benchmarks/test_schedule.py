# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/schedule.py` at the smallest size."""

import json
import re
import runpy
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "schedule.py"


def test_it_prints_and_writes_what_it_finds(monkeypatch, tmp_path, capsys):
    """Small: that it works and writes down what it prints, not what it finds."""
    file = tmp_path / "found.json"
    flags = ["--groups", "2", "--seeds", "0", "--calibration_seconds", "0.1", "--output", str(file)]
    monkeypatch.setattr("sys.argv", ["schedule.py", *flags])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    [result] = json.loads(file.read_text())
    methods, told = result["methods"], capsys.readouterr().out
    assert list(methods)[-2:] == ["chosen for signal", "chosen for spread"]
    paper = methods["paper, 48 -> 24 -> 12"]
    assert (paper["sizes"], paper["prune_steps"]) == ([48, 24, 12], [5, 7])
    for name, found in methods.items():
        sizes, ratio = " -> ".join(map(str, found["sizes"])), found["signal per second"] / paper["signal per second"]
        assert re.search(rf"^\| {re.escape(name)} \| {sizes} \| .* \| {ratio:.2f}x \|$", told, re.M), name
        assert found["signal per second"] == pytest.approx(found["signal"] / found["seconds"])
    assert min(result["seconds per unit"].values()) > 0
    assert len(result["rank correlations"]) == 9
