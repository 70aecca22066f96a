# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
From the logs of the arena to tables and a figure; also of runs in several folders together:

```
python benchmarks/arena_report.py outputs/arena outputs/arena-new-seeds --config benchmarks/arena.yaml \\
  --only "plain 24" "post-hoc OVF 48 to 24" --references "plain 24"
```
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import yaml


AXES = {"teraflops": "TFLOPs", "seconds": "CPU seconds", "rollouts": "rollouts"}

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
        grid (`dict[str, np.ndarray]`): axis -> where `(points,)`; FLOPs end at the budget, for the last update of a run goes
            beyond it, and by how much depends on the method.
        rollouts, seconds_per_teraflop (`float`): of a run, means over seeds.
        settings (`dict`): of the runs.
    """

    seeds: list[int]
    gain: dict[str, np.ndarray]
    grid: dict[str, np.ndarray]
    rollouts: float
    seconds_per_teraflop: float
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


def load_curves(folders: Sequence[Path], names: Sequence[str], points: int = 64) -> dict[str, Curves]:
    """The runs that lie in the folders' `runs`, by method; methods without runs are left out."""
    curves = {}
    for name in names:
        logs = {}
        for path in (path for folder in folders for path in (folder / "runs").glob(f"{slug(name)}-*.jsonl")):
            seed, log = path.stem.removeprefix(f"{slug(name)}-"), read_log(path)
            if seed.isdigit() and log is not None:
                logs[int(seed)] = log
        if not logs:
            continue
        runs = {seed: evaluations(logs[seed]) for seed in sorted(logs)}
        first = logs[min(logs)][0]
        gain, grid = {}, {}
        for axis in AXES:
            end = min(run[-1][axis] for run in runs.values())
            end = first["budget"]["teraflops"] if axis == "teraflops" else end
            grid[axis] = np.linspace(0, end, points)
            rows = [
                np.interp(grid[axis], [p[axis] for p in run], [p["reward"] - run[0]["reward"] for p in run])
                for run in runs.values()
            ]
            gain[axis] = np.array(rows)
        last = [run[-1] for run in runs.values()]
        rollouts = float(np.mean([point["rollouts"] for point in last]))
        seconds = float(np.mean([point["seconds"] / point["teraflops"] for point in last]))
        curves[name] = Curves(list(runs), gain, grid, rollouts, seconds, first["settings"])
    return curves


def bootstrap_interval(statistic: Callable[[list[int]], float], number: int) -> list[float]:
    """
    The middle 95 % of a statistic over all bootstrap samples of `number` seeds, each with its probability; nothing is drawn.
    With few seeds it is too narrow: of five it is as wide as 1.75 standard errors to either side, where Student's t has 2.78.
    """
    values, chances = [], []
    for pick in combinations_with_replacement(range(number), number):
        values.append(statistic(list(pick)))
        ways = math.factorial(number) / math.prod(map(math.factorial, Counter(pick).values()))
        chances.append(ways / number**number)
    order = np.argsort(values)
    below = np.cumsum(np.array(chances)[order])
    return [float(values[order[min(np.searchsorted(below, q), len(order) - 1)]]) for q in (0.025, 0.975)]


def compare(curves: Curves, reference: Curves, axis: str) -> dict[str, Any]:
    """
    A method against a reference on the seeds that both have: gain at equal cost, and by what factor the reference's end is
    reached earlier. Standard errors and intervals are paired: the same seeds for both.
    """
    seeds = [seed for seed in curves.seeds if seed in reference.seeds]
    mine, theirs = [curves.seeds.index(seed) for seed in seeds], [reference.seeds.index(seed) for seed in seeds]
    end = min(curves.grid[axis][-1], reference.grid[axis][-1])

    def at_end(which: Curves, rows: Sequence[int]) -> np.ndarray:
        return np.array([np.interp(end, which.grid[axis], row) for row in which.gain[axis][list(rows)]])

    difference = at_end(curves, mine) - at_end(reference, theirs)

    def speed(pick: Sequence[int]) -> float:
        rows = [theirs[i] for i in pick]
        target = reference.gain[axis][rows].mean(0)[-1]
        # Both by their first crossing: a curve may have been there before its end.
        own = reference.cost_to_reach(axis, target, rows)
        return own / max(curves.cost_to_reach(axis, target, [mine[i] for i in pick]), 1e-9)

    return {
        "seeds": len(seeds),
        "difference": float(difference.mean()),
        "difference_stderr": _stderr(difference),
        "difference_interval": bootstrap_interval(lambda pick: difference[pick].mean(), len(seeds)),
        "speed": speed(range(len(seeds))),
        "speed_interval": bootstrap_interval(speed, len(seeds)),
    }


def _stderr(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def report(folder: Path, references: Sequence[str], names: Sequence[str], drawn: Sequence[str]) -> str:
    """
    Writes `table.md`, `summary.json` and `curves.png` into `folder`; returns the table.

    Args:
        folder (`Path`): with the runs.
        references (`Sequence[str]`): methods that the others are compared with.
        names (`Sequence[str]`): methods in the table.
        drawn (`Sequence[str]`): those of them that are in the figure too.
    """
    curves = load_curves([folder], names)
    summary = summarise(curves, references)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    text = tables(summary, references)
    (folder / "table.md").write_text(text, encoding="utf-8")
    draw({name: one for name, one in curves.items() if name in drawn}, folder / "curves.png")
    return text


def summarise(curves: dict[str, Curves], references: Sequence[str]) -> dict[str, Any]:
    """What the tables say, by method."""
    summary = {}
    for name, one in curves.items():
        final = one.gain["teraflops"][:, -1]
        summary[name] = {
            "seeds": one.seeds,
            "learning_rate": one.settings.get("learning_rate"),
            "gain": float(final.mean()),
            "gain_stderr": _stderr(final),
            "rollouts": one.rollouts,
            "seconds_per_teraflop": one.seconds_per_teraflop,
            "against": {
                reference: {axis: compare(one, curves[reference], axis) for axis in ("teraflops", "seconds")}
                for reference in references
                if reference in curves and reference != name and set(curves[reference].seeds) & set(one.seeds)
            },
        }
    return summary


def tables(summary: dict[str, Any], references: Sequence[str], seconds: bool = True) -> str:
    """
    The summary in Markdown: one table of all methods, and one for every reference.

    Args:
        summary (`dict`): from [`summarise`].
        references (`Sequence[str]`): the methods that the others are compared with.
        seconds (`bool`, *optional*, defaults to `True`): whether to tell of them; those of different machines do not compare.
    """
    heads = ["Method", "Seeds", "Learning rate", "Gain", "Rollouts", *(["s per TFLOP"] if seconds else [])]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in summary.items():
        cells = [
            name,
            f"{len(row['seeds'])}",
            f"{row['learning_rate']:g}",
            f"{row['gain']:+.3f} ± {row['gain_stderr']:.3f}",
            f"{row['rollouts']:.0f}",
            *([f"{row['seconds_per_teraflop']:.0f}"] if seconds else []),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for reference in references:
        compared = {name: row["against"][reference] for name, row in summary.items() if reference in row["against"]}
        if not compared:
            continue
        lines += ["", f"Against *{reference}*; intervals are 95 % of bootstrap samples of seeds:", ""]
        heads = ["Method", "Difference at equal FLOPs", "Times as fast, FLOPs"]
        heads += ["Times as fast, CPU seconds"] if seconds else []
        lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for name, found in compared.items():
            flops = found["teraflops"]
            low, high = map(_signed, flops["difference_interval"])
            cells = [name, f"{_signed(flops['difference'])} ± {flops['difference_stderr']:.3f} ({low} to {high})"]
            cells += [_times(flops), *([_times(found["seconds"])] if seconds else [])]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-0.000", "+0.000")


def _times(found: dict[str, Any]) -> str:
    def word(value: float) -> str:
        return "never" if value == 0 else f"{value:.2f}"

    low, high = found["speed_interval"]
    if high == 0:
        return "never"
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


def main() -> None:
    parser = argparse.ArgumentParser(description="The tables of the arena, of runs in one folder or several together.")
    parser.add_argument("folders", nargs="+", type=Path, help="OUTPUT_DIR of arena.py")
    parser.add_argument("--config", required=True, help="YAML file of methods")
    parser.add_argument("--only", nargs="+", help="names of methods; all when unset")
    parser.add_argument("--references", nargs="+", help="instead of those of the file")
    parser.add_argument(
        "--no_seconds", action="store_true", help="leave out seconds, as of runs on different machines"
    )
    args = parser.parse_args()
    arena = yaml.safe_load(Path(args.config).read_text(encoding="utf-8"))
    names = args.only or list(arena["methods"])
    references = args.references or arena.get("references") or names[:1]
    summary = summarise(load_curves(args.folders, names), references)
    print(tables(summary, references, seconds=not args.no_seconds), end="")


if __name__ == "__main__":
    main()
