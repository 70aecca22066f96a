# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What the numbers of a configuration come to, in words; printed once when a run begins."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .cost import PruneSchedule, WorkCount
from .geometry import Geometry
from .words import counted


if TYPE_CHECKING:
    from .progrpo_config import ProGRPOConfig


def count_work(
    args: ProGRPOConfig,
    num_rewards: int,
    num_preview_rewards: int,
    nfe_per_row: int = 1,
    rollouts: int | None = None,
    processes: int | None = None,
) -> WorkCount:
    """
    The sampling that one process does, audits included, counted as [`~types.SamplingCost`] does.

    Args:
        args ([`ProGRPOConfig`]): the schedule.
        num_rewards (`int`): reward functions, each called once a finished image.
        num_preview_rewards (`int`): the same for previews.
        nfe_per_row (`int`, *optional*, defaults to 1): 2 with classifier-free guidance.
        rollouts (`int`, *optional*): the total of so many rollouts, from the first; the mean of one when unset.
        processes (`int`, *optional*): how many share a rollout; those of this run when unset.
    """
    groups = args.geometry(processes).groups_per_process
    audited = (rollouts or 1) * args.audit_fraction * groups
    return WorkCount.of(
        prune_schedule(args),
        num_prompts=groups * (rollouts or 1),
        nfe_per_row=nfe_per_row,
        num_rewards=num_rewards,
        num_preview_rewards=num_preview_rewards,
        # Whole groups, of which `audit.audit_size` hands out as many.
        audited=audited if rollouts is None else math.floor(audited),
    )


def prune_schedule(args: ProGRPOConfig) -> PruneSchedule:
    """How the groups of a run are pruned."""
    return PruneSchedule(
        num_inference_steps=args.num_inference_steps,
        num_generations=args.num_generations,
        num_expansions=args.num_expansions,
        prune_steps=tuple(args.prune_steps or ()),
        prune_sizes=tuple(args.prune_sizes or ()),
    )


def without_effect(args: ProGRPOConfig) -> dict[str, str]:
    """
    Return the options that do nothing in this configuration, and what each of them needs.

    Args:
        args ([`ProGRPOConfig`]): its values, checked; an option that an older version did not write counts as unset.
    """

    def given(name: str) -> Any:
        return getattr(args, name, None)

    prunes = bool(given("prune_steps")) or given("prune_schedule") is not None
    selects = prunes or (given("num_expansions") or 0) > given("num_generations")
    schedule, optimizer = (getattr(given(name), "value", given(name)) for name in ("lr_scheduler_type", "optim"))
    warms_up = schedule not in ("constant", "reduce_lr_on_plateau", "greedy")
    averages = str(optimizer).startswith("schedule_free_")
    works = {
        "warmup_steps": (
            warms_up or optimizer in ("schedule_free_adamw", "schedule_free_sgd"),
            "`lr_scheduler_type` with a warm-up, such as constant_with_warmup",
        ),
        "negative_prompt": ((given("guidance_scale") or 0) > 1, "`guidance_scale` above 1"),
        "sde_window_size": (given("sde_window") is not None, "`sde_window`"),
        "sde_window_start": (given("sde_window") is not None, "`sde_window`"),
        "sde_window_interval": (given("sde_window") == "sliding", "`sde_window` sliding"),
        "ema_update_interval": (given("ema_decay") is not None, "`ema_decay`"),
        "eval_use_ema": (given("ema_decay") is not None or averages, "`ema_decay`"),
        "preview_decoder": (prunes, "`prune_steps` or `prune_schedule`"),
        "preview_downscale": (prunes, "`prune_steps` or `prune_schedule`"),
        "preview_batch_size": (prunes, "`prune_steps` or `prune_schedule`"),
        "pruning_rule": (selects, "more `num_expansions` than `num_generations`"),
        "prune_schedule_interval": (given("prune_schedule") is not None, "`prune_schedule`"),
        "prune_schedule_groups": (given("prune_schedule") is not None, "`prune_schedule`"),
    }
    return {name: needs for name, (does, needs) in works.items() if not does}


def resolved_arithmetic(
    args: ProGRPOConfig, geometry: Geometry, work: WorkCount, num_prompts: int | None = None
) -> list[str]:
    """
    Lines that say what a rollout and an epoch are: prompts, images, network calls, decodes, reward calls, updates, and what
    fills up uneven ends.

    Args:
        args ([`ProGRPOConfig`]): of the run.
        geometry ([`Geometry`]): of its rollouts.
        work ([`WorkCount`]): of a rollout on one process, from [`count_work`].
        num_prompts (`int`, *optional*): in the dataset; unset for a stream, which has no epochs.
    """
    processes, schedule = geometry.num_processes, prune_schedule(args)
    where = "" if processes == 1 else f" on {processes} processes ({geometry.placement})"
    groups = " → ".join(map(str, schedule.sizes)) if args.prune_schedule is None else f"at most {args.num_expansions}"
    updates = geometry.num_updates * args.num_iterations
    return [
        f"rollout: {counted(geometry.num_prompts, 'prompt')}{where}, {groups} trajectories each, {_work(work, processes)}",
        f"         {counted(updates, 'update')} of {_sizes(geometry)}{_filling(geometry)}",
        *([] if num_prompts is None else [_epoch(geometry, work, updates, num_prompts)]),
    ]


def _work(work: WorkCount, times: int) -> str:
    previews = f"{counted(times * work.preview_decodes, 'preview')}, " if work.preview_decodes else ""
    return (
        f"{counted(times * work.nfe, 'network evaluation')}, {previews}{counted(times * work.decodes, 'image')} decoded, "
        f"{counted(times * work.reward_calls, 'reward call')}"
    )


def _epoch(geometry: Geometry, work: WorkCount, updates: int, num_prompts: int) -> str:
    rollouts = -(-num_prompts // geometry.num_prompts)
    work_of_all = _work(work, rollouts * geometry.num_processes)
    return (
        f"epoch:   {counted(num_prompts, 'prompt')}, {counted(rollouts, 'rollout')}, {work_of_all}, "
        f"{counted(rollouts * updates, 'update')}"
    )


def _sizes(geometry: Geometry) -> str:
    """Trajectories of an update, and how they are split."""
    totals = sorted({geometry.rows_of_update(update) for update in range(geometry.num_updates)})
    sizes = sorted({size for update in range(geometry.num_updates) for size in geometry.micro_batch_sizes(update)})
    each = " on each process" if geometry.num_processes > 1 else ""
    trajectories = "trajectory" if totals == [1] else "trajectories"
    return (
        f"{' or '.join(map(str, totals))} {trajectories}, in {counted(geometry.micro_batches, 'micro-batch', 'es')} of "
        f"{' or '.join(map(str, sizes))}{each}"
    )


def _filling(geometry: Geometry) -> str:
    """What is there only so that all processes make as many calls; nothing if all numbers divide."""
    trained = geometry.num_processes * sum(
        sum(geometry.micro_batch_sizes(update)) for update in range(geometry.num_updates)
    )
    rows = trained - geometry.num_rows
    groups = round(geometry.groups_per_process * geometry.num_processes) - geometry.num_prompts
    told = [counted(groups, "further group")] * (groups > 0) + [f"{counted(rows, 'row')} of weight zero"] * (rows > 0)
    return f"; {' and '.join(told)} fill up uneven ends" if told else ""
