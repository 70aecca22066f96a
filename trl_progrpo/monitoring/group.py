# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""One group of a rollout with its pictures, kept to be looked at. Knows torch and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import interpolate

from ..types import PruneRecord, Rollout


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """
    What one pruning checkpoint saw of a group of `n` rows.

    Attributes:
        step_index (`int`): 0-based denoising step after which rows were dropped; `T` for selection among finished images.
        images (`torch.Tensor` of shape `(n, 3, h, w)`, uint8): previews, reduced to at most [`GroupWatch`]'s `max_side`.
        member (`torch.Tensor` of shape `(n,)`): slot of every row in the group.
        rewards (`torch.Tensor` of shape `(n,)`): what decided.
        kept (`torch.Tensor` of shape `(n,)`, bool): which rows went on.
    """

    step_index: int
    images: torch.Tensor
    member: torch.Tensor
    rewards: torch.Tensor
    kept: torch.Tensor


@dataclass(frozen=True, eq=False)
class WatchedGroup:
    """
    The first group of a rollout.

    Attributes:
        prompt (`str`): its prompt.
        global_step (`int`): optimiser steps done when it was sampled.
        num_inference_steps (`int`): denoising steps `T`.
        checkpoints (`tuple[Checkpoint, ...]`): in order; empty for plain GRPO.
        images (`torch.Tensor` of shape `(K, 3, h, w)`, uint8): finished images of the survivors.
        rewards (`torch.Tensor` of shape `(K,)`): of the survivors.
        advantages (`torch.Tensor` of shape `(K,)`): of the survivors.
    """

    prompt: str
    global_step: int
    num_inference_steps: int
    checkpoints: tuple[Checkpoint, ...]
    images: torch.Tensor
    rewards: torch.Tensor
    advantages: torch.Tensor


class GroupWatch:
    """
    Keeps the first group of the newest rollout: small pictures on the CPU, so that it costs next to nothing.

    An instance is the `on_preview` of an [`~sampler.ExpandPruneSampler`].

    Args:
        max_side (`int`, *optional*, defaults to 256): larger pictures are reduced to this many pixels.
    """

    def __init__(self, max_side: int = 256):
        self.max_side = max_side
        self.group: WatchedGroup | None = None
        self._checkpoints: list[Checkpoint] = []

    def __call__(self, images: torch.Tensor, record: PruneRecord) -> None:
        """Takes up the first group among the rows `(n, 3, height, width)` of a checkpoint, if it is there."""
        rows = (record.prompt_index == 0).cpu()
        if self._checkpoints and record.step_index < self._checkpoints[-1].step_index:
            # The rollout before was broken off.
            self._checkpoints = []
        if rows.any():
            self._checkpoints.append(
                Checkpoint(
                    record.step_index,
                    self._small(images[rows.to(images.device)]),
                    record.member[rows].cpu(),
                    record.rewards[rows].cpu(),
                    record.kept[rows].cpu(),
                )
            )

    def finish(self, prompt: str, rollout: Rollout, global_step: int) -> None:
        """Completes the group with its survivors; `prompt` is the rollout's first, and `rollout` has its advantages."""
        rows = rollout.prompt_index == 0
        self.group = WatchedGroup(
            prompt,
            global_step,
            rollout.schedule.num_steps,
            tuple(self._checkpoints),
            self._small(rollout.images[rows]),
            rollout.rewards[rows].cpu(),
            rollout.advantages[rows].cpu(),
        )
        self._checkpoints = []

    def _small(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        factor = self.max_side / max(height, width)
        images = images.float()
        if factor < 1 and len(images):
            images = interpolate(images, (max(1, round(height * factor)), max(1, round(width * factor))), mode="area")
        return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
