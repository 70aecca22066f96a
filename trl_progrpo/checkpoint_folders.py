# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
How checkpoints come and go: written beside their place and moved there when they are whole, looked through before they are
loaded, moved away before they are deleted. Whenever a process is killed, what is called `checkpoint-*` is whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from . import __version__
from .inherited import WATCHING_SCHEDULES
from .manifest import MANIFEST, Damaged, check_files, read_manifest, sync_directory, write_manifest
from .optimizers import RUN_STATE_KEY
from .options import REFUSED_WITH, resume_rule
from .sharding_checks import sharding_of, sharding_of_checkpoint


if TYPE_CHECKING:
    from .progrpo_config import ProGRPOConfig


STAGING = ".saving"
"""Folder in the output folder where a checkpoint is written; what is found in it at a start was left by a killed process."""

STATE_FILE = "trainer_state.json"

_ROLLOUT = re.compile(r"rollout_\d+\.safetensors")


def clear_leftovers(output_dir: str) -> None:
    """Removes what a killed process left, after putting back a checkpoint that it was about to replace."""
    _put_back(output_dir)
    shutil.rmtree(Path(output_dir, STAGING), ignore_errors=True)


def _put_back(output_dir: str) -> None:
    for replaced in sorted(Path(output_dir, STAGING).glob("replaced/*")):
        try:
            os.rename(replaced, Path(output_dir, replaced.name))
        # Its place is taken by the new one, or another process was faster.
        except OSError:
            continue


def publish(output_dir: str, name: str, world_size: int, **facts: Any) -> None:
    """
    Moves a checkpoint that was written to [`STAGING`] into its place, with a manifest.

    Args:
        output_dir (`str`): the output folder.
        name (`str`): of the checkpoint.
        world_size (`int`): processes of the run.
        facts: for the manifest.
    """
    staged, place = Path(output_dir, STAGING, name), Path(output_dir, name)
    write_manifest(staged, trl_progrpo=__version__, world_size=world_size, **facts)
    if place.exists():
        replaced = staged.parent / "replaced"
        replaced.mkdir(exist_ok=True)
        os.rename(place, replaced / name)
    os.rename(staged, place)
    sync_directory(output_dir)
    shutil.rmtree(staged.parent, ignore_errors=True)


def delete_old(output_dir: str, limit: int | None, best: str | None) -> None:
    """
    Leaves the newest `limit` checkpoints, the very newest and the best among them; as
    [`~transformers.trainer_utils.rotate_checkpoints`], but a checkpoint is gone at once or not at all.

    Args:
        output_dir (`str`): the output folder.
        limit (`int`, *optional*): all stay when unset.
        best (`str`, *optional*): folder of the best checkpoint.
    """
    if limit is None:
        return
    checkpoints = sort_checkpoints(output_dir, use_mtime=True, best_model_checkpoint=best)
    protected = {*checkpoints[-1:], *([str(Path(best))] if best is not None else [])}
    for folder in checkpoints[: -max(limit, len(protected & set(checkpoints)))]:
        deleted = Path(output_dir, STAGING, "deleted")
        deleted.mkdir(parents=True, exist_ok=True)
        os.rename(folder, deleted / Path(folder).name)
    shutil.rmtree(Path(output_dir, STAGING), ignore_errors=True)


def newest_checkpoint(output_dir: str) -> str | None:
    """
    The checkpoint of the most steps, or `None`; whether it is whole is for [`check_checkpoint`] to say.

    Args:
        output_dir (`str`): the output folder of a run that is not going on.
    """
    _put_back(output_dir)
    return next(_newest_first(output_dir), None)


def newest_to_resume(args: ProGRPOConfig, asked: str | bool) -> str:
    """
    Args:
        args ([`ProGRPOConfig`]): of the run that is to go on.
        asked (`str` or `bool`): how the newest checkpoint was asked for, for the message.

    Raises:
        ValueError: if there is none.
    """
    folder = newest_checkpoint(args.output_dir)
    if folder is None:
        raise ValueError(
            f"`resume_from_checkpoint` is {asked}, but `output_dir` {args.output_dir!r} has no checkpoint; leave it unset to "
            "start afresh."
        )
    return folder


def warn_of_earlier(output_dir: str) -> None:
    """Warns, if a run that begins afresh will write beside another one's checkpoints, which may be taken for its own."""
    earlier = newest_checkpoint(output_dir)
    if earlier is not None:
        warnings.warn(
            f"`output_dir` {output_dir!r} holds {os.path.basename(earlier)} of an earlier run, and this one starts afresh: "
            "resuming from the newest may take that for its own. Remove it, use another folder, or resume from it.",
            stacklevel=4,
        )


def check_checkpoint(folder: str, args: ProGRPOConfig) -> None:
    """
    Args:
        folder (`str`): what is to be resumed from.
        args ([`ProGRPOConfig`]): of the run that is to go on.

    Raises:
        ValueError: if `folder` is no checkpoint, is damaged (then it names the newest beside it that is whole), is beyond
            `max_steps`, or belongs to a run of other processes, or of options that cannot be others now; see
            [`~options.RESUME_RULES`].
    """
    if not any(os.path.isfile(os.path.join(folder, name)) for name in (STATE_FILE, MANIFEST)):
        raise ValueError(
            f"`resume_from_checkpoint` is {folder!r}, which is no checkpoint folder (it has no {STATE_FILE}); give a "
            "`checkpoint-*` folder or leave it unset."
        )
    try:
        manifest, lost = _look_through(folder)
    except Damaged as error:
        good = _newest_whole(folder)
        cure = f"use {good!r}, the newest that is whole" if good else "no other beside it is whole, so start afresh"
        raise ValueError(f"`resume_from_checkpoint` is {folder!r}, which {error}; {cure}.") from error
    then = manifest.get("world_size")
    if then != args.world_size:
        raise ValueError(
            f"`resume_from_checkpoint` is {folder!r}, saved with {then} process{'' if then == 1 else 'es'}, while this run has "
            f"{args.world_size}; use as many as then, for they fix which prompts a step has."
        )
    _check_options(folder, args)
    _check_sharding(folder, args)
    _check_step(folder, args)
    if lost:
        warnings.warn(
            f"{folder!r} lacks the rollout it was saved in, as those on the Hub do: it is sampled again, with the weights as "
            "they are, so the run will not be bit for bit what it would have been.",
            stacklevel=3,
        )


def _look_through(folder: str) -> tuple[dict[str, Any], bool]:
    """The manifest of a whole checkpoint, and whether it came without its rollout."""
    manifest = read_manifest(folder)
    rollouts = frozenset(name for name in manifest["files"] if _ROLLOUT.fullmatch(name))
    lost = bool(rollouts) and not any(Path(folder, name).is_file() for name in rollouts)
    check_files(folder, manifest, may_lack=rollouts if lost else frozenset())
    return manifest, lost


def _check_options(folder: str, args: ProGRPOConfig) -> None:
    saved = json.loads(Path(folder, "training_args.json").read_text(encoding="utf-8"))
    if saved.get("save_only_model"):
        raise ValueError(
            f"`resume_from_checkpoint` is {folder!r}, saved with `save_only_model`, so it has no optimiser to go on with; start "
            "a new run, or save without it."
        )
    refused = _refused_rules(folder)
    for field in fields(args):
        rule, then, now = resume_rule(field), saved.get(field.name), getattr(args, field.name)
        now = getattr(now, "value", now)
        # Where no best is asked for any more, none is compared.
        if field.name not in saved or then == now or (rule == "best" and now is None):
            continue
        if rule in refused:
            where = f"{folder!r} in the midst of a rollout" if rule == "rollout" else repr(folder)
            raise ValueError(
                f"`{field.name}` is {now}, but {then} in the run that saved {where}; {REFUSED_WITH[rule]}."
            )
        if rule == "average" and None in (then, now):
            raise ValueError(
                f"`{field.name}` is {now}, but {then} in the run that saved {folder!r}; an average is kept from the first "
                "update on or not at all."
            )
        if rule == "schedule" and {then, now} & set(WATCHING_SCHEDULES):
            raise ValueError(
                f"`{field.name}` is {now}, but {then} in the run that saved {folder!r}; use that again, for one counts steps "
                "and the other watches the held-out reward in a way of its own."
            )


def _refused_rules(folder: str) -> set[str]:
    """The rules by which a changed option is refused, of this checkpoint."""
    state = json.loads(Path(folder, STATE_FILE).read_text(encoding="utf-8"))
    # Each machine may have its own part alone.
    run_states = [json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).glob("run_state_*.json")]
    holds = {
        "rollout": any(_ROLLOUT.fullmatch(name) for name in os.listdir(folder)),
        "best": state["best_metric"] is not None,
        "optimizer": not all(RUN_STATE_KEY in run_state for run_state in run_states),
    }
    return {rule for rule in REFUSED_WITH if holds.get(rule, True)}


def _check_step(folder: str, args: ProGRPOConfig) -> None:
    step = json.loads(Path(folder, STATE_FILE).read_text(encoding="utf-8"))["global_step"]
    if 0 < args.max_steps < step:
        raise ValueError(
            f"`max_steps` is {args.max_steps}, but {folder!r} is of step {step}; raise it, or resume from an earlier checkpoint."
        )
    if step == args.max_steps:
        warnings.warn(
            f"{folder!r} is of the last step, {step}: nothing is left to train; raise `max_steps` to go on.",
            stacklevel=4,
        )


def _check_sharding(folder: str, args: ProGRPOConfig) -> None:
    then, now = sharding_of_checkpoint(folder), sharding_of(args)
    if then != now:
        raise ValueError(
            f"`resume_from_checkpoint` is {folder!r}, saved with {then or 'whole weights on every process'}, while this run has "
            f"{now or 'neither FSDP2 nor DeepSpeed'}; use the same `--accelerate_config` again."
        )


def _newest_whole(folder: str) -> str | None:
    folder = os.path.normpath(folder)
    for other in _newest_first(os.path.dirname(folder) or "."):
        if other != folder:
            try:
                _look_through(other)
            except Damaged:
                continue
            return other
    return None


def _newest_first(output_dir: str) -> Iterator[str]:
    names = os.listdir(output_dir) if os.path.isdir(output_dir) else []
    steps = {name: re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", name) for name in names}
    for name in sorted((name for name in names if steps[name]), key=lambda name: -int(steps[name][1])):
        if os.path.isdir(os.path.join(output_dir, name)):
            yield os.path.normpath(os.path.join(output_dir, name))
