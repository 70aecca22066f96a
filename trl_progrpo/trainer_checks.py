# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What is wrong with the objects a trainer is made of, in sentences."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel, is_compiled_module
from diffusers import DiffusionPipeline
from peft import LoraConfig

from .adapters import MERGE, adapter_layers, check_lora_config, trained_scale
from .families.base import Family
from .families.loading import changed_weight
from .families.skeleton import HUB_OPTIONS, NoSkeleton, skeleton
from .progrpo_config import ProGRPOConfig


_SAVE = "save it as a model of its own: `pipeline.save_pretrained(FOLDER)`, and give FOLDER as `model`"


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


def check_before_weights(model: str, family: type[Family], args: ProGRPOConfig) -> None:
    """
    Check what a family says of sizes, guidance and prompts by the configuration files of a model, before its weights load.

    Args:
        model (`str`): folder or Hub name; of a pipeline whose classes diffusers does not have, nothing is known yet.
        family (`type[Family]`): that serves it.
        args ([`ProGRPOConfig`]): of the run.

    Raises:
        ValueError: as [`~families.Family.with_options`].
    """
    options = {name: value for name, value in (args.model_init_kwargs or {}).items() if name in HUB_OPTIONS}
    # Warnings come with the pipeline itself.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pipeline = skeleton(model, **options)
        except NoSkeleton:
            return
        family.with_options(pipeline, args)


def unwrap_compiled(pipeline: DiffusionPipeline, denoiser_name: str) -> None:
    """
    Take the wrappers of `torch.compile(...)` off the denoiser and its layers, in place, with a warning: they change the names
    of all weights, and an adapter saved under those fits no other pipeline. So, in silence, with the mixed precision of an
    earlier trainer of the pipeline, in which this one may not compute.
    """
    denoiser, found = getattr(pipeline, denoiser_name), False
    extract_model_from_parallel(denoiser, keep_fp32_wrapper=False)
    if is_compiled_module(denoiser):
        setattr(pipeline, denoiser_name, extract_model_from_parallel(denoiser, keep_torch_compile=False))
        denoiser, found = getattr(pipeline, denoiser_name), True
    for module in list(denoiser.modules()):
        for name, child in module.named_children():
            if is_compiled_module(child):
                setattr(module, name, child._orig_mod)
                found = True
    if found:
        warnings.warn(
            f"the {denoiser_name} of `model` was wrapped by `torch.compile(...)` and has been unwrapped, for the wrapper "
            "changes the names of its weights; set `torch_compile` to train it compiled.",
            stacklevel=3,
        )


def check_pipeline(pipeline: DiffusionPipeline, family: Family, all_weights: bool) -> None:
    """
    Check a pipeline that the user has loaded: that it can be trained, and that base model and saved weights will give what is
    trained.

    Args:
        pipeline ([`~diffusers.DiffusionPipeline`]): the pipeline.
        family ([`~families.Family`]): of it, before an adapter is added.
        all_weights (`bool`): whether the whole denoiser is trained.

    Raises:
        ValueError: if weights in half precision are to be trained as they are, or something about the pipeline is not in
            its base model and would not be saved: a fused LoRA, fused projections, an IP-Adapter, FreeU, changed weights.
            Warns if the VAE is in half precision.
    """
    denoiser = family.denoiser
    if all_weights and denoiser.dtype != torch.float32:
        raise ValueError(
            f"`model` is a pipeline in {_short(denoiser.dtype)}, whose weights would round most updates away; load it in "
            "float32 (`bf16=True` of the config computes in bfloat16 all the same), or train a LoRA."
        )
    for what, cure in _not_plain(pipeline, family.denoiser_name, all_weights):
        raise ValueError(
            f"`model` is a pipeline with {what}, which the base model does not have and what is saved would not fit; {cure}."
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


def _not_plain(pipeline: DiffusionPipeline, denoiser_name: str, all_weights: bool) -> Iterator[tuple[str, str]]:
    """Yield what the pipeline has beyond its base model, and how to get rid of it."""
    denoiser = getattr(pipeline, denoiser_name)
    if any(getattr(module, "fused_projections", False) for module in denoiser.modules()):
        yield (
            f"fused projections in its {denoiser_name}, whose own layers are never called",
            "load the pipeline afresh, for `unfuse_qkv_projections()` leaves the fused layers in it",
        )
    processors = getattr(denoiser, "attn_processors", {}).values()
    named = next((p for p in processors if "IPAdapter" in type(p).__name__ or _has_weights(p)), None)
    if named is not None or getattr(denoiser.config, "encoder_hid_dim_type", None) == "ip_image_proj":
        what = "an IP-Adapter" if named is None or "IPAdapter" in type(named).__name__ else type(named).__name__
        yield f"{what} in its attention", "take it off: `pipeline.unload_ip_adapter()`, or load the pipeline afresh"
    if any(getattr(module, "s1", None) is not None and hasattr(module, "b1") for module in denoiser.modules()):
        yield "FreeU switched on", "switch it off: `pipeline.disable_freeu()`"
    if all_weights:
        # All else is saved with the pipeline.
        if getattr(denoiser, "peft_config", None):
            yield f"an adapter on its {denoiser_name}", MERGE
        return
    if getattr(pipeline, "num_fused_loras", 0):
        yield (
            "a fused LoRA",
            _SAVE,
        )
    for name, module in pipeline.components.items():
        if name != denoiser_name and getattr(module, "peft_config", None):
            yield f"an adapter on its {name}", f"take it off with `pipeline.unload_lora_weights()`, or {MERGE}"
    for name in (denoiser_name, *(name for name in pipeline.components if name.startswith("text_encoder"))):
        weight = changed_weight(pipeline, name)
        if weight is not None:
            yield (
                f"weights of its {name} that are not those of {str(pipeline.name_or_path)!r} ({weight!r} for one)",
                _SAVE,
            )


def _has_weights(processor: Any) -> bool:
    return isinstance(processor, torch.nn.Module) and any(True for _ in processor.parameters())


def check_trained(family: Family, model: torch.nn.Module, use_adapter: bool) -> None:
    """
    Check that what is trained is what will be saved: the trainer's own adapter or weights, and no others.

    Args:
        family ([`~families.Family`]): of the run.
        model (`torch.nn.Module`): the module that the trainer was made with.
        use_adapter (`bool`): whether a LoRA is trained.

    Raises:
        ValueError: if the pipeline's denoiser has been exchanged, or has adapters beside the trainer's own.
    """
    name, denoiser = family.denoiser_name, family.denoiser
    if denoiser is not model:
        raise ValueError(
            f"`pipeline.{name}` has been exchanged since the trainer was made, which trains the former one; put it back, or "
            "make a trainer of the new pipeline."
        )
    own = {"default"} if use_adapter else set()
    others = sorted(set(getattr(denoiser, "peft_config", {})) - own)
    if others:
        raise ValueError(
            f"`pipeline.{name}` has the adapters {others} beside what is trained and saved; take them off with "
            f"`pipeline.delete_adapters({others})`, and look at them on a pipeline of their own."
        )
    if use_adapter and (not getattr(denoiser, "peft_config", {}) or denoiser.active_adapters() != ["default"]):
        raise ValueError(
            f"the trainer's adapter 'default' is not the active one of `pipeline.{name}`; switch it on with "
            '`pipeline.set_adapters("default")`, or make a new trainer if it was taken off.'
        )
    if not use_adapter:
        return
    layers = adapter_layers(denoiser).values()
    if any(layer.disable_adapters for layer in layers):
        raise ValueError(
            f"the trainer's adapter is switched off in `pipeline.{name}` and would not be trained; switch it on with "
            "`pipeline.enable_lora()`."
        )
    if any(layer.merged for layer in layers):
        raise ValueError(
            f"the trainer's adapter is fused into `pipeline.{name}` and would not be trained; take it out with "
            "`pipeline.unfuse_lora()`."
        )
    if any(not math.isclose(layer.scaling["default"], trained_scale(layer)) for layer in layers):
        raise ValueError(
            f"the trainer's adapter has another weight than 1 in `pipeline.{name}`, with which it would be trained and not "
            'saved; set it back with `pipeline.set_adapters("default", 1.0)`.'
        )


def check_gradients(family: Family, sharding: str | None) -> None:
    """
    Check, after the backward passes of the first update, that every trained weight has a gradient, and with a LoRA no other.

    Args:
        family ([`~families.Family`]): whose denoiser is trained; names the weights that may have none.
        sharding (`str`, *optional*): with DeepSpeed, which keeps gradients to itself, nothing is checked.

    Raises:
        ValueError: naming weights without one: layers that the forward pass never calls; or weights of the model that are
            trained beside a LoRA.
    """
    if sharding is not None and sharding.startswith("DeepSpeed"):
        return
    trained = {name: p for name, p in family.denoiser.named_parameters() if p.requires_grad}
    unused = re.compile("|".join(family.unused_parameters) or "$^")
    without = [name for name, p in trained.items() if p.grad is None and not unused.match(name)]
    if without:
        raise ValueError(
            f"{len(without)} of the {len(trained)} trained tensors of the {family.denoiser_name} have no gradient after the "
            f"first update, {without[0]!r} for one: the forward pass does not use them, and they would be saved untrained; "
            "choose other `target_modules` for the LoRA, or load the pipeline without changing its layers."
        )
    beside = [name for name in trained if ".lora_" not in name]
    if 0 < len(beside) < len(trained):
        raise ValueError(
            f"{len(beside)} weights of the {family.denoiser_name} itself would be trained beside the LoRA, {beside[0]!r} for "
            "one, and not be saved; freeze them with `requires_grad_(False)`."
        )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
