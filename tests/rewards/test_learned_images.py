# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Preprocessing of learned rewards, above all of pictures that are not square."""

import clip_reference as ref
import numpy as np
import pytest
import torch
from PIL import Image

from trl_progrpo.rewards.learned_images import ImageTransform, to_rgb


CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
SIZES = [
    (512, 512),
    (640, 360),
    (360, 640),
    (225, 224),
    (227, 224),
    (224, 229),
    (100, 31),
    (17, 100),
    (224, 224),
    (1, 500),
]


def picture(size, mode="RGB"):
    values = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def processor(name, **settings):
    """Transformers' own, in the version that uses PIL whatever is installed."""
    import transformers

    return getattr(transformers, f"{name}Pil")(**settings)


@pytest.mark.parametrize("size", SIZES[:-1])
def test_clip_is_that_of_transformers(size):
    transform = ImageTransform(224, 224, shortest_edge=224, **CLIP)
    theirs = processor("CLIPImageProcessor")(picture(size), return_tensors="pt").pixel_values
    torch.testing.assert_close(transform([picture(size)]), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_siglip_is_that_of_transformers(size):
    transform = ImageTransform(384, 384, mean=(0.5,) * 3, std=(0.5,) * 3, resample=2)
    theirs = processor("SiglipImageProcessor", size={"height": 384, "width": 384}, resample=2)
    theirs = theirs(picture(size), return_tensors="pt").pixel_values
    torch.testing.assert_close(transform([picture(size)]), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((640, 360), (0, 49, 224, 175)),  # 224 x 126
        ((360, 640), (49, 0, 175, 224)),
        ((448, 250), (0, 49, 224, 174)),  # 224 x 125: 99 rows of black, 49 above and 50 below
        ((112, 56), (0, 56, 224, 168)),  # enlarged
        ((224, 100), (0, 62, 224, 162)),  # the longer side fits already
        ((300, 300), (0, 0, 224, 224)),
        ((1, 500), (111, 0, 112, 224)),
    ],
)
def test_hpsv2_keeps_the_whole_picture_and_adds_black(size, box):
    transform = ImageTransform(224, 224, pad=True, **CLIP)
    left, top, right, bottom = box
    array = np.zeros((224, 224, 3), dtype=np.uint8)
    resized = picture(size).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    array[top:bottom, left:right] = np.asarray(resized)
    torch.testing.assert_close(transform([picture(size)])[0], ref.normalised(array), atol=1e-6, rtol=0)


def test_settings_are_read_from_old_and_new_folders(tmp_path):
    ref.clip_config("gelu").save_pretrained(tmp_path)
    ref.save_processor(tmp_path)
    assert ImageTransform.from_pretrained(str(tmp_path)) == ImageTransform(32, 32, shortest_edge=32, **CLIP)
    processor("CLIPImageProcessor", size={"shortest_edge": 40}, crop_size=36, resample=2).save_pretrained(tmp_path)
    new = ImageTransform.from_pretrained(str(tmp_path))
    assert new == ImageTransform(36, 36, shortest_edge=40, resample=2, **CLIP)
    theirs = processor("CLIPImageProcessor", size={"shortest_edge": 40}, crop_size=36, resample=2)
    torch.testing.assert_close(new([picture((99, 60))]), theirs(picture((99, 60)), return_tensors="pt").pixel_values)
    processor("CLIPImageProcessor", do_center_crop=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"reward `learned` cannot load .*makes images of different sizes"):
        ImageTransform.from_pretrained(str(tmp_path))


def test_a_batch_of_different_sizes():
    transform = ImageTransform(32, 32, shortest_edge=32, **CLIP)
    images = [picture(size) for size in SIZES[:-1]]
    batch = transform(images)
    assert batch.shape == (len(images), 3, 32, 32)
    assert batch.dtype == torch.float32
    for row, image in zip(batch, images):
        assert torch.equal(row, transform([image])[0])


def test_transparency_is_put_on_white():
    clear = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    half = Image.new("RGBA", (2, 1), (0, 0, 0, 128))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(half).getpixel((0, 0)) == (127, 127, 127)
    grey = Image.new("LA", (2, 1), (10, 0))
    assert to_rgb(grey).getpixel((0, 0)) == (255, 255, 255)
    palette = picture((8, 8)).quantize(4)
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(Image.new("L", (2, 1), 7)).getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize("other", [None, "picture.png", np.zeros((4, 4, 3), np.uint8), torch.zeros(3, 4, 4)])
def test_anything_else_is_refused(other):
    transform = ImageTransform(32, 32, shortest_edge=32, **CLIP)
    with pytest.raises(ValueError, match=r"an image is a \w+; learned rewards score PIL images"):
        transform([picture((40, 40)), other])
