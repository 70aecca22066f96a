# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Pictures of a run: how the reward went, what pruning did, and images before and after."""

from __future__ import annotations

import itertools
import math
import re
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cost import SCHEDULE_FIELDS
from .lettering import Lettering, letter_figure, one_warning
from .words import gained, number


if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from PIL import Image

    Images = torch.Tensor | Sequence[Image.Image]
    Series = tuple[list[float], list[float], list[float]]


BLUE, ORANGE, GREEN, PURPLE, GREY, LIGHT, INK = (
    "#2f6690", "#c8623a", "#4f8a5b", "#7a5c99", "#8c929a", "#c9ced4", "#2b2f36",
)  # fmt: skip

SIGN_COLOURS = {"+": "#2d7440", "-": "#b3362a"}
"""Of a gain and of a loss, dark enough for small text."""

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "legend.frameon": False,
    "savefig.dpi": 150,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.12,
    "figure.facecolor": "white",
    # Names are the user's, and a dollar sign in them is no formula.
    "text.parse_math": False,
    "svg.fonttype": "none",
}


def reward_curve(log_history: Sequence[Mapping[str, Any]], path: str | Path) -> Path | None:
    """
    Save [`draw_reward_curve`].

    Args:
        log_history (`Sequence[Mapping]`): `trainer.state.log_history`.
        path (`str` or `Path`): PNG to write; its folder is made.

    Returns:
        `Path`, or `None` if there was no reward to draw.
    """
    figure = draw_reward_curve(log_history)
    return None if figure is None else _save(figure, path)


def draw_reward_curve(log_history: Sequence[Mapping[str, Any]], width: float = 8.0) -> Figure | None:
    """
    Draw training and held-out reward against optimiser steps.

    Training reward: the logged values, their spread within groups as a band, and a running mean once there are many.
    Held-out reward: points with standard errors, and no line between them, where nothing was measured. Further held-out
    rewards share the axes when all values lie in [0, 1], else each gets axes of its own.

    Args:
        log_history (`Sequence[Mapping]`): `trainer.state.log_history`.
        width (`float`, *optional*, defaults to 8.0): of the figure, in inches.

    Returns:
        `matplotlib.figure.Figure`, or `None` if there was no reward to draw.
    """
    training = [entry for entry in log_history if _is_finite(entry.get("reward"))]
    main, extra = held_out_series(log_history)
    if not training and not main:
        return None
    values = [entry["reward"] for entry in training]
    values += [v for _, ys, _ in [*main.values(), *extra.values()] for v in ys]
    shared = all(-1e-6 <= value <= 1 + 1e-6 for value in values)

    with _pyplot() as plt:
        rows = 1 if shared else 1 + len(extra)
        height = 3.2 + 0.125 * width
        figure, axes = plt.subplots(
            rows, 1, figsize=(width, height + 2.2 * (rows - 1)), sharex=True, squeeze=False, constrained_layout=True,
            gridspec_kw={"height_ratios": [2] + [1] * (rows - 1)},
        )  # fmt: skip
        axes = axes[:, 0]
        _draw_training(axes[0], training)
        for (name, series), colour in zip(main.items(), itertools.cycle((ORANGE, GREEN, PURPLE, GREY))):
            _draw_evaluation(axes[0], series, name, colour, "o")
        for index, (name, series) in enumerate(extra.items()):
            axis = axes[0] if shared else axes[index + 1]
            _draw_evaluation(axis, series, name, (GREEN, PURPLE, GREY)[index % 3], "sD^v"[index % 4])
            if not shared:
                axis.set_title(_wrapped(f"{name} ± standard error", width))
        axes[0].set_title("Reward")
        axes[-1].set_xlabel("optimiser step")
        # A single step in view is one tick, and no fractions of it.
        axes[-1].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        _legend_below(figure, axes[0])
        return figure


def prune_funnel(
    log_history: Sequence[Mapping[str, Any]],
    path: str | Path,
    group_sizes: Mapping[int, tuple[int, int]] | None = None,
    num_inference_steps: int | None = None,
) -> Path | None:
    """
    Save [`draw_prune_funnel`] of a run.

    Args:
        log_history (`Sequence[Mapping]`): `trainer.state.log_history`.
        path (`str` or `Path`): PNG to write; its folder is made.
        group_sizes (`Mapping[int, tuple[int, int]]`, *optional*): step -> group size before and after, see
            [`prune_group_sizes`].
        num_inference_steps (`int`, *optional*): denoising steps; the checkpoint with this index is post-hoc selection.

    Returns:
        `Path`, or `None` if nothing was pruned.
    """
    table = prune_table(log_history, group_sizes, num_inference_steps)
    return _save(draw_prune_funnel(table), path) if table else None


def draw_prune_funnel(table: Sequence[Mapping[str, Any]], width: float | None = None) -> Figure:
    """
    Draw, for every pruning checkpoint, the spread of rewards within groups before and after pruning and what a random
    choice of the same size would have kept; below it the rank correlation of preview and final reward.

    Args:
        table (`Sequence[Mapping]`): of [`prune_table`], at least one row.
        width (`float`, *optional*): of the figure, in inches; enough for all bars when unset.
    """
    width = max(6.0, 2.2 + 1.9 * len(table)) if width is None else width
    correlated = any(not math.isnan(row["rank_corr"]) for row in table)
    with _pyplot() as plt:
        figure, axes = plt.subplots(
            2 if correlated else 1, 1, figsize=(width, 5.4 if correlated else 3.8),
            sharex=True, squeeze=False, constrained_layout=True,
            gridspec_kw={"height_ratios": [2, 1] if correlated else [1]},
        )  # fmt: skip
        axes = axes[:, 0]
        bar, positions = 0.27, range(len(table))
        bars = (("reward_std_before", "before", GREY), ("reward_std_random", "random choice", LIGHT),
                ("reward_std_after", "after pruning", BLUE))  # fmt: skip
        for offset, (key, label, colour) in zip((-bar, 0, bar), bars):
            drawn = axes[0].bar([p + offset for p in positions], [row[key] for row in table], bar * 0.94, color=colour)
            # Three numbers side by side need an inch.
            if width / len(table) > 1.2:
                axes[0].bar_label(drawn, fmt=_bar_text, padding=2, fontsize=8)
            drawn.set_label(label)
        axes[0].set_title(_wrapped("Spread of rewards within groups (standard deviation)", width))
        axes[0].margins(y=0.16)
        # With no spread at all (a constant reward) automatic limits would centre on 0.
        spread = any(row[key] > 0 for row in table for key, _, _ in bars)
        axes[0].set_ylim(bottom=0, top=None if spread else 1)
        _legend_below(figure, axes[0])
        if correlated:
            known = [(p, row["rank_corr"]) for p, row in zip(positions, table) if not math.isnan(row["rank_corr"])]
            axes[1].axhline(0, color=GREY, linewidth=0.8)
            axes[1].plot(*zip(*known), color=ORANGE, marker="o", linestyle="none", markersize=7)
            for position, value in known:
                axes[1].annotate(f"{value:.2f}", (position, value), (9, 0), textcoords="offset points", va="center")
            lowest = min(value for _, value in known)
            axes[1].set_ylim(-0.05 if lowest >= 0 else -1.08, 1.08)
            axes[1].set_title(_wrapped("Rank correlation of preview and final reward, survivors", width))
        axes[-1].set_xticks(list(positions), [_checkpoint_label(row) for row in table])
        axes[-1].set_xlim(-0.6, len(table) - 0.4)
        return figure


def draw_trajectories_alive(
    started: int, group_sizes: Mapping[int, tuple[int, int]], num_inference_steps: int, width: float = 8.0
) -> Figure:
    """
    Draw how many trajectories of one prompt are alive at every denoising step: the area is the cost in network
    evaluations, beside that without pruning.

    Args:
        started (`int`): trajectories at the first step.
        group_sizes (`Mapping[int, tuple[int, int]]`): step -> group size before and after, see [`prune_group_sizes`].
        num_inference_steps (`int`): denoising steps.
        width (`float`, *optional*, defaults to 8.0): of the figure, in inches.
    """
    within = {step + 1: after for step, (_, after) in sorted(group_sizes.items()) if step < num_inference_steps}
    edges, sizes = [0, *within, num_inference_steps], [started, *within.values()]
    with _pyplot() as plt:
        figure, axes = plt.subplots(1, 1, figsize=(width, 1.6 + 0.1 * width), constrained_layout=True, squeeze=False)
        axis = axes[0, 0]
        axis.stairs([started], [0, num_inference_steps], fill=True, color=GREY, alpha=0.13)
        axis.stairs([started], [0, num_inference_steps], color=GREY, linestyle="--")
        axis.stairs(sizes, edges, fill=True, color=BLUE)
        for start, end, size in zip(edges, edges[1:], sizes):
            axis.annotate(
                f"{size}", ((start + end) / 2, size), (0, 3), textcoords="offset points", ha="center", weight="bold"
            )
        every = 1 if num_inference_steps <= 3 * width else 5
        axis.set_xticks(
            [step + 0.5 for step in range(0, num_inference_steps, every)], range(0, num_inference_steps, every)
        )
        axis.set_xlim(0, num_inference_steps)
        axis.set_ylim(0, started * 1.18)
        axis.yaxis.get_major_locator().set_params(integer=True, nbins=4)
        axis.set_xlabel("denoising step")
        return figure


def prune_table(
    log_history: Sequence[Mapping[str, Any]],
    group_sizes: Mapping[int, tuple[int, int]] | None = None,
    num_inference_steps: int | None = None,
) -> list[dict[str, Any]]:
    """
    Means over a run of every `prune/step_{i}/*` metric, one row per checkpoint in order: `step`, `sizes` (or `None`),
    `post_hoc`, `reward_std_before`, `reward_std_after`, `reward_std_random`, `rank_corr`; NaN where nothing was logged.
    """
    from .metrics import checkpoint_means

    names = ("reward_std_before", "reward_std_after", "reward_std_random", "rank_corr")
    return [
        {
            "step": step,
            "sizes": (group_sizes or {}).get(step),
            "post_hoc": step == num_inference_steps,
            **{name: means.get(name, math.nan) for name in names},
        }
        for step, means in checkpoint_means(log_history, "prune").items()
    ]


def prune_group_sizes(args: Any, choices: Sequence[Mapping[str, Any]] = ()) -> dict[int, tuple[int, int]]:
    """
    Group size before and after every checkpoint of a run, keyed like its metrics.

    Args:
        args ([`ProGRPOConfig`]): of the run.
        choices (`Sequence[Mapping]`, *optional*): schedules of a run that chose them itself, see
            [`~auto_schedule.ScheduleChoices`]. A checkpoint at which they had different sizes is left out.
    """
    if not choices:
        is_open = getattr(args, "prune_schedule", None) is not None
        choices = [] if is_open else [{name: getattr(args, name) for name in SCHEDULE_FIELDS}]
    found: dict[int, set[tuple[int, int]]] = {}
    for choice in choices:
        started, steps, after = (choice[name] for name in SCHEDULE_FIELDS)
        steps, after = list(steps or []), list(after or [])
        if (after[-1] if after else started) > args.num_generations:
            steps, after = [*steps, args.num_inference_steps], [*after, args.num_generations]
        for step, sizes in zip(steps, zip([started, *after], after)):
            found.setdefault(step, set()).add(sizes)
    return {step: next(iter(sizes)) for step, sizes in sorted(found.items()) if len(sizes) == 1}


def image_grid(
    rows: Sequence[Images],
    row_labels: Sequence[str],
    prompts: Sequence[str],
    path: str | Path,
    scores: Sequence[Sequence[float]] | None = None,
    max_columns: int = 6,
    title: str | None = None,
) -> Path:
    """Save [`draw_image_grid`] as a PNG at `path`, whose folder is made; return the path."""
    return _save_image(draw_image_grid(rows, row_labels, prompts, scores, max_columns, title), path)


def draw_image_grid(
    rows: Sequence[Images],
    row_labels: Sequence[str],
    prompts: Sequence[str],
    scores: Sequence[Sequence[float]] | None = None,
    max_columns: int = 6,
    title: str | None = None,
) -> Image.Image:
    """
    Draws images in a grid: one column per prompt, its caption above, one row per label (e.g. before and after).

    Small images are enlarged by a whole factor without smoothing, large ones reduced; more than `max_columns` prompts
    continue below.

    Args:
        rows (`Sequence`): per row a tensor `(N, 3, height, width)` in [0, 1] or a list of `N` PIL images.
        row_labels (`Sequence[str]`): one per row.
        prompts (`Sequence[str]`): `N` captions.
        scores (`Sequence[Sequence[float]]`, *optional*): shape of `rows`; written under the images, NaN is left out. From the
            second row on with what was gained on the first, in green or red.
        max_columns (`int`, *optional*, defaults to 6): columns before a new block starts.
        title (`str`, *optional*): stands above all.

    Raises:
        ValueError: if numbers of rows, labels, prompts, images or scores do not fit together.
    """
    pictures = [_to_pil(row) for row in rows]
    _check_grid(pictures, row_labels, prompts, scores)
    from PIL import Image, ImageDraw

    cell_width, cell_height = _cell_size(pictures[0][0].size)
    text, small = Lettering(15, letters="".join([*prompts, title or ""])), Lettering(13)
    label_font = Lettering(15, bold=True, letters="".join(row_labels))
    gap, margin = 14, 24
    label_width = int(max(label_font.getlength(label) for label in row_labels)) + 18
    score_height = 24 if scores is not None else 0
    row_height = cell_height + score_height + gap
    # Blocks of equal length: eight prompts are four and four, not six and two.
    columns = -(-len(prompts) // -(-len(prompts) // max_columns))
    blocks = [range(start, min(start + columns, len(prompts))) for start in range(0, len(prompts), columns)]
    captions = [_wrap(prompt, text, cell_width) for prompt in prompts]
    line_height = 20
    heights = [line_height * max(len(captions[i]) for i in block) + 8 + row_height * len(rows) for block in blocks]

    width = 2 * margin + label_width + columns * (cell_width + gap) - gap
    title_lines = [
        line for part in (title or "").split("\n") if part for line in _wrap(part, text, width - 2 * margin)
    ]
    title_height = line_height * len(title_lines) + gap * bool(title_lines)
    canvas = Image.new("RGB", (width, 2 * margin + title_height + sum(heights) + gap * (len(blocks) - 1)), "white")
    draw = ImageDraw.Draw(canvas)
    for index, line in enumerate(title_lines):
        text.draw(draw, (margin, margin + index * line_height), line, fill=INK)
    top = margin + title_height
    for block, height in zip(blocks, heights):
        caption_lines = max(len(captions[i]) for i in block)
        for column, i in enumerate(block):
            left = margin + label_width + column * (cell_width + gap)
            # Captions stand on the images: the last line is the one next to them.
            y = top + line_height * (caption_lines - len(captions[i]))
            for line in captions[i]:
                text.draw(draw, (left + (cell_width - text.getlength(line)) / 2, y), line, fill=INK)
                y += line_height
            for r, row in enumerate(pictures):
                y = top + line_height * caption_lines + 8 + r * row_height
                canvas.paste(_fit(row[i], (cell_width, cell_height)), (left, y))
                if scores is not None and not math.isnan(scores[r][i]):
                    score = number(scores[r][i], digits=2)
                    gain = gained(scores[0][i], scores[r][i]) if r else ""
                    x = left + (cell_width - small.getlength(f"{score}  {gain}".rstrip())) / 2
                    small.draw(draw, (x, y + cell_height + 4), score, fill="#5d636b")
                    x += small.getlength(f"{score}  ")
                    small.draw(draw, (x, y + cell_height + 4), gain, fill=SIGN_COLOURS.get(gain[:1], "#5d636b"))
        for r, label in enumerate(row_labels):
            y = top + line_height * caption_lines + 8 + r * row_height + cell_height / 2
            label_font.draw(draw, (margin, y), label, fill=INK, anchor="lm")
        top += height + gap
    return canvas


# ---- helpers of the charts -------------------------------------------------------------------------------------------


class _pyplot:
    """Pyplot-free matplotlib: an Agg figure factory in our style, leaving the user's global settings alone."""

    def __enter__(self):
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self._context = matplotlib.rc_context(_STYLE)
        self._context.__enter__()
        self._figure, self._canvas = Figure, FigureCanvasAgg
        return self

    def __exit__(self, *error):
        return self._context.__exit__(*error)

    def subplots(self, rows, columns, figsize, constrained_layout, **kwargs):
        figure = self._figure(figsize=figsize, layout="constrained" if constrained_layout else None)
        self._canvas(figure)
        return figure, figure.subplots(rows, columns, **kwargs)


def _draw_training(axis, training) -> None:
    if not training:
        return
    steps = [entry["step"] for entry in training]
    rewards = [entry["reward"] for entry in training]
    # One point has no area: its band would not be seen, and yet stretch the axis.
    if len(training) > 1 and all(_is_finite(entry.get("reward_std")) for entry in training):
        low = [r - entry["reward_std"] for r, entry in zip(rewards, training)]
        high = [r + entry["reward_std"] for r, entry in zip(rewards, training)]
        axis.fill_between(steps, low, high, color=BLUE, alpha=0.12, linewidth=0, label="± std within groups")
    window = len(rewards) // 12
    if window < 2:
        marker = "." if len(rewards) > 1 else "o"
        axis.plot(steps, rewards, color=BLUE, linewidth=1.6, marker=marker, label="training (survivors)")
        return
    axis.plot(steps, rewards, color=BLUE, linewidth=0.8, alpha=0.45)
    axis.plot(steps, _running_mean(rewards, window), color=BLUE, linewidth=2, label="training (survivors)")


def _draw_evaluation(axis, series, label: str, colour: str, marker: str) -> None:
    steps, values, errors = series
    errors = [0.0 if math.isnan(error) else error for error in errors]
    axis.errorbar(
        steps, values, yerr=errors if any(errors) else None, color=colour, marker=marker, markersize=4.5, linestyle="none",
        elinewidth=1.6, capsize=3, label=f"{label} ± standard error",
    )  # fmt: skip


def _series(entries, key: str, stderr_key: str) -> Series:
    """
    Steps, values and standard errors; of several evaluations at one step the first counts: a later one is of other weights,
    such as the best of the run.
    """
    by_step: dict[float, Mapping[str, Any]] = {}
    for entry in entries:
        if _is_finite(entry.get(key)):
            by_step.setdefault(entry["step"], entry)
    found = [by_step[step] for step in sorted(by_step)]
    return [e["step"] for e in found], [e[key] for e in found], [e.get(stderr_key, math.nan) for e in found]


def held_out_series(log_history: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Series], dict[str, Series]]:
    """
    Steps, values and standard errors of held-out rewards by what a legend calls them: the reward of every evaluation set, and
    its further rewards.
    """
    main: dict[str, Series] = {}
    extra: dict[str, Series] = {}
    keys = sorted({key for entry in log_history for key in entry})
    for prefix in [match[1] for key in keys if (match := re.fullmatch(r"(eval(?:_.+)?)_reward", key))]:
        dataset = prefix.removeprefix("eval").strip("_")
        total = _series(log_history, f"{prefix}_reward", f"{prefix}_reward_stderr")
        if not total[0]:
            continue
        main[f"held-out reward, {dataset}" if dataset else "held-out reward"] = total
        for key in keys:
            if not re.fullmatch(rf"{re.escape(prefix)}_rewards/.+/mean", key):
                continue
            series = _series(log_history, key, key.removesuffix("mean") + "stderr")
            # With one reward function of weight 1 its line would lie on the total's.
            if series[0] and not (series[0] == total[0] and all(map(math.isclose, series[1], total[1]))):
                name = key.removeprefix(f"{prefix}_rewards/").removesuffix("/mean")
                extra[f"held-out, {name} ({dataset})" if dataset else f"held-out, {name}"] = series
    return main, extra


def _legend_below(figure, axis) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        width = figure.get_figwidth()
        labels = [_wrapped(label, width, beside=6) for label in labels]
        longest = max(len(line) for label in labels for line in label.split("\n"))
        columns = max(1, int(width * _CHARACTERS / (longest + 6)))
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), columns, 4))


_CHARACTERS = 12
"""Of our font and size to an inch."""


def _wrapped(text: str, width: float, beside: int = 4) -> str:
    """`text` in lines that fit into so many inches, with room for a few characters `beside` them."""
    return textwrap.fill(text, max(10, int(width * _CHARACTERS) - beside))


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _checkpoint_label(row: Mapping[str, Any]) -> str:
    name = "finished images" if row["post_hoc"] else f"after step {row['step']}"
    return name + (f"\n{row['sizes'][0]} → {row['sizes'][1]}" if row["sizes"] else "")


def _bar_text(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}" if 0.01 <= abs(value) < 100 else f"{value:.3g}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Centred, with a shorter window at both ends."""
    half = window // 2
    return [_mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def _save(figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    letter_figure(figure)
    with _pyplot(), one_warning():
        figure.savefig(path)
    return path


def _rendered(figure) -> Image.Image:
    import numpy as np
    from PIL import Image

    letter_figure(figure)
    with one_warning():
        figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")


# ---- helpers of the grid ---------------------------------------------------------------------------------------------


def _to_pil(images: Images) -> list[Image.Image]:
    if hasattr(images, "detach"):
        from .rewards import to_pil

        return to_pil(images)
    return [image.convert("RGB") for image in images]


def _check_grid(pictures, row_labels, prompts, scores) -> None:
    if not pictures or not prompts:
        raise ValueError(
            f"`rows` has {len(pictures)} rows and `prompts` {len(prompts)} entries; give at least one of each."
        )
    if len(row_labels) != len(pictures):
        raise ValueError(f"`row_labels` has {len(row_labels)} entries for {len(pictures)} rows; give one per row.")
    for name, rows in (("rows", pictures), ("scores", scores)):
        if rows is not None and [len(row) for row in rows] != [len(prompts)] * len(pictures):
            raise ValueError(
                f"`{name}` has rows of {[len(row) for row in rows]} entries for {len(pictures)} row labels and "
                f"{len(prompts)} prompts; give one entry per prompt in every row."
            )


def _cell_size(size: tuple[int, int], target: int = 160, largest: int = 320) -> tuple[int, int]:
    """Enlarged by the whole factor that reaches `target`, or reduced to `largest`."""
    longest = max(size)
    if longest >= target:
        factor = min(1.0, largest / longest)
        return round(size[0] * factor), round(size[1] * factor)
    factor = -(-target // longest)
    return size[0] * factor, size[1] * factor


def _fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    from PIL import Image

    if image.size == size:
        return image
    larger = size[0] > image.size[0]
    return image.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)


def _wrap(text: str, font: Lettering, width: int, max_lines: int = 4) -> list[str]:
    """Lines of at most `width` pixels; words that are too long are broken, and a text that is too long ends in "…"."""
    lines, line = [], ""
    for word in text.split():
        candidate = f"{line} {word}".strip()
        if font.getlength(candidate) <= width:
            line = candidate
            continue
        if line:
            lines.append(line)
        line = word
        while font.getlength(line) > width:
            cuts = [n for n in range(1, len(line)) if _may_break(line, n)] or [1]
            cut = next((n for n in reversed(cuts) if font.getlength(line[:n]) <= width), cuts[0])
            lines.append(line[:cut])
            line = line[cut:]
    lines.append(line)
    if len(lines) > max_lines:
        lines = lines[:max_lines]
        while lines[-1] and font.getlength(lines[-1] + "…") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] = lines[-1].rstrip() + "…"
    return [_directed(line, text) for line in lines]


def _may_break(text: str, index: int) -> bool:
    """Return whether no mark is parted from its letter, no emoji from what is joined to it, and no line opens with a stop."""
    joiners = "\u200c\u200d"
    follows = unicodedata.category(text[index]) in ("Mn", "Mc", "Me", "Sk", "Pe", "Pf", "Po")
    return not (follows or text[index] in joiners or text[index - 1] in joiners)


def _directed(line: str, text: str) -> str:
    """`line` with a mark of direction where alone it would be read from the other side than `text`, of which it is a part."""

    def from_right(part: str) -> bool | None:
        return next((d != "L" for d in map(unicodedata.bidirectional, part) if d in ("L", "R", "AL")), None)

    own, whole = from_right(line), from_right(text)
    return line if own is None or own == whole else ("\u200f" if whole else "\u200e") + line


def _save_image(image: Image.Image, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path
