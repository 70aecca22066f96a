# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""When the accelerator has too little memory: fewer rows per call, once, and then a sentence that says what to change."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch


T = TypeVar("T")


class OutOfMemory(ValueError, torch.OutOfMemoryError):
    """The accelerator has too little memory for what was asked; says which option to lower."""


class CallSize:
    """
    How many rows go through a network at once. A call that runs out of memory is made again with half of them, and so are
    all later ones; that happens once.

    Args:
        field (`str`): option that sets it, for messages.
        rows (`int`, *optional*): all at once when unset.
        cure (`str`): what else helps, as the end of a sentence.

    Attributes:
        rows (`int`, *optional*): as it is now.
        halved_from (`int`, *optional*): what it was before memory ran out.
    """

    def __init__(self, field: str, rows: int | None, cure: str):
        self.field, self.rows, self.cure = field, rows, cure
        self.halved_from: int | None = None

    def each(
        self, total: int, call: Callable[[slice], T], network: torch.nn.Module | None = None
    ) -> Iterator[tuple[slice, T]]:
        """
        Calls `call` with one slice of `range(total)` after the other, and yields each slice with what it returned.

        Args:
            total (`int`): rows.
            call (`Callable[[slice], T]`): may be called again with the first half of a slice that was too much, so it must
                change nothing that it reads.
            network (`torch.nn.Module`, *optional*): what `call` runs. Where processes share out its weights nothing is
                halved, for all of them must make the same number of calls.

        Raises:
            OutOfMemory: if memory runs out again, or for a single row.
        """
        start = 0
        while start < total:
            batch = slice(start, min(start + (self.rows or total), total))
            reason = None
            try:
                result = call(batch)
            except torch.OutOfMemoryError as error:
                reason = _reason(error)
            # Not before: the traceback of the error held whatever the call had allocated.
            if reason is not None:
                self._halve(total, reason, network)
                continue
            yield batch, result
            start = batch.stop

    def _halve(self, total: int, reason: str, network: torch.nn.Module | None) -> None:
        rows = min(self.rows or total, total)
        half = max(1, rows // 2)
        if network is not None and shares_weights(network):
            raise OutOfMemory(
                f"`{self.field}` is {rows}, and a call of so many rows ran out of memory ({reason}); set it to {half}, which a "
                "process cannot do by itself where weights are shared out: all must make the same number of calls."
            )
        if self.halved_from is not None or rows == 1:
            was = "" if self.halved_from is None else f", halved from {self.halved_from},"
            lower = f"set it to {half}, or " if rows > 1 else ""
            raise OutOfMemory(
                f"`{self.field}` is {rows}{was} and a call of so many rows ran out of memory ({reason}); {lower}{self.cure}."
            )
        _free()
        self.halved_from, self.rows = rows, half
        warnings.warn(
            f"`{self.field}` is {rows}, and a call of so many rows ran out of memory; it is {half} for the rest of the run, "
            f"with the same seeds. Set `{self.field}` to {half} from the start, or {self.cure}.",
            stacklevel=4,
        )


def shares_weights(network: torch.nn.Module) -> bool:
    """Whether its weights lie on several processes, so that every call of it is a collective one."""
    from torch.distributed.tensor import DTensor

    # The name is DeepSpeed's, of a parameter of ZeRO-3.
    return any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in network.parameters())


@contextmanager
def update_memory(rows: int, denoiser: torch.nn.Module) -> Iterator[None]:
    """
    What runs out of memory inside of an update says what to change.

    Args:
        rows (`int`): `per_device_train_batch_size`.
        denoiser (`torch.nn.Module`): what is trained, of diffusers.

    Raises:
        OutOfMemory: in place of torch's own error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        cures = [] if denoiser.is_gradient_checkpointing else ["set `gradient_checkpointing` to true"]
        if rows > 1:
            more = f"{-(-rows // (rows // 2))} times what they are"
            cures.append(f"set it to {rows // 2}, `gradient_accumulation_steps` and `steps_per_generation` to {more}")
        cures.append("make images smaller (`height`, `width`)")
        raise OutOfMemory(
            f"`per_device_train_batch_size` is {rows}, and the update ran out of memory ({_reason(error)}); "
            f"{', or '.join(cures)}."
        ) from error


@contextmanager
def run_memory() -> Iterator[None]:
    """
    What runs out of memory elsewhere in a run, such as the states of the optimiser at its first step, says so.

    Raises:
        OutOfMemory: in place of torch's own error.
    """
    try:
        yield
    except OutOfMemory:
        raise
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"the run is too large for the accelerator ({_reason(error)}); `trl-progrpo plan` prints what takes how much, and "
            "`drop_text_encoders`, LoRA instead of full fine-tuning, and smaller batches take less."
        ) from error


def _reason(error: BaseException) -> str:
    """The first sentence; what follows is about the allocator."""
    text = " ".join(str(error).split()).split(". ")[0].rstrip(".")
    return text or "out of memory"


def _free() -> None:
    """Gives cached memory back to the device, where pieces of any size can be cut from it again."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
