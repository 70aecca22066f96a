# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`trl-progrpo sample`: base model against adapter at equal seeds, drawn by the stock diffusers pipeline."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from .base import CommandError, CommandParser, quieten_libraries, user_errors
from .generate import add_model_arguments, base_and_adapter, check_model_arguments, check_writable, load_model


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Endings of files that a grid is written to."""


def run(argv: Sequence[str]) -> int:
    """Parses `argv`, samples, and writes the grid."""
    args = _parser().parse_args(argv)
    _check(args)
    path = sample(args)
    print(path)
    return 0


def sample(args: argparse.Namespace) -> Path:
    """
    Images of the base model, and of the adapter if there is one, as a grid; returns where it lies.

    Raises:
        CommandError: for a mistake of the user's.
    """
    quieten_libraries()
    from ..plots import image_grid

    prompts = args.prompts or _default_prompts()
    pipeline, call = load_model(args)
    rows = base_and_adapter(pipeline, prompts, call, args)
    with user_errors(OSError):
        return image_grid(list(rows.values()), list(rows), prompts, args.output)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="trl-progrpo sample",
        description="Draw a grid of images: the base model above, the same prompts and seeds with the adapter below.",
    )
    parser.add_argument("--prompts", nargs="+", metavar="TEXT", help="one image each; 'shapes' has prompts of its own")
    parser.add_argument("--output", type=os.path.expanduser, default="grid.png", metavar="FILE", help="PNG to write")
    add_model_arguments(parser, required=True)
    return parser


def _check(args: argparse.Namespace) -> None:
    """What can be known before the heavy imports."""
    check_model_arguments(args)
    if args.prompts is None and args.model_name_or_path != "shapes":
        raise CommandError('`--prompts` is not set; give at least one, e.g. --prompts "a red cube on a blue sphere".')
    for index, prompt in enumerate(args.prompts or []):
        if not prompt.strip():
            raise CommandError(f"`--prompts` number {index + 1} is empty; give every prompt some text.")
    check_writable("--output", args.output)
    if Path(args.output).suffix.lower() not in SUFFIXES:
        raise CommandError(f"`--output` is {args.output!r}, a file of unknown kind; use one of {', '.join(SUFFIXES)}.")


def _default_prompts() -> list[str]:
    """Held-out captions of the embedded model, of every kind."""
    from ..tiny import load_shapes

    captions = load_shapes("test")["prompt"]
    return [captions[i * len(captions) // 8] for i in range(8)]
