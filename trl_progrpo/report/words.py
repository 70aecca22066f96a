# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Times and settings as a reader wants to see them."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


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
