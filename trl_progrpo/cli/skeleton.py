# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""A pipeline without weights: enough of it to ask a model family about sizes, schedules and costs."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from ..families import family_class
from ..families.loading import EMBEDDED


HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")
"""Options of `from_pretrained` that say where files are."""


def skeleton(model: str, **kwargs: Any) -> diffusers.DiffusionPipeline:
    """
    The pipeline of `model` with its scheduler, and with networks of the right shape and no weights (on the `meta` device);
    without text encoders and tokenizers. Reads configuration files only.

    Args:
        model (`str`): a local folder, a Hub name, or `"shapes"`.
        kwargs: of [`HUB_OPTIONS`].

    Raises:
        ValueError: as [`~families.family_class`] does.
    """
    family_class(model, **kwargs)
    path = str(EMBEDDED[model]()) if model in EMBEDDED else model
    index = diffusers.DiffusionPipeline.load_config(path, **kwargs)
    parts = {name: value for name, value in index.items() if not name.startswith("_")}
    components = {
        name: _component(path, name, value, kwargs) if isinstance(value, (list, tuple)) else value
        for name, value in parts.items()
    }
    if "safety_checker" in components:
        components["requires_safety_checker"] = False
    return getattr(diffusers, index["_class_name"])(**components)


def _component(path: str, name: str, value: list[str | None], kwargs: dict[str, Any]) -> Any:
    library, class_name = value
    kind = getattr(diffusers, class_name, None) if library == "diffusers" else None
    if kind is None:
        return None
    config = kind.load_config(path, subfolder=name, **kwargs)
    if not issubclass(kind, torch.nn.Module):
        return kind.from_config(config)
    with torch.device("meta"):
        return kind.from_config(config)
