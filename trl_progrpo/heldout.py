# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What evaluations say of a run: held-out rewards before and after, and whether one fell. Standard library only."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .words import number, with_error


TOTAL = "weighted total"
"""What the sum of the rewards that are trained on is called among them."""


def evaluation_table(
    log_history: Sequence[Mapping[str, Any]],
    trained: Iterable[str] | None = None,
    kept_step: int | None = None,
) -> list[dict[str, Any]]:
    """
    First and last evaluation of every held-out reward on every evaluation set: `name`, `before`, `before_stderr`, `after`,
    `after_stderr`, `gain`, `gain_stderr`, `num_prompts`, `step` of the last one, `trained` (on), `sure`, whether the gain or
    loss is above two standard errors, and `fell`, whether it is such a loss. The weighted total comes first on its set, unless
    it is one of the rewards; then those that are trained on.

    `before` and `gain` are `None` where no evaluation of as many prompts was before training. A gain and its error are those of
    [`~evaluation.PairedGains`]; where an evaluation had no pairs, because it is of other prompts or of an older run, the
    difference of the means, with the error of two independent evaluations, which is larger.

    Args:
        log_history (`Sequence[Mapping]`): `trainer.state.log_history`.
        trained (`Iterable[str]`, *optional*): names of the rewards that are trained on; `trained` is `None` when unset.
        kept_step (`int`, *optional*): the step whose weights were kept, if not the last one: its evaluation is the last, then.
    """
    trained = None if trained is None else {*trained, TOTAL}
    rows = []
    for prefix in dict.fromkeys(_prefix(key) for entry in log_history for key in entry if _prefix(key)):
        evaluations = [entry for entry in log_history if f"{prefix}_num_prompts" in entry]
        last = next((entry for entry in evaluations if kept_step and entry.get("step") == kept_step), evaluations[-1])
        # A run that was resumed with other prompts has measured them before training as well.
        before = [
            entry
            for entry in evaluations
            if entry.get("step") == 0
            and entry is not last
            and entry[f"{prefix}_num_prompts"] == last[f"{prefix}_num_prompts"]
        ]
        before = before[-1] if before else None
        keys = {
            key.removeprefix(f"{prefix}_rewards/").removesuffix("/mean"): (key, key.removesuffix("mean"))
            for key in last
            if key.startswith(f"{prefix}_rewards/") and key.endswith("/mean")
        }
        total = f"{prefix}_reward"
        # As texts, for NaN is not equal to itself.
        if total in last and str(last[total]) not in {str(last[mean]) for mean, _ in keys.values()}:
            keys = {TOTAL: (total, f"{total}_"), **keys}
        if trained is not None:
            # A log that was written to a file comes back in the order of the alphabet.
            keys = {name: keys[name] for name in sorted(keys, key=lambda name: name not in trained)}
        rows += [_row(prefix, name, mean, error, before, last, trained) for name, (mean, error) in keys.items()]
    return rows


class HackingWatch:
    """
    Says, once each, which rewards that are not trained on have fallen: the trained reward may be gained at their expense.
    As it looks again at every evaluation, it asks for three standard errors, and not for two.

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
            if row["gain"] is not None
            and row["gain"] < -3 * row["gain_stderr"]
            and not row["trained"]
            and row["name"] not in self._told
        ]
        if not fallen:
            return None
        self._told |= {row["name"] for row in fallen}
        said = ", ".join(
            f"{row['name']} ({number(row['before'])} before training, {number(row['after'])} at step {row['step']}: "
            f"{with_error(row['gain'], row['gain_stderr'])})"
            for row in fallen
        )
        return (
            f"held-out rewards that are not trained on have fallen by more than three standard errors: {said}; the trained "
            "reward may be gained at their expense (reward hacking). Look at the pictures; then keep an earlier checkpoint, "
            "raise `beta`, lower `learning_rate`, or train on them too."
        )


def _prefix(key: str) -> str | None:
    match = re.fullmatch(r"(eval(?:_.+)?)_num_prompts", key)
    return match[1] if match else None


def _row(
    prefix: str,
    reward: str,
    mean: str,
    others: str,
    before: Mapping[str, Any] | None,
    last: Mapping[str, Any],
    trained: set[str] | None,
) -> dict[str, Any]:
    """`mean` is a metric's name, and `others` what those of its error and of its gain begin with."""
    if before is not None and mean not in before:
        # A reward that was added when the run was resumed.
        before = None
    dataset = prefix.removeprefix("eval").strip("_")
    row = {
        "name": f"{reward} ({dataset})" if dataset else reward,
        "trained": None if trained is None else reward in trained,
        "before": before and before[mean],
        "before_stderr": before and before.get(f"{others}stderr", math.nan),
        "after": last[mean],
        "after_stderr": last.get(f"{others}stderr", math.nan),
        "gain": None,
        "gain_stderr": None,
        "num_prompts": int(last[f"{prefix}_num_prompts"]),
        "step": last.get("step"),
        "sure": False,
        "fell": False,
    }
    if before is not None:
        unpaired = row["after"] - row["before"], math.hypot(row["before_stderr"], row["after_stderr"])
        row["gain"] = last.get(f"{others}gain", unpaired[0])
        row["gain_stderr"] = last.get(f"{others}gain_stderr", unpaired[1])
        row["sure"] = abs(row["gain"]) > 2 * row["gain_stderr"]
        row["fell"] = row["sure"] and row["gain"] < 0
    return row
