# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The figures of `paper.py`, in the style of the package's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

import torch
from paper_training import Run

from trl_progrpo.plots import BLUE, GREEN, GREY, LIGHT, ORANGE, _pyplot, _save


NEAR = 0.5
"""Half the width of the grey band, in standard deviations of the whole group."""


def clustering_figure(title: str, deviations: Mapping[str, torch.Tensor], path: Path) -> Path:
    """
    Histograms of rewards around the mean of their set, one above the other.

    Args:
        title (`str`): of the figure.
        deviations (`Mapping[str, torch.Tensor]`): name of a set -> deviations of its members from its mean, in standard
            deviations of the whole group, over all groups.
        path (`Path`): PNG to write.
    """
    edges = [-3 + 0.25 * i for i in range(25)]
    with _pyplot() as plt:
        figure, axes = plt.subplots(
            len(deviations), 1, figsize=(6.4, 0.8 + 1.55 * len(deviations)), sharex=True, sharey=True, squeeze=False,
            constrained_layout=True,
        )  # fmt: skip
        figure.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold")
        for axis, (name, values), colour in zip(axes[:, 0], deviations.items(), (GREY, LIGHT, BLUE, GREEN)):
            inside = values.clamp(edges[0], edges[-1]).tolist()
            share = [1 / len(values)] * len(values)
            axis.axvspan(-NEAR, NEAR, color="#f0f1f3", zorder=0)
            axis.hist(inside, edges, weights=share, color=colour, edgecolor="white")
            axis.set_title(name[0].upper() + name[1:], fontsize=10, fontweight="normal")
            near = (values.abs() <= NEAR).double().mean().item()
            axis.annotate(
                f"{100 * near:.0f} % within {NEAR:g}",
                (1, 0.97),
                xycoords="axes fraction",
                ha="right",
                va="top",
                fontsize=9,
            )
            axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes[-1, 0].set_xlabel("reward, from the mean of the set, in standard deviations of the whole group")
        axes[-1, 0].set_xlim(edges[0], edges[-1])
        return _save(figure, path)


def curves_figure(title: str, methods: Mapping[str, Sequence[Run]], path: Path) -> Path:
    """
    Held-out reward against rollouts and against seconds, and the spread of the rewards that were trained on; means over
    seeds, with their standard errors as bands.

    Args:
        title (`str`): of the figure.
        methods (`Mapping[str, Sequence[Run]]`): name -> its runs, evaluated at the same rollouts.
        path (`Path`): PNG to write.
    """
    with _pyplot() as plt:
        figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), squeeze=False, constrained_layout=True)
        figure.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold")
        reward, clock, spread = axes[0]
        for (name, runs), colour in zip(methods.items(), (GREY, BLUE, ORANGE, GREEN)):
            iterations = [entry["iteration"] for entry in runs[0].evaluations]
            rewards = [[entry["reward"] for entry in run.evaluations] for run in runs]
            seconds = [fmean(run.seconds_until(i) for run in runs) for i in iterations]
            _band(reward, iterations, rewards, colour, name, marker="o")
            _band(clock, seconds, rewards, colour, name, marker="o")
            trained = [_smooth([rollout["reward_std"] for rollout in run.rollouts]) for run in runs]
            _band(spread, [rollout["iteration"] for rollout in runs[0].rollouts], trained, colour, name)
        for axis, what, label in (
            (reward, "Held-out reward", "rollouts"),
            (clock, "Held-out reward", "seconds of one core"),
            (spread, "Spread of trained rewards", "rollouts"),
        ):
            axis.set_title(what, fontsize=10, fontweight="normal")
            axis.set_xlabel(label)
        spread.set_ylim(bottom=0)
        handles, labels = reward.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        return _save(figure, path)


def _band(
    axis, x: Sequence[float], runs: Sequence[Sequence[float]], colour: str, name: str, marker: str | None = None
):
    columns = list(zip(*runs))
    means = [fmean(column) for column in columns]
    errors = [stdev(column) / len(column) ** 0.5 if len(column) > 1 else 0.0 for column in columns]
    axis.plot(x, means, color=colour, marker=marker, markersize=4, linewidth=1.6, label=name)
    axis.fill_between(
        x,
        [m - e for m, e in zip(means, errors)],
        [m + e for m, e in zip(means, errors)],
        color=colour,
        alpha=0.2,
        linewidth=0,
    )


def _smooth(values: Sequence[float], window: int = 3) -> list[float]:
    """Centred running mean, shorter at both ends."""
    half = window // 2
    return [fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
