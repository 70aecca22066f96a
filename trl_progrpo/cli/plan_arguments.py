# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The parser of `trl-progrpo plan`: that of `train` with a few options more."""

from __future__ import annotations

import os

from .arguments import TrainParser


CALIBRATION_DEFAULTS = {"calibration_groups": 8, "objective": "signal"}
"""What `--calibrate` takes where nothing is given. The parser does not say so: what is given without it is refused."""


class PlanParser(TrainParser):
    """The parser of `trl-progrpo train` with a few options more."""

    def __init__(self):
        super().__init__()
        self.prog = "trl-progrpo plan"
        self.usage = self.usage.replace("trl-progrpo train", "trl-progrpo plan")
        self.description = (
            "Print what a run would cost (network evaluations, decodes, reward calls, training passes, FLOPs and time), "
            "beside plain GRPO and post-hoc selection, and whether it can pay. Takes the options and the YAML file of "
            "`trl-progrpo train`."
        )
        group = self.add_argument_group("plan")
        group.add_argument(
            "--no_time", action="store_true", help="Measure no seconds; without --calibrate no weights are loaded."
        )
        group.add_argument(
            "--calibration_seconds", type=float, default=30.0, help="How long to measure this machine, about."
        )
        group.add_argument("--json", action="store_true", help="Print JSON, for programs.")
        group.add_argument(
            "--calibrate",
            action="store_true",
            help="Record a few unpruned groups and propose a schedule, as a YAML file.",
        )
        group.add_argument(
            "--calibration_groups", type=int, help="Groups to record per noise level, at least 2; 8 if unset."
        )
        group.add_argument(
            "--calibration_expansions",
            type=int,
            help="Trajectories per recorded group, the most that can be proposed; num_expansions or 4 times "
            "num_generations if unset.",
        )
        group.add_argument(
            "--noise_levels",
            type=float,
            nargs="+",
            help="Noise levels (eta for DDIM) to try; the run's own, less and more if unset.",
        )
        group.add_argument(
            "--objective", choices=["signal", "spread"], help="What a second is to give most of; signal if unset."
        )
        group.add_argument(
            "--output",
            type=os.path.expanduser,
            help="The YAML file with the proposal; planned.yaml in output_dir if unset.",
        )
        self._action_groups.insert(0, self._action_groups.pop())
