# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The few fixed prompts that a run is looked at with: in trackers, in its report and on its model card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .advantages import weighted_rewards


if TYPE_CHECKING:
    import torch

    from .progrpo_trainer import ProGRPOTrainer


def validation_prompts(trainer: ProGRPOTrainer) -> list[str]:
    """
    The first `num_validation_prompts` different prompts of `eval_dataset`, or of `train_dataset` where there is none.

    Always the same for the same data, so that pictures of different moments of a run can be compared:
    `trainer.generate(validation_prompts(trainer))` also fixes the initial noise.
    """
    return [row[trainer.args.prompt_column] for row in validation_rows(trainer)]


def validation_rows(trainer: ProGRPOTrainer) -> list[dict[str, Any]]:
    """The rows of [`validation_prompts`] with all their columns, for scoring; of several evaluation sets the first."""
    dataset = trainer.eval_dataset
    if isinstance(dataset, Mapping):
        dataset = next(iter(dataset.values()), None)
    dataset = trainer.train_dataset if dataset is None else dataset
    args = trainer.args
    return [] if dataset is None else distinct_rows(dataset, args.prompt_column, args.num_validation_prompts)


def validation_scores(trainer: ProGRPOTrainer, rows: Sequence[Mapping[str, Any]], images: torch.Tensor) -> list[float]:
    """The weighted trained reward of each of `images` `(N, 3, height, width)`, drawn from the prompts of `rows`."""
    column = trainer.args.prompt_column
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != column}
    per_func = trainer.reward_runner([row[column] for row in rows], images, columns)
    return weighted_rewards(per_func, trainer.reward_runner.weights).tolist()


def distinct_rows(dataset: Iterable[Mapping[str, Any]], prompt_column: str, count: int) -> list[dict[str, Any]]:
    """The first `count` rows with different prompts; fewer if there are no more. Reads no further than it must."""
    rows: dict[str, dict[str, Any]] = {}
    # Before the loop: a count of 0 must not read the first row of a streamed dataset.
    if count < 1:
        return []
    for row in dataset:
        rows.setdefault(row[prompt_column], dict(row))
        if len(rows) == count:
            break
    return list(rows.values())
