# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`trl-progrpo plan --calibrate`: the schedule that recorded groups ask for, as a table and as a YAML file for `train`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..words import counted
from .base import CommandError, user_errors


if TYPE_CHECKING:
    from ..cost import PruneSchedule
    from ..families import Family
    from ..planning import Candidate, RecordedGroups
    from ..policies import Policy
    from ..progrpo_config import ProGRPOConfig
    from ..progrpo_trainer import ProGRPOTrainer


@dataclass(frozen=True)
class Level:
    """Noise and what it did: spread of final rewards, and rank correlation of previews with them by step."""

    level: float
    spread: float
    rank_corr: dict[int, float]


@dataclass(frozen=True)
class Calibration:
    """
    What was recorded and what follows.

    Attributes:
        level_name (`str`): option that sets the noise.
        objective (`str`): what was to be large, per cost.
        groups, members (`int`): groups recorded per noise level, and trajectories in each.
        levels (`list[Level]`): one per noise level.
        methods (`dict[str, Candidate]`): name -> what the recorded groups say of it; `"proposed"` is the first.
        file (`str`): the YAML file.
    """

    level_name: str
    objective: str
    groups: int
    members: int
    levels: list[Level]
    methods: dict[str, Candidate]
    file: str

    @property
    def proposed(self) -> Candidate:
        return self.methods["proposed"]


def noise_levels(
    args: ProGRPOConfig, family: Family, wanted: Sequence[float] | None
) -> list[tuple[float, Policy, tuple]]:
    """
    Noise level, policy and noisy steps of everything that is to be recorded, the configured level first.

    Args:
        args ([`ProGRPOConfig`]): of the run.
        family ([`~families.Family`]): may be without weights.
        wanted (`Sequence[float]`, *optional*): levels; the configured one, less and more when unset.

    Raises:
        CommandError: for a level that the policy does not take.
    """
    from ..policies import POLICIES
    from .dry_run import resolve_policy

    name = level_name(args, family)
    with user_errors():
        policy = POLICIES.get(args.policy or family.policies[0])
    configured, most = getattr(args, name), 1.0 if name == "eta" else getattr(policy, "max_noise_level", math.inf)
    levels = wanted or sorted({min(most, float(f"{configured * factor:.3g}")) for factor in (0.7, 1.0, 1.4)})
    if not all(0 < level <= most and math.isfinite(level) for level in levels):
        raise CommandError(
            f"`--noise_levels` is {levels}; give values of `{name}`, above 0{' up to 1' * (most == 1)}."
        )
    found = []
    for level in dict.fromkeys([configured, *levels]):
        changed = copy.copy(args)
        setattr(changed, name, level)
        policy, _ = resolve_policy(family, changed)
        noisy = changed.noise_steps(policy.stochastic_steps(family.make_schedule(changed.num_inference_steps)))
        found.append((level, policy, noisy))
    return found


def level_name(args: ProGRPOConfig, family: Family) -> str:
    """Return the option that sets the noise of the run's policy."""
    from ..policies import POLICIES, noise_option

    return noise_option(POLICIES.get(args.policy or family.policies[0]))


def record(
    trainer: ProGRPOTrainer,
    levels: Sequence[tuple[float, Policy, tuple]],
    rows: Sequence[Mapping[str, Any]],
    num_inference_steps: int,
    num_expansions: int,
    groups_at_once: int,
    say: Callable[[str], None],
) -> list[RecordedGroups]:
    """Records one group per row of data at every noise level; a trainer of any schedule will do."""
    from ..calibration import record_untrained

    recorded = []
    for level, policy, noise_steps in levels:
        say(f"Recording {counted(len(rows), 'group')} of {num_expansions} with noise {level:g} ...")
        recorded.append(
            record_untrained(
                trainer, rows, level, policy, noise_steps, num_inference_steps, num_expansions, groups_at_once
            )
        )
    return recorded


def calibrate(
    name: str,
    recorded: Sequence[RecordedGroups],
    price: Callable[[PruneSchedule], float],
    schedules: Mapping[str, PruneSchedule],
    objective: str,
    config: Mapping[str, Any],
    file: str,
) -> Calibration:
    """
    Chooses a schedule, compares it with others, and writes the run's configuration with it.

    Args:
        name (`str`): see [`level_name`].
        recorded (`Sequence[RecordedGroups]`): the configured noise level first.
        price (`Callable[[PruneSchedule], float]`): cost of a group.
        schedules (`Mapping[str, PruneSchedule]`): what to compare with, at the configured noise; the run itself first.
        objective (`str`): see [`planning.propose`].
        config (`Mapping`): of the run, see [`~resolved_config.resolved_config`].
        file (`str`): where the new one goes.
    """
    from ..planning import evaluate, propose

    first, run = recorded[0], next(iter(schedules.values()))
    with user_errors():
        proposed = propose(recorded, price, run.num_inference_steps, run.num_generations, objective)
    methods = {"proposed": proposed}
    for label, schedule in schedules.items():
        if schedule.num_expansions <= first.final.shape[1]:
            methods[label] = evaluate(schedule, first, price(schedule), objective)
    levels = [Level(groups.level, groups.spread, groups.rank_correlations()) for groups in recorded]
    calibration = Calibration(name, objective, *first.final.shape, levels, methods, file)
    _write(calibration, config)
    return calibration


def _write(calibration: Calibration, config: Mapping[str, Any]) -> None:
    from .resolved_config import to_yaml

    proposed = calibration.proposed
    schedule = proposed.schedule
    changed = {**config, "num_expansions": schedule.num_expansions, calibration.level_name: proposed.level}
    changed.pop("prune_schedule", None)
    for key, values in (("prune_steps", schedule.prune_steps), ("prune_sizes", schedule.prune_sizes)):
        changed.pop(key, None)
        if values:
            changed[key] = list(values)
    header = (
        f"# Chosen by `trl-progrpo plan --calibrate` for the largest {calibration.objective} per cost, on {calibration.groups} "
        f"groups of {calibration.members}.\n"
        "# Without `env` and the options of a launcher, such as num_processes: add those of the run.\n"
    )
    try:
        Path(calibration.file).parent.mkdir(parents=True, exist_ok=True)
        Path(calibration.file).write_text(header + to_yaml(changed), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"`--output` {calibration.file!r} cannot be written ({error.strerror}).") from error
