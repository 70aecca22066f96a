# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The charts of a report, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..plots import _running_mean, held_out_series
from .svg import WIDE, Plot, both_widths, padded


COLOURS = ("c-orange", "c-green", "c-purple", "c-grey")
"""Held-out rewards in order."""


def reward_chart(log_history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """
    Training and held-out reward against optimiser steps; `None` if there is neither.

    Returns:
        `dict`: `svg`, `legend` as `(colour, text)`, and `others`: held-out rewards on other scales, as charts of their own.
    """
    training = [entry for entry in log_history if _finite(entry.get("reward"))]
    main, extra = held_out_series(log_history)
    if not training and not main:
        return None
    values = [entry["reward"] for entry in training]
    values += [v for _, ys, _ in [*main.values(), *extra.values()] for v in ys]
    shared = all(-1e-6 <= value <= 1 + 1e-6 for value in values)
    named = {**main, **(extra if shared else {})}
    series = [(name, *found, colour) for (name, found), colour in zip(named.items(), _colours())]
    legend = [("c-blue", "training, survivors (band: ± std within groups)")] if training else []
    legend += [(colour, f"{name} ± standard error") for name, *_, colour in series]
    alone = {} if shared else extra
    return {
        "svg": both_widths(lambda width: _reward_plot(width, training, series)),
        "legend": legend,
        "others": [
            {
                "svg": both_widths(lambda width, name=name, found=found: _reward_plot(width, [], [(name, *found, "c-green")])),
                "legend": [("c-green", f"{name} ± standard error")],
            }
            for name, found in alone.items()
        ],
    }  # fmt: skip


def _reward_plot(width: int, training, series) -> str:
    steps = [entry["step"] for entry in training] + [step for _, xs, *_ in series for step in xs]
    rewards = [entry["reward"] for entry in training]
    with_std = bool(training) and all(_finite(entry.get("reward_std")) for entry in training)
    stds = [entry["reward_std"] for entry in training] if with_std else []
    edges = [*rewards, *(r - s for r, s in zip(rewards, stds)), *(r + s for r, s in zip(rewards, stds))]
    for _, _, ys, errors, _ in series:
        edges += [y + sign * _error(e) for y, e in zip(ys, errors) for sign in (-1, 1)]
    low, high = min(steps), max(steps)
    x = (low, high) if high > low else (low - 1, high + 1)
    label = "Reward against optimiser steps. " + " ".join(_in_words(name, xs, ys) for name, xs, ys, *_ in series)
    plot = Plot(width, 320 if width == WIDE else 250, x, padded(edges), label)
    plot.y_axis()
    plot.x_axis("optimiser step")
    xs = [entry["step"] for entry in training]
    if with_std:
        upper, lower = ([r + sign * s for r, s in zip(rewards, stds)] for sign in (1, -1))
        plot.area([*zip(xs, upper), *reversed(list(zip(xs, lower)))], "c-blue")
    window = len(rewards) // 12
    if window >= 2:
        plot.line(list(zip(xs, rewards)), "c-blue", "line faint")
        plot.line(list(zip(xs, _running_mean(rewards, window))), "c-blue")
    elif training:
        plot.line(list(zip(xs, rewards)), "c-blue")
        if len(rewards) == 1:
            plot.dot(xs[0], rewards[0], "c-blue", f"step {xs[0]}: {rewards[0]:.3f}")
    for name, xs, ys, errors, colour in series:
        plot.line(list(zip(xs, ys)), colour)
        for x_value, y_value, error in zip(xs, ys, errors):
            note = f"{name}, step {x_value}: {y_value:.3f}" + (f" ± {error:.3f}" if _error(error) else "")
            plot.dot(x_value, y_value, colour, note, _error(error))
    return plot.render()


def alive_chart(started: int, sizes: Mapping[int, tuple[int, int]], num_steps: int) -> str:
    """
    Trajectories of one prompt alive at every denoising step: its area is the cost in network evaluations.

    Args:
        started (`int`): trajectories at the first step.
        sizes (`Mapping[int, tuple[int, int]]`): step -> group size before and after, see [`~plots.prune_group_sizes`].
        num_steps (`int`): denoising steps.
    """
    within = {step: after for step, (_, after) in sorted(sizes.items()) if step < num_steps}
    points, alive = [(0.0, float(started))], float(started)
    for step, after in within.items():
        points += [(step + 1.0, alive), (step + 1.0, float(after))]
        alive = float(after)
    points.append((float(num_steps), alive))
    label = f"Trajectories per prompt: {started} at step 0" + "".join(
        f", {after} after step {step}" for step, after in within.items()
    )

    def draw(width: int) -> str:
        height = 220 if width == WIDE else 190
        plot = Plot(width, height, (0, num_steps), (0, started * 1.12), label + ".")
        plot.y_axis(4)
        all_steps = range(num_steps) if num_steps <= (24 if width == WIDE else 12) else range(0, num_steps, 5)
        plot.x_axis("denoising step", [step + 0.5 for step in all_steps], [str(step) for step in all_steps])
        plot.area([(0, 0), (0, started), (num_steps, started), (num_steps, 0)], "c-grey", "saved")
        plot.area([(0, 0), *points, (num_steps, 0)], "c-blue", "solid")
        starts = [(0.0, started), *((step + 1.0, after) for step, after in within.items())]
        for (start, size), (end, _) in zip(starts, [*starts[1:], (float(num_steps), 0)]):
            x, y = plot.at((start + end) / 2, size)
            plot.text(x, y - 6, str(size), "middle", "value")
        return plot.render()

    return both_widths(draw)


BARS = (("reward_std_before", "before", "c-grey"), ("reward_std_random", "random choice of that size", "c-light"),
        ("reward_std_after", "after pruning", "c-blue"))  # fmt: skip
"""Bars of the spread chart: key of `plots.prune_table`, words, colour."""


def spread_chart(table: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Spread of rewards within groups at every checkpoint: `svg` and `legend`."""
    highest = max((row[key] for row in table for key, _, _ in BARS if not math.isnan(row[key])), default=0) or 1.0
    words = ". ".join(
        f"{name}: " + ", ".join(f"{word} {row[key]:.3f}" for key, word, _ in BARS if not math.isnan(row[key]))
        for name, row in zip(names, table)
    )

    def draw(width: int) -> str:
        plot = Plot(
            width, 250 if width == WIDE else 220, (-0.5, len(table) - 0.5), (0, highest * 1.15),
            f"Standard deviation of rewards within groups. {words}.",
        )  # fmt: skip
        plot.bottom = 24
        plot.y_axis(4)
        plot.x_axis(None, range(len(table)), names)
        half = min(0.13, 40 * len(table) / width)
        for position, (row, name) in enumerate(zip(table, names)):
            for offset, (key, word, colour) in zip((-2, 0, 2), BARS):
                value = row[key]
                if math.isnan(value):
                    continue
                centre = position + offset * half * 1.06
                plot.bar(centre - half, centre + half, 0, value, colour, f"{name}, {word}: {value:.3f}")
                x, y = plot.at(centre, value)
                plot.text(x, y - 5, f"{value:.3f}" if width == WIDE else f"{value:.2f}", "middle", "value small")
        return plot.render()

    return {"svg": both_widths(draw), "legend": [(colour, word) for _, word, colour in BARS]}


def histogram_chart(
    before: Sequence[float], after: Sequence[float] | None, edges: Sequence[float], label: str
) -> dict[str, Any]:
    """Rewards of a group before pruning and, within them, after it; `after` is `None` where nothing was pruned."""
    counts = _counts(before, edges)
    inner = _counts(after, edges) if after is not None else [0] * len(counts)

    def draw(width: int) -> str:
        plot = Plot(width, 190 if width == WIDE else 170, (edges[0], edges[-1]), (0, max(*counts, 1) * 1.1), label)
        plot.y_axis(3)
        plot.x_axis("reward")
        for left, right, all_of, kept in zip(edges, edges[1:], counts, inner):
            room = (right - left) * 0.06
            note = f"{left:.3g} to {right:.3g}: {all_of}" + (f", {kept} kept" if after is not None else "")
            outer = "c-blue" if after is None else "c-light"
            for height, colour in ((all_of, outer), (kept, "c-blue")):
                if height:
                    plot.bar(left + room, right - room, 0, height, colour, note)
        return plot.render()

    legend = [("c-light", "before"), ("c-blue", "after pruning")] if after is not None else []
    return {"svg": both_widths(draw), "legend": legend}


def _counts(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    counts, width = [0] * (len(edges) - 1), (edges[-1] - edges[0]) / (len(edges) - 1)
    for value in values:
        if _finite(value):
            counts[min(len(counts) - 1, max(0, int((value - edges[0]) / width)))] += 1
    return counts


def _colours() -> list[str]:
    return [*COLOURS, *["c-grey"] * 20]


def _error(value: float) -> float:
    return value if _finite(value) else 0.0


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _in_words(name: str, steps: Sequence[float], values: Sequence[float]) -> str:
    return f"{name.capitalize()}: {values[0]:.3f} at step {steps[0]}, {values[-1]:.3f} at step {steps[-1]}."
