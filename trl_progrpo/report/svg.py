# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""A drawing with two axes as SVG text, coloured by the page's style sheet. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape


WIDE, NARROW = 760, 350
"""Widths in pixels a chart is drawn for: SVG text shrinks with its drawing, so a phone gets one of its own."""


class Plot:
    """
    Collects marks in data coordinates within a frame of axes.

    Colours are classes (`c-blue`, `c-orange`, ...) that the page defines for light and dark.

    Args:
        width (`int`): in pixels.
        height (`int`): in pixels.
        x (`tuple[float, float]`): ends of the horizontal axis.
        y (`tuple[float, float]`): ends of the vertical axis, lower end first.
        label (`str`): what the chart shows, for those who cannot see it.
    """

    def __init__(self, width: int, height: int, x: tuple[float, float], y: tuple[float, float], label: str):
        self.width, self.height, self.label = width, height, label
        self.left, self.right, self.top, self.bottom = 46, 10, 12, 42
        self.x, self.y = x, y
        self.marks: list[str] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point in data coordinates."""
        return self._x(x), self._y(y)

    def y_axis(self, count: int = 5) -> None:
        """Lines across at round values, with their numbers."""
        for value in ticks(*self.y, count):
            y = self._y(value)
            self.marks.append(
                f'<line class="grid" x1="{self.left}" x2="{self.width - self.right}" y1="{y}" y2="{y}"/>'
            )
            self.text(self.left - 8, y + 4, tick_text(value, ticks(*self.y, count)), "end")

    def x_axis(
        self, title: str | None = None, values: Sequence[float] | None = None, texts: Sequence[str] | None = None
    ) -> None:
        """Numbers below the axis at round values (or `values`, with other `texts`), and its title."""
        if values is None:
            values = ticks(*self.x, 5 if self.width < WIDE else 8)
        base = self.height - self.bottom
        self.marks.append(
            f'<line class="axis" x1="{self.left}" x2="{self.width - self.right}" y1="{base}" y2="{base}"/>'
        )
        for value, text in zip(values, texts or [tick_text(value, values) for value in values]):
            self.text(self._x(value), base + 17, text, "middle")
        if title is not None:
            self.text((self.left + self.width - self.right) / 2, self.height - 5, title, "middle", "title")

    def line(self, points: Sequence[tuple[float, float]], colour: str, style: str = "line") -> None:
        """A polyline through `points`."""
        self.marks.append(f'<polyline class="{style} {colour}" points="{self._points(points)}"/>')

    def area(self, points: Sequence[tuple[float, float]], colour: str, style: str = "band") -> None:
        """A filled polygon."""
        self.marks.append(f'<polygon class="{style} {colour}" points="{self._points(points)}"/>')

    def dot(self, x: float, y: float, colour: str, note: str, error: float = 0.0) -> None:
        """A point, with a bar of plus and minus `error`; `note` is shown when it is pointed at."""
        px, py = self.at(x, y)
        if error > 0:
            low, high = self._y(y - error), self._y(y + error)
            self.marks.append(
                f'<path class="error {colour}" d="M{px} {low}V{high}M{_n(px - 4)} {low}h8M{_n(px - 4)} {high}h8"/>'
            )
        self.marks.append(f'<circle class="dot {colour}" cx="{px}" cy="{py}" r="4">{_title(note)}</circle>')

    def bar(self, x0: float, x1: float, y0: float, y1: float, colour: str, note: str) -> None:
        """A rectangle in data coordinates."""
        left, right = sorted((self._x(x0), self._x(x1)))
        top, bottom = sorted((self._y(y0), self._y(y1)))
        self.marks.append(
            f'<rect class="bar {colour}" x="{left}" y="{top}" width="{_n(right - left)}" height="{_n(bottom - top)}" '
            f'rx="1.5">{_title(note)}</rect>'
        )

    def text(self, x: float, y: float, text: str, anchor: str = "start", style: str = "") -> None:
        """Words at pixels `x`, `y`."""
        self.marks.append(
            f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}" class="{style}">{escape(text)}</text>'
        )

    def render(self) -> str:
        """The `<svg>` element."""
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.label)}">'
            f"{''.join(self.marks)}</svg>"
        )

    def _x(self, value: float) -> float:
        low, high = self.x
        return _n(self.left + (value - low) / (high - low) * (self.width - self.left - self.right))

    def _y(self, value: float) -> float:
        low, high = self.y
        height = self.height - self.top - self.bottom
        return _n(self.height - self.bottom - (value - low) / (high - low) * height)

    def _points(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self._x(x)},{self._y(y)}" for x, y in points)


def both_widths(draw: Callable[[int], str]) -> str:
    """A chart for wide and for narrow pages; the style sheet shows one of them."""
    return f'<div class="wide">{draw(WIDE)}</div><div class="narrow">{draw(NARROW)}</div>'


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values in [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.75)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def tick_text(value: float, values: Sequence[float]) -> str:
    """`value` with as many decimals as the distance of `values` needs."""
    step = min((b - a for a, b in zip(values, values[1:])), default=abs(value) or 1.0)
    largest = max(map(abs, values))
    if largest >= 1e5 or (0 < largest < 1e-3):
        return f"{value:.1e}" if value else "0"
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """Ends of an axis that holds `values` with some room; [0, 1] values get no end beyond it."""
    low, high = min(values), max(values)
    room = (high - low) * share or abs(high) * share or 0.5
    lowest = 0.0 if low >= 0 else -math.inf
    highest = 1.0 if 0 <= low and high <= 1 else math.inf
    return max(low - room, lowest), min(high + room, highest)


def _title(note: str) -> str:
    return f"<title>{escape(note)}</title>"


def _n(value: float) -> float:
    """Tenths of a pixel, short to write."""
    value = round(value, 1)
    return int(value) if value == int(value) else value
