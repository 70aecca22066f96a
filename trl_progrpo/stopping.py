# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""SIGTERM, by which machines are taken away: a run saves at the end of its step, and leaves."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator
from transformers import TrainerCallback


EXIT_CODE = 128 + signal.SIGTERM
"""Exit status of the command line after such a stop; what shells give for a process that SIGTERM ended."""

ECHO = 3.0
"""Seconds in which a second signal is the first one again: sent to all processes, it is sent on by their launcher as well."""


class StopRequest:
    """
    Whether this process was asked to stop.

    Attributes:
        received (`bool`): since the last [`~StopRequest.listening`] began.
        heeded (`bool`): whether the run stops for it, set by whoever stops it.
    """

    def __init__(self):
        self.received = self.heeded = False
        self._first, self._pid = 0.0, os.getpid()

    @contextmanager
    def listening(self, say: bool = True) -> Iterator[None]:
        """
        Takes SIGTERM for a request while it lasts; a second one, [`ECHO`] seconds or more after the first, ends the process.
        A request that nobody heeded is passed on in the end.

        Does nothing in a thread other than the main one, where Python handles no signals.

        Args:
            say (`bool`, *optional*, defaults to `True`): whether to answer on standard error.
        """
        self.received = self.heeded = False
        self._say, self._pid = say, os.getpid()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGTERM, self._receive)
        try:
            yield
        finally:
            # None is a handler that was not installed from Python, and cannot be given back.
            signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)
        if self.received and not self.heeded:
            signal.raise_signal(signal.SIGTERM)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        # Processes that were forked meanwhile, those of a data loader for one, have nothing to save.
        if os.getpid() != self._pid or (self.received and now - self._first >= ECHO):
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        elif not self.received:
            self.received, self._first = True, now
            if self._say:
                # Not `print`, which the signal may have interrupted.
                os.write(2, b"SIGTERM: saving a checkpoint at the end of this step; a second SIGTERM ends at once.\n")


class StopCallback(TrainerCallback):
    """
    Stops the loop, on all processes after the same step, once one of them was asked to; what is due at the end of that
    step is done first, and a checkpoint saved.

    Args:
        request ([`StopRequest`]): of this process.
        accelerator ([`~accelerate.Accelerator`]): tells the others.
    """

    def __init__(self, request: StopRequest, accelerator: Accelerator):
        self.request, self.accelerator = request, accelerator

    def on_step_end(self, args, state, control, **kwargs):
        """Asks all processes."""
        if self._asked_anywhere():
            self.request.heeded = control.should_training_stop = True
            # At the end of an epoch there may be more to do before the checkpoint.
            control.should_save |= not _is_whole(state.epoch)

    def on_epoch_end(self, args, state, control, **kwargs):
        """Asks again, for the end of the last step takes time; a step in the midst of an epoch is no end of it."""
        if self.request.heeded and not _is_whole(state.epoch):
            control.should_log = control.should_evaluate = control.should_save = False
        elif self.request.heeded or self._asked_anywhere():
            self.request.heeded = control.should_training_stop = control.should_save = True

    def _asked_anywhere(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self.request.received
        # Signals do not reach all processes at the same time, and all must leave after the same step.
        asked = torch.tensor(float(self.request.received), device=self.accelerator.device)
        return self.accelerator.reduce(asked, "sum").item() > 0


def _is_whole(epoch: float) -> bool:
    return epoch == int(epoch)
