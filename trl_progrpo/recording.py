# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Unpruned groups with previews at every step: what [`planning.propose`] chooses a schedule by."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from .planning import RecordedGroups
from .policies import Policy
from .pruning import none
from .sampler import ExpandPruneSampler
from .timing import PhaseTimer
from .types import Conditioning, Rollout


def sample_whole_groups(
    sampler: ExpandPruneSampler,
    denoiser: torch.nn.Module,
    prompts: Sequence[str],
    columns: Mapping[str, Sequence[Any]] | None = None,
    *,
    num_expansions: int,
    num_inference_steps: int | None = None,
    policy: Policy | None = None,
    conditioning: Conditioning | None = None,
    noise_steps: Sequence[int] | None = None,
    rollout_index: int = 0,
    first_slot: int = 0,
) -> Rollout:
    """
    A rollout that prunes nobody, with a preview of every trajectory after every step but the last. The sampler is left as it
    is.

    Args:
        sampler ([`ExpandPruneSampler`]): family, rewards, decoders, batch sizes and seed are its own.
        denoiser (`torch.nn.Module`): the network, in evaluation mode.
        prompts (`Sequence[str]` of length `P`): one group each.
        columns (`Mapping`, *optional*): further dataset columns, one entry per prompt.
        num_expansions (`int`): trajectories per prompt.
        num_inference_steps (`int`, *optional*): denoising steps; the sampler's when unset.
        policy ([`~policies.Policy`], *optional*): the sampler's when unset.
        conditioning ([`Conditioning`], *optional*): of the prompts, when already encoded.
        noise_steps (`Sequence[int]`, *optional*): steps that carry noise; all that may when unset.
        rollout_index (`int`, *optional*, defaults to 0): fixes the seeds.
        first_slot (`int`, *optional*, defaults to 0): slot of the first prompt, counted over all ranks.
    """
    whole = copy.copy(sampler)
    whole.num_inference_steps = num_inference_steps or sampler.num_inference_steps
    whole.policy = policy or sampler.policy
    whole.num_generations = num_expansions
    checkpoints = range(whole.num_inference_steps - 1)
    whole.set_schedule(num_expansions, checkpoints, [num_expansions] * len(checkpoints))
    whole.pruning_rule, whole.spread = none, None
    whole.on_preview = lambda images, record: None
    whole.timer, whole.saved, whole.num_waves = PhaseTimer(), PhaseTimer(), 1
    return whole.rollout(
        denoiser,
        prompts,
        columns,
        conditioning=conditioning,
        train_steps=noise_steps,
        rollout_index=rollout_index,
        first_slot=first_slot,
    )


def in_parts(
    prompts: Sequence[str], columns: Mapping[str, Sequence[Any]], size: int
) -> Iterator[tuple[int, Sequence[str], dict[str, Sequence[Any]]]]:
    """Position of the first prompt, prompts and columns of `size` groups at a time: as many are in memory together."""
    for start in range(0, len(prompts), size):
        part = slice(start, start + size)
        yield start, prompts[part], {name: values[part] for name, values in columns.items()}


def preview_rewards(rollout: Rollout) -> dict[int, torch.Tensor]:
    """Step -> rewards `(P, n)` of the previews of groups that [`sample_whole_groups`] sampled."""
    groups = len(rollout.conditioning)
    return {record.step_index: record.rewards.view(groups, -1) for record in rollout.prune_records}


def record_groups(
    sampler: ExpandPruneSampler,
    denoiser: torch.nn.Module,
    prompts: Sequence[str],
    *args: Any,
    level: float,
    **kwargs: Any,
) -> RecordedGroups:
    """
    Samples whole groups and scores the preview of every trajectory after every step but the last.

    Args:
        level (`float`): what the policy's noise is called in the result.
        kwargs: and all others, see [`sample_whole_groups`].
    """
    rollout = sample_whole_groups(sampler, denoiser, prompts, *args, **kwargs)
    return RecordedGroups(level, preview_rewards(rollout), rollout.rewards.view(len(prompts), -1))
