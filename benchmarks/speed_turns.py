# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
Contenders of `speed.py` in processes of their own that take turns. Knows torch and nothing else, for the environments differ.

A worker waits for a line on its standard input, makes one rollout and its updates, and writes one line of JSON. So the
contenders work alternately, and whatever else the machine is doing meets all of them alike.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


PREFIX = "turn: "
"""What a worker's own lines begin with; libraries write to standard output too."""

STATUS = Path("/proc/self/status")


class Turns:
    """
    Seconds of every rollout and of the update after it: of the wall clock, and of the processor in this process.

    Args:
        device (`str`): on an accelerator the clock is read when the work is done.
        wait (`Callable[[], Any]`, *optional*): called before each turn; reads a line of standard input when unset.
        tell (`Callable[[dict], Any]`, *optional*): told what a turn took; writes to standard output when unset.
    """

    def __init__(
        self,
        device: str,
        wait: Callable[[], Any] | None = None,
        tell: Callable[[dict[str, Any]], Any] | None = None,
    ):
        self.device, self.wait, self.tell = torch.device(device), wait or sys.stdin.readline, tell or write_line
        self._begun: tuple[float, float] | None = None
        self._sampled: tuple[float, float] | None = None
        self._memory_before: int | None = None

    def now(self) -> tuple[float, float]:
        """Wall and processor seconds."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter(), time.process_time()

    def begin(self) -> None:
        """Waits for this worker's turn."""
        self.end()
        self.wait()
        if self._memory_before is None:
            self._memory_before = memory(self.device)[0]
            forget_peak(self.device)
        self._begun = self.now()

    def sampled(self) -> None:
        """The rollout is there, rewards included."""
        self._sampled = self.now()

    def end(self) -> None:
        """Tells what the turn took; nothing if there was none since the last call."""
        if self._begun is None:
            return
        begun, sampled, ended = self._begun, self._sampled, self.now()
        self._begun = None
        self.tell(
            {
                "rollout": sampled[0] - begun[0],
                "update": ended[0] - sampled[0],
                "rollout_cpu": sampled[1] - begun[1],
                "update_cpu": ended[1] - sampled[1],
                "peak": memory(self.device)[1],
                "before": self._memory_before,
            }
        )


def memory(device: torch.device) -> tuple[int, int]:
    """Bytes that are held now, and the most since [`forget_peak`]: on a CUDA device what torch allocated, else the process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        # Not on Linux, whose own `ru_maxrss` would be that of the process which started this one, if that is more.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak, peak
    values = {
        name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest
    }
    return values["VmRSS"], values["VmHWM"]


def forget_peak(device: torch.device) -> None:
    """From now on counts what is the most."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif STATUS.exists():
        STATUS.with_name("clear_refs").write_text("5")


def write_line(turn: dict[str, Any]) -> None:
    """One line that the process which waits for it can tell from all others."""
    print(PREFIX + json.dumps(turn), flush=True)
