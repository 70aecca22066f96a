# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The table of `log_completions`: prompts with the rewards and advantages of their survivors."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from .group_plots import by_reward


if TYPE_CHECKING:
    from rich.console import Console

    from ..progrpo_trainer import ProGRPOTrainer
    from ..types import Rollout


class CompletionsCallback(TrainerCallback):
    """
    Prints the newest rollout as a table with every training log, on standard error beside the progress bar.

    Args:
        trainer ([`ProGRPOTrainer`]): whose rollouts.
    """

    def __init__(self, trainer: ProGRPOTrainer):
        self.trainer = trainer

    def on_log(self, args, state, control, logs: Mapping[str, Any] | None = None, **kwargs):
        """Prints where the log is one of training."""
        rollout = self.trainer.last_rollout
        if not state.is_world_process_zero or rollout is None or "loss" not in (logs or {}):
            return
        count = args.num_completions_to_print or args.num_generations
        # Takes the bar away while the table is written, and draws it again below.
        with tqdm.external_write_mode(file=sys.stderr):
            print_completions(
                self.trainer.last_prompts, rollout, self.trainer.reward_runner.names, state.global_step, count
            )


def print_completions(
    prompts: Sequence[str],
    rollout: Rollout,
    reward_names: Sequence[str],
    step: int,
    count: int,
    console: Console | None = None,
) -> None:
    """
    Prints one line per survivor: prompt, member of the group, each reward, their weighted sum if there are several, and
    the advantage.

    Args:
        prompts (`Sequence[str]`): of the rollout.
        rollout ([`~types.Rollout`]): with rewards and advantages.
        reward_names (`Sequence[str]` of length `F`): names of its columns.
        step (`int`): optimiser steps done, for the title.
        count (`int`): survivors to print: group by group, each from the highest reward down.
        console ([`~rich.console.Console`], *optional*): standard error when unset.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"Step {step}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("Prompt", overflow="fold", ratio=1)
    table.add_column("Member", justify="right")
    total = ["reward"] if len(reward_names) > 1 else []
    for name in [*reward_names, *total]:
        # As text: a name with brackets is no markup.
        table.add_column(Text(name), justify="right", style="cyan")
    table.add_column("Advantage", justify="right", style="magenta")
    left = count
    for prompt in rollout.prompt_index.unique().tolist():
        rows = (rollout.prompt_index == prompt).nonzero().flatten()
        rows = rows[by_reward(rollout.rewards[rows])][:left]
        left -= len(rows)
        for position, row in enumerate(rows.tolist()):
            values = rollout.rewards_per_func[row].tolist() + [rollout.rewards[row].item()] * len(total)
            table.add_row(
                Text(prompts[prompt] if position == 0 else ""),
                str(int(rollout.member[row])),
                *map(_number, values),
                _number(rollout.advantages[row].item(), "+"),
                end_section=position == len(rows) - 1,
            )
        if left <= 0:
            break
    console = console or Console(stderr=True, highlight=False)
    console.print(table)


def _number(value: float, sign: str = "") -> str:
    return "–" if math.isnan(value) else f"{value:{sign}.2f}" if abs(value) < 1000 else f"{value:{sign}.3g}"
