# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The code in docs/rewards.md does what the page says, and its tables agree with the code."""

import contextlib
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from trl_progrpo.rewards import REWARDS, RewardRunner
from trl_progrpo.testing import check_reward_func


PAGE = (Path(__file__).resolve().parents[2] / "docs/rewards.md").read_text(encoding="utf-8")
BLOCKS = re.findall(
    r"<!-- not run: tests/rewards/test_docs_rewards.py[^\n]*-->\n```python\n(.*?)```\n(?:\n```text\n(.*?)```)?",
    PAGE,
    re.S,
)


@pytest.mark.slow
def test_parameters_and_operations():
    code, output = next(block for block in BLOCKS if "FlopCounterMode" in block[0])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue() == output
    for number in re.findall(r"(\d+) GFLOP", output):
        assert f"| {number} GFLOP |" in PAGE


def test_a_reward_of_ones_own(monkeypatch):
    monkeypatch.setattr(REWARDS, "_objects", dict(REWARDS._objects))
    code, _ = next(block for block in BLOCKS if "def warmth" in block[0])
    exec(code, {"__name__": "documentation"})
    check_reward_func("warmth")
    assert RewardRunner("warmth").names == ["warmth"]
    assert REWARDS.get("warmth")(["a"], [Image.new("RGB", (2, 2), (255, 0, 51))]) == pytest.approx([0.8])


def test_a_check_of_ones_own(monkeypatch):
    monkeypatch.setattr(REWARDS, "_objects", dict(REWARDS._objects))
    made = {"__name__": "documentation"}
    for part in ("def warmth", "def check_row"):
        exec(next(code for code, _ in BLOCKS if part in code), made)
    check_reward_func("warmth", ["a warm room", "a cold room"])
    with pytest.raises(AssertionError, match="reward `warmth`: the prompt 'a room' asks for no temperature"):
        check_reward_func("warmth", ["a warm room", "a room"])


@pytest.mark.parametrize("options", ["PickScore(device", "TransformersDetector("])
def test_options_are_taken_before_anything_is_loaded(options):
    (code,) = [code for code, _ in BLOCKS if options in code]
    made = {}
    exec(code, made)
    assert made.get("rewards") or made["reward"]


def test_the_table_names_every_reward():
    overview = PAGE.split("## ")[0]
    rows = [line.split("|")[1] for line in overview.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert {name for name in REWARDS.registered() if REWARDS.get(name).__module__.startswith("trl_progrpo")} == named


def test_the_page_names_the_repositories_that_are_loaded():
    for name in ("pickscore", "hpsv2", "aesthetic", "clip_score", "siglip"):
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` | `")]
        reward = REWARDS.get(name)
        assert f"`{reward.model}`" in row
        if name == "aesthetic":
            assert f"`{reward.head}`" in row
        if name == "hpsv2":
            assert f"`{reward.model_file}`" in row
