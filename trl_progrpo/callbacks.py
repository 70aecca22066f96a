# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What is shown while a run is going on."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from .words import no_finer_than, number, with_error


class ProGRPOProgressCallback(TrainerCallback):
    """
    One progress bar over optimiser steps, with the reward, what the rollout is doing, and the time left.

    ```
     12%|███▊                          | 12/100 [01:23<09:55] reward 0.512 (+0.104) · denoise 45%
    ```

    The number in brackets is the change since the first reward of the run. Where standard error is no terminal (a log
    file, a CI job) it prints one plain line per log instead, without control characters. Only the main process writes,
    always to standard error: standard output stays free for results.

    Args:
        min_interval (`float`, *optional*, defaults to 0.1): least seconds between two redraws for phases; a rollout
            reports every batch of every step.
    """

    def __init__(self, min_interval: float = 0.1):
        self.min_interval = min_interval
        self.bar: tqdm | None = None
        self.evaluation_bar: tqdm | None = None
        self.first_reward: float | None = None
        self.reward: float | None = None
        self._phase = ""
        self._phase_text = ""
        self._last_drawn = 0.0
        self._started = 0.0
        self._first_step = 0

    # ---- events of transformers' loop --------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, **kwargs):
        """Opens the bar; a resumed run continues its count and its reward."""
        if not state.is_world_process_zero:
            return
        self._close_evaluation_bar()
        self._started, self._first_step = time.monotonic(), state.global_step
        earlier = [entry["reward"] for entry in state.log_history if "reward" in entry]
        self.first_reward, self.reward = (earlier[0], earlier[-1]) if earlier else (None, None)
        self._phase, self._phase_text = "", ""
        if _is_terminal():
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                file=sys.stderr,
                # Rollouts make steps uneven: the mean over the run is the steadier estimate of the time left.
                smoothing=0,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{desc}",
            )
            self._draw()

    def on_step_end(self, args, state, control, **kwargs):
        """Moves the bar to the current optimiser step."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs: Mapping[str, Any] | None = None, **kwargs):
        """Takes up the reward; prints a line where there is no terminal."""
        if not state.is_world_process_zero or not logs:
            return
        if "reward" in logs:
            self.reward = logs["reward"]
            self.first_reward = self.reward if self.first_reward is None else self.first_reward
        if self.bar is not None:
            self._draw()
        elif "reward" in logs or "loss" in logs:
            _print(self._plain_line(state, logs))

    def on_evaluate(self, args, state, control, metrics: Mapping[str, float] | None = None, **kwargs):
        """Leaves one line with the held-out reward."""
        if not state.is_world_process_zero:
            return
        self._close_evaluation_bar()
        line = _evaluation_line(state, metrics or {})
        if line:
            self._leave(line)

    def on_train_end(self, args, state, control, **kwargs):
        """Closes the bar."""
        self._phase_text = ""
        if self.bar is not None:
            self._draw()
            self.bar.close()
            self.bar = None

    # ---- events of the rollout ---------------------------------------------------------------------------------------

    def on_phase(self, args, state, control, phase: str, done: int, total: int, **kwargs):
        """
        Shows which part of a step is running: `"schedule"`, `"denoise"`, `"preview"`, `"decode"`, `"reward"`, `"update"`,
        `"evaluate"`.
        """
        if not state.is_world_process_zero:
            return
        if self.bar is None:
            if phase == "evaluate" and _is_terminal():
                self._draw_evaluation_bar(done, total)
            return
        # A reward function reports no progress of its own: the bare word is truer than 0%.
        percent = f" {100 * done // total}%" if total and not (phase == "reward" and done == 0) else ""
        self._phase_text = f"{phase}{percent}"
        if phase != self._phase or done >= total or time.monotonic() - self._last_drawn >= self.min_interval:
            self._phase = phase
            self._draw()

    def on_arithmetic(self, args, state, control, lines: Sequence[str], **kwargs):
        """Leaves what a rollout and an epoch come to, once."""
        if not state.is_world_process_zero:
            return
        for line in lines:
            self._leave(line)

    def on_prune_schedule(self, args, state, control, schedule: str, gain: float | None = None, **kwargs):
        """Leaves one line with the schedule that `prune_schedule="auto"` has chosen, and what it is expected to gain."""
        if not state.is_world_process_zero:
            return
        line = f"step {state.global_step}: prune schedule {schedule}"
        if gain is not None:
            line += f", {gain:.2f} times the signal per second of plain GRPO"
        self._leave(line)

    # ---- drawing -----------------------------------------------------------------------------------------------------

    def _leave(self, line: str) -> None:
        """Writes a line that stays."""
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            _print(line)

    def _draw(self) -> None:
        parts = [part for part in (self._reward_text(), self._phase_text) if part]
        # `desc` and not the postfix, before which tqdm would put a comma.
        self.bar.desc = " " + " · ".join(parts) if parts else ""
        self.bar.refresh()
        self._last_drawn = time.monotonic()

    def _draw_evaluation_bar(self, done: int, total: int) -> None:
        if self.evaluation_bar is None:
            self.evaluation_bar = tqdm(
                total=total,
                leave=False,
                file=sys.stderr,
                dynamic_ncols=True,
                bar_format="evaluate {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]",
            )
        self.evaluation_bar.n = done
        self.evaluation_bar.refresh()

    def _close_evaluation_bar(self) -> None:
        if self.evaluation_bar is not None:
            self.evaluation_bar.close()
            self.evaluation_bar = None

    def _reward_text(self) -> str:
        if self.reward is None:
            return ""
        change = no_finer_than(self.reward, self.reward - self.first_reward)
        return f"reward {number(self.reward)} ({number(change, '+')})"

    def _plain_line(self, state, logs: Mapping[str, Any]) -> str:
        parts = [f"step {state.global_step}/{state.max_steps}"]
        if self.reward is not None:
            parts.append(self._reward_text())
        if "reward_std" in logs:
            parts.append(f"std {number(logs['reward_std'])}")
        elapsed = time.monotonic() - self._started
        done = state.global_step - self._first_step
        parts.append(f"elapsed {tqdm.format_interval(elapsed)}")
        if done > 0:
            parts.append(f"left {tqdm.format_interval(elapsed / done * (state.max_steps - state.global_step))}")
        return "  ".join(parts)


def _evaluation_line(state, metrics: Mapping[str, float]) -> str:
    """The held-out rewards of every evaluation set among `metrics` in one line, or an empty string."""
    parts = []
    for key, value in metrics.items():
        if key == "eval_reward" or (key.startswith("eval_") and key.endswith("_reward")):
            name = key.removeprefix("eval").removesuffix("reward").strip("_")
            value = with_error(value, metrics.get(f"{key}_stderr"))
            gain = metrics.get(f"{key}_gain")
            gained = "" if gain is None else f", gain {with_error(gain, metrics.get(f'{key}_gain_stderr'), '+')}"
            parts.append(f"{f'{name} ' if name else ''}{value}{gained}")
    return f"step {state.global_step}: held-out reward {', '.join(parts)}" if parts else ""


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
