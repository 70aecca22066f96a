# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""From rewards to advantages.

A group is the set of rows with the same integer in `prompt_index`: any order, any sizes. A NaN reward marks an invalid
row: it enters no statistic and its advantage is 0. All statistics are in float64 on the CPU (the tensors are tiny), so
they do not depend on the device or on the order of a parallel sum; results are float32 on the device of the rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch


ScaleRewards = Literal["group", "batch", "none"]


def group_advantages(
    rewards: torch.Tensor,
    prompt_index: torch.Tensor,
    scale_rewards: ScaleRewards = "group",
    eps: float = 1e-4,
    batch_std: float | None = None,
) -> torch.Tensor:
    """
    Reward minus the mean of its group, over a standard deviation plus `eps`.

    The deviation is the POPULATION one, as in Flow-GRPO (arXiv 2505.05470) and DDPO (arXiv 2305.13301, there with
    `eps=1e-6`); TRL and DanceGRPO (arXiv 2505.07818) divide by `n - 1`, which makes advantages `sqrt((n - 1) / n)` times
    as large. After pruning, statistics are those of the survivors in `rewards`.

    Args:
        rewards (`torch.Tensor` of shape `(B,)`): NaN where a row is invalid.
        prompt_index (`torch.Tensor` of shape `(B,)`, integer): the group of every row.
        scale_rewards (`str`, *optional*, defaults to `"group"`): `"group"` divides by the deviation of the group,
            `"batch"` by that of all valid rewards around their common mean, `"none"` not at all.
        eps (`float`, *optional*, defaults to 1e-4): added to the deviation.
        batch_std (`float`, *optional*): for `"batch"`, the deviation over all ranks, if the caller has it; by default
            that of `rewards`.

    Returns:
        `torch.Tensor` of shape `(B,)`, float32, without gradient. Exactly 0 for invalid rows and in groups without spread
        or with fewer than two valid rows.

    Raises:
        ValueError: for infinite rewards, group ids that are not integers, unequal shapes, an unknown `scale_rewards`, and
            a `batch_std` that is not finite and at least 0 or not wanted.
    """
    if scale_rewards not in ("group", "batch", "none"):
        raise ValueError(f'`scale_rewards` is {scale_rewards!r}; use "group", "batch" or "none".')
    if batch_std is not None and (scale_rewards != "batch" or not 0 <= batch_std < float("inf")):
        raise ValueError(
            f"`batch_std` is {batch_std!r} with scale_rewards={scale_rewards!r}; give a finite standard deviation and "
            '"batch", or leave it out.'
        )
    values, valid, group = _grouped(rewards, prompt_index)
    centred, group_std = _centre(values, valid, group)
    if scale_rewards == "group":
        centred = centred / (group_std + eps)
    elif scale_rewards == "batch":
        std = values[valid].std(correction=0).item() if batch_std is None and valid.any() else batch_std or 0.0
        centred = centred / (std + eps)
    return centred.to(rewards.device, torch.float32)


def comparable_rows(rewards: torch.Tensor, prompt_index: torch.Tensor) -> torch.Tensor:
    """
    Which rows `(B,)`, bool, have a reward and another row with a reward in their group; the others can teach nothing.

    Args:
        rewards (`torch.Tensor` of shape `(B,)`): NaN where a row is invalid.
        prompt_index (`torch.Tensor` of shape `(B,)`, integer): the group of every row.

    Raises:
        ValueError: as [`group_advantages`].
    """
    _, valid, group = _grouped(rewards, prompt_index)
    return (valid & (torch.bincount(group[valid], minlength=len(group))[group] > 1)).to(rewards.device)


def weighted_rewards(rewards_per_func: torch.Tensor, weights: Sequence[float] | torch.Tensor) -> torch.Tensor:
    """
    The weighted sum of several rewards, without those that do not apply.

    Args:
        rewards_per_func (`torch.Tensor` of shape `(B, F)`): NaN where a function does not apply to a row.
        weights (sequence of `float` or `torch.Tensor` of shape `(F,)`): one weight per function.

    Returns:
        `torch.Tensor` of shape `(B,)`, float32; NaN in rows to which no function applies.

    Raises:
        ValueError: if the number of weights is not `F`, or one is not finite.
    """
    weights = _checked_weights(rewards_per_func, weights)
    total = (rewards_per_func.detach().to("cpu", torch.float64) * weights).nansum(1)
    total[rewards_per_func.isnan().all(1).cpu()] = float("nan")
    return total.to(rewards_per_func.device, torch.float32)


def normalize_multi(
    rewards_per_func: torch.Tensor,
    prompt_index: torch.Tensor,
    weights: Sequence[float] | torch.Tensor,
    eps: float = 1e-4,
    scale_batch: bool = True,
) -> torch.Tensor:
    """
    Advantages from several rewards as in GDPO (arXiv 2601.05242): normalise each reward within its group, weight, sum, then
    normalise over the batch. Unlike normalising the weighted sum, a reward of large scale cannot drown the others,
    and different combinations of rewards keep different advantages.

    Args:
        rewards_per_func (`torch.Tensor` of shape `(B, F)`): NaN where a function does not apply to a row.
        prompt_index (`torch.Tensor` of shape `(B,)`, integer): the group of every row.
        weights (sequence of `float` or `torch.Tensor` of shape `(F,)`): one weight per function.
        eps (`float`, *optional*, defaults to 1e-4): added to every standard deviation (population, see
            [`group_advantages`]).
        scale_batch (`bool`, *optional*, defaults to `True`): whether to take the last step. With `False` a caller on several
            ranks can divide by `eps` plus the root mean square over the valid rows of all ranks: the mean is already 0.

    Returns:
        `torch.Tensor` of shape `(B,)`, float32, without gradient; 0 in rows to which no function applies.

    Raises:
        ValueError: as [`group_advantages`] and [`weighted_rewards`].
    """
    weights = _checked_weights(rewards_per_func, weights)
    total = torch.zeros(len(rewards_per_func), dtype=torch.float64)
    for rewards, weight in zip(rewards_per_func.unbind(1), weights.tolist(), strict=True):
        centred, std = _centre(*_grouped(rewards, prompt_index))
        total += weight * centred / (std + eps)
    valid = ~rewards_per_func.isnan().all(1).cpu()
    if scale_batch and valid.any():
        mean, std = total[valid].mean(), total[valid].std(correction=0)
        total = torch.where(valid, (total - mean) / (std + eps), 0.0)
    return total.to(rewards_per_func.device, torch.float32)


def _grouped(rewards: torch.Tensor, prompt_index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """float64 rewards, mask of valid rows, and groups numbered from 0; all `(B,)` on the CPU."""
    if rewards.ndim != 1 or prompt_index.shape != rewards.shape:
        raise ValueError(
            f"a reward has shape {tuple(rewards.shape)} and `prompt_index` {tuple(prompt_index.shape)}; give one number "
            "and one group id per row."
        )
    if prompt_index.is_floating_point() or prompt_index.is_complex() or prompt_index.dtype == torch.bool:
        raise ValueError(f"`prompt_index` has dtype {prompt_index.dtype}; groups are identified by integers.")
    values = rewards.detach().to("cpu", torch.float64)
    if values.isinf().any():
        raise ValueError(
            f"{int(values.isinf().sum())} rewards are infinite; return NaN for rows without a reward, which are ignored."
        )
    return values, ~values.isnan(), prompt_index.cpu().unique(return_inverse=True)[1]


def _centre(values: torch.Tensor, valid: torch.Tensor, group: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance from the mean of the group (0 where invalid), and the population deviation of the row's group; `(B,)`."""
    # Taking the smallest value off first makes a group without spread exactly 0 and a large offset harmless.
    low = torch.full_like(values, float("inf")).scatter_reduce(0, group, values.nan_to_num(nan=float("inf")), "amin")
    values = torch.where(valid, values - low[group], 0.0)
    count = torch.zeros_like(values).index_add(0, group, valid.to(values.dtype)).clamp(min=1)

    def group_mean(x):
        return (torch.zeros_like(x).index_add(0, group, x) / count)[group]

    centred = torch.where(valid, values - group_mean(values), 0.0)
    return centred, group_mean(centred.square()).sqrt()


def _checked_weights(rewards_per_func: torch.Tensor, weights: Sequence[float] | torch.Tensor) -> torch.Tensor:
    weights = torch.as_tensor(weights, dtype=torch.float64).detach().cpu()
    if rewards_per_func.ndim != 2 or weights.shape != rewards_per_func.shape[1:]:
        raise ValueError(
            f"`weights` has shape {tuple(weights.shape)} and `rewards_per_func` {tuple(rewards_per_func.shape)}; give one "
            "weight per reward function."
        )
    if not weights.isfinite().all():
        raise ValueError(f"`weights` is {weights.tolist()}; all weights must be finite.")
    return weights
