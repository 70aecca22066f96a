# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What `trl-progrpo plan` prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING

from .plan_memory import table as memory_table
from .summary import make_table


if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from .plan import Plan

_LEGEND = (
    "network: evaluations of the rollout, training: forward and backward passes; guidance counts twice in both. spread: of "
    "the final rewards in a group that are trained on, in standard deviations of one trajectory's reward. signal: their "
    "sum of squared deviations, to which the information in the group's gradient is proportional."
)


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """
    Prints a plan as tables.

    Args:
        plan ([`~cli.plan.Plan`]): what to print.
        console ([`~rich.console.Console`], *optional*): standard output when unset.
    """
    from rich.console import Console

    console = console or Console(highlight=False)
    console.print()
    for label, text in plan.facts.items():
        console.print(f"  [dim]{label:<10}[/dim] {text}", soft_wrap=True)
    memory = plan.memory and memory_table(plan.memory)
    for table in (_work(plan), _cost(plan), _parts(plan), memory, _gain(plan)):
        if table is not None:
            console.print()
            console.print(table)
    paragraphs = [plan.verdict, *plan.notes, _LEGEND]
    if plan.calibration is not None:
        # Two schedules are told of on this page: the run's own first, and the other one with its name.
        configured = f"As configured ({plan.methods[0].sizes}): {plan.verdict} {_measured(plan)}".rstrip()
        paragraphs[:1] = [configured, _print_calibration(plan, console)]
    for paragraph in paragraphs:
        console.print()
        console.print(paragraph, markup=False, style="dim" if paragraph is _LEGEND else "")
    console.print()


def _work(plan: Plan) -> Table:
    table = make_table(
        "Work", "one rollout and its updates, in rows", "", "network", "previews", "decodes", "rewards", "training"
    )
    for method in plan.methods:
        work = method.work
        counts = (work.nfe, work.preview_decodes, work.decodes, work.reward_calls, work.training_passes)
        table.add_row(method.name, *(f"{count:,}" for count in counts))
    return table


def _cost(plan: Plan) -> Table | None:
    known = _known(plan)
    if not known:
        return None
    columns = [text for title, _, _ in known for text in (title, "/ update")]
    table = make_table("Cost", "one rollout with all its updates, and a share of one update", "", *columns, "relative")
    for method in plan.methods:
        totals = [getattr(method, name).total for _, name, _ in known]
        cells = [text for total, (_, _, say) in zip(totals, known) for text in (say(total), say(total / plan.updates))]
        ratio = totals[-1] / getattr(plan.methods[0], known[-1][1]).total
        table.add_row(method.name, *cells, f"{ratio:.2f}x")
    return table


def _parts(plan: Plan) -> Table | None:
    known = _known(plan)
    if not known:
        return None
    columns = [text for title, _, _ in known for text in (title, "share")]
    table = make_table("Where it goes", "this run", "", *columns)
    costs = [(getattr(plan.methods[0], name), say) for _, name, say in known]
    for f in fields(costs[0][0]):
        values = [getattr(cost, f.name) for cost, _ in costs]
        cells = []
        for value, (cost, say) in zip(values, costs):
            cells += [say(value), f"{value / cost.total:.0%}"] if value else ["–", ""]
        if any(values):
            table.add_row(f.name, *cells)
    return table


def _gain(plan: Plan) -> Table:
    known = _known(plan)
    columns = ["spread", "signal", *(f"signal per {'FLOP' if name == 'flops' else 'second'}" for _, name, _ in known)]
    # The cheapest: plain GRPO with as many trajectories as are trained on.
    base = min(plan.methods, key=lambda method: method.schedule.num_expansions)
    table = make_table("Gain", f"at most, with exact previews; rates relative to {base.name}", "", *columns)
    for method in plan.methods:
        ratios = [
            f"{method.gain.signal / getattr(method, name).total * getattr(base, name).total / base.gain.signal:.2f}x"
            for _, name, _ in known
        ]
        table.add_row(method.name, f"{method.gain.spread:.2f}", f"{method.gain.signal:.1f}", *ratios)
    return table


def _print_calibration(plan: Plan, console: Console) -> str:
    """Prints what was recorded; returns a sentence about the proposal."""
    calibration, (title, _, say) = plan.calibration, _known(plan)[-1]
    note = f"rank correlation with final rewards, {calibration.groups} groups of {calibration.members}"
    levels = sorted(calibration.levels, key=lambda level: level.level)
    names = [f"{calibration.level_name} {level.level:g}" for level in levels]
    table = make_table("Previews", note, "after step", *names)
    steps = list(calibration.levels[0].rank_corr)
    for step in steps[:: -(-len(steps) // _PREVIEW_ROWS)]:
        table.add_row(f"{step}", *(f"{level.rank_corr[step]:.2f}" for level in levels))
    table.add_section()
    table.add_row("reward spread", *(f"{level.spread:.3g}" for level in levels))
    console.print()
    console.print(table)

    per = "second" if title == "time" else "FLOP"
    table = make_table(
        "Schedules", f"on these groups; rates per {per}, relative to this run", "",
        "noise", "spread", "signal", title, "spread", "signal",
    )  # fmt: skip
    run = calibration.methods["this run"]
    for name, method in calibration.methods.items():
        # Without any spread in this run's groups nothing can be told in units of it.
        rates = [
            f"{getattr(method, what) / method.cost * run.cost / getattr(run, what):.2f}x"
            if getattr(run, what)
            else "–"
            for what in ("spread", "signal")
        ]
        table.add_row(
            name, f"{method.level:g}", f"{method.spread:.3g}", f"{method.signal:.3g}", say(method.cost),
            *rates,
        )  # fmt: skip
    console.print()
    console.print(table)
    proposed = calibration.proposed
    schedule = proposed.schedule
    pruned = [f"after step {step}" for step in schedule.prune_steps]
    pruned += ["on the finished images"] if schedule.selects_on_finished else []
    pruned = pruned or ["plain GRPO"]
    said = f"{' → '.join(map(str, schedule.sizes))} ({', '.join(pruned)}), {calibration.level_name} {proposed.level:g}"
    return f"Proposed: {said}. Written to {calibration.file}, for `trl-progrpo train --config`."


def _measured(plan: Plan) -> str:
    """What the previews of the run's own checkpoints are like."""
    found = plan.calibration.levels[0].rank_corr
    steps = [step for step in plan.methods[0].schedule.prune_steps if step in found]
    said = " and ".join(f"{found[step]:.2f} after step {step}" for step in steps)
    return f"Here it is {said}." if said else ""


_PREVIEW_ROWS = 12
"""Steps that are printed, at most."""


def _known(plan: Plan) -> list[tuple[str, str, Callable[[float], str]]]:
    kinds = [("FLOPs", "flops", format_flops), ("time", "seconds", format_seconds)]
    return [kind for kind in kinds if getattr(plan.methods[0], kind[1]) is not None]


def format_flops(value: float) -> str:
    """With three digits and a prefix: `4.72 P` is 4.72e15."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if value < 999.5 or prefix == "E":
            return f"{value:.3g} {prefix}".rstrip()
        value /= 1000
    raise AssertionError


def format_seconds(value: float) -> str:
    """In milliseconds, seconds, minutes or hours."""
    for limit, size, unit in ((0.9995, 1e-3, "ms"), (99.95, 1, "s"), (5999, 60, "min"), (float("inf"), 3600, "h")):
        if value < limit:
            return f"{value / size:.3g} {unit}"
    raise AssertionError
