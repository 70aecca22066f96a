# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Statistics of groups and of what pruning did to them. Knows torch and nothing else."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .types import PruneRecord, Rollout


def rank_correlation(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """
    Spearman correlation along the last dimension, `(..., n), (..., n) -> (...)`, with average ranks for ties.

    NaN where either side has no spread or holds a NaN.
    """
    rx, ry = _ranks(x), _ranks(y)
    rx, ry = rx - rx.mean(-1, keepdim=True), ry - ry.mean(-1, keepdim=True)
    correlation = (rx * ry).sum(-1) / (rx.square().sum(-1) * ry.square().sum(-1)).sqrt()
    return correlation.masked_fill(x.isnan().any(-1) | y.isnan().any(-1), math.nan)


def _ranks(x: torch.Tensor) -> torch.Tensor:
    smaller = (x[..., None, :] < x[..., :, None]).sum(-1)
    equal = (x[..., None, :] == x[..., :, None]).sum(-1)
    return (smaller + (equal - 1) / 2).double()


def group_std(rewards: torch.Tensor, prompt_index: torch.Tensor) -> torch.Tensor:
    """
    Mean over groups of the population standard deviation of `rewards` `(B,)`; a 0-dimensional tensor. NaN rewards are
    left out, and so are groups that have nothing else.
    """
    return _mean([group.std(correction=0) for group in _groups(rewards, prompt_index)])


def random_subset_std(rewards: torch.Tensor, prompt_index: torch.Tensor, size: int) -> torch.Tensor:
    """
    What `group_std` would be, in root mean square, for a uniformly random subset of `size` members of each group: the
    expected population variance of `size` draws without replacement is `(size - 1) / size` times the sample variance.
    """
    groups = [group for group in _groups(rewards, prompt_index) if len(group) > 1]
    return _mean([(group.var(correction=1) * (size - 1) / size).sqrt() for group in groups])


def _groups(rewards: torch.Tensor, prompt_index: torch.Tensor) -> list[torch.Tensor]:
    valid = ~rewards.isnan()
    return [rewards[valid & (prompt_index == p)] for p in prompt_index[valid].unique()]


def _mean(values: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(values).mean() if values else torch.tensor(math.nan)


def prune_metrics(rollout: Rollout) -> dict[str, float]:
    """
    One rollout's prune funnel, keyed `prune/step_{i}/...` with `i` the 0-based step (`T` for post-hoc selection).

    * `reward_std_before`, `reward_std_after`: mean within-group spread of the deciding rewards before and after.
    * `reward_std_random`: the spread a random subset of the same size would have kept.
    * `rank_corr`: Spearman correlation within groups of preview reward and final reward, over the SURVIVORS. Selection
      for spread makes it larger than it would be over whole groups. Absent for post-hoc selection, NaN without spread.
    """
    metrics = {}
    for record in rollout.prune_records:
        prefix = f"prune/step_{record.step_index}"
        num_groups = len(record.prompt_index.unique())
        metrics[f"{prefix}/reward_std_before"] = group_std(record.rewards, record.prompt_index).item()
        metrics[f"{prefix}/reward_std_after"] = group_std(
            record.rewards[record.kept], record.prompt_index[record.kept]
        ).item()
        metrics[f"{prefix}/reward_std_random"] = random_subset_std(
            record.rewards, record.prompt_index, int(record.kept.sum()) // num_groups
        ).item()
        if record.step_index < rollout.schedule.num_steps:
            correlation = rank_correlation(_rewards_of(record, rollout), rollout.rewards.view(num_groups, -1))
            metrics[f"{prefix}/rank_corr"] = correlation.nanmean().item()
    return metrics


def reward_metrics(rollout: Rollout, names: Sequence[str]) -> dict[str, float]:
    """
    What a rollout's survivors earned.

    * `reward`, `rewards/{name}/mean`: mean over rows with a reward.
    * `reward_std`: mean within-group spread.
    * `frac_reward_zero_std`: share of the groups in the update whose rewards are all equal.
    * `frac_groups_left_out`: share of groups that have too few rewards for an update.

    Args:
        rollout ([`~types.Rollout`]): with advantages.
        names (`Sequence[str]` of length `F`): of the reward functions.
    """
    num_groups = len(rollout.prompt_index.unique())
    left_out = rollout.advantages.view(num_groups, -1).isnan().all(1)
    rewards = rollout.rewards.view(num_groups, -1)[~left_out]
    spread = rewards.nan_to_num(-math.inf).amax(1) - rewards.nan_to_num(math.inf).amin(1)
    metrics = {
        "reward": rollout.rewards.nanmean().item(),
        "reward_std": group_std(rollout.rewards, rollout.prompt_index).item(),
        "frac_reward_zero_std": (spread == 0).float().mean().item(),
        "frac_groups_left_out": left_out.float().mean().item(),
    }
    for name, values in zip(names, rollout.rewards_per_func.unbind(1)):
        metrics[f"rewards/{name}/mean"] = values.nanmean().item()
    return metrics


def reward_counts(rollout: Rollout, names: Sequence[str]) -> dict[str, int]:
    """
    How many rows or groups each of [`reward_metrics`] is a mean over: what it weighs beside that of another process.

    Args:
        rollout ([`~types.Rollout`]): with advantages.
        names (`Sequence[str]` of length `F`): of the reward functions.
    """
    num_groups = len(rollout.prompt_index.unique())
    scored = ~rollout.rewards.isnan()
    left_out = int(rollout.advantages.view(num_groups, -1).isnan().all(1).sum())
    counts = {
        "reward": int(scored.sum()),
        "reward_std": len(rollout.prompt_index[scored].unique()),
        "frac_reward_zero_std": num_groups - left_out,
        "frac_groups_left_out": num_groups,
    }
    for name, values in zip(names, rollout.rewards_per_func.unbind(1)):
        counts[f"rewards/{name}/mean"] = int((~values.isnan()).sum())
    return counts


def checkpoint_means(log_history: Sequence[Mapping[str, Any]], group: str) -> dict[int, dict[str, float]]:
    """
    Means over a run of every logged `{group}/step_{i}/{name}`, as `{i: {name: mean}}` with the steps in order. NaN is left
    out.

    Args:
        log_history (`Sequence[Mapping]`): `trainer.state.log_history`.
        group (`str`): `"prune"` or `"audit"`.
    """
    logged: dict[int, dict[str, list[float]]] = {}
    for entry in log_history:
        for key, value in entry.items():
            match = re.fullmatch(rf"{group}/step_(\d+)/(\w+)", key)
            if match and not math.isnan(value):
                logged.setdefault(int(match[1]), {}).setdefault(match[2], []).append(value)
    return {step: {n: math.fsum(v) / len(v) for n, v in names.items()} for step, names in sorted(logged.items())}


class MetricsBuffer:
    """Numbers gathered between two logs. Tensors are read many at a time, for the host waits for the device then."""

    #: Some kilobytes on the host, half a megabyte on a CUDA device, where the smallest allocation is 512 bytes.
    most_unread = 1000

    def __init__(self):
        # With what each weighs; `None` where it is not said.
        self._values: dict[str, list[tuple[float, float | None]]] = defaultdict(list)
        self._unread: list[tuple[str, torch.Tensor]] = []

    def __bool__(self) -> bool:
        return bool(self._values or self._unread)

    def add(self, name: str, value: torch.Tensor | float, weight: float | None = None) -> None:
        """
        One more value; NaN stands for nothing to tell.

        Args:
            name (`str`): of the metric.
            value (`torch.Tensor` or `float`): a number, or a 0-dimensional tensor without gradient.
            weight (`float`, *optional*): of a number in means over values and processes; when unset, 1 in means over values
                and in those over processes what [`~MetricsBuffer.drain`] is told.
        """
        if not isinstance(value, torch.Tensor):
            self._values[name].append((value, weight))
            return
        self._unread.append((name, value))
        if len(self._unread) >= self.most_unread:
            self._read()

    def _read(self) -> None:
        names, tensors = [name for name, _ in self._unread], [tensor for _, tensor in self._unread]
        self._unread.clear()
        for kind in {(tensor.device, tensor.dtype) for tensor in tensors}:
            chosen = [i for i, tensor in enumerate(tensors) if (tensor.device, tensor.dtype) == kind]
            for i, value in zip(chosen, torch.stack([tensors[i] for i in chosen]).tolist()):
                self._values[names[i]].append((value, None))

    def clear(self) -> None:
        """Forgets everything."""
        self._values.clear()
        self._unread.clear()

    def state_dict(self) -> dict[str, list[tuple[float, float | None]]]:
        """What was gathered since the last log, for a checkpoint that falls between two."""
        self._read()
        return {name: list(values) for name, values in self._values.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[Any]]) -> None:
        """Goes on from [`~MetricsBuffer.state_dict`], or what an older version made of it, which had no weights."""
        self._unread.clear()
        self._values = defaultdict(list)
        for name, values in state.items():
            self._values[name] = [tuple(v) if isinstance(v, (list, tuple)) else (v, None) for v in values]

    def drain(self, accelerator: Any, weight: float = 1) -> dict[str, float]:
        """
        A maximum of what ends in `/max`, a minimum of what ends in `/min`, the mean of everything else, over all processes;
        without what is NaN. What begins with `reward_errors/` is added up over processes. Forgets them.

        Args:
            accelerator ([`~accelerate.Accelerator`]): gathers; all processes must have added the same names.
            weight (`float`, *optional*, defaults to 1): of this process in means, e.g. how many trajectories it has; of values
                that were added with a weight, theirs is taken instead.
        """
        self._read()
        names = sorted(self._values)
        told = [_reduce(name, *zip(*self._values[name])) for name in names]
        if accelerator.num_processes > 1:
            weights = [_weight(self._values[name], weight) for name in names]
            row = torch.tensor([[*told, *weights]], device=accelerator.device)
            columns = [column.tolist() for column in accelerator.gather(row).cpu().unbind(1)]
            told = [
                _reduce(name, values, weights, over_processes=True)
                for name, values, weights in zip(names, columns, columns[len(names) :])
            ]
        self._values.clear()
        return {name: value for name, value in zip(names, told) if not math.isnan(value)}


def _weight(values: Sequence[tuple[float, float | None]], otherwise: float) -> float:
    weights = [weight for value, weight in values if not math.isnan(value)]
    return math.fsum(weights) if weights and None not in weights else otherwise


def _reduce(
    name: str, values: Sequence[float], weights: Sequence[float | None], over_processes: bool = False
) -> float:
    known = [
        (value, 1 if weight is None else weight) for value, weight in zip(values, weights) if not math.isnan(value)
    ]
    if not known:
        return math.nan
    if over_processes and name.startswith("reward_errors/"):
        return math.fsum(value for value, _ in known)
    if name.endswith("/max"):
        return max(value for value, _ in known)
    if name.endswith("/min"):
        return min(value for value, _ in known)
    return math.fsum(value * weight for value, weight in known) / math.fsum(weight for _, weight in known)


def _rewards_of(record: PruneRecord, rollout: Rollout) -> torch.Tensor:
    """The record's rewards of the rows that finished, `(P, K)`."""
    stride = int(record.member.max()) + 1
    finished = torch.isin(record.prompt_index * stride + record.member, rollout.prompt_index * stride + rollout.member)
    return record.rewards[finished].view(len(record.prompt_index.unique()), -1)
