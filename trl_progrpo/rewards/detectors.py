# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What finds objects in images: the interface, the shapes world's own detector, and names of colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from ..tiny import verifier
from ..tiny.world import COLORS, IMAGE_SIZE, SHAPES


UNCLEAR = "unclear"
"""Label and colour of something that is there and is none of the known."""


@dataclass(frozen=True)
class Detection:
    """
    An object in an image.

    Args:
        label (`str`): its class.
        box (`tuple[float, float, float, float]`): left, top, right and bottom in pixels; the origin is the top left.
        score (`float`, *optional*, defaults to 1.0): confidence in [0, 1].
        color (`str`, *optional*): name of its colour; read from the pixels in the box when unset.
    """

    label: str
    box: tuple[float, float, float, float]
    score: float = 1.0
    color: str | None = None


class Detector(Protocol):
    """Any callable of this form; a class of its own is not needed."""

    def __call__(self, images: list[Image.Image], classes: list[list[str]]) -> list[list[Detection]]:
        """
        The objects in each image.

        Args:
            images (`list[PIL.Image.Image]` of length `B`): in mode RGB, of any size.
            classes (`list[list[str]]` of length `B`): the classes somebody asks about in each image. A detector with fixed
                classes may ignore them, and detections of other classes are allowed.

        Returns:
            `list[list[Detection]]` of length `B`: in any order.
        """


class ShapesDetector:
    """
    The verifier of the shapes world as a detector: coloured circles, squares and triangles in 32x32 images.

    What the verifier would not accept as one of them (see [`trl_progrpo.tiny.verifier`]) has the label `"unclear"`, and so
    does debris, in a box around the whole image; a colour between two is called `"unclear"`. Boxes are squares around the
    object. Well under 1 ms an image.
    """

    def check_classes(self, classes: Sequence[str]) -> None:
        """
        Raises:
            ValueError: if one of `classes` is no shape.
        """
        unknown = [name for name in classes if name not in (*SHAPES, UNCLEAR)]
        if unknown:
            raise ValueError(f"the shapes world has no class {unknown[0]!r}; use {', '.join(SHAPES)}, or {UNCLEAR}.")

    def __call__(self, images: list[Image.Image], classes: list[list[str]] | None = None) -> list[list[Detection]]:
        """
        See [`Detector`].

        Raises:
            ValueError: if an image is not 32x32.
        """
        for image in images:
            if image.size != (IMAGE_SIZE, IMAGE_SIZE):
                raise ValueError(
                    f"an image has {image.width}x{image.height} pixels; the shapes world has {IMAGE_SIZE}x{IMAGE_SIZE}; "
                    "use another detector for this model."
                )
        if not images:
            return []
        found = verifier.detect(np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images]))
        return [_shapes_of(found, row) for row in range(len(images))]


def _shapes_of(found: verifier.Detections, row: int) -> list[Detection]:
    detections = []
    for slot in np.flatnonzero(found.area[row]):
        x, y = found.centre[row, slot]
        half = found.extent[row, slot] / 2
        shape, color = found.shape_iou[row, slot], found.color_cosine[row, slot]
        is_shape = shape.max() >= verifier.STRICT_SHAPE_IOU and 2 * half <= verifier.MAX_EXTENT
        is_color = color.max() >= verifier.STRICT_COLOR_COSINE
        detections.append(
            Detection(
                label=SHAPES[shape.argmax()] if is_shape else UNCLEAR,
                box=(x - half, y - half, x + half, y + half),
                score=float(np.clip(shape.max(), 0, 1)),
                color=COLORS[color.argmax()] if is_color else UNCLEAR,
            )
        )
    if found.fragment_pixels[row] > verifier.STRICT_FRAGMENT_PIXELS:
        detections.append(Detection(UNCLEAR, (0, 0, IMAGE_SIZE, IMAGE_SIZE), color=UNCLEAR))
    return detections


PIXEL_COLORS = ("black", "white", "gray", "brown", "pink", "red", "orange", "yellow", "green", "blue", "purple")
"""What [`color_name`] may say."""


def color_name(image: Image.Image, box: tuple[float, float, float, float]) -> str:
    """
    The name most pixels in the middle of a box have: GenEval's red, orange, yellow, green, blue, purple, pink, brown, black
    and white, and gray.

    Each pixel of the central half of both sides is named by fixed limits of hue, saturation and value. GenEval cuts the object
    out with its mask and asks CLIP ViT-L/14; this needs neither, but takes the background for the object where that is hollow
    or thin, and follows the light rather than the object where the two differ.

    Args:
        image (`PIL.Image.Image`): in mode RGB.
        box (`tuple[float, float, float, float]`): left, top, right and bottom in pixels.
    """
    left, top, right, bottom = box
    x, y, dx, dy = (left + right) / 2, (top + bottom) / 2, (right - left) / 4, (bottom - top) / 4
    first = [min(max(int(low), 0), side - 1) for low, side in ((x - dx, image.width), (y - dy, image.height))]
    last = [min(max(round(high), low + 1), side) for high, low, side in zip((x + dx, y + dy), first, image.size)]
    pixels = np.asarray(image.crop((*first, *last)).convert("HSV"), dtype=np.float64).reshape(-1, 3) / 255
    names, counts = np.unique(_pixel_names(*pixels.T), return_counts=True)
    return str(names[counts.argmax()])


def _pixel_names(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    degrees = hue * 360
    reddish = (degrees < 15) | (degrees >= 345)
    # The first that holds; brown is dark orange or dull dark red, pink is pale red.
    rules = {
        "black": value < 0.2,
        "white": (saturation < 0.15) & (value > 0.75),
        "gray": saturation < 0.15,
        "brown": (reddish & (value < 0.7) & (saturation < 0.8)) | (~reddish & (degrees < 45) & (value < 0.7)),
        "pink": (reddish & (saturation < 0.55)) | ((degrees >= 315) & (degrees < 345)),
        "red": reddish,
        "orange": degrees < 45,
        "yellow": degrees < 70,
        "green": degrees < 165,
        "blue": degrees < 260,
    }
    return np.select(list(rules.values()), list(rules), default=PIXEL_COLORS[-1])
