# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""LoRA on a diffusers denoiser: put on, switched off for the reference, written and read in diffusers' layout."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

from .families.base import Family
from .sharding import like, local_tensors, reshard, whole_state


ADAPTER_FILE = "pytorch_lora_weights.safetensors"
RAW_ADAPTER_FILE = "pytorch_lora_weights_raw.safetensors"
"""The weights the optimiser works on, beside their moving average in `ADAPTER_FILE`, when there is one."""


_MEANING = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
"""What the same weights depend on for what they do."""


def default_lora_config(family: Family) -> LoraConfig:
    """Rank 32, alpha 64 on the family's attention projections, Gaussian init, no dropout; Flow-GRPO's setting."""
    return LoraConfig(
        r=32,
        lora_alpha=64,
        lora_dropout=0.0,
        init_lora_weights="gaussian",
        target_modules=list(family.lora_target_modules),
    )


_APART_FROM_THE_MODEL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
    "modules_to_save": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None,),
}
"""Values with which an adapter leaves the weights of the model alone."""


def check_lora_config(config: LoraConfig) -> None:
    """
    Raises:
        ValueError: if the rank is none; if the config has dropout: rollout and update would be different policies; or if it
            trains or changes weights of the model itself: the policy without its adapter would not be the one that the KL
            penalty means, and stock diffusers loads no such adapter.
    """
    if config.r < 1:
        raise ValueError(f"`r` of the LoRA is {config.r}; use at least 1.")
    if config.lora_dropout != 0:
        raise ValueError(
            f"`lora_dropout` is {config.lora_dropout}; use 0: with dropout the updated policy is not the one that sampled."
        )
    for name, allowed in _APART_FROM_THE_MODEL.items():
        value = getattr(config, name, None)
        if value not in allowed and value:
            raise ValueError(
                f"`{name}` of the LoRA config is {value!r}, with which weights of the model itself are changed, and diffusers "
                f"could not load the adapter; use {' or '.join(map(repr, allowed))}."
            )


def add_adapter(family: Family, config: LoraConfig) -> None:
    """
    Puts a trainable fp32 LoRA named `"default"` on the denoiser and freezes everything else.

    Raises:
        ValueError: if the config cannot be trained, the denoiser already carries an adapter, or no module matches the
            targets.
    """
    check_lora_config(config)
    if getattr(family.denoiser, "peft_config", None):
        raise ValueError(
            f"`model` already carries the adapters {list(family.denoiser.peft_config)}; merge them with "
            "`pipeline.fuse_lora()` and `pipeline.unload_lora_weights()` before training a new one."
        )
    if config.target_modules is None:
        # A copy: the caller may use the config again, on another family.
        config = copy.copy(config)
        config.target_modules = set(family.lora_target_modules)
    family.denoiser.requires_grad_(False)
    try:
        family.denoiser.add_adapter(config)
    except ValueError as error:
        if not str(error).startswith("Target modules"):
            raise
        names = config.target_modules if isinstance(config.target_modules, str) else sorted(config.target_modules)
        raise ValueError(
            f"`lora_target_modules` is {names}, and no layer of the {family.denoiser_name} is called so; use names such as "
            f"{', '.join(family.lora_target_modules)}, or leave it unset."
        ) from error
    for parameter in family.denoiser.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@contextmanager
def adapters_disabled(denoiser: torch.nn.Module) -> Iterator[None]:
    """The reference policy: the denoiser without its adapter, which is on or off, and trained or not, as before afterwards."""
    layers = [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]
    # PEFT takes the requirement of a gradient away with the adapter, and gives it to all that is active.
    states = [(layer, layer.disable_adapters, [(p, p.requires_grad) for p in layer.parameters()]) for layer in layers]
    try:
        denoiser.disable_adapters()
        yield
    finally:
        for layer, disabled, parameters in states:
            layer.enable_adapters(not disabled)
            for parameter, requires_grad in parameters:
                parameter.requires_grad_(requires_grad)


def save_adapter(
    family: Family,
    directory: str,
    weight_name: str = ADAPTER_FILE,
    base_model: str | None = None,
    keep: bool = True,
) -> None:
    """
    Writes the adapter as `pipeline.load_lora_weights(directory)` reads it, with rank and alpha in the file's metadata
    (without it, loading takes alpha to be the rank), and the Hub name of the model it was trained on if it has one.

    With a sharded denoiser every process calls it, and one that is not to `keep` the weights writes nothing.
    """
    state = whole_state(family.denoiser, keep, trained_only=True)
    if not keep:
        return
    name = family.denoiser_name
    config = {**family.denoiser.peft_config["default"].to_dict(), "base_model_name_or_path": base_model}
    type(family.pipeline).save_lora_weights(
        save_directory=directory,
        weight_name=weight_name,
        **{
            f"{name}_lora_layers": get_peft_model_state_dict(family.denoiser, state, adapter_name="default"),
            f"{name}_lora_adapter_metadata": _plain(config),
        },
    )


def base_of(metadata: Mapping[str, Any] | None, denoiser_name: str) -> str | None:
    """The Hub name of the model an adapter was trained on, from the metadata that diffusers returns; `None` if unknown."""
    name = (metadata or {}).get(f"{denoiser_name}.base_model_name_or_path")
    return name if isinstance(name, str) else None


def check_adapter(family: Family, path: str) -> None:
    """
    Args:
        family ([`~families.Family`]): with an adapter on its denoiser.
        path (`str`): of a file written by [`save_adapter`].

    Raises:
        ValueError: if the file is missing, or its weights mean something else under this adapter's config.
    """
    if not os.path.isfile(path):
        raise ValueError(f"there is no adapter at {path!r}; give a folder that this trainer wrote.")
    with safe_open(path, framework="pt") as file:
        saved = json.loads((file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}"))
    config = family.denoiser.peft_config["default"]
    for name in _MEANING:
        then, now = saved.get(f"{family.denoiser_name}.{name}"), getattr(config, name)
        if then is not None and then != (now or type(then)()):
            raise ValueError(f"`{name}` of the LoRA config is {now}, but {then} in {path!r}; use that again.")


def load_adapter(family: Family, path: str) -> None:
    """
    Reads a file written by [`save_adapter`] into the adapter that is already on the denoiser, bit for bit.

    Raises:
        ValueError: as [`check_adapter`], or if the file has other layers.
    """
    check_adapter(family, path)
    prefix = f"{family.denoiser_name}."
    reshard(family.denoiser)
    state = {name.removeprefix(prefix): tensor for name, tensor in load_file(path).items()}
    current = get_peft_model_state_dict(family.denoiser, adapter_name="default")
    state = {name: like(current[name], tensor) if name in current else tensor for name, tensor in state.items()}
    try:
        result = set_peft_model_state_dict(family.denoiser, state, adapter_name="default")
    except RuntimeError as error:
        raise ValueError(
            f"the adapter at {path!r} has other shapes than this run's; use the same LoRA config."
        ) from error
    missing = [key for key in getattr(result, "missing_keys", []) if "lora_" in key]
    if getattr(result, "unexpected_keys", None) or missing:
        raise ValueError(f"the adapter at {path!r} has other layers than this run's; use the same LoRA config.")


def trainable_parameters(denoiser: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that the optimiser works on, in the order of the module."""
    return [parameter for parameter in denoiser.parameters() if parameter.requires_grad]


def averaged_tensors(denoiser: torch.nn.Module) -> list[torch.Tensor]:
    """What this process holds of the [`trainable_parameters`], sharing their memory: what a moving average follows."""
    reshard(denoiser)
    return local_tensors(trainable_parameters(denoiser))


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Only values that JSON keeps; sets become sorted lists, so the same adapter gives the same metadata."""
    return {key: sorted(value) if isinstance(value, (set, tuple)) else value for key, value in config.items()}
