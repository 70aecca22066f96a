# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Numbers as a reader wants to see them. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence


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


def gained(before: float, after: float) -> str:
    """Return what a score of two decimals has gained, with its sign: `+0.14`, `-0.02` or `±0.00`; nothing for NaN."""
    if math.isnan(after - before):
        return ""
    if max(abs(before), abs(after)) >= 0.01:
        # The difference of what is shown, lest 0.83 -> 0.90 be called +0.08.
        before, after = round(before, 2), round(after, 2)
    gain = round(after - before, 10)
    return number(gain, "+", digits=2) if gain else "±0.00"


def change_in_words(before: Sequence[float], after: Sequence[float]) -> str:
    """Return the mean of both and how many scores rose and fell, pair by pair; nothing if no pair has both."""
    pairs = [(a, b) for a, b in zip(before, after) if not math.isnan(a) and not math.isnan(b)]
    if not pairs:
        return ""
    first, last = (math.fsum(values) / len(pairs) for values in zip(*pairs))
    signs = [gained(*pair)[0] for pair in pairs]
    counts = [(signs.count("+"), "better"), (signs.count("-"), "worse"), (signs.count("±"), "unchanged")]
    return f"mean reward {number(first, digits=2)} → {number(last, digits=2)} ({gained(first, last)}): " + ", ".join(
        f"{count} {word}" for count, word in counts if count
    )


def no_finer_than(beside: float, value: float) -> float:
    """Return `value` without digits that [`number`] does not show of what it stands beside."""
    return round(value, 3) + 0.0 if abs(beside) >= 0.001 else value


def with_error(value: float | None, error: float | None, sign: str = "") -> str:
    """Return `value ± error` with no more digits than the error has, and without the error where there is none."""
    if value is None or error is None or math.isnan(value) or math.isnan(error):
        return number(value, sign)
    return f"{number(no_finer_than(error, value), sign)} ± {number(error)}"
