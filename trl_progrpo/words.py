# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Numbers as a reader wants to see them. Standard library only."""

from __future__ import annotations

import math


def counted(number: float, what: str, plural: str = "s") -> str:
    """Return a number and what there is of it: `1 image`, `2,000 images`."""
    return f"{in_figures(number)} {what}{'' if number == 1 else plural}"


def in_figures(number: float) -> str:
    """Return a count with thousands separated: `2,000`, or `about 2,790` for a mean over rollouts that is not whole."""
    return f"{'' if abs(number - round(number)) < 1e-6 else 'about '}{number:,.0f}"


def number(value: float | None, sign: str = "", digits: int = 3) -> str:
    """Three decimals, or three significant digits where those would show nothing or too much; a dash for NaN and `None`."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:{sign}.{digits}f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:{sign}.3g}"


def with_error(value: float | None, error: float | None, sign: str = "") -> str:
    """Return `value ± error` with no more digits than the error has, and without the error where there is none."""
    if value is None or error is None or math.isnan(value) or math.isnan(error):
        return number(value, sign)
    small = abs(value) < 0.001 <= error < 1000
    return f"{f'{value:{sign}.3f}' if small else number(value, sign)} ± {number(error)}"
