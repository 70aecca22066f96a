# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`trl-progrpo report`: one HTML file about a run, from what lies in its output folder."""

from __future__ import annotations

from collections.abc import Sequence

from .base import CommandParser, user_errors


def run(argv: Sequence[str]) -> int:
    """Writes the report and prints where it lies."""
    args = _parser().parse_args(argv)
    from ..report import write_report

    with user_errors():
        print(write_report(args.output_dir, args.output))
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="trl-progrpo report",
        usage="trl-progrpo report OUTPUT_DIR [--output FILE]",
        description="Write report.html about a run: rewards, images, pruning, compute and settings in one file that opens "
        "without a server. `trl-progrpo train` does so by itself; this writes it again, or for a run made in Python.",
    )
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="the run's output folder, or one of its checkpoints")
    parser.add_argument("--output", metavar="FILE", help="HTML file to write; report.html in that folder if unset")
    return parser
