# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`trl-progrpo train --dry_run`: everything a run would find out before it loads weights, as a commented YAML file."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any

from .base import quieten_libraries, user_errors


if TYPE_CHECKING:
    from ..families import Family
    from ..progrpo_config import ProGRPOConfig
    from .script_arguments import ModelArguments, ScriptArguments


Lines = list[tuple[str, str]]

_LEFT_OUT = ("dry_run", "streaming")


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
    # Before the parts below change what they are given.
    config = resolved_config(script_args, model_args, training_args)
    processes = _num_processes(launcher) or training_args.world_size
    with user_errors():
        family, model = _model(model_args, training_args)
        data, num_prompts = _data(script_args, training_args, processes)
        rewards, num_rewards, num_preview_rewards = _rewards(script_args, training_args)
        cost = RolloutCost.of(training_args, num_rewards, num_preview_rewards, family.nfe_per_row)
        policy, trained_steps = _policy(family, training_args)
    schedule = _schedule(training_args, processes, cost, policy, trained_steps)
    whole = _whole_run(training_args, processes, num_prompts, cost)
    sections = {"model": model, "data": data, "rewards": rewards, **schedule, **whole}
    print("# A dry run of `trl-progrpo train`: no weights were loaded. What follows is a configuration for --config.")
    for title, lines in sections.items():
        print(f"#\n# {title}")
        for label, text in lines:
            print(f"#   {label:<22}{text}")
    print(f"\n{to_yaml(config)}", end="")
    return 0


@dataclass(frozen=True)
class RolloutCost:
    """What one rollout costs one process, audits left out; counted as [`~types.SamplingCost`] does."""

    sizes: tuple[int, ...]
    prompts: int
    nfe: int
    preview_decodes: int
    decodes: int
    reward_calls: int
    unpruned_nfe: int

    @classmethod
    def of(cls, args: ProGRPOConfig, num_rewards: int, num_preview_rewards: int, nfe_per_row: int = 1) -> RolloutCost:
        """
        Args:
            args ([`ProGRPOConfig`]): the schedule.
            num_rewards (`int`): reward functions, each called once a finished image.
            num_preview_rewards (`int`): the same for previews.
            nfe_per_row (`int`, *optional*, defaults to 1): 2 with classifier-free guidance.
        """
        prune_at = dict(zip(args.prune_steps or (), args.prune_sizes or ()))
        alive, sizes, rows, previews = args.num_expansions, [args.num_expansions], 0, 0
        for step in range(args.num_inference_steps):
            rows += alive
            if step in prune_at:
                previews += alive
                alive = prune_at[step]
                sizes.append(alive)
        prompts = args.prompts_per_rollout
        return cls(
            sizes=tuple(sizes) if alive == args.num_generations else (*sizes, args.num_generations),
            prompts=prompts,
            nfe=rows * prompts * nfe_per_row,
            preview_decodes=previews * prompts,
            decodes=alive * prompts,
            reward_calls=(previews * num_preview_rewards + alive * num_rewards) * prompts,
            unpruned_nfe=args.num_expansions * args.num_inference_steps * prompts * nfe_per_row,
        )


def resolved_config(*arguments: Any) -> dict[str, Any]:
    """
    The keys of a YAML file that gives these dataclasses again: every option of this package, and those of the libraries
    below it that differ from their defaults. Never a token.
    """
    from ..progrpo_config import ProGRPOConfig
    from .arguments import COMMON

    config: dict[str, Any] = {}
    for dataclass_ in arguments:
        ours, standard = set(COMMON), None
        if isinstance(dataclass_, ProGRPOConfig):
            ours |= set(ProGRPOConfig.__annotations__)
            # What a field means when it is left alone is only known to an object of the class.
            standard = ProGRPOConfig(output_dir=dataclass_.output_dir)
        for f in fields(dataclass_):
            value = getattr(dataclass_, f.name, None)
            if not f.init or f.name in _LEFT_OUT or "token" in f.name or value is None or not _is_plain(value):
                continue
            if standard is None or f.name in ours or value != getattr(standard, f.name):
                config[f.name] = _plain(value)
    if not config.get("datasets"):
        config.pop("datasets", None)
    return config


def to_yaml(config: dict[str, Any]) -> str:
    """Keys in their order, lists of numbers on one line."""
    import yaml

    return "".join(
        yaml.safe_dump({key: value}, allow_unicode=True, width=100, sort_keys=False, default_flow_style=flow)
        for key, value in config.items()
        for flow in [None if isinstance(value, list) and not any(isinstance(item, dict) for item in value) else False]
    )


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(_plain(value))
    except TypeError:
        return False
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) is not None}
    return value


def _num_processes(launcher: argparse.Namespace | None) -> int | None:
    if launcher is None or launcher.num_processes is not None:
        return None if launcher is None else launcher.num_processes
    if launcher.config_file is None:
        return None
    from accelerate.commands.config.config_args import load_config_from_file

    return load_config_from_file(launcher.config_file).num_processes


def _model(model_args: ModelArguments, args: ProGRPOConfig) -> tuple[Family, Lines]:
    from ..adapters import add_adapter, default_lora_config
    from ..families import family_class
    from .skeleton import HUB_OPTIONS, skeleton
    from .train import init_kwargs, lora_config

    options = {name: value for name, value in (init_kwargs(model_args, args) or {}).items() if name in HUB_OPTIONS}
    pipeline = skeleton(model_args.model_name_or_path, **options)
    family = family_class(model_args.model_name_or_path, **options)(
        pipeline,
        height=args.height,
        width=args.width,
        guidance_scale=args.guidance_scale,
        max_sequence_length=args.max_sequence_length,
    )
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


def _data(script_args: ScriptArguments, args: ProGRPOConfig, processes: int) -> tuple[Lines, int | None]:
    from ..data import check_prompts, check_size, check_stream_options, is_stream
    from .data import load_prompts

    train, evaluation = load_prompts(script_args, args.prompt_column)
    check_prompts(train, args.prompt_column, "train_dataset")
    if is_stream(train):
        check_stream_options(args.max_steps, args.drop_text_encoders)
        num_prompts, columns = None, train.column_names or list(next(iter(train)))
    else:
        num_prompts, columns = len(train), train.column_names
        check_size(num_prompts, args.prompts_per_rollout * processes)
    if evaluation is not None:
        check_prompts(evaluation, args.prompt_column, "eval_dataset")
    others = [name for name in columns if name != args.prompt_column]
    return [
        ("training prompts", "a stream" if num_prompts is None else f"{num_prompts:,}"),
        ("held-out prompts", "none" if evaluation is None else f"{len(evaluation):,}"),
        ("columns for rewards", ", ".join(others) or "none"),
    ], num_prompts


def _rewards(script_args: ScriptArguments, args: ProGRPOConfig) -> tuple[Lines, int, int]:
    from ..rewards import RewardRunner

    runner = RewardRunner(script_args.reward_funcs, args.reward_weights)
    trained = [f"{name} (weight {weight:g})" for name, weight in zip(runner.names, runner.weights.tolist())]
    measured = RewardRunner(script_args.eval_reward_funcs).names if script_args.eval_reward_funcs else ["none"]
    lines = [("trained on", ", ".join(trained)), ("measured only", ", ".join(measured))]
    previews = runner
    if script_args.preview_reward_funcs:
        previews = RewardRunner(
            script_args.preview_reward_funcs, args.preview_reward_weights, "preview_reward_weights"
        )
        lines.append(("previews pruned by", ", ".join(previews.names)))
    return lines, len(runner), len(previews)


def _policy(family: Family, args: ProGRPOConfig) -> tuple[Any, tuple[int, ...]]:
    from ..progrpo_trainer import ProGRPOTrainer
    from ..windows import window_steps

    policy = ProGRPOTrainer._make_policy(args, type(family))
    stochastic = policy.stochastic_steps(family.make_schedule(args.num_inference_steps))
    window = args.sde_window, args.sde_window_size, args.sde_window_start, args.sde_window_interval
    return policy, window_steps(stochastic, *window, 0, args.seed)


def _schedule(args, processes: int, cost: RolloutCost, policy, trained_steps: tuple[int, ...]) -> dict[str, Lines]:
    checkpoints = [f"after step {step}" for step in args.prune_steps or []]
    if len(cost.sizes) > len(checkpoints) + 1:
        checkpoints.append("on the final rewards")
    arrows = " -> ".join(map(str, cost.sizes)) + (f" ({', '.join(checkpoints)})" if checkpoints else "")
    trained = cost.prompts * args.num_generations * args.num_iterations
    lines = [
        ("prompts", f"{cost.prompts}"),
        ("per prompt", f"{arrows} trajectories, pruned by {args.pruning_rule}" if checkpoints else f"{arrows} trajectories"),
        ("steps", f"{args.num_inference_steps}, of which {len(trained_steps)} are trained"),
        ("policy", f"{policy!r}"),
        ("images started", f"{cost.sizes[0] * cost.prompts:,}, finished {cost.decodes:,}, "
                           f"trained on {cost.prompts * args.num_generations:,}"),
        ("network evaluations", f"{cost.nfe:,} rows ({cost.nfe / cost.unpruned_nfe:.0%} of no pruning)"),
        ("images decoded", f"{cost.decodes:,}, and {cost.preview_decodes:,} previews"),
        ("reward calls", f"{cost.reward_calls:,} images"),
        ("update", f"{trained * len(trained_steps):,} forward and backward rows, "
                   f"{args.micro_steps_per_rollout // args.gradient_accumulation_steps} optimiser steps"),
    ]  # fmt: skip
    if args.audit_fraction > 0 and checkpoints:
        lines.append(("audits", f"come on top: {args.audit_fraction:.0%} of the groups are also finished unpruned"))
    return {f"one rollout, on each of {processes} process{'es' if processes > 1 else ''}": lines}


def _whole_run(args, processes: int, num_prompts: int | None, cost: RolloutCost) -> dict[str, Lines]:
    updates = args.micro_steps_per_rollout // args.gradient_accumulation_steps
    per_epoch = None if num_prompts is None else math.ceil(num_prompts / (cost.prompts * processes))
    if args.max_steps > 0:
        steps, rollouts = args.max_steps, math.ceil(args.max_steps / updates)
    else:
        rollouts = math.ceil(per_epoch * args.num_train_epochs)
        steps = rollouts * updates
    epochs = "" if per_epoch is None else f", {rollouts / per_epoch:.3g} passes over the prompts"
    return {
        "the whole run": [
            ("optimiser steps", f"{steps:,}"),
            ("rollouts", f"{rollouts:,}{epochs}"),
            ("network evaluations", f"{cost.nfe * rollouts * processes:,} rows in rollouts"),
        ]
    }
