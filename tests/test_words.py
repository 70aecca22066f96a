# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Numbers as they are written for a reader."""

import math

import pytest

from trl_progrpo.words import change_in_words, counted, gained, in_figures, number, with_error


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [(0, "", "0.000"), (0.5, "+", "+0.500"), (-12.3456, "+", "-12.346"), (0.00123, "", "0.001"), (0.000123, "", "0.000123"),
     (21234.5, "", "2.12e+04"), (math.nan, "", "–"), (None, "+", "–")],
)  # fmt: skip
def test_numbers_are_short(value, sign, text):
    assert number(value, sign) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(0.5, 0.125, "+0.500 ± 0.125"), (0.000938, 0.003, "+0.001 ± 0.003"), (-0.0002, 0.003, "+0.000 ± 0.003"),
     (0.0002, 0.0001, "+0.0002 ± 0.0001"),
     (0.5, math.nan, "+0.500"), (0.5, None, "+0.500"), (None, 0.1, "–"), (math.nan, 0.1, "–")],
)  # fmt: skip
def test_an_error_only_where_there_is_one(value, error, text):
    assert with_error(value, error, "+") == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(0.83, 0.97, "+0.14"), (0.39, 0.37, "-0.02"), (0.5, 0.5, "±0.00"), (0.5, 0.503, "±0.00"), (0.834, 0.904, "+0.07"),
      (0, 0, "±0.00"),
     (21.5, 20.25, "-1.25"), (0.0005, 0.0009, "+0.0004"), (math.nan, 0.5, ""), (0.5, math.nan, "")],
)  # fmt: skip
def test_a_gain_has_its_sign(before, after, text):
    assert gained(before, after) == text


def test_a_change_says_what_rose_and_what_fell():
    before, after = [0.5, 0.25, 0.5, 0.5, math.nan], [0.75, 0.0, 0.5, 1.0, 0.5]
    assert change_in_words(before, after) == "mean reward 0.44 → 0.56 (+0.12): 2 better, 1 worse, 1 unchanged"
    assert change_in_words([0.5], [0.25]) == "mean reward 0.50 → 0.25 (-0.25): 1 worse"
    assert change_in_words([math.nan], [0.25]) == change_in_words([], []) == ""


def test_counts():
    assert (counted(1, "image"), counted(2000, "image"), counted(2, "batch", "es")) == (
        "1 image", "2,000 images", "2 batches",
    )  # fmt: skip
    # No rollout decodes six tenths of an image.
    assert (in_figures(2000), in_figures(2789.6), counted(0.5 + 0.5, "image")) == ("2,000", "about 2,790", "1 image")
