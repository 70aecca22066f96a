# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Pro-GRPO (Expand-and-Prune GRPO) for text-to-image diffusion and flow models, on TRL and diffusers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING


__version__ = "0.1.0"

_PUBLIC = {
    "ExpandPruneSampler": "sampler",
    "ProGRPOConfig": "progrpo_config",
    "ProGRPOTrainer": "progrpo_trainer",
    "RewardRunner": "rewards",
    "Rollout": "types",
    "Schedule": "types",
    "Transition": "types",
}

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from .progrpo_config import ProGRPOConfig as ProGRPOConfig
    from .progrpo_trainer import ProGRPOTrainer as ProGRPOTrainer
    from .rewards import RewardRunner as RewardRunner
    from .sampler import ExpandPruneSampler as ExpandPruneSampler
    from .types import Rollout as Rollout
    from .types import Schedule as Schedule
    from .types import Transition as Transition


def __getattr__(name: str):
    # Importing torch takes seconds; `import trl_progrpo` and the command line's help need none of it.
    if name in _PUBLIC:
        return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
