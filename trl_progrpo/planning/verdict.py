# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Is a schedule worth what it costs? Said in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..cost import PruneSchedule
from .gain import expected_gain


@dataclass(frozen=True)
class Option:
    """
    One way to train.

    Attributes:
        name (`str`): as it stands in a sentence.
        schedule ([`PruneSchedule`]): of its groups.
        cost (`float`): of a rollout and its update, in the unit and for the number of prompts of all options.
    """

    name: str
    schedule: PruneSchedule
    cost: float

    def worth(self, correlation: float = 1.0) -> float:
        """Signal per cost, with previews of this correlation; see [`gain`]."""
        return expected_gain(self.schedule, correlation).signal / self.cost


def break_even(option: Option, rivals: Sequence[Option]) -> float | None:
    """
    The correlation of preview and final reward from which `option` gives more signal per cost than any of `rivals` does
    with exact previews; `None` if even exact previews do not suffice, 0 if none are needed.
    """
    target = max(rival.worth() for rival in rivals)
    if option.worth() < target:
        return None
    below, enough = 0.0, 1.0
    if option.worth(0.0) >= target:
        return 0.0
    while enough - below > 0.01:
        middle = (below + enough) / 2
        below, enough = (below, middle) if option.worth(middle) >= target else (middle, enough)
    return enough


def verdict(option: Option, rivals: Sequence[Option], cost_name: str) -> str:
    """
    Sentences about whether `option` pays.

    Args:
        option ([`Option`]): the one in question.
        rivals (`Sequence[Option]`): at least one other, all without previews.
        cost_name (`str`): what costs are, e.g. `"time"`.
    """
    best = max(rivals, key=Option.worth)
    signal = expected_gain(option.schedule).signal / expected_gain(best.schedule).signal
    cost, has_previews = option.cost / best.cost, bool(option.schedule.prune_steps)
    compared = f"{signal:.2f} times the signal of {best.name} for {cost:.2f} times the {cost_name}"
    if signal < cost:
        if not has_previews and len(option.schedule.sizes) == 1:
            return f"A group carries {compared}. {_capital(best.name)} is the better use of it."
        even = "even if previews ranked trajectories exactly as final rewards do, " if has_previews else ""
        return (
            f"This schedule costs more than it can gain: {even}a group would carry {compared}. {_capital(best.name)} is "
            "the better use of it."
        )
    if not has_previews:
        return f"This pays: a group carries {compared}."
    needed = break_even(option, rivals)
    return (
        f"This pays if previews rank trajectories much as final rewards do: from a correlation of {needed:.2f} on, a group "
        f"carries more signal for the same {cost_name} than {best.name}, and with exact previews {signal / cost:.2f} times "
        "as much. `audit/step_*/rank_corr` measures it in a run."
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
