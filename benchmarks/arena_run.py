# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""One run of the arena: one method, one seed, up to a budget of compute, with everything logged that the comparison needs."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from arena_report import DONE
from arena_switches import SWITCHES
from datasets import concatenate_datasets
from transformers import TrainerCallback

from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
from trl_progrpo.flops import unit_flops
from trl_progrpo.tiny import load_shapes
from trl_progrpo.types import SamplingCost


@dataclass(frozen=True)
class Budget:
    """
    What a run may use up. It ends after the optimiser update in which all of the given limits are reached, so that every curve
    spans every axis.

    Args:
        teraflops (`float`): counted in the networks: denoiser with its backward pass, decoders.
        seconds (`float`, *optional*, defaults to 0): of this process's CPU, evaluation left out.
        evaluations (`int`, *optional*, defaults to 8): held-out evaluations, evenly spaced in FLOPs, besides the first one.
    """

    teraflops: float
    seconds: float = 0.0
    evaluations: int = 8


class Meter(TrainerCallback):
    """Counts what training costs, asks for evaluations at equal costs, and stops at the budget."""

    def __init__(self, trainer: ProGRPOTrainer, budget: Budget):
        self.trainer, self.budget = trainer, budget
        prompts = [trainer.train_dataset[0][trainer.args.prompt_column]]
        conditioning = trainer.prompt_cache(prompts, trainer.args.negative_prompt)
        self.unit = unit_flops(trainer.family, conditioning, trainer.preview_decoder, trainer.args.preview_downscale)
        self.flops, self.network_evaluations = 0.0, 0
        self.chosen_for = SamplingCost()
        self.counted_rollout, self.evaluation_seconds, self.evaluated = None, 0.0, 0
        self.cpu = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        trainer, unit = self.trainer, self.unit
        rollout = trainer.last_rollout
        if rollout.rollout_index != self.counted_rollout:
            cost = rollout.cost + self._choosing()
            self.counted_rollout = rollout.rollout_index
            self.network_evaluations += cost.nfe
            self.flops += cost.nfe * unit.network + cost.decodes * unit.decode + cost.preview_decodes * unit.preview
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self.flops += rows * len(rollout.step_indices) * trainer.family.nfe_per_row * unit.training
        mark = (self.evaluated + 1) / self.budget.evaluations
        if self.spent >= mark:
            self.evaluated = int(self.spent * self.budget.evaluations)
            control.should_evaluate = True
            control.should_training_stop = self.spent >= 1 and self.seconds >= self.budget.seconds

    def _choosing(self) -> SamplingCost:
        """What `prune_schedule="auto"` has sampled to choose by since this was asked last."""
        before, auto = self.chosen_for, self.trainer.auto_schedule
        self.chosen_for = before if auto is None else auto.cost
        return SamplingCost(*(now - then for now, then in zip(astuple(self.chosen_for), astuple(before))))

    @property
    def spent(self) -> float:
        """FLOPs used up, as a share of the budget."""
        return self.flops / (1e12 * self.budget.teraflops)

    @property
    def seconds(self) -> float:
        """CPU seconds of training so far."""
        return time.process_time() - self.cpu - self.evaluation_seconds

    def point(self, metrics: dict[str, float]) -> dict[str, Any]:
        """One line of the log."""
        return {
            "rollouts": 0 if self.counted_rollout is None else self.counted_rollout + 1,
            "updates": self.trainer.state.global_step,
            "teraflops": self.flops / 1e12,
            "seconds": self.seconds,
            "network_evaluations": self.network_evaluations,
            "reward": metrics["eval_reward"],
            "reward_stderr": metrics["eval_reward_stderr"],
        }


class _Measured:
    """For a trainer: evaluates off the clock and writes down what came out."""

    meter: Meter
    write: Any

    def evaluate(self, *args, **kwargs):
        began = time.process_time()
        metrics = super().evaluate(*args, **kwargs)
        self.meter.evaluation_seconds += time.process_time() - began
        self.write(self.meter.point(metrics))
        return metrics


def run(
    settings: dict[str, Any],
    seed: int,
    budget: Budget,
    log: Path,
    *,
    variant: str = "flow",
    eval_prompts: int = 256,
    eval_images: int = 1,
    eval_on: str = "test",
) -> None:
    """
    Trains and writes a JSONL file: one line of settings, one per evaluation, and one of metrics per rollout; the last line is
    `{"done": true}`.

    Args:
        settings (`dict`): of [`ProGRPOConfig`], and `switch`, the name of one of `arena_switches.py`, or none.
        seed (`int`): of the run; with it come prompts, noise and initial LoRA weights.
        budget ([`Budget`]): when to stop.
        log (`Path`): the file, written anew.
        variant (`str`, *optional*, defaults to `"flow"`): the embedded model as it is, or `"ddim"`, read as a diffusion model.
        eval_prompts (`int`, *optional*, defaults to 256): held-out prompts, the same for all runs.
        eval_images (`int`, *optional*, defaults to 1): images of each, from as many initial noises.
        eval_on (`str`, *optional*, defaults to `"test"`): `"train"` evaluates on training prompts, for tuning.
    """
    torch.set_num_threads(1)
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, open(log, "w", encoding="utf-8") as file:

        def write(values: dict[str, Any]) -> None:
            file.write(json.dumps(values) + "\n")
            file.flush()

        write({"settings": settings, "seed": seed, "budget": asdict(budget), "variant": variant, "eval_on": eval_on})
        settings = dict(settings)
        trainer_class = SWITCHES.get(settings.pop("switch", None), ProGRPOTrainer)
        args = ProGRPOConfig(
            output_dir=folder,
            seed=seed,
            max_steps=100_000,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            eval_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            num_validation_prompts=0,
            per_device_eval_batch_size=128,
            **settings,
        )
        model = "shapes"
        if variant == "ddim":
            from shapes_ddim import load_shapes_ddim

            model = load_shapes_ddim()
        trainer = type("Measured", (_Measured, trainer_class), {})(
            model=model,
            reward_funcs="shapes",
            args=args,
            train_dataset=load_shapes("train"),
            eval_dataset=concatenate_datasets(
                [load_shapes(eval_on).shuffle(seed=0).select(range(eval_prompts))] * eval_images
            ),
        )
        trainer.write = write
        trainer.meter = Meter(trainer, budget)
        trainer.add_callback(trainer.meter)
        trainer.evaluate()
        trainer.train()
        keys = ("reward", "reward_std", "time/", "prune/", "clip_ratio/region_mean", "ratio/deviation", "grad_norm")
        for entry in trainer.state.log_history:
            kept = {key: value for key, value in entry.items() if key.startswith(keys) or key == "step"}
            if len(kept) > 1:
                write({"log": kept})
        write(DONE)
