# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The arguments that come from transformers: what it would take without a word, or refuse without saying what to do."""

from __future__ import annotations

import json
import math
import re
import warnings
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import torch
from transformers import SchedulerType, TrainingArguments


_AT_LEAST_ONE = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "save_total_limit",
)  # fmt: skip
_POSITIVE = ("logging_steps", "save_steps", "eval_steps", "num_train_epochs", "adam_epsilon")
_NOT_NEGATIVE = ("warmup_steps", "weight_decay", "max_grad_norm", "dataloader_num_workers")
_NUMBERS = (int, float, "int", "float", int | None, float | None, "int | None", "float | None")
_WHOLE_NUMBERS = (int, "int", int | None, "int | None")
_LARGEST_SEED = 2**32 - 1

_DTYPE_KEYS = ("dtype", "torch_dtype")
_WATCHING_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
# Of several evaluation sets, the name of one comes first.
_METRIC = re.compile(r"(.+_)?reward(_stderr|s/.+/(mean|stderr))?")


def check_numbers(args: TrainingArguments) -> None:
    """
    Args:
        args ([`~transformers.TrainingArguments`]): as the user gave them.

    Raises:
        ValueError: for a number that is out of range, or none, or a text, or has a fraction where it must not.
    """
    for field in fields(args):
        value = getattr(args, field.name)
        if isinstance(value, str) and field.type in _NUMBERS:
            raise ValueError(
                f"`{field.name}` is the text {value!r}; give a number (6e-3 is a text in a YAML file, and "
                "6.0e-3 a number)."
            )
        if isinstance(value, float) and field.type in _WHOLE_NUMBERS:
            raise ValueError(f"`{field.name}` is {value}; give a whole number, such as {round(value)}.")
    for name in _AT_LEAST_ONE:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"`{name}` is {value}; use at least 1.")
    if args.max_steps != -1 and args.max_steps < 1:
        raise ValueError(
            f"`max_steps` is {args.max_steps}; use at least 1, or -1 for as many as `num_train_epochs` makes."
        )
    for name in _POSITIVE:
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"`{name}` is {value}; use a positive number.")
    for name in _NOT_NEGATIVE:
        value = getattr(args, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"`{name}` is {value}; use 0 or a positive number.")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(args, name) < 1:
            raise ValueError(f"`{name}` is {getattr(args, name)}; use a number from 0 to below 1.")
    for name in ("seed", "data_seed"):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= _LARGEST_SEED:
            raise ValueError(f"`{name}` is {value}; use a number from 0 to {_LARGEST_SEED}.")


def check_choices(args: TrainingArguments) -> None:
    """
    Args:
        args ([`~transformers.TrainingArguments`]): as the user gave them.

    Raises:
        ValueError: for a name that is none, two that exclude each other, or a package that is not installed.
    """
    schedules = [kind.value for kind in SchedulerType]
    if getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type) not in schedules:
        raise ValueError(f"`lr_scheduler_type` is {args.lr_scheduler_type!r}; use one of {', '.join(schedules)}.")
    best = args.metric_for_best_model
    if watches_a_metric(args) and best is not None and not _METRIC.fullmatch(best):
        raise ValueError(
            f"`metric_for_best_model` is {best!r}, which no evaluation measures; use reward, or rewards/NAME/mean with the name "
            "of a reward."
        )
    evaluates, saves = (getattr(how, "value", how) for how in (args.eval_strategy, args.save_strategy))
    if evaluates == "no" and (saves == "best" or args.load_best_model_at_end):
        name = "save_strategy" if saves == "best" else "load_best_model_at_end"
        raise ValueError(
            f"`{name}` is {getattr(getattr(args, name), 'value', getattr(args, name))}, but `eval_strategy` is no, so that no "
            "checkpoint is known to be best; use steps or epoch."
        )
    if args.fp16 and args.bf16:
        raise ValueError("`fp16` and `bf16` are both True; use one of them.")
    if args.deepspeed and find_spec("deepspeed") is None:
        raise ValueError(
            f"`deepspeed` is {args.deepspeed!r}, but the package is not installed; run `pip install deepspeed`, or leave it "
            "unset."
        )
    backend = args.torch_compile_backend
    # With those for debugging, which are not worth naming.
    if backend is not None and backend not in torch.compiler.list_backends(None):
        known = ", ".join(torch.compiler.list_backends())
        raise ValueError(f"`torch_compile_backend` is {backend!r}; use one of {known}, or leave it unset.")


def use_one_device(args: TrainingArguments) -> None:
    """
    Keeps the base class from splitting batches over all GPUs that one process sees (`nn.DataParallel`), which would update by
    calls of other sizes than those that sampled, with a warning that says how to use them.

    Args:
        args ([`~transformers.TrainingArguments`]): after its own initialisation.
    """
    if args.n_gpu > 1:
        warnings.warn(
            f"{args.n_gpu} GPUs are visible, and this process uses the first one only; start `trl-progrpo train` with "
            f"`--num_processes {args.n_gpu}`, or a script of your own with `accelerate launch`, to use all of them.",
            stacklevel=2,
        )
        args._n_gpu = 1


def watches_a_metric(args: TrainingArguments) -> bool:
    """Whether something follows from evaluations: which checkpoint is kept or loaded, or how fast is learned."""
    kind = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    return args.load_best_model_at_end or args.save_strategy == "best" or kind in _WATCHING_SCHEDULES


def check_dicts(args: Any) -> None:
    """
    Args:
        args ([`~transformers.TrainingArguments`]): as the user gave them; dictionaries may be JSON still.

    Raises:
        ValueError: for JSON that is broken, and for a dtype among the options of the pipeline.
    """
    for name in args._VALID_DICT_FIELDS:
        value = getattr(args, name)
        if isinstance(value, str) and value.startswith("{"):
            try:
                json.loads(value)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f'`{name}` is {value!r}, which is no JSON ({error}); give it as {{"key": "value"}}.'
                ) from error
    options = args.model_init_kwargs
    options = json.loads(options) if isinstance(options, str) and options.startswith("{") else options
    if options is not None and not isinstance(options, dict):
        raise ValueError(f'`model_init_kwargs` is {options!r}; give a mapping, e.g. {{"variant": "fp16"}}.')
    for name in _DTYPE_KEYS:
        if name in (options or {}):
            raise ValueError(
                f"`model_init_kwargs` holds {name!r}, but the dtype follows `bf16` and `fp16`; use those and remove it."
            )
