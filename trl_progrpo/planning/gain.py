# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
r"""
What a pruning schedule can gain.

The update of one group of `K` trajectories is `g = (1/K) sum_i (r_i - mean r) s_i`, with `s_i` the gradient of the
log-probability of trajectory `i`. Look at one direction of weight space, and take reward and `s` there as jointly normal: `s`
with variance `v`, and `c` its slope on the reward, so that `s_i = c (r_i - E r) + rest` with a rest that does not
depend on rewards. A selection that looks at rewards alone leaves the rest as it was. Then, with `V` the population
variance of the rewards that are trained on,

* the mean of `g` is `c V`: the direction in which rewards rise, times the variance;
* the variance of `g` is `v V / K`, as long as the slope explains little of `s` (in a space of many dimensions it does).

Signal squared over noise squared is `(c^2 / v) K V`. So the information in a group is its **sum of squared deviations**
`K V = sum_i (r_i - mean r)^2`. Scaling advantages changes mean and noise alike and drops out; the information of several
groups adds up. A method is as good as its sum of squares per unit of cost, and that is what this package
compares, in units of the variance of one trajectory's reward.

Three things follow. Plain GRPO has `K V = K - 1` on average. Leaving trajectories out of a group that is paid for never
adds information: `K V` falls. Selection pays because what is left out need not be trained on, or need not be finished.

How large `K V` is after Optimal Variance Filtering has no formula; [`expected_gain`] draws normal rewards, and previews of a
given correlation with them, and prunes them. Real rewards are not normal and previews differ from step to step:
`trl-progrpo plan --calibrate` measures them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..cost import PruneSchedule
from ..pruning import ovf


@dataclass(frozen=True)
class Gain:
    """
    What the trained trajectories of a group are worth.

    Attributes:
        spread (`float`): mean over groups of the population standard deviation of their final rewards.
        signal (`float`): mean over groups of their sum of squared deviations from the group's mean.
    """

    spread: float
    signal: float

    @classmethod
    def of(cls, rewards: torch.Tensor) -> Gain:
        """Of the final rewards `(P, K)` of `P` groups."""
        rewards = rewards.double()
        variance = rewards.var(1, correction=0)
        return cls(variance.sqrt().mean().item(), (variance * rewards.shape[1]).mean().item())


def survivors(
    schedule: PruneSchedule,
    previews: Mapping[int, torch.Tensor],
    final: torch.Tensor,
    rule: Callable[..., torch.Tensor] = ovf,
) -> torch.Tensor:
    """
    Who would be trained on, of groups whose members have all been previewed and finished: indices `(P, K)`.

    Args:
        schedule ([`PruneSchedule`]): how groups would have been pruned.
        previews (`Mapping[int, torch.Tensor]`): for every prune step, the preview rewards `(P, num_expansions)`.
        final (`torch.Tensor` of shape `(P, num_expansions)`): the final rewards.
        rule (`Callable`, *optional*): the pruning rule; OVF when unset.
    """
    alive = torch.arange(schedule.num_expansions).expand(len(final), -1)
    for step, size in zip(schedule.prune_steps, schedule.prune_sizes):
        alive = alive.gather(1, rule(previews[step].gather(1, alive), size))
    if schedule.selects_on_finished:
        alive = alive.gather(1, rule(final.gather(1, alive), schedule.num_generations))
    return alive


@functools.lru_cache(256)
def expected_gain(schedule: PruneSchedule, correlation: float = 1.0, num_groups: int = 4000) -> Gain:
    """
    The gain of a schedule with OVF if final rewards were standard normal; the spread of one trajectory's reward is 1.

    Args:
        schedule ([`PruneSchedule`]): of every group. Steps do not matter, sizes do.
        correlation (`float`, *optional*, defaults to 1.0): of preview and final reward, the same previews at all
            checkpoints; 1 is an upper bound, 0 is random pruning.
        num_groups (`int`, *optional*, defaults to 4000): groups drawn, always the same ones. With 12 survivors of 48 the
            standard error of the signal is about half a percent. Plain GRPO needs none: its gain has a formula.
    """
    size = schedule.num_generations
    if len(schedule.sizes) == 1:
        mean_norm = math.sqrt(2) * math.exp(math.lgamma(size / 2) - math.lgamma((size - 1) / 2))
        return Gain(mean_norm / math.sqrt(size), size - 1.0)
    draw = torch.Generator().manual_seed(0)
    # Rows are groups, so that fewer groups are the first ones of more.
    final, other = torch.randn(num_groups, 2, schedule.num_expansions, generator=draw).unbind(1)
    preview = correlation * final + (1 - correlation**2) ** 0.5 * other
    kept = survivors(schedule, dict.fromkeys(schedule.prune_steps, preview), final)
    return Gain.of(final.gather(1, kept))
