# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The memory part of `trl-progrpo plan`: what a run holds on each accelerator, and how it is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .summary import make_table


if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from ..activations import Activations
    from ..cost import PruneSchedule
    from ..families import Family
    from ..memory import MemoryEstimate, Weights
    from ..progrpo_config import ProGRPOConfig
    from ..progrpo_trainer import ProGRPOTrainer


@dataclass(frozen=True)
class Loaded:
    """What only loaded weights tell: what calls allocate in the run's own precision, and bytes of reward models."""

    activations: Activations | None
    rewards: int


@dataclass(frozen=True)
class Memory:
    """
    The estimate and where it comes from.

    Attributes:
        estimate ([`~memory.MemoryEstimate`]): bytes.
        dtype (`str`): of the denoiser's weights.
        measured (`bool`): whether calls were measured on loaded weights, and not on shapes.
        unknown (`str`, *optional*): why something is not known.
    """

    estimate: MemoryEstimate
    dtype: str
    measured: bool
    unknown: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        estimate = self.estimate
        every = [*estimate.parts, estimate.network, estimate.decoding]
        parts = {part.name: {"rollout": part.rollout, "update": part.update} for part in every}
        return {
            "dtype": self.dtype,
            "measured": self.measured,
            "parts": parts,
            "total": {"rollout": estimate.rollout, "update": estimate.update},
            "unknown": estimate.unknown,
            "other_checkpointing": estimate.other_checkpointing,
            "host": estimate.host,
        }


def look(trainer: ProGRPOTrainer, rows: Sequence[Mapping[str, Any]]) -> Loaded:
    """Measures calls on the networks of a trainer, which are as before afterwards, and counts its reward models."""
    import torch

    from ..activations import measure_activations
    from ..memory import reward_bytes

    args, activations = trainer.args, None
    runners = filter(None, (trainer.reward_runner, trainer.preview_reward_runner, trainer.eval_reward_runner))
    rewards = reward_bytes(
        [function for runner in runners for function in runner.functions], trainer.accelerator.device
    )
    conditioning = trainer._encode([rows[0][args.prompt_column]])
    # Operators of compiled code are not seen one by one.
    if not args.torch_compile:
        try:
            activations = measure_activations(
                trainer.family,
                conditioning,
                trainer.preview_decoder,
                args.preview_downscale,
                trainer.accelerator.autocast,
            )
        except torch.OutOfMemoryError:
            activations = None
    return Loaded(activations, rewards)


def estimate(
    args: ProGRPOConfig,
    family: Family,
    prompt: str,
    schedule: PruneSchedule,
    num_prompts: int,
    trained_steps: Sequence[int],
    processes: int,
    loaded: Loaded | None = None,
) -> Memory:
    """
    The memory of one process.

    Args:
        args ([`ProGRPOConfig`]): of the run.
        family ([`~families.Family`]): on a skeleton with its adapter, which is of the run's precision afterwards.
        prompt (`str`): any of the data.
        schedule ([`PruneSchedule`]): of every group.
        num_prompts (`int`): groups on this process.
        trained_steps (`Sequence[int]`): of the first rollout.
        processes (`int`): how many there will be.
        loaded ([`Loaded`], *optional*): what loaded weights have told.
    """
    import torch

    from ..activations import measure_activations
    from ..families.skeleton import preview_decoder_skeleton
    from ..families.text_skeleton import encode
    from ..memory import estimate_memory, optimizer_state_bytes, tensor_bytes

    denoiser = family.denoiser
    trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    adapter = len(trained) < len(list(denoiser.parameters()))
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    dtype = dtype if adapter else torch.float32
    decoder = preview_decoder_skeleton(args.preview_decoder) if args.preview_decoder else None
    weights = _weights(family, dtype, trained, adapter, decoder, loaded)
    optimizer_bytes = optimizer_state_bytes(args, trained)
    activations, unknown, prompt_bytes = loaded and loaded.activations, None, None
    try:
        conditioning = encode(family, [prompt])
        sides = [side for side in (conditioning.positive, conditioning.negative) if side is not None]
        prompt_bytes = tensor_bytes([t for side in sides for t in side.values()], dtype)
        if activations is None:
            _prepare(family, args, dtype)
            activations = measure_activations(family, conditioning, decoder, args.preview_downscale)
    # A family may look at the values of tensors that have none here, as for FLOPs.
    except Exception as error:
        unknown = f"What calls allocate is not known: {' '.join(f'{type(error).__name__}: {error}'.split())}"
    found = estimate_memory(
        args,
        weights,
        schedule,
        num_prompts=num_prompts,
        trained_steps=trained_steps,
        latent_numbers=_product(family.latent_shape),
        image_numbers=3 * family.height * family.width,
        prompt_bytes=prompt_bytes,
        optimizer_bytes=optimizer_bytes,
        activations=activations,
        processes=processes,
    )
    return Memory(found, str(dtype).removeprefix("torch."), bool(loaded and loaded.activations), unknown)


def table(memory: Memory) -> Table:
    """Parts in rows, phases in columns."""
    found = memory.estimate
    made = make_table("Memory", f"on one device, at most; weights in {memory.dtype}", "", "rollout", "update")
    for part in (*found.parts, found.network, found.decoding):
        if (part.rollout, part.update) != (0, 0):
            made.add_row(part.name, *(_cell(size) for size in (part.rollout, part.update)))
    made.add_section()
    made.add_row("total of what is known" if found.unknown else "total", *map(_cell, (found.rollout, found.update)))
    return made


def note(memory: Memory, args_checkpointing: bool | None) -> str:
    """What the table does not say."""
    found = memory.estimate
    how = "measured on the loaded networks" if memory.measured else "followed through networks without weights"
    said = [f"Memory: what calls allocate was {how} at one and two rows."]
    if found.other_checkpointing is not None:
        switched = "without" if args_checkpointing else "with"
        said.append(
            f"The update's calls take {format_bytes(found.other_checkpointing)} {switched} gradient checkpointing."
        )
    if found.network.rollout is not None:
        said.append("Network calls and decoding do not coincide: the larger counts in the total.")
    if found.host:
        said.append(f"Stored latents take {format_bytes(found.host)} of CPU memory.")
    if "reward models" in found.unknown:
        said.append("Reward models count once they are loaded, without --no_time.")
    if memory.unknown is not None:
        said.append(memory.unknown)
    said.append("Left out: what kernels, communication and the allocator take for themselves.")
    return " ".join(said)


def format_bytes(size: float) -> str:
    """With three digits, in KiB, MiB or GiB."""
    for unit in ("B", "KiB", "MiB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB" if size < 999.5 else f"{size:,.0f} GiB"


def _cell(size: int | None) -> str:
    return "?" if size is None else format_bytes(size) if size else "–"


def _product(shape: Sequence[int]) -> int:
    numbers = 1
    for size in shape:
        numbers *= size
    return numbers


def _weights(
    family: Family,
    dtype: torch.dtype,
    trained: list[torch.nn.Parameter],
    adapter: bool,
    decoder: torch.nn.Module | None,
    loaded: Loaded | None,
) -> Weights:
    from ..memory import Weights, module_bytes, tensor_bytes

    denoiser, components = family.denoiser, family.pipeline.components.items()
    own = {id(parameter) for parameter in trained} if adapter else set()
    base = [t for t in (*denoiser.parameters(), *denoiser.buffers()) if id(t) not in own]
    # There are none if a tokenizer could not be read.
    encoders = [module for name, module in components if name.startswith("text_encoder") and module is not None]
    return Weights(
        denoiser=tensor_bytes(base, dtype),
        trained=tensor_bytes(trained),
        adapter=adapter,
        vae=module_bytes(family.pipeline.vae),
        preview_decoder=module_bytes(decoder),
        text_encoders=sum(module_bytes(module.encoder, dtype) for module in encoders) if encoders else None,
        rewards=loaded and loaded.rewards,
    )


def _prepare(family: Family, args: ProGRPOConfig, dtype: torch.dtype) -> None:
    """As the trainer does; autocast, which would run the adapter in the same precision, knows no `meta` device."""
    import torch

    # Not its own method, which warns of what loading keeps in fp32.
    torch.nn.Module.to(family.denoiser, dtype)
    family.pipeline.vae.requires_grad_(False)
    if args.vae_slicing:
        family.pipeline.vae.enable_slicing()
    if args.vae_tiling:
        family.pipeline.vae.enable_tiling()
