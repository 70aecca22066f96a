# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The arguments that come from transformers: what it would take without a word, or refuse without saying what to do."""

from __future__ import annotations

import copy
import inspect
import json
import math
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import torch
from transformers import SchedulerType, Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.training_args import OptimizerNames
from transformers.utils import ENV_VARS_TRUE_VALUES


_AT_LEAST_ONE = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "save_total_limit",
)  # fmt: skip
_POSITIVE = ("logging_steps", "save_steps", "eval_steps", "num_train_epochs", "adam_epsilon")
_NOT_NEGATIVE = ("warmup_steps", "weight_decay", "max_grad_norm", "dataloader_num_workers")
_NUMBERS = (int, float, "int", "float", int | None, float | None, "int | None", "float | None")
_WHOLE_NUMBERS = (int, "int", int | None, "int | None")
_LARGEST_SEED = 2**32 - 1

_DTYPE_KEYS = ("dtype", "torch_dtype")
_MAPPINGS = {
    "lr_scheduler_kwargs": '{"num_cycles": 2}',
    "model_init_kwargs": '{"variant": "fp16"}',
    "activation_checkpointing_kwargs": '{"use_reentrant": false}',
    "gradient_checkpointing_kwargs": '{"use_reentrant": false}',
}
PIPELINE_TEXTS = ("revision", "variant", "cache_dir", "mirror", "custom_pipeline", "custom_revision")
"""Keys of `model_init_kwargs` that are texts, whatever they look like."""
_PIPELINE_PATHS = ("cache_dir", "custom_pipeline")
"""Those that may be files or folders here."""

WATCHING_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
"""Those whose rate follows from evaluations."""

_SCHEDULE_FREE = "schedule_free_"
_IN_BACKWARD = "it updates weights in the backward pass, of which an update of several denoising steps has several"
_OBJECTS = "its state holds objects, which a checkpoint cannot give back, as checkpoints are read without running code from them"
UNFIT_OPTIMIZERS = {
    "galore_adamw": _OBJECTS,
    "galore_adamw_8bit": _OBJECTS,
    "galore_adafactor": _OBJECTS,
    "apollo_adamw": _OBJECTS,
    "galore_adamw_layerwise": _IN_BACKWARD,
    "galore_adamw_8bit_layerwise": _IN_BACKWARD,
    "galore_adafactor_layerwise": _IN_BACKWARD,
    "apollo_adamw_layerwise": _IN_BACKWARD,
    "lomo": _IN_BACKWARD,
    "adalomo": _IN_BACKWARD,
    "grokadamw": "a checkpoint does not give its state back: a resumed run would begin it anew",
}
"""Names that `optim` takes in transformers and that are refused here, with the reason."""
# Of several evaluation sets, the name of one comes first.
_METRIC = re.compile(r"(.+_)?reward(_stderr|s/.+/(mean|stderr))?")


def take_trackers(args: TrainingArguments) -> None:
    """
    Make a list of the names in `report_to`, which may come as one text with commas, without wandb where WANDB_DISABLED is set.

    Args:
        args ([`~transformers.TrainingArguments`]): before its own initialisation.
    """
    given = args.report_to
    entries = given if isinstance(given, (list, tuple)) else ["none" if given is None else given]
    names = [name.strip().lower() for entry in entries for name in str(entry).split(",")]
    names = list(dict.fromkeys(name for name in names if name)) or ["none"]
    if names == ["all"]:
        names = get_available_reporting_integrations()
    elif "wandb" in names and _wandb_is_disabled():
        warnings.warn(
            "`report_to` has wandb, but WANDB_DISABLED is set, so that nothing is sent there; unset it, or leave wandb away.",
            stacklevel=5,
        )
    args.report_to = [name for name in names if name != "wandb" or not _wandb_is_disabled()] or ["none"]


def _wandb_is_disabled() -> bool:
    return os.environ.get("WANDB_DISABLED", "").upper() in ENV_VARS_TRUE_VALUES


def check_numbers(args: TrainingArguments) -> None:
    """
    Args:
        args ([`~transformers.TrainingArguments`]): as the user gave them.

    Raises:
        ValueError: for a number that is out of range, or none, or a text, or has a fraction where it must not.
    """
    for field in fields(args):
        value = getattr(args, field.name)
        if isinstance(value, (str, bool)) and field.type in _NUMBERS:
            kind = "the text " if isinstance(value, str) else ""
            raise ValueError(f"`{field.name}` is {kind}{value!r}; give a number, such as 3 or 1e-4, without quotes.")
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
    optimizers = [name.value for name in OptimizerNames if name.value not in UNFIT_OPTIMIZERS]
    optimizer = getattr(args.optim, "value", args.optim)
    if optimizer in UNFIT_OPTIMIZERS:
        raise ValueError(
            f"`optim` is {optimizer!r}, which is not supported: {UNFIT_OPTIMIZERS[optimizer]}; use e.g. adamw_torch_fused, "
            "adafactor or adamw_8bit."
        )
    if optimizer not in optimizers:
        raise ValueError(f"`optim` is {optimizer!r}; use one of {', '.join(optimizers)}.")
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
    return args.load_best_model_at_end or args.save_strategy == "best" or kind in WATCHING_SCHEDULES


def is_schedule_free(args: TrainingArguments) -> bool:
    """Whether the optimiser keeps an average of the weights by itself, in the place of a schedule."""
    return getattr(args.optim, "value", args.optim).startswith(_SCHEDULE_FREE)


def follow_the_reward(args: TrainingArguments) -> None:
    """
    Tell a schedule that watches the held-out reward that more is better; of itself it takes what it watches for a loss.

    `lr_scheduler_kwargs` gets `mode`, and for `greedy` a `min_lr` of 0: its own, 1e-3, is above the rates of use here.

    Args:
        args ([`~transformers.TrainingArguments`]): after its own initialisation.

    Raises:
        ValueError: for a `mode` against `greater_is_better`, or a `min_lr` that leaves nothing to cut.
    """
    kind = SchedulerType(args.lr_scheduler_type).value
    if kind not in WATCHING_SCHEDULES:
        return
    mode = "max" if args.greater_is_better else "min"
    args.lr_scheduler_kwargs = {
        "mode": mode,
        **({"min_lr": 0.0} if kind == "greedy" else {}),
        **(args.lr_scheduler_kwargs or {}),
    }
    given, least = args.lr_scheduler_kwargs["mode"], args.lr_scheduler_kwargs.get("min_lr", 0.0)
    if given in ("min", "max") and given != mode:
        raise ValueError(
            f"`lr_scheduler_kwargs` holds 'mode' {given!r}, with which the rate would be cut while "
            f"`{args.metric_for_best_model}` gets better (`greater_is_better` is {args.greater_is_better}); leave it out, or "
            f"give {mode!r}."
        )
    least = least if isinstance(least, (list, tuple)) else [least]
    for value in least:
        if isinstance(value, (int, float)) and value >= args.learning_rate:
            raise ValueError(
                f"`lr_scheduler_kwargs` holds 'min_lr' {value:g}, not below `learning_rate` {args.learning_rate:g}, so that the "
                "rate could never be cut; give a smaller one."
            )


def check_optimizer_runs(args: TrainingArguments) -> None:
    """
    Args:
        args ([`~transformers.TrainingArguments`]): after its own initialisation.

    Raises:
        ValueError: if the optimiser is not installed, or what it is asked for does not go with it.
    """
    name = args.optim.value
    tried = copy.copy(args)
    tried.optim_args = None
    try:
        Trainer.get_optimizer_cls_and_kwargs(tried)
    except (ImportError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"`optim` is {name!r}, which cannot be used on this machine ({_in_a_line(error)}); do that, or use e.g. "
            "adamw_torch_fused."
        ) from error
    if not is_schedule_free(args):
        return
    if getattr(args, "ema_decay", None) is not None:
        raise ValueError(
            f"`ema_decay` is {args.ema_decay}, but `optim` {name!r} keeps an average of its own, which is evaluated and saved; "
            "leave one of the two out."
        )
    if getattr(args, "deepspeed_plugin", None) is not None:
        raise ValueError(
            f"`optim` is {name!r}, but DeepSpeed keeps the exact weights to itself, of which it would have to give the average; "
            "use another optimiser."
        )
    if args.warmup_steps % 1:
        raise ValueError(
            f"`warmup_steps` is {args.warmup_steps}, but `optim` {name!r} counts steps; give a whole number."
        )
    kind = SchedulerType(args.lr_scheduler_type).value
    if kind != "constant":
        warnings.warn(
            f"`lr_scheduler_type` is {kind!r}, but `optim` {name!r} takes the place of a schedule; use 'constant'"
            + (", with `warmup_steps` as they are." if args.warmup_steps else "."),
            stacklevel=4,
        )


def check_dicts(args: Any) -> None:
    """
    Args:
        args ([`~transformers.TrainingArguments`]): as the user gave them; dictionaries may be JSON still.

    Raises:
        ValueError: for JSON that is broken, what is neither a mapping nor a file where one is taken, a key that accelerate
            does not have, and, among the options of the pipeline, for a dtype or for a number where a text belongs.
    """
    given = {name: _as_mapping(name, getattr(args, name)) for name in args._VALID_DICT_FIELDS}
    for name, value in (given["accelerator_config"] or {}).items():
        known = AcceleratorConfig.__dataclass_fields__
        if name not in known:
            raise ValueError(
                f"`accelerator_config` holds {name!r}, which accelerate does not have; use {', '.join(known)}."
            )
        # In JSON the base class reads "true" as true.
        if isinstance(value, str) and known[name].type is bool and not isinstance(args.accelerator_config, str):
            raise ValueError(f"`accelerator_config` holds {name!r} {value!r}; give true or false, without quotes.")
    # As JSON the base class would make numbers of texts that look like some, such as a revision.
    args.model_init_kwargs = given["model_init_kwargs"]
    for name in _PIPELINE_PATHS:
        if isinstance((args.model_init_kwargs or {}).get(name), str | os.PathLike):
            args.model_init_kwargs = {**args.model_init_kwargs, name: os.path.expanduser(args.model_init_kwargs[name])}
    for name, value in (args.model_init_kwargs or {}).items():
        if name in _DTYPE_KEYS:
            raise ValueError(
                f"`model_init_kwargs` holds {name!r}, but the dtype follows `bf16` and `fp16`; use those and remove it."
            )
        if name in PIPELINE_TEXTS and not isinstance(value, (str, os.PathLike, type(None))):
            raise ValueError(f"`model_init_kwargs` holds {name!r} {value!r}, which is no text; give it in quotes.")


def _as_mapping(name: str, value: Any) -> Mapping[str, Any] | None:
    """A mapping, or the JSON of one; `None` for what is unset, the name of a file, or an object of the library below."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(
                f'`{name}` is {value!r}, which is no JSON ({error}); give it as {{"key": "value"}}.'
            ) from error
    if value is None or isinstance(value, Mapping):
        return value
    example = _MAPPINGS.get(name)
    if example is not None:
        raise ValueError(f"`{name}` is {value!r}; give a mapping, e.g. {example}.")
    if isinstance(value, (list, tuple, int, float)) or (isinstance(value, str) and not os.path.isfile(value)):
        raise ValueError(f"`{name}` is {value!r}; give a mapping, or the name of a JSON file that is there.")
    return None


def check_keywords(args: TrainingArguments) -> None:
    """
    Try out `optim_args` and `lr_scheduler_kwargs` on a single weight; transformers would do so when the model is loaded.

    Args:
        args ([`~transformers.TrainingArguments`]): after its own initialisation.

    Raises:
        ValueError: for a keyword that the optimiser or the schedule does not take or does not read, a value that it cannot
            use, and one that is missing.
    """
    _try_optimizer(args)
    _try_schedule(args)


def _try_optimizer(args: TrainingArguments) -> None:
    if not args.optim_args:
        return
    name, text = getattr(args.optim, "value", args.optim), args.optim_args
    pairs = [pair.split("=") for pair in text.replace(" ", "").split(",")] if isinstance(text, str) else [()]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ValueError(f"`optim_args` is {text!r}; give a text such as 'momentum=0.9,nesterov=true'.")

    def configured(keywords: list | None) -> tuple[Any, dict[str, Any]]:
        tried = copy.copy(args)
        tried.optim_args = keywords and ",".join("=".join(pair) for pair in keywords)
        return Trainer.get_optimizer_cls_and_kwargs(tried)

    try:
        configured(None)
    except Exception:  # It is not installed, or wants to see the model: no matter of its keywords.
        return
    for index, (key, _) in enumerate(pairs):
        try:
            read = configured([(key, "?")]) != configured(None)
        except Exception:  # Whatever a value that is none leads to, it was read.
            read = True
        if not read:
            raise ValueError(
                f"`optim_args` is {text!r}, but `optim` {name!r} does not read {key!r}; give only what it reads (`adam_beta1`, "
                "`adam_beta2`, `adam_epsilon` and `weight_decay` are options of their own)."
            )
        if key in [other for other, _ in pairs[:index]]:
            raise ValueError(f"`optim_args` is {text!r}, which has {key!r} twice; give it once.")
    try:
        kind, keywords = configured(pairs)
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
            kind([torch.nn.Parameter(torch.zeros(2, 2))], **keywords)
    except Exception as error:
        raise ValueError(
            f"`optim_args` is {text!r}, which `optim` {name!r} refuses ({_in_a_line(error)}); give values that it takes."
        ) from error


def _try_schedule(args: TrainingArguments) -> None:
    kind, given = SchedulerType(args.lr_scheduler_type), args.lr_scheduler_kwargs or {}
    name = kind.value
    takes = _schedule_keywords(kind)
    for key, value in given.items():
        if key not in takes:
            known = f"use {', '.join(takes)}" if takes else "give none"
            raise ValueError(
                f"`lr_scheduler_kwargs` holds {key!r}, which `lr_scheduler_type` {name!r} does not take; {known}."
            )
        if isinstance(value, (str, bool)) and takes[key].annotation in _NUMBERS:
            raise ValueError(f"`lr_scheduler_kwargs` holds {key!r} {value!r}; give a number, without quotes.")
    steps = args.max_steps if args.max_steps > 0 else 1_000
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    try:
        schedule = get_scheduler(
            kind,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=dict(given),
        )
        if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
            rates = [rate(step) for rate in schedule.lr_lambdas for step in range(0, steps + 1, max(1, steps // 10))]
        else:
            for value in (0.0, 1.0, 0.0):
                schedule.step(value)
            rates = [group["lr"] for group in optimizer.param_groups]
        if not all(math.isfinite(rate) for rate in rates):
            raise ValueError("the rate is not finite")
    except Exception as error:
        raise ValueError(
            f"`lr_scheduler_kwargs` is {args.lr_scheduler_kwargs!r}, with which `lr_scheduler_type` {name!r} cannot work "
            f"({_in_a_line(error)}); give some of {', '.join(takes)}."
        ) from error


def _schedule_keywords(kind: SchedulerType) -> dict[str, inspect.Parameter]:
    """What may stand in `lr_scheduler_kwargs`: not what transformers gives itself, nor what it leaves out."""
    if kind in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP):
        return {}
    made_by = {
        SchedulerType.REDUCE_ON_PLATEAU: torch.optim.lr_scheduler.ReduceLROnPlateau,
        SchedulerType.GREEDY: GreedyLR,
    }.get(kind, TYPE_TO_SCHEDULER_FUNCTION[kind])
    ours = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
    return {name: how for name, how in inspect.signature(made_by).parameters.items() if name not in ours}


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
