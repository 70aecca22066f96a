# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The one seam to names of TRL and transformers that are not public, each with why it is needed and since when."""

from __future__ import annotations

from transformers import Trainer, TrainingArguments


try:
    # TRL's own trainers and configs derive from these: its defaults, its help texts, its card. Since TRL 0.24.
    from trl.trainer.base_config import _BaseConfig as BaseConfig
    from trl.trainer.base_trainer import _BaseTrainer as BaseTrainer
except ImportError:
    # Training is the same on transformers' classes; only TRL's defaults for logging are lost.
    BaseConfig, BaseTrainer = TrainingArguments, Trainer


__all__ = ["BaseConfig", "BaseTrainer"]
