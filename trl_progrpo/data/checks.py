# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The datasets of a run: what every one of them must hold, and what follows from the run's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .order import check_size
from .prompts import as_prompts, check_prompts, check_stream_options, is_stream


if TYPE_CHECKING:
    from ..progrpo_config import ProGRPOConfig


def as_eval_prompts(eval_dataset: Any, prompt_column: str) -> Any:
    """[`as_prompts`] of an evaluation set, or of every one in a mapping from names."""
    if not isinstance(eval_dataset, dict):
        return as_prompts(eval_dataset, prompt_column, "eval_dataset")
    return {
        name: as_prompts(dataset, prompt_column, f"eval_dataset[{name!r}]") for name, dataset in eval_dataset.items()
    }


def check_datasets(args: ProGRPOConfig, train_dataset: Any, eval_dataset: Any | Mapping[str, Any]) -> None:
    """
    Args:
        args ([`ProGRPOConfig`]): of the run.
        train_dataset (as of [`as_prompts`], or `None`): what is trained on.
        eval_dataset (as of [`as_eval_prompts`], or `None`): what is evaluated on.

    Raises:
        ValueError: as [`check_prompts`], [`check_size`] and [`check_stream_options`].
    """
    if train_dataset is not None:
        check_prompts(train_dataset, args.prompt_column, "train_dataset")
        if is_stream(train_dataset):
            check_stream_options(args.max_steps, args.drop_text_encoders)
        else:
            check_size(len(train_dataset), args.prompts_per_rollout * args.world_size)
    for name, dataset in (eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}).items():
        if dataset is not None:
            named = f"eval_dataset[{name!r}]" if name else "eval_dataset"
            check_prompts(dataset, args.prompt_column, named, streams=False)
