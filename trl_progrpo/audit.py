# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Does pruning find what it looks for? Answered on groups whose dropped rows were finished too. Knows torch and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from .metrics import random_subset_std, rank_correlation
from .types import PruneRecord, Rollout


MIN_GROUPS = 20
"""Audited groups before a verdict."""


def audit_size(fraction: float, num_prompts: int, rollout_index: int) -> int:
    """How many of `num_prompts` groups a rollout audits, so that over many rollouts it is `fraction` of all."""
    return math.floor((rollout_index + 1) * fraction * num_prompts) - math.floor(
        rollout_index * fraction * num_prompts
    )


def audit_metrics(rollout: Rollout) -> dict[str, float]:
    """
    What pruning does to the FINAL rewards of whole groups, keyed `audit/step_{i}/...`, means over the audited groups,
    NaN where no group has what is asked.

    * `rank_corr`: Spearman correlation of preview and final reward over the whole group (`prune/step_{i}/rank_corr` sees
      the survivors only).
    * `reward_std_kept`: spread of final rewards of the rows still alive after checkpoint `i`.
    * `reward_std_random`: the spread a random subset of the same size of the whole group would have.
    """
    metrics = {}
    for record in rollout.audit_records:
        prefix, groups = f"audit/step_{record.step_index}", len(record.prompt_index.unique())
        correlation = rank_correlation(
            record.rewards.view(groups, -1), record.final_rewards.view(groups, -1)
        ).nanmean()
        kept, chance = spreads(record)
        metrics[f"{prefix}/rank_corr"] = correlation.item()
        metrics[f"{prefix}/reward_std_kept"] = kept.nanmean().item()
        metrics[f"{prefix}/reward_std_random"] = chance.nanmean().item()
    return metrics


def spreads(record: PruneRecord) -> tuple[torch.Tensor, torch.Tensor]:
    """Per audited group `(P,)`: the spread of final rewards kept, and that of a random subset; NaN without rewards."""
    kept, chance = [], []
    for prompt in record.prompt_index.unique():
        group = record.prompt_index == prompt
        final, alive = record.final_rewards[group], record.kept[group]
        survivors = final[alive]
        kept.append(survivors[~survivors.isnan()].std(correction=0))
        chance.append(random_subset_std(final, torch.zeros(len(final)), int(alive.sum())))
    return torch.stack(kept), torch.stack(chance)


class AuditWatch:
    """Gathers audited groups over a run and says, once, when pruning is no better than chance."""

    def __init__(self):
        self._gains: list[float] = []
        self._correlations: list[float] = []
        self._warned = False

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: a resumed run tells what an uninterrupted one would."""
        return {"gains": self._gains, "correlations": self._correlations, "warned": self._warned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from [`~AuditWatch.state_dict`]."""
        self._gains, self._correlations = list(state["gains"]), list(state["correlations"])
        self._warned = state["warned"]

    def update(self, rollout: Rollout) -> str | None:
        """The warning, if this rollout's audit is the one that justifies it."""
        if not rollout.audit_records:
            return None
        last = rollout.audit_records[-1]
        groups = len(last.prompt_index.unique())
        kept, chance = spreads(last)
        gains = (kept - chance).double()
        self._gains += gains[~gains.isnan()].tolist()
        correlations = rank_correlation(last.rewards.view(groups, -1), last.final_rewards.view(groups, -1))
        self._correlations += correlations[~correlations.isnan()].tolist()
        if self._warned or len(self._gains) < MIN_GROUPS:
            return None
        gains = torch.tensor(self._gains, dtype=torch.float64)
        mean, stderr = gains.mean().item(), (gains.std() / math.sqrt(len(gains))).item()
        if mean > 2 * stderr:
            return None
        self._warned = True
        correlation = sum(self._correlations) / max(1, len(self._correlations))
        return (
            f"pruning keeps no more reward spread than chance: over {len(gains)} audited groups the survivors' final "
            f"rewards spread {mean:+.4f} ± {stderr:.4f} more than a random subset's, and previews after step "
            f"{last.step_index} rank trajectories like the final rewards with correlation {correlation:.2f}; use later "
            "`prune_steps`, another `preview_decoder` or `preview_reward_funcs`, or no `prune_steps` at all."
        )
