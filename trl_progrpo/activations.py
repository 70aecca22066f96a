# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What a model family's networks allocate while they run, measured on the modules themselves."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .families.base import Family
from .isolation import isolated
from .types import Conditioning


@dataclass(frozen=True)
class RowBytes:
    """Bytes that grow with the rows of a call: `fixed + per_row * rows`."""

    fixed: int
    per_row: int

    def of(self, rows: int) -> int:
        return max(0, self.fixed + self.per_row * rows)


@dataclass(frozen=True)
class Activations:
    """
    What calls allocate at most beyond weights and gradients, by the number of trajectories in them.

    Attributes:
        network ([`RowBytes`]): a forward pass without gradients, guidance included.
        training ([`RowBytes`]): forward and backward.
        checkpointed ([`RowBytes`], *optional*): the same with gradient checkpointing; `None` if the network has none.
        decode, preview ([`RowBytes`]): a call of the VAE, and of what decodes previews.
    """

    network: RowBytes
    training: RowBytes
    checkpointed: RowBytes | None
    decode: RowBytes
    preview: RowBytes


def measure_activations(
    family: Family,
    conditioning: Conditioning,
    preview_decoder: torch.nn.Module | None = None,
    preview_downscale: int = 1,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> Activations:
    """
    Runs the networks with one and with two rows and follows every tensor that they make until it is freed.

    Networks may be on the `meta` device: then nothing is computed and nothing allocated, and only shapes are followed. Attention
    is then taken to be of the kind that keeps no matrix of all pairs. The networks are as before afterwards.

    Args:
        family ([`~families.Family`]): with the adapter on its denoiser, if there will be one.
        conditioning ([`Conditioning`]): of one prompt; its values do not matter.
        preview_decoder (`torch.nn.Module`, *optional*): decodes previews; the VAE when unset.
        preview_downscale (`int`, *optional*, defaults to 1): as in [`ProGRPOConfig`].
        autocast (`Callable`, *optional*): makes the context that network calls are in.
    """
    denoiser, device = family.denoiser, family.device
    meta = device.type == "meta"
    timestep = family.make_schedule(4).timesteps[0].to(device)

    def latents(rows: int) -> torch.Tensor:
        return torch.zeros(rows, *family.latent_shape, device=device)

    def network(rows: int) -> torch.Tensor:
        sides = [side for side in (conditioning.negative, conditioning.positive) if side is not None]
        parts = [{name: _repeated(t, rows, family) for name, t in side.items()} for side in sides]
        tensors = (
            {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if len(parts) > 1 else parts[0]
        )
        with autocast():
            return family.denoise(
                denoiser, torch.cat([latents(rows)] * len(parts)).to(family.dtype), timestep, tensors
            )

    def update(rows: int) -> None:
        network(rows).float().sum().backward()

    def in_training(checkpointing: bool) -> RowBytes:
        with isolated(denoiser):
            (denoiser.enable_gradient_checkpointing if checkpointing else denoiser.disable_gradient_checkpointing)()
            return _by_rows(update, meta, denoiser)

    def preview(rows: int) -> torch.Tensor:
        return family.decode_preview(latents(rows), preview_decoder, preview_downscale)

    decode = _by_rows(lambda rows: family.decode(latents(rows)), meta)
    is_smaller = preview_decoder is not None or preview_downscale > 1
    return Activations(
        network=_by_rows(network, meta),
        training=in_training(False),
        checkpointed=in_training(True) if getattr(denoiser, "_supports_gradient_checkpointing", False) else None,
        decode=decode,
        preview=_by_rows(preview, meta) if is_smaller else decode,
    )


def peak_bytes(function: Callable[[], Any], module: torch.nn.Module | None = None) -> int:
    """
    The most bytes of tensors, made inside of `function`, that live at the same time.

    Args:
        function (`Callable`): runs on any device, `meta` among them.
        module (`torch.nn.Module`, *optional*): whose gradients are made inside; they do not count. It is as before
            afterwards. Without, nothing has gradients.
    """
    modules = [] if module is None else [module]
    with isolated(*modules), LiveBytes() as live, _fused_attention(), torch.set_grad_enabled(module is not None):
        function()
        gradients = [parameter.grad for module in modules for parameter in module.parameters()]
        return live.peak(without=[grad for grad in gradients if grad is not None])


class LiveBytes(TorchDispatchMode):
    """Follows the memory of all tensors that operators make, from the first to the last that refers to it."""

    def __init__(self):
        super().__init__()
        self._numbers: dict[int, int] = {}
        self._events: list[tuple[int, int]] = []
        self._finalizers: list[weakref.finalize] = []

    def __exit__(self, *error):
        super().__exit__(*error)
        # Those of weights would follow them for as long as they live.
        for finalizer in self._finalizers:
            finalizer.detach()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            self._see(tensor, made=False)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self._see(tensor, made=True)
        return result

    def peak(self, without: list[torch.Tensor] = ()) -> int:
        """The most bytes at the same time, without those of the tensors that are named, which are still there."""
        left_out = {self._numbers.get(id(tensor.untyped_storage())) for tensor in without}
        now = most = 0
        for number, change in self._events:
            if number not in left_out:
                now += change
                most = max(most, now)
        return most

    def _see(self, tensor: Any, made: bool) -> None:
        if not isinstance(tensor, torch.Tensor):
            return
        storage = tensor.untyped_storage()
        if id(storage) in self._numbers:
            return
        # Numbered, as an address is used again.
        number = self._numbers[id(storage)] = len(self._events)
        size = storage.nbytes() if made else 0
        self._events.append((number, size))
        self._finalizers.append(weakref.finalize(storage, self._freed, id(storage), number, size))

    def _freed(self, key: int, number: int, size: int) -> None:
        self._numbers.pop(key, None)
        self._events.append((number, -size))


@contextmanager
def _fused_attention() -> Iterator[None]:
    """
    On the `meta` device, which has no kernels to choose among, attention allocates what a fused kernel would. A function mode
    will not do: it is off while a backward pass computes again what is checkpointed.
    """
    known = torch.nn.functional.scaled_dot_product_attention

    def attention(query, key, value, *args, **kwargs):
        return _Attention.apply(query, key, value) if query.is_meta else known(query, key, value, *args, **kwargs)

    torch.nn.functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = known


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value):
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, grad):
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _by_rows(call: Callable[[int], Any], meta: bool, module: torch.nn.Module | None = None) -> RowBytes:
    if module is None and not meta:
        with isolated(), torch.no_grad():
            # Constants that modules keep from their first call on are no activations.
            call(1)
    one, two = (peak_bytes(lambda rows=rows: call(rows), module) for rows in (1, 2))
    return RowBytes(2 * one - two, two - one)


def _repeated(tensor: torch.Tensor, rows: int, family: Family) -> torch.Tensor:
    """A prompt's tensor `(1, ...)` for all rows."""
    repeated = tensor[torch.zeros(rows, dtype=torch.long, device=tensor.device)]
    # One number per prompt is a length, whose value is needed.
    if tensor.ndim == 1 and family.device.type == "meta":
        return repeated
    return repeated.to(family.device, family.dtype if tensor.is_floating_point() else tensor.dtype)
