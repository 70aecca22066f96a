# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Where `trl-progrpo plan` has its numbers from: networks without weights, and a small run with them."""

from __future__ import annotations

import itertools
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from .base import user_errors
from .plan_memory import Loaded, look
from .plan_schedule import record


if TYPE_CHECKING:
    from ..cost import UnitCost
    from ..families import Family
    from ..planning import RecordedGroups


def rows_of(train: Any, number: int) -> list[dict[str, Any]]:
    """Rows from all over a dataset, or the first ones of a stream; again from the beginning if there are too few."""
    if not hasattr(train, "__len__"):
        rows = list(itertools.islice(train, number))
    else:
        rows = [train[i * len(train) // min(number, len(train))] for i in range(min(number, len(train)))]
    return list(itertools.islice(itertools.cycle(rows), number))


def count(model_args, training_args, rows) -> tuple[Family, dict[str, str], UnitCost | None, str | None]:
    """The family without weights, what to say of it, and its FLOPs or why they are not known."""
    from ..families.skeleton import preview_decoder_skeleton
    from ..families.text_skeleton import encode
    from ..flops import unit_flops
    from .dry_run import resolve_model

    flops = reason = None
    try:
        family, lines = resolve_model(model_args, training_args, text_encoders=True)
    except ValueError as error:
        # Perhaps only a tokenizer is missing.
        family, lines = resolve_model(model_args, training_args)
        reason = error
    decoder = preview_decoder_skeleton(training_args.preview_decoder) if training_args.preview_decoder else None
    if training_args.gradient_checkpointing:
        family.denoiser.enable_gradient_checkpointing()
    if reason is None:
        try:
            conditioning = encode(family, [rows[0][training_args.prompt_column]])
            flops = unit_flops(family, conditioning, decoder, training_args.preview_downscale)
        # A family may look at the values of tensors that have none here.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
    facts = dict(lines)
    told = {"model": facts["pipeline"], "denoiser": f"{facts[family.denoiser_name]}; trained: {facts['trained']}"}
    told["images"] = facts["images"]
    return family, told, flops, None if reason is None else f"FLOPs are not counted: {' '.join(str(reason).split())}"


def measure(
    script_args, model_args, training_args, rows, options, levels
) -> tuple[UnitCost | None, list[RecordedGroups], Loaded]:
    """Seconds per piece of work, unless they are not wanted, recorded groups, and memory; with the weights loaded."""
    from ..calibration import calibration_config, measure_seconds
    from .train import make_trainer

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder:
        small = calibration_config(training_args, folder, previews=options.calibrate)
        trainer = make_trainer(script_args, model_args, small, rows)
        started = options.calibration_expansions
        if started is None and training_args.prune_schedule is None:
            started = max(training_args.num_expansions, 4 * training_args.num_generations)
        started = started or training_args.num_expansions
        steps = training_args.num_inference_steps
        with user_errors(ours_only=True):
            # No more trajectories at a time than a rollout has: they need no more memory.
            rollout = training_args.geometry(1).num_prompts * training_args.num_expansions
            at_once = max(1, rollout // started)
            # First, for measuring trains.
            recorded = record(trainer, levels, rows[: options.calibration_groups], steps, started, at_once, say)
            loaded = look(trainer, rows)
            if options.no_time:
                return None, recorded, loaded
            say(f"Measuring this machine for about {options.calibration_seconds:g} seconds ...")
            return measure_seconds(trainer, options.calibration_seconds), recorded, loaded
