# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What stands on the terminal when a run is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..heldout import evaluation_table
from ..plots import prune_table
from ..timing import phase_seconds
from ..words import number, with_error


if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def summary(
    log_history: Sequence[Mapping[str, Any]],
    *,
    files: Mapping[str, str | Path],
    code: str,
    group_sizes: Mapping[int, tuple[int, int]] | None = None,
    num_inference_steps: int | None = None,
    schedule: str | None = None,
    kept_step: int | None = None,
    console: Console | None = None,
) -> None:
    """
    Prints the end of a run: held-out rewards before and after, the prune funnel, seconds by phase, files, and the code
    that loads the result.

    Args:
        log_history (`Sequence[Mapping]`): `trainer.state.log_history`.
        files (`Mapping[str, str | Path]`): label -> where it lies.
        code (`str`): Python that loads and samples; printed as it is, for copying.
        group_sizes (`Mapping[int, tuple[int, int]]`, *optional*): see [`~plots.prune_group_sizes`].
        num_inference_steps (`int`, *optional*): denoising steps of a rollout.
        schedule (`str`, *optional*): a sentence about the schedule that the run has chosen.
        kept_step (`int`, *optional*): the step whose weights were kept, if not the last one.
        console ([`~rich.console.Console`], *optional*): standard output when unset.
    """
    from rich.console import Console

    console = console or Console(highlight=False)
    parts = [
        _reward_table(log_history, kept_step),
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


def _reward_table(log_history, kept_step: int | None) -> Table | None:
    from rich.markup import escape

    rows = evaluation_table(log_history, kept_step=kept_step)
    if not rows:
        return None
    numbers = " and ".join(map(str, dict.fromkeys(row["num_prompts"] for row in rows)))
    images = "image" if numbers == "1" else "images"
    note = f"mean ± standard error over {numbers} {images}, noise-free, same seeds"
    if kept_step is not None:
        note += f"; after: step {kept_step}, whose weights are kept"
    table = make_table("Held-out reward", note, "reward", "before", "after", "gain")
    for row in rows:
        style = "" if not row["sure"] else "red" if row["fell"] else "green"
        text = with_error(row["gain"], row["gain_stderr"], "+")
        table.add_row(
            escape(row["name"]),
            with_error(row["before"], row["before_stderr"]),
            with_error(row["after"], row["after_stderr"]),
            f"[{style}]{text}[/]" if style else text,
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
            *(number(row[f"reward_std_{name}"]) for name in ("before", "random", "after")),
            number(row["rank_corr"], digits=2),
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
    # Of a narrow terminal the names give way, by breaking, and never a number.
    table.add_column(first, overflow="fold", min_width=8)
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    return table
