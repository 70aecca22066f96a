# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What evaluations say of a run: held-out rewards before and after, and whether one fell. Standard library only."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def evaluation_table(
    log_history: Sequence[Mapping[str, Any]], trained: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """
    First and last evaluation of every held-out reward on every evaluation set: `name`, `before`, `before_se`, `after`,
    `after_se`, `gain`, `gain_se`, `num_prompts`, `step` of the last one, `trained` (on), and `fell`, whether the loss is
    above two standard errors.

    `before` and `gain` are `None` where the first evaluation was not before training. The error of a gain treats the two
    evaluations as independent; with the same prompts and noise in both it is usually smaller.

    Args:
        log_history (`Sequence[Mapping]`): `trainer.state.log_history`.
        trained (`Iterable[str]`, *optional*): names of the rewards that are trained on; `trained` is `None` when unset.
    """
    trained = None if trained is None else set(trained)
    rows = []
    for prefix in dict.fromkeys(_prefix(key) for entry in log_history for key in entry if _prefix(key)):
        evaluations = [entry for entry in log_history if f"{prefix}_num_prompts" in entry]
        first, last = evaluations[0], evaluations[-1]
        before = first if first.get("step") == 0 and first is not last else None
        for key in last:
            if key.startswith(f"{prefix}_rewards/") and key.endswith("/mean"):
                rows.append(_row(prefix, key, before, last, trained))
    return rows


class HackingWatch:
    """
    Says, once each, which rewards that are not trained on have fallen: the trained reward may be gained at their expense.

    Args:
        trained (`Iterable[str]`): names of the rewards that are trained on.
    """

    def __init__(self, trained: Iterable[str]):
        self.trained = set(trained)
        self._told: set[str] = set()

    def state_dict(self) -> list[str]:
        """For a checkpoint: what was told is not told again."""
        return sorted(self._told)

    def load_state_dict(self, state: Iterable[str]) -> None:
        """Goes on from [`~HackingWatch.state_dict`]."""
        self._told = set(state)

    def update(self, log_history: Sequence[Mapping[str, Any]]) -> str | None:
        """The warning, if the last evaluations are the ones that justify it."""
        fallen = [
            row
            for row in evaluation_table(log_history, self.trained)
            if row["fell"] and not row["trained"] and row["name"] not in self._told
        ]
        if not fallen:
            return None
        self._told |= {row["name"] for row in fallen}
        said = ", ".join(
            f"{row['name']} ({row['before']:.4g} ± {row['before_se']:.2g} before training, {row['after']:.4g} ± "
            f"{row['after_se']:.2g} at step {row['step']})"
            for row in fallen
        )
        return (
            f"held-out rewards that are not trained on have fallen by more than two standard errors: {said}; the trained "
            "reward may be gained at their expense (reward hacking). Look at the pictures; then keep an earlier checkpoint, "
            "raise `beta`, lower `learning_rate`, or train on them too."
        )


def _prefix(key: str) -> str | None:
    match = re.fullmatch(r"(eval(?:_.+)?)_num_prompts", key)
    return match[1] if match else None


def _row(
    prefix: str, key: str, before: Mapping[str, Any] | None, last: Mapping[str, Any], trained: set[str] | None
) -> dict[str, Any]:
    if before is not None and key not in before:
        # A reward that was added when the run was resumed.
        before = None
    error_key = key.removesuffix("mean") + "stderr"
    dataset = prefix.removeprefix("eval").strip("_")
    reward = key.removeprefix(f"{prefix}_rewards/").removesuffix("/mean")
    row = {
        "name": f"{reward} ({dataset})" if dataset else reward,
        "trained": None if trained is None else reward in trained,
        "before": before and before[key],
        "before_se": before and before[error_key],
        "after": last[key],
        "after_se": last[error_key],
        "gain": None,
        "gain_se": None,
        "num_prompts": int(last[f"{prefix}_num_prompts"]),
        "step": last.get("step"),
        "fell": False,
    }
    if before is not None:
        row["gain"], row["gain_se"] = row["after"] - row["before"], math.hypot(row["before_se"], row["after_se"])
        row["fell"] = row["gain"] < -2 * row["gain_se"]
    return row
