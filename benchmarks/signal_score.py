# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What a schedule and a weighting would have learnt from a pool of recorded groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from signal_pool import Pool

from trl_progrpo.cost import PruneSchedule, UnitCost, WorkCount
from trl_progrpo.losses import step_weights
from trl_progrpo.pruning import PRUNING_RULES


SUBSETS = 8
"""Random subsets of every group that a method with fewer expansions is tried on."""

RESAMPLES = 500


@dataclass(frozen=True)
class Method:
    """
    A way to make an update of a group.

    Args:
        name (`str`): for the table.
        expansions (`int`): trajectories started.
        generations (`int`, *optional*): trained on; all when unset.
        prune (`tuple[tuple[int, int], ...]`, *optional*): steps and the sizes after them.
        rule (`str`, *optional*, defaults to `"ovf"`): the pruning rule.
        power (`float`, *optional*): of the step's standard deviation in its weight.
        trained (`tuple[int, ...]`, *optional*): which of the noisy steps are trained; all when unset.
        scale (`str`, *optional*, defaults to `"group"`): `"none"` does not divide advantages by the group's deviation.
        mean_of_all (`bool`, *optional*, defaults to `False`): advantages from the mean of the whole group, not the survivors'.
        preview_baseline (`bool`, *optional*, defaults to `False`): at every step the part of the reward that its preview
            foretells is taken off the advantage. The preview is made before the step's noise, so the gradient stays unbiased.
    """

    name: str
    expansions: int
    generations: int | None = None
    prune: tuple[tuple[int, int], ...] = ()
    rule: str = "ovf"
    power: float | None = None
    trained: tuple[int, ...] | None = None
    scale: str = "group"
    mean_of_all: bool = False
    preview_baseline: bool = False

    @property
    def kept(self) -> int:
        return self.generations or self.expansions


@dataclass(frozen=True, eq=False)
class Score:
    """
    Attributes:
        value (`float`): signal^2 / (noise x cost).
        samples (`torch.Tensor`): the same of bootstrap samples of prompts, the same samples for every method.
        cost (`float`): seconds of a prompt's rollout and update.
    """

    value: float
    samples: torch.Tensor
    cost: float


def score(pool: Pool, method: Method, power: float = 2.0) -> Score:
    """
    Judges a method on a pool.

    Args:
        pool ([`Pool`]): unpruned groups of at least `method.expansions`.
        method ([`Method`]): what would have been done with them.
        power (`float`, *optional*, defaults to 2.0): of the step weights, if the method does not say.
    """
    prompts, members = pool.rewards.shape
    draw = torch.Generator().manual_seed(0)
    group = torch.arange(prompts).repeat_interleave(SUBSETS)
    order = torch.rand(len(group), members, generator=draw).argsort(1)[:, : method.expansions]
    rewards, alive = pool.rewards[group].gather(1, order), order
    rule = PRUNING_RULES.get(method.rule)
    for step, size in method.prune:
        alive = alive.gather(1, rule(pool.previews[step][group].gather(1, alive), size, generator=draw))
    if alive.shape[1] > method.kept:
        alive = alive.gather(1, rule(pool.rewards[group].gather(1, alive), method.kept, generator=draw))

    kept = pool.rewards[group].gather(1, alive)
    scale = kept.std(1, correction=0, keepdim=True) + 1e-4 if method.scale == "group" else 1.0
    centre = (rewards if method.mean_of_all else kept).mean(1, keepdim=True)
    trained = list(method.trained if method.trained is not None else range(pool.slopes.shape[2]))
    weights = step_weights(pool.stds[trained], power if method.power is None else method.power)
    signal, noise = torch.zeros(len(group)), torch.zeros(len(group))
    for step, weight in zip(trained, weights.tolist()):
        advantages = kept - centre
        if method.preview_baseline:
            advantages = _without_foretold(advantages, pool.previews[step][group].gather(1, alive))
        advantages = advantages / scale
        slopes = pool.slopes[:, :, step][group].gather(1, alive)
        signal += weight * (advantages * slopes).sum(1)
        noise += weight**2 * advantages.square().sum(1) * pool.norms[step]
    cost = _seconds(pool, method, len(trained))
    # A method that never moves has neither, and is worth nothing.
    signal, noise = signal.view(prompts, SUBSETS).mean(1), noise.view(prompts, SUBSETS).mean(1).clamp(min=1e-12)
    picks = torch.randint(0, prompts, (RESAMPLES, prompts), generator=torch.Generator().manual_seed(0))
    samples = signal[picks].mean(1).square() / noise[picks].mean(1) / cost
    # With its sign: a method may lead the wrong way.
    value = signal.mean() * signal.mean().abs() / noise.mean() / cost
    return Score(value.item(), samples, cost)


def _without_foretold(advantages: torch.Tensor, previews: torch.Tensor) -> torch.Tensor:
    """Advantages less their regression on previews, with one slope for all groups."""
    previews = previews - previews.mean(1, keepdim=True)
    slope = (previews * advantages).sum() / previews.square().sum().clamp(min=1e-12)
    return advantages - slope * previews


def _seconds(pool: Pool, method: Method, trained_steps: int) -> float:
    steps, sizes = tuple(s for s, _ in method.prune), tuple(k for _, k in method.prune)
    schedule = PruneSchedule(int(pool.steps), method.kept, method.expansions, steps, sizes)
    unit = UnitCost(*pool.unit.tolist())
    total = WorkCount.of(schedule, trained_steps=trained_steps).cost(unit).total
    # Of the first step nothing is foretold yet.
    extra = (
        method.kept * (trained_steps - 1) * (unit.preview + unit.preview_reward) if method.preview_baseline else 0.0
    )
    return total + extra
