# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""From the logs of the arena to a table and a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


AXES = {"teraflops": "TFLOPs", "seconds": "CPU seconds", "rollouts": "rollouts"}

RESAMPLES = 2000

DONE = {"done": True}
"""The last line of a run that was made to its end."""

COLOURS = (
    "#2f6690", "#c8623a", "#4f8a5b", "#7a5c99", "#8c929a", "#b8860b", "#2b2f36", "#5aa7a7", "#a0522d", "#c05a8a", "#9aa13b",
    "#6a9bd8",
)  # fmt: skip


def slug(name: str) -> str:
    """A method's name as a file's."""
    return "".join(character if character.isalnum() else "_" for character in name)


def read_log(path: Path) -> list[dict[str, Any]] | None:
    """All lines of a run that was made to its end, or `None`."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    # What a killed run leaves may end in the middle of a line.
    return [json.loads(line) for line in lines] if lines and lines[-1] == json.dumps(DONE) else None


def evaluations(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of a run, the one before training first."""
    return [line for line in log if "teraflops" in line]


@dataclass
class Curves:
    """
    The runs of one method, on common grids.

    Attributes:
        seeds (`list[int]`): of the runs.
        gain (`dict[str, np.ndarray]`): axis -> held-out reward minus that before training `(seeds, points)`.
        grid (`dict[str, np.ndarray]`): axis -> where `(points,)`.
        settings (`dict`): of the runs.
    """

    seeds: list[int]
    gain: dict[str, np.ndarray]
    grid: dict[str, np.ndarray]
    settings: dict[str, Any]

    def cost_to_reach(self, axis: str, gain: float, rows: Sequence[int]) -> float:
        """Where the mean curve of some seeds first reaches a gain; infinite if it does not."""
        mean, grid = self.gain[axis][list(rows)].mean(0), self.grid[axis]
        above = np.flatnonzero(mean >= gain)
        if not len(above):
            return math.inf
        i = above[0]
        if i == 0:
            return float(grid[0])
        share = (gain - mean[i - 1]) / (mean[i] - mean[i - 1])
        return float(grid[i - 1] + share * (grid[i] - grid[i - 1]))


def load_curves(folder: Path, names: Sequence[str], points: int = 64) -> dict[str, Curves]:
    """The runs that lie in `folder/runs`, by method; methods without runs are left out."""
    curves = {}
    for name in names:
        logs = {}
        for path in (folder / "runs").glob(f"{slug(name)}-*.jsonl"):
            seed, log = path.stem.removeprefix(f"{slug(name)}-"), read_log(path)
            if seed.isdigit() and log is not None:
                logs[int(seed)] = log
        if not logs:
            continue
        runs = {seed: evaluations(logs[seed]) for seed in sorted(logs)}
        gain, grid = {}, {}
        for axis in AXES:
            end = min(run[-1][axis] for run in runs.values())
            grid[axis] = np.linspace(0, end, points)
            rows = [
                np.interp(grid[axis], [p[axis] for p in run], [p["reward"] - run[0]["reward"] for p in run])
                for run in runs.values()
            ]
            gain[axis] = np.array(rows)
        curves[name] = Curves(list(runs), gain, grid, logs[min(logs)][0]["settings"])
    return curves


def compare(curves: Curves, reference: Curves, axis: str, rng: np.random.Generator) -> dict[str, Any]:
    """
    A method against a reference on the seeds that both have: gain at equal cost, and by what factor the reference's end is
    reached earlier. Intervals are 95 % of bootstrap samples of seeds, the same seeds for both.
    """
    seeds = [seed for seed in curves.seeds if seed in reference.seeds]
    mine, theirs = [curves.seeds.index(seed) for seed in seeds], [reference.seeds.index(seed) for seed in seeds]
    end = min(curves.grid[axis][-1], reference.grid[axis][-1])

    def at_end(which: Curves, rows: Sequence[int]) -> np.ndarray:
        return np.array([np.interp(end, which.grid[axis], row) for row in which.gain[axis][list(rows)]])

    difference = at_end(curves, mine) - at_end(reference, theirs)
    draws = rng.integers(0, len(seeds), (RESAMPLES, len(seeds)))

    def speed(pick: Sequence[int]) -> float:
        rows = [theirs[i] for i in pick]
        target = reference.gain[axis][rows].mean(0)[-1]
        # Both by their first crossing: a curve may have been there before its end.
        own = reference.cost_to_reach(axis, target, rows)
        return own / max(curves.cost_to_reach(axis, target, [mine[i] for i in pick]), 1e-9)

    def interval(values: Sequence[float]) -> list[float]:
        return [float(np.quantile(values, q, method="nearest")) for q in (0.025, 0.975)]

    return {
        "seeds": len(seeds),
        "difference": float(difference.mean()),
        "difference_interval": interval([difference[pick].mean() for pick in draws]),
        "speed": speed(range(len(seeds))),
        "speed_interval": interval([speed(pick) for pick in draws]),
    }


def report(folder: Path, references: Sequence[str], names: Sequence[str], drawn: Sequence[str]) -> str:
    """
    Writes `table.md`, `summary.json` and `curves.png` into `folder`; returns the table.

    Args:
        folder (`Path`): with the runs.
        references (`Sequence[str]`): methods that the others are compared with.
        names (`Sequence[str]`): methods in the table.
        drawn (`Sequence[str]`): those of them that are in the figure too.
    """
    curves = load_curves(folder, names)
    rng = np.random.default_rng(0)
    summary = {}
    for name, one in curves.items():
        final = one.gain["teraflops"][:, -1]
        summary[name] = {
            "seeds": one.seeds,
            "learning_rate": one.settings.get("learning_rate"),
            "gain": float(final.mean()),
            "highest": float(one.gain["teraflops"].mean(0).max()),
            "gain_stderr": float(final.std(ddof=1) / math.sqrt(len(final))) if len(final) > 1 else math.nan,
            "against": {
                reference: {axis: compare(one, curves[reference], axis, rng) for axis in ("teraflops", "seconds")}
                for reference in references
                if reference in curves and set(curves[reference].seeds) & set(one.seeds)
            },
        }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    text = table(summary, [reference for reference in references if reference in curves])
    (folder / "table.md").write_text(text, encoding="utf-8")
    draw({name: one for name, one in curves.items() if name in drawn}, folder / "curves.png")
    return text


def table(summary: dict[str, Any], references: Sequence[str]) -> str:
    """The summary in Markdown, one table for every reference."""
    parts = []
    for reference in references:
        parts += [
            f"Against *{reference}*; intervals are 95 %.",
            "",
            "| Method | Seeds | Learning rate | Gain | Highest | Difference, equal FLOPs | Times as fast, FLOPs | CPU seconds |",
            "|---" * 8 + "|",
        ]
        for name, row in summary.items():
            found = row["against"].get(reference)
            if found is None:
                continue
            flops, seconds = found["teraflops"], found["seconds"]
            low, high = flops["difference_interval"]
            parts.append(
                f"| {name} | {len(row['seeds'])} | {row['learning_rate']:g} | {row['gain']:+.3f} ± {row['gain_stderr']:.3f} | "
                f"{row['highest']:+.3f} | "
                f"{flops['difference']:+.3f} ({low:+.3f} to {high:+.3f}) | {_times(flops)} | {_times(seconds)} |"
            )
        parts.append("")
    return "\n".join(parts)


def _times(found: dict[str, Any]) -> str:
    def word(value: float) -> str:
        return "never" if value == 0 else f"{value:.2f}"

    low, high = found["speed_interval"]
    return f"{word(found['speed'])} ({word(low)} to {word(high)})"


def draw(curves: dict[str, Curves], path: Path) -> None:
    """Mean gain of every method against each axis, with standard errors over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(AXES), figsize=(4.6 * len(AXES), 4.6), sharey=True, layout="constrained")
    for panel, (axis, label) in zip(axes, AXES.items()):
        for colour, (name, one) in zip(COLOURS * 3, curves.items()):
            mean, grid = one.gain[axis].mean(0), one.grid[axis]
            panel.plot(grid, mean, color=colour, label=name, linewidth=1.8)
            if len(one.seeds) > 1:
                error = one.gain[axis].std(0, ddof=1) / math.sqrt(len(one.seeds))
                panel.fill_between(grid, mean - error, mean + error, color=colour, alpha=0.12, linewidth=0)
        panel.set_xlabel(label)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#e6e8eb")
    axes[0].set_ylabel("gain in held-out reward")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)
