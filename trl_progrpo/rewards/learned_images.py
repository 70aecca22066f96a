# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""PIL images to the input of an image tower, the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .learned_loading import explained, revision_of


THREADS = 4
"""Images that are resized at once. PIL does it on the CPU, and a large image costs more there than the network on a GPU."""


@dataclass(frozen=True)
class ImageTransform:
    """
    Resizes, crops or pads, and normalises PIL images.

    transformers' image processors resize with torchvision where it is installed and with PIL where it is not, and the
    pixels differ a little. This one reads their settings and always uses PIL, so a reward does not depend on what else is
    installed.

    Args:
        height (`int`): of the result, in pixels.
        width (`int`): of the result, in pixels.
        shortest_edge (`int`, *optional*): the shorter side is resized to this, and the centre is cut out. Unset: both sides
            are resized, whatever the proportions.
        pad (`bool`, *optional*, defaults to `False`): the longer side is resized to fit, and black is added evenly on both
            sides of the other one; nothing is cut. `shortest_edge` is not used then.
        resample (`int`, *optional*, defaults to 3): PIL's filter; 2 bilinear, 3 bicubic.
        mean (`tuple[float, float, float]`): subtracted from values in [0, 1].
        std (`tuple[float, float, float]`): divided by.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shortest_edge: int | None = None
    pad: bool = False
    resample: int = Image.Resampling.BICUBIC

    @classmethod
    def from_pretrained(cls, name: str, revision: str | None = None, reward: str = "learned") -> ImageTransform:
        """
        The settings in the `preprocessor_config.json` of a folder or repository.

        Raises:
            ValueError: if there is none.
        """
        from transformers import AutoImageProcessor

        with explained(reward, name):
            processor = AutoImageProcessor.from_pretrained(name, revision=revision_of(name, revision))
            size = dict(processor.size)
            final = dict(processor.crop_size) if getattr(processor, "do_center_crop", False) else size
            if "height" not in final:
                raise ValueError("its preprocessor_config.json makes images of different sizes")
        return cls(
            height=final["height"],
            width=final["width"],
            shortest_edge=size.get("shortest_edge"),
            resample=int(processor.resample),
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
        )

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """
        Tensor `(B, 3, height, width)`, fp32, on the CPU.

        Raises:
            ValueError: if an entry is not a PIL image.
        """
        with ThreadPoolExecutor(min(THREADS, len(images))) as pool:
            pixels = np.stack(list(pool.map(self._pixels, images)))
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std

    def _pixels(self, image: Image.Image) -> np.ndarray:
        return np.asarray(self._resize(to_rgb(image)))

    def _resize(self, image: Image.Image) -> Image.Image:
        if self.pad:
            scale = max(self.height, self.width) / max(image.size)
            size = [max(1, round(side * scale)) for side in image.size]
            image = image.resize(size, self.resample)
        elif self.shortest_edge:
            short, side = min(image.size), self.shortest_edge
            image = image.resize((side * image.width // short, side * image.height // short), self.resample)
        else:
            return image.resize((self.width, self.height), self.resample)
        # A crop that starts at a negative offset pads with black; halves are rounded towards 0 both ways.
        left, top = int((image.width - self.width) / 2), int((image.height - self.height) / 2)
        return image.crop((left, top, left + self.width, top + self.height))


def to_rgb(image: Any) -> Image.Image:
    """
    An image in mode RGB. Transparency is put on white, as transformers' image processors do; of 16 bits a channel the upper
    8 are kept.

    Raises:
        ValueError: if it is not a PIL image, or one of values whose range is unknown.
    """
    if not isinstance(image, Image.Image):
        raise ValueError(f"an image is a {type(image).__name__}; learned rewards score PIL images.")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode.startswith("I;16"):
        # PIL's own conversion cuts off at 255, so that nearly everything would be white.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(
            f"an image has mode {image.mode}, in which white may be any number; convert it to 8 bits a channel."
        )
    return image.convert("RGB")
