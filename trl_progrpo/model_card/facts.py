# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What a run knows about itself: rewards with their errors, schedule, cost, command and versions."""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__
from ..timing import phase_seconds


if TYPE_CHECKING:
    from ..progrpo_config import ProGRPOConfig
    from ..progrpo_trainer import ProGRPOTrainer


PACKAGES = ("torch", "diffusers", "transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub")
"""Distributions whose versions decide what a run does."""


def evaluation_table(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """
    First and last evaluation of every held-out reward on every evaluation set: `name`, `before`, `before_se`, `after`,
    `after_se`, `gain`, `gain_se`, `num_prompts` and `fell`, whether the loss is above two standard errors.

    `before` and `gain` are `None` where the first evaluation was not before training. The error of a gain treats the two
    evaluations as independent; with the same prompts and noise in both it is usually smaller.
    """
    rows = []
    for prefix in dict.fromkeys(_prefix(key) for entry in log_history for key in entry if _prefix(key)):
        evaluations = [entry for entry in log_history if f"{prefix}_num_prompts" in entry]
        first, last = evaluations[0], evaluations[-1]
        before = first if first.get("step") == 0 and first is not last else None
        for key in last:
            if key.startswith(f"{prefix}_rewards/") and key.endswith("/mean"):
                rows.append(_evaluation_row(prefix, key, before, last))
    return rows


def _prefix(key: str) -> str | None:
    match = re.fullmatch(r"(eval(?:_.+)?)_num_prompts", key)
    return match[1] if match else None


def _evaluation_row(
    prefix: str, key: str, before: Mapping[str, Any] | None, last: Mapping[str, Any]
) -> dict[str, Any]:
    error_key = key.removesuffix("mean") + "stderr"
    dataset = prefix.removeprefix("eval").strip("_")
    name = key.removeprefix(f"{prefix}_rewards/").removesuffix("/mean")
    row = {
        "name": f"{name} ({dataset})" if dataset else name,
        "before": before and before[key],
        "before_se": before and before[error_key],
        "after": last[key],
        "after_se": last[error_key],
        "gain": None,
        "gain_se": None,
        "num_prompts": int(last[f"{prefix}_num_prompts"]),
        "fell": False,
    }
    if before is not None:
        row["gain"], row["gain_se"] = row["after"] - row["before"], math.hypot(row["before_se"], row["after_se"])
        row["fell"] = row["gain"] < -2 * row["gain_se"]
    return row


def training_reward(log_history: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """`first` and `last` logged mean training reward and their `first_step`, `last_step`; `None` if there are not two."""
    logged = [entry for entry in log_history if "reward" in entry]
    if len(logged) < 2:
        return None
    first, last = logged[0], logged[-1]
    return {"first": first["reward"], "first_step": first["step"], "last": last["reward"], "last_step": last["step"]}


def describe_schedule(args: ProGRPOConfig) -> str:
    """One sentence: what was started, pruned and trained."""
    if args.num_expansions == args.num_generations:
        return f"Plain GRPO: {args.num_generations} trajectories per prompt, all trained on."
    sizes = " -> ".join(str(size) for size in [args.num_expansions, *(args.prune_sizes or [])])
    if not args.prune_steps:
        return (
            f"{args.num_expansions} trajectories per prompt were finished; the {args.num_generations} chosen by "
            f"`{args.pruning_rule}` on their rewards were trained on."
        )
    text = f"{sizes} trajectories per prompt, pruned by `{args.pruning_rule}` after steps {args.prune_steps} (0-based)"
    return text + f" of {args.num_inference_steps}; {args.num_generations} were trained on."


def network_evaluations(
    log_history: Sequence[Mapping[str, Any]], args: ProGRPOConfig, nfe_per_row: int
) -> dict[str, float] | None:
    """
    Network evaluations of a rollout on one device, in rows: `measured`, mean over the run; `unpruned`, had every started
    trajectory been finished; `plain`, had only those been started that were trained on. `None` if none was logged.
    """
    logged = [entry["sampling/nfe"] for entry in log_history if "sampling/nfe" in entry]
    if not logged:
        return None
    per_member = args.prompts_per_rollout * args.num_inference_steps * nfe_per_row
    return {
        "measured": math.fsum(logged) / len(logged),
        "unpruned": per_member * args.num_expansions,
        "plain": per_member * args.num_generations,
    }


def audit_table(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """
    Means over a run of `audit/step_{i}/*`, what pruning did to the final rewards of whole groups: one row per checkpoint,
    `step`, `rank_corr`, `reward_std_kept`, `reward_std_random`. Empty unless groups were audited.
    """
    logged: dict[int, dict[str, list[float]]] = {}
    for entry in log_history:
        for key, value in entry.items():
            match = re.fullmatch(r"audit/step_(\d+)/(rank_corr|reward_std_kept|reward_std_random)", key)
            if match and not math.isnan(value):
                logged.setdefault(int(match[1]), {}).setdefault(match[2], []).append(value)
    names = ("rank_corr", "reward_std_kept", "reward_std_random")
    means = {s: {n: math.fsum(v) / len(v) for n, v in values.items()} for s, values in sorted(logged.items())}
    return [{"step": step, **{name: values.get(name, math.nan) for name in names}} for step, values in means.items()]


def compute_table(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per phase: `name`, `seconds`, `share` of their sum; a last row `total`. Empty if nothing was timed."""
    seconds = phase_seconds(log_history)
    total = math.fsum(seconds.values())
    rows = [{"name": name, "seconds": value, "share": value / total} for name, value in seconds.items() if total]
    return [*rows, {"name": "total", "seconds": total, "share": 1.0}] if rows else []


def describe_device(trainer: ProGRPOTrainer) -> str:
    """Number and kind of the devices, and their precision."""
    device = trainer.accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    precision = "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "fp32"
    return f"{trainer.accelerator.num_processes} x {name}, {precision}"


def reproduction_command() -> str | None:
    """
    The command line of this process; `None` in a notebook or an interactive session, which has none.

    Without flags that name a token, key or password, and with `~` for the home folder. Tokens elsewhere are for
    [`~hub.redact`].
    """
    program, *rest = sys.argv
    if not program or hasattr(sys, "ps1") or "ipykernel" in os.path.basename(os.path.dirname(program)):
        return None
    ours = os.path.basename(program) == "trl-progrpo" or os.path.dirname(program).endswith(
        os.path.join("trl_progrpo", "cli")
    )
    command = ["trl-progrpo"] if ours else ["python", program]
    for previous, argument in zip(["", *rest], rest):
        secret = _SECRET_FLAG.fullmatch(argument.partition("=")[0]) or _SECRET_FLAG.fullmatch(previous)
        if not secret:
            command.append(argument)
    return shlex.join(command).replace(str(Path.home()), "~")


_SECRET_FLAG = re.compile(r"--?[\w-]*(?:token|api[_-]?key|password|secret)", re.IGNORECASE)


def versions() -> dict[str, str]:
    """Versions of this package and of [`PACKAGES`] that are installed."""
    found = {"trl_progrpo": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
