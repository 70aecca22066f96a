# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
Ideas that a run of the arena can switch on by name, `switch: NAME` among a method's settings, and that the package does not
have: what they gain is in `docs/benchmarks/log.md`. Each is a trainer with one thing changed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from latent_head import fit_head, head_features, last_hidden_states
from where_decided import Families, Pairs

from trl_progrpo import ProGRPOTrainer, Rollout
from trl_progrpo.advantages import group_advantages
from trl_progrpo.pruning import ovf
from trl_progrpo.sampler import ExpandPruneSampler
from trl_progrpo.seeds import INITIAL_NOISE


class Antithetic(ProGRPOTrainer):
    """Members 2j and 2j + 1 have opposite noise, at the start and in every step."""

    _sampler_class = Pairs


class _SharedStartSampler(Families):
    siblings = sys.maxsize  # all of a group
    shared_until = INITIAL_NOISE


class SharedStart(ProGRPOTrainer):
    """All members of a group start from the same latents."""

    _sampler_class = _SharedStartSampler


class _UnevenSampler(ExpandPruneSampler):
    def rollout(self, *args, **kwargs) -> Rollout:
        # Metrics of pruning want groups of one size, whose members are those that were started.
        return super().rollout(*args, **kwargs).replace(prune_records=())


class _BranchingSampler(_UnevenSampler):
    def _go_on(self, rows, known, stay):
        rows = super()._go_on(rows, known, stay)
        twice = torch.arange(len(rows.member)).repeat_interleave(2)
        # A member's number is its noise from here on: the copy has another one, that nobody has had.
        copy = torch.arange(len(twice)) % 2
        rows = rows.select(twice)
        return replace(rows, member=rows.member + copy * self.num_expansions)


class Branching(ProGRPOTrainer):
    """Whoever survives the checkpoint goes on twice, with other noise from there; siblings share their path up to it."""

    _sampler_class = _BranchingSampler


class _AdaptiveSampler(_UnevenSampler):
    def _prune(self, given, known, size, step_index):
        goes_on, record = super()._prune(given, known, size, step_index)
        if step_index < self.num_inference_steps:
            return goes_on, record
        alive = (~known.dropped).nonzero().flatten()
        groups = known.rewards[alive].cpu().view(len(known.prompt_index.unique()), -1)
        kept = torch.zeros_like(groups, dtype=torch.bool)
        for rewards, number, mask in zip(groups, shares(groups.std(1), size, groups.shape[1]), kept):
            mask[ovf(rewards[None], number)[0]] = True
        goes_on = torch.zeros_like(goes_on)
        goes_on[alive] = kept.flatten()
        return goes_on, replace(record, kept=kept.flatten())


def shares(spread: torch.Tensor, size: int, most: int, fewest: int = 2) -> list[int]:
    """Numbers between `fewest` and `most`, in proportion to the spread `(P,)` of each group and `P * size` in all."""
    wanted = (spread / spread.mean() * size).tolist()
    numbers = [min(max(round(number), fewest), most) for number in wanted]
    while (over := sum(numbers) - len(numbers) * size) != 0:
        step = 1 if over > 0 else -1
        # Whoever is furthest on the wrong side of what it should have, and can still move.
        free = [i for i, number in enumerate(numbers) if fewest <= number - step <= most]
        furthest = max(free, key=lambda i: step * (numbers[i] - wanted[i]))
        numbers[furthest] -= step
    return numbers


class Adaptive(ProGRPOTrainer):
    """The last selection keeps more of the groups with more spread, and as many in all."""

    _sampler_class = _AdaptiveSampler


class WholeGroupAdvantages(ProGRPOTrainer):
    """Mean and deviation of a group are those of all that were started, with the preview's reward for those that were pruned."""

    def _advantages(self, rollout: Rollout) -> torch.Tensor:
        *earlier, last = rollout.prune_records
        if last.step_index < self.sampler.num_inference_steps:
            raise ValueError("this switch needs a last selection on finished images.")
        dropped = [(record.prompt_index[~record.kept], record.rewards[~record.kept]) for record in earlier]
        prompt_index = torch.cat([last.prompt_index, *(prompts for prompts, _ in dropped)])
        rewards = torch.cat([last.rewards, *(rewards for _, rewards in dropped)])
        return group_advantages(rewards, prompt_index)[: len(last.rewards)][last.kept]


class _HeadSampler(ExpandPruneSampler):
    """Prunes by what a network says of the denoiser's hidden states at the checkpoint, in place of previews."""

    lessons: list[tuple[torch.Tensor, torch.Tensor]]
    """Features `(B, f)` and rewards, less the mean of their group `(B,)`, of the finished rows of each rollout."""

    def rollout(self, denoiser, *args, **kwargs) -> Rollout:
        if not self.prune_at:
            return super().rollout(denoiser, *args, **kwargs)
        self.lessons = getattr(self, "lessons", [])[-4:]
        with torch.random.fork_rng():
            self.guess = fit_head(*map(torch.cat, zip(*self.lessons)), seed=0) if self.lessons else None
        self.preview_scorer = self._guess
        rollout = super().rollout(denoiser, *args, **kwargs)
        last = rollout.prune_records[-1]
        rewards = last.rewards.view(len(rollout.conditioning), -1)
        self.lessons.append((self.features, (rewards - rewards.mean(1, keepdim=True)).flatten()))
        return rollout.replace(cost=replace(rollout.cost, preview_decodes=0))

    def _step(self, given, rows, i, policy):
        if i not in self.prune_at:
            return super()._step(given, rows, i, policy)
        with last_hidden_states(given.denoiser) as found:
            predicted = super()._step(given, rows, i, policy)
        self.features = head_features(torch.cat(found), given.conditioning.rows(rows.prompt_index))
        return predicted

    def _decode(self, latents, decode, phase, calls):
        # Nothing is decoded: the scorer is given what it looks at.
        return self.features if phase == "preview" else super()._decode(latents, decode, phase, calls)

    def _guess(self, prompts: Sequence[str], features: torch.Tensor, columns, preview: bool) -> torch.Tensor:
        # Before the first lesson it knows nothing, and pruning is random.
        guess = self.guess or (lambda features: torch.randn(len(features), generator=torch.Generator().manual_seed(0)))
        return guess(features)[:, None]

    def _show(self, images, known, goes_on, step_index):
        if step_index == self.num_inference_steps:
            super()._show(images, known, goes_on, step_index)

    def _go_on(self, rows, known, stay):
        self.features = self.features[stay]
        return super()._go_on(rows, known, stay)


class _SmallPreviewSampler(ExpandPruneSampler):
    def _preview(self, latents):
        small = super()._preview(latents)
        return torch.nn.functional.interpolate(small, scale_factor=self.preview_downscale, mode="bilinear")


class SmallPreviews(ProGRPOTrainer):
    """Previews that `preview_downscale` makes small are made large again, for a reward that wants one size."""

    _sampler_class = _SmallPreviewSampler


class LatentHead(ProGRPOTrainer):
    """A latent reward head, taught on the finished images of the last four rollouts, in place of previews; one checkpoint."""

    _sampler_class = _HeadSampler


SWITCHES = {
    "antithetic": Antithetic,
    "shared_start": SharedStart,
    "branching": Branching,
    "adaptive": Adaptive,
    "whole_group_advantages": WholeGroupAdvantages,
    "small_previews": SmallPreviews,
    "latent_head": LatentHead,
}
