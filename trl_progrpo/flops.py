# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""FLOPs of a model family's networks, counted by torch on the modules themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .cost import UnitCost
from .families.base import Family
from .isolation import isolated
from .types import Conditioning


def unit_flops(
    family: Family,
    conditioning: Conditioning,
    preview_decoder: torch.nn.Module | None = None,
    preview_downscale: int = 1,
) -> UnitCost:
    """
    Runs one row through the denoiser, forwards and backwards, and one image through the decoders, and counts.

    Networks may be on the `meta` device: then nothing is computed and no memory is needed, and the counts are the same, for
    they depend on shapes alone. Counted is what [`~torch.utils.flop_counter.FlopCounterMode`] knows, which is matrix products,
    convolutions and attention, a multiplication and an addition being 2 FLOPs. The backward pass is that of the parameters that
    are trained: with an adapter, gradients of frozen weights are not computed. Rewards cost no FLOPs here.

    Gradients, modes and random numbers are as before afterwards.

    Args:
        family ([`~families.Family`]): with the adapter on its denoiser, if there will be one.
        conditioning ([`Conditioning`]): of one prompt, on any device; its values do not matter.
        preview_decoder (`torch.nn.Module`, *optional*): decodes previews; the VAE when unset.
        preview_downscale (`int`, *optional*, defaults to 1): as in [`ProGRPOConfig`].
    """
    device = family.device
    latents = torch.zeros(1, *family.latent_shape, device=device, dtype=family.dtype)
    timestep = family.make_schedule(4).timesteps[0].to(device)
    # One number per prompt is a length, whose value is needed.
    tensors = {name: t if t.ndim == 1 else t.to(device) for name, t in conditioning.positive.items()}

    def network() -> torch.Tensor:
        return family.denoise(family.denoiser, latents, timestep, tensors)

    def decode() -> torch.Tensor:
        return family.decode(latents)

    def preview() -> torch.Tensor:
        return family.decode_preview(latents, preview_decoder, preview_downscale)

    return UnitCost(
        network=count_flops(network),
        training=count_flops(lambda: network().float().sum().backward(), gradients=True),
        decode=count_flops(decode),
        preview=count_flops(preview),
    )


def count_flops(function: Callable[[], Any], gradients: bool = False) -> int:
    """
    FLOPs of one call of `function`, with or without autograd. Gradients and random numbers are as before afterwards, also if it
    raises.
    """
    # The fused attention of some devices is not known to the counter; written as matrix products it is.
    attention = sdpa_kernel(SDPBackend.MATH)
    with isolated(), _GradientsAside(), FlopCounterMode(display=False) as counter, attention:
        with torch.set_grad_enabled(gradients):
            function()
    return counter.get_total_flops()


class _GradientsAside(TorchDispatchMode):
    """Puts the gradients of all leaves that operators see aside, and back at the end: whatever is called may go backwards."""

    def __init__(self):
        super().__init__()
        self._aside: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad and tensor.is_leaf:
                if id(tensor) not in self._aside:
                    self._aside[id(tensor)] = tensor, tensor.grad
                    tensor.grad = None
        return func(*args, **(kwargs or {}))

    def __exit__(self, *error):
        super().__exit__(*error)
        for tensor, grad in self._aside.values():
            tensor.grad = grad
