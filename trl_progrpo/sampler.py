# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The denoising loop: expand, step, preview, prune, finish, score. The only one in the package."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from .advantages import weighted_rewards
from .families.base import Family
from .out_of_memory import CallSize
from .overlap import Job, Wave, run_waves, scoring_job
from .policies import Policy
from .pruning import ovf
from .seeds import INITIAL_NOISE, PRUNING, derive_seed, row_noise
from .spread import Spread
from .timing import PhaseTimer
from .types import Conditioning, PruneRecord, Rollout, SamplingCost, Schedule, pinned_like, to_device, to_host


Scorer = Callable[..., torch.Tensor]
"""`scorer(prompts, images (B, 3, H, W), columns, preview=bool) -> rewards (B, F)`; see `rewards.RewardRunner`."""


@dataclass
class _Rows:
    """The trajectories alive: one row each, in the order (prompt, member)."""

    prompt_index: torch.Tensor
    member: torch.Tensor
    latents: torch.Tensor
    path: list[torch.Tensor]
    means: list[torch.Tensor]
    log_probs: list[torch.Tensor]
    #: Dropped rows of audited groups, which are finished for comparison and never trained on.
    dropped: torch.Tensor

    def select(self, rows: torch.Tensor) -> _Rows:
        there = to_device(rows, self.latents.device)
        return _Rows(
            self.prompt_index[rows],
            self.member[rows],
            self.latents[there],
            *(
                [pinned_like(kept[to_device(rows, kept.device)], kept) for kept in tensors]
                for tensors in (self.path, self.means)
            ),
            [log_probs[there] for log_probs in self.log_probs],
            self.dropped[rows],
        )


@dataclass(frozen=True, eq=False)
class _Known:
    """What the choice of survivors needs to know of the rows of whole groups: those here, or those on all processes."""

    prompt_index: torch.Tensor
    member: torch.Tensor
    dropped: torch.Tensor
    rewards: torch.Tensor


@dataclass(frozen=True, eq=False)
class _Given:
    """What a rollout was asked for; see [`ExpandPruneSampler.rollout`]."""

    denoiser: torch.nn.Module
    prompts: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    conditioning: Conditioning
    schedule: Schedule
    train_steps: tuple[int, ...]
    noise_steps: tuple[int, ...]
    rollout_index: int
    first_slot: int
    audit: Collection[int]

    @property
    def slots(self) -> range:
        return range(self.first_slot, self.first_slot + len(self.prompts))


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
        prune_sizes (`Sequence[int]`, *optional*): group size after each of them, falling. Neither is checked here;
            [`~cost.PruneSchedule`] does that.
        pruning_rule (`Callable`, *optional*): `(rewards (P, n), k, generator=...) -> kept indices (P, k)`; OVF when unset.
        rollout_batch_size (`int`, *optional*): rows per network call; all at once when unset.
        decode_batch_size (`int`, *optional*): images per decoder call; `rollout_batch_size` when unset.
        preview_batch_size (`int`, *optional*): the same for previews; `decode_batch_size` when unset.
        preview_scorer (`Callable`, *optional*): scores previews; `scorer` when unset.
        preview_reward_weights (`torch.Tensor` of shape `(F,)`, *optional*): weights of its columns; `reward_weights` when unset.
        preview_decoder (`torch.nn.Module`, *optional*): an [`~diffusers.AutoencoderTiny`]; the pipeline's VAE when unset.
        preview_downscale (`int`, *optional*, defaults to 1): previews are decoded from latents averaged over so many in
            each direction, into images smaller by the same factor.
        num_waves (`int`, *optional*, defaults to 1): sets the prompts are split into, so that the rewards of one are
            computed while another denoises; see [`~overlap.run_waves`].
        seed (`int`, *optional*, defaults to 0): the run's seed.
        storage_dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): of stored latents; log-probabilities are
            taken of the rounded latents.
        keep_means (`bool`, *optional*, defaults to `False`): keep the means of trained steps as well, if `storage_dtype` rounds
            the latents so that drawing the noise again does not give them back.
        offload (`bool`, *optional*, defaults to `False`): keep stored latents in CPU memory, pinned if they come from a CUDA
            device. A `conditioning` in CPU memory may stay there in any case.
        on_progress (`Callable[[str, int, int], None]`, *optional*): told `(phase, done, total)` where phase is
            `"denoise"`, `"preview"`, `"decode"` or `"reward"`.
        on_preview (`Callable[[torch.Tensor, PruneRecord], None]`, *optional*): told the previews `(n, 3, h, w)` of all
            rows of a checkpoint and what became of them, once per checkpoint and wave; the finished images where the last
            selection is among those. Of groups that are spread, it is told of the rows on this process.
        spread ([`~spread.Spread`], *optional*): deals the rows of every group to all processes, which must then all be given
            the same prompts. Each process returns its share of the survivors, of which `spread.own` tells what are copies;
            `prune_records` are of whole groups.

    Attributes:
        timer ([`~timing.PhaseTimer`]): seconds spent per phase since it was last drained.
        saved ([`~timing.PhaseTimer`]): seconds of scoring that sampling did not wait for.
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
        preview_batch_size: int | None = None,
        preview_scorer: Scorer | None = None,
        preview_reward_weights: torch.Tensor | None = None,
        preview_decoder: torch.nn.Module | None = None,
        preview_downscale: int = 1,
        num_waves: int = 1,
        seed: int = 0,
        storage_dtype: torch.dtype = torch.float32,
        keep_means: bool = False,
        offload: bool = False,
        on_progress: Callable[[str, int, int], None] | None = None,
        on_preview: Callable[[torch.Tensor, PruneRecord], None] | None = None,
        spread: Spread | None = None,
    ):
        self.family = family
        self.policy = policy
        self.scorer = scorer
        self.reward_weights = reward_weights
        self.num_inference_steps = num_inference_steps
        self.num_generations = num_generations
        self.set_schedule(num_expansions or num_generations, prune_steps or (), prune_sizes or ())
        self.pruning_rule = pruning_rule
        decode_batch_size = decode_batch_size or rollout_batch_size
        self.network_calls = CallSize(
            "rollout_batch_size", rollout_batch_size, "make images smaller (`height`, `width`)"
        )
        self.decode_calls = CallSize("decode_batch_size", decode_batch_size, "set `vae_slicing` or `vae_tiling`")
        self.preview_calls = CallSize(
            "preview_batch_size",
            preview_batch_size or decode_batch_size,
            "set `preview_downscale` or a `preview_decoder`",
        )
        self.preview_scorer = preview_scorer or scorer
        self.preview_reward_weights = reward_weights if preview_reward_weights is None else preview_reward_weights
        self.preview_decoder = preview_decoder
        self.preview_downscale = preview_downscale
        self.num_waves = num_waves
        self.seed = seed
        self.storage_dtype = storage_dtype
        self.keep_means = keep_means
        self.keep = to_host if offload else lambda latents: latents
        self.on_progress = on_progress or (lambda phase, done, total: None)
        self.on_preview = on_preview or (lambda images, record: None)
        self.spread = spread
        self.timer, self.saved = PhaseTimer(), PhaseTimer()

    @property
    def rollout_batch_size(self) -> int | None:
        """Rows per network call; fewer than what was asked for if memory ran out."""
        return self.network_calls.rows

    @rollout_batch_size.setter
    def rollout_batch_size(self, rows: int | None) -> None:
        self.network_calls.rows = rows

    def share_call_sizes(self, other: ExpandPruneSampler) -> None:
        """Makes calls as small as those of `other` are and will be, which runs the same networks."""
        self.network_calls, self.decode_calls = other.network_calls, other.decode_calls

    def set_schedule(
        self, num_expansions: int, prune_steps: Sequence[int] = (), prune_sizes: Sequence[int] = ()
    ) -> None:
        """Changes how the groups of later rollouts are pruned; how many survive stays as it is."""
        self.num_expansions = num_expansions
        self.prune_at = dict(zip(prune_steps, prune_sizes))

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
        noise_steps: Sequence[int] | None = None,
        audit: Collection[int] = (),
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
                steps of the policy when unset.
            noise_steps (`Sequence[int]`, *optional*): all steps that carry noise, those of `train_steps` and maybe others;
                `train_steps` when unset. The rest runs the noise-free policy.
            audit (`Collection[int]`, *optional*): prompts (0 to P - 1) whose dropped rows are finished and scored as well,
                for `Rollout.audit_records`. Nothing else of the rollout changes but its cost.

        Raises:
            ValueError: if a step of `train_steps` or `noise_steps` cannot carry noise, or steps that are trained are without
                noise or not consecutive.
        """
        family, total_steps = self.family, self.num_inference_steps
        schedule = family.make_schedule(total_steps)
        schedule = replace(schedule, timesteps=to_device(schedule.timesteps, family.device))
        if conditioning is None:
            conditioning = family.encode_prompts(prompts)
        stochastic = self.policy.stochastic_steps(schedule)
        train_steps = stochastic if train_steps is None else tuple(train_steps)
        noise_steps = train_steps if noise_steps is None else tuple(noise_steps)
        if not set(train_steps) <= set(noise_steps):
            raise ValueError(
                f"`train_steps` is {list(train_steps)} and `noise_steps` {list(noise_steps)}; steps that are trained must "
                "carry noise."
            )
        if not set(noise_steps) <= set(stochastic):
            name = "train_steps" if noise_steps == train_steps else "noise_steps"
            raise ValueError(
                f"`{name}` is {list(noise_steps)}, but only steps {list(stochastic)} carry noise with {self.policy!r}; "
                "choose among those."
            )
        if any(b != a + 1 for a, b in zip(train_steps, train_steps[1:])):
            raise ValueError(
                f"`train_steps` is {list(train_steps)}; give consecutive steps, for the path between them is stored."
            )
        given = _Given(
            denoiser=denoiser,
            prompts=prompts,
            columns=columns or {},
            conditioning=conditioning,
            schedule=schedule,
            train_steps=train_steps,
            noise_steps=noise_steps,
            rollout_index=rollout_index,
            first_slot=first_slot,
            audit=audit,
        )
        share = -(-len(prompts) // self.num_waves)
        waves = [range(start, min(start + share, len(prompts))) for start in range(0, len(prompts), share)]
        return Rollout.join(run_waves([self._wave(given, wave) for wave in waves], self.timer, self.saved))

    def _wave(self, given: _Given, prompts: range) -> Wave:
        """Samples the groups of some of the prompts; steps back where it needs rewards."""
        family, total_steps, schedule = self.family, self.num_inference_steps, given.schedule
        ode = self.policy.ode()
        rows, total = self._start(given, prompts), len(prompts) * self.num_expansions
        cost, records, audits = SamplingCost(), [], []
        for i in range(total_steps):
            if i in given.train_steps and not rows.path:
                rows.path.append(self.keep(rows.latents))
            policy = self.policy if i in given.noise_steps else ode
            with self.timer("denoise"):
                predicted = self._step(given, rows, i, policy)
            cost = replace(cost, nfe=cost.nfe + len(rows.member) * family.nfe_per_row)
            if i in given.train_steps:
                rows.path.append(self.keep(rows.latents))
            if i in self.prune_at:
                images = self._decode(predicted, self._preview, "preview", self.preview_calls)
                per_func = yield self._job(self.preview_scorer, given, images, rows, preview=True)
                rewards = weighted_rewards(per_func, self.preview_reward_weights)
                cost = cost + SamplingCost(preview_decodes=len(rewards), reward_calls=per_func.numel())
                known = self._known(rows, rewards, total)
                goes_on, record = self._prune(given, known, self.prune_at[i], i)
                records.append(record)
                audits.append(PruneRecord(i, known.prompt_index, known.member, known.rewards, goes_on))
                self._show(images, known, goes_on, i)
                stay = (goes_on | self._audited(given, known)).nonzero().flatten()
                rows, total = self._go_on(rows, replace(known, dropped=~goes_on), stay), len(stay)

        images = self._decode(rows.latents, family.decode, "decode", self.decode_calls)
        per_func = yield self._job(self.scorer, given, images, rows, preview=False)
        rewards = weighted_rewards(per_func, self.reward_weights)
        known = self._known(rows, rewards, total)
        survives = ~known.dropped
        if survives.sum() > len(prompts) * self.num_generations:
            goes_on, record = self._prune(given, known, self.num_generations, total_steps)
            records.append(record)
            self._show(images, known, goes_on, total_steps)
            survives = goes_on
        rollout = Rollout(
            prompt_index=rows.prompt_index,
            member=rows.member,
            latents=pinned_like(torch.stack(rows.path, 1), rows.path[0]) if rows.path else rows.latents[:, None],
            means=pinned_like(torch.stack(rows.means, 1), rows.means[0]) if rows.means else None,
            step_indices=given.train_steps,
            log_probs=torch.stack(rows.log_probs, 1) if rows.log_probs else torch.empty(len(rewards), 0),
            rewards=rewards,
            rewards_per_func=per_func,
            images=images.cpu(),
            conditioning=given.conditioning,
            schedule=schedule,
            prune_records=tuple(records),
            cost=cost + SamplingCost(decodes=len(images), reward_calls=per_func.numel()),
            rollout_index=given.rollout_index,
            first_slot=given.first_slot,
            audit_records=tuple(
                self._finish_audit(given, record, known) for record in audits if self._audited(given, record).any()
            ),
        )
        if survives.all():
            return rollout
        stay = survives.nonzero().flatten()
        if self.spread is None:
            return rollout.select(stay)
        return rollout.replace(**self.spread.deal(rollout.state_dict(), total, stay, family.device))

    def noise(self, rollout: Rollout, step_index: int) -> torch.Tensor:
        """The noise `(B, *latent_shape)` that step `step_index` of a rollout's rows was sampled with, drawn again."""
        slots = range(rollout.first_slot, rollout.first_slot + len(rollout.conditioning))
        return self._noise(rollout.prompt_index, rollout.member, rollout.rollout_index, slots, step_index)

    def _start(self, given: _Given, prompts: range) -> _Rows:
        prompt_index = torch.arange(prompts.start, prompts.stop).repeat_interleave(self.num_expansions)
        member = torch.arange(self.num_expansions).repeat(len(prompts))
        if self.spread is not None:
            mine = self.spread.share(len(member))
            prompt_index, member = prompt_index[mine], member[mine]
        noise = self._noise(prompt_index, member, given.rollout_index, given.slots, INITIAL_NOISE)
        latents = self.family.init_latents(noise).to(self.storage_dtype)
        return _Rows(prompt_index, member, latents, [], [], [], torch.zeros(len(member), dtype=torch.bool))

    def _known(self, rows: _Rows, rewards: torch.Tensor, total: int) -> _Known:
        """Rows of whole groups, `total` of them, with their rewards."""
        if self.spread is None:
            return _Known(rows.prompt_index, rows.member, rows.dropped, rewards)
        # float64 holds all of them exactly.
        columns = torch.stack([c.double() for c in (rows.prompt_index, rows.member, rows.dropped, rewards.cpu())], 1)
        prompt_index, member, dropped, everyone = self.spread.gather(columns, total).unbind(1)
        return _Known(prompt_index.long(), member.long(), dropped.bool(), everyone.to(rewards.dtype))

    def _go_on(self, rows: _Rows, known: _Known, stay: torch.Tensor) -> _Rows:
        """The rows here of those that stay, `stay` being positions in `known`."""
        if self.spread is None:
            return replace(rows, dropped=known.dropped).select(stay)
        tensors = {"latents": rows.latents}
        lists = {name: getattr(rows, name) for name in ("path", "means", "log_probs")}
        for name, values in lists.items():
            tensors |= {f"{name}.{i}": value for i, value in enumerate(values)}
        tensors = self.spread.deal(tensors, len(known.member), stay, self.family.device)
        mine = stay[self.spread.share(len(stay))]
        return _Rows(
            known.prompt_index[mine],
            known.member[mine],
            tensors["latents"],
            *([tensors[f"{name}.{i}"] for i in range(len(values))] for name, values in lists.items()),
            known.dropped[mine],
        )

    def _show(self, images: torch.Tensor, known: _Known, goes_on: torch.Tensor, step_index: int) -> None:
        """Tells of the rows here, in the order of `images`, that were alive at a checkpoint."""
        total = len(known.member)
        own = range(total) if self.spread is None else self.spread.own(total)
        here = slice(own.start, own.stop)
        alive = ~known.dropped[here]
        columns = (known.prompt_index, known.member, known.rewards, goes_on)
        self.on_preview(
            images[: len(own)][alive], PruneRecord(step_index, *(column[here][alive] for column in columns))
        )

    def _step(self, given: _Given, rows: _Rows, i: int, policy: Policy) -> torch.Tensor | None:
        """Advances `rows` in place by step `i`; returns the predicted clean samples of all rows if they are needed."""
        schedule = given.schedule
        noisy = policy.std(schedule, i) > 0
        latents, predicted, log_probs, means = torch.empty_like(rows.latents), [], [], None
        rounded = torch.finfo(self.storage_dtype).eps > torch.finfo(torch.float32).eps
        if self.keep_means and rounded and i in given.train_steps:
            means = torch.empty_like(latents, dtype=torch.float32)
        # From here to the end of the step the host never waits for the device: it prepares the next call meanwhile.
        timestep = schedule.timesteps[i]

        def advance(batch: slice) -> tuple[torch.Tensor | None, torch.Tensor | None]:
            index, log_prob = rows.prompt_index[batch], None
            output = self.family.predict(
                given.denoiser, rows.latents[batch], timestep, given.conditioning.rows(index, self.family.device)
            )
            transition = policy.step(output, rows.latents[batch], schedule, i)
            if noisy:
                noise = self._noise(index, rows.member[batch], given.rollout_index, given.slots, i)
                latents[batch] = transition.sample(noise).to(self.storage_dtype)
                if i in given.train_steps:
                    log_prob = transition.log_prob(latents[batch])
                if means is not None:
                    means[batch] = transition.mean
            else:
                latents[batch] = transition.mean.to(self.storage_dtype)
            return transition.pred_original_sample if i in self.prune_at else None, log_prob

        for batch, (clean, log_prob) in self.network_calls.each(len(rows.member), advance, given.denoiser):
            if clean is not None:
                predicted.append(clean)
            if log_prob is not None:
                log_probs.append(log_prob)
            self.on_progress("denoise", i * len(rows.member) + batch.stop, self.num_inference_steps * len(rows.member))
        rows.latents = latents
        if log_probs:
            rows.log_probs.append(torch.cat(log_probs))
        if means is not None:
            rows.means.append(self.keep(means))
        return torch.cat(predicted) if predicted else None

    def _preview(self, latents: torch.Tensor) -> torch.Tensor:
        return self.family.decode_preview(latents, self.preview_decoder, self.preview_downscale)

    def _prune(self, given: _Given, known: _Known, size: int, step_index: int) -> tuple[torch.Tensor, PruneRecord]:
        """
        Which of the rows go on `(B,)`, bool, and the record of those that were alive. Each group is judged by itself, with
        a generator of its own.
        """
        alive = ~known.dropped
        prompt_index, live = known.prompt_index[alive], known.rewards[alive]
        # Groups are whole and ordered, so `(P, n)` is a plain reshape.
        grouped = live.view(len(prompt_index.unique()), -1)
        # Rows without a reward count as average ones: a group without any still keeps its size.
        grouped = torch.where(grouped.isnan(), grouped.nanmean(1, keepdim=True).nan_to_num(), grouped)
        kept = torch.zeros_like(grouped, dtype=torch.bool)
        for group, prompt, mask in zip(grouped, prompt_index.unique().tolist(), kept):
            seed = derive_seed(self.seed, given.rollout_index, given.slots[prompt], PRUNING, step_index)
            [indices] = self.pruning_rule(group[None], size, generator=torch.Generator().manual_seed(seed))
            mask[indices] = True
        goes_on = torch.zeros_like(alive)
        goes_on[alive] = kept.flatten()
        return goes_on, PruneRecord(step_index, prompt_index, known.member[alive], live, kept.flatten())

    @staticmethod
    def _audited(given: _Given, rows: _Known | PruneRecord) -> torch.Tensor:
        return torch.tensor([prompt in given.audit for prompt in rows.prompt_index.tolist()], dtype=torch.bool)

    def _noise(self, prompt_index, member, rollout_index, slots, step) -> torch.Tensor:
        row_slots = [slots[p] for p in prompt_index.tolist()]
        noise = row_noise(self.family.latent_shape, self.seed, rollout_index, row_slots, member.tolist(), step)
        return to_device(noise, self.family.device)

    def _finish_audit(self, given: _Given, record: PruneRecord, known: _Known) -> PruneRecord:
        """The audited groups of `record`, all of whose rows have finished, with their final rewards."""
        then, now = self._audited(given, record), self._audited(given, known)
        row_fields = {name: getattr(record, name)[then] for name in ("prompt_index", "member", "rewards", "kept")}
        return replace(record, **row_fields, final_rewards=known.rewards[now])

    def _decode(self, latents, decode, phase, calls: CallSize) -> torch.Tensor:
        images = []
        device = self.family.device.type
        # Decoders have a precision of their own, which the denoiser's mixed precision is not to lower; `meta` knows neither.
        precision = nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
        with self.timer(phase), precision:
            for batch, decoded in calls.each(len(latents), lambda batch: decode(latents[batch])):
                images.append(decoded)
                self.on_progress(phase, batch.stop, len(latents))
        return torch.cat(images)

    def _job(self, scorer: Scorer, given: _Given, images: torch.Tensor, rows: _Rows, preview: bool) -> Job:
        index = rows.prompt_index.tolist()
        self.on_progress("reward", 0, len(index))
        prompts = [given.prompts[p] for p in index]
        columns = {name: [values[p] for p in index] for name, values in given.columns.items()}
        return scoring_job(scorer, prompts, images, columns, preview)
