# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Prompts for the command line: from names of files and Hub datasets to a training set and held-out prompts."""

from __future__ import annotations

import logging
import os
import random
import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import CommandError


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from trl.scripts.utils import DatasetConfig

    from .script_arguments import ScriptArguments


BUILDERS = {
    ".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
}  # fmt: skip
"""Suffix of a local file -> builder of `datasets`."""

DEFAULT_TEST_SPLIT = "test"

_SAVED = ("dataset_dict.json", "state.json")
"""Of these `save_to_disk` of a `DatasetDict` and of a `Dataset` writes one."""

_NO_ROWS = ("corresponds to no data", "at least one example when writing data")
_BROKEN_FILE = re.compile(r"Failed to (?:load|read) .*?'([^']+)' with error")


class NoSuchSplit(CommandError):
    """The data is there, and does not have the split."""


def load_prompts(
    arguments: ScriptArguments, prompt_column: str = "prompt", seed: int = 0
) -> tuple[Dataset | IterableDataset, Dataset | None]:
    """
    The training prompts, and the held-out prompts if there are any.

    The default split `"test"` may be missing from a dataset, then there are none; a split that was asked for may not. With
    `streaming` the training prompts are a stream, of which nothing is read here, and the held-out prompts the first ones
    of their split.

    Args:
        arguments ([`~cli.script_arguments.ScriptArguments`]): which data.
        prompt_column (`str`, *optional*, defaults to `"prompt"`): name given to the only column of a text file.
        seed (`int`, *optional*, defaults to 0): fixes which prompts are held out, and which `eval_samples` are taken.

    Raises:
        CommandError: if the data cannot be read.
    """
    streaming, test_split = arguments.streaming, arguments.dataset_test_split
    if arguments.datasets:
        train = _mixture(arguments.datasets, prompt_column, streaming)
        # What a mixture holds out is said by `test_split_size` alone.
        test_split = None
    else:
        train = _named(arguments, arguments.dataset_train_split, "dataset_train_split", prompt_column)
    if arguments.test_split_size is not None:
        train, test = _split(train, arguments.test_split_size, seed)
    elif test_split is None:
        return train, None
    else:
        try:
            test = _named(arguments, test_split, "dataset_test_split", prompt_column)
        except NoSuchSplit:
            if test_split != DEFAULT_TEST_SPLIT:
                raise
            return train, None
    return train, first_prompts(test, arguments.eval_samples) if streaming else take_prompts(
        test, arguments.eval_samples, seed
    )


@contextmanager
def named_data(arguments: ScriptArguments) -> Iterator[None]:
    """
    Put what the user has called them in place of `train_dataset` and `eval_dataset`, wherever the trainer's sentences have
    them.

    Args:
        arguments ([`~cli.script_arguments.ScriptArguments`]): which data.

    Raises:
        CommandError: that which is raised inside, in the user's words.
    """
    try:
        yield
    except CommandError as error:
        called = _called(arguments)
        # There is nothing the user would call an `eval_dataset` that is missing.
        text = re.sub(r"(?<!no )`(train_dataset|eval_dataset)`", lambda match: called[match[1]], str(error))
        raise CommandError(text, error.exit_status) from error


def _called(arguments: ScriptArguments) -> dict[str, str]:
    if arguments.datasets:
        train = "`datasets`"
        return {"train_dataset": train, "eval_dataset": f"the part of {train} that is held out"}
    name, split = f"`dataset_name` {arguments.dataset_name!r}", arguments.dataset_train_split
    train = name if split == "train" else f"{name} (split {split!r})"
    if arguments.test_split_size is not None:
        return {"train_dataset": train, "eval_dataset": f"the part of {train} that is held out"}
    return {"train_dataset": train, "eval_dataset": f"{name} (split {arguments.dataset_test_split!r})"}


def describe_data(arguments: ScriptArguments) -> str:
    """Return where the training prompts come from: names, and the split if it is not `train`."""
    if arguments.datasets:
        return ", ".join(dict.fromkeys(entry.path for entry in arguments.datasets))
    split = arguments.dataset_train_split
    return f"{arguments.dataset_name}" + (f" (split {split!r})" if split != "train" else "")


def load_source(
    name: str,
    config: str | None = None,
    split: str = "train",
    prompt_column: str = "prompt",
    *,
    streaming: bool = False,
    data_dir: str | None = None,
    data_files: Any = None,
    field: str = "dataset_name",
    split_field: str = "split",
) -> Dataset | IterableDataset:
    """
    One split of `"shapes"`, a local file, a folder, or a dataset on the Hub.

    Args:
        name (`str`): what to load.
        config (`str`, *optional*): its configuration.
        split (`str`, *optional*, defaults to `"train"`): which part.
        prompt_column (`str`, *optional*, defaults to `"prompt"`): name given to the only column of a text file.
        streaming (`bool`, *optional*, defaults to `False`): whether rows are read as they are needed.
        data_dir, data_files (*optional*): as in [`~datasets.load_dataset`].
        field, split_field (`str`, *optional*): what the user called `name` and `split`.

    Raises:
        CommandError: if there is no such data, it may not be read, or what is there is broken.
    """
    import datasets
    from huggingface_hub.utils import httpx

    from .prompt_files import load_files

    path = Path(name).expanduser()
    suffix = path.suffix.lower()
    if suffix in BUILDERS and not path.exists():
        raise CommandError(f"`{field}` is {name!r}, but there is no such file.")
    if path.is_file():
        if suffix not in BUILDERS:
            raise CommandError(f"`{field}` is {name!r}, a file of unknown kind; use one of {', '.join(BUILDERS)}.")
        name, data_files = BUILDERS[suffix], str(path)
    shown = data_files if path.is_file() else name
    is_saved = any((path / file).is_file() for file in _SAVED)
    if is_saved and (config, data_dir, data_files) != (None, None, None):
        raise CommandError(
            f"`{field}` {name!r} was written by `save_to_disk`, so that it has no configurations and no files to choose from; "
            "give its splits as `split` or the `dataset_..._split` options, and nothing else."
        )
    try:
        with _quiet_readers() as broken_files:
            if name == "shapes" or is_saved:
                dataset = _part(
                    _shapes() if name == "shapes" else _saved(path), split, f"`{field}` {shown!r}", split_field
                )
                dataset = dataset.to_iterable_dataset() if streaming else dataset
            else:
                if path.is_dir():
                    name, data_files = _in_folder(path / (data_dir or ""), data_files) or (str(path), data_files)
                dataset = load_files(
                    name,
                    config,
                    split=split,
                    prompt_column=prompt_column,
                    streaming=streaming,
                    data_dir=_at_home(data_dir),
                    data_files=_at_home(data_files),
                )
            # A stream is opened by the first row that is asked for.
            return _with_prompts(dataset, prompt_column)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise CommandError(_not_found(field, shown, str(error))) from error
    except StopIteration as error:
        raise CommandError(f"`{field}` {shown!r} holds no rows; give at least one prompt.") from error
    except (ValueError, OSError, httpx.HTTPError, datasets.exceptions.DatasetsError) as error:
        reason = "".join(f"{file}: " for file in broken_files if path.is_dir()) + _reason(error)
        if any(words in reason for words in _NO_ROWS):
            raise CommandError(
                f"`{field}` {shown!r} holds no rows in `{split_field}` {split!r}; give at least one prompt."
            ) from error
        if any(words in reason for words in ("Unknown split", "Bad split")):
            raise NoSuchSplit(f"`{field}` {shown!r} has no `{split_field}` {split!r} ({reason}).") from error
        if isinstance(error, ConnectionError):
            raise CommandError(
                f"`{field}` {shown!r} is neither a file nor a folder here, and the Hub could not be asked ({reason}); check "
                "the name and your connection."
            ) from error
        raise CommandError(
            f"`{field}` {shown!r} with `{split_field}` {split!r} could not be loaded ({reason}); check both."
        ) from error


def take_prompts(dataset: Dataset, count: int, seed: int = 0) -> Dataset:
    """`count` rows in a fixed random order, starting over when they are used up; all rows in order for 0."""
    if count == 0 or len(dataset) == 0:
        return dataset
    order = random.Random(seed).sample(range(len(dataset)), len(dataset))
    return dataset.select([order[i % len(order)] for i in range(count)])


def first_prompts(stream: IterableDataset, count: int) -> Dataset:
    """
    The first `count` rows of a stream, starting over when they are used up.

    Raises:
        CommandError: for 0, which means all rows: a stream may have no end.
    """
    from datasets import Dataset

    if count == 0:
        raise CommandError("`eval_samples` is 0, which takes the whole split, but it is a stream; give a number.")
    # As it is stored: what of it is decoded is for rewards to say.
    rows = list((stream if stream.features is None else stream.decode(False)).take(count))
    return Dataset.from_list([rows[i % len(rows)] for i in range(count)] if rows else [], features=stream.features)


def _named(arguments: ScriptArguments, split: str, split_field: str, prompt_column: str) -> Dataset | IterableDataset:
    return load_source(
        arguments.dataset_name,
        arguments.dataset_config,
        split,
        prompt_column,
        streaming=arguments.streaming,
        split_field=split_field,
    )


def _mixture(entries: list[DatasetConfig], prompt_column: str, streaming: bool) -> Dataset | IterableDataset:
    """All of several datasets, or the shares of them that their `fraction` asks for; TRL's arithmetic."""
    import datasets

    parts = []
    for index, entry in enumerate(entries):
        field = f"datasets[{index}].path"
        part = load_source(
            entry.path,
            entry.name,
            entry.split,
            prompt_column,
            streaming=streaming,
            data_dir=entry.data_dir,
            data_files=entry.data_files,
            field=field,
        )
        if entry.columns is not None:
            columns = column_names(part)
            missing = [name for name in entry.columns if name not in columns]
            if missing:
                raise CommandError(
                    f"`datasets[{index}].columns` names {missing[0]!r}, but the columns are {', '.join(columns)}."
                )
            part = part.select_columns(entry.columns)
        if (part.features or {}).get(prompt_column) == datasets.Value("large_string"):
            # Some readers give this type and others the usual one, and only equal ones can be put together.
            part = part.cast_column(prompt_column, datasets.Value("string"))
        parts.append(part)
    # An older TRL has no such field.
    fractions = [getattr(entry, "fraction", None) for entry in entries]
    if any(fraction is not None for fraction in fractions):
        if streaming or None in fractions or min(fractions) < 0 or sum(fractions) == 0:
            raise CommandError(
                f"`fraction` in `datasets` is {fractions}; give every dataset a positive share and do not stream, or leave it "
                "away."
            )
        shares = [fraction / sum(fractions) for fraction in fractions]
        total = min(len(part) / share for part, share in zip(parts, shares) if share > 0)
        parts = [part.select(range(round(share * total))) for part, share in zip(parts, shares)]
    try:
        return datasets.concatenate_datasets(parts)
    except ValueError as error:
        raise CommandError(
            f"`datasets` do not fit together ({_reason(error)}); keep columns of the same types, e.g. `columns: "
            f"[{prompt_column}]`."
        ) from error


def _split(train: Dataset, size: float, seed: int) -> tuple[Dataset, Dataset]:
    size = size if size < 1 else int(size)
    try:
        parts = train.train_test_split(test_size=size, seed=seed)
    except ValueError as error:
        raise CommandError(
            f"`test_split_size` is {size}, but there are {len(train)} prompts; leave at least one to train on and one to hold "
            "out."
        ) from error
    return parts["train"], parts["test"]


def _shapes() -> dict[str, Dataset]:
    """The embedded prompts."""
    from ..tiny import load_shapes

    return {name: load_shapes(name) for name in ("train", "test")}


def _saved(folder: Path) -> dict[str, Dataset]:
    """What `save_to_disk` wrote, by split; a data set without splits is one to train on, as a file is."""
    import datasets

    saved = datasets.load_from_disk(str(folder))
    saved = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    # Of what the user has set for a network of his own, such as tensors for text.
    return {str(name): dataset.with_format(None) for name, dataset in saved.items()}


def _in_folder(folder: Path, data_files: Any) -> tuple[str, dict[str, list[str]]] | None:
    """Builder and files of a folder with endings in capitals, which `datasets` takes for none that it knows."""
    from datasets.data_files import DataFilesDict, get_data_patterns

    endings = Counter(file.suffix for file in folder.rglob("*") if file.suffix.lower() in BUILDERS)
    if data_files is not None or all(ending in BUILDERS for ending in endings):
        return None
    builder = BUILDERS[endings.most_common(1)[0][0].lower()]
    found = DataFilesDict.from_patterns(get_data_patterns(str(folder)), base_path=str(folder))
    return builder, {
        split: [file for file in files if BUILDERS.get(Path(file).suffix.lower()) == builder]
        for split, files in found.items()
    }


def _part(whole: dict[str, Dataset], split: str, source: str, split_field: str) -> Dataset:
    """A split, a slice of one, or a sum of such, as `datasets` writes them."""
    import datasets

    if split in whole:
        return whole[split]
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(
            {name: len(data) for name, data in whole.items()}
        )
    except (ValueError, AssertionError) as error:
        raise NoSuchSplit(
            f"`{split_field}` is {split!r}; use {', '.join(whole)}, or a slice such as {next(iter(whole))}[:90%], of {source}."
        ) from error
    return datasets.concatenate_datasets([whole[p.splitname].select(range(p.from_, p.to)) for p in parts])


def _with_prompts(dataset: Dataset | IterableDataset, prompt_column: str) -> Dataset | IterableDataset:
    """The only column of a text file is the prompts; its blank lines are none."""
    from ..data import blank_texts, is_stream

    if column_names(dataset) != ["text"]:
        return dataset
    if is_stream(dataset):
        dataset = dataset.filter(lambda row: bool(row["text"].strip()))
    else:
        # In Arrow: a file has millions of lines, and hardly ever a blank one.
        texts = dataset.with_format("arrow")
        blank = [blank_texts(table["text"]) for table in texts.iter(10_000)]
        if any(part.index(True).as_py() >= 0 for part in blank):
            flags = (flag for part in blank for flag in part.to_pylist())
            dataset = dataset.select([index for index, flag in enumerate(flags) if not flag])
    return dataset if prompt_column == "text" else dataset.rename_column("text", prompt_column)


def _at_home(files: Any) -> Any:
    """Paths, however nested they are given, with the home folder in place of `~`."""
    if isinstance(files, dict):
        return {split: _at_home(entry) for split, entry in files.items()}
    if isinstance(files, (list, tuple)):
        return [_at_home(entry) for entry in files]
    return os.path.expanduser(files) if isinstance(files, str) else files


def column_names(dataset: Dataset | IterableDataset) -> list[str]:
    """Return the names of columns; a stream may know them only from its first row."""
    return list(dataset.column_names or next(iter(dataset), {}))


def _not_found(field: str, name: str, text: str) -> str:
    if "gated" in text:
        return f"`{field}` {name!r} is gated on the Hub; ask for access on its page, then `hf auth login` or set HF_TOKEN."
    return (
        f"`{field}` {name!r} is no file or folder here and no dataset that you can read on the Hub; check the spelling, and "
        "for a private one run `hf auth login` or set HF_TOKEN."
    )


@contextmanager
def _quiet_readers() -> Iterator[list[str]]:
    """Keeps what readers of files log before they raise off standard error; gives names of the files that it was about."""
    files: list[str] = []

    def is_news(record: logging.LogRecord) -> bool:
        found = _BROKEN_FILE.match(record.getMessage())
        if found is not None:
            files.append(Path(found[1]).name)
        return found is None

    handlers = list(logging.getLogger("datasets").handlers)
    for handler in handlers:
        handler.addFilter(is_news)
    try:
        yield files
    finally:
        for handler in handlers:
            handler.removeFilter(is_news)


def _reason(error: BaseException) -> str:
    """What is at the bottom of an error, in one line: `datasets` wraps it in one that says nothing."""
    while error.__cause__ is not None and type(error).__name__ == "DatasetGenerationError":
        error = error.__cause__
    return textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...").rstrip(".")
