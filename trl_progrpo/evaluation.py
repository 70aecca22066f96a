# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Held-out scores: one image per prompt, shared out among processes, and what is logged of them."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .advantages import weighted_rewards
from .rewards import RewardFunc, RewardRunner


if TYPE_CHECKING:
    from .progrpo_trainer import ProGRPOTrainer


def held_out_scores(
    trainer: ProGRPOTrainer, prompts: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> tuple[list[str], torch.Tensor]:
    """
    Names and scores `(N, F)`, float64 on the CPU, of one noise-free image per prompt: the rewards that are trained on, then
    those that are only watched. Every process samples its share and all get the whole.
    """
    args, accelerator = trainer.args, trainer.accelerator
    runners = [trainer.reward_runner, *([trainer.eval_reward_runner] if trainer.eval_reward_runner else [])]
    share = -(-len(prompts) // accelerator.num_processes)
    first = accelerator.process_index * share
    # Shares are padded to equal length: every process must make the same number of calls.
    mine = [min(i, len(prompts) - 1) for i in range(first, first + share)]
    parts = []
    with trainer.rank_watch.together():
        for start in range(0, share, args.per_device_eval_batch_size):
            index = mine[start : start + args.per_device_eval_batch_size]
            batch = [prompts[i] for i in index]
            batch_columns = {name: [values[i] for i in index] for name, values in columns.items()}
            images = trainer.generate(batch, first_slot=index[0], ema=args.eval_use_ema)
            parts.append(torch.cat([runner(batch, images, batch_columns) for runner in runners], 1))
            trainer.on_phase("evaluate", start + len(index), share)
    scores = torch.cat(parts).double().to(accelerator.device)
    scores = accelerator.gather(scores)[: len(prompts)].cpu()
    for runner in runners:
        # What training counts is of rollouts only.
        runner.errors.clear()
    return [name for runner in runners for name in runner.names], scores


def watching_runner(
    eval_reward_funcs: RewardFunc | str | Sequence[RewardFunc | str] | None, trained: RewardRunner, **faults: Any
) -> RewardRunner | None:
    """
    Scores what evaluation watches beside the rewards that are trained on, if there is anything.

    Args:
        eval_reward_funcs (as of [`ProGRPOTrainer`]): the functions.
        trained ([`RewardRunner`]): those that are trained on.
        faults: of [`RewardRunner`].

    Raises:
        ValueError: if both have a function of one name.
    """
    if not eval_reward_funcs:
        return None
    runner = RewardRunner(eval_reward_funcs, **faults)
    twice = sorted(set(runner.names) & set(trained.names))
    if twice:
        raise ValueError(
            f"`eval_reward_funcs` has {twice[0]!r}, the name of one of `reward_funcs`, which evaluation scores anyway; leave it "
            "out, or give a function of your own another `__name__`."
        )
    return runner


def warn_of_silent_rewards(names: Sequence[str], scores: torch.Tensor) -> None:
    """Warns of functions that have given no number for any image; names and scores are those of [`held_out_scores`]."""
    for name, column in zip(names, scores.unbind(1)):
        if column.isnan().all():
            warnings.warn(
                f"reward `{name}` has given no number for any of {len(scores)} held-out images; look at it and at the "
                "columns it reads.",
                stacklevel=3,
            )


def held_out_metrics(
    names: Sequence[str], scores: torch.Tensor, weights: torch.Tensor, prefix: str = "eval", count_failed: bool = False
) -> dict[str, float]:
    """
    What is logged of scores `(N, F)`: their number, and mean and standard error over prompts of every function and of the
    weighted sum of the first `len(weights)`.

    Args:
        names (`Sequence[str]` of length `F`): of the functions.
        scores (`torch.Tensor` of shape `(N, F)`): NaN where a function has no score.
        weights (`torch.Tensor`): of the functions that are trained on.
        prefix (`str`, *optional*, defaults to `"eval"`): what metric names begin with.
        count_failed (`bool`, *optional*, defaults to `False`): whether to tell how many prompts have no score.
    """
    total = _total(scores, weights)
    metrics = {f"{prefix}_num_prompts": len(scores)}
    if count_failed:
        metrics[f"{prefix}_num_failed"] = int(total.isnan().sum())
    metrics[f"{prefix}_reward"], metrics[f"{prefix}_reward_stderr"] = _mean_and_error(total)
    for name, column in zip(names, scores.unbind(1)):
        metrics[f"{prefix}_rewards/{name}/mean"], metrics[f"{prefix}_rewards/{name}/stderr"] = _mean_and_error(column)
    return metrics


class PairedGains:
    """
    What evaluations gain on the one before training, image by image. Both begin from the same initial noise, so that a gain
    has a smaller error than the difference of two independent means, most of all early in a run.
    """

    def __init__(self):
        # Which set of which prompts -> name of a reward -> its scores.
        self._before: dict[str, dict[str, list[float]]] = {}
        self._gains: dict[tuple[str, int], list[float]] = {}

    def state_dict(self) -> dict[str, dict[str, list[float]]]:
        """For a checkpoint, as numbers and texts."""
        return self._before

    def load_state_dict(self, state: Mapping[str, dict[str, list[float]]]) -> None:
        """Goes on from [`~PairedGains.state_dict`], with what has been measured before training since, of other prompts."""
        self._before = {**state, **self._before}

    def of_total(self, step: int, prompts: Sequence[str], prefix: str = "eval") -> list[float]:
        """Return what the weighted total of every prompt had gained at `step`; empty if nothing was evaluated then."""
        return self._gains.get((_digest(prefix, prompts), step), [])

    def update(
        self,
        step: int,
        prompts: Sequence[str],
        names: Sequence[str],
        scores: torch.Tensor,
        weights: torch.Tensor,
        prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Keeps the first evaluation of step 0; of a later one, metrics as those of [`held_out_metrics`]: mean and standard error
        over images of what every reward, and the weighted total, has gained. None where there are no pairs: without an
        evaluation of the same prompts before training, or of a reward that was not measured then.

        Args:
            step (`int`): optimiser steps done.
            prompts (`Sequence[str]` of length `N`): of the images.
            names, scores, weights, prefix: see [`held_out_metrics`].
        """
        digest = _digest(prefix, prompts)
        if step == 0:
            self._before.setdefault(digest, {name: column.tolist() for name, column in zip(names, scores.unbind(1))})
        before = self._before.get(digest)
        if step == 0 or before is None:
            return {}
        nothing = [math.nan] * len(scores)
        then = torch.tensor([before.get(name, nothing) for name in names], dtype=torch.float64).T
        metrics = {}
        if set(names[: len(weights)]) <= set(before):
            gains = _total(scores, weights) - _total(then, weights)
            self._gains[digest, step] = gains.tolist()
            metrics.update(_gain(f"{prefix}_reward_", gains))
        for name, gains in zip(names, (scores - then).unbind(1)):
            metrics.update(_gain(f"{prefix}_rewards/{name}/", gains))
        return metrics


def _digest(prefix: str, prompts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([prefix, *prompts]).encode()).hexdigest()


def _gain(beginning: str, gains: torch.Tensor) -> dict[str, float]:
    if gains.isnan().all():
        return {}
    mean, error = _mean_and_error(gains)
    return {f"{beginning}gain": mean, f"{beginning}gain_stderr": error}


def _total(scores: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return weighted_rewards(scores[:, : len(weights)], weights).double()


def _mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    values = values[~values.isnan()]
    error = (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan
    return values.mean().item(), error
