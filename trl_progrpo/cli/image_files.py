# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Images that are already there, with their prompts: files, folders, or .jsonl files that list them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..words import counted
from .base import CommandError


if TYPE_CHECKING:
    from PIL import Image


IMAGE_COLUMNS = ("image", "file_name")
"""Keys under which a row may name its image; the second is that of `metadata.jsonl` in image folders of `datasets`."""

_NOT_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
"""Formats of Pillow that it only identifies, or reads with the help of other programs."""

_BESIDE = (".txt", ".json", ".jsonl", ".csv", ".md")
"""Endings of files that lie beside images and are none."""


@dataclass(frozen=True)
class ImageFile:
    """An image, its prompt and the other columns of its row; `where` tells which row that is."""

    where: str
    path: Path
    prompt: str
    columns: dict[str, Any]

    def open(self) -> Image.Image:
        """
        Read the image upright (EXIF orientation), in mode RGB; transparency is put on white, as built-in rewards do.

        Raises:
            UnreadableImage: if it is missing, damaged, too large, or of values whose range is unknown.
        """
        from PIL import Image, ImageOps, UnidentifiedImageError

        from ..rewards.learned_images import to_rgb

        try:
            with warnings.catch_warnings():
                # Large, and still read.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(self.path) as image:
                    return to_rgb(ImageOps.exif_transpose(image))
        except UnidentifiedImageError as error:
            raise UnreadableImage("it is no image that Pillow knows") from error
        # Decoders raise OSError, SyntaxError, ValueError, struct.error, DecompressionBombError ... about broken files.
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UnreadableImage(" ".join(reason.split()).rstrip(".") or type(error).__name__) from error


class UnreadableImage(Exception):
    """An image file that gives no image; its text is the reason."""


def suffixes() -> frozenset[str]:
    """Return the endings of image files that a folder is searched for, in small letters: all that Pillow reads."""
    from PIL import Image

    readable = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return frozenset(e for e in readable if Image.registered_extensions()[e] not in _NOT_PICTURES)


def images_of(
    path: str, prompt_column: str = "prompt", prompt: str | None = None, needs_prompt: bool = True
) -> list[ImageFile]:
    """
    Find an image file, or the images of a folder or a .jsonl file.

    The prompt of a file comes from a text file beside it (`cat.png`, `cat.txt`). In a folder prompts come from
    `metadata.jsonl` if there is one, else from such text files. Names in a .jsonl file are relative to its folder. A folder
    may be one that GenEval's scripts write: `00000/metadata.jsonl` with the images in `00000/samples`. Other subfolders and
    files that are no images are left out with a warning.

    Args:
        path (`str`): file or folder.
        prompt_column (`str`, *optional*, defaults to `"prompt"`): key of the prompts.
        prompt (`str`, *optional*): of all images, instead of what the files say.
        needs_prompt (`bool`, *optional*, defaults to `True`): refuse an image without a prompt, which is "" otherwise.

    Raises:
        CommandError: if there are no images, or one has no prompt.
    """
    source = Path(path).expanduser()
    if source.is_dir():
        rows = _folder_rows(source, prompt_column)
    elif source.is_file() and source.suffix.lower() == ".jsonl":
        rows = _rows(source)
    elif source.is_file():
        rows = iter([_file_row(source, prompt_column)])
    else:
        raise CommandError(f"{path!r} does not exist; give image files, folders or .jsonl files.")
    files = [_image_file(where, image, row, prompt_column, prompt, needs_prompt) for where, image, row in rows]
    if not files:
        raise CommandError(f"{path!r} holds no images; known kinds are {', '.join(sorted(suffixes()))}.")
    return files


def _rows(file: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    for number, line in enumerate(_text_of(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"line {number} of {file.name}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CommandError(f"{where} is no JSON ({error}); mend it.") from error
        key = next((key for key in IMAGE_COLUMNS if isinstance(row, dict) and isinstance(row.get(key), str)), None)
        if key is None:
            raise CommandError(
                f"{where} names no image; give every row a file under {' or '.join(map(repr, IMAGE_COLUMNS))}."
            )
        yield where, file.parent / Path(row.pop(key)).expanduser(), row


def _folder_rows(folder: Path, prompt_column: str) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    if _is_geneval(folder):
        yield from _geneval_rows(folder)
        return
    entries = sorted(folder.iterdir())
    samples = [entry for entry in entries if entry.is_dir() and _is_geneval(entry)]
    images, listed = _images_in(entries), folder / "metadata.jsonl"
    if listed.is_file():
        rows = list(_rows(listed))
        unlisted = sorted(path.name for path in set(images) - {path for _, path, _ in rows})
        cure = "give each a row in metadata.jsonl, or name the files themselves"
        _tell_left_out(folder, unlisted, "unlisted image", cure)
        yield from rows
        return
    _tell_others(folder, [entry for entry in entries if entry not in {*samples, *images}])
    for path in images:
        yield _file_row(path, prompt_column)
    for sample in samples:
        yield from _geneval_rows(sample)


def _images_in(entries: Sequence[Path]) -> list[Path]:
    """Return those that are images by their endings; of links to nowhere it is told later that they cannot be read."""
    known = suffixes()
    return [e for e in entries if e.suffix.lower() in known and (e.is_file() or not e.exists())]


def _is_geneval(folder: Path) -> bool:
    return (folder / "metadata.jsonl").is_file() and (folder / "samples").is_dir()


def _geneval_rows(folder: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Yield the images of one prompt, whose metadata is the only line of a file without image names."""
    listed = folder / "metadata.jsonl"
    try:
        row = json.loads(_text_of(listed))
    except json.JSONDecodeError as error:
        raise CommandError(
            f"{str(listed)!r} is not one line of JSON ({error}), as GenEval's is; correct it."
        ) from error
    if not isinstance(row, dict):
        raise CommandError(f"{str(listed)!r} is {row!r}, and no JSON object as GenEval's is; correct it.")
    for path in _images_in(sorted((folder / "samples").iterdir())):
        yield f"{folder.name}/samples/{path.name}", path, dict(row)


def _tell_others(folder: Path, entries: Sequence[Path]) -> None:
    folders = [f"{entry.name}/" for entry in entries if entry.is_dir()]
    others = [
        e.name for e in entries if e.is_file() and e.suffix.lower() not in _BESIDE and not e.name.startswith(".")
    ]
    _tell_left_out(folder, folders, "subfolder", "give them as further arguments to score what is in them")
    _tell_left_out(folder, others, "file that is no image", "name a file itself to have it read all the same")


def _tell_left_out(folder: Path, names: Sequence[str], what: str, cure: str) -> None:
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        warnings.warn(f"{str(folder)!r}: {counted(len(names), what)} left out ({shown}); {cure}.", stacklevel=2)


def _file_row(path: Path, prompt_column: str) -> tuple[str, Path, dict[str, Any]]:
    text = path.with_suffix(".txt")
    return path.name, path, {prompt_column: _text_of(text).strip()} if text.is_file() else {}


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{str(file)!r} cannot be read ({error}); give it as text in UTF-8.") from error


def _image_file(
    where: str, path: Path, row: dict[str, Any], prompt_column: str, prompt: str | None, needs_prompt: bool
) -> ImageFile:
    found = row.pop(prompt_column, None) if prompt is None else prompt
    if not isinstance(found, str) or not found.strip():
        if needs_prompt:
            keys = f"; its other keys are {', '.join(row)}" if row else ""
            raise CommandError(
                f"{where} has no prompt under {prompt_column!r}{keys}; give one in metadata.jsonl or a .txt file beside the "
                "image, or one for all images with --prompt."
            )
        found = ""
    taken = sorted({"prompts", "images", "preview"} & set(row))
    if taken:
        raise CommandError(f"{where} has the key {taken[0]!r}, under which rewards get something else; rename it.")
    return ImageFile(where, path, found, row)
