# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The training runs of `paper.py`: one JSONL file per schedule and seed, finished ones left as they are."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TextIO

from paper_settings import SETTINGS, UPDATES, name_of
from transformers import TrainerCallback

from trl_progrpo import ProGRPOTrainer
from trl_progrpo.cost import PruneSchedule
from trl_progrpo.tiny import load_shapes, shapes_reward


EVAL_SEED = 1234
"""Held-out prompts and the noise their images start from are the same in all runs."""


@dataclass(frozen=True)
class Size:
    """
    How large the runs are.

    Args:
        iterations (`int`): rollouts.
        prompts (`int`): prompts per rollout.
        eval_prompts (`int`): held-out prompts.
        eval_every (`int`): rollouts between two evaluations; the first and the last weights are always evaluated.
    """

    iterations: int
    prompts: int
    eval_prompts: int
    eval_every: int


@dataclass(frozen=True)
class Run:
    """
    A finished run.

    Attributes:
        rollouts (`list[dict]`): per rollout `iteration`, `reward` and `reward_std` of what was trained on, `seconds` (of one
            core, evaluation left out), `nfe`, `training_passes`.
        evaluations (`list[dict]`): `iteration`, `reward`, `stderr`.
    """

    rollouts: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]

    @property
    def held_out(self) -> float:
        return self.evaluations[-1]["reward"]

    def total(self, key: str) -> float:
        """Sum over the rollouts of one of their numbers."""
        return sum(rollout[key] for rollout in self.rollouts)

    @property
    def spread(self) -> float:
        """Standard deviation of rewards within the groups that were trained on, mean over the run."""
        return self.total("reward_std") / len(self.rollouts)

    def seconds_until(self, iteration: int) -> float:
        """Seconds of training in the first so many rollouts."""
        return sum(rollout["seconds"] for rollout in self.rollouts[:iteration])


def runs(model: str, schedule: PruneSchedule, seeds: Sequence[int], size: Size, folder: Path) -> list[Run]:
    """One run per seed, read from `folder` or made now."""
    found = []
    for seed in seeds:
        settings = {"model": model, "schedule": name_of(schedule), "seed": seed, **vars(size)}
        settings.update(SETTINGS[model].training)
        path = (
            folder
            / f"{model}_{name_of(schedule).replace(' -> ', '-').replace(', ', '-').replace(' ', '_')}_{seed}.jsonl"
        )
        if not path.is_file():
            print(f"training {model}, {name_of(schedule)}, seed {seed}", flush=True)
            train(model, schedule, seed, size, settings, path)
        found.append(read(path, settings))
    return found


def read(path: Path, settings: dict[str, Any]) -> Run:
    """
    Raises:
        ValueError: if the file is of a run of other settings.
    """
    first, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    other = sorted(key for key in settings if first.get(key) != settings[key])
    if other:
        key = other[0]
        raise ValueError(
            f"{path} is of a run with {key} {first.get(key)}, not {settings[key]}; remove it, or choose another `--output`."
        )
    return Run(
        [line["rollout"] for line in lines if "rollout" in line],
        [line["evaluation"] for line in lines if "evaluation" in line],
    )


def train(model: str, schedule: PruneSchedule, seed: int, size: Size, settings: dict[str, Any], path: Path) -> None:
    """Trains and writes the log; only a finished run has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    with tempfile.TemporaryDirectory() as folder, open(unfinished, "w", encoding="utf-8") as file:
        file.write(json.dumps(settings) + "\n")
        config = SETTINGS[model].config(
            schedule,
            size.prompts,
            size.iterations,
            output_dir=folder,
            seed=seed,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            num_validation_prompts=0,
        )
        trainer = ProGRPOTrainer(
            model=SETTINGS[model].load(), reward_funcs="shapes", args=config, train_dataset=load_shapes("train")
        )
        log = _Log(trainer, size, file)
        trainer.add_callback(log)
        log.evaluate(0)
        trainer.train()
    unfinished.rename(path)


class _Log(TrainerCallback):
    """Evaluates, and writes what comes out and what each rollout was like."""

    def __init__(self, trainer: ProGRPOTrainer, size: Size, file: TextIO):
        self.trainer, self.size, self.file = trainer, size, file
        self.prompts = load_shapes("test").shuffle(seed=EVAL_SEED)["prompt"][: size.eval_prompts]
        self.counted_until = time.process_time()

    def on_train_begin(self, args, state, control, **kwargs):
        self.counted_until = time.process_time()

    def on_log(self, args, state, control, logs, **kwargs):
        if "sampling/nfe" not in logs:
            return
        rows = args.per_device_train_batch_size * args.steps_per_generation
        passes = rows * len(self.trainer.last_rollout.step_indices) * self.trainer.family.nfe_per_row
        counts = {"seconds": self._clock(), "nfe": logs["sampling/nfe"], "training_passes": passes}
        kept = {name: logs[name] for name in logs if name in ("reward", "reward_std") or name.startswith("prune/")}
        self._write("rollout", {"iteration": state.global_step // UPDATES, **kept, **counts})

    def on_step_end(self, args, state, control, **kwargs):
        iteration, rest = divmod(state.global_step, UPDATES)
        if rest == 0 and (iteration % self.size.eval_every == 0 or iteration == self.size.iterations):
            self.evaluate(iteration)

    def evaluate(self, iteration: int) -> None:
        """Mean reward and its standard error over the held-out prompts, one noise-free image each; off the clock."""
        began = time.process_time()
        images = self.trainer.generate(self.prompts, seed=EVAL_SEED)
        rewards = shapes_reward(self.prompts, images)
        values = {"reward": fmean(rewards), "stderr": stdev(rewards) / len(rewards) ** 0.5}
        self._write("evaluation", {"iteration": iteration, **values})
        self.counted_until += time.process_time() - began

    def _clock(self) -> float:
        """Seconds of this process since it was last asked."""
        last, self.counted_until = self.counted_until, time.process_time()
        return self.counted_until - last

    def _write(self, kind: str, values: dict[str, Any]) -> None:
        self.file.write(json.dumps({kind: values}) + "\n")
        self.file.flush()
