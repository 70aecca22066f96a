# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The datasets of a run: what every one of them must hold, and what follows from the run's numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..inherited import watches_a_metric
from .order import check_size
from .prompts import as_prompts, check_prompts, check_stream_options, check_variety, is_stream
from .rows import check_rows, without_unread


if TYPE_CHECKING:
    from ..progrpo_config import ProGRPOConfig
    from ..rewards import RewardRunner


def as_eval_prompts(eval_dataset: Any, prompt_column: str) -> Any:
    """[`as_prompts`] of an evaluation set, or of every one in a mapping from names."""
    if not isinstance(eval_dataset, dict):
        return as_prompts(eval_dataset, prompt_column, "eval_dataset")
    return {
        name: as_prompts(dataset, prompt_column, f"eval_dataset[{name!r}]") for name, dataset in eval_dataset.items()
    }


def as_rewards_read(
    train_dataset: Any,
    eval_dataset: Any | Mapping[str, Any],
    prompt_column: str,
    trained: RewardRunner,
    previews: RewardRunner,
    watched: RewardRunner | None,
) -> tuple[Any, Any]:
    """
    Return both datasets without what no reward reads and would be decoded for nothing; see [`without_unread`].

    Args:
        train_dataset, eval_dataset (as of [`as_prompts`] and [`as_eval_prompts`]): the datasets.
        prompt_column (`str`): where the prompts are.
        trained, previews, watched (as of [`check_rewards`]): the rewards.
    """
    measured = [trained, *filter(None, [watched])]
    train_dataset = without_unread(train_dataset, prompt_column, [trained, previews])
    if isinstance(eval_dataset, dict):
        return train_dataset, {
            name: without_unread(data, prompt_column, measured) for name, data in eval_dataset.items()
        }
    return train_dataset, without_unread(eval_dataset, prompt_column, measured)


def check_datasets(
    args: ProGRPOConfig, train_dataset: Any, eval_dataset: Any | Mapping[str, Any], processes: int | None = None
) -> None:
    """
    Args:
        args ([`ProGRPOConfig`]): of the run.
        train_dataset (as of [`as_prompts`], or `None`): what is trained on.
        eval_dataset (as of [`as_eval_prompts`], or `None`): what is evaluated on.
        processes (`int`, *optional*): how many share a rollout; as many as there are when unset.

    Raises:
        ValueError: as [`ProGRPOConfig.geometry`], [`check_prompts`], [`check_size`], [`check_variety`] and
            [`check_stream_options`]; if the metric that decides is of no evaluation set; or if evaluations are wanted and
            there is nothing to evaluate on.
    """
    if train_dataset is not None:
        num_prompts = args.geometry(processes).num_prompts
        check_prompts(train_dataset, args.prompt_column, "train_dataset")
        if is_stream(train_dataset):
            check_stream_options(args.max_steps, args.drop_text_encoders)
        else:
            check_size(len(train_dataset), num_prompts)
            check_variety(train_dataset, args.prompt_column, "train_dataset")
    for name, dataset in (eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}).items():
        if dataset is not None:
            named = f"eval_dataset[{name!r}]" if name else "eval_dataset"
            check_prompts(dataset, args.prompt_column, named, streams=False)
    best = args.metric_for_best_model
    if isinstance(eval_dataset, dict) and watches_a_metric(args):
        if not best.removeprefix("eval_").startswith(tuple(f"{name}_" for name in eval_dataset)):
            raise ValueError(
                f"`metric_for_best_model` is {best!r}, which none of several evaluation sets has; put the name of one before "
                f"it, as in {next(iter(eval_dataset))}_reward."
            )
    wanted = getattr(args.eval_strategy, "value", args.eval_strategy)
    if eval_dataset is None and wanted != "no":
        raise ValueError(
            f"`eval_strategy` is {wanted}, but there is no `eval_dataset`; give held-out prompts (on the command line as "
            "`dataset_test_split` or `test_split_size`), or use no."
        )


def check_rewards(
    args: ProGRPOConfig,
    train_dataset: Any,
    eval_dataset: Any | Mapping[str, Any],
    trained: RewardRunner,
    previews: RewardRunner,
    watched: RewardRunner | None,
) -> None:
    """
    Args:
        args ([`ProGRPOConfig`]): of the run.
        train_dataset, eval_dataset (as of [`check_datasets`]): checked already.
        trained ([`~rewards.RewardRunner`]): what is trained on.
        previews ([`~rewards.RewardRunner`]): what scores previews; may be the same.
        watched ([`~rewards.RewardRunner`], *optional*): what only evaluations score.

    Raises:
        ValueError: if a reward function asks for what a dataset has no column of (of a stream nothing is known before it is
            read), a row is none that it can score (see [`check_rows`]), or if checkpoints are judged by a reward that no
            evaluation scores.
    """
    measured = [trained, *([] if watched is None else [watched])]
    names = [name for runner in measured for name in runner.names]
    found = re.search(r"rewards/(.+)/(mean|stderr)$", args.metric_for_best_model or "")
    if found and watches_a_metric(args) and found[1] not in names:
        raise ValueError(
            f"`metric_for_best_model` is {args.metric_for_best_model!r}, but no reward is called {found[1]!r}; there are "
            f"{', '.join(names)}."
        )
    sets = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
    named = {f"`eval_dataset[{name!r}]`" if name else "`eval_dataset`": dataset for name, dataset in sets.items()}
    for name, dataset, runners in [
        ("`train_dataset`", train_dataset, [trained, previews]),
        *((name, dataset, measured) for name, dataset in named.items()),
    ]:
        if dataset is None:
            continue
        if not is_stream(dataset):
            columns = getattr(dataset, "column_names", None) or list(dataset[0])
            for runner in runners:
                runner.check_columns([column for column in columns if column != args.prompt_column], name)
        check_rows(dataset, args.prompt_column, name, runners, args.on_reward_error)
