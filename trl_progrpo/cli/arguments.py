# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The parser of `trl-progrpo train`: the YAML file and the flags over it, checked strictly."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from trl import TrlParser

from ..inherited import PIPELINE_TEXTS
from ..progrpo_config import ProGRPOConfig
from .base import CommandError, HelpFormatter, refuse_unknown_flags, user_errors
from .config_file import Plain, to_values
from .script_arguments import ModelArguments, ScriptArguments


DEFAULT_OUTPUT_DIR = "trl-progrpo-output"

COMMON = (
    "output_dir", "learning_rate", "lr_scheduler_type", "warmup_steps", "max_steps", "num_train_epochs",
    "per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size", "max_grad_norm",
    "weight_decay", "bf16", "fp16", "gradient_checkpointing", "use_cpu", "seed", "logging_steps", "report_to", "run_name",
    "eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit", "resume_from_checkpoint",
    "push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy",
)  # fmt: skip
"""The arguments of transformers that `--help` shows; `--help_all` shows all."""

GROUPS = {
    "model and adapter": (
        "model_name_or_path", "model_revision", "model_init_kwargs", *ModelArguments.__dataclass_fields__, "height",
        "width", "max_sequence_length", "vae_slicing", "vae_tiling",
    ),
    "prompts": (
        "dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "test_split_size",
        "dataset_streaming", "datasets", "streaming", "prompt_column", "prompt_cache_dir", "drop_text_encoders",
    ),
    "rewards": (
        "reward_funcs", "reward_weights", "multi_objective_aggregation", "preview_reward_funcs", "preview_reward_weights",
        "eval_reward_funcs", "eval_samples", "eval_use_ema", "on_reward_error", "reward_timeout", "reward_max_retries",
    ),
    "rollout: expand, preview, prune": (
        "num_generations", "num_expansions", "prune_steps", "prune_sizes", "prune_schedule", "prune_schedule_interval",
        "prune_schedule_groups", "pruning_rule", "preview_decoder", "preview_downscale", "preview_batch_size",
        "audit_fraction", "rollout_waves", "num_inference_steps",
        "guidance_scale", "negative_prompt", "policy", "noise_level", "eta", "sde_window", "sde_window_size",
        "sde_window_start", "sde_window_interval", "train_timestep_fraction", "rollout_batch_size", "decode_batch_size",
        "offload_rollout", "steps_per_generation",
    ),
    "update": (
        "num_iterations", "beta", "epsilon", "epsilon_high", "adv_clip_max", "scale_rewards", "loss_type",
        "step_weighting", "log_prob_reduction", "ema_decay", "ema_update_interval",
    ),
    "training (transformers.TrainingArguments)": COMMON,
    "more of Pro-GRPO": tuple({**ScriptArguments.__annotations__, **ProGRPOConfig.__annotations__}),
}  # fmt: skip
"""Titles of the help and what stands below them, in this order; an option belongs to the first title that names it."""

HELP = {
    "output_dir": "Folder for the adapter, checkpoints, plots and model card.",
    "max_steps": "Optimiser steps; above 0 it wins over num_train_epochs, and streams need it.",
    "num_train_epochs": "Passes over the prompts.",
    "gradient_accumulation_steps": "Micro-batches per optimiser step.",
    "max_grad_norm": "Clips the norm of the gradient; 0 does not.",
    "lr_scheduler_type": "Learning rate schedule.",
    "warmup_steps": "Steps of linear warm-up, or their share of all steps if below 1.",
    "weight_decay": "Weight decay of AdamW.",
    "fp16": "float16 mixed precision.",
    "logging_steps": "Optimiser steps between two logs, or their share of all steps if below 1.",
    "report_to": "Trackers, one or several: wandb, trackio, tensorboard, all or none.",
    "run_name": "Name of the run in the trackers.",
    "eval_strategy": "Measure held-out rewards within training too: no, steps or epoch.",
    "eval_steps": "Optimiser steps between two evaluations; logging_steps if unset.",
    "per_device_eval_batch_size": "Images per batch in evaluation, on each device.",
    "save_strategy": "Write checkpoints: no, steps, epoch or best.",
    "save_steps": "Optimiser steps between two checkpoints.",
    "save_total_limit": "Checkpoints to keep.",
    "resume_from_checkpoint": "A checkpoint folder, or true for the newest in output_dir.",
    "push_to_hub": "Push the adapter and its card to the Hub.",
    "hub_model_id": "Name on the Hub; that of output_dir if unset.",
    "hub_private_repo": "Make the repository private.",
    "hub_revision": "Branch on the Hub.",
    "hub_strategy": "When to push: end, every_save, checkpoint or all_checkpoints.",
    "seed": "Fixes prompts, noise and initial weights.",
    "use_cpu": "Train on the CPU even if there is an accelerator.",
}
"""Help in fewer words than the libraries have, for what `--help` shows of them."""

METAVARS = {
    "reward_funcs": "NAME",
    "preview_reward_funcs": "NAME",
    "eval_reward_funcs": "NAME",
    "report_to": "TRACKER",
}
"""What values are called in the help, where the last word of the option says too little."""

_EPILOG = """\
Flags of `accelerate launch` start the run through it, e.g. --num_processes 8 or --accelerate_config fsdp2 (a file, or one
of the configurations of this package or TRL). They can stand in the YAML file too."""


class TrainParser(TrlParser):
    """TRL's parser over our dataclasses, with grouped help, strict YAML and one-sentence errors."""

    def __init__(self):
        super().__init__(
            [ScriptArguments, ModelArguments, ProGRPOConfig],
            prog="trl-progrpo train",
            usage="trl-progrpo train [--config FILE] --model_name_or_path MODEL\n"
            "                         --dataset_name DATA --reward_funcs NAME ... [options]",
            description="Post-train a text-to-image model on a reward with Pro-GRPO. Every option is also a key of the YAML "
            "file given as --config; flags win over the file.",
            epilog=_EPILOG,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        self.set_defaults(output_dir=DEFAULT_OUTPUT_DIR)
        # Read before the heavy imports, see `train.read_config`; here for the help text.
        self.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help="YAML file with options.")
        self.add_argument("--help_all", action=_HelpAll, help="show every option, transformers' rarer ones included")
        self._accept_none()
        self._arrange_help()

    def error(self, message: str):
        raise CommandError(f"{message}; see `{self.prog} --help`.")

    def parse(
        self, argv: Sequence[str], config: Mapping[str, Any], config_path: str = "--config"
    ) -> tuple[ScriptArguments, ModelArguments, ProGRPOConfig]:
        """
        Dataclasses of the flags `argv` over the keys of `config`.

        Raises:
            CommandError: for an unknown key or flag, a value of the wrong type, or what a dataclass refuses.
        """
        self.set_defaults_with_config(**self.checked_config(config, config_path))
        refuse_unknown_flags(self, self.parse_known_args(argv)[1])
        with user_errors():
            return self.parse_args_into_dataclasses(argv, look_for_args_file=False)

    def checked_config(self, config: Mapping[str, Any], config_path: str) -> dict[str, Any]:
        """`config` with values of the types the flags would have; argparse checks none that is no string."""
        actions: dict[str, argparse.Action] = {}
        for action in self._actions:
            if action.dest not in ("help", "config", argparse.SUPPRESS):
                actions.setdefault(action.dest, action)
        checked = {}
        for key, value in config.items():
            name = str(key).replace("-", "_")
            if name not in actions:
                nearest = difflib.get_close_matches(name, actions, n=1)
                raise CommandError(
                    f"unknown key {key!r} in {config_path}; "
                    + (f"did you mean {nearest[0]!r}?" if nearest else f"`{self.prog} --help_all` lists all keys.")
                )
            checked[name] = _checked_value(actions[name], value, config_path)
        return checked

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        for name, value in vars(namespace).items():
            if value == [None]:
                setattr(namespace, name, None)
        return namespace, unknown

    def _accept_none(self) -> None:
        """
        Lets `--flag none` unset texts and lists too, as TRL's parser does for numbers: how else could a flag switch off
        the pruning that the YAML file asks for?
        """
        for action in self._actions:
            if action.dest == "datasets":
                action.type, action.metavar = _item_or_none(_mapping), "DATA"
                action.help = "Several datasets instead of dataset_name: paths or names, or JSON with more options."
            elif action.dest == "report_to":
                # The class has it as a text or a list, of which the parser of transformers takes the text.
                action.nargs = "+"
            elif action.default is None and action.type is str and action.nargs is None:
                action.type = _text_or_none
            elif action.default is None and action.nargs == "+":
                action.type = _item_or_none(action.type)

    def _arrange_help(self) -> None:
        # argparse has no public way to regroup what a base class has added.
        ours = ("help", "config", "help_all", argparse.SUPPRESS)
        actions = [action for action in self._optionals._group_actions if action.dest not in ours]
        for action in actions:
            self._optionals._group_actions.remove(action)
            action.help = HELP.get(action.dest, action.help)
            action.metavar = METAVARS.get(action.dest, action.metavar)
            if isinstance(action, argparse._StoreFalseAction):
                action.help = f"Turn --{action.dest} off."
        for title, names in GROUPS.items():
            order = {name: position for position, name in reversed(list(enumerate(names)))}
            group = self.add_argument_group(title)
            group._group_actions.extend(
                sorted((action for action in actions if action.dest in order), key=lambda action: order[action.dest])
            )
            actions = [action for action in actions if action.dest not in order]
        self.rare_actions = actions

    def show_rare_actions(self) -> None:
        """Puts all remaining options into the help."""
        group = self.add_argument_group("all other options of transformers.TrainingArguments")
        group._group_actions.extend(self.rare_actions)


class _HelpAll(argparse.Action):
    def __init__(self, option_strings, dest, **kwargs):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        parser.show_rare_actions()
        parser.print_help()
        parser.exit()


def _mapping(value: str | Mapping[str, Any]) -> dict[str, Any]:
    """An entry of `datasets`: a mapping of YAML, the same as JSON, or only a path."""
    if isinstance(value, str):
        try:
            if not value.lstrip().startswith("{"):
                return {"path": str(value)}
            # As written, where a text belongs.
            value = json.loads(
                value,
                parse_int=lambda text: Plain(text, int(text)),
                parse_float=lambda text: Plain(text, float(text)),
            )
        except json.JSONDecodeError as error:
            raise argparse.ArgumentTypeError(
                f'`datasets` holds {value!r}, which is no JSON ({error}); give it as {{"path": "prompts.txt"}}.'
            ) from error
    if not isinstance(value, Mapping):
        raise argparse.ArgumentTypeError(
            f"`datasets` holds {value!r}, which is no path and no mapping with a path; give either, such as prompts.txt."
        )
    return dict(value)


def _text_or_none(value: str) -> str | None:
    return None if value.lower() in ("none", "null") else value


def _item_or_none(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def item(value: str) -> Any:
        return None if value.lower() in ("none", "null") else convert(value)

    item.__name__ = getattr(convert, "__name__", "value")
    return item


_FIELD_TYPES = {
    field.name: str(field.type) for kind in (ScriptArguments, ModelArguments, ProGRPOConfig) for field in fields(kind)
}
"""What fields may hold, as it stands in their classes: of a text that may also be a mapping, argparse knows only the text."""


def _checked_value(action: argparse.Action, value: Any, config_path: str) -> Any:
    kinds = _FIELD_TYPES.get(action.dest, "")
    if value is None:
        # `key:` with nothing after it; for optional fields that is a way to say None.
        optional = "None" in kinds and action.default != DEFAULT_OUTPUT_DIR
        if action.default is None or optional or _accepts_none(action):
            return None
        raise CommandError(f"`{action.dest}` has no value in {config_path}; give one or remove the line.")
    if action.nargs == "+":
        if isinstance(value, str) and _text_or_none(value) is None:
            return None
        items = value if isinstance(value, list) else [value]
        if action.dest == "datasets":
            with user_errors(argparse.ArgumentTypeError):
                return [_mapping(item) for item in items]
        return [_converted(action, item, config_path) for item in items]
    if isinstance(value, dict) and "dict" in kinds:
        return _typed_mapping(action.dest, value)
    if isinstance(value, list) and "list" in kinds:
        return [_converted(action, item, config_path) for item in value]
    if isinstance(value, (dict, list)):
        form = "a mapping" if "dict" in kinds else "one value"
        form = "a text such as momentum=0.9,nesterov=true" if action.dest == "optim_args" else form
        raise CommandError(f"`{action.dest}` is {value!r} in {config_path}; give {form}.")
    return _converted(action, value, config_path)


def _typed_mapping(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping whose values have no types but those that YAML gives them, other than known texts."""
    texts = PIPELINE_TEXTS if name == "model_init_kwargs" else ()
    return {
        str(key): str(item) if key in texts and isinstance(item, str) else to_values(item)
        for key, item in value.items()
    }


_LISTS = {"str": "texts such as [shapes, ocr]", "int": "ints such as [5, 7]", "float": "floats such as [0.5, 1.0]"}


def _converted(action: argparse.Action, value: Any, config_path: str) -> Any:
    name = getattr(action.type, "__name__", action.type)
    is_number, is_bool = name in ("int", "float"), name == "string_to_bool"
    given = value
    if isinstance(value, Plain) and (is_number or is_bool or (action.choices and value not in action.choices)):
        value = value.value
    if isinstance(value, bool) and not (is_number or is_bool):
        # `save_strategy: false` is what YAML makes of `no`, and what some then write.
        words = ("yes", "no") if action.choices and "no" in action.choices else ("true", "false")
        value = words[0] if value else words[1]
    try:
        if value is None and action.default is not None:
            raise ValueError
        if isinstance(value, (dict, list)) or (isinstance(value, bool) and is_number):
            raise ValueError
        converted = action.type(str(value)) if action.type is not None else value
    except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
        kind = "true or false" if is_bool else f"a value of type {name}"
        if action.choices:
            kind = f"one of {', '.join(map(str, action.choices))}"
        if action.nargs == "+" and name in _LISTS:
            kind += f", or a list of {_LISTS[name]}"
        raise CommandError(f"`{action.dest}` is {given!r} in {config_path}; give {kind}.") from error
    if action.choices and converted not in action.choices:
        raise CommandError(
            f"`{action.dest}` is {given!r} in {config_path}; use one of {', '.join(map(str, action.choices))}."
        )
    return converted


def _accepts_none(action: argparse.Action) -> bool:
    try:
        return action.type("none") is None
    except (TypeError, ValueError, argparse.ArgumentTypeError):
        return False
