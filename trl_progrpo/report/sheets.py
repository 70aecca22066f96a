# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Many small images in one file, and single images as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from PIL import Image


COLUMNS = 8
SMALL = 128
"""Up to this many pixels images are kept exactly, as PNG; larger ones as WebP."""


def write_sheet(images: Sequence[Image.Image], folder: Path, name: str) -> dict[str, Any]:
    """Writes images of one size row by row into one file; returns what [`read_sheet`] needs."""
    from PIL import Image

    width, height = images[0].size
    rows = -(-len(images) // COLUMNS)
    sheet = Image.new("RGB", (width * min(COLUMNS, len(images)), height * rows))
    for index, image in enumerate(images):
        sheet.paste(image, (index % COLUMNS * width, index // COLUMNS * height))
    suffix, options = _format(images[0])
    sheet.save(folder / f"{name}.{suffix}", **options)
    return {"file": f"{name}.{suffix}", "count": len(images), "columns": COLUMNS, "width": width, "height": height}


def read_sheet(description: dict[str, Any], folder: Path) -> list[Image.Image]:
    """The images of a file that [`write_sheet`] wrote."""
    from PIL import Image

    columns, width, height = (int(description[key]) for key in ("columns", "width", "height"))
    # The name alone: a description may not point outside of its folder.
    with Image.open(folder / Path(description["file"]).name) as sheet:
        sheet = sheet.convert("RGB")
    corners = [(i % columns * width, i // columns * height) for i in range(int(description["count"]))]
    return [sheet.crop((x, y, x + width, y + height)) for x, y in corners]


def data_uri(image: Image.Image) -> str:
    """An image as an address that holds it."""
    suffix, options = _format(image)
    buffer = io.BytesIO()
    image.save(buffer, format=suffix, **options)
    return f"data:image/{suffix};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _format(image: Image.Image) -> tuple[str, dict[str, Any]]:
    return ("png", {"optimize": True}) if max(image.size) <= SMALL else ("webp", {"quality": 85, "method": 4})
