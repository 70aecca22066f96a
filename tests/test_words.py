# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Numbers as they are written for a reader."""

import math

import pytest

from trl_progrpo.words import counted, in_figures, number, with_error


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [(0, "", "0.000"), (0.5, "+", "+0.500"), (-12.3456, "+", "-12.346"), (0.00123, "", "0.001"), (0.000123, "", "0.000123"),
     (21234.5, "", "2.12e+04"), (math.nan, "", "–"), (None, "+", "–")],
)  # fmt: skip
def test_numbers_are_short(value, sign, text):
    assert number(value, sign) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(0.5, 0.125, "+0.500 ± 0.125"), (0.000938, 0.003, "+0.001 ± 0.003"), (0.0002, 0.0001, "+0.0002 ± 0.0001"),
     (0.5, math.nan, "+0.500"), (0.5, None, "+0.500"), (None, 0.1, "–"), (math.nan, 0.1, "–")],
)  # fmt: skip
def test_an_error_only_where_there_is_one(value, error, text):
    assert with_error(value, error, "+") == text


def test_counts():
    assert (counted(1, "image"), counted(2000, "image"), counted(2, "batch", "es")) == (
        "1 image", "2,000 images", "2 batches",
    )  # fmt: skip
    # No rollout decodes six tenths of an image.
    assert (in_figures(2000), in_figures(2789.6), counted(0.5 + 0.5, "image")) == ("2,000", "about 2,790", "1 image")
