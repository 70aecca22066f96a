# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""matplotlib's figures as SVG within a page, which gives them its colours and its font."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING

from ..lettering import one_warning
from ..plots import BLUE, GREEN, GREY, INK, LIGHT, ORANGE, PURPLE, _pyplot


if TYPE_CHECKING:
    from matplotlib.figure import Figure


WIDTHS = {"wide": 8.0, "narrow": 3.7}
"""Class of the page's style sheet -> inches that a chart is drawn for: text in SVG shrinks with its drawing, so a phone gets a
drawing of its own."""

COLOURS = {
    BLUE: "blue", ORANGE: "orange", GREEN: "green", PURPLE: "purple", GREY: "grey", LIGHT: "light", INK: "ink",
    "#e6e8eb": "grid", "#ffffff": "card",
}  # fmt: skip
"""Colours of `plots` -> variables of the style sheet, which has them for light and for dark pages."""


def chart(draw: Callable[[float], Figure], label: str) -> str:
    """
    Return a chart for wide and for narrow pages; the style sheet shows one of them.

    Args:
        draw (`Callable`): the figure for a width in inches.
        label (`str`): what the chart shows, for those who cannot see it.
    """
    return "".join(f'<div class="{name}">{_svg(draw(width), label, name)}</div>' for name, width in WIDTHS.items())


def _svg(figure: Figure, label: str, name: str) -> str:
    import matplotlib

    file = io.StringIO()
    # Names of markers are hashes, and must differ among the drawings of a page. The browser has fonts of its own.
    with _pyplot(), one_warning(), matplotlib.rc_context({"svg.hashsalt": f"{label} {name}"}):
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = file.getvalue()
    svg = svg[svg.index("<svg ") :]
    # Rules for all elements of the page, names that other drawings have too, and clipping where nothing sticks out.
    svg = re.sub(r"<style.*?</style>|<clipPath.*?</clipPath>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<g|<svg) id="[^"]*"| clip-path="[^"]*"|(?<=<svg ) (?:width|height)="[^"]*"', r"\1", svg)
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
