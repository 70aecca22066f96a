# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What is wrong with the objects a trainer is made of, in sentences."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig

from .adapters import check_lora_config
from .progrpo_config import ProGRPOConfig


def check_objects(args: Any, peft_config: Any) -> None:
    """
    Raises:
        ValueError: if the configuration or the LoRA is something else, or such a LoRA cannot be trained.
    """
    if not isinstance(args, ProGRPOConfig):
        raise ValueError(f"`args` is a {type(args).__name__}; give a `ProGRPOConfig`.")
    if peft_config is None or (isinstance(peft_config, str) and peft_config == "default"):
        return
    if not isinstance(peft_config, LoraConfig):
        raise ValueError(
            f'`peft_config` is {peft_config!r}; give a `peft.LoraConfig`, "default" for the family\'s LoRA, or None to train '
            "all weights."
        )
    check_lora_config(peft_config)


def check_pipeline(pipeline: DiffusionPipeline, denoiser: torch.nn.Module, all_weights: bool) -> None:
    """
    Args:
        pipeline ([`~diffusers.DiffusionPipeline`]): that the user has loaded.
        denoiser (`torch.nn.Module`): of it, that is to be trained.
        all_weights (`bool`): whether it is trained as a whole.

    Raises:
        ValueError: if weights in half precision are to be trained as they are. A warning, if the VAE is in half precision.
    """
    if all_weights and denoiser.dtype != torch.float32:
        raise ValueError(
            f"`model` is a pipeline in {_short(denoiser.dtype)}, whose weights would round most updates away; load it in "
            "float32 (`bf16=True` of the config computes in bfloat16 all the same), or train a LoRA."
        )
    vae = getattr(pipeline, "vae", None)
    if vae is not None and vae.dtype != torch.float32:
        warnings.warn(
            f"the VAE of `model` is in {_short(vae.dtype)}, and what it decodes is all that rewards see; load the pipeline with "
            f'dtype={{"vae": torch.float32, "default": {denoiser.dtype}}}, as a model that is given by name is loaded.',
            stacklevel=3,
        )


def check_optimizer(optimizer: torch.optim.Optimizer | None, denoiser: torch.nn.Module) -> None:
    """
    Raises:
        ValueError: if an optimiser that the user made does not have all weights that are trained.
    """
    if optimizer is None:
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    missing = sum(id(parameter) not in held for parameter in trained)
    if missing:
        raise ValueError(
            f"`optimizers` holds an optimiser without {missing} of the {len(trained)} tensors that are trained; a LoRA's are "
            "made by the trainer, so choose one by `optim`, or override `create_optimizer`."
        )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
