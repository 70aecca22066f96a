# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What transformers' Trainer does in another way once weights are shared out among processes."""

from __future__ import annotations

import os

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers.trainer import SCHEDULER_NAME

from ._trl import BaseTrainer
from .sharding import is_sharded, load_optimizer, load_whole_weights, save_optimizer
from .sharding_checks import FSDP2, optimizer_file, sharding_of


class ShardingTrainer(BaseTrainer):
    """
    A Trainer whose model may be one that [`~sharding.shard`] has sharded before training begins, and whose checkpoints
    then have a part of the optimiser from every process. Whole weights are for `_save` to gather, which all processes call.
    """

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # It has told transformers of DeepSpeed once more.
        load_whole_weights(self.args)
        state = self.accelerator.state
        if sharding_of(self.args) == FSDP2 and state.distributed_type == DistributedType.MULTI_CPU:
            # Accelerate leaves FSDP out on a CPU, without a word. What it does elsewhere works there too, and can be tested.
            state.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**(getattr(self.args, "fsdp_plugin_args", None) or {}))
            self.is_fsdp_enabled = True

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_sharded(self.model):
            self._trained = [list(group["params"]) for group in self.optimizer.param_groups]
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        # Accelerate has looked for every parameter by its address. Those of which this process holds no part have none, and
        # got mixed up.
        if is_sharded(self.model):
            for group, parameters in zip(self.optimizer.param_groups, self._trained):
                group["params"] = parameters
        return super().create_scheduler(num_training_steps, optimizer)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes what [`~transformers.Trainer.save_model`] does; every process must call it."""
        if sharding_of(self.args) is None:
            super().save_model(output_dir, _internal_call)
            return
        self._save(output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        os.makedirs(output_dir, exist_ok=True)
        save_optimizer(self.optimizer, optimizer_file(output_dir, self.accelerator.process_index))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_sharded(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_optimizer(self.optimizer, optimizer_file(checkpoint, self.accelerator.process_index))
        state = torch.load(os.path.join(checkpoint, SCHEDULER_NAME), weights_only=True)
        self.lr_scheduler.load_state_dict(state)
