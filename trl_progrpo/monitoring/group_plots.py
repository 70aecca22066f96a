# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Pictures of one group: what was kept and what was pruned, and the rewards before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch


if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from .group import Checkpoint, WatchedGroup


def checkpoint_name(step_index: int, num_inference_steps: int) -> str:
    """How a checkpoint is called in words; that of index `T` is selection among finished images."""
    return "finished images" if step_index == num_inference_steps else f"previews after step {step_index}"


def previews_picture(checkpoint: Checkpoint, group: WatchedGroup, columns: int = 8) -> Image.Image:
    """Previews of a group with their scores, survivors above and pruned below, each from the highest score down."""
    name = checkpoint_name(checkpoint.step_index, group.num_inference_steps)
    kept, pruned = int(checkpoint.kept.sum()), int((~checkpoint.kept).sum())
    return _tiles(
        f"{group.prompt}\n{name}: {kept} kept, {pruned} pruned, with their rewards",
        [(f"kept {kept}", *_part(checkpoint, True)), (f"pruned {pruned}", *_part(checkpoint, False))],
        columns,
    )


def survivors_picture(group: WatchedGroup, columns: int = 8) -> Image.Image:
    """Finished images of the survivors with their rewards, from the highest down."""
    order = by_reward(group.rewards)
    title = f"{group.prompt}\nthe {len(order)} images that are trained on, with their rewards"
    return _tiles(title, [("", group.images[order], group.rewards[order].tolist())], columns)


def reward_histogram(group: WatchedGroup) -> Image.Image:
    """Draw the rewards of a group before and after every checkpoint, on common axes; for plain GRPO those of its members."""
    from ..plots import _rendered

    panels: list[tuple[str, list[float], list[float] | None]] = [
        (
            f"{checkpoint_name(c.step_index, group.num_inference_steps).capitalize()}: {len(c.rewards)} → {int(c.kept.sum())}",
            c.rewards.tolist(),
            c.rewards[c.kept].tolist(),
        )
        for c in group.checkpoints
    ] or [(f"Rewards of one group of {len(group.rewards)}", group.rewards.tolist(), None)]
    edges = histogram_edges(torch.cat([group.rewards, *(c.rewards for c in group.checkpoints)]).tolist())
    return _rendered(draw_reward_histogram(panels, edges))


def draw_reward_histogram(
    panels: Sequence[tuple[str | None, Sequence[float], Sequence[float] | None]],
    edges: Sequence[float],
    width: float = 6.4,
) -> Figure:
    """
    Draw histograms one below the other.

    Args:
        panels (`Sequence[tuple]`): title (or `None`), rewards before pruning, and those of them after it (`None` where nothing
            was pruned); NaN is left out.
        edges (`Sequence[float]`): of the bins, see [`histogram_edges`].
        width (`float`, *optional*, defaults to 6.4): of the figure, in inches.
    """
    from ..plots import BLUE, LIGHT, _pyplot, _wrapped

    with _pyplot() as plt:
        figure, axes = plt.subplots(
            len(panels),
            1,
            figsize=(width, 1.2 + 2.1 * len(panels)),
            sharex=True,
            squeeze=False,
            constrained_layout=True,
        )
        for axis, (title, before, after) in zip(axes[:, 0], panels):
            named = (
                [(before, LIGHT, "before"), (after, BLUE, "after pruning")]
                if after is not None
                else [(before, BLUE, None)]
            )
            for rewards, colour, label in named:
                known = [reward for reward in rewards if math.isfinite(reward)]
                axis.hist(known, edges, color=colour, edgecolor="white", label=label)
            if title is not None:
                axis.set_title(_wrapped(title, width))
            if after is not None:
                axis.legend()
            axis.yaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            axis.set_ylabel("members")
        axes[-1, 0].set_xlabel("reward")
        return figure


def histogram_edges(rewards: Sequence[float], count: int = 20) -> list[float]:
    """`count + 1` edges that hold all `rewards` but NaN; those of [0, 1] where that holds them."""
    known = [reward for reward in rewards if not math.isnan(reward)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    if 0 <= low and high <= 1:
        low, high = 0.0, 1.0
    elif low == high:
        low, high = low - 0.5, high + 0.5
    return [low + (high - low) * i / count for i in range(count + 1)]


def by_reward(rewards: torch.Tensor) -> torch.Tensor:
    """Indices from the highest reward down, those without a reward last."""
    return rewards.nan_to_num(-math.inf, neginf=-math.inf).argsort(descending=True, stable=True)


def _part(checkpoint: Checkpoint, kept: bool) -> tuple[torch.Tensor, list[float]]:
    rows = (checkpoint.kept == kept).nonzero().flatten()
    rows = rows[by_reward(checkpoint.rewards[rows])]
    return checkpoint.images[rows], checkpoint.rewards[rows].tolist()


def _tiles(title: str, sections: Sequence[tuple[str, torch.Tensor, list[float]]], columns: int) -> Image.Image:
    """Labelled sections of tiles, each with its score below; the title's lines above."""
    from PIL import Image, ImageDraw

    from ..lettering import Lettering
    from ..plots import INK, _cell_size, _fit, _wrap

    text, small = Lettering(15, letters=title), Lettering(13)
    bold = Lettering(15, bold=True, letters="".join(label for label, _, _ in sections))
    height, width = sections[0][1].shape[-2:]
    cell_width, cell_height = _cell_size((width, height), target=96, largest=128)
    gap, margin, score_height, line_height = 8, 20, 20, 20
    label_width = int(max(bold.getlength(label) for label, _, _ in sections)) + (16 if sections[0][0] else 0)
    full_width = 2 * margin + label_width + columns * (cell_width + gap) - gap
    lines = [line for part in title.split("\n") for line in _wrap(part, text, full_width - 2 * margin, max_lines=2)]
    rows = [max(1, -(-len(scores) // columns)) for _, _, scores in sections]
    row_height = cell_height + score_height + gap
    full_height = 2 * margin + line_height * len(lines) + 10 + row_height * sum(rows) + 12 * (len(rows) - 1)
    canvas = Image.new("RGB", (full_width, full_height), "white")
    draw = ImageDraw.Draw(canvas)
    for index, line in enumerate(lines):
        text.draw(draw, (margin, margin + index * line_height), line, fill=INK)
    top = margin + line_height * len(lines) + 10
    for (label, images, scores), count in zip(sections, rows):
        bold.draw(draw, (margin, top + cell_height / 2), label, fill=INK, anchor="lm")
        for index, (image, score) in enumerate(zip(images, scores)):
            left = margin + label_width + index % columns * (cell_width + gap)
            y = top + index // columns * row_height
            tile = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
            canvas.paste(_fit(tile, (cell_width, cell_height)), (left, y))
            written = "–" if math.isnan(score) else f"{score:.2f}" if abs(score) < 1000 else f"{score:.3g}"
            small.draw(draw, (left + cell_width / 2, y + cell_height + 2), written, fill="#5d636b", anchor="ma")
        top += row_height * count + 12
    return canvas
