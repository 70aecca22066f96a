# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
What a checkpoint holds beyond transformers' own files: trained weights, their average, a rollout in progress, and what each
process has gathered since the last log; and how all processes together write one and find one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .adapters import ADAPTER_FILE, RAW_ADAPTER_FILE, averaged_tensors, check_adapter, load_adapter, save_adapter
from .checkpoint_folders import (
    STAGING,
    STATE_FILE,
    check_checkpoint,
    clear_leftovers,
    delete_old,
    newest_to_resume,
    publish,
    warn_of_earlier,
)
from .model_card import name_on_hub
from .optimizers import RUN_STATE_KEY
from .rewards import RewardError, RowError
from .saving import save_denoiser, save_pipeline
from .sharding import class_of, is_sharded, load_whole_state, whole_denoiser
from .types import Rollout


if TYPE_CHECKING:
    from .progrpo_config import ProGRPOConfig
    from .progrpo_trainer import ProGRPOTrainer


def save_checkpoint(trainer: ProGRPOTrainer, write: Callable[[], None], output_dir: str) -> None:
    """
    Writes `checkpoint-{step}`: all processes write beside its place, and when all have, it is moved there.

    Args:
        trainer ([`ProGRPOTrainer`]): the run; every process must call it.
        write (`Callable`): has the base class write its files, into `output_dir` as `trainer._staging` tells it.
        output_dir (`str`): where the checkpoint is to be.
    """
    args, state, name = trainer.args, trainer.state, f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    staged, place = os.path.join(output_dir, STAGING, name), os.path.join(output_dir, name)
    with trainer.rank_watch.together():
        if args.should_save:
            clear_leftovers(output_dir)
    with trainer.rank_watch.together():
        trainer._staging = os.path.join(output_dir, STAGING)
        try:
            write()
        finally:
            trainer._staging = None
        _write_own(trainer, staged)
        if state.best_model_checkpoint == staged:
            state.best_model_checkpoint = place
            if args.should_save:
                # Once more, for it is to name the place.
                state.save_to_json(os.path.join(staged, STATE_FILE))
    with trainer.rank_watch.together():
        if args.should_save:
            check_shared(staged, args)
            publish(output_dir, name, args.world_size, rollout_index=trainer._position[0])
    if args.push_to_hub:
        trainer._push_from_checkpoint(place)
    with trainer.rank_watch.together():
        if args.should_save:
            delete_old(output_dir, args.save_total_limit, state.best_model_checkpoint)


@contextmanager
def what_is_trained_kept(trainer: ProGRPOTrainer) -> Iterator[None]:
    """
    While it lasts, an error of a reward or of a row has a checkpoint written of what is trained by then, and a note that says
    how to go on from there. Both arise between two updates, so that all weights are of one step.

    Of several processes, one that fails keeps the others from writing together; what is left is the last checkpoint.
    """
    try:
        yield
    except (RewardError, RowError) as error:
        if not getattr(error, "__notes__", None):
            place = _kept_checkpoint(trainer)
            if place is not None:
                error.add_note(
                    f"What was trained by step {trainer.state.global_step} is in {place!r}; mend what is wrong, rows in their "
                    "place, and go on with that as `resume_from_checkpoint`, or leave such images out by `on_reward_error` skip."
                )
        raise


def _kept_checkpoint(trainer: ProGRPOTrainer) -> str | None:
    """The checkpoint of the present step, written if there is none yet; `None` if there cannot be one."""
    state = trainer.state
    # Weights of another step may have been loaded at the end.
    kept = trainer.kept_step in (None, state.global_step)
    if not state.global_step or not kept or trainer.accelerator.num_processes > 1:
        return None
    place = os.path.join(trainer.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
    if not os.path.isdir(place):
        trainer._save_checkpoint(trainer.model, trial=None)
        trainer.callback_handler.on_save(trainer.args, state, trainer.control)
    return place


def check_shared(folder: str, args: ProGRPOConfig) -> None:
    """
    Raises:
        ValueError: if a process wrote its part of a checkpoint elsewhere, on the disk of another machine.
    """
    lost = [rank for rank in range(args.world_size) if not os.path.isfile(_run_state_file(folder, rank))]
    if lost and not args.save_on_each_node:
        raise ValueError(
            f"`output_dir` is {args.output_dir!r}, where process {lost[0]} of {args.world_size} writes to another disk than the "
            "first one; put it on storage that all machines share, or set `save_on_each_node`."
        )


def _write_own(trainer: ProGRPOTrainer, folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    save_run_state(trainer, folder)
    # A checkpoint that falls inside a rollout needs the rollout; at its end the next one is sampled afresh.
    if trainer._position[1] and trainer.last_rollout is not None:
        save_rollout(trainer.last_rollout, folder, trainer.accelerator.process_index)


def checkpoint_to_resume(trainer: ProGRPOTrainer, asked: str | os.PathLike | bool | None) -> str | None:
    """
    The folder that `resume_from_checkpoint` means, after removing what a killed run left in the output folder.

    Raises:
        ValueError: as [`~checkpoint_folders.check_checkpoint`] and [`check_weights`], or if the newest is asked for and
            there is none.
    """
    with trainer.rank_watch.together():
        if trainer.args.should_save:
            clear_leftovers(trainer.args.output_dir)
    if asked is None or asked is False:
        if trainer.is_world_process_zero():
            warn_of_earlier(trainer.args.output_dir)
        return None
    with trainer.rank_watch.together():
        folder = newest_to_resume(trainer.args, asked) if asked is True else os.path.expanduser(asked)
        check_checkpoint(folder, trainer.args)
        check_weights(trainer, folder)
    _check_same_step(trainer, folder)
    return folder


def _check_same_step(trainer: ProGRPOTrainer, folder: str) -> None:
    """Each machine looks on its own disk, where a run that was killed may have left another newest checkpoint."""
    with open(os.path.join(folder, STATE_FILE), encoding="utf-8") as file:
        step = torch.tensor([json.load(file)["global_step"]])
    steps = [int(told.item()) for told in trainer.rank_watch.gather(step)]
    other = next((rank for rank, told in enumerate(steps) if told != steps[0]), None)
    if other is not None:
        raise ValueError(
            f"`resume_from_checkpoint` is of step {steps[0]} on process 0 and of step {steps[other]} on process {other}, each "
            f"on the disk of its machine; give a checkpoint that all of them have, such as checkpoint-{min(steps)} if they do."
        )


def check_weights(trainer: ProGRPOTrainer, folder: str) -> None:
    """
    Args:
        trainer ([`ProGRPOTrainer`]): that is to go on.
        folder (`str`): a checkpoint that [`~checkpoint_folders.check_checkpoint`] has passed.

    Raises:
        ValueError: if it has weights of another kind than are trained, or those of another LoRA config.
    """
    path = os.path.join(folder, ADAPTER_FILE)
    has_adapter = os.path.isfile(path)
    if has_adapter and not trainer.use_adapter:
        raise ValueError(
            f"the run that saved {folder!r} trained a LoRA adapter, and this one is to train all weights; use LoRA again "
            "(`use_peft`, or a `peft_config`)."
        )
    if trainer.use_adapter and not has_adapter:
        raise ValueError(
            f"the run that saved {folder!r} trained all weights, and this one is to train a LoRA adapter; train all of them "
            "again (`use_peft` false, or `peft_config` None)."
        )
    if has_adapter:
        check_adapter(trainer.family, path)


def save_weights(trainer: ProGRPOTrainer, folder: str, raw: bool = False, whole: bool = False) -> None:
    """
    Writes the trained weights as they are now; every process calls it, and one writes.

    Args:
        trainer ([`ProGRPOTrainer`]): whose they are.
        folder (`str`): where to.
        raw (`bool`, *optional*, defaults to `False`): under names that pipelines do not read, beside the average.
        whole (`bool`, *optional*, defaults to `False`): without LoRA, whether to write the rest of the pipeline too. It is
            frozen: once is enough.
    """
    if trainer.use_adapter:
        weight_name = RAW_ADAPTER_FILE if raw else ADAPTER_FILE
        keep, base = trainer.args.should_save, name_on_hub(trainer.model_name)
        save_adapter(trainer.family, folder, weight_name, base, keep, to_resume=not whole)
        return
    with whole_denoiser(trainer.family, trainer.args.should_save):
        if trainer.args.should_save:
            _save_whole(trainer, folder, raw, whole)


def _save_whole(trainer: ProGRPOTrainer, folder: str, raw: bool, whole: bool) -> None:
    there = folder in trainer.whole_pipelines and os.path.isfile(os.path.join(folder, "model_index.json"))
    if raw or not whole or there:
        save_denoiser(trainer.family, folder, "_raw" if raw else "")
    else:
        init_kwargs = trainer.args.model_init_kwargs or {}
        save_pipeline(trainer.family, folder, trainer.model_name, trainer.prompt_cache.dropped, **init_kwargs)
        trainer.whole_pipelines.add(folder)


def load_weights(trainer: ProGRPOTrainer, folder: str, to_train: bool = True) -> None:
    """
    Loads what [`save_weights`] wrote into a checkpoint, and the average with its count of updates.

    Args:
        trainer ([`ProGRPOTrainer`]): whose weights they become.
        folder (`str`): the checkpoint.
        to_train (`bool`, *optional*, defaults to `True`): whether the optimiser goes on from there. Otherwise, where it is the
            optimiser that keeps an average, that is what is loaded.
    """
    family, name, ema = trainer.family, trainer.family.denoiser_name, trainer.ema
    _load(trainer, folder, ADAPTER_FILE, name)
    if ema is None:
        if to_train and _has_raw(trainer, folder):
            _load(trainer, folder, RAW_ADAPTER_FILE, f"{name}_raw")
        return
    ema.shadow_params = [tensor.detach().clone() for tensor in averaged_tensors(family.denoiser)]
    with open(os.path.join(folder, STATE_FILE)) as file:
        ema.optimization_step = json.load(file)["global_step"] // trainer.args.ema_update_interval
    _load(trainer, folder, RAW_ADAPTER_FILE, f"{name}_raw")


def _has_raw(trainer: ProGRPOTrainer, folder: str) -> bool:
    name = RAW_ADAPTER_FILE if trainer.use_adapter else f"{trainer.family.denoiser_name}_raw"
    return os.path.exists(os.path.join(folder, name))


def _load(trainer: ProGRPOTrainer, folder: str, adapter_file: str, denoiser_folder: str) -> None:
    family = trainer.family
    if trainer.use_adapter:
        load_adapter(family, os.path.join(folder, adapter_file))
    else:
        # Of sharded weights process 0 sends the others their parts.
        reads = trainer.accelerator.is_main_process or not is_sharded(family.denoiser)
        path = os.path.join(folder, denoiser_folder)
        state = class_of(family.denoiser).from_pretrained(path).state_dict() if reads else {}
        load_whole_state(family.denoiser, state)


def save_rollout(rollout: Rollout, folder: str, rank: int) -> None:
    """Writes the rollout that a checkpoint falls into, for the process `rank`."""
    tensors = {name: tensor.contiguous() for name, tensor in rollout.state_dict().items()}
    save_file(tensors, _rollout_file(folder, rank), metadata={"rollout_index": str(rollout.rollout_index)})


def load_rollout(folder: str, rank: int) -> dict[str, torch.Tensor] | None:
    """The tensors of `Rollout.state_dict` that [`save_rollout`] wrote, on the CPU, or `None` if there was no need."""
    path = _rollout_file(folder, rank)
    return load_file(path) if os.path.isfile(path) else None


def _rollout_file(folder: str, rank: int) -> str:
    return os.path.join(folder, f"rollout_{rank}.safetensors")


def save_run_state(trainer: ProGRPOTrainer, folder: str) -> None:
    """Writes what this process has gathered since the last log, and what its watches know."""
    state = {
        "loss": trainer._tr_loss.item(),
        "last_logged_step": trainer._globalstep_last_logged,
        **{name: watch.state_dict() for name, watch in _watches(trainer).items()},
    }
    path = _run_state_file(folder, trainer.accelerator.process_index)
    Path(path).write_text(json.dumps(state), encoding="utf-8")


def load_run_state(trainer: ProGRPOTrainer, folder: str) -> None:
    """Reads what [`save_run_state`] wrote; to be called when the loop has begun, which starts from zero."""
    path = _run_state_file(folder, trainer.accelerator.process_index)
    state: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    for name, watch in _watches(trainer).items():
        # What an older version did not keep begins anew.
        if name in state:
            watch.load_state_dict(state[name])
    trainer._globalstep_last_logged = state["last_logged_step"]
    trainer._tr_loss += state["loss"]
    # The summary of the run is over the steps of this call alone.
    trainer._total_loss_scalar -= state["loss"]


def _run_state_file(folder: str, rank: int) -> str:
    return os.path.join(folder, f"run_state_{rank}.json")


def _watches(trainer: ProGRPOTrainer) -> dict[str, Any]:
    """What has a state of numbers and texts, by the name it is kept under."""
    return {
        "metrics": trainer._metrics,
        "audit": trainer._audit_watch,
        "held_out": trainer._hacking_watch,
        "before_training": trainer.paired_gains,
        **({} if trainer.is_deepspeed_enabled else {RUN_STATE_KEY: trainer.initial_settings}),
    }
