# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What is known of every option of a run beside its type and default: help, and whether a resumed run may have another value."""

from __future__ import annotations

import dataclasses
from typing import Any


RESUME_RULES = {
    "free": "may change; the new value holds from the first step of the resumed run on",
    "next": "may change; the new value holds from the next rollout on, and a rollout that is in progress is finished as it is",
    "optimizer": (
        "may change; the new value holds from the first step of the resumed run on, while what the optimiser has gathered "
        "stays. Refused with DeepSpeed"
    ),
    "schedule": (
        "may change between schedules that count steps, which go on at the same step; refused to or from one that watches the "
        "held-out reward"
    ),
    "rollout": "may change between two rollouts; refused in the midst of one, that is with a `rollout_*.safetensors`",
    "best": "may change until an evaluation has measured it; refused from then on, as the best so far is of another measure",
    "average": "may have another value; refused if it is set or unset, as an average neither begins nor ends in the middle",
    "order": "refused, as it fixes which prompts and which noise a step has",
    "state": "refused, as what the checkpoint holds belongs to it",
    "sharding": "refused where it changes how weights are shared out among processes",
    "constant": "has one value only, in every run",
    "none": "does nothing here",
}
"""What becomes of an option that has another value in a resumed run than in the one that saved the checkpoint."""

REFUSED_WITH = {
    "order": "use that again, for it fixes which prompts a step has",
    "state": "use that again, for what the checkpoint holds belongs to it",
    "rollout": "use that again, or a checkpoint between two rollouts, which has no rollout_*.safetensors",
    "best": "use that again, for the best so far is of another measure",
    "optimizer": "use that again, for this checkpoint does not tell what its optimiser was made with",
}
"""The cure that the refusal of a changed option ends with."""

_INHERITED = {
    "optimizer": (
        "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "lr_scheduler_kwargs", "warmup_steps",
    ),
    "rollout": ("fp16",),
    "best": ("metric_for_best_model", "greater_is_better"),
    "order": ("gradient_accumulation_steps", "seed", "data_seed", "train_sampling_strategy"),
    "state": ("optim",),
    "sharding": ("fsdp", "fsdp_config", "deepspeed", "accelerator_config", "parallelism_config"),
    "constant": (
        "label_smoothing_factor", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "use_liger_kernel",
        "neftune_noise_alpha", "auto_find_batch_size", "enable_jit_checkpoint", "ignore_data_skip",
    ),
    "none": (
        "optim_target_modules", "average_tokens_across_devices", "bf16_full_eval", "fp16_full_eval", "liger_kernel_config",
        "use_cache", "include_num_input_tokens_seen", "prediction_loss_only",
        "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics",
        "batch_eval_metrics", "dataloader_drop_last", "label_names", "length_column_name", "do_train", "do_eval",
        "do_predict",
    ),
    "free": (
        "output_dir", "num_train_epochs", "max_steps", "max_grad_norm", "tf32", "activation_checkpointing",
        "torch_compile", "torch_compile_backend", "torch_compile_mode", "torch_empty_cache_steps", "logging_strategy",
        "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter", "log_level",
        "log_level_replica", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id",
        "trackio_bucket_id", "trackio_static_space_id", "eval_strategy", "eval_steps", "eval_delay",
        "per_device_eval_batch_size", "eval_on_start", "save_only_model", "save_strategy", "save_steps",
        "save_on_each_node", "save_total_limit", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id",
        "hub_strategy", "hub_always_push", "hub_revision", "load_best_model_at_end",
        "restore_callback_states_from_checkpoint", "full_determinism", "use_cpu", "dataloader_num_workers",
        "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context", "dataloader_in_order", "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout", "debug",
        "skip_memory_metrics", "resume_from_checkpoint", "local_rank",
    ),
}  # fmt: skip
INHERITED_RULES = {name: rule for rule, names in _INHERITED.items() for name in names}
"""The rule of every option that comes from transformers as it is; those of our own have it in their metadata."""


class OptionMetadata(dict):
    """
    Metadata of a field, of which transformers' argument parser sees what argparse takes: it hands on all that is listed.
    """

    _FOR_ARGPARSE = ("help",)

    def keys(self):
        return [key for key in super().keys() if key in self._FOR_ARGPARSE]

    def copy(self) -> dict[str, Any]:
        return {key: self[key] for key in self.keys()}


def option(default: Any, help: str, resume: str = "free") -> Any:
    """
    Return a dataclass field with what is known of an option.

    Args:
        default: the value when unset; immutable.
        help (`str`): a line for the command line.
        resume (`str`, *optional*, defaults to `"free"`): one of [`RESUME_RULES`].
    """
    return dataclasses.field(default=default, metadata=OptionMetadata(help=help, resume=resume))


def resume_rule(field: dataclasses.Field) -> str:
    """Return the rule in [`RESUME_RULES`] of an option; what a newer version of transformers adds is free."""
    return field.metadata.get("resume") or INHERITED_RULES.get(field.name, "free")
