# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""For what tries something out on the networks of a run: they and the random numbers are as they were afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def modes_kept(*modules: torch.nn.Module) -> Iterator[None]:
    """Leave every submodule in training or in evaluation mode as it is found, also when something is raised inside."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def isolated(*modules: torch.nn.Module) -> Iterator[None]:
    """
    Leave modules, and all generators that [`~transformers.set_seed`] seeds, as they are found, also when something is raised
    inside.

    Of the modules that is gradients, of which there are none inside at first; what requires one; training and evaluation
    mode; gradient checkpointing. Values of weights are whoever changes them's.

    Args:
        modules (`torch.nn.Module`): the networks; without any, random numbers alone.
    """
    parameters = [(p, p.requires_grad, p.grad) for module in modules for p in module.parameters()]
    checkpointing = [(part, _checkpointing(part)) for module in modules for part in module.modules()]
    numbers, numpy_numbers = random.getstate(), np.random.get_state()
    device = torch.accelerator.current_accelerator()
    # MPS has no generator per device, which forking asks for.
    devices = [torch.accelerator.current_device_index()] if device is not None and device.type != "mps" else []
    for parameter, _, _ in parameters:
        parameter.grad = None
    try:
        with torch.random.fork_rng(devices), modes_kept(*modules):
            yield
    finally:
        random.setstate(numbers)
        np.random.set_state(numpy_numbers)
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad).grad = grad
        for part, values in checkpointing:
            vars(part).update(values)


def _checkpointing(module: torch.nn.Module) -> dict[str, object]:
    """The switch and the function of diffusers' gradient checkpointing, which a module has as plain attributes."""
    return {name: value for name, value in vars(module).items() if "gradient_checkpointing" in name}
