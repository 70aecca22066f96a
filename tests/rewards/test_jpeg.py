# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from trl_progrpo.rewards import RewardRunner, jpeg_compressibility, jpeg_incompressibility
from trl_progrpo.rewards.jpeg import jpeg_size
from trl_progrpo.testing import check_reward_func


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
FLAT = Image.new("RGB", NOISE.size, (200, 40, 90))


@pytest.mark.parametrize("image", [NOISE, FLAT, NOISE.filter(ImageFilter.GaussianBlur(2))])
def test_ddpo_definition(image, tmp_path):
    image.save(tmp_path / "image.jpg", quality=95)
    kilobytes = os.path.getsize(tmp_path / "image.jpg") / 1000
    assert jpeg_incompressibility(["a"], [image]) == [kilobytes]
    assert jpeg_compressibility(["a"], [image]) == [-kilobytes]


def test_monotone_in_quality():
    picture = NOISE.filter(ImageFilter.GaussianBlur(1))
    sizes = [jpeg_size(picture, quality) for quality in range(10, 96, 5)]
    assert all(smaller < larger for smaller, larger in zip(sizes, sizes[1:]))


def test_smooth_pictures_are_worth_more():
    images = [FLAT, *(NOISE.filter(ImageFilter.GaussianBlur(radius)) for radius in (4, 2, 1)), NOISE]
    sizes = jpeg_incompressibility(["a"] * 5, images)
    assert sizes == sorted(sizes)
    assert sizes[-1] > 5 * sizes[0]
    assert jpeg_compressibility(["a"] * 5, images) == [-size for size in sizes]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1", "CMYK"])
def test_other_modes_are_converted(mode):
    image = NOISE.convert(mode)
    (size,) = jpeg_incompressibility(["a"], [image])
    assert size == jpeg_size(image.convert("RGB")) > 1


def test_transparency_is_put_on_white():
    clear = NOISE.convert("RGBA")
    clear.putalpha(0)
    assert jpeg_size(clear) == jpeg_size(Image.new("RGB", NOISE.size, "white"))


def test_16_bits_keep_the_upper_8():
    grey = np.asarray(NOISE.convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    assert jpeg_size(deep) == jpeg_size(Image.fromarray(grey))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_of_unknown_range(mode):
    with pytest.raises(ValueError, match=f"an image has mode {mode}, .*; convert it to 8 bits a channel"):
        jpeg_compressibility(["a"], [Image.new(mode, (4, 4))])


def test_what_is_no_picture():
    with pytest.raises(ValueError, match=r"an image is a Tensor; .*rewards score PIL images"):
        jpeg_compressibility(["a"], [torch.zeros(3, 4, 4)])


@pytest.mark.parametrize("name", ["jpeg_compressibility", "jpeg_incompressibility"])
def test_contract(name):
    report = check_reward_func(name)
    assert report.deterministic
    assert report.batch_difference == 0
    assert RewardRunner(name).names == [name]
