# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`trl-progrpo plan`: what a run would cost, beside what plain GRPO and post-hoc selection would, and whether it can pay."""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..words import counted
from .base import CommandError, quieten_libraries, user_errors
from .generate import check_writable
from .plan_measure import count, measure, rows_of
from .plan_memory import Memory, estimate, note
from .plan_schedule import calibrate, level_name, noise_levels


if TYPE_CHECKING:
    from ..cost import PhaseCost, PruneSchedule, UnitCost, WorkCount
    from ..planning import Gain
    from ..progrpo_config import ProGRPOConfig
    from .plan_arguments import PlanParser
    from .plan_schedule import Calibration
    from .script_arguments import ModelArguments, ScriptArguments


ROWS = 8
"""Rows of the training data that are looked at."""

_OUTPUT_SUFFIXES = (".yaml", ".yml", "")


def run(argv: Sequence[str]) -> int:
    """Parses `argv`, plans and prints."""
    from .train import read_run

    (script_args, model_args, training_args, options), launcher = read_run(argv, _parser)
    quieten_libraries()
    plan = make_plan(script_args, model_args, training_args, options, launcher)
    if options.json:
        print(json.dumps(plan.to_dict(), indent=2))
    else:
        from .plan_page import print_plan

        print_plan(plan)
    return 0


def _parser() -> PlanParser:
    from .plan_arguments import PlanParser

    return PlanParser()


@dataclass(frozen=True)
class Method:
    """
    One way to train, and what it comes to on one process.

    Attributes:
        name (`str`): for a sentence.
        schedule ([`PruneSchedule`]): of every group.
        work ([`WorkCount`]): of one rollout and its updates, audits left out.
        flops, seconds ([`PhaseCost`], *optional*): of the same.
        gain ([`Gain`]): with exact previews, if rewards were standard normal.
    """

    name: str
    schedule: PruneSchedule
    work: WorkCount
    flops: PhaseCost | None
    seconds: PhaseCost | None
    gain: Gain

    @property
    def sizes(self) -> str:
        return " → ".join(map(str, self.schedule.sizes))


@dataclass(frozen=True)
class Plan:
    """
    Everything that is printed.

    Attributes:
        facts (`dict[str, str]`): label -> text about the run.
        methods (`list[Method]`): the configured run first.
        verdict (`str`): whether it pays.
        notes (`list[str]`): what the numbers leave out.
        updates (`int`): optimiser updates per rollout.
        unit_flops, unit_seconds ([`UnitCost`], *optional*): what one piece of work costs.
        calibration ([`~cli.plan_schedule.Calibration`], *optional*): recorded groups and the proposed schedule.
        memory ([`~cli.plan_memory.Memory`], *optional*): of the run on each device.
    """

    facts: dict[str, str]
    methods: list[Method]
    verdict: str
    notes: list[str]
    updates: int
    unit_flops: UnitCost | None
    unit_seconds: UnitCost | None
    calibration: Calibration | None = None
    memory: Memory | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        methods = [
            {
                **asdict(method),
                "reward_calls": method.work.reward_calls,
                "total_flops": method.flops and method.flops.total,
                "total_seconds": method.seconds and method.seconds.total,
            }
            for method in self.methods
        ]
        # NaN, where a group had no spread, is no JSON.
        told = {**asdict(self), "methods": methods, "memory": self.memory and self.memory.to_dict()}
        return json.loads(json.dumps(told), parse_constant=lambda name: None)


def make_plan(
    script_args: ScriptArguments,
    model_args: ModelArguments,
    training_args: ProGRPOConfig,
    options: argparse.Namespace,
    launcher: argparse.Namespace | None = None,
) -> Plan:
    """
    The plan of a run.

    Raises:
        CommandError: for whatever would stop the run before it trains.
    """
    from ..arithmetic import prune_schedule
    from ..cost import WorkCount
    from ..data import as_rewards_read, check_prompts
    from ..planning import Option, expected_gain, verdict
    from .data import load_prompts, named_data
    from .dry_run import launched_processes, resolve_policy, resolve_rewards
    from .resolved_config import resolved_config

    if script_args.dry_run:
        raise CommandError("`--dry_run` is an option of `train`; leave it away, as `plan` trains nothing either.")
    _check(options, training_args)
    config = resolved_config(script_args, model_args, training_args)
    train, _ = load_prompts(script_args, training_args.prompt_column)
    with named_data(script_args), user_errors():
        runners = resolve_rewards(script_args, training_args)
        train, _ = as_rewards_read(train, None, training_args.prompt_column, *runners)
        check_prompts(train, training_args.prompt_column, "train_dataset")
        rows = rows_of(train, max(ROWS, options.calibration_groups))
        family, facts, flops, not_counted = count(model_args, training_args, rows)
        policy, trained_steps = resolve_policy(family, training_args)
    levels = []
    if options.calibrate:
        levels = noise_levels(training_args, family, options.noise_levels)
    seconds, recorded, loaded = None, [], None
    if levels or not options.no_time:
        seconds, recorded, loaded = measure(script_args, model_args, training_args, rows, options, levels)

    schedule, processes = prune_schedule(training_args), launched_processes(launcher) or training_args.world_size
    with user_errors():
        geometry = training_args.geometry(processes)
    counting = {
        "num_prompts": geometry.groups_per_process,
        "trained_steps": len(trained_steps),
        "nfe_per_row": family.nfe_per_row,
        "num_rewards": len(runners.trained),
        "num_preview_rewards": len(runners.previews),
        "num_iterations": training_args.num_iterations,
        "reference": training_args.beta > 0,
    }

    def method(name: str, schedule: PruneSchedule) -> Method:
        work = WorkCount.of(schedule, **counting)
        costs = [unit and work.cost(unit) for unit in (flops, seconds)]
        return Method(name, schedule, work, *costs, expected_gain(schedule))

    methods = [method("this run", schedule), *itertools.starmap(method, alternatives(schedule))]
    notes = [not_counted] if not_counted else []
    if training_args.pruning_rule != "ovf" and len(schedule.sizes) > 1:
        notes.append(
            f"Spread and signal are those of ovf; pruning_rule {training_args.pruning_rule} keeps less of them, and random none."
        )
    audited = training_args.audit_fraction * geometry.groups_per_process
    if schedule.prune_steps and audited:
        more = WorkCount.of(schedule, **counting, audited=audited).nfe / methods[0].work.nfe - 1
        notes.append(f"Audits (audit_fraction {training_args.audit_fraction:g}) add {more:.1%} network evaluations.")
    updates = training_args.micro_steps_per_rollout // training_args.gradient_accumulation_steps
    facts |= _facts(training_args, schedule, trained_steps, policy, updates, geometry)
    calibration = None
    if recorded:
        unit = seconds or flops
        if unit is None:
            raise CommandError(f"nothing is known of costs: {not_counted}; calibrate without --no_time.")
        calibration = calibrate(
            level_name(training_args, family),
            recorded,
            lambda schedule: WorkCount.of(schedule, **{**counting, "num_prompts": 1}).cost(unit).total,
            {method.name: method.schedule for method in methods},
            options.objective,
            config,
            options.output or os.path.join(training_args.output_dir, "planned.yaml"),
        )
    said = _verdict(methods, Option, verdict)
    if training_args.prune_schedule is not None:
        started, kept = schedule.num_expansions, schedule.num_generations
        facts["group"] = f"at most {started} → {kept}, chosen by the run itself (prune_schedule auto)"
        said = (
            f"This run chooses its schedule before the first rollout, on groups that it records: plain GRPO with {kept}, or "
            f'pruning of at most {started}. "This run" above stands for the largest of these, {started} finished and {kept} '
            "chosen among them. `--calibrate` records groups and chooses now."
        )
    prompt = rows[0][training_args.prompt_column]
    counted = schedule, counting["num_prompts"], trained_steps, processes
    memory = estimate(training_args, family, prompt, *counted, loaded)
    notes.append(note(memory, training_args.gradient_checkpointing))
    return Plan(facts, methods, said, notes, updates, flops, seconds, calibration, memory)


def alternatives(schedule: PruneSchedule) -> list[tuple[str, PruneSchedule]]:
    """What else the same trajectories could be used for: name and schedule."""
    from ..cost import PruneSchedule

    steps, started, kept = schedule.num_inference_steps, schedule.num_expansions, schedule.num_generations
    if started == kept:
        return [(f"post-hoc OVF {2 * kept} → {kept}", PruneSchedule(steps, kept, 2 * kept))]
    post_hoc = [size for size in (started, 2 * kept) if schedule.prune_steps or size < started]
    return [
        *((f"plain GRPO with {size}", PruneSchedule.plain(steps, size)) for size in (started, kept)),
        *((f"post-hoc OVF {size} → {kept}", PruneSchedule(steps, kept, size)) for size in dict.fromkeys(post_hoc)),
    ]


def _verdict(methods: list[Method], option, verdict) -> str:
    for name, cost in (("time", "seconds"), ("FLOPs", "flops")):
        if getattr(methods[0], cost) is not None:
            first, *rivals = [option(m.name, m.schedule, getattr(m, cost).total) for m in methods]
            return verdict(first, rivals, name)
    return "Neither FLOPs nor time is known, so whether this schedule pays is not said."


def _facts(args, schedule, trained_steps, policy, updates: int, geometry) -> dict[str, str]:
    guidance = "off" if args.guidance_scale == 1 else f"{args.guidance_scale:g}"
    processes, groups = geometry.num_processes, geometry.groups_per_process
    return {
        "group": schedule.in_words(),
        "rollout": f"{groups:.3g} prompt{'' if groups == 1 else 's'}, {counted(args.num_inference_steps, 'step')}, "
        f"{len(trained_steps)} of them trained; {counted(updates, 'update')}",
        "policy": f"{policy!r}, guidance {guidance}",
        "processes": f"{processes}" + (", all numbers are for one of them" if processes > 1 else ""),
    }


def _check(options: argparse.Namespace, args: ProGRPOConfig) -> None:
    """Refuses what cannot be, and fills in what `--calibrate` takes for granted."""
    from .plan_arguments import CALIBRATION_DEFAULTS

    if not options.calibration_seconds > 0:
        raise CommandError(
            f"`--calibration_seconds` is {options.calibration_seconds:g}; give a positive number, or --no_time."
        )
    for name in ("calibration_groups", "calibration_expansions", "noise_levels", "objective", "output"):
        if getattr(options, name) is not None and not options.calibrate:
            raise CommandError(
                f"`--{name}` is {getattr(options, name)} without --calibrate; give that too, or leave it away."
            )
    for name, value in CALIBRATION_DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.calibrate and args.pruning_rule != "ovf":
        raise CommandError(
            f"`pruning_rule` is {args.pruning_rule!r}, but `--calibrate` chooses for 'ovf'; use that, or leave --calibrate "
            "away."
        )
    if options.calibration_groups < 2:
        raise CommandError(
            f"`--calibration_groups` is {options.calibration_groups}; give at least 2, as schedules are told apart by their "
            "standard error over groups."
        )
    if options.output is not None:
        if Path(options.output).suffix.lower() not in _OUTPUT_SUFFIXES:
            raise CommandError(f"`--output` is {options.output!r}, but a YAML file is written; let it end with .yaml.")
        check_writable("--output", options.output)
    started = options.calibration_expansions
    if started is not None and started < args.num_expansions:
        raise CommandError(
            f"`--calibration_expansions` is {started}, below `num_expansions` {args.num_expansions}; record at least as many."
        )
