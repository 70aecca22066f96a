# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The few fixed prompts that a run is looked at with: in trackers, in its report and on its model card."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .advantages import weighted_rewards
from .data import readable


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
    dataset = _first_eval_dataset(trainer)
    dataset = trainer.train_dataset if dataset is None else dataset
    args = trainer.args
    return [] if dataset is None else distinct_rows(dataset, args.prompt_column, args.num_validation_prompts)


def with_gain_cases(
    trainer: ProGRPOTrainer, step: int, rows: Sequence[Mapping[str, Any]], images: Sequence[torch.Tensor | None]
) -> tuple[list[Mapping[str, Any]], list[torch.Tensor | None], list[str | None]]:
    """
    Return rows and images with those of [`gain_cases`] after them, and what each is called, `None` for the others. After a full
    fine-tune, which keeps no base weights to draw them with, only those that are among the rows are called by their case.

    Args:
        trainer ([`ProGRPOTrainer`]): draws them.
        step (`int`): whose gains decide.
        rows (`Sequence[Mapping]` of length `N`): as of [`validation_rows`].
        images (`Sequence[torch.Tensor]`): before and after training, `(N, 3, height, width)` each.
    """
    import torch

    rows, images, cases = list(rows), list(images), [None] * len(rows)
    dataset, column = _first_eval_dataset(trainer), trainer.args.prompt_column
    for case, index in gain_cases(trainer, step).items():
        row = dict(dataset[index])
        if index < len(rows) and rows[index][column] == row[column]:
            cases[index] = case
        elif trainer.use_adapter:
            drawn = [trainer.generate([row[column]], adapter=adapter, first_slot=index) for adapter in (False, True)]
            rows, cases = [*rows, row], [*cases, case]
            images = [torch.cat(pair) for pair in zip(images, drawn)]
    return rows, images, cases


def gain_cases(trainer: ProGRPOTrainer, step: int) -> dict[str, int]:
    """
    Return the prompts of the (first) evaluation set that gained and lost most by `step`: what to call them -> their position,
    which is also the slot that fixes their initial noise. Empty without paired evaluations, or if nothing changed.
    """
    dataset = _first_eval_dataset(trainer)
    if dataset is None:
        return {}
    prefix = f"eval_{next(iter(trainer.eval_dataset))}" if isinstance(trainer.eval_dataset, Mapping) else "eval"
    prompts = [row[trainer.args.prompt_column] for row in readable(dataset)]
    gains = {
        i: gain for i, gain in enumerate(trainer.paired_gains.of_total(step, prompts, prefix)) if not math.isnan(gain)
    }
    if not any(gains.values()):
        return {}
    best, worst = max(gains, key=gains.get), min(gains, key=gains.get)
    names = {
        f"{'largest gain' if gains[best] > 0 else 'smallest loss'} of {len(gains)}": best,
        f"{'largest loss' if gains[worst] < 0 else 'smallest gain'} of {len(gains)}": worst,
    }
    return names if best != worst else dict(list(names.items())[:1])


def _first_eval_dataset(trainer: ProGRPOTrainer) -> Any:
    dataset = trainer.eval_dataset
    return next(iter(dataset.values()), None) if isinstance(dataset, Mapping) else dataset


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
    for row in readable(dataset):
        rows.setdefault(row[prompt_column], dict(row))
        if len(rows) == count:
            break
    return list(rows.values())
