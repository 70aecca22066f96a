# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The models and schedules of the paper (arXiv 2512.15347) in miniature; see `paper.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline
from shapes_ddim import load_shapes_ddim

from trl_progrpo import ProGRPOConfig
from trl_progrpo.cost import PruneSchedule
from trl_progrpo.families import load_pipeline


STEPS = 10
"""Denoising steps of both models. The paper has 10 for flow and 50 for diffusion; checkpoints lie at the same fractions."""

UPDATES = 2
"""Optimiser updates per rollout."""


@dataclass(frozen=True)
class Setting:
    """
    How one model is sampled and trained; what does not stand here is common to both.

    Args:
        load (`Callable`): returns a new pipeline.
        plain ([`PruneSchedule`]): the paper's baseline.
        checkpoints (`tuple`): pairs of prune steps for the ablation, the last one being those of Pro-GRPO.
        keep (`int`): trajectories per prompt that Pro-GRPO trains on.
        middle (`float`): group size between the two checkpoints, as a share of the first.
        trained_steps (`int`): denoising steps that carry noise and are trained, from the first on.
        training (`Mapping`): of [`ProGRPOConfig`].
    """

    load: Callable[[], DiffusionPipeline]
    plain: PruneSchedule
    checkpoints: tuple[tuple[int, int], ...]
    keep: int
    middle: float
    trained_steps: int
    training: Mapping[str, Any]

    def pro(self, num_expansions: int = 48, prune_steps: tuple[int, int] | None = None) -> PruneSchedule:
        """Pro-GRPO with another first group size or other checkpoints."""
        sizes = (round(self.middle * num_expansions), self.keep)
        return PruneSchedule(STEPS, self.keep, num_expansions, prune_steps or self.checkpoints[-1], sizes)

    def studies(self) -> dict[str, list[PruneSchedule]]:
        """Which schedules each of the paper's figures and tables compares."""
        return {
            "curves": [self.plain, self.pro()],
            "group_sizes": [self.pro(size) for size in (32, 48, 64)],
            "checkpoints": [self.pro(prune_steps=steps) for steps in self.checkpoints],
        }

    def config(self, schedule: PruneSchedule, prompts: int, iterations: int, **changes: Any) -> ProGRPOConfig:
        """Of a run with `prompts` prompts in each of `iterations` rollouts."""
        rows = prompts * schedule.num_generations
        return ProGRPOConfig(
            num_inference_steps=STEPS,
            num_generations=schedule.num_generations,
            num_expansions=schedule.num_expansions,
            prune_steps=list(schedule.prune_steps) or None,
            prune_sizes=list(schedule.prune_sizes) or None,
            preview_decoder="shapes",
            audit_fraction=0.0,
            sde_window="fixed",
            sde_window_size=self.trained_steps,
            per_device_train_batch_size=rows // UPDATES,
            steps_per_generation=UPDATES,
            rollout_batch_size=192,
            max_steps=iterations * UPDATES,
            logging_steps=UPDATES,
            **{**self.training, **changes},
        )


SETTINGS = {
    "flow": Setting(
        load=lambda: load_pipeline("shapes"),
        plain=PruneSchedule.plain(STEPS, 24),
        checkpoints=((1, 3), (3, 5), (5, 7)),
        keep=12,
        middle=1 / 2,
        trained_steps=6,
        training={"noise_level": 0.7, "learning_rate": 2e-3, "epsilon": 1e-3, "step_weighting": 2, "ema_decay": 0.95},
    ),
    "diffusion": Setting(
        load=load_shapes_ddim,
        plain=PruneSchedule.plain(STEPS, 16),
        checkpoints=((2, 4), (4, 6), (6, 8)),
        keep=8,
        middle=2 / 3,
        trained_steps=9,
        training={"eta": 1.0, "learning_rate": 2e-3, "epsilon": 1e-3, "step_weighting": 2, "ema_decay": 0.95},
    ),
}


def name_of(schedule: PruneSchedule) -> str:
    """`plain 24`, or `48 -> 24 -> 12 after 5, 7`."""
    if len(schedule.sizes) == 1:
        return f"plain {schedule.num_generations}"
    return f"{' -> '.join(map(str, schedule.sizes))} after {', '.join(map(str, schedule.prune_steps))}"
