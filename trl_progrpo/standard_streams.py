# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Standard output and standard error that never end a run: whatever becomes of a print, what it tells of goes on."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO


_PLAIN = {"→": ">", "–": "-", "—": "-", "±": "+-", "·": "|", "×": "x", "…": "..."}
"""What this package and rich print beyond ASCII, for those who have nothing else."""


def keep_printing() -> None:
    """
    Have `sys.stdout` and `sys.stderr` bear what would raise in whoever prints, in place and for the rest of the process.

    Letters that the encoding lacks are written as escapes (`\\u4e2d`), dashes and arrows in ASCII. What goes into a pipe that
    nobody reads any more, into a closed stream or onto a full disk is dropped; [`lost_output`] knows of it. Where there is no
    stream at all (`>&-`, `pythonw`) it becomes the null device. All who write are served: `print`, logging, warnings, tqdm, rich
    (which would raise `SystemExit`), and threads. Calling it again takes up streams that are new.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Also so that no file gets the number of a standard stream, to which libraries in C print.
            stream = open(os.devnull, "w", encoding="utf-8")
            setattr(sys, name, stream)
        for method in ("write", "flush", "isatty"):
            plain = getattr(stream, method, None)
            if plain is not None and not hasattr(plain, "keeps_printing"):
                guarded = _guarded(stream, plain)
                guarded.keeps_printing = True
                try:
                    setattr(stream, method, guarded)
                except AttributeError:  # An object of somebody's own that takes none.
                    break


def lost_output() -> str | None:
    """Return why some of standard output could not be written, if so; not where its reader simply went away."""
    sys.stdout.flush()
    return getattr(sys.stdout, "lost_output", None)


def prints_unicode() -> bool:
    """Return whether standard output takes every letter; a format that has escapes of its own is to use them elsewhere."""
    return _is_unicode(sys.stdout)


def _guarded(stream: TextIO, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call`, a method of `stream`, as one that gives the number of letters it was given where it would raise."""

    def guarded(*text: str) -> Any:
        try:
            try:
                return call(*(text if _is_unicode(stream) else _encodable(stream, text)))
            # By what is no text in any encoding, such as the bytes of a strange file name.
            except UnicodeEncodeError:
                return call(*_encodable(stream, text))
        except OSError as error:
            if error.errno != errno.EPIPE:
                stream.lost_output = error.strerror or str(error)
        except ValueError as error:
            if not any(word in str(error) for word in ("closed", "detached")):
                raise
        return sum(map(len, text))

    return guarded


def _encoding(stream: TextIO) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


def _is_unicode(stream: TextIO) -> bool:
    return _encoding(stream).lower().startswith("utf")


def _encodable(stream: TextIO, texts: Iterable[str]) -> list[str]:
    encoding = _encoding(stream)

    def plain(letter: str) -> str:
        try:
            letter.encode(encoding)
        except UnicodeEncodeError:
            return _PLAIN.get(letter) or letter.encode(encoding, "backslashreplace").decode(encoding)
        return letter

    return ["".join(map(plain, text)) for text in texts]
