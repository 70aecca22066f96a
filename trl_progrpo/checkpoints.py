# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What a checkpoint holds beyond transformers' own files: trained weights, their average, and a rollout in progress."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from .adapters import ADAPTER_FILE, RAW_ADAPTER_FILE, load_adapter, save_adapter, trainable_parameters
from .model_card import name_on_hub
from .saving import save_denoiser, save_pipeline
from .types import Rollout


if TYPE_CHECKING:
    from .progrpo_trainer import ProGRPOTrainer


def check_checkpoint(folder: str) -> None:
    """
    Raises:
        ValueError: if `folder` is no checkpoint.
    """
    if not os.path.isfile(os.path.join(folder, "trainer_state.json")):
        raise ValueError(
            f"`resume_from_checkpoint` is {folder!r}, which is no checkpoint folder (it has no trainer_state.json); give a "
            "`checkpoint-*` folder or leave it unset."
        )


def save_weights(trainer: ProGRPOTrainer, folder: str, raw: bool = False, whole: bool = False) -> None:
    """
    Writes the trained weights as they are now.

    Args:
        trainer ([`ProGRPOTrainer`]): whose they are.
        folder (`str`): where to.
        raw (`bool`, *optional*, defaults to `False`): under names that pipelines do not read, beside the average.
        whole (`bool`, *optional*, defaults to `False`): without LoRA, whether to write the rest of the pipeline too. It is
            frozen: once is enough.
    """
    if trainer.use_adapter:
        weight_name = RAW_ADAPTER_FILE if raw else ADAPTER_FILE
        save_adapter(trainer.family, folder, weight_name, name_on_hub(trainer.model_name))
    elif raw or not whole or folder in trainer.whole_pipelines:
        save_denoiser(trainer.family, folder, "_raw" if raw else "")
    else:
        init_kwargs = trainer.args.model_init_kwargs or {}
        save_pipeline(trainer.family, folder, trainer.model_name, trainer.prompt_cache.dropped, **init_kwargs)
        trainer.whole_pipelines.add(folder)


def load_weights(trainer: ProGRPOTrainer, folder: str) -> None:
    """Loads what [`save_weights`] wrote into a checkpoint, and the average with its count of updates."""
    family, name, ema = trainer.family, trainer.family.denoiser_name, trainer.ema
    if ema is None:
        _load(trainer, folder, ADAPTER_FILE, name)
        return
    _load(trainer, folder, ADAPTER_FILE, name)
    ema.shadow_params = [parameter.detach().clone() for parameter in trainable_parameters(family.denoiser)]
    with open(os.path.join(folder, "trainer_state.json")) as file:
        ema.optimization_step = json.load(file)["global_step"] // trainer.args.ema_update_interval
    _load(trainer, folder, RAW_ADAPTER_FILE, f"{name}_raw")


def _load(trainer: ProGRPOTrainer, folder: str, adapter_file: str, denoiser_folder: str) -> None:
    family = trainer.family
    if trainer.use_adapter:
        load_adapter(family, os.path.join(folder, adapter_file))
    else:
        loaded = type(family.denoiser).from_pretrained(os.path.join(folder, denoiser_folder))
        family.denoiser.load_state_dict(loaded.state_dict())


def save_rollout(rollout: Rollout, folder: str, rank: int) -> None:
    """Writes the rollout that a checkpoint falls into, for the process `rank`."""
    tensors = {name: tensor.contiguous() for name, tensor in rollout.state_dict().items()}
    save_file(tensors, _rollout_file(folder, rank), metadata={"rollout_index": str(rollout.rollout_index)})


def load_rollout(folder: str, rank: int) -> dict[str, torch.Tensor] | None:
    """The tensors of `Rollout.state_dict` that [`save_rollout`] wrote, on the CPU, or `None` if there was no need."""
    path = _rollout_file(folder, rank)
    return load_file(path) if os.path.isfile(path) else None


def _rollout_file(folder: str, rank: int) -> str:
    return os.path.join(folder, f"rollout_{rank}.safetensors")
