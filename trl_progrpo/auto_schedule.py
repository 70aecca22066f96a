# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`prune_schedule="auto"`: a run records whole groups, measures its own seconds, and chooses how it prunes."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from .adapters import trainable_parameters
from .cost import SCHEDULE_FIELDS, PruneSchedule, UnitCost, WorkCount
from .data import collate_rows, is_stream, readable
from .isolation import isolated
from .metrics import MetricsBuffer
from .planning import RecordedGroups, evaluate, propose
from .recording import in_parts, preview_rewards, sample_whole_groups
from .seeds import derive_seed
from .stopwatch import Stopwatch
from .timing import PhaseTimer
from .types import Rollout, SamplingCost, to_device


if TYPE_CHECKING:
    from .progrpo_trainer import ProGRPOTrainer


SCHEDULE_ROLLOUT = -2
"""
Rollout index of the groups recorded before rollout 0; before rollout `r` it is `SCHEDULE_ROLLOUT - r`. So their seeds meet
those of training and evaluation never.
"""

UPDATES = 3
"""Passes of an update that are timed; the median counts."""


class ScheduleChoices(TrainerCallback, ExportableState):
    """
    What a run has chosen so far. transformers keeps it in `trainer_state.json` of every checkpoint.

    Args:
        choices (`list[dict]`, *optional*): oldest first, in words of JSON: `rollout`, from which on it is in force;
            `num_expansions`, `prune_steps`, `prune_sizes`; `signal` and `seconds` that were expected of a group, and `gain`,
            their ratio over that of plain GRPO; of the recorded groups their `spread`, and `rank_corr`, the rank correlation
            of previews and final rewards by step. What is not known is `None`.
        unit_seconds (`dict[str, float]`, *optional*): the prices, fields of [`UnitCost`].
    """

    def __init__(self, choices: Sequence[Mapping[str, Any]] = (), unit_seconds: Mapping[str, float] | None = None):
        self.choices = [dict(choice) for choice in choices]
        self.unit_seconds = dict(unit_seconds) if unit_seconds else None

    def state(self) -> dict[str, Any]:
        """What makes the same object again."""
        return {"args": {"choices": list(self.choices), "unit_seconds": self.unit_seconds}, "attributes": {}}

    def on_train_begin(self, args, state, control, **kwargs):
        """Takes up what the checkpoint knows that is resumed from; a new run starts with nothing."""
        stored = state.stateful_callbacks.get(type(self).__name__) if state.global_step > 0 else None
        known = stored["args"] if stored else {"choices": [], "unit_seconds": None}
        self.choices, self.unit_seconds = list(known["choices"]), known["unit_seconds"]
        # A checkpoint of a run without it has no entry, which saving would look for.
        state.stateful_callbacks[type(self).__name__] = self.state()


class AutoSchedule:
    """
    Sets the schedule of a trainer's sampler: before the first rollout, and again before every `prune_schedule_interval`-th.

    Whole groups of training prompts are sampled, every process its share, with seeds of their own, so neither the order of
    the data nor the noise of any rollout depends on it. [`planning.propose`] chooses on them in the first process, and all
    others are told. What work costs is measured once, in seconds, before the first choice: a resumed run finds the prices in
    its checkpoint, and so makes the choices that it would have made uninterrupted.

    Args:
        trainer ([`ProGRPOTrainer`]): whose sampler it is.
        metrics ([`~metrics.MetricsBuffer`]): gets `prune_schedule/*`.
        timer ([`~timing.PhaseTimer`]): gets the seconds of choosing under `"schedule"`.

    Attributes:
        cost ([`~types.SamplingCost`]): what this process has sampled to choose by.
    """

    def __init__(self, trainer: ProGRPOTrainer, metrics: MetricsBuffer, timer: PhaseTimer):
        self.trainer, self.metrics, self.timer = trainer, metrics, timer
        self.cost = SamplingCost()
        trainer.add_callback(ScheduleChoices())

    @property
    def memory(self) -> ScheduleChoices:
        """What is known so far. Looked up each time, as transformers may put a restored object in the place of the first."""
        return next(one for one in self.trainer.callback_handler.callbacks if isinstance(one, ScheduleChoices))

    def before_rollout(self, inputs: Mapping[str, Sequence[Any]], rollout_index: int) -> None:
        """
        Sees to it that the sampler has the schedule of a rollout.

        Args:
            inputs (`Mapping[str, Sequence]`): columns of the rows of the rollout that is about to be sampled here.
            rollout_index (`int`): which rollout of the run it is.
        """
        if self._is_due(rollout_index):
            with self.timer("schedule"):
                self._choose(inputs, rollout_index)
        chosen = self.memory.choices[-1]
        schedule = self.as_schedule(chosen)
        self.trainer.sampler.set_schedule(schedule.num_expansions, schedule.prune_steps, schedule.prune_sizes)
        self.metrics.add("prune_schedule/num_expansions", schedule.num_expansions)
        self.metrics.add("prune_schedule/num_checkpoints", len(schedule.prune_steps))

    def as_schedule(self, choice: Mapping[str, Any]) -> PruneSchedule:
        """The schedule of one of the choices."""
        steps, sizes = tuple(choice["prune_steps"]), tuple(choice["prune_sizes"])
        args = self.trainer.args
        return PruneSchedule(args.num_inference_steps, args.num_generations, choice["num_expansions"], steps, sizes)

    def _is_due(self, rollout_index: int) -> bool:
        choices, args = self.memory.choices, self.trainer.args
        if not choices:
            return True
        last, interval = choices[-1], args.prune_schedule_interval
        # A run may be resumed with other settings than it was chosen for.
        fits = last["num_expansions"] <= args.num_expansions and all(
            step < args.num_inference_steps - 1 for step in last["prune_steps"]
        )
        return not fits or (interval > 0 and rollout_index // interval > last["rollout"] // interval)

    def _choose(self, inputs: Mapping[str, Sequence[Any]], rollout_index: int) -> None:
        trainer, memory = self.trainer, self.memory
        # Reward functions may draw random numbers too.
        with trainer.rank_watch.together(), isolated():
            rewards, cost, watch = self._record(inputs, rollout_index)
        self.cost = self.cost + cost
        device = trainer.accelerator.device
        rewards = trainer.accelerator.gather(rewards.to(device)).cpu()
        if memory.unit_seconds is None:
            unit = asdict(watch.unit_cost(trainer.family.nfe_per_row))
            everywhere = trainer.accelerator.gather(torch.tensor([list(unit.values())], device=device))
            memory.unit_seconds = dict(zip(unit, everywhere.mean(0).tolist()))
        found = [None]
        with trainer.rank_watch.together():
            if trainer.is_world_process_zero():
                found = [self._proposal(rewards, rollout_index)]
        # Of one process, although all could work it out: seconds and rounding may differ between machines.
        broadcast_object_list(found)
        memory.choices.append(found[0])
        trainer.state.stateful_callbacks[type(memory).__name__] = memory.state()
        self._tell(found[0], cost)

    def _record(
        self, inputs: Mapping[str, Sequence[Any]], rollout_index: int
    ) -> tuple[torch.Tensor, SamplingCost, Stopwatch]:
        """Rewards `(P, T, G)` of this process's groups, previews and then final ones, and what they cost in work and time."""
        trainer, args = self.trainer, self.trainer.args
        rows = self._rows(inputs, rollout_index)
        prompts, columns = rows.pop(args.prompt_column), rows
        # No more groups at a time than a rollout has: they need no more memory.
        share, size = len(prompts), min(len(prompts), trainer.geometry.prompts_per_process)
        first = trainer.accelerator.process_index * share
        watch = Stopwatch(trainer.accelerator.device, lambda *progress: trainer.on_phase("schedule", start, share))
        sampler, rewards, cost = watch.watch(trainer.sampler), [], SamplingCost()
        for start, *part in in_parts(prompts, columns, size):
            with trainer._inference():
                rollout = sample_whole_groups(
                    sampler,
                    trainer.family.denoiser,
                    *part,
                    num_expansions=args.num_expansions,
                    conditioning=trainer.prompt_cache(part[0], args.negative_prompt),
                    noise_steps=args.noise_steps(trainer.stochastic_steps, rollout_index),
                    rollout_index=SCHEDULE_ROLLOUT - rollout_index,
                    first_slot=first + start,
                )
            final = rollout.rewards.view(len(part[0]), -1)
            rewards.append(torch.stack([*preview_rewards(rollout).values(), final], 1))
            cost = cost + rollout.cost
        if self.memory.unit_seconds is None:
            self._rehearse(rollout, watch)
        return torch.cat(rewards), cost, watch

    def _rows(self, inputs: Mapping[str, Sequence[Any]], rollout_index: int) -> dict[str, list[Any]]:
        """Columns of the rows that this process records a group of: drawn from the data, of a stream the next ones."""
        trainer, args, dataset = self.trainer, self.trainer.args, self.trainer.train_dataset
        ranks, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        share = -(-args.prune_schedule_groups // ranks)
        if is_stream(dataset):
            mine = (rank * share, (rank + 1) * share)
            return {name: list(itertools.islice(itertools.cycle(values), *mine)) for name, values in inputs.items()}
        draw = torch.Generator().manual_seed(derive_seed(args.seed, SCHEDULE_ROLLOUT - rollout_index))
        order, rows = torch.randperm(len(dataset), generator=draw), readable(dataset)
        return collate_rows([rows[order[i % len(order)].item()] for i in range(rank * share, (rank + 1) * share)])

    def _rehearse(self, rollout: Rollout, watch: Stopwatch) -> None:
        """Times forward and backward passes of an update; weights, gradients and random numbers stay as they are."""
        trainer, denoiser = self.trainer, self.trainer.family.denoiser
        parameters, device = trainable_parameters(denoiser), trainer.accelerator.device
        size = trainer.args.per_device_train_batch_size
        rows = rollout.select(torch.arange(size) % len(rollout))
        rows = rows.replace(latents=to_device(rows.latents, device))

        def forward_and_backward() -> None:
            log_prob = trainer._transition(denoiser, rows, 0).log_prob(rows.latents[:, 1])
            # Not `backward`, which would add to gradients and wait for other processes.
            torch.autograd.grad(log_prob.mean(), parameters, allow_unused=True)

        with isolated(denoiser):
            denoiser.train()
            for _ in range(UPDATES):
                watch.time("training", size, forward_and_backward)

    def _proposal(self, rewards: torch.Tensor, rollout_index: int) -> dict[str, Any]:
        """The choice that recorded rewards `(P, T, G)` lead to."""
        *previews, final = rewards.unbind(1)
        groups = RecordedGroups(0.0, dict(enumerate(previews)), final)
        rank_corr = [None if math.isnan(r) else r for r in groups.rank_correlations().values()]
        args, choices = self.trainer.args, self.memory.choices
        plain = PruneSchedule.plain(args.num_inference_steps, args.num_generations)
        told = {"rollout": rollout_index, "spread": groups.spread, "rank_corr": rank_corr}
        if groups.spread > 0:
            best = propose([groups], self._price, args.num_inference_steps, args.num_generations)
            base = evaluate(plain, groups, self._price(plain)).score
            gain = best.score / base if base else None
            return {**told, **_words(best.schedule), "signal": best.signal, "seconds": best.cost, "gain": gain}
        kept = self.as_schedule(choices[-1]) if choices else plain
        warnings.warn(
            f"`prune_schedule` is 'auto', but the rewards of all {len(final)} recorded groups have no spread, so nothing speaks "
            f"for one schedule or another; it goes on with {kept.in_words()}. If this stays so, use other prompts or rewards.",
            stacklevel=2,
        )
        return {**told, **_words(kept), "signal": None, "seconds": None, "gain": None}

    def _price(self, schedule: PruneSchedule) -> float:
        """Seconds of a group's rollout and update, audits included."""
        trainer, args = self.trainer, self.trainer.args
        work = WorkCount.of(
            schedule,
            trained_steps=len(args.train_steps(trainer.stochastic_steps)),
            nfe_per_row=trainer.family.nfe_per_row,
            num_rewards=len(trainer.reward_runner),
            num_preview_rewards=len(trainer.preview_reward_runner),
            num_iterations=args.num_iterations,
            reference=args.beta > 0,
            audited=args.audit_fraction,
        )
        return work.cost(UnitCost(**self.memory.unit_seconds)).total

    def _tell(self, choice: Mapping[str, Any], cost: SamplingCost) -> None:
        values = {
            "signal_per_second": choice["signal"] and choice["signal"] / choice["seconds"],
            "gain": choice["gain"],
            "reward_std": choice["spread"],
            "nfe": cost.nfe,
            "reward_calls": cost.reward_calls,
            **{f"step_{i}/rank_corr": value for i, value in enumerate(choice["rank_corr"])},
        }
        for name, value in values.items():
            self.metrics.add(f"prune_schedule/{name}", math.nan if value is None else value)
        self.trainer.tell("on_prune_schedule", schedule=self.as_schedule(choice).in_words(), gain=choice["gain"])


def _words(schedule: PruneSchedule) -> dict[str, Any]:
    values = {name: getattr(schedule, name) for name in SCHEDULE_FIELDS}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
