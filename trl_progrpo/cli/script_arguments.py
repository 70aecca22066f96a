# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What `trl-progrpo train` takes beside [`ProGRPOConfig`]: data and rewards, model and adapter."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trl import DatasetMixtureConfig, ModelConfig
from trl.scripts.utils import DatasetConfig

from .config_file import to_values


@dataclass
class ScriptArguments(DatasetMixtureConfig):
    """
    Data and rewards of `trl-progrpo train`, with the names of TRL's `ScriptArguments` and `DatasetMixtureConfig`.

    Args:
        dataset_name (`str`, *optional*): `"shapes"`, a .txt, .json, .jsonl, .csv, .tsv or .parquet file, a folder of such, or a
            dataset on the Hub.
        dataset_config (`str`, *optional*): name of the dataset's configuration.
        dataset_train_split (`str`, *optional*, defaults to `"train"`): prompts to train on; slices such as
            `"train[:90%]"` work.
        dataset_test_split (`str`, *optional*, defaults to `"test"`): held-out prompts to evaluate on before and after
            training; `"none"` for no evaluation.
        dataset_streaming (`bool`, *optional*, defaults to `False`): read the training prompts as they are needed, instead of
            first converting or downloading all of them; needs `max_steps`. `streaming` means the same.
        datasets (`list[dict]`, *optional*): several datasets in place of `dataset_name`, each with `path` (as `dataset_name`)
            and optionally `name`, `data_dir`, `data_files`, `split`, `columns`, `fraction`.
        test_split_size (`float`, *optional*): hold out this share (below 1) or number of the training prompts instead of
            reading `dataset_test_split`. Which ones does not depend on the run's seed.
        reward_funcs (`list[str]`): names, or dotted paths (`"package.module:function"`), of the trained rewards.
        preview_reward_funcs (`list[str]`, *optional*): rewards of previews, by which groups are pruned; `reward_funcs` when
            unset.
        eval_reward_funcs (`list[str]`, *optional*): further rewards that are measured on held-out prompts only.
        eval_samples (`int`, *optional*, defaults to 64): held-out prompts per evaluation, chosen once; if the split has
            fewer, prompts repeat with other seeds. 0 takes the split as it is.
        plot (`bool`, *optional*, defaults to `True`): write plots and the before/after grid into `output_dir`.
        dry_run (`bool`, *optional*, defaults to `False`): check and print everything, load no weights and train nothing.

    Raises:
        ValueError: if a required field is missing, a number is out of range, or two fields exclude each other.
    """

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "'shapes', a .txt/.json/.jsonl/.csv/.tsv/.parquet file, a folder, or a dataset on the Hub."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_train_split: str = field(
        default="train", metadata={"help": "Prompts to train on; slices such as 'train[:90%%]' work."}
    )
    dataset_test_split: str | None = field(
        default="test",
        metadata={"help": "Held-out prompts to evaluate on before and after training; 'none' for none."},
    )
    test_split_size: float | None = field(
        default=None, metadata={"help": "Hold out this share or number of the training prompts instead."}
    )
    dataset_streaming: bool = field(
        default=False, metadata={"help": "Read training prompts as they are needed; set max_steps."}
    )
    streaming: bool = field(default=False, metadata={"help": "The same, TRL's name for it beside `datasets`."})
    reward_funcs: list[str] | None = field(
        default=None, metadata={"help": "Rewards to train on: names or dotted paths such as package.module:function."}
    )
    preview_reward_funcs: list[str] | None = field(
        default=None, metadata={"help": "Rewards of previews, by which groups are pruned; reward_funcs if unset."}
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
    dry_run: bool = field(
        default=False, metadata={"help": "Check and print everything, load no weights and train nothing."}
    )

    def __post_init__(self):
        self._check_mixture()
        super().__post_init__()
        self.streaming = self.dataset_streaming = self.streaming or self.dataset_streaming
        if not self.dataset_name and not self.datasets:
            raise ValueError("`dataset_name` is not set; give 'shapes', a file with prompts, or a dataset on the Hub.")
        if self.dataset_name and self.datasets:
            raise ValueError(
                f"`dataset_name` is {self.dataset_name!r} and `datasets` is set too; give one, e.g. --datasets none."
            )
        if not self.reward_funcs:
            raise ValueError("`reward_funcs` is not set; give at least one reward, e.g. --reward_funcs shapes.")
        if self.eval_samples < 0:
            raise ValueError(
                f"`eval_samples` is {self.eval_samples}; give a number of prompts, or 0 for the whole split."
            )
        if self.dataset_test_split is not None and self.dataset_test_split.lower() in ("none", "null", "no", ""):
            self.dataset_test_split = None
        self._check_test_split_size()

    def _check_mixture(self) -> None:
        self.datasets = [_checked_entry(entry, index) for index, entry in enumerate(self.datasets or [])]

    def _check_test_split_size(self) -> None:
        size = self.test_split_size
        if size is None:
            return
        if not (0 < size < 1 or (size >= 1 and size == int(size))):
            raise ValueError(
                f"`test_split_size` is {size}; give a share between 0 and 1, or a whole number of prompts."
            )
        if self.streaming:
            raise ValueError(
                "`test_split_size` cannot be taken from a stream, whose length is not known; name a "
                "`dataset_test_split`, or do not stream."
            )


def _checked_entry(entry: Any, index: int) -> DatasetConfig:
    """An entry of `datasets`, with values of the types that its fields have."""
    keys = DatasetConfig.__dataclass_fields__
    if isinstance(entry, DatasetConfig):
        entry = vars(entry)
    elif not isinstance(entry, Mapping):
        raise ValueError(f"`datasets` entry {index} is {entry!r}; give a mapping with the keys {', '.join(keys)}.")
    given = {str(key): value for key, value in entry.items() if value is not None}
    unknown = sorted(set(given) - set(keys))
    if unknown or "path" not in given:
        problem = f"has the unknown key {unknown[0]!r}" if unknown else "has no `path`"
        raise ValueError(f"`datasets` entry {index} {problem}; its keys are {', '.join(keys)}.")
    checked = {}
    for key, value in given.items():
        take, wanted = _ENTRY_FIELDS.get(key, (_text, "a text"))
        try:
            checked[key] = take(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{key}` in `datasets` entry {index} is {to_values(value)!r}; give {wanted}.") from error
    return DatasetConfig(**checked)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError
    return str(value)


def _texts(value: Any) -> list[str]:
    if not value or not isinstance(value, (str, list, tuple)):
        raise TypeError
    return [_text(item) for item in ([value] if isinstance(value, str) else value)]


def _share(value: Any) -> float:
    value = to_values(value)
    if isinstance(value, bool) or not 0 <= float(value) < math.inf:
        raise ValueError
    return float(value)


def _files(value: Any) -> str | list[str] | dict[str, Any]:
    if isinstance(value, Mapping):
        return {_text(split): _files(files) for split, files in value.items()}
    return _text(value) if isinstance(value, str) else _texts(value)


_ENTRY_FIELDS = {
    "columns": (_texts, "names of columns, e.g. [prompt]"),
    "fraction": (_share, "a share of the mixture such as 0.9 or 3, 0 for none of it"),
    "data_files": (_files, "the name of a file, a list of such, or a mapping from splits to them"),
}
"""How keys of an entry of `datasets` that are no single texts are read, and what they are called."""


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
        ValueError: if the model is not set, or a number of the adapter is out of range.
    """

    use_peft: bool = field(default=True, metadata={"help": "Train a LoRA adapter; off trains the whole denoiser."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "'shapes' (embedded), a diffusers pipeline's folder, or its name on the Hub."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the Hub."})
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
    use_rslora: bool = field(default=False, metadata={"help": "Scale the adapter by alpha / sqrt(r)."})
    use_dora: bool = field(default=False, metadata={"help": "Train magnitudes too (DoRA); slower than plain LoRA."})
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
        self.model_name_or_path = os.path.expanduser(self.model_name_or_path)
        if not self.use_peft:
            return
        for name in ("lora_r", "lora_alpha"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}; use at least 1, or `use_peft` False for no adapter."
                )
