# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""How near the rewards of a group lie to their mean, and what a selection changes about it; for `paper.py`."""

from __future__ import annotations

import math
from typing import Any

import torch
from paper_settings import STEPS, Setting, name_of

from trl_progrpo.families import family_class, load_preview_decoder
from trl_progrpo.planning import Gain, RecordedGroups, survivors
from trl_progrpo.policies import DDIM, FlowSDE
from trl_progrpo.pruning import ovf, random
from trl_progrpo.recording import record_groups
from trl_progrpo.rewards import RewardRunner
from trl_progrpo.sampler import ExpandPruneSampler
from trl_progrpo.tiny import load_shapes


DISTANCES = (0.25, 0.5, 1.0)
"""From the mean of a set, in standard deviations of the whole group."""


def record(setting: Setting, num_groups: int, seed: int) -> RecordedGroups:
    """Unpruned groups of the untrained model with previews at every step, each of another training prompt."""
    pipeline, pro, options = setting.load(), setting.pro(), setting.training
    family, runner = family_class(pipeline)(pipeline), RewardRunner("shapes")
    runner.load()
    policy = DDIM(eta=options["eta"]) if "eta" in options else FlowSDE(noise_level=options["noise_level"])
    sampler = ExpandPruneSampler(
        family,
        policy,
        runner,
        reward_weights=runner.weights,
        num_inference_steps=STEPS,
        num_generations=pro.num_expansions,
        rollout_batch_size=192,
        preview_decoder=load_preview_decoder("shapes", family.device),
        seed=seed,
    )
    family.denoiser.eval()
    return record_groups(
        sampler,
        family.denoiser,
        load_shapes("train").shuffle(seed=seed)["prompt"][:num_groups],
        level=policy.eta if isinstance(policy, DDIM) else policy.noise_level,
        num_expansions=pro.num_expansions,
        noise_steps=policy.stochastic_steps(family.make_schedule(STEPS))[: setting.trained_steps],
    )


def compare(
    setting: Setting, groups: RecordedGroups, seed: int
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """
    What a whole group, a uniform subset and what OVF keeps of it are like.

    Returns:
        Per set `set` (its name) and, as pairs of the mean over groups and its standard error, `near` (share of members within
        each of `DISTANCES`), `spread` and `signal` (see [`~planning.Gain`]); and per set the deviations of all members from
        its mean, in standard deviations of the whole group. Groups without spread have none.
    """
    final, pro = groups.final.double(), setting.pro()
    everyone = torch.arange(pro.num_expansions).expand(len(final), -1)
    kept = {
        f"whole group of {pro.num_expansions}": everyone,
        f"uniform subset of {setting.keep}": random(
            final, setting.keep, generator=torch.Generator().manual_seed(seed)
        ),
        f"OVF subset of {setting.keep}, by final rewards": ovf(final, setting.keep),
        f"OVF {name_of(pro)}, by previews": survivors(pro, groups.previews, final),
    }
    scale = final.std(1, correction=0, keepdim=True)
    rows, deviations = [], {}
    for name, members in kept.items():
        rewards = final.gather(1, members)
        found = ((rewards - rewards.mean(1, keepdim=True)) / scale)[scale[:, 0] > 0]
        deviations[name] = found.flatten()
        near = [(found.abs() <= distance).double().mean(1) for distance in DISTANCES]
        gains = [Gain.of(group[None]) for group in rewards]
        spread, signal = (torch.tensor([getattr(gain, key) for gain in gains]) for key in ("spread", "signal"))
        rows.append(
            {
                "set": name,
                "near": [over_groups(share) for share in near],
                "spread": over_groups(spread),
                "signal": over_groups(signal),
            }
        )
    return rows, deviations


def over_groups(values: torch.Tensor) -> tuple[float, float]:
    """Mean and standard error over groups; those without a value (NaN) are left out."""
    values = values[~values.isnan()]
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def normal_shares() -> list[float]:
    """`near` of a large group of normal rewards."""
    return [math.erf(distance / math.sqrt(2)) for distance in DISTANCES]
