# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Numbers and settings as a reader wants to see them."""

from __future__ import annotations

import math
from typing import Any

from tqdm import tqdm


def number(value: float | None, sign: str = "", digits: int = 3) -> str:
    """Three decimals, or three significant digits where those would show nothing or too much; a dash for NaN and `None`."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:{sign}.{digits}f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:{sign}.3g}"


def with_error(value: float | None, error: float | None, sign: str = "") -> str:
    """`value ± error`, without the error where there is none."""
    known = value is not None and error is not None and not math.isnan(error)
    # With a space that does not break, so that on a narrow page the error stands below its value.
    return number(value, sign) + (f" ±\N{NO-BREAK SPACE}{number(error)}" if known else "")


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    return f"{seconds:.0f} s" if seconds < 100 else tqdm.format_interval(seconds)


def seconds(value: float) -> str:
    """Seconds for a table."""
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def setting(value: Any) -> str:
    """The value of an argument; never a token in it."""
    if isinstance(value, dict):
        # Loading options may hold a token; transformers masks only fields of its own.
        value = {key: "***" if "token" in str(key) else item for key, item in value.items()}
    return f"{value:g}" if isinstance(value, float) else str(value)
