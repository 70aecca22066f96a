# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""LoRA on a diffusers denoiser: put on, switched off for the reference, written and read in diffusers' layout."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .families.base import Family
from .sharding import like, local_tensors, reshard, whole_state


ADAPTER_FILE = "pytorch_lora_weights.safetensors"
RAW_ADAPTER_FILE = "pytorch_lora_weights_raw.safetensors"
"""The weights the optimiser works on, beside their moving average in `ADAPTER_FILE`, when there is one."""


TRAINED_CONFIG = "trl_progrpo.lora_config"
"""Key of the header of an adapter file under which the config stands that the adapter was trained with, as JSON."""

_MEANING = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
"""Fields of a LoRA config that change what a given set of weights computes."""


MERGE = (
    "merge them into a model of its own: `pipeline.fuse_lora()`, `pipeline.unload_lora_weights()`, "
    "`pipeline.save_pretrained(FOLDER)`, and give FOLDER as `model`"
)
"""How to train on top of an adapter, as the end of a sentence."""


def default_lora_config(family: Family) -> LoraConfig:
    """Rank 32, alpha 64 on the family's attention projections, Gaussian init, no dropout; Flow-GRPO's setting."""
    return LoraConfig(
        r=32,
        lora_alpha=64,
        lora_dropout=0.0,
        init_lora_weights="gaussian",
        target_modules=list(family.lora_target_modules),
    )


_INITS = (True, False, "gaussian", "orthogonal")
"""Initialisations of `LoraConfig` that leave the weights of the model alone."""

_SERVED = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights", "fan_in_fan_out", "inference_mode",
    "task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "runtime_config",
    "ensure_weight_tying", "megatron_core",
)  # fmt: skip
"""Fields of `LoraConfig` that may have any value. All others add or change weights that stock diffusers would not load."""


def check_lora_config(config: LoraConfig) -> None:
    """
    Check that a LoRA can be trained, and loaded by stock diffusers.

    Raises:
        ValueError: if it is of a subclass such as `AdaLoraConfig`; if `r` is less than 1; if it has dropout, with which
            rollout and update would be different policies; or if it trains or changes weights of the model itself.
    """
    if type(config) is not LoraConfig:
        raise ValueError(
            f"`peft_config` is a {type(config).__name__}, which needs a training loop of its own, or which stock diffusers "
            "cannot load; use a plain `peft.LoraConfig`."
        )
    if config.r < 1:
        raise ValueError(f"`r` of the LoRA is {config.r}; use at least 1.")
    if not config.lora_alpha or not all(config.alpha_pattern.values()):
        raise ValueError(
            "`lora_alpha` of the LoRA is 0, with which it would not be trained; use another, such as `r`."
        )
    if config.lora_dropout != 0:
        raise ValueError(
            f"`lora_dropout` is {config.lora_dropout}; use 0: with dropout the updated policy is not the one that sampled."
        )
    plain = LoraConfig()
    allowed = {f.name: (getattr(plain, f.name),) for f in fields(config) if f.name not in _SERVED}
    for name, values in {**allowed, "init_lora_weights": _INITS}.items():
        value = getattr(config, name)
        if value not in values and value:
            raise ValueError(
                f"`{name}` of the LoRA config is {value!r}, with which weights of the model itself are changed, and diffusers "
                f"could not load the adapter; use {' or '.join(map(repr, values))}."
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
            f"`model` already carries the adapters {list(family.denoiser.peft_config)}; take them off with "
            f"`pipeline.unload_lora_weights()`, or {MERGE}."
        )
    if config.target_modules is None:
        # A copy: the caller may use the config again, on another family.
        config = copy.copy(config)
        config.target_modules = set(family.lora_target_modules)
    family.denoiser.requires_grad_(False)
    try:
        family.denoiser.add_adapter(config)
    except ValueError as error:
        # PEFT stops at the first layer that it cannot do, with those before it done.
        family.denoiser.unload_lora()
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
    to_resume: bool = True,
) -> None:
    """
    Write the adapter as `pipeline.load_lora_weights(directory)` reads it, with the Hub name of the model it was trained on
    if it has one.

    The scale of each layer (alpha / rank, or alpha / sqrt(rank)) is folded into its `lora_B`, and layers of a lower rank are
    padded with zeros, so that alpha equals rank on disk: a loader that reads tensors and no header (a plain state dict,
    ComfyUI) takes alpha to be the rank, diffusers that of most layers, and would get another strength. The header has the
    same rank and alpha for stock diffusers, and under [`TRAINED_CONFIG`] those of the training.

    Args:
        family ([`~families.Family`]): with the adapter on its denoiser.
        directory (`str`): where to.
        weight_name (`str`, *optional*): file name.
        base_model (`str`, *optional*): Hub name of the base model.
        keep (`bool`, *optional*, defaults to `True`): with a sharded denoiser every process calls this, and those that are
            not to keep the weights write nothing.
        to_resume (`bool`, *optional*, defaults to `True`): write what [`load_adapter`] needs to read the weights bit for
            bit: where dividing by a scale is not exact, a second file with the `lora_B` as they are.
    """
    state = whole_state(family.denoiser, keep, trained_only=True)
    if not keep:
        return
    name, config = family.denoiser_name, family.denoiser.peft_config["default"]
    trained = get_peft_model_state_dict(family.denoiser, state, adapter_name="default")
    layers = adapter_layers(family.denoiser)
    scales = {key: _scale_of(key, layers) for key in trained if ".lora_B." in key}
    rank = max(len(tensor) for key, tensor in trained.items() if ".lora_A." in key)
    on_disk = {**config.to_dict(), "base_model_name_or_path": base_model, "r": rank, "lora_alpha": rank}
    on_disk |= {"rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
    header = {
        "format": "pt",
        LORA_ADAPTER_METADATA_KEY: _json({f"{name}.{key}": value for key, value in on_disk.items()}),
        TRAINED_CONFIG: _json({key: getattr(config, key) for key in _MEANING}),
    }
    type(family.pipeline).save_lora_weights(
        save_directory=directory,
        weight_name=weight_name,
        save_function=lambda weights, path: save_file(weights, path, metadata=header),
        **{f"{name}_lora_layers": {k: _padded(k, scales.get(k, 1.0) * tensor, rank) for k, tensor in trained.items()}},
    )
    if to_resume and any(math.frexp(scale)[0] != 0.5 for scale in scales.values()):
        exact = {key: trained[key].contiguous() for key in scales}
        save_file(exact, os.path.join(directory, _exact_name(weight_name)))


def _exact_name(weight_name: str) -> str:
    return weight_name.replace(".safetensors", "_unscaled.safetensors")


def _padded(key: str, tensor: torch.Tensor, rank: int) -> torch.Tensor:
    """Pad `lora_A` `(r, in, ...)` or `lora_B` `(out, r, ...)` with zeros to a rank; other tensors stay as they are."""
    axis = 0 if ".lora_A." in key else 1 if ".lora_B." in key else None
    if axis is None or tensor.shape[axis] == rank:
        return tensor
    shape = list(tensor.shape)
    shape[axis] = rank - shape[axis]
    return torch.cat([tensor, tensor.new_zeros(shape)], axis)


def _scale_of(key: str, layers: Mapping[str, BaseTunerLayer]) -> float:
    """Return the scale of the layer whose `lora_B` has this key."""
    return trained_scale(layers[key.split(".lora_")[0]])


def trained_scale(layer: BaseTunerLayer) -> float:
    """Return by how much PEFT multiplies a layer's adapter, whatever weight it was given with `set_adapters`."""
    rank = layer.r["default"]
    return layer.lora_alpha["default"] / (math.sqrt(rank) if layer.use_rslora["default"] else rank)


def adapter_layers(denoiser: torch.nn.Module) -> dict[str, BaseTunerLayer]:
    """Return the layers of a denoiser that carry an adapter, by name."""
    return {name: module for name, module in denoiser.named_modules() if isinstance(module, BaseTunerLayer)}


def base_of(metadata: Mapping[str, Any] | None, denoiser_name: str) -> str | None:
    """The Hub name of the model an adapter was trained on, from the metadata that diffusers returns; `None` if unknown."""
    name = (metadata or {}).get(f"{denoiser_name}.base_model_name_or_path")
    return name if isinstance(name, str) else None


def check_adapter(family: Family, path: str) -> None:
    """
    Check that a file holds weights of the same config as the adapter on the denoiser.

    Args:
        family ([`~families.Family`]): with an adapter on its denoiser.
        path (`str`): of a file written by [`save_adapter`].

    Raises:
        ValueError: if the file is missing, or its weights mean something else under this adapter's config.
    """
    if not os.path.isfile(path):
        raise ValueError(f"there is no adapter at {path!r}; give a folder that this trainer wrote.")
    saved, _ = _saved_config(family, path)
    config = family.denoiser.peft_config["default"]
    for name in _MEANING:
        then, now = saved.get(name), getattr(config, name)
        if then is not None and then != (now or type(then)()):
            raise ValueError(f"`{name}` of the LoRA config is {now}, but {then} in {path!r}; use that again.")


def _saved_config(family: Family, path: str) -> tuple[dict[str, Any], bool]:
    """Return the fields of the config that a file was trained with, and whether its scales are folded in."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if TRAINED_CONFIG in metadata:
        return json.loads(metadata[TRAINED_CONFIG]), True
    # An earlier version wrote tensors as they are, and their alpha for diffusers alone.
    prefix = f"{family.denoiser_name}."
    saved = json.loads(metadata.get(LORA_ADAPTER_METADATA_KEY, "{}"))
    return {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}, False


def load_adapter(family: Family, path: str) -> None:
    """
    Read a file written by [`save_adapter`] into the adapter that is already on the denoiser; bit for bit if it was written
    to resume from.

    Raises:
        ValueError: as [`check_adapter`], or if the file has other layers.
    """
    check_adapter(family, path)
    prefix = f"{family.denoiser_name}."
    reshard(family.denoiser)
    state = {name.removeprefix(prefix): tensor for name, tensor in load_file(path).items()}
    if _saved_config(family, path)[1]:
        name, layers = _exact_name(path), adapter_layers(family.denoiser)
        unscaled = load_file(name) if os.path.isfile(name) else {}
        for key, tensor in state.items():
            # A layer that is not here is reported below.
            if ".lora_B." in key and key.split(".lora_")[0] in layers:
                scale, exact = _scale_of(key, layers), unscaled.get(key)
                # The file beside it may be left over from other weights.
                same = exact is not None and torch.equal(scale * exact, tensor[:, : exact.shape[1]])
                state[key] = exact if same else tensor / scale
    current = get_peft_model_state_dict(family.denoiser, adapter_name="default")
    if family.denoiser.peft_config["default"].rank_pattern:
        # Without the padding.
        state = {k: t[tuple(map(slice, current[k].shape))] if k in current else t for k, t in state.items()}
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


def _json(config: Mapping[str, Any]) -> str:
    """Write values that JSON keeps; sets become sorted lists, so the same adapter gives the same header."""
    plain = {key: sorted(value) if isinstance(value, (set, tuple)) else value for key, value in config.items()}
    return json.dumps(plain, indent=2, sort_keys=True)
