# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""How much memory a run needs on each accelerator, part by part, before it is started."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .activations import Activations
from .cost import PruneSchedule


if TYPE_CHECKING:
    from .progrpo_config import ProGRPOConfig

LATENT_BYTES = 4
"""Of one number of stored latents and of images, which are fp32."""


@dataclass(frozen=True)
class Part:
    """
    Something that takes memory on the device.

    Attributes:
        name (`str`): what it is.
        rollout, update (`int`, *optional*): bytes in each phase; `None` if not known.
    """

    name: str
    rollout: int | None
    update: int | None


@dataclass(frozen=True)
class MemoryEstimate:
    """
    The memory of one process.

    Attributes:
        parts (`list[Part]`): what is there all through a phase.
        network, decoding ([`Part`]): what calls of the denoiser and of the decoders take, images included; the two are not
            there at the same time.
        other_checkpointing (`int`, *optional*): the update's `network` if gradient checkpointing were switched over.
        host (`int`): stored latents in CPU memory.
    """

    parts: list[Part]
    network: Part
    decoding: Part
    other_checkpointing: int | None = None
    host: int = 0

    @property
    def rollout(self) -> int:
        """The most that a rollout takes of what is known."""
        return sum(part.rollout or 0 for part in self.parts) + max(
            self.network.rollout or 0, self.decoding.rollout or 0
        )

    @property
    def update(self) -> int:
        """The most that an update takes of what is known, the first step of the optimiser included."""
        return sum(part.update or 0 for part in (*self.parts, self.network))

    @property
    def unknown(self) -> list[str]:
        """Names of the parts that are not known."""
        return [
            part.name for part in (*self.parts, self.network, self.decoding) if None in (part.rollout, part.update)
        ]


@dataclass(frozen=True)
class Weights:
    """
    Bytes of weights.

    Attributes:
        denoiser (`int`): without an adapter on it.
        trained (`int`): what the optimiser works on: the adapter, or the whole denoiser.
        adapter (`bool`): which of the two.
        vae, preview_decoder (`int`): decoders, the latter 0 if there is none.
        text_encoders (`int`, *optional*): `None` if not known.
        rewards (`int`, *optional*): of reward models on the device; `None` if they are not loaded.
    """

    denoiser: int
    trained: int
    adapter: bool
    vae: int
    preview_decoder: int
    text_encoders: int | None
    rewards: int | None


def estimate_memory(
    args: ProGRPOConfig,
    weights: Weights,
    schedule: PruneSchedule,
    *,
    num_prompts: int,
    trained_steps: Sequence[int],
    latent_numbers: int,
    image_numbers: int,
    prompt_bytes: int | None,
    optimizer_bytes: int | None,
    activations: Activations | None,
    processes: int = 1,
) -> MemoryEstimate:
    """
    Adds up what a process holds. Tensors are counted as the sampler and the trainer make them; what calls allocate is given.

    Args:
        args ([`ProGRPOConfig`]): batch sizes and switches.
        weights ([`Weights`]): their bytes.
        schedule ([`PruneSchedule`]): of every group.
        num_prompts (`int`): groups of a rollout on this process.
        trained_steps (`Sequence[int]`): steps whose latents are stored; consecutive.
        latent_numbers, image_numbers (`int`): numbers in the latents, and in the image, of one trajectory.
        prompt_bytes (`int`, *optional*): of one encoded prompt, both sides of guidance.
        optimizer_bytes (`int`, *optional*): see [`optimizer_state_bytes`].
        activations ([`Activations`], *optional*): what calls allocate.
        processes (`int`, *optional*, defaults to 1): with several, DistributedDataParallel keeps a copy of the gradients.
    """
    latent, image = latent_numbers * LATENT_BYTES, image_numbers * LATENT_BYTES
    survivors = num_prompts * schedule.num_generations
    kept = survivors * (len(trained_steps) + 1) * latent
    stored = num_prompts * stored_latents(schedule, trained_steps) * latent
    # The update has the rollout and, cut from it, all micro-batches; the rollout before is there until the next one is done.
    on_device = (kept + stored, 2 * kept)
    prompts = None if prompt_bytes is None else (2 * num_prompts * prompt_bytes, num_prompts * prompt_bytes)
    if args.offload_rollout:
        working = 2 * num_prompts * schedule.num_expansions * latent
        batch = args.per_device_train_batch_size * (len(trained_steps) + 1) * latent
        on_device, prompts = (working, batch), (0, 0)
    gone = args.drop_text_encoders
    ema = weights.trained if args.ema_decay is not None else 0
    reference = weights.denoiser if args.beta > 0 and not weights.adapter else 0
    constant = {
        "denoiser": weights.denoiser,
        "text encoders": 0 if gone else weights.text_encoders,
        "VAE": weights.vae,
        "preview decoder": weights.preview_decoder,
        "reward models": weights.rewards,
        "LoRA": weights.trained if weights.adapter else 0,
        "optimiser": optimizer_bytes,
        "average (EMA)": ema,
        "reference (KL)": reference,
        "DDP's gradients": weights.trained if processes > 1 else 0,
    }
    parts = [Part(name, size, size) for name, size in constant.items()]
    parts += [
        Part("gradients", 0, weights.trained),
        Part("stored latents", *on_device),
        Part("encoded prompts", *(prompts or (None, None))),
    ]
    network, decoding, other = _calls(args, schedule, num_prompts, image, activations)
    host = 2 * kept + stored if args.offload_rollout else 0
    return MemoryEstimate(parts, network, decoding, other, host)


def stored_latents(schedule: PruneSchedule, trained_steps: Sequence[int]) -> int:
    """
    The most latents of one group that a rollout holds while it calls networks: the path of every trajectory alive, what the
    step is making, and previews.
    """
    most = entries = 0
    for step, alive in enumerate(schedule.alive()):
        if step in trained_steps:
            entries = entries + 1 if entries else 2
        # The last of the path is what the step began with, or what it made.
        other = 0 if step in trained_steps else 1 if entries and step == trained_steps[-1] + 1 else 2
        predicted = 1 if step in schedule.prune_steps else 0
        most = max(most, alive * (entries + other + predicted))
    path = len(trained_steps) + 1
    # At the end the steps are put together, and survivors chosen among all that finished.
    selected = schedule.num_generations if schedule.selects_on_finished else 0
    return max(most, (2 * schedule.num_finished + selected) * path)


def optimizer_state_bytes(args: ProGRPOConfig, parameters: Iterable[torch.Tensor]) -> int | None:
    """
    Bytes of the states that the optimiser in `args.optim` keeps for fp32 parameters, found by a step on tensors without
    content; `None` for optimisers that need a device or the model.
    """
    from transformers import Trainer

    stand_ins = [torch.nn.Parameter(torch.empty(p.shape, device="meta")) for p in parameters]
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
        optimizer = kind(stand_ins, **{name: value for name, value in options.items() if name != "fused"})
        for parameter in stand_ins:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
    # Optimisers of other packages have errors of their own.
    except Exception:
        return None
    states = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.nbytes for value in states if isinstance(value, torch.Tensor) and value.is_meta)


def module_bytes(module: torch.nn.Module | None, dtype: torch.dtype | None = None) -> int:
    """Bytes of parameters and buffers, floating point ones in `dtype` if it is given; 0 for `None`."""
    return 0 if module is None else tensor_bytes([*module.parameters(), *module.buffers()], dtype)


def tensor_bytes(tensors: Iterable[torch.Tensor], dtype: torch.dtype | None = None) -> int:
    """Bytes of tensors, floating point ones in `dtype` if it is given."""
    return sum(t.numel() * (dtype if dtype and t.is_floating_point() else t.dtype).itemsize for t in tensors)


def reward_bytes(functions: Iterable[Any], device: torch.device) -> int:
    """Bytes of the networks that reward functions hold as attributes on a device."""
    networks = {}
    for function in functions:
        for value in (function, *getattr(function, "__dict__", {}).values()):
            if isinstance(value, torch.nn.Module):
                networks[id(value)] = value
    on_device = (t for network in networks.values() for t in (*network.parameters(), *network.buffers()))
    return tensor_bytes(tensor for tensor in on_device if tensor.device.type == device.type)


def _calls(
    args: ProGRPOConfig, schedule: PruneSchedule, num_prompts: int, image: int, activations: Activations | None
) -> tuple[Part, Part, int | None]:
    """What calls of the denoiser and of decoders allocate, and the first with gradient checkpointing switched over."""
    if activations is None:
        return Part("network calls", None, None), Part("decoding", None, 0), None
    started, finished = num_prompts * schedule.num_expansions, num_prompts * schedule.num_finished
    decode_size = args.decode_batch_size or args.rollout_batch_size
    # Images are gathered in a list and then put together.
    decoding = activations.decode.of(min(decode_size, finished)) + 2 * finished * image
    if schedule.prune_steps:
        preview = image // args.preview_downscale**2
        size = args.preview_batch_size or decode_size
        decoding = max(decoding, activations.preview.of(min(size, started)) + 2 * started * preview)
    rows = args.per_device_train_batch_size
    modes = [mode and mode.of(rows) for mode in (activations.training, activations.checkpointed)]
    used, other = reversed(modes) if args.gradient_checkpointing else modes
    in_rollout = activations.network.of(min(args.rollout_batch_size, started))
    return Part("network calls", in_rollout, used), Part("decoding", decoding, 0), other
