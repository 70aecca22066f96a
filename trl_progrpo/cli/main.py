# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Entry point of `trl-progrpo`. Imports nothing heavy: help must be instant."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from ..standard_streams import keep_printing, lost_output
from .base import CommandError, short_warnings


COMMANDS = {
    "train": "post-train a text-to-image model on a reward with Pro-GRPO",
    "sample": "draw images with and without a trained adapter, at equal seeds",
    "score": "score image files, or a model and an adapter, with rewards",
    "plan": "tell what a run would cost, and whether its pruning can pay",
    "report": "write one HTML page about a run, from its output folder",
    "reward-server": "serve reward functions over HTTP to trainings elsewhere",
    "env": "print versions and hardware, for bug reports",
}
"""Subcommands and their one-line help. Each is a module beside this one with `run(argv) -> int`; dashes become underscores."""

_PRINT_ALL = ("score", "plan", "env")
"""Those whose output is what they were called for, so that it is an error if it cannot be written."""

_EXAMPLES = """\
examples:
  trl-progrpo train --config examples/configs/shapes_demo.yaml
  trl-progrpo train --model_name_or_path shapes --dataset_name shapes \\
      --reward_funcs shapes --per_device_train_batch_size 48 --max_steps 20
  trl-progrpo train --config run.yaml --num_processes 8
  trl-progrpo sample --model_name_or_path shapes --adapter outputs/shapes-demo
  trl-progrpo score --reward pickscore images/*.png --prompt "a red fox"

`trl-progrpo COMMAND --help` tells about each command."""


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs a subcommand and returns the exit status: 0, or 2 for a mistake of the user's, told in one sentence on standard
    error, or 1 if what was asked for could not be printed, or that of another process which failed. Any other exception is a
    defect and keeps its traceback.

    Args:
        argv (`Sequence[str]`, *optional*): arguments without the program's name; `sys.argv[1:]` when unset.
    """
    keep_printing()
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if argv[0] in ("-V", "--version"):
        from .. import __version__

        print(f"trl-progrpo {__version__}")
        return 0
    command, prog = argv[0], "trl-progrpo"
    try:
        if command not in COMMANDS:
            nearest = difflib.get_close_matches(command, COMMANDS, n=1)
            raise CommandError(
                f"unknown command {command!r}; {f'did you mean {nearest[0]!r}? ' if nearest else ''}"
                f"commands: {', '.join(COMMANDS)}."
            )
        prog = f"trl-progrpo {command}"
        # For rewards of the user's own by their path: a console script looks where it is installed, and not here. Last, so
        # that no file here stands before a package.
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        module = importlib.import_module(f".{command.replace('-', '_')}", __package__)
        with short_warnings():
            status = module.run(argv[1:])
        lost = lost_output()
        if lost is not None:
            print(
                f"{prog}: standard output could not be written ({lost}), and what was said there is lost; make room, or "
                "redirect it to another place.",
                file=sys.stderr,
            )
            return status or int(command in _PRINT_ALL)
        return status
    except CommandError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return error.exit_status


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: trl-progrpo COMMAND [options]",
            "",
            "Pro-GRPO (Expand-and-Prune GRPO) for text-to-image diffusion and flow models.",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            "  -h, --help     show this text",
            "  -V, --version  print the version",
            "",
            _EXAMPLES,
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
