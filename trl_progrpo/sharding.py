# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
A denoiser whose weights are shared out among processes: by FSDP2 where they lie, by DeepSpeed when training begins.

Every function that takes a sharded denoiser is a collective one: all processes call it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from .out_of_memory import shares_weights


if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import TrainingArguments

    from .families.base import Family


def load_whole_weights(args: TrainingArguments) -> None:
    """Has every process load text encoders and rewards whole: with ZeRO-3 transformers would share them out too, for good."""
    if getattr(args, "deepspeed_plugin", None) is not None:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def shard(accelerator: Accelerator, denoiser: torch.nn.Module) -> None:
    """
    Leaves on this process its part of every weight, in place; with FSDP2, as accelerate does when it prepares a model.

    Args:
        accelerator ([`~accelerate.Accelerator`]): of a run with FSDP2.
        denoiser (`torch.nn.Module`): with all its weights, on any device.
    """
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    plugin = accelerator.state.fsdp_plugin
    policy = getattr(plugin.auto_wrap_policy, "func", plugin.auto_wrap_policy)
    if policy is transformer_auto_wrap_policy and not plugin.transformer_cls_names_to_wrap:
        # Not all that a class lists need be in this model, and accelerate refuses names that are not.
        present = {type(module).__name__ for module in denoiser.modules()}
        blocks = getattr(denoiser, "_no_split_modules", None) or getattr(denoiser, "_repeated_blocks", None) or []
        plugin.transformer_cls_names_to_wrap = [name for name in blocks if name in present]
    # Autocast does the rest, as on one process; accelerate's policy would round timesteps to three digits.
    plugin.mixed_precision_policy = None
    fsdp2_prepare_model(accelerator, denoiser)


def is_sharded(denoiser: torch.nn.Module) -> bool:
    """Whether FSDP2 shares out its weights."""
    return isinstance(denoiser, FSDPModule)


def class_of(denoiser: torch.nn.Module) -> type[torch.nn.Module]:
    """Its class in diffusers: FSDP2 puts one of its own in front."""
    return next(kind for kind in type(denoiser).__mro__ if not issubclass(kind, FSDPModule))


def reshard(denoiser: torch.nn.Module) -> None:
    """Lets go of whole weights that a forward pass without a backward pass has left; to be called before they are touched."""
    for module in denoiser.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local_tensors(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """What this process holds of each, sharing its memory: for arithmetic that goes element by element."""
    # Averages are only taken of what wants a gradient, and a part of a parameter must say so too.
    with torch.enable_grad():
        return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in parameters]


def like(reference: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """`whole`, which all processes have, shared out as `reference` is."""
    if not isinstance(reference, DTensor):
        return whole
    return distribute_tensor(whole.to(reference.device), reference.device_mesh, reference.placements)


@contextmanager
def gradients_accumulate(accelerator: Accelerator, model: torch.nn.Module, last: bool) -> Iterator[None]:
    """
    For one of several backward passes of a micro-batch.

    Args:
        accelerator ([`~accelerate.Accelerator`]): that is asked for the pass inside.
        model (`torch.nn.Module`): as accelerate prepared it.
        last (`bool`): whether it is the last, in which processes add their gradients up. With FSDP2 they do so in all:
            gradients waiting for it would be as large as the whole model, which is not to fit.
    """
    state = accelerator.gradient_state
    if is_sharded(model):
        model.set_requires_gradient_sync(True)
        yield
    elif accelerator.distributed_type == "DEEPSPEED":
        # Its engine takes a step with a backward pass of synchronised gradients.
        wanted = state.sync_gradients
        state._set_sync_gradients(wanted and last)
        try:
            yield
        finally:
            state._set_sync_gradients(wanted)
    elif last:
        yield
    else:
        with accelerator.no_sync(model):
            yield


def backward(accelerator: Accelerator, loss: torch.Tensor) -> None:
    """`accelerator.backward`, of a loss that is already divided by the micro-batches of an update."""
    options = {"scale_wrt_gas": False} if accelerator.distributed_type == "DEEPSPEED" else {}
    accelerator.backward(loss, **options)


def whole_state(denoiser: torch.nn.Module, keep: bool = True, trained_only: bool = False) -> dict[str, torch.Tensor]:
    """
    The state dict of the whole denoiser on the CPU, put together one tensor after the other.

    Args:
        denoiser (`torch.nn.Module`): sharded or not.
        keep (`bool`, *optional*, defaults to `True`): whether this process wants it; otherwise it is empty.
        trained_only (`bool`, *optional*, defaults to `False`): without frozen weights and buffers.
    """
    reshard(denoiser)
    state = {}
    for name, tensor in denoiser.state_dict(keep_vars=True).items():
        if not trained_only or tensor.requires_grad:
            with _gathered(tensor) as whole:
                if keep:
                    state[name] = whole.detach().cpu()
    return state


@contextmanager
def _gathered(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    if isinstance(tensor, DTensor):
        yield tensor.full_tensor()
    elif hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters(tensor):
            # It is taken apart again, with its memory.
            yield tensor.detach().clone()
    else:
        yield tensor


def load_whole_state(denoiser: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Loads what [`whole_state`] gave; if the denoiser is sharded only process 0 needs it, and sends the others their parts."""
    if not is_sharded(denoiser):
        denoiser.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    reshard(denoiser)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(denoiser, dict(state), options=options)


@contextmanager
def whole_denoiser(family: Family, keep: bool) -> Iterator[None]:
    """
    Puts a whole copy in the place of a sharded denoiser, on the CPU, for its files to be written as those of any other.

    Args:
        family ([`~families.Family`]): holds the pipeline.
        keep (`bool`): whether this process is to write; in others the pipeline stays as it is.
    """
    from accelerate import init_empty_weights

    denoiser, components = family.denoiser, vars(family.pipeline)
    state = whole_state(denoiser, keep) if shares_weights(denoiser) else {}
    if not state:
        yield
        return
    with init_empty_weights():
        copy = class_of(denoiser).from_config(denoiser.config)
    copy.load_state_dict(state, assign=True)
    # Past the pipeline's own setter, which would note down FSDP2's class afterwards.
    components[family.denoiser_name] = copy
    try:
        yield
    finally:
        components[family.denoiser_name] = denoiser


def save_optimizer(optimizer: torch.optim.Optimizer, path: str) -> None:
    """Writes this process's part of an optimiser's state: numbers go into the header of the file."""
    state, tensors, numbers = optimizer.state_dict(), {}, {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, DTensor):
                tensors[f"part/{index}/{name}"] = value.to_local().contiguous()
            elif isinstance(value, torch.Tensor):
                tensors[f"whole/{index}/{name}"] = value
            else:
                numbers[f"{index}/{name}"] = value
    header = {"numbers": json.dumps(numbers), "param_groups": json.dumps(state["param_groups"])}
    save_file(tensors, path, metadata=header)


def load_optimizer(optimizer: torch.optim.Optimizer, path: str) -> None:
    """Reads what [`save_optimizer`] wrote with as many processes."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for place, tensor in load_file(path).items():
        kind, index, name = place.split("/", 2)
        if kind == "part":
            tensor = _from_part(tensor, parameters[int(index)])
        state.setdefault(int(index), {})[name] = tensor
    for place, value in json.loads(header["numbers"]).items():
        index, name = place.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": json.loads(header["param_groups"])})


def _from_part(part: torch.Tensor, parameter: DTensor) -> DTensor:
    return DTensor.from_local(
        part.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
