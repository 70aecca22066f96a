# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What of FSDP and DeepSpeed a run can have, by its arguments and what `accelerate launch` set; before there are weights."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from transformers.training_args import ParallelMode


if TYPE_CHECKING:
    from transformers import TrainingArguments


FSDP2, DEEPSPEED = "FSDP2", "DeepSpeed"

_TRUE = ("1", "true", "yes", "y", "t", "on")


def sharding_of(args: TrainingArguments) -> str | None:
    """What shares out the weights of a run: `"FSDP2"`, `"DeepSpeed"` or `None`."""
    if getattr(args, "deepspeed_plugin", None) is not None:
        return DEEPSPEED
    asked = bool(args.fsdp) or _is_true(os.environ.get("ACCELERATE_USE_FSDP", "false"))
    # A process that nobody launched has none to share with.
    return FSDP2 if asked and args.parallel_mode == ParallelMode.DISTRIBUTED else None


def sharding_of_checkpoint(folder: str) -> str | None:
    """What shared out the weights of the run that wrote a checkpoint, which only it can read."""
    if os.path.isfile(optimizer_file(folder, 0)):
        return FSDP2
    return DEEPSPEED if os.path.isfile(os.path.join(folder, "latest")) else None


def optimizer_file(folder: str, rank: int) -> str:
    """Where, with FSDP2, the part of an optimiser lies that belongs to the process `rank`."""
    return os.path.join(folder, f"optimizer_{rank}.safetensors")


def check_sharding(args: Any, optimizer: Any = None) -> None:
    """
    Args:
        args ([`ProGRPOConfig`]): of the run.
        optimizer ([`~torch.optim.Optimizer`], *optional*): that the user made.

    Raises:
        ValueError: for what cannot work with the sharding that is asked for.
    """
    sharding = sharding_of(args)
    if sharding is None:
        return
    if sharding == FSDP2:
        _check_fsdp(args)
    else:
        _check_deepspeed(args)
    if optimizer is not None:
        raise ValueError(
            f"`optimizers` holds an optimiser, whose parameters are no longer the denoiser's once {sharding} shares them out; "
            "choose one by `optim` instead."
        )
    if args.torch_compile:
        raise ValueError(f"`torch_compile` is True, which does not go with {sharding}; set it to False.")
    if args.prune_schedule == "auto":
        raise ValueError(
            f"`prune_schedule` is 'auto', which cannot time an update of weights that {sharding} shares out; find a schedule "
            "with `trl-progrpo plan`, and give `num_expansions`, `prune_steps` and `prune_sizes`."
        )
    if args.save_on_each_node:
        raise ValueError(
            f"`save_on_each_node` is True, but with {sharding} a checkpoint has a part of every process; set it to False and "
            "put `output_dir` on storage that all machines share."
        )


def _check_fsdp(args: Any) -> None:
    version = _fsdp_setting(args, "version", "2" if args.fsdp else "1")
    if version != "2":
        raise ValueError(
            f"`fsdp_version` is {version}; use 2: version 1 puts a model into another, out of a pipeline's reach."
        )
    if _is_true(_fsdp_setting(args, "cpu_ram_efficient_loading")):
        raise ValueError(
            "`fsdp_cpu_ram_efficient_loading` is true, with which only the first process would have text encoders with weights; "
            "set it to false."
        )
    if _is_true(_fsdp_setting(args, "cpu_offload" if args.fsdp else "offload_params")):
        raise ValueError(
            "`fsdp_offload_params` is true, which is not supported; set it to false and use more processes."
        )
    if _is_true(_fsdp_setting(args, "activation_checkpointing")):
        raise ValueError(
            "`fsdp_activation_checkpointing` is true; set it to false and `gradient_checkpointing` to True, which is diffusers' "
            "own."
        )
    if args.use_cpu and torch.accelerator.is_available():
        raise ValueError(
            "`use_cpu` is True, but FSDP2 takes the accelerator of this machine; hide it (`CUDA_VISIBLE_DEVICES=`), or set "
            "`use_cpu` to False."
        )


def _check_deepspeed(args: Any) -> None:
    if args.use_cpu:
        raise ValueError("`use_cpu` is True, with which accelerate leaves DeepSpeed out; set it to False.")
    if args.ema_decay is not None:
        raise ValueError(
            f"`ema_decay` is {args.ema_decay}, but DeepSpeed keeps the exact weights to itself; leave it unset, or use FSDP2."
        )
    if args.load_best_model_at_end:
        raise ValueError(
            "`load_best_model_at_end` is True, which does not go with DeepSpeed; set it to False, or use FSDP2."
        )


def _fsdp_setting(args: Any, name: str, default: str = "false") -> str:
    # Given to the training itself, or to the launcher, who hands it on in the environment.
    if args.fsdp:
        return str((args.fsdp_config or {}).get(name, default))
    return os.environ.get(f"FSDP_{name.upper()}", default)


def _is_true(value: str) -> bool:
    return value.lower() in _TRUE
