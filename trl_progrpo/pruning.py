# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Pruning rules: which members of every group survive a checkpoint.

A rule is a function `(rewards, k, *, generator=None) -> indices`:

* `rewards` (`torch.Tensor` of shape `(P, n)`): one row per group, any float or integer dtype, finite;
* `k` (`int`): how many survive, `1 <= k <= n`; the same in all groups, so all ranks run the same number of forwards;
* `generator` (`torch.Generator`, *optional*): the randomness of a rule that has any;
* returns the kept members (`torch.Tensor` of shape `(P, k)`, int64, on the device of `rewards`), ascending in each row.

All rules raise a `ValueError` for a `k` out of range and for rewards that are not finite. Among members of equal reward
the one with the lower index is kept. A new rule is one function under `@PRUNING_RULES.register(name)`, or an entry point
in the group `trl_progrpo.pruning_rules`.
"""

from __future__ import annotations

import torch

from .registry import Registry


PRUNING_RULES = Registry("pruning rule", "trl_progrpo.pruning_rules")


@PRUNING_RULES.register("ovf")
def ovf(rewards: torch.Tensor, k: int, *, generator: torch.Generator | None = None) -> torch.Tensor:
    """
    Optimal Variance Filtering of Pro-GRPO (arXiv 2512.15347): the `k` members whose rewards have the largest population
    variance.

    Exact: variance is convex in every single reward, so some optimum is the `b` smallest and the `k - b` largest for a
    `b` in `0..k`; one sort, then all `k + 1` splits are compared. (Half and half is often not the best.) Sums are taken
    in float64 around the group's median, so a large common offset costs no accuracy. Among splits of equal variance
    the one with the smallest `b`, i.e. with the most of the best members, wins; so a group without spread keeps its
    first `k` members, and `k = 1` keeps the best one.

    See the module's docstring for arguments, return value and errors; `generator` is not used.
    """
    values = _checked(rewards, k)
    ordered, order = values.sort(dim=1, stable=True)
    # The median is an element: on rewards with few digits (counts, scores) the difference is exact, and so are ties.
    centred = ordered - ordered[:, (ordered.shape[1] - 1) // 2, None]
    moments = torch.stack([centred, centred.square()])
    zero = moments.new_zeros(2, len(ordered), 1)
    smallest = torch.cat([zero, moments[..., :k].cumsum(-1)], dim=-1)
    largest = torch.cat([zero, moments.flip(-1)[..., :k].cumsum(-1)], dim=-1)
    total, squares = smallest + largest.flip(-1)
    # k^2 times the variance, in this form because it stays an integer when the rewards are integers.
    num_smallest = (k * squares - total.square()).argmax(dim=1)
    return _keep_ends(ordered, order, num_smallest, k).to(rewards.device)


@PRUNING_RULES.register("top_bottom")
def top_bottom(rewards: torch.Tensor, k: int, *, generator: torch.Generator | None = None) -> torch.Tensor:
    """
    The best half and the worst half: `k - k // 2` best and `k // 2` worst members; an odd `k` has one more of the best.

    See the module's docstring for arguments, return value and errors; `generator` is not used.
    """
    ordered, order = _checked(rewards, k).sort(dim=1, stable=True)
    return _keep_ends(ordered, order, torch.full((len(ordered),), k // 2), k).to(rewards.device)


@PRUNING_RULES.register("top_k")
def top_k(rewards: torch.Tensor, k: int, *, generator: torch.Generator | None = None) -> torch.Tensor:
    """
    The `k` best members.

    See the module's docstring for arguments, return value and errors; `generator` is not used.
    """
    ordered, order = _checked(rewards, k).sort(dim=1, stable=True)
    return _keep_ends(ordered, order, torch.zeros(len(ordered), dtype=torch.int64), k).to(rewards.device)


@PRUNING_RULES.register("random")
def random(rewards: torch.Tensor, k: int, *, generator: torch.Generator | None = None) -> torch.Tensor:
    """
    `k` members drawn uniformly without replacement, independently in every group: the baseline that any rule has to
    beat at equal compute.

    Without a `generator` the draw is from torch's global one. See the module's docstring for the rest.
    """
    values = _checked(rewards, k)
    device = "cpu" if generator is None else generator.device
    # float64: the 2^24 values of float32 would let equal draws favour low indices.
    draw = torch.rand(values.shape, generator=generator, device=device, dtype=torch.float64)
    return draw.argsort(dim=1, stable=True)[:, :k].sort(dim=1).values.to(rewards.device)


@PRUNING_RULES.register("none")
def none(rewards: torch.Tensor, k: int, *, generator: torch.Generator | None = None) -> torch.Tensor:
    """
    The first `k` members: no selection by reward. Members are exchangeable, so this equals never having started the
    others.

    See the module's docstring for arguments, return value and errors; `generator` is not used.
    """
    values = _checked(rewards, k)
    return torch.arange(k, device=rewards.device).repeat(len(values), 1)


def _checked(rewards: torch.Tensor, k: int) -> torch.Tensor:
    """`rewards` as float64 on the CPU (groups are tiny, and ties then fall the same way on every device), or an error."""
    if rewards.ndim != 2:
        raise ValueError(f"`rewards` has shape {tuple(rewards.shape)}; give one row per group, `(P, n)`.")
    n = rewards.shape[1]
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n:
        raise ValueError(f"`k` is {k!r}; a group of {n} can keep an integer number of 1 to {n} members.")
    values = rewards.detach().to("cpu", torch.float64)
    bad = ~values.isfinite()
    if bad.any():
        row, member = bad.nonzero()[0].tolist()
        raise ValueError(
            f"`rewards[{row}, {member}]` is {values[row, member].item()} and {int(bad.sum())} in all are not finite; "
            "a pruning rule cannot rank them: repair the reward function or give such members a finite reward."
        )
    return values


def _keep_ends(ordered: torch.Tensor, order: torch.Tensor, num_smallest: torch.Tensor, k: int) -> torch.Tensor:
    """
    The `num_smallest` `(P,)` smallest and `k - num_smallest` largest members `(P, k)` of rows sorted by `order`, ascending.

    Both ends may take from one run of equal rewards; which positions they take there is an accident of the sort, so
    every run keeps as many as were taken from it, but its lowest indices.
    """
    n = ordered.shape[1]
    position = torch.arange(n).expand_as(order)
    taken = (position < num_smallest[:, None]) | (position >= n - k + num_smallest[:, None])
    starts = torch.ones_like(taken)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    run = starts.cumsum(1) - 1
    run_start = torch.where(starts, position, 0).cummax(1).values
    quota = torch.zeros_like(order).scatter_add(1, run, taken.long()).gather(1, run)
    kept = torch.zeros_like(taken).scatter(1, order, position - run_start < quota)
    return kept.nonzero()[:, 1].view(-1, k)
