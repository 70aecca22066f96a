# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The list of a checkpoint's files, by which it is told from a damaged one. Standard library only."""

from __future__ import annotations

import json
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any


MANIFEST = "checkpoint.json"
FORMAT = 1
"""Raised when a checkpoint of an earlier version can no longer be continued."""

HASHED_WHOLE = 2**30
"""Bytes; of a larger file only evenly spaced blocks are hashed, first and last among them, so that saving never takes long."""

_BLOCK, _NUM_BLOCKS = 2**20, 64


class Damaged(ValueError):
    """What is wrong with a checkpoint, as the end of a sentence that has named it."""


def write_manifest(folder: str | Path, **facts: Any) -> None:
    """
    Lists all files below `folder` with size and checksum in its [`MANIFEST`], and has the disk keep them.

    Args:
        folder (`str` or `Path`): a checkpoint whose other files are written.
        facts: what else is noted, in JSON's types.
    """
    folder, files = Path(folder), {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST):
        with path.open("rb") as file:
            files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "blake2b": _checksum(file)}
            os.fsync(file.fileno())
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(json.dumps({"format": FORMAT, **facts, "files": files}, indent=2))
        file.flush()
        os.fsync(file.fileno())
    for directory in {folder, *(folder / Path(name).parent for name in files)}:
        sync_directory(directory)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """
    Raises:
        Damaged: if there is none that this version reads.
    """
    try:
        manifest = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
        version, files = manifest["format"], manifest["files"]
    except FileNotFoundError as error:
        raise Damaged(f"has no {MANIFEST}, without which nobody knows whether it is whole") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Damaged(f"has a {MANIFEST} that cannot be read ({type(error).__name__})") from error
    if version != FORMAT or not isinstance(files, dict):
        writer = manifest.get("trl_progrpo", "unknown")
        raise Damaged(
            f"has format {version!r} in its {MANIFEST}, written by trl_progrpo {writer}, while this one reads format {FORMAT}"
        )
    return manifest


def check_files(folder: str | Path, manifest: dict[str, Any], may_lack: frozenset[str] = frozenset()) -> None:
    """
    Args:
        folder (`str` or `Path`): the checkpoint.
        manifest (`dict`): its own.
        may_lack (`frozenset[str]`, *optional*): files that are not missed.

    Raises:
        Damaged: for the first file that is missing or is not what was written. All are looked for before any is read.
    """
    files = {name: entry for name, entry in manifest["files"].items() if name not in may_lack}
    for name, entry in files.items():
        path = Path(folder, name)
        if not path.is_file():
            raise Damaged(f"lacks {name}")
        if path.stat().st_size != entry["size"]:
            raise Damaged(f"holds {path.stat().st_size} bytes of {name} where {entry['size']} were written")
    for name, entry in files.items():
        with Path(folder, name).open("rb") as file:
            if _checksum(file) != entry["blake2b"]:
                raise Damaged(f"holds a {name} that has changed since it was written")


def sync_directory(folder: str | Path) -> None:
    """Has the disk keep the names in a folder; where a system knows no such thing, it does nothing."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _checksum(file: Any) -> str:
    size = os.fstat(file.fileno()).st_size
    state = blake2b(digest_size=20)
    if size <= HASHED_WHOLE:
        while block := file.read(_BLOCK):
            state.update(block)
        return state.hexdigest()
    for index in range(_NUM_BLOCKS):
        file.seek((size - _BLOCK) * index // (_NUM_BLOCKS - 1))
        state.update(file.read(_BLOCK))
    return state.hexdigest()
