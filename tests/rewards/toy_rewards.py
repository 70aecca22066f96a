# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Rewards for reward servers in tests: a number is written into the pixels of an image and read again."""

import os
import time

import numpy as np
from PIL import Image

from trl_progrpo.rewards import image_type


def numbered_image(number, size=(8, 8), mode="RGB"):
    """An image whose first pixel holds a number below 2 ** 24."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels[0, 0] = (number >> 16, number >> 8 & 255, number & 255)
    return Image.fromarray(pixels).convert(mode)


def number(prompts, images, preview, **columns):
    """The number in each image, plus `add`; negative for a preview."""
    pixels = [image.getpixel((0, 0)) for image in images]
    values = [(red << 16) + (green << 8) + blue for red, green, blue in pixels]
    values = [value + add for value, add in zip(values, columns.get("add", [0] * len(values)))]
    return [None if prompt == "none" else -value if preview else value for prompt, value in zip(prompts, values)]


@image_type("pt")
def red(prompts, images):
    """The red of the first pixel, 0 to 255."""
    return images[:, 0, 0, 0] * 255


def target(prompts, images, target):
    """Needs a column."""
    return target


def slow(prompts, images):
    """Waits for the file whose name is in the environment variable `GATE`; the size of the batch."""
    while not os.path.exists(os.environ["GATE"]):
        time.sleep(0.01)
    return [len(images)] * len(images)


def bad(prompts, images):
    """Fails as the first prompt says."""
    if prompts[0] == "refuse":
        raise ValueError("the prompt\nis not a sentence")
    if prompts[0] == "short":
        return [1.0]
    if prompts[0] == "nan":
        return [float("nan")] * len(prompts)
    if prompts[0] == "crash":
        raise RuntimeError("out of memory")
    if prompts[0] == "exit":
        raise SystemExit(1)
    return [1.0] * len(prompts)
