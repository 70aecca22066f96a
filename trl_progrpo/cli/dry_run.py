# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`trl-progrpo train --dry_run`: everything a run would find out before it loads weights, as a commented YAML file."""

from __future__ import annotations

import argparse
import copy
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from ..arithmetic import count_work, prune_schedule
from ..standard_streams import prints_unicode
from ..words import counted, in_figures
from .base import quieten_libraries, user_errors
from .resolved_config import resolved_config, to_yaml


if TYPE_CHECKING:
    from ..families import Family
    from ..progrpo_config import ProGRPOConfig
    from ..rewards import RewardRunner
    from .script_arguments import ModelArguments, ScriptArguments


Lines = list[tuple[str, str]]

SHOWN_ROWS = 100
SHOWN_TARGETS = 8


def dry_run(
    script_args: ScriptArguments,
    model_args: ModelArguments,
    training_args: ProGRPOConfig,
    launcher: argparse.Namespace | None = None,
) -> int:
    """
    Checks data, rewards, model and schedule, and prints what a run would do. The output is itself a file for `--config`.

    Raises:
        CommandError: for whatever would stop the run before it loads weights.
    """
    quieten_libraries()
    from .preflight import check_arguments, check_previews, checkpoint_to_resume

    checkpoint_to_resume(training_args)
    # Before the parts below change what they are given.
    config = resolved_config(script_args, model_args, training_args)
    processes = launched_processes(launcher) or training_args.world_size
    with user_errors():
        check_arguments(training_args)
        family, model = resolve_model(model_args, training_args)
        check_previews(family, training_args)
        runners = resolve_rewards(script_args, training_args)
        data, num_prompts = _data(script_args, training_args, processes, runners)
        policy, trained_steps = resolve_policy(family, training_args)
    counting = len(runners.trained), len(runners.previews), family.nfe_per_row
    schedule = _schedule(training_args, processes, counting, policy, trained_steps)
    whole = _whole_run(training_args, processes, counting, num_prompts)
    sections = {"model": model, "data": data, "rewards": _rewards(runners, training_args), **schedule, **whole}
    print(
        "# A dry run of `trl-progrpo train`: no weights were loaded. What follows is a configuration for --config, without\n"
        "# `env` and the options of a launcher, such as num_processes."
    )
    for title, lines in sections.items():
        print(f"#\n# {title}")
        for label, text in lines:
            print(f"#   {label:<22}{text}")
    print(f"\n{to_yaml(config, prints_unicode())}", end="")
    return 0


def launched_processes(launcher: argparse.Namespace | None) -> int | None:
    """How many processes a launcher would start, if it says so."""
    if launcher is None:
        return None
    if launcher.num_processes is not None or launcher.config_file is None:
        return launcher.num_processes
    from accelerate.commands.config.config_args import load_config_from_file

    return load_config_from_file(launcher.config_file).num_processes


def resolve_model(
    model_args: ModelArguments, args: ProGRPOConfig, text_encoders: bool = False
) -> tuple[Family, Lines]:
    """The family on a [`~skeleton.skeleton`] with its adapter on, and what to print of it."""
    from ..adapters import add_adapter, default_lora_config
    from ..families import family_class
    from ..families.skeleton import HUB_OPTIONS, skeleton
    from .train import init_kwargs, lora_config

    options = {name: value for name, value in (init_kwargs(model_args, args) or {}).items() if name in HUB_OPTIONS}
    pipeline = skeleton(model_args.model_name_or_path, text_encoders, **options)
    family = family_class(model_args.model_name_or_path, **options).with_options(pipeline, args)
    total = sum(parameter.numel() for parameter in family.denoiser.parameters())
    config = lora_config(model_args)
    if config is not None:
        if config.target_modules is None:
            config.target_modules = default_lora_config(family).target_modules
        add_adapter(family, config)
    trained = sum(parameter.numel() for parameter in family.denoiser.parameters() if parameter.requires_grad)
    return family, [
        ("pipeline", f"{model_args.model_name_or_path} ({type(pipeline).__name__})"),
        ("model family", type(family).__name__),
        (family.denoiser_name, f"{total:,} parameters"),
        ("trained", f"{trained:,} parameters, {'all' if config is None else f'a LoRA of rank {config.r}'}"),
        ("images", f"{family.width} x {family.height} pixels"),
    ]


def _data(
    script_args: ScriptArguments, args: ProGRPOConfig, processes: int, runners: Runners
) -> tuple[Lines, int | None]:
    from ..data import as_rewards_read, check_datasets, check_rewards, is_stream
    from .data import column_names, load_prompts, named_data

    train, evaluation = load_prompts(script_args, args.prompt_column)
    columns = column_names(train)
    with named_data(script_args), user_errors():
        train, evaluation = as_rewards_read(train, evaluation, args.prompt_column, *runners)
        check_datasets(args, train, evaluation, processes)
        check_rewards(args, train, evaluation, *runners)
    num_prompts = None if is_stream(train) else len(train)
    others = [name for name in columns if name != args.prompt_column]
    return [
        ("training prompts", "a stream" if num_prompts is None else f"{num_prompts:,}"),
        ("held-out prompts", "none" if evaluation is None else f"{len(evaluation):,}"),
        ("columns for rewards", ", ".join(others) or "none"),
        *_targets(train, args.prompt_column, runners),
    ], num_prompts


def _targets(train: Any, prompt_column: str, runners: Runners) -> Lines:
    """What `ocr` looks for in the first rows, for quotation marks may be meant otherwise."""
    from ..rewards import OcrReward

    functions = [function for runner in filter(None, runners) for function in runner.functions]
    ocr = next((function for function in functions if isinstance(function, OcrReward)), None)
    if ocr is None:
        return []
    found: dict[str, None] = {}
    columns = {prompt_column, "text"} & set(train.column_names or list(next(iter(train))))
    for row in train.select_columns(sorted(columns)).take(SHOWN_ROWS):
        targets = ocr.targets([row[prompt_column]], [row["text"]] if "text" in row else None)
        found.update(dict.fromkeys(filter(str.strip, targets)))
    shown = ", ".join(map(repr, list(found)[:SHOWN_TARGETS]))
    more = len(found) - SHOWN_TARGETS
    return [
        (
            "texts to be read",
            f"{shown or 'none'}{f' and {more} more' if more > 0 else ''}, in the first {SHOWN_ROWS} rows",
        )
    ]


class Runners(NamedTuple):
    """The rewards of a run: trained on, scoring previews, and measured in evaluations only."""

    trained: RewardRunner
    previews: RewardRunner
    measured: RewardRunner | None


def resolve_rewards(script_args: ScriptArguments, args: ProGRPOConfig) -> Runners:
    """The rewards by their names."""
    from ..evaluation import watching_runner
    from ..progrpo_trainer import ProGRPOTrainer
    from ..rewards import RewardRunner

    trained = RewardRunner(script_args.reward_funcs, args.reward_weights)
    previews = ProGRPOTrainer._make_preview_runner(args, script_args.preview_reward_funcs, trained)
    return Runners(trained, previews, watching_runner(script_args.eval_reward_funcs, trained))


def _rewards(runners: Runners, args: ProGRPOConfig) -> Lines:
    trained, previews, measured = runners
    weighted = [f"{name} (weight {weight:g})" for name, weight in zip(trained.names, trained.weights.tolist())]
    has_previews = args.prune_steps or args.prune_schedule is not None
    pruned_by = ", ".join(previews.names) if has_previews else "nothing, as there is no `prune_steps`"
    return [
        ("trained on", ", ".join(weighted)),
        ("previews pruned by", pruned_by),
        ("measured only", ", ".join(measured.names) if measured is not None else "none"),
    ]


def resolve_policy(family: Family, args: ProGRPOConfig) -> tuple[Any, tuple[int, ...]]:
    """The policy and the steps that the first rollout trains."""
    import numpy as np

    from ..progrpo_trainer import ProGRPOTrainer

    if args.eval_num_inference_steps is not None:
        # numpy's warning would stand above the sentence of the refusal.
        with np.errstate(invalid="ignore"):
            family.make_schedule(args.eval_num_inference_steps)
    policy = ProGRPOTrainer._make_policy(args, type(family))
    return policy, args.train_steps(policy.stochastic_steps(family.make_schedule(args.num_inference_steps)))


def _schedule(args, processes: int, counting: tuple, policy, trained_steps: tuple[int, ...]) -> dict[str, Lines]:
    schedule, work = prune_schedule(args), count_work(args, *counting, processes=processes)
    geometry = args.geometry(processes)
    prompts = geometry.groups_per_process
    unpruned = args.num_expansions * args.num_inference_steps * prompts * counting[-1]
    plain = args.num_generations * args.num_inference_steps * prompts * counting[-1]
    compared = f"{work.nfe / plain:.1f} times plain GRPO"
    if args.num_expansions > args.num_generations:
        compared += f", {work.nfe / unpruned:.0%} of no pruning"
    checkpoints = [f"after step {step}" for step in args.prune_steps or []]
    if schedule.selects_on_finished:
        checkpoints.append("on the final rewards")
    arrows = " -> ".join(map(str, schedule.sizes)) + (f" ({', '.join(checkpoints)})" if checkpoints else "")
    started, trained = in_figures(args.num_expansions * prompts), geometry.rows_per_process
    passes = trained * args.num_iterations * len(trained_steps)
    update = f"{counted(passes, 'forward and backward row')}, {counted(_updates(args), 'optimiser step')}"
    lines = [
        ("prompts", f"{prompts:.3g}" + ("" if processes == 1 else f" of {geometry.num_prompts}, {geometry.placement}")),
        ("per prompt", f"{arrows} trajectories, pruned by {args.pruning_rule}" if checkpoints else f"{arrows} trajectories"),
        ("steps", f"{args.num_inference_steps}, {len(trained_steps)} of them trained"),
        ("policy", f"{policy!r}"),
        ("images started", f"{started}, finished {in_figures(work.decodes)}, trained on {trained:,}"),
        ("network evaluations", f"{counted(work.nfe, 'row')} ({compared})"),
        ("images decoded", f"{in_figures(work.decodes)}, and {counted(work.preview_decodes, 'preview')}"),
        ("reward calls", counted(work.reward_calls, "image")),
        ("update", update),
    ]  # fmt: skip
    if args.prune_schedule is not None:
        interval = args.prune_schedule_interval
        when = f"before the first rollout{f' and after every {interval}' if interval else ''}"
        lines = [
            lines[0],
            ("per prompt", f"{args.num_generations} to {args.num_expansions} trajectories, by a schedule that is chosen {when}"),
            *lines[2:4],
            ("images started", f"{trained:,} to {started}, trained on {trained:,}"),
            ("network evaluations", f"{_bounds(args, counting, processes)} rows"),
            ("update", update),
            ("each choice", _choosing_in_words(args, processes, counting)),
        ]  # fmt: skip
    if args.audit_fraction > 0 and args.prune_steps:
        groups = args.audit_fraction * prompts
        lines.insert(2, ("audits", f"{groups:g} of these prompts on average are finished unpruned too, counted below"))
    if args.rollout_waves > 1:
        lines.insert(2, ("waves", f"{args.rollout_waves}: one is rewarded while the next is denoised"))
    return {f"one rollout, on {'one process' if processes == 1 else f'each of {processes} processes'}": lines}


def _whole_run(args, processes: int, counting: tuple, num_prompts: int | None) -> dict[str, Lines]:
    updates = _updates(args)
    per_epoch = None if num_prompts is None else math.ceil(num_prompts / args.geometry(processes).num_prompts)
    if args.max_steps > 0:
        steps, rollouts = args.max_steps, math.ceil(args.max_steps / updates)
    else:
        rollouts = math.ceil(per_epoch * args.num_train_epochs)
        steps = rollouts * updates
    epochs = "" if per_epoch is None else f", {rollouts / per_epoch:.3g} passes over the prompts"
    lines = [("optimiser steps", f"{steps:,}"), ("rollouts", f"{rollouts:,}{epochs}")]
    if args.prune_schedule is not None:
        lines.append(
            ("network evaluations", f"{_bounds(args, counting, processes, rollouts, processes)} rows in rollouts")
        )
        lines.append(("choices of schedule", f"{1 + (rollouts - 1) // (args.prune_schedule_interval or rollouts)}"))
    else:
        work = count_work(args, *counting, rollouts=rollouts, processes=processes)
        lines.append(("network evaluations", f"{counted(work.nfe * processes, 'row')} in rollouts"))
    return {"the whole run": lines}


def _bounds(args: ProGRPOConfig, counting: tuple, processes: int, rollouts: int | None = None, times: int = 1) -> str:
    """Network evaluations with no more trajectories than are trained on, to those with all that may be started finished."""
    least = copy.copy(args)
    least.num_expansions = args.num_generations
    works = (count_work(one, *counting, rollouts=rollouts, processes=processes) for one in (least, args))
    return " to ".join(in_figures(work.nfe * times) for work in works)


def _choosing_in_words(args: ProGRPOConfig, processes: int, counting: tuple) -> str:
    num_rewards, num_preview_rewards, nfe_per_row = counting
    groups, steps = math.ceil(args.prune_schedule_groups / processes), args.num_inference_steps
    rows, previews = groups * args.num_expansions, groups * args.num_expansions * (steps - 1)
    return (
        f"{counted(groups, 'group')} of {args.num_expansions}: {rows * steps * nfe_per_row:,} rows of network evaluations, "
        f"{rows:,} images and {previews:,} previews, {rows * num_rewards + previews * num_preview_rewards:,} reward calls"
    )


def _updates(args: ProGRPOConfig) -> int:
    """Optimiser steps between two rollouts."""
    return args.micro_steps_per_rollout // args.gradient_accumulation_steps
