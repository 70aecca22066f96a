# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The denoising loop: expand, step, preview, prune, finish, score. The only one in the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .advantages import weighted_rewards
from .families.base import Family
from .policies import Policy
from .pruning import ovf
from .seeds import INITIAL_NOISE, derive_seed, row_noise
from .timing import PhaseTimer
from .types import Conditioning, PruneRecord, Rollout, SamplingCost


Scorer = Callable[..., torch.Tensor]
"""`scorer(prompts, images (B, 3, H, W), columns, preview=bool) -> rewards (B, F)`; see `rewards.RewardRunner`."""


@dataclass
class _Rows:
    """The trajectories alive: one row each, in the order (prompt, member)."""

    prompt_index: torch.Tensor
    member: torch.Tensor
    latents: torch.Tensor
    path: list[torch.Tensor]
    log_probs: list[torch.Tensor]

    def select(self, rows: torch.Tensor) -> _Rows:
        return _Rows(
            self.prompt_index[rows],
            self.member[rows],
            self.latents[rows],
            [latents[rows] for latents in self.path],
            [log_probs[rows] for log_probs in self.log_probs],
        )


class ExpandPruneSampler:
    """
    Starts `num_expansions` trajectories per prompt, prunes them at checkpoints by the reward of a one-step preview, and
    returns `num_generations` finished ones (Pro-GRPO, arXiv 2512.15347, algorithm 1).

    A checkpoint `i` lies after the 0-indexed step `i`: the step is taken, the clean sample predicted by that step's own
    network output is decoded and scored (no extra network call), and the rows that the pruning rule drops are removed
    at once, so later steps do not pay for them. If more than `num_generations` rows reach the end, a last selection on
    the true rewards follows; with no `prune_steps` that is post-hoc selection.

    Rows of all prompts share full network batches. The noise of a row belongs to (run, rollout, prompt slot, member,
    step), so a trajectory does not depend on which others are alive, beyond the low-order bits that a network's batch
    size may change.

    Args:
        family ([`~families.base.Family`]): answers for the pipeline.
        policy ([`~policies.Policy`]): turns network outputs into transitions.
        scorer (`Callable`): scores images, see [`~rewards.RewardRunner`].
        reward_weights (`torch.Tensor` of shape `(F,)`): weights of the scorer's columns.
        num_inference_steps (`int`): denoising steps `T`.
        num_generations (`int`): survivors per prompt, `K`.
        num_expansions (`int`, *optional*): trajectories started per prompt, `G_max`; `num_generations` when unset.
        prune_steps (`Sequence[int]`, *optional*): 0-based steps after which groups are pruned, increasing.
        prune_sizes (`Sequence[int]`, *optional*): group size after each of them.
        pruning_rule (`Callable`, *optional*): `(rewards (P, n), k, generator=...) -> kept indices (P, k)`; OVF when unset.
        rollout_batch_size (`int`, *optional*): rows per network call; all at once when unset.
        decode_batch_size (`int`, *optional*): images per decoder call; `rollout_batch_size` when unset.
        preview_scorer (`Callable`, *optional*): scores previews; `scorer` when unset.
        preview_reward_weights (`torch.Tensor`, *optional*): weights of its columns; `reward_weights` when unset.
        preview_decoder (`torch.nn.Module`, *optional*): an [`~diffusers.AutoencoderTiny`]; the pipeline's VAE when unset.
        seed (`int`, *optional*, defaults to 0): the run's seed.
        storage_dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): of stored latents; log-probabilities are
            taken of the rounded latents.
        on_progress (`Callable[[str, int, int], None]`, *optional*): told `(phase, done, total)` where phase is
            `"denoise"`, `"preview"`, `"decode"` or `"reward"`.

    Attributes:
        timer ([`~timing.PhaseTimer`]): seconds spent per phase since it was last drained.
    """

    def __init__(
        self,
        family: Family,
        policy: Policy,
        scorer: Scorer,
        *,
        reward_weights: torch.Tensor,
        num_inference_steps: int,
        num_generations: int,
        num_expansions: int | None = None,
        prune_steps: Sequence[int] | None = None,
        prune_sizes: Sequence[int] | None = None,
        pruning_rule: Callable[..., torch.Tensor] = ovf,
        rollout_batch_size: int | None = None,
        decode_batch_size: int | None = None,
        preview_scorer: Scorer | None = None,
        preview_reward_weights: torch.Tensor | None = None,
        preview_decoder: torch.nn.Module | None = None,
        seed: int = 0,
        storage_dtype: torch.dtype = torch.float32,
        on_progress: Callable[[str, int, int], None] | None = None,
    ):
        self.family = family
        self.policy = policy
        self.scorer = scorer
        self.reward_weights = reward_weights
        self.num_inference_steps = num_inference_steps
        self.num_generations = num_generations
        self.num_expansions = num_expansions or num_generations
        self.prune_at = dict(zip(prune_steps or (), prune_sizes or ()))
        self.pruning_rule = pruning_rule
        self.rollout_batch_size = rollout_batch_size
        self.decode_batch_size = decode_batch_size or rollout_batch_size
        self.preview_scorer = preview_scorer or scorer
        self.preview_reward_weights = reward_weights if preview_reward_weights is None else preview_reward_weights
        self.preview_decoder = preview_decoder
        self.seed = seed
        self.storage_dtype = storage_dtype
        self.on_progress = on_progress or (lambda phase, done, total: None)
        self.timer = PhaseTimer()

    @torch.no_grad()
    def rollout(
        self,
        denoiser: torch.nn.Module,
        prompts: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        *,
        conditioning: Conditioning | None = None,
        rollout_index: int = 0,
        first_slot: int = 0,
        train_steps: Sequence[int] | None = None,
    ) -> Rollout:
        """
        Samples one group per prompt and returns the survivors, ordered by prompt and member.

        Args:
            denoiser (`torch.nn.Module`): the network, in evaluation mode if it has dropout.
            prompts (`Sequence[str]` of length `P`): one group each; repeated prompts are separate groups.
            columns (`Mapping[str, Sequence]`, *optional*): further dataset columns, one entry per PROMPT.
            conditioning ([`Conditioning`], *optional*): of the prompts, when already encoded.
            rollout_index (`int`, *optional*, defaults to 0): which rollout of the run this is; fixes the seeds.
            first_slot (`int`, *optional*, defaults to 0): slot of the first prompt, counted over all ranks.
            train_steps (`Sequence[int]`, *optional*): consecutive steps that carry noise and are stored; all stochastic
                steps of the policy when unset. Steps outside run the noise-free policy.
        """
        family, total_steps = self.family, self.num_inference_steps
        schedule = family.make_schedule(total_steps)
        if conditioning is None:
            conditioning = family.encode_prompts(prompts)
        stochastic = self.policy.stochastic_steps(schedule)
        train_steps = stochastic if train_steps is None else tuple(train_steps)
        if not set(train_steps) <= set(stochastic):
            raise ValueError(
                f"`train_steps` is {list(train_steps)}, but only steps {list(stochastic)} carry noise with "
                f"{self.policy!r}; train among those."
            )
        if any(b != a + 1 for a, b in zip(train_steps, train_steps[1:])):
            raise ValueError(
                f"`train_steps` is {list(train_steps)}; give consecutive steps, for the path between them is stored."
            )
        ode = self.policy.ode()
        slots = [first_slot + p for p in range(len(prompts))]

        rows = self._start(len(prompts), rollout_index, slots)
        cost, records = SamplingCost(), []
        for i in range(total_steps):
            if i in train_steps and not rows.path:
                rows.path.append(rows.latents)
            policy = self.policy if i in train_steps else ode
            with self.timer("denoise"):
                predicted = self._step(denoiser, rows, conditioning, schedule, i, policy, rollout_index, slots)
            cost = replace(cost, nfe=cost.nfe + len(rows.member) * family.nfe_per_row)
            if i in train_steps:
                rows.path.append(rows.latents)
            if i in self.prune_at:
                rewards = self._score_previews(predicted, rows, prompts, columns)
                cost = cost + SamplingCost(
                    preview_decodes=len(rewards), reward_calls=len(rewards) * len(self.preview_reward_weights)
                )
                keep, record = self._prune(rows, rewards, self.prune_at[i], i, rollout_index, slots)
                records.append(record)
                rows = rows.select(keep)

        images = self._decode(rows.latents, family.decode, "decode")
        rewards_per_func = self._score(self.scorer, images, rows, prompts, columns, preview=False)
        rewards = weighted_rewards(rewards_per_func, self.reward_weights)
        cost = cost + SamplingCost(decodes=len(images), reward_calls=rewards_per_func.numel())
        rollout = Rollout(
            prompt_index=rows.prompt_index,
            member=rows.member,
            latents=torch.stack(rows.path, 1) if rows.path else rows.latents[:, None],
            step_indices=train_steps,
            log_probs=torch.stack(rows.log_probs, 1) if rows.log_probs else torch.empty(len(rewards), 0),
            rewards=rewards,
            rewards_per_func=rewards_per_func,
            images=images.cpu(),
            conditioning=conditioning,
            schedule=schedule,
            cost=cost,
            rollout_index=rollout_index,
            first_slot=first_slot,
        )
        if len(rewards) > len(prompts) * self.num_generations:
            keep, record = self._prune(rows, rewards, self.num_generations, total_steps, rollout_index, slots)
            records.append(record)
            rollout = rollout.select(keep)
        return rollout.replace(prune_records=tuple(records))

    def noise(self, rollout: Rollout, step_index: int) -> torch.Tensor:
        """The noise `(B, *latent_shape)` that step `step_index` of a rollout's rows was sampled with, drawn again."""
        slots = range(rollout.first_slot, rollout.first_slot + len(rollout.conditioning))
        return self._noise(rollout.prompt_index, rollout.member, rollout.rollout_index, slots, step_index)

    def _start(self, num_prompts: int, rollout_index: int, slots: list[int]) -> _Rows:
        prompt_index = torch.arange(num_prompts).repeat_interleave(self.num_expansions)
        member = torch.arange(self.num_expansions).repeat(num_prompts)
        noise = self._noise(prompt_index, member, rollout_index, slots, INITIAL_NOISE)
        latents = self.family.init_latents(noise).to(self.storage_dtype)
        return _Rows(prompt_index, member, latents, [], [])

    def _step(self, denoiser, rows, conditioning, schedule, i, policy, rollout_index, slots) -> torch.Tensor | None:
        """Advances `rows` in place by step `i`; returns the predicted clean samples of all rows if they are needed."""
        noisy = policy.std(schedule, i) > 0
        latents, predicted, log_probs = torch.empty_like(rows.latents), [], []
        timestep = schedule.timesteps[i].to(rows.latents.device)
        for batch in self._batches(len(rows.member), self.rollout_batch_size):
            index = rows.prompt_index[batch]
            output = self.family.predict(denoiser, rows.latents[batch], timestep, conditioning.rows(index))
            transition = policy.step(output, rows.latents[batch], schedule, i)
            if noisy:
                noise = self._noise(index, rows.member[batch], rollout_index, slots, i)
                latents[batch] = transition.sample(noise).to(self.storage_dtype)
                log_probs.append(transition.log_prob(latents[batch]))
            else:
                latents[batch] = transition.mean.to(self.storage_dtype)
            if i in self.prune_at:
                predicted.append(transition.pred_original_sample)
            self.on_progress("denoise", i * len(rows.member) + batch.stop, self.num_inference_steps * len(rows.member))
        rows.latents = latents
        if noisy:
            rows.log_probs.append(torch.cat(log_probs))
        return torch.cat(predicted) if predicted else None

    def _score_previews(self, predicted, rows, prompts, columns) -> torch.Tensor:
        images = self._decode(
            predicted, lambda latents: self.family.decode_preview(latents, self.preview_decoder), "preview"
        )
        per_func = self._score(self.preview_scorer, images, rows, prompts, columns, preview=True)
        return weighted_rewards(per_func, self.preview_reward_weights)

    def _prune(self, rows, rewards, size, step_index, rollout_index, slots) -> tuple[torch.Tensor, PruneRecord]:
        """Rows to keep, ascending, and the record. Groups are whole and ordered, so `(P, n)` is a plain reshape."""
        num_prompts = len(slots)
        grouped = rewards.view(num_prompts, -1)
        # Rows without a reward count as average ones: a group without any still keeps its size.
        grouped = torch.where(grouped.isnan(), grouped.nanmean(1, keepdim=True).nan_to_num(), grouped)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, rollout_index, slots[0], 0, step_index))
        kept = self.pruning_rule(grouped, size, generator=generator)
        keep = (kept + torch.arange(num_prompts)[:, None] * grouped.shape[1]).flatten()
        mask = torch.zeros(len(rewards), dtype=torch.bool)
        mask[keep] = True
        return keep, PruneRecord(step_index, rows.prompt_index, rows.member, rewards, mask)

    def _noise(self, prompt_index, member, rollout_index, slots, step) -> torch.Tensor:
        row_slots = [slots[p] for p in prompt_index.tolist()]
        noise = row_noise(self.family.latent_shape, self.seed, rollout_index, row_slots, member.tolist(), step)
        return noise.to(self.family.device)

    def _decode(self, latents, decode, phase) -> torch.Tensor:
        images = []
        with self.timer(phase):
            for batch in self._batches(len(latents), self.decode_batch_size):
                images.append(decode(latents[batch]))
                self.on_progress(phase, batch.stop, len(latents))
        return torch.cat(images)

    def _score(self, scorer, images, rows, prompts, columns, preview) -> torch.Tensor:
        index = rows.prompt_index.tolist()
        self.on_progress("reward", 0, len(index))
        row_columns = {name: [values[p] for p in index] for name, values in (columns or {}).items()}
        with self.timer("reward"):
            return scorer([prompts[p] for p in index], images, row_columns, preview=preview)

    @staticmethod
    def _batches(total: int, size: int | None) -> list[slice]:
        size = size or total
        return [slice(start, min(start + size, total)) for start in range(0, total, size)]
