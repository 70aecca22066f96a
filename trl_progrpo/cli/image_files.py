# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Images that are already there, with their prompts: files, folders, or .jsonl files that list them."""

from __future__ import annotations

import json
import os
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
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                # Large, and still read.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(self.path) as image:
                    upright = to_rgb(ImageOps.exif_transpose(image))
        except UnidentifiedImageError as error:
            raise UnreadableImage("it is no image that Pillow knows") from error
        # Decoders raise OSError, SyntaxError, ValueError, struct.error, DecompressionBombError ... about broken files.
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UnreadableImage(" ".join(reason.split()).rstrip(".") or type(error).__name__) from error
        for warning in told:
            warnings.warn(f"{str(self.path)!r}: {' '.join(str(warning.message).split())}", stacklevel=2)
        return upright


class UnreadableImage(Exception):
    """An image file that gives no image; its text is the reason."""


def suffixes() -> frozenset[str]:
    """Return the endings of image files that a folder is searched for, in small letters: all that Pillow reads."""
    from PIL import Image

    endings = Image.registered_extensions()
    # Pillow opens MPO, of cameras with two lenses, as JPEG.
    readable = {*Image.OPEN, "MPO"} - _NOT_PICTURES
    return frozenset(ending for ending, kind in endings.items() if kind in readable)


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
    try:
        files = [_image_file(where, image, row, prompt_column, prompt, needs_prompt) for where, image, row in rows]
    except OSError as error:
        raise CommandError(f"{path!r} cannot be read ({error.strerror}); change its permissions.") from error
    if not files:
        raise CommandError(
            f"{path!r} holds no images; known kinds are .png, .jpg, .webp and others that Pillow reads."
        )
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
    entries, listed = sorted(folder.iterdir()), folder / "metadata.jsonl"
    if listed.is_file():
        rows = list(_rows(listed))
        named = {os.path.normpath(path) for _, path, _ in rows}
        named |= {str(parent) for path in named for parent in Path(path).parents}
        _tell_left_out(folder, [entry for entry in entries if os.path.normpath(entry) not in named])
        yield from rows
        return
    images = [entry for entry in entries if _is_image(entry)]
    samples = [entry for entry in entries if _is_geneval(entry)]
    _tell_left_out(folder, [entry for entry in entries if entry not in {*samples, *images}])
    for path in images:
        yield _file_row(path, prompt_column)
    for sample in samples:
        yield from _geneval_rows(sample)


def _is_image(path: Path) -> bool:
    """Whether it is named as one; a link that leads nowhere is too, and its image cannot be read."""
    return path.suffix.lower() in suffixes() and (os.path.isfile(path) or not os.path.exists(path))


def _is_geneval(folder: Path) -> bool:
    listed = folder / "metadata.jsonl"
    if not os.path.isfile(listed) or not os.path.isdir(folder / "samples"):
        return False
    try:
        row = json.loads(_text_of(listed).partition("\n")[0])
    except json.JSONDecodeError:
        return True
    # In a folder of `datasets`, whose rows name their images, `samples` is a name as any other.
    return not (isinstance(row, dict) and set(IMAGE_COLUMNS) & set(row))


def _geneval_rows(folder: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Yield the images of one prompt, whose metadata is the only line of a file without image names."""
    listed, samples = folder / "metadata.jsonl", folder / "samples"
    try:
        row = json.loads(_text_of(listed))
        fault = None if isinstance(row, dict) else repr(row)
    except json.JSONDecodeError as error:
        fault = f"not one line of JSON ({error})"
    if fault is not None:
        raise CommandError(f"{str(listed)!r} is {fault}, and no JSON object as GenEval's is; correct it.")
    images = [entry for entry in sorted(samples.iterdir()) if _is_image(entry)]
    _tell_left_out(samples, sorted(set(samples.iterdir()) - set(images)))
    if not images:
        warnings.warn(f"{str(samples)!r} holds no images, so that its prompt has no score.", stacklevel=2)
    for path in images:
        yield f"{folder.name}/samples/{path.name}", path, dict(row)


def _tell_left_out(folder: Path, entries: Sequence[Path]) -> None:
    folders = [f"{entry.name}/" for entry in entries if os.path.isdir(entry)]
    images = [entry.name for entry in entries if _is_image(entry)]
    others = [
        entry.name
        for entry in entries
        if not (os.path.isdir(entry) or _is_image(entry))
        and not (entry.suffix.lower() in _BESIDE or entry.name.startswith("."))
    ]
    for names, what, cure in (
        (folders, "subfolder", "give them as further arguments to score what is in them"),
        (images, "unlisted image", "give each a row in metadata.jsonl, or name the files themselves"),
        (others, "file", "no image ends like that; name a file itself to have it read all the same"),
    ):
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            warnings.warn(f"{str(folder)!r}: {counted(len(names), what)} left out ({shown}); {cure}.", stacklevel=2)


def _file_row(path: Path, prompt_column: str) -> tuple[str, Path, dict[str, Any]]:
    texts = (path.with_suffix(ending) for ending in (".txt", ".TXT"))
    return path.name, path, next(({prompt_column: _text_of(text).strip()} for text in texts if text.is_file()), {})


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
