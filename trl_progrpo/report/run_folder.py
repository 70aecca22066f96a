# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Reads what a run left in its output folder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any


FOLDER, FILE = "report", "run.json"
"""Where [`~report.record.record_run`] writes, inside of the output folder."""

_CURE = "no trainer wrote that, so give the `output_dir` of a run"


@dataclass(frozen=True, eq=False)
class RunFolder:
    """
    A run as it lies on the disk.

    Attributes:
        path (`Path`): the output folder.
        log_history (`list[dict]`): of `trainer.state`.
        global_step (`int`): optimiser steps done.
        max_steps (`int`): optimiser steps that were asked for.
        args (`dict`): `training_args.json`, empty if there is none.
        choices (`list[dict]`): schedules that the run chose itself, see [`~auto_schedule.ScheduleChoices`].
        recorded (`dict`): `report/run.json`, empty if there is none.
        written (`datetime`): when its state was.
        kept_step (`int`, *optional*): the step whose weights were kept, if that is not the last one.
    """

    path: Path
    log_history: list[dict[str, Any]]
    global_step: int
    max_steps: int
    args: dict[str, Any]
    choices: list[dict[str, Any]]
    recorded: dict[str, Any]
    written: datetime
    kept_step: int | None = None

    @property
    def config(self) -> SimpleNamespace | None:
        """The arguments as attributes; `None` if they are not known."""
        needed = ("num_generations", "num_expansions", "num_inference_steps", "per_device_train_batch_size")
        if any(self.args.get(name) is None for name in needed):
            return None
        args = SimpleNamespace(**{"prune_steps": None, "prune_sizes": None, "pruning_rule": "ovf", **self.args})
        return args

    @property
    def groups_per_process(self) -> float | None:
        """Groups that a device samples in a rollout; `None` if that is not known."""
        if "groups_per_process" in self.recorded:
            return self.recorded["groups_per_process"]
        if self.config is None or self.args.get("prompts_per_rollout") is not None:
            return None
        steps_per_generation = self.args.get("steps_per_generation") or 1
        return self.args["per_device_train_batch_size"] * steps_per_generation // self.args["num_generations"]

    @property
    def pictures_folder(self) -> Path:
        return self.path / FOLDER


def read_run(folder: str | Path) -> RunFolder:
    """
    Reads an output folder or a checkpoint. An output folder gives what was written last: the state of a run that has ended, or
    the newest checkpoint of one that is still going on, or goes on from what an earlier one has left.

    Raises:
        ValueError: if it is no such folder, or a file in it cannot be read.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is no folder; give the `output_dir` of a run.")
    ended = folder / "trainer_state.json"
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: (_written(path), _step_of(path)))
    if ended.is_file() and not (states and _written(states[-1]) > _written(ended)):
        states.append(ended)
    if not states:
        raise ValueError(
            f"{str(folder)!r} holds no trainer_state.json and no checkpoint; give the `output_dir` of a run, which is "
            "written when it ends or saves."
        )
    state_file = states[-1]
    state = _read_json(state_file)
    arguments = [path / "training_args.json" for path in (state_file.parent, folder)]
    recorded = folder / FOLDER / FILE
    if recorded.is_file() and state_file != ended and _written(recorded) < _written(state_file):
        # Of an earlier run, or of where this one was resumed.
        recorded = None
    history = state.get("log_history")
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise ValueError(f"{str(state_file)!r} has no `log_history`; {_CURE}.")
    args = next((_read_json(path) for path in arguments if path.is_file()), {})
    best_is_kept = args.get("load_best_model_at_end") and state_file == ended
    return RunFolder(
        path=folder.absolute(),
        log_history=history,
        global_step=_number(state, "global_step", state_file),
        max_steps=_number(state, "max_steps", state_file),
        args=args,
        choices=_choices(state),
        recorded=_read_json(recorded) if recorded is not None and recorded.is_file() else {},
        written=datetime.fromtimestamp(_written(state_file), UTC),
        kept_step=_number(state, "best_global_step", state_file) or None if best_is_kept else None,
    )


def _choices(state: dict[str, Any]) -> list[dict[str, Any]]:
    stored = (state.get("stateful_callbacks") or {}).get("ScheduleChoices") or {}
    return list(stored.get("args", {}).get("choices") or [])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read ({error}); is the run still writing it?") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} holds no JSON object; {_CURE}.")
    return content


def _number(state: dict[str, Any], name: str, path: Path) -> int:
    value = state.get(name) or 0
    if not isinstance(value, (int, float)):
        raise ValueError(f"{str(path)!r} has {value!r} as `{name}`; {_CURE}.")
    return int(value)


def _written(path: Path) -> float:
    return path.stat().st_mtime


def _step_of(path: Path) -> int:
    match = re.search(r"checkpoint-(\d+)", str(path.parent.name))
    return int(match[1]) if match else -1
