# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What stands on the terminal when a run is over."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..plots import prune_table
from ..timing import phase_seconds


if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def summary(
    before: Mapping[str, float] | None,
    after: Mapping[str, float] | None,
    log_history: Sequence[Mapping[str, Any]],
    *,
    files: Mapping[str, str | Path],
    code: str,
    group_sizes: Mapping[int, tuple[int, int]] | None = None,
    num_inference_steps: int | None = None,
    schedule: str | None = None,
    console: Console | None = None,
) -> None:
    """
    Prints the end of a run: held-out rewards before and after, the prune funnel, seconds by phase, files, and the code
    that loads the result.

    Args:
        before (`Mapping[str, float]`, *optional*): metrics of `trainer.evaluate()` before training.
        after (`Mapping[str, float]`, *optional*): the same after training.
        log_history (`Sequence[Mapping]`): `trainer.state.log_history`.
        files (`Mapping[str, str | Path]`): label -> where it lies.
        code (`str`): Python that loads and samples; printed as it is, for copying.
        group_sizes (`Mapping[int, tuple[int, int]]`, *optional*): see [`~plots.prune_group_sizes`].
        num_inference_steps (`int`, *optional*): denoising steps of a rollout.
        schedule (`str`, *optional*): a sentence about the schedule that the run has chosen.
        console ([`~rich.console.Console`], *optional*): standard output when unset.
    """
    from rich.console import Console

    console = console or Console(highlight=False)
    parts = [
        _reward_table(before, after),
        _funnel_table(prune_table(log_history, group_sizes, num_inference_steps)),
        _time_table(log_history),
    ]
    for table in parts:
        if table is not None:
            console.print()
            console.print(table)
    if schedule is not None:
        console.print("\n[bold]Schedule[/bold]\n")
        console.print(schedule.replace("`", ""), markup=False)
    console.print("\n[bold]Files[/bold]")
    width = max(map(len, files), default=0)
    for label, path in files.items():
        # A wrapped path or line of code cannot be copied.
        console.print(f"  {label:<{width}}  {path}", soft_wrap=True, markup=False)
    console.print("\n[bold]Use it with stock diffusers[/bold]\n")
    console.print(code, soft_wrap=True, markup=False)
    console.print()


def reward_rows(before: Mapping[str, float] | None, after: Mapping[str, float]) -> list[dict[str, Any]]:
    """
    One row per held-out reward: `name`, `before`, `before_stderr`, `after`, `after_stderr`, `gain`, `gain_stderr`; NaN
    where unknown. The weighted total comes first unless it is one of the rewards.

    The error of a gain treats the two evaluations as independent; as both use the same prompts and seeds it is usually
    smaller.
    """
    names = [key.removeprefix("eval_rewards/").removesuffix("/mean") for key in after if key.endswith("/mean")]
    keys = {name: (f"eval_rewards/{name}/mean", f"eval_rewards/{name}/stderr") for name in names}
    if "eval_reward" in after and not any(after[mean] == after["eval_reward"] for mean, _ in keys.values()):
        keys = {"weighted total": ("eval_reward", "eval_reward_stderr"), **keys}
    rows = []
    for name, (mean, stderr) in keys.items():
        row = {
            "name": name,
            "before": (before or {}).get(mean, math.nan),
            "before_stderr": (before or {}).get(stderr, math.nan),
            "after": after[mean],
            "after_stderr": after.get(stderr, math.nan),
        }
        row["gain"] = row["after"] - row["before"]
        row["gain_stderr"] = math.hypot(row["before_stderr"], row["after_stderr"])
        rows.append(row)
    return rows


def _reward_table(before, after) -> Table | None:
    if not after:
        return None
    count = after.get("eval_num_prompts")
    note = "mean ± standard error" + (f" over {count:g} images" if count else "") + ", noise-free, same seeds"
    table = make_table("Held-out reward", note, "reward", "before", "after", "gain")
    for row in reward_rows(before, after):
        gain, error = row["gain"], row["gain_stderr"]
        style = "" if not abs(gain) > 2 * error else "green" if gain > 0 else "red"
        table.add_row(
            row["name"],
            with_error(row["before"], row["before_stderr"]),
            with_error(row["after"], row["after_stderr"]),
            f"[{style}]{with_error(gain, error, '+')}[/]" if style else with_error(gain, error, "+"),
        )
    return table


def _funnel_table(rows) -> Table | None:
    if not rows:
        return None
    table = make_table(
        "Prune funnel", "spread of rewards within groups, mean over the run",
        "checkpoint", "group", "before", "random", "after", "rank corr.",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            "finished" if row["post_hoc"] else f"step {row['step']}",
            "{} → {}".format(*row["sizes"]) if row["sizes"] else "",
            *(_number(row[f"reward_std_{name}"]) for name in ("before", "random", "after")),
            _number(row["rank_corr"], digits=2),
        )
    return table


def _time_table(log_history) -> Table | None:
    seconds = phase_seconds(log_history)
    if not seconds:
        return None
    total = sum(seconds.values())
    table = make_table("Time", "training, evaluations within it under other", "phase", "seconds", "share")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.1f}", f"{value / total:.0%}" if total else "")
    table.add_section()
    table.add_row("total", f"{total:.1f}", "")
    return table


def make_table(title: str, note: str, first: str, *columns: str) -> Table:
    """A table with a title, a note beside it, and numbers to the right of the first column."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"[bold]{title}[/bold]  [dim]{note}[/dim]", title_justify="left", title_style="", box=box.SIMPLE_HEAD,
        pad_edge=True, header_style="dim",
    )  # fmt: skip
    # Titles wrap at the table's width otherwise.
    table.min_width = len(title) + len(note) + 2
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def with_error(value: float, error: float, sign: str = "") -> str:
    """`value ± error`; a dash for NaN, and no error where there is none."""
    return _number(value, sign) + ("" if math.isnan(error) or math.isnan(value) else f" ± {_number(error)}")


def _number(value: float, sign: str = "", digits: int = 3) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:{sign}.{digits}f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:{sign}.3g}"
