# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What a run costs in seconds on this machine, and what its groups look like, found out by running small ones."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from .cost import PruneSchedule, UnitCost, WorkCount
from .isolation import isolated
from .planning import RecordedGroups
from .policies import Policy
from .progrpo_config import ProGRPOConfig
from .progrpo_trainer import ProGRPOTrainer
from .recording import in_parts, record_groups
from .timing import PHASES


def calibration_config(args: ProGRPOConfig, output_dir: str, previews: bool = False) -> ProGRPOConfig:
    """
    The configuration of a run of the smallest rollouts that use whole batches: the same networks, batch sizes and precision,
    two denoising steps, one prompt, no evaluation, trackers or checkpoints.

    Args:
        args ([`ProGRPOConfig`]): of the run to be measured; left as it is.
        output_dir (`str`): an empty folder.
        previews (`bool`, *optional*, defaults to `False`): whether there are previews even if the run has none.
    """
    previews = previews or bool(args.prune_steps) or args.prune_schedule is not None
    small = copy.copy(args)
    trained, calls = max(2, args.per_device_train_batch_size), args.rollout_batch_size
    # Whole batches of every kind: what is finished beyond those that are trained on falls to a last selection.
    finished = _multiple(args.decode_batch_size or calls, trained)
    started = _multiple(calls, finished)
    if previews and started == finished:
        # Something to prune: a checkpoint that drops nothing is none.
        started += calls
    changes = {
        "output_dir": output_dir,
        "num_generations": trained,
        "num_expansions": started,
        "prune_steps": [0] if previews else None,
        "prune_sizes": [finished] if previews else None,
        "prune_schedule": None,
        "num_inference_steps": 2,
        "sde_window": None,
        "prompts_per_rollout": None,
        "eval_on_start": False,
        "steps_per_generation": trained // args.per_device_train_batch_size,
        "gradient_accumulation_steps": trained // args.per_device_train_batch_size,
        "num_iterations": 1,
        "audit_fraction": 0.0,
        "rollout_waves": 1,
        "max_steps": 1_000_000,
        "warmup_steps": 0,
        "logging_steps": 1,
        "logging_strategy": "steps",
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "push_to_hub": False,
        "load_best_model_at_end": False,
        "log_completions": False,
        "num_validation_prompts": 0,
        "disable_tqdm": True,
    }
    for name, value in changes.items():
        setattr(small, name, value)
    return small


def _multiple(size: int, number: int) -> int:
    """The smallest multiple of `size` that is at least `number`."""
    return size * -(-number // size)


def measure_seconds(trainer: ProGRPOTrainer, seconds: float = 30.0) -> UnitCost:
    """
    Seconds per piece of work, from as many rollouts and updates as fit into `seconds`, at least one. They come after a first
    one, in which kernels are chosen and compiled, and which counts for nothing.

    Args:
        trainer ([`ProGRPOTrainer`]): of a [`calibration_config`]; it is trained, so throw it away.
        seconds (`float`, *optional*, defaults to 30.0): roughly how long this may take, after the first one.
    """
    args, sampler = trainer.args, trainer.sampler
    # Several functions, or one that is both: previews and finished images are timed apart.
    preview_seconds, final_seconds = [], []
    scorers, clock = (sampler.preview_scorer, sampler.scorer), _Clock(seconds, trainer.accelerator.device)
    sampler.preview_scorer, sampler.scorer = _timed(scorers[0], preview_seconds), _timed(scorers[1], final_seconds)
    trainer.add_callback(clock)
    try:
        trainer.train()
    finally:
        sampler.preview_scorer, sampler.scorer = scorers
        trainer.remove_callback(clock)
    rollouts = [entry for entry in trainer.state.log_history if "time/denoise" in entry]
    used = slice(1, None)
    phase = {name: _mean([entry.get(f"time/{name}", 0.0) for entry in rollouts[used]]) for name in PHASES}
    steps, sizes = tuple(args.prune_steps or ()), tuple(args.prune_sizes or ())
    schedule = PruneSchedule(args.num_inference_steps, args.num_generations, args.num_expansions, steps, sizes)
    work = WorkCount.of(
        schedule,
        trained_steps=len(trainer.last_rollout.step_indices),
        nfe_per_row=trainer.family.nfe_per_row,
        num_rewards=len(trainer.reward_runner),
        num_preview_rewards=len(trainer.preview_reward_runner),
    )
    network = phase["denoise"] / work.nfe
    reference = network if args.beta > 0 else 0.0
    return UnitCost(
        network=network,
        # With a KL term the update's seconds hold a forward pass of the reference, which is counted by itself.
        training=max(0.0, phase["update"] / work.training_passes - reference),
        decode=phase["decode"] / work.decodes,
        preview=phase["preview"] / work.preview_decodes if steps else 0.0,
        reward=_mean(final_seconds[used]) / work.final_reward_calls,
        preview_reward=_mean(preview_seconds[used]) / work.preview_reward_calls if steps else 0.0,
    )


def record_untrained(
    trainer: ProGRPOTrainer,
    rows: Sequence[Mapping[str, Any]],
    level: float,
    policy: Policy,
    noise_steps: Sequence[int],
    num_inference_steps: int,
    num_expansions: int,
    groups_at_once: int | None = None,
) -> RecordedGroups:
    """
    Whole groups of a trainer's policy as it is now; see [`record_groups`].

    Args:
        trainer ([`ProGRPOTrainer`]): of any schedule and number of steps.
        rows (`Sequence[Mapping]`): rows of data with a prompt, one group each.
        level (`float`): of noise.
        policy ([`~policies.Policy`]): with that noise.
        noise_steps (`Sequence[int]`): steps that carry it.
        num_inference_steps (`int`): denoising steps.
        num_expansions (`int`): trajectories per group.
        groups_at_once (`int`, *optional*): as many are in memory at a time; all when unset.
    """
    denoiser, column = trainer.family.denoiser, trainer.args.prompt_column
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != column}
    prompts = [row[column] for row in rows]
    recorded = []
    with isolated(denoiser):
        denoiser.eval()
        for start, *part in in_parts(prompts, columns, groups_at_once or len(rows)):
            with torch.no_grad(), trainer.accelerator.autocast():
                found = record_groups(
                    trainer.sampler,
                    denoiser,
                    *part,
                    level=level,
                    num_expansions=num_expansions,
                    num_inference_steps=num_inference_steps,
                    policy=policy,
                    conditioning=trainer.prompt_cache(part[0], trainer.args.negative_prompt),
                    noise_steps=noise_steps,
                    first_slot=start,
                )
            recorded.append(found)
    previews = {step: torch.cat([groups.previews[step] for groups in recorded]) for step in recorded[0].previews}
    return RecordedGroups(level, previews, torch.cat([groups.final for groups in recorded]))


class _Clock(TrainerCallback):
    """Stops training when the time is up; waits for the device after every batch, so that each phase has its own seconds."""

    def __init__(self, seconds: float, device: torch.device):
        self.seconds, self.device = seconds, device
        self.until: float | None = None

    def on_phase(self, args, state, control, **kwargs):
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log = True
        if self.until is None:
            self.until = time.perf_counter() + self.seconds
        else:
            control.should_training_stop = time.perf_counter() >= self.until


def _timed(scorer: Callable[..., torch.Tensor], seconds: list[float]) -> Callable[..., torch.Tensor]:
    def scored(*args, **kwargs) -> torch.Tensor:
        start = time.perf_counter()
        rewards = scorer(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return rewards

    return scored


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
