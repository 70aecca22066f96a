# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""How well an image compresses: the two rewards that need no model."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from .base import REWARDS
from .learned_images import to_rgb


QUALITY = 95
"""Quality of the JPEG encoder, as in DDPO."""

LONGEST_SIDE = 65_500
"""Of images that libjpeg writes, in pixels."""


@REWARDS.register("jpeg_compressibility")
def jpeg_compressibility(prompts: Sequence[str], images: Sequence[Image.Image], **columns) -> list[float]:
    """
    Minus the size of the image as a JPEG of quality 95, in kB of 1000 bytes: smooth pictures are worth more.

    Black et al., "Training Diffusion Models with Reinforcement Learning" (DDPO, arXiv 2305.13301), whose definition this is.

    * Range: below 0, the closer the smoother. It grows with the number of pixels, so rewards of different image sizes do
      not compare.
    * Licence: nothing to license. Cost: one JPEG encoding.

    Args:
        prompts (`Sequence[str]`): not used.
        images (`Sequence[PIL.Image.Image]`): of any size and mode; transparency is put on white.
        columns: further dataset columns and `preview`; not used.

    Raises:
        ValueError: if an entry is not a PIL image, or a side is longer than a JPEG's may be.
    """
    return [-jpeg_size(image) for image in images]


@REWARDS.register("jpeg_incompressibility")
def jpeg_incompressibility(prompts: Sequence[str], images: Sequence[Image.Image], **columns) -> list[float]:
    """The size of the image as a JPEG of quality 95, in kB: detail and noise are worth more. See [`jpeg_compressibility`]."""
    return [jpeg_size(image) for image in images]


def jpeg_size(image: Image.Image, quality: int = QUALITY) -> float:
    """
    Size of an image as a JPEG file, in kB of 1000 bytes.

    Args:
        image (`PIL.Image.Image`): of any mode; transparency is put on white.
        quality (`int`, *optional*, defaults to 95): of the encoder, 1 to 95.

    Raises:
        ValueError: if a side is longer than a JPEG's may be.
    """
    rgb = to_rgb(image)
    if max(rgb.size) > LONGEST_SIDE:
        raise ValueError(
            f"an image is {rgb.width} x {rgb.height} pixels, and a side of a JPEG has at most {LONGEST_SIDE}; resize it."
        )
    file = io.BytesIO()
    rgb.save(file, format="JPEG", quality=quality)
    return file.tell() / 1000


# Of the image alone.
jpeg_compressibility.reads_prompts = jpeg_incompressibility.reads_prompts = False
jpeg_compressibility.dataset_columns = jpeg_incompressibility.dataset_columns = ()
