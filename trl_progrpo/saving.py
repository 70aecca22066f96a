# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""A full fine-tune on disk: the whole pipeline, so that `DiffusionPipeline.from_pretrained` needs nothing else."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

from huggingface_hub.errors import HfHubHTTPError

from .families import load_pipeline
from .families.base import Family


def save_denoiser(family: Family, directory: str, suffix: str = "") -> None:
    """Writes the denoiser into its folder of a pipeline; with `suffix`, into one beside it that pipelines do not read."""
    family.denoiser.save_pretrained(os.path.join(directory, f"{family.denoiser_name}{suffix}"))


def save_pipeline(
    family: Family, directory: str, model_name: str | None = None, dropped: Sequence[str] = (), **init_kwargs: Any
) -> None:
    """
    Writes the pipeline with its trained denoiser.

    Args:
        family ([`~families.Family`]): holds the pipeline.
        directory (`str`): where to.
        model_name (`str`, *optional*): what the pipeline was loaded from; needed if components were dropped.
        dropped (`Sequence[str]`, *optional*): components that were removed from memory. They are loaded once more, on the
            CPU, and let go again. If that fails the pipeline is written without them, with a warning.
        init_kwargs: for [`~diffusers.DiffusionPipeline.from_pretrained`], as in the first load.
    """
    pipeline = family.pipeline
    if dropped:
        pipeline.register_modules(**_load_again(family, model_name, dropped, init_kwargs))
    try:
        pipeline.save_pretrained(directory)
    finally:
        for name in dropped:
            setattr(pipeline, name, None)


def _load_again(family: Family, model_name: str | None, dropped: Sequence[str], init_kwargs: dict) -> dict[str, Any]:
    others = {name: None for name in family.pipeline.components if name not in dropped}
    try:
        if not model_name:
            raise ValueError("the pipeline was made in memory")
        # The VAE comes too, as loading looks at it; it is small beside a text encoder.
        others.pop("vae", None)
        loaded = load_pipeline(model_name, **{"dtype": family.dtype, **init_kwargs, **others})
    except (ValueError, OSError, HfHubHTTPError) as error:
        warnings.warn(
            f"the saved pipeline lacks {', '.join(dropped)}: `drop_text_encoders` removed them, and they cannot be loaded "
            f"again ({error}); pass them to `DiffusionPipeline.from_pretrained` by name.",
            stacklevel=3,
        )
        return {}
    return {name: getattr(loaded, name) for name in dropped}
