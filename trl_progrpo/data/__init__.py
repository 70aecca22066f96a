# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""From a dataset to the prompts of a rollout."""

from .checks import as_eval_prompts, as_rewards_read, check_datasets, check_rewards
from .order import RolloutSampler, RolloutStream, check_size, collate_rows
from .prompts import (
    LOOKED_AT,
    RESERVED_COLUMNS,
    as_prompts,
    blank_texts,
    check_prompt,
    check_prompts,
    check_stream_options,
    check_variety,
    distinct_prompts,
    is_stream,
    warn_about_long_prompts,
)
from .rows import check_rows, readable, stream_check, without_unread


__all__ = [
    "LOOKED_AT",
    "RESERVED_COLUMNS",
    "RolloutSampler",
    "RolloutStream",
    "as_eval_prompts",
    "as_prompts",
    "as_rewards_read",
    "blank_texts",
    "check_datasets",
    "check_prompt",
    "check_prompts",
    "check_rewards",
    "check_rows",
    "check_size",
    "check_stream_options",
    "check_variety",
    "collate_rows",
    "distinct_prompts",
    "is_stream",
    "readable",
    "stream_check",
    "warn_about_long_prompts",
    "without_unread",
]
