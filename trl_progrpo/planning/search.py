# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Finds the pruning schedule that makes most of its cost, on groups whose members were all previewed and finished."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ..cost import PruneSchedule
from ..metrics import rank_correlation
from ..pruning import ovf
from .gain import survivors


Objective = Literal["signal", "spread"]

OBJECTIVES = ("signal", "spread")

RESAMPLES = 16
"""Random subsets of every recorded group that a schedule with fewer expansions is tried on."""

CHECKPOINTS = 9
"""Steps that are considered as checkpoints, at most; all of them where there are fewer."""


@dataclass(frozen=True, eq=False)
class RecordedGroups:
    """
    Unpruned groups: what previews said at every step, and what came out.

    Args:
        level (`float`): of noise, in the unit of the policy (`noise_level` or `eta`).
        previews (`Mapping[int, torch.Tensor]`): 0-based step -> preview rewards `(P, n)`.
        final (`torch.Tensor` of shape `(P, n)`): final rewards. NaN, where no reward applied, becomes the mean of its group.
    """

    level: float
    previews: Mapping[int, torch.Tensor]
    final: torch.Tensor

    def __post_init__(self):
        object.__setattr__(self, "previews", {step: _filled(rewards) for step, rewards in self.previews.items()})
        object.__setattr__(self, "final", _filled(self.final))

    @property
    def spread(self) -> float:
        """Mean over groups of the population standard deviation of final rewards."""
        return self.final.std(1, correction=0).mean().item()

    def rank_correlations(self) -> dict[int, float]:
        """Spearman correlation of previews and final rewards by step, mean over the groups that have spread."""
        return {step: rank_correlation(r, self.final).nanmean().item() for step, r in self.previews.items()}


@dataclass(frozen=True)
class Candidate:
    """
    A schedule and what the recorded groups say of it.

    Attributes:
        schedule ([`PruneSchedule`]): how groups are pruned.
        level (`float`): of noise.
        spread (`float`): expected standard deviation of the survivors' final rewards.
        signal (`float`): expected sum of their squared deviations, see [`gain`].
        cost (`float`): of a group's rollout and update.
        per_group (`tuple[float, ...]`): what is to be large, of every recorded group, over the cost.
    """

    schedule: PruneSchedule
    level: float
    spread: float
    signal: float
    cost: float
    per_group: tuple[float, ...]

    @property
    def score(self) -> float:
        """What is to be large over the cost."""
        return sum(self.per_group) / len(self.per_group)


def evaluate(
    schedule: PruneSchedule, groups: RecordedGroups, cost: float, objective: Objective = "signal", seed: int = 0
) -> Candidate:
    """
    Prunes recorded groups as `schedule` would have, with OVF, and looks at the survivors' final rewards. A schedule that starts
    fewer trajectories than were recorded is tried on random subsets, the same ones for all schedules.

    Args:
        schedule ([`PruneSchedule`]): with prune steps that were recorded, or the last.
        groups ([`RecordedGroups`]): with at least `num_expansions` members.
        cost (`float`): of one group.
        objective (`str`, *optional*, defaults to `"signal"`): or `"spread"`.
        seed (`int`, *optional*, defaults to 0): of the subsets.
    """
    num_groups, members = groups.final.shape
    if schedule.num_expansions > members:
        raise ValueError(
            f"`num_expansions` is {schedule.num_expansions}, but {members} trajectories per prompt were recorded; record "
            "more, or start fewer."
        )
    draw = torch.Generator().manual_seed(seed)
    order = torch.rand(num_groups * RESAMPLES, members, generator=draw).argsort(1)[:, : schedule.num_expansions]

    def subsets(rewards: torch.Tensor) -> torch.Tensor:
        return rewards.repeat_interleave(RESAMPLES, 0).gather(1, order)

    final = subsets(groups.final)
    # The last step has no preview: its image is the finished one.
    previews = {step: subsets(groups.previews.get(step, groups.final)) for step in schedule.prune_steps}
    kept = survivors(schedule, previews, final, ovf)
    variance = final.gather(1, kept).var(1, correction=0).view(num_groups, RESAMPLES)
    spread, signal = variance.sqrt().mean(1), variance.mean(1) * schedule.num_generations
    wanted = signal if objective == "signal" else spread
    return Candidate(
        schedule, groups.level, spread.mean().item(), signal.mean().item(), cost, tuple((wanted / cost).tolist())
    )


def candidates(num_inference_steps: int, num_generations: int, max_expansions: int) -> Iterable[PruneSchedule]:
    """
    Schedules worth trying: plain GRPO; one and a half, two, three, four times as many trajectories and the largest number,
    pruned at no checkpoint, at one or at two, over one size in between or none.
    """
    steps, kept = num_inference_steps, num_generations
    yield PruneSchedule.plain(steps, kept)
    last = steps - 2
    places = sorted(
        {round(i * last / max(1, min(CHECKPOINTS, last + 1) - 1)) for i in range(min(CHECKPOINTS, last + 1))}
    )
    sizes = {round(kept * factor) for factor in (1.5, 2, 3, 4)} | {max_expansions}
    for started in sorted(size for size in sizes if kept < size <= max_expansions):
        yield PruneSchedule(steps, kept, started)
        between = sorted({round(math.sqrt(started * kept)), round((started + kept) / 2)} - {started, kept})
        for first in places:
            yield PruneSchedule(steps, kept, started, (first,), (kept,))
            for size in between:
                yield PruneSchedule(steps, kept, started, (first,), (size,))
                for second in places:
                    if second > first:
                        yield PruneSchedule(steps, kept, started, (first, second), (size, kept))


def propose(
    recorded: Sequence[RecordedGroups],
    price: Callable[[PruneSchedule], float],
    num_inference_steps: int,
    num_generations: int,
    objective: Objective = "signal",
) -> Candidate:
    """
    The schedule and the noise level with the largest expected signal (or spread) per cost.

    Among many candidates the best on few groups is partly luck. So of all that are within one standard error of the best, paired
    over groups, the one with the fewest checkpoints is taken, of those one with the noise that was recorded first, and of those
    the best.

    Args:
        recorded (`Sequence[RecordedGroups]`): of the same prompts, one for every noise level, that of the run first.
        price (`Callable[[PruneSchedule], float]`): what a group costs, for example in seconds.
        num_inference_steps (`int`): denoising steps.
        num_generations (`int`): survivors per prompt; they stay what they are, as batches depend on them.
        objective (`str`, *optional*, defaults to `"signal"`): or `"spread"`.

    Raises:
        ValueError: if no group has any spread.
    """
    tried = []
    for groups in recorded:
        for schedule in candidates(num_inference_steps, num_generations, groups.final.shape[1]):
            tried.append(evaluate(schedule, groups, price(schedule), objective))
    best = max(tried, key=lambda candidate: candidate.score)
    if not best.score > 0:
        raise ValueError(
            "all recorded groups have rewards without spread, so no schedule can be chosen; record more groups, use more "
            "noise or other prompts."
        )
    as_good = [candidate for candidate in tried if _is_as_good(candidate, best)]
    level = recorded[0].level
    return max(as_good, key=lambda one: (-len(one.schedule.prune_steps), one.level == level, one.score))


def _is_as_good(candidate: Candidate, best: Candidate) -> bool:
    behind = torch.tensor(best.per_group).double() - torch.tensor(candidate.per_group).double()
    if len(behind) < 2:
        return candidate is best
    return behind.mean() <= behind.std() / math.sqrt(len(behind))


def _filled(rewards: torch.Tensor) -> torch.Tensor:
    rewards = rewards.double()
    return torch.where(rewards.isnan(), rewards.nanmean(1, keepdim=True).nan_to_num(), rewards)
