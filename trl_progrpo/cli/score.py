# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`trl-progrpo score`: rewards of images, from files or from a model, with standard errors."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..standard_streams import prints_unicode
from ..words import counted, with_error
from .base import CommandError, CommandParser, quieten_libraries, user_errors
from .generate import add_model_arguments, base_and_adapter, check_model_arguments, check_writable, load_model
from .image_files import ImageFile, UnreadableImage, images_of


if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console

    from ..rewards import RewardRunner


OUTPUT_SUFFIXES = (".jsonl", ".json")

WITH_FILES = ("reward_funcs", "json", "output", "images", "prompts", "prompt_column", "batch_size")
"""Arguments that mean something where images are there; all others are about drawing some."""

PIXELS = 2**27
"""Of images in one batch, at most, beyond the first: 128 of 1024 x 1024, in 1.6 GB of floating-point numbers."""

Record = dict[str, Any]
"""`{"image", "source", "prompt", "rewards": {name: value}}` of one image; with `"error"` and NaN if it has no score."""


def run(argv: Sequence[str]) -> int:
    """
    Parse `argv`, score, print tables or JSON, and write the file.

    Returns the exit status: 1 if images could not be read or scored, whose names go to standard error; the others have scores.
    """
    args = _parser().parse_args(argv)
    _check(args, _given(argv))
    records = score(args)
    from ..report.record import without_nan

    plain = [without_nan(record) for record in records]
    # The file first: it must not depend on who reads what is printed.
    unwritten = _write(args.output, plain) if args.output is not None else None
    if args.json:
        print("\n".join(json.dumps(record, ensure_ascii=not prints_unicode()) for record in plain))
    else:
        if args.images:
            print_scores(records)
        if len(records) > 1:
            print_table(records)
    if unwritten is not None:
        raise CommandError(
            f"`--output` {args.output!r} cannot be written ({unwritten.strerror}); the scores are above, choose another file."
        ) from unwritten
    faults = [record for record in records if "error" in record]
    for record in faults:
        print(f"trl-progrpo score: {record['image']!r} {record['error']}.", file=sys.stderr)
    if faults:
        print(
            f"trl-progrpo score: {len(faults)} of {counted(len(records), 'image')} without a score.", file=sys.stderr
        )
    return 1 if faults else 0


def _write(path: str, records: Sequence[Record]) -> OSError | None:
    """Write lines of JSON, and return what went wrong, if so."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    try:
        # Names of files that are not Unicode are escaped, as JSON does.
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        return error


def score(args: argparse.Namespace) -> list[Record]:
    """
    One record per image.

    Raises:
        CommandError: for a mistake of the user's.
    """
    quieten_libraries()
    from ..rewards import RewardRunner

    with user_errors():
        runner = RewardRunner(args.reward_funcs)
    if args.images:
        prompt = (args.prompts or [None])[0]
        wanted = (args.prompt_column, prompt, runner.reads_prompts)
        files = [file for path in args.images for file in images_of(path, *wanted)]
        records = list(_score_files(runner, files, args.batch_size))
        if all("error" in record for record in records):
            others = f" None of the {len(records)} images has a score." if len(records) > 1 else ""
            raise CommandError(f"{records[0]['image']!r} {records[0]['error']}.{others}")
        return records
    rows = _rows(args, runner)
    prompts = [row[args.prompt_column] for row in rows]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != args.prompt_column}
    pipeline, call = load_model(args)
    # Before images are drawn for a reward that cannot be had.
    with user_errors():
        runner.load()
    records = []
    for source, images in base_and_adapter(pipeline, prompts, call, args).items():
        names = _save(images, source, args.save_images)
        records += _score(runner, prompts, images, columns, args.batch_size, names, source)
    return records


def print_scores(records: Sequence[Record], console: Console | None = None) -> None:
    """The rewards of every image."""
    from rich.console import Console
    from rich.text import Text

    from .summary import make_table

    table = make_table("Images", "in the order given", "image", *records[0]["rewards"])
    # A shortened path cannot be copied.
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
    for record in records:
        table.add_row(Text(record["image"]), *(with_error(value, math.nan) for value in record["rewards"].values()))
    (console or Console(highlight=False)).print(table)


def print_table(records: Sequence[Record], console: Console | None = None) -> None:
    """Mean and standard error of every reward; with an adapter the paired difference to the base as well."""
    from rich.console import Console
    from rich.markup import escape

    from .summary import make_table

    sources = list(dict.fromkeys(record["source"] for record in records))
    names = list(records[0]["rewards"])
    values = {
        source: {name: [r["rewards"][name] for r in records if r["source"] == source] for name in names}
        for source in sources
    }
    rows = [(name, *(mean_and_error(values[source][name]) for source in sources)) for name in names]
    if sources == ["base", "adapter"]:
        rows = [
            (
                name,
                base,
                adapter,
                mean_and_error([b - a for a, b in zip(values["base"][name], values["adapter"][name])]),
            )
            for name, base, adapter in rows
        ]
        sources = [*sources, "difference"]
    scored = sum("error" not in record for record in records) // (2 if "adapter" in sources else 1)
    table = make_table("Rewards", f"mean ± standard error over {counted(scored, 'image')}", "reward", *sources)
    for name, *cells in rows:
        signs = ["+" if source == "difference" else "" for source in sources]
        table.add_row(escape(name), *(with_error(*cell, sign) for cell, sign in zip(cells, signs)))
    (console or Console(highlight=False)).print(table)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of the values that are numbers; NaN where there are too few."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return math.nan, math.nan
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="trl-progrpo score",
        description="Score images with rewards: those in files and folders, or images of a model and an adapter "
        "for the prompts of a dataset.",
    )
    parser.add_argument(
        "--reward", action="append", dest="reward_funcs", metavar="NAME",
        help="a reward: a name, or a dotted path such as package.module:function; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--reward_funcs",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="several rewards, as in a training's configuration",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON per image instead of tables")
    parser.add_argument(
        "--output", type=os.path.expanduser, metavar="FILE", help=".jsonl file to write, one line per image"
    )
    given = parser.add_argument_group("images that are there")
    given.add_argument(
        "images", nargs="*", metavar="IMAGE",
        help="image files, folders with prompts in metadata.jsonl or in .txt files beside the images, or .jsonl files whose "
        "rows name an image and a prompt",
    )  # fmt: skip
    given.add_argument("--prompt", action="append", dest="prompts", metavar="TEXT", help="the prompt of all of them")
    data = parser.add_argument_group("prompts of images to draw")
    data.add_argument("--prompts", nargs="+", action="extend", metavar="TEXT", help="one image each")
    data.add_argument("--dataset_name", metavar="DATA", help="'shapes', a file, a folder, or a dataset on the Hub")
    data.add_argument("--dataset_config", metavar="CONFIG", help="configuration of the dataset")
    data.add_argument("--dataset_test_split", default="test", metavar="SPLIT", help="which prompts of the dataset")
    data.add_argument("--prompt_column", default="prompt", metavar="COLUMN", help="where the prompts are")
    data.add_argument(
        "--eval_samples", type=int, default=64, metavar="N", help="prompts to draw; 0 for all of the split"
    )
    data.add_argument(
        "--save_images", type=os.path.expanduser, metavar="DIR", help="folder to keep the drawn images in"
    )
    add_model_arguments(parser, required=False)
    return parser


def _given(argv: Sequence[str]) -> dict[str, Any]:
    """The arguments that are on the command line, and no defaults, in the order of the help."""
    parser = _parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    given = vars(parser.parse_args(argv))
    return {action.dest: given[action.dest] for action in parser._actions if action.dest in given}


def _check(args: argparse.Namespace, given: Mapping[str, Any]) -> None:
    check_model_arguments(args)
    if not args.reward_funcs:
        raise CommandError("no reward is named; give one with --reward, such as --reward pickscore.")
    if bool(args.images) == (args.model_name_or_path is not None):
        raise CommandError("give either images, to score what is there, or --model_name_or_path, to draw some.")
    for name, value in given.items():
        if args.images and name not in WITH_FILES:
            raise CommandError(
                f"`--{name}` is {value!r}, which is about images to draw, but images that are there are scored; leave it away."
            )
    if args.images and args.prompts is not None and len(args.prompts) > 1:
        raise CommandError(
            f"`--prompt` has {len(args.prompts)} entries; give one for all images, or a .jsonl file with prompts."
        )
    if not args.images and (args.prompts is None) == (args.dataset_name is None):
        raise CommandError("give either --prompts or --dataset_name, so that there is something to draw.")
    if args.eval_samples < 0:
        raise CommandError(f"`--eval_samples` is {args.eval_samples}; give a number of prompts, or 0 for all.")
    if args.output is not None:
        suffix = Path(args.output).suffix
        if suffix and suffix.lower() not in OUTPUT_SUFFIXES:
            raise CommandError(
                f"`--output` is {args.output!r}, but lines of JSON are written; use one of {', '.join(OUTPUT_SUFFIXES)}."
            )
        check_writable("--output", args.output)
    if args.save_images is not None:
        check_writable("--save_images", str(Path(args.save_images) / "base_00000.png"))


def _rows(args: argparse.Namespace, runner: RewardRunner) -> list[Mapping[str, Any]]:
    """The prompts to draw, with the further columns of the dataset."""
    from ..data import as_prompts, check_prompts, check_rows, without_unread
    from .data import load_source, take_prompts

    if args.dataset_name is not None:
        dataset = load_source(
            args.dataset_name,
            args.dataset_config,
            args.dataset_test_split,
            args.prompt_column,
            split_field="dataset_test_split",
        )
    with user_errors():
        if args.dataset_name is None:
            dataset = as_prompts(args.prompts, args.prompt_column, "--prompts")
        name = args.dataset_name or "--prompts"
        dataset = without_unread(dataset, args.prompt_column, [runner])
        check_prompts(dataset, args.prompt_column, name)
        if args.dataset_name is not None:
            dataset = take_prompts(dataset, args.eval_samples)
        check_rows(dataset, args.prompt_column, name, [runner])
    return list(dataset)


def _check_rows(runner: RewardRunner, files: Sequence[ImageFile]) -> None:
    """Raise what a reward says of the first row, before rewards load, where none can be scored."""
    from ..rewards.rows import first_fault

    def fault(file: ImageFile) -> ValueError | None:
        columns = {key: [value] for key, value in file.columns.items()}
        found = (first_fault(*named, [file.prompt], columns) for named in zip(runner.names, runner.functions))
        return next((fault for fault in found if fault is not None), None)

    first = fault(files[0])
    if first is not None and all(fault(file) is not None for file in files[1:]):
        raise first


def _score_files(runner: RewardRunner, files: Sequence[ImageFile], batch_size: int) -> Iterator[Record]:
    """Score images of one size that follow each other in one batch; those that cannot be read have no scores."""
    loaded = False
    for size, same in groupby(_opened(files), key=lambda opened: getattr(opened[1], "size", None)):
        if size is None:
            for file, error in same:
                listed = "" if file.where == file.path.name else f"{file.where}: "
                yield _without_score(runner, file, f"cannot be read as an image ({listed}{error}); give an image file")
            continue
        if not loaded:
            with user_errors():
                _check_rows(runner, files)
                runner.load()
            loaded = True
        fitting = max(1, min(batch_size, PIXELS // math.prod(size)))
        while batch := list(islice(same, fitting)):
            yield from _score_opened(runner, batch)


def _score_opened(runner: RewardRunner, batch: Sequence[tuple[ImageFile, Image.Image]]) -> list[Record]:
    """Score images of one size, one by one where a reward fails, so that only those that it fails on have no scores."""
    from ..rewards import RewardError

    files, images = zip(*batch)
    keys = dict.fromkeys(key for file in files for key in file.columns)
    columns = {key: [file.columns.get(key) for file in files] for key in keys}
    names, prompts = [str(file.path) for file in files], [file.prompt for file in files]
    try:
        return _score(runner, prompts, images, columns, len(files), names, "images")
    except CommandError as error:
        failure = error.__cause__
        # Where a server is away, no image is to blame.
        if not isinstance(failure, RewardError) or isinstance(failure.__cause__, (TimeoutError, ConnectionError)):
            raise
        if len(files) == 1:
            return [_without_score(runner, files[0], f"has no score: {str(error).rstrip('.')}")]
    return [record for one in batch for record in _score_opened(runner, [one])]


def _without_score(runner: RewardRunner, file: ImageFile, error: str) -> Record:
    nothing = dict.fromkeys(runner.names, math.nan)
    return {"image": str(file.path), "source": "images", "prompt": file.prompt, "rewards": nothing, "error": error}


def _opened(files: Sequence[ImageFile]) -> Iterator[tuple[ImageFile, Image.Image | UnreadableImage]]:
    for file in files:
        try:
            yield file, file.open()
        except UnreadableImage as error:
            yield file, error


def _score(
    runner: RewardRunner,
    prompts: Sequence[str],
    images: Sequence[Image.Image],
    columns: Mapping[str, Sequence[Any]],
    batch_size: int,
    names: Sequence[str],
    source: str,
) -> list[Record]:
    records = []
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        # A reward that lacks a column, or returns nonsense, says so in a sentence of its runner.
        with user_errors(ours_only=True):
            scores = runner(prompts[batch], _tensor(images[batch]), {k: list(v[batch]) for k, v in columns.items()})
        for name, prompt, row in zip(names[batch], prompts[batch], scores.tolist()):
            records.append(
                {"image": name, "source": source, "prompt": prompt, "rewards": dict(zip(runner.names, row))}
            )
    return records


def _tensor(images: Sequence[Image.Image]):
    import numpy as np
    import torch

    pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float().div_(255)


def _save(images: Sequence[Image.Image], source: str, folder: str | None) -> list[str]:
    """Names of the drawn images, which are kept if there is a folder for them."""
    names = [f"{source}_{index:05d}.png" for index in range(len(images))]
    if folder is None:
        return names
    paths = [Path(folder) / name for name in names]
    for image, path in zip(images, paths):
        image.save(path)
    return [str(path) for path in paths]
