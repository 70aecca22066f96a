# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What transformers' training loop needs and a diffusers model or the loop itself does not have."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import torch
from diffusers.configuration_utils import FrozenDict
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from .adapters import averaged_tensors
from .checkpoints import load_run_state
from .optimizers import begin_averaging


if TYPE_CHECKING:
    from .progrpo_trainer import ProGRPOTrainer


class LoggableConfig(FrozenDict):
    """A diffusers config with what transformers' logging callbacks ask of a model's config."""

    model_type = "diffusers"

    def to_dict(self) -> dict[str, Any]:
        return dict(self)

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, default=str)


def dress_for_the_loop(denoiser: torch.nn.Module) -> None:
    """Gives a diffusers model what the loop asks of a model of transformers."""
    denoiser._internal_dict = LoggableConfig(denoiser.config)
    # The loop switches on what already is: diffusers' method has another name.
    denoiser.activation_checkpointing_enable = denoiser.gradient_checkpointing_enable = _is_on


def _is_on(**kwargs: Any) -> None:
    pass


def keep_tensorboard_in(callbacks: Iterable[TrainerCallback], output_dir: str) -> None:
    """Tells TensorBoard's callback where to write; of itself it learns that only when training begins."""
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            run = f"{datetime.now():%b%d_%H-%M-%S}_{socket.gethostname()}"
            callback.logging_dir = os.path.join(output_dir, "runs", run)


def _evaluated(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key.endswith(("_num_prompts", "_reward"))}


class LoopCallback(TrainerCallback):
    """What the training loop does not do by itself: keep earlier evaluations, and tell the sampler which epoch begins."""

    def __init__(self, trainer: ProGRPOTrainer):
        self.trainer = trainer
        self.evaluations: list[dict[str, Any]] = []

    def keep_evaluations(self) -> None:
        """Takes those before training out of the log that the loop is about to drop."""
        self.evaluations = [
            entry
            for entry in self.trainer.state.log_history
            if entry["step"] == 0 and any(key.startswith("eval_") for key in entry)
        ]

    def on_train_begin(self, args, state, control, **kwargs):
        begin_averaging(self.trainer.optimizer)
        # Those of the checkpoint are in it.
        state.compute_steps(args, state.max_steps)
        # The loop starts with an empty log, or that of a checkpoint, which has them already, unless they are of other prompts.
        begun = [entry for entry in state.log_history if entry.get("step") == 0]
        known = [_evaluated(entry) for entry in begun]
        state.log_history[len(begun) : len(begun)] = [e for e in self.evaluations if _evaluated(e) not in known]
        self.evaluations = []
        if self.trainer._resumed_from is not None:
            load_run_state(self.trainer, self.trainer._resumed_from)
        if state.is_world_process_zero and state.global_step == 0 and not self.trainer.use_adapter:
            self.trainer.card_pictures.remember_before()
        self.trainer.tell("on_arithmetic", lines=self.trainer.arithmetic())

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.prompt_sampler.set_epoch(int(state.epoch or 0))


class AverageCallback(TrainerCallback):
    """Takes every update up into the moving average; the first of all callbacks, for others may sample with it."""

    def __init__(self, trainer: ProGRPOTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % args.ema_update_interval == 0:
            self.trainer.ema.step(averaged_tensors(self.trainer.family.denoiser))
