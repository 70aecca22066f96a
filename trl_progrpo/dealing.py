# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What a process has of a rollout: the groups it can judge, and which of its rows are trained when."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .geometry import Geometry
from .spread import Spread
from .types import Rollout, to_device


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """
    Rows that are trained in one forward and backward pass per denoising step.

    Attributes:
        rows ([`Rollout`]): on every process as many. Those that only fill up have no advantage (NaN).
        num_rows (`int`): how many of them, the first ones, do not.
        scale (`float`): what a sum over the rows' losses is multiplied by, so that the mean over processes of the sum over an
            update's micro-batches is the mean over the update's rows, wherever they are.
    """

    rows: Rollout
    num_rows: int
    scale: float


def micro_batches(
    rollout: Rollout, geometry: Geometry, rank: int, turn: int, device: torch.device | str
) -> list[MicroBatch]:
    """
    A pass over the rows of a process, update by update.

    Args:
        rollout ([`Rollout`]): of the process, with advantages.
        geometry ([`Geometry`]): which row is trained when.
        rank (`int`): the process.
        turn (`int`): see [`~Geometry.micro_batches_of`].
        device (`torch.device`): where advantages are needed.
    """
    batches = []
    for update in range(geometry.num_updates):
        scale = geometry.num_processes / max(1, geometry.rows_of_update(update, turn))
        sizes = geometry.micro_batch_sizes(update, turn)
        for size, mine in zip(sizes, geometry.micro_batches_of(rank, update, turn)):
            rows = rollout.select(torch.tensor([*mine, *[0] * (size - len(mine))]))
            advantages = rows.advantages.clone()
            advantages[len(mine) :] = math.nan
            # Once here, and not at every trained step.
            batches.append(MicroBatch(rows.replace(advantages=to_device(advantages, device)), len(mine), scale))
    return batches


def whole_groups(rollout: Rollout, geometry: Geometry, rank: int, spread: Spread | None) -> Rollout:
    """
    The groups that this process can judge, for advantages and metrics: its own, without those that fill up; or all of them,
    of which it knows rewards only, where they are spread.
    """
    if spread is None:
        own = geometry.own_prompts(rank)
        return rollout if own == len(rollout.conditioning) else rollout.first_prompts(own)
    told = torch.stack([rollout.prompt_index.double(), rollout.member.double(), rollout.rewards.cpu().double()], 1)
    told = spread.gather(torch.cat([told, rollout.rewards_per_func.cpu().double()], 1), geometry.num_rows)
    return rollout.replace(
        prompt_index=told[:, 0].long(),
        member=told[:, 1].long(),
        rewards=told[:, 2].to(rollout.rewards.dtype),
        rewards_per_func=told[:, 3:].to(rollout.rewards_per_func.dtype),
    )


def own_advantages(rollout: Rollout, groups: Rollout, geometry: Geometry, rank: int) -> torch.Tensor:
    """Advantages `(B,)` of the rows of this process, of those of [`whole_groups`]; NaN in rows that only fill up."""
    rows = geometry.rows(rank)
    first = rows.start if geometry.placement == "spread" else 0
    advantages = groups.advantages.new_full((len(rollout),), math.nan)
    advantages[: len(rows)] = groups.advantages[first : first + len(rows)]
    return advantages
