# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Command lines in a process of their own, one after the other: `python token_runs.py job.json`; statuses go into a file."""

import json
import sys
import traceback
from pathlib import Path

import torch


torch.set_num_threads(1)


def failing(prompts, images, **columns):
    """A reward that cannot do its work."""
    raise RuntimeError("the judge is ill")


def run(argv):
    """As the console script does: an error that is nobody's mistake leaves its traceback."""
    from trl_progrpo.cli.main import main

    sys.argv = ["trl-progrpo", *argv]
    try:
        return main(argv)
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    statuses = {name: run(argv) for name, argv in job["commands"].items()}
    Path(job["statuses"]).write_text(json.dumps(statuses))
