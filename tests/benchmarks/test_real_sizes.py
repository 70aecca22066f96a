# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The benchmark of real sizes, on tiny networks on the CPU: what a GPU is asked is asked by code that runs."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch


FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def run_script(monkeypatch, capsys):
    def run(*argv):
        monkeypatch.syspath_prepend(FOLDER)
        monkeypatch.setattr(sys, "argv", ["real_sizes.py", *map(str, argv)])
        runpy.run_path(str(FOLDER / "real_sizes.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_a_line_for_every_phase(run_script, tmp_path):
    raw, traces = tmp_path / "out" / "raw.jsonl", tmp_path / "traces"
    small = ("--smoke", "--models", "sd3.5-medium", "--output", raw, "--trace", traces)
    printed = run_script(*small, "--compile", "--compile_backend", "eager")
    for phase in ("denoise", "preview", "reward", "decode", "update"):
        assert f"| {phase} | " in printed
    [found] = map(json.loads, raw.read_text().splitlines())
    assert found["compiled"] is True
    # 3 trajectories for a step, 2 for another, each with guidance.
    assert found["network_evaluations"] == 2 * (3 + 2)
    assert all(0 < found["phases"][phase]["share"] < 1 for phase in ("denoise", "preview", "decode", "update"))
    [trace] = traces.iterdir()
    assert json.loads(trace.read_text())["traceEvents"]


def test_the_second_step_alone_is_measured(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import real_sizes

    meter = real_sizes.PhaseMeter(torch.device("cpu"))
    callback = real_sizes.SecondStep(meter, None)
    clock = iter([0.0, 5.0, 10.0, 12.0])
    monkeypatch.setattr(meter, "_now", lambda: next(clock))
    for step in (1, 2):
        with meter("denoise"):
            pass
        callback.on_step_end(None, type("State", (), {"global_step": step}), None)
        # The trainer drains the timer for its log, which leaves what was measured.
        meter.drain()
    assert meter.seconds == {"denoise": 2.0}


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_it_says_so(run_script, capsys):
    with pytest.raises(SystemExit):
        run_script("--models", "sdxl")
    assert "there is no CUDA device; give --smoke" in capsys.readouterr().err
