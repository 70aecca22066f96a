# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What the subcommands share. Standard library only."""

from __future__ import annotations

import argparse
import difflib
import errno
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType


class CommandError(Exception):
    """
    A mistake of the user's, or what another process died of: its text is printed as it is, in one line.

    Args:
        message (`object`): a sentence.
        exit_status (`int`, *optional*, defaults to 2): with which the program ends.
    """

    def __init__(self, message: object, exit_status: int = 2):
        super().__init__(" ".join(str(message).split()))
        self.exit_status = exit_status


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence; no abbreviated flags."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": HelpFormatter, **kwargs})

    def error(self, message: str):
        raise CommandError(f"{message}; see `{self.prog} --help`.")

    def parse_args(self, args: Sequence[str] | None = None, namespace=None):
        namespace, unknown = self.parse_known_args(args, namespace)
        refuse_unknown_flags(self, unknown)
        return namespace


class HelpFormatter(argparse.HelpFormatter):
    """Flags once (`--max_steps`, not also `--max-steps`), defaults where they say something."""

    def __init__(self, prog: str, **kwargs):
        super().__init__(prog, **{"max_help_position": 30, **kwargs})

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        if action.nargs == 0:
            return ", ".join(o for o in action.option_strings if "_" in o or "-" not in o.lstrip("-"))
        flag = action.option_strings[0]
        # An optional value (`--bf16`, `--bf16 False`) is noise here; choices of 40 names would fill the page.
        kind = getattr(action.type, "__name__", "")
        short = "N" if kind.startswith("int") else "X" if kind.startswith("float") else None
        short = "BOOL" if kind == "string_to_bool" else short
        metavar = action.metavar or ((short or action.dest.split("_")[-1].upper()) if action.nargs != "?" else "")
        return f"{flag} {metavar}{' ...' if action.nargs in ('+', '*') else ''}".rstrip()

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").strip()
        default = action.default
        if action.nargs == 0 or default is None or default is False or default in (argparse.SUPPRESS, [], ""):
            return text
        return f"{text} (default: %(default)s)"


def refuse_unknown_flags(parser: argparse.ArgumentParser, unknown: Sequence[str], known: Iterable[str] = ()) -> None:
    """
    Raises a [`CommandError`] about the first of `unknown`, with the nearest flag if one is near.

    Args:
        parser (`argparse.ArgumentParser`): knows the flags.
        unknown (`Sequence[str]`): what `parse_known_args` left over.
        known (`Iterable[str]`, *optional*): further flags that exist.
    """
    if not unknown:
        return
    flags = [option for action in parser._actions for option in action.option_strings] + list(known)
    first = next((token for token in unknown if token.startswith("-")), unknown[0])
    if not first.startswith("-"):
        raise CommandError(f"unexpected argument {first!r}; values follow a flag, see `{parser.prog} --help`.")
    first = first.split("=")[0]
    nearest = difflib.get_close_matches(first.replace("-", "_"), {f.replace("-", "_"): None for f in flags}, n=1)
    hint = f"did you mean --{nearest[0].lstrip('_')}?" if nearest else f"see `{parser.prog} --help`."
    raise CommandError(f"unknown flag {first}; {hint}")


@contextmanager
def user_errors(*kinds: type[Exception], ours_only: bool = False) -> Iterator[None]:
    """
    Turns a `ValueError` (or another of `kinds`) raised inside into a [`CommandError`].

    Args:
        kinds (`type[Exception]`): exception types; `ValueError` when none is given.
        ours_only (`bool`, *optional*, defaults to `False`): only if this package raised it itself, with a sentence for
            the user. In the midst of training a `ValueError` from anywhere else is a defect, perhaps in a reward
            function, and its traceback is needed.
    """
    kinds = kinds or (ValueError,)
    try:
        yield
    except kinds as error:
        if ours_only and not _raised_here(error.__traceback__):
            raise
        message = " ".join([str(error).strip() or type(error).__name__, *getattr(error, "__notes__", [])])
        raise CommandError(message, getattr(error, "exit_status", 2)) from error


@contextmanager
def tracker_errors() -> Iterator[None]:
    """Turns what Weights & Biases raises where nobody is logged in into a [`CommandError`]."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("wandb.") or "key" not in str(error).lower():
            raise
        raise CommandError(
            f"`report_to` has wandb, which refuses ({str(error).strip().splitlines()[0].rstrip('.')}); run `wandb login`, set "
            "WANDB_API_KEY, or set WANDB_MODE to offline."
        ) from error


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# safetensors and torch write their files in languages of their own, and what they raise is no OSError.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_TORCH_WRITER = ("PytorchStreamWriter failed", "inline_container.cc")


@contextmanager
def full_disk_errors(folder: str) -> Iterator[None]:
    """
    Turns what is raised when a disk has no room for a file into a [`CommandError`] that names the file, or else `folder`.

    Args:
        folder (`str`): the output folder of the run, below which files are written.
    """
    try:
        yield
    except Exception as error:
        reason = _no_room(error)
        if reason is None:
            raise
        # Not all of them say which file it was.
        file = getattr(error, "filename", None)
        raise CommandError(
            f"{repr(str(file)) if file else f'a file in `output_dir` {folder!r}'} could not be written ({reason}); make room "
            "there, then go on with --resume_from_checkpoint true if there is a checkpoint, or choose another `output_dir`."
        ) from error


def _no_room(error: Exception) -> str | None:
    number = error.errno if isinstance(error, OSError) else None
    found = _OS_ERROR.search(str(error))
    number = int(found[1]) if found is not None else number
    if number in _NO_ROOM:
        return os.strerror(number)
    by_torch = isinstance(error, RuntimeError) and any(words in str(error) for words in _TORCH_WRITER)
    return "the disk is full, or writing failed otherwise" if by_torch else None


def _raised_here(traceback: TracebackType | None) -> bool:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and _is_ours(traceback.tb_frame)


def _is_ours(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "").partition(".")[0] == __package__.partition(".")[0]


@contextmanager
def short_warnings() -> Iterator[None]:
    """Prints warnings of this package as one line, without the file and the source that mean nothing to the user."""
    whole = warnings.formatwarning

    def one_line(message, category, filename, lineno, line=None) -> str:
        if not _warned_here():
            return whole(message, category, filename, lineno, line)
        return f"warning: {' '.join(str(message).split())}\n"

    warnings.formatwarning = one_line
    try:
        yield
    finally:
        warnings.formatwarning = whole


def _warned_here() -> bool:
    """Whether this package has called `warnings.warn`; the file that is reported may be a caller's, of any package."""
    frame = sys._getframe(2)
    # Of Python itself, under another name from 3.14 on.
    while frame is not None and frame.f_globals.get("__name__") in ("warnings", "_py_warnings"):
        frame = frame.f_back
    return frame is not None and _is_ours(frame)


_NO_NEWS = ("requires torchvision", "No LoRA keys associated to")


def quieten_libraries() -> None:
    """
    Silences what other libraries say that is no news to the user: that there is no torchvision, that an adapter leaves
    the text encoders alone; and progress bars where there is no terminal to draw them on. To be called first, as some
    of it is said on import.
    """
    import transformers
    from diffusers.utils import logging as diffusers_logging

    # Of one library about another; asked for the configuration of a model, and no business of the user's.
    warnings.filterwarnings("ignore", message="The `local_dir_use_symlinks` argument is deprecated")
    for logger in (transformers.utils.logging.get_logger("transformers"), diffusers_logging.get_logger("diffusers")):
        for handler in logger.handlers:
            handler.addFilter(_is_news)
    if sys.stderr is not None and sys.stderr.isatty():
        return
    import datasets
    import huggingface_hub

    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    diffusers_logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _is_news(record: logging.LogRecord) -> bool:
    return not any(phrase in record.getMessage() for phrase in _NO_NEWS)
