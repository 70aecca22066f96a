# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Images that are already there, with their prompts: files, folders, or .jsonl files that list them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import CommandError


if TYPE_CHECKING:
    from PIL import Image


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

IMAGE_COLUMNS = ("image", "file_name")
"""Keys under which a row may name its image; the second is that of `metadata.jsonl` in image folders of `datasets`."""


@dataclass(frozen=True)
class ImageFile:
    """An image, its prompt and what else its row says."""

    path: Path
    prompt: str
    columns: dict[str, Any]
    size: tuple[int, int]

    def open(self) -> Image.Image:
        """In mode RGB; transparency is put on white, as built-in rewards do."""
        from PIL import Image

        from ..rewards.learned_images import to_rgb

        with Image.open(self.path) as image:
            return to_rgb(image)


def images_of(path: str, prompt_column: str = "prompt", prompt: str | None = None) -> list[ImageFile]:
    """
    An image file, or the images of a folder or a .jsonl file.

    The prompt of a file comes from a text file beside it (`cat.png`, `cat.txt`). In a folder prompts come from
    `metadata.jsonl` if there is one, else from such text files. Names in a .jsonl file are relative to its folder.

    Args:
        path (`str`): file or folder.
        prompt_column (`str`, *optional*, defaults to `"prompt"`): key of the prompts.
        prompt (`str`, *optional*): of all images, instead of what the files say.

    Raises:
        CommandError: if there are no images, one cannot be read, or has no prompt.
    """
    source = Path(path).expanduser()
    if source.is_dir():
        listed = source / "metadata.jsonl"
        rows = _rows(listed) if listed.is_file() else _folder_rows(source, prompt_column)
    elif source.is_file() and source.suffix.lower() == ".jsonl":
        rows = _rows(source)
    elif source.is_file():
        rows = iter([_file_row(source, prompt_column)])
    else:
        raise CommandError(f"{path!r} does not exist; give image files, folders or .jsonl files.")
    files = [_image_file(where, image, row, prompt_column, prompt) for where, image, row in rows]
    if not files:
        raise CommandError(f"{path!r} holds no images; known kinds are {', '.join(SUFFIXES)}.")
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
        yield where, file.parent / row.pop(key), row


def _folder_rows(folder: Path, prompt_column: str) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
        yield _file_row(path, prompt_column)


def _file_row(path: Path, prompt_column: str) -> tuple[str, Path, dict[str, Any]]:
    text = path.with_suffix(".txt")
    return path.name, path, {prompt_column: _text_of(text).strip()} if text.is_file() else {}


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{str(file)!r} cannot be read ({error}); give it as text in UTF-8.") from error


def _image_file(where: str, path: Path, row: dict[str, Any], prompt_column: str, prompt: str | None) -> ImageFile:
    from PIL import Image, UnidentifiedImageError

    found = row.pop(prompt_column, None) if prompt is None else prompt
    if not isinstance(found, str) or not found.strip():
        keys = f"; its other keys are {', '.join(row)}" if row else ""
        raise CommandError(
            f"{where} has no prompt under {prompt_column!r}{keys}; give one in metadata.jsonl or a .txt file beside the image, "
            "or one for all images with --prompt."
        )
    taken = sorted({"prompts", "images", "preview"} & set(row))
    if taken:
        raise CommandError(f"{where} has the key {taken[0]!r}, under which rewards get something else; rename it.")
    try:
        with Image.open(path) as image:
            size = image.size
    except (OSError, UnidentifiedImageError) as error:
        raise CommandError(
            f"{where}: {str(path)!r} cannot be read as an image ({error}); give an image file."
        ) from error
    return ImageFile(path, found, row, size)
