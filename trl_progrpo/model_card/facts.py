# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What a run knows about itself: training rewards, schedule, settings, cost and versions."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__
from ..cost import SCHEDULE_FIELDS
from ..metrics import checkpoint_means
from ..policies import POLICIES, noise_option
from ..timing import phase_seconds
from ..words import counted


if TYPE_CHECKING:
    from ..progrpo_config import ProGRPOConfig
    from ..progrpo_trainer import ProGRPOTrainer


PACKAGES = ("torch", "diffusers", "transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub")
"""Distributions whose versions decide what a run does."""


def training_reward(log_history: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """`first` and `last` logged mean training reward and their `first_step`, `last_step`; `None` if there are not two."""
    logged = [entry for entry in log_history if "reward" in entry]
    if len(logged) < 2:
        return None
    first, last = logged[0], logged[-1]
    return {"first": first["reward"], "first_step": first["step"], "last": last["reward"], "last_step": last["step"]}


def describe_schedule(args: ProGRPOConfig, choices: Sequence[Mapping[str, Any]] = ()) -> str:
    """
    One sentence: what was started, pruned and trained.

    Args:
        args ([`ProGRPOConfig`]): of the run.
        choices (`Sequence[Mapping]`, *optional*): schedules of a run that chose them itself, see
            [`~auto_schedule.ScheduleChoices`].
    """
    if choices:
        last = SimpleNamespace(
            **{**vars(args), **{name: choices[-1][name] for name in SCHEDULE_FIELDS}, "prune_schedule": None}
        )
        when = "once" if len(choices) == 1 else f"{len(choices)} times, from rollout {choices[-1]['rollout']} on"
        return f"Chosen by measurement ({when}): {describe_schedule(last)}"
    if getattr(args, "prune_schedule", None) is not None:
        interval = args.prune_schedule_interval
        return (
            f"A schedule of at most {args.num_expansions} trajectories per prompt, chosen by measurement before the first "
            f"rollout{f' and after every {interval}' if interval else ''}; {args.num_generations} are trained on."
        )
    if args.num_expansions == args.num_generations:
        return f"Plain GRPO: {args.num_generations} trajectories per prompt, all trained on."
    sizes = " → ".join(str(size) for size in [args.num_expansions, *(args.prune_sizes or [])])
    if not args.prune_steps:
        return (
            f"{args.num_expansions} trajectories per prompt were finished; the {args.num_generations} chosen by "
            f"`{args.pruning_rule}` on their rewards were trained on."
        )
    steps = " and ".join(map(str, args.prune_steps))
    plural = "s" if len(args.prune_steps) > 1 else ""
    return (
        f"{sizes} trajectories per prompt, pruned by `{args.pruning_rule}` after step{plural} {steps} of "
        f"{args.num_inference_steps} (counted from 0); {args.num_generations} were trained on."
    )


def settings_table(trainer: ProGRPOTrainer) -> list[tuple[str, str]]:
    """Name and value of what one would look for first, in words."""
    args = trainer.args
    policy = args.policy or trainer.family.policies[0]
    noise = noise_option(POLICIES.get(policy))
    count = len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else None
    rows = [
        ("training prompts", f"{count:,}" if count is not None else "streamed" if trainer.train_dataset else None),
        ("trajectories", describe_schedule(args, trainer.schedule_choices).rstrip(".")),
        ("sampling", f"{counted(args.num_inference_steps, 'step')}, guidance scale {args.guidance_scale}"),
        ("policy", f"`{policy}`, {noise.replace('_', ' ')} {getattr(args, noise)}"),
        (
            "trained steps",
            f"a {args.sde_window} window, `sde_window_size` {args.sde_window_size}"
            if args.sde_window
            else "all with noise",
        ),
        ("learning rate", f"{args.learning_rate:g}"),
        ("clip width", f"{args.epsilon:g}"),
        ("KL weight", f"{args.beta:g}"),
        ("loss weights of the steps", f"std^{args.step_weighting:g}" if args.step_weighting else None),
        ("weights", describe_weights(trainer)),
        ("seed", str(args.seed)),
    ]
    return [(name, value) for name, value in rows if value is not None]


def describe_weights(trainer: ProGRPOTrainer) -> str:
    """Return what is trained: the adapter with rank and alpha, or all of the denoiser; and whether it is averaged."""
    args, text = trainer.args, "all of the denoiser"
    if trainer.use_adapter:
        lora = trainer.family.denoiser.peft_config["default"]
        text = f"LoRA of rank {lora.r} and alpha {lora.lora_alpha}"
    return text + (f", averaged with decay {args.ema_decay:g}" if trainer.ema is not None else "")


def network_evaluations(
    log_history: Sequence[Mapping[str, Any]], args: ProGRPOConfig, nfe_per_row: int, groups: float
) -> dict[str, float] | None:
    """
    Network evaluations of a rollout on one device, in rows: `measured`, mean over the run; `unpruned`, had every started
    trajectory been finished; `plain`, had only those been started that were trained on. `None` if none was logged. What
    was sampled to choose a schedule by is not counted. `groups` is how many a device samples in a rollout.
    """
    logged = [entry["sampling/nfe"] for entry in log_history if "sampling/nfe" in entry]
    if not logged:
        return None
    per_member = groups * args.num_inference_steps * nfe_per_row
    chosen = [
        entry["prune_schedule/num_expansions"] for entry in log_history if "prune_schedule/num_expansions" in entry
    ]
    started = math.fsum(chosen) / len(chosen) if chosen else args.num_expansions
    return {
        "measured": math.fsum(logged) / len(logged),
        "unpruned": per_member * started,
        "plain": per_member * args.num_generations,
    }


def audit_table(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """
    Means over a run of `audit/step_{i}/*`, what pruning did to the final rewards of whole groups: one row per checkpoint,
    `step`, `rank_corr`, `reward_std_kept`, `reward_std_random`. Empty unless groups were audited.
    """
    names = ("rank_corr", "reward_std_kept", "reward_std_random")
    means = checkpoint_means(log_history, "audit")
    return [{"step": step, **{name: values.get(name, math.nan) for name in names}} for step, values in means.items()]


def compute_table(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per phase: `name`, `seconds`, `share` of their sum; a last row `total`. Empty if nothing was timed."""
    seconds = phase_seconds(log_history)
    total = math.fsum(seconds.values())
    rows = [{"name": name, "seconds": value, "share": value / total} for name, value in seconds.items() if total]
    return [*rows, {"name": "total", "seconds": total, "share": 1.0}] if rows else []


def describe_device(trainer: ProGRPOTrainer) -> str:
    """Number and kind of the devices (of a CPU the threads), and their precision."""
    device, threads = trainer.accelerator.device, torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    if device.type == "cpu":
        name += f" with {counted(threads, 'thread')}"
    precision = "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "fp32"
    return f"{trainer.accelerator.num_processes} x {name}, {precision}"


def versions() -> dict[str, str]:
    """Versions of this package and of [`PACKAGES`] that are installed."""
    found = {"trl_progrpo": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
