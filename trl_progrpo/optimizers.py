# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What an optimiser and its schedule hold beside gradients: an average of the weights, and the settings they were made with."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR


RUN_STATE_KEY = "optimizer"
"""Under which a checkpoint has what [`InitialSettings`] keeps."""

_MODE = "train_mode"


def averages(optimizer: torch.optim.Optimizer | None) -> bool:
    """Return whether it is a schedule-free optimiser that is training: one whose average is not what the weights are."""
    return optimizer is not None and any(group.get(_MODE, False) for group in optimizer.param_groups)


def begin_averaging(optimizer: torch.optim.Optimizer) -> None:
    """Put a schedule-free optimiser, and the weights, into training; does nothing to others."""
    if any(_MODE in group for group in optimizer.param_groups):
        optimizer.train()


def end_averaging(optimizer: torch.optim.Optimizer) -> None:
    """Leave the average of a schedule-free optimiser in the place of the weights; does nothing to others."""
    if averages(optimizer):
        optimizer.eval()


@contextmanager
def averaged(optimizer: torch.optim.Optimizer | None, tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """
    Have the weights be the average that a schedule-free optimiser keeps, and afterwards what they were, bit for bit.

    Args:
        optimizer ([`~torch.optim.Optimizer`], *optional*): any; without an average nothing is done.
        tensors (`Sequence[torch.Tensor]`): all that it trains.
    """
    if not averages(optimizer):
        yield
        return
    # Its own way back would round.
    kept = [tensor.detach().clone() for tensor in tensors]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for tensor, value in zip(tensors, kept):
                tensor.copy_(value)


class InitialSettings:
    """
    What optimiser and schedule were made with, kept in checkpoints: what differs from what they are made with in a resumed
    run was changed by the user, and is set; all else was moved by the run, and stays as the checkpoint has it.
    """

    def __init__(self) -> None:
        self.optimizer: torch.optim.Optimizer | None = None
        self.scheduler: Any = None
        self._groups: list[dict[str, Any]] = []
        self._schedule: dict[str, Any] = {}

    def take(self, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        """Remember both; of those of an earlier `train()`, which have moved on, what they were made with is known."""
        self.optimizer, self.scheduler = optimizer, scheduler
        if not self._groups:
            self._groups = [
                {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
                for group in optimizer.param_groups
            ]
            self._schedule = copy.deepcopy(scheduler.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return what JSON keeps of them."""
        return {"groups": _plain(self._groups), "schedule": _plain(self._schedule)}

    def load_state_dict(self, then: Mapping[str, Any]) -> None:
        """
        Set what was changed since; the optimiser and the schedule must have been restored.

        Args:
            then (`Mapping[str, Any]`): the [`~InitialSettings.state_dict`] of the run that is resumed.
        """
        now = self.state_dict()
        for group, made, new, old in zip(self.optimizer.param_groups, self._groups, now["groups"], then["groups"]):
            for name in _changed(new, old):
                group[name] = copy.deepcopy(made[name])
        changed = _changed(now["schedule"], then["schedule"])
        if changed:
            state = {**self.scheduler.state_dict(), **{name: copy.deepcopy(self._schedule[name]) for name in changed}}
            self.scheduler.load_state_dict(state)
        if type(self.scheduler) is LambdaLR:
            self._set_rates()

    def _set_rates(self) -> None:
        """The rates of the next step, which the checkpoint has as its own schedule made them."""
        scheduler = self.scheduler
        rates = [base * rate(scheduler.last_epoch) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas)]
        for group, rate in zip(self.optimizer.param_groups, rates):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        scheduler._last_lr = rates


def _changed(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    return [name for name, value in now.items() if name in then and value != then[name]]


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
