# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The benchmark of several processes, as small as it gets."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scale.py"
PAGE = SCRIPT.parents[1] / "docs" / "benchmarks" / "scaling.md"


@pytest.mark.slow
def test_smoke():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, SCRIPT, "--smoke"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    numbers = r"\| \d+ \| \d+ \| \d+ \| \d+ \| \d+\.\d% \| \d+ \|"
    for line in ("1 | rank-local", "2 | rank-local", "2 | spread"):
        assert re.search(rf"^\| {re.escape(line)} {numbers}$", done.stdout, re.M), done.stdout
    # What is arithmetic is the same everywhere.
    assert done.stdout.split("\n\n")[-1].strip() in PAGE.read_text(encoding="utf-8")
