# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Arguments of `trl-progrpo train`: dataclasses, the YAML file and the flags, checked strictly."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trl import ModelConfig, TrlParser

from ..progrpo_config import ProGRPOConfig
from .base import CommandError, HelpFormatter, refuse_unknown_flags, user_errors


DEFAULT_OUTPUT_DIR = "trl-progrpo-output"


@dataclass
class ScriptArguments:
    """
    Data and rewards of `trl-progrpo train`.

    Args:
        dataset_name (`str`): `"shapes"`, a .txt, .json, .jsonl, .csv or .parquet file, a folder, or a dataset on the Hub.
        dataset_config (`str`, *optional*): name of the dataset's configuration.
        dataset_train_split (`str`, *optional*, defaults to `"train"`): prompts to train on; slices such as
            `"train[:90%]"` work.
        dataset_test_split (`str`, *optional*, defaults to `"test"`): held-out prompts to evaluate on before and after
            training; `"none"` for no evaluation.
        reward_funcs (`list[str]`): names, or dotted paths (`"package.module:function"`), of the trained rewards.
        eval_reward_funcs (`list[str]`, *optional*): further rewards that are measured on held-out prompts only.
        eval_samples (`int`, *optional*, defaults to 64): held-out prompts per evaluation, chosen once; if the split has
            fewer, prompts repeat with other seeds. 0 takes the split as it is.
        plot (`bool`, *optional*, defaults to `True`): write plots and the before/after grid into `output_dir`.

    Raises:
        ValueError: if a required field is missing or a number is out of range.
    """

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "'shapes', a .txt/.json/.jsonl/.csv/.parquet file, a folder, or a dataset on the Hub."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_train_split: str = field(
        default="train", metadata={"help": "Prompts to train on; slices such as 'train[:90%%]' work."}
    )
    dataset_test_split: str | None = field(
        default="test",
        metadata={"help": "Held-out prompts to evaluate on before and after training; 'none' for none."},
    )
    reward_funcs: list[str] | None = field(
        default=None, metadata={"help": "Rewards to train on: names or dotted paths such as package.module:function."}
    )
    eval_reward_funcs: list[str] | None = field(
        default=None, metadata={"help": "Further rewards, measured on held-out prompts and never trained on."}
    )
    eval_samples: int = field(
        default=64,
        metadata={
            "help": "Held-out prompts per evaluation; repeated with other seeds if there are fewer. 0: the split."
        },
    )
    plot: bool = field(default=True, metadata={"help": "Write plots and the before/after grid into output_dir."})

    def __post_init__(self):
        if not self.dataset_name:
            raise ValueError("`dataset_name` is not set; give 'shapes', a file with prompts, or a dataset on the Hub.")
        if not self.reward_funcs:
            raise ValueError("`reward_funcs` is not set; give at least one reward, e.g. --reward_funcs shapes.")
        if self.eval_samples < 0:
            raise ValueError(
                f"`eval_samples` is {self.eval_samples}; give a number of prompts, or 0 for the whole split."
            )
        if self.dataset_test_split is not None and self.dataset_test_split.lower() in ("none", "null", "no", ""):
            self.dataset_test_split = None


@dataclass
class ModelArguments(ModelConfig):
    """
    Model and adapter: TRL's `ModelConfig` with the defaults of diffusion LoRA, without what is about language models.

    Args:
        model_name_or_path (`str`): `"shapes"`, a diffusers pipeline's folder, or its name on the Hub.
        model_revision (`str`, *optional*, defaults to `"main"`): branch, tag or commit on the Hub.
        use_peft (`bool`, *optional*, defaults to `True`): train a LoRA; off trains the whole denoiser.
        lora_r (`int`, *optional*, defaults to 32): rank.
        lora_alpha (`int`, *optional*, defaults to 64): scale, in units of the rank.
        lora_dropout (`float`, *optional*, defaults to 0.0): must stay 0, so that update and rollout are one policy.
        lora_target_modules (`list[str]`, *optional*): the model family's attention projections when unset.

    Raises:
        ValueError: if the model is not set.
    """

    use_peft: bool = field(default=True, metadata={"help": "Train a LoRA adapter; off trains the whole denoiser."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "'shapes' (embedded), a diffusers pipeline's folder, or its name on the Hub."}
    )
    lora_r: int = field(default=32, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(
        default=64, metadata={"help": "Scale of the adapter; the update is multiplied by alpha / r."}
    )
    lora_dropout: float = field(
        default=0.0, metadata={"help": "Must stay 0: with dropout the updated policy is not the one that sampled."}
    )
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules with an adapter; the model family's attention projections if unset."}
    )
    # Not arguments here (`init=False` keeps them off the command line): they would be accepted and do nothing. The
    # dtype of the frozen weights follows bf16 / fp16; other loading options go into `model_init_kwargs`.
    dtype: str | None = field(default=None, init=False)
    attn_implementation: str | None = field(default=None, init=False)
    lora_target_parameters: list[str] | None = field(default=None, init=False)
    lora_modules_to_save: list[str] | None = field(default=None, init=False)
    lora_task_type: str | None = field(default=None, init=False)
    load_in_8bit: bool = field(default=False, init=False)
    load_in_4bit: bool = field(default=False, init=False)
    bnb_4bit_quant_type: str | None = field(default=None, init=False)
    use_bnb_nested_quant: bool = field(default=False, init=False)
    bnb_4bit_quant_storage: str | None = field(default=None, init=False)

    def __post_init__(self):
        # TRL's own turns a list of one target into a string, which PEFT takes for a regular expression.
        if not self.model_name_or_path:
            raise ValueError(
                "`model_name_or_path` is not set; give 'shapes', a diffusers pipeline's folder, or its name on the Hub."
            )


COMMON = (
    "output_dir", "learning_rate", "lr_scheduler_type", "warmup_steps", "max_steps", "num_train_epochs",
    "per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size", "max_grad_norm",
    "weight_decay", "bf16", "fp16", "gradient_checkpointing", "use_cpu", "seed", "logging_steps", "report_to", "run_name",
    "eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit", "resume_from_checkpoint",
    "push_to_hub", "hub_model_id", "hub_private_repo",
)  # fmt: skip
"""The arguments of transformers that `--help` shows; `--help_all` shows all."""


class TrainParser(TrlParser):
    """TRL's parser over our dataclasses, with grouped help, strict YAML and one-sentence errors."""

    def __init__(self):
        super().__init__(
            [ScriptArguments, ModelArguments, ProGRPOConfig],
            prog="trl-progrpo train",
            usage="trl-progrpo train [--config FILE] --model_name_or_path MODEL --dataset_name DATA --reward_funcs NAME ...",
            description="Post-train a text-to-image model on a reward with Pro-GRPO. Every option is also a key of the YAML "
            "file given as --config; flags win over the file.",
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
            if action.default is None and action.type is str and action.nargs is None:
                action.type = _text_or_none
            elif action.default is None and action.nargs == "+":
                action.type = _item_or_none(action.type)

    def _arrange_help(self) -> None:
        titles = {
            "model, data and rewards": {*ScriptArguments.__annotations__, *ModelArguments.__dataclass_fields__},
            "Pro-GRPO": set(ProGRPOConfig.__annotations__) - {*COMMON, "remove_unused_columns"},
            "training (transformers.TrainingArguments)": set(COMMON),
        }
        groups = {title: self.add_argument_group(title) for title in titles}
        self.rare_actions = []
        # argparse has no public way to regroup what a base class has added.
        for action in list(self._optionals._group_actions):
            if action.dest in ("help", "config", argparse.SUPPRESS):
                continue
            self._optionals._group_actions.remove(action)
            if isinstance(action, argparse._StoreFalseAction):
                action.help = f"Turn --{action.dest} off."
            title = next((title for title, names in titles.items() if action.dest in names), None)
            (self.rare_actions if title is None else groups[title]._group_actions).append(action)

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


def _text_or_none(value: str) -> str | None:
    return None if value.lower() in ("none", "null") else value


def _item_or_none(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def item(value: str) -> Any:
        return None if value.lower() in ("none", "null") else convert(value)

    item.__name__ = getattr(convert, "__name__", "value")
    return item


def _is_text(action: argparse.Action) -> bool:
    return action.type in (str, _text_or_none)


def _checked_value(action: argparse.Action, value: Any, config_path: str) -> Any:
    if value is None:
        # `key:` with nothing after it; for optional fields that is a way to say None.
        if action.default is None or _is_text(action) or _accepts_none(action):
            return None
        raise CommandError(f"`{action.dest}` has no value in {config_path}; give one or remove the line.")
    if action.nargs == "+":
        if isinstance(value, str) and _text_or_none(value) is None:
            return None
        return [_converted(action, item, config_path) for item in (value if isinstance(value, list) else [value])]
    if isinstance(value, (dict, list)):
        if _is_text(action) or action.type is dict:
            return value
        raise CommandError(f"`{action.dest}` is {value!r} in {config_path}; give one value.")
    return _converted(action, value, config_path)


def _converted(action: argparse.Action, value: Any, config_path: str) -> Any:
    if isinstance(value, bool) and (action.choices or _is_text(action)):
        # YAML reads a bare `no` as False, and `save_strategy: no` is what everyone writes.
        words = ("yes", "no") if action.choices and "no" in action.choices else ("true", "false")
        value = words[0] if value else words[1]
    is_bool = getattr(action.type, "__name__", "") == "string_to_bool"
    try:
        if isinstance(value, (dict, list)) or (isinstance(value, bool) and not is_bool):
            if not action.choices:
                raise ValueError
        converted = action.type(str(value)) if action.type is not None else value
    except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
        kind = "true or false" if is_bool else f"a value of type {getattr(action.type, '__name__', action.type)}"
        raise CommandError(f"`{action.dest}` is {value!r} in {config_path}; give {kind}.") from error
    if action.choices and converted not in action.choices:
        raise CommandError(
            f"`{action.dest}` is {value!r} in {config_path}; use one of {', '.join(map(str, action.choices))}."
        )
    return converted


def _accepts_none(action: argparse.Action) -> bool:
    try:
        return action.type("none") is None
    except (TypeError, ValueError, argparse.ArgumentTypeError):
        return False
