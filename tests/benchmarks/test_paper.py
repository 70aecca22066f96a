# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/paper.py` at the smallest size, and its page against what it computes."""

import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image


ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import paper  # noqa: E402
from paper_settings import SETTINGS, name_of  # noqa: E402
from paper_training import Run  # noqa: E402


PAGE = (ROOT / "docs/benchmarks/paper.md").read_text(encoding="utf-8")
SMALL = "--iterations 1 --prompts 1 --eval_prompts 8 --eval_every 1 --seeds 0".split()


def told(capsys):
    """Rows of the tables that were printed, as lists of cells."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("model", list(SETTINGS))
def test_costs_are_those_of_the_page(model, tmp_path, capsys):
    paper.main(["cost", "--model", model, "--output", str(tmp_path)])
    rows = told(capsys)
    totals = {row[0]: row[1:3] for row in rows[2:5]}
    assert totals["48 -> 24 -> 12 after 5, 7"] == ["335627", "335624"]
    on_page = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:2] == "| "]
    for row in rows:
        assert row in on_page or set(row) == {"---"}, row


def test_checkpoints_of_the_diffusion_model_lie_where_the_papers_do():
    schedule = SETTINGS["diffusion"].studies()["checkpoints"]
    assert [tuple(5 * step for step in s.prune_steps) for s in schedule] == [(10, 20), (20, 30), (30, 40)]
    assert SETTINGS["diffusion"].pro().sizes == (48, 32, 8)
    assert SETTINGS["flow"].pro().sizes == (48, 24, 12)


def test_clustering(tmp_path, capsys):
    paper.main(["clustering", "--groups", "2", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "clustering_flow.json").read_text())
    whole, uniform, selected, pro = found["sets"]
    # Each is a mean and its standard error.
    assert selected["spread"] > pro["spread"] > whole["spread"]
    assert selected["near"][1][0] < 0.1 < whole["near"][1][0]
    assert uniform["signal"] < selected["signal"] < whole["signal"]
    assert found["rank_correlations"]["8"] > found["rank_correlations"]["0"]
    assert Image.open(tmp_path / "clustering_flow.png").width > 500


@pytest.mark.filterwarnings("ignore")
def test_studies_share_runs_and_leave_finished_ones(tmp_path, capsys):
    argv = ["--model", "diffusion", "--output", str(tmp_path), *SMALL]
    paper.main(["curves", *argv])
    assert capsys.readouterr().out.count("training diffusion") == 2
    assert (tmp_path / "curves_diffusion.png").is_file()
    logs = {path.name: path.read_text() for path in (tmp_path / "runs").iterdir()}
    assert set(logs) == {"diffusion_plain_16_0.jsonl", "diffusion_48-32-8_after_6-8_0.jsonl"}

    paper.main(["curves", *argv])
    out = capsys.readouterr().out
    assert "training" not in out.split("\n")[0]
    rows = re.findall(
        r"^\| (plain 16|48 -> 32 -> 8 after 6, 8) \| (0\.\d{3}) \| (0\.\d{3}) \| \d+ \| (\d+) \| (\d+) \|$", out, re.M
    )
    assert [(row[0], int(row[3]), int(row[4])) for row in rows] == [
        ("plain 16", 160, 16 * 9),
        ("48 -> 32 -> 8 after 6, 8", 48 * 7 + 32 * 2 + 8, 8 * 9),
    ]
    assert logs == {path.name: path.read_text() for path in (tmp_path / "runs").iterdir()}
    # The last weights are those that one rollout has trained.
    lines = [json.loads(line) for line in logs["diffusion_plain_16_0.jsonl"].splitlines()]
    before, after = (line["evaluation"] for line in lines if "evaluation" in line)
    assert (before["iteration"], after["iteration"]) == (0, 1)
    assert before["reward"] != after["reward"]

    with pytest.raises(ValueError, match="with iterations 1, not 2; remove it, or choose"):
        paper.main(["curves", *argv, "--iterations", "2"])


def test_mean_and_error():
    assert paper.mean_and_error([0.5]) == "0.500"
    assert paper.mean_and_error([1.0, 2.0, 3.0], 2) == "2.00 ± 0.58"
    run = Run(
        [{"seconds": 1.0, "reward_std": 0.2}, {"seconds": 2.0, "reward_std": 0.4}], [{"reward": 0.1}, {"reward": 0.6}]
    )
    assert (run.held_out, run.spread, run.total("seconds"), run.seconds_until(1)) == (0.6, pytest.approx(0.3), 3, 1)
    assert name_of(SETTINGS["flow"].plain) == "plain 24"
