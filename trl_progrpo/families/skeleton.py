# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""A pipeline without weights: enough of it to ask a model family about sizes, schedules and costs."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import torch

from .loading import EMBEDDED, EMBEDDED_PREVIEW_DECODERS, family_class
from .text_skeleton import PREFIXES, text_component


HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")
"""Options of `from_pretrained` that say where files are."""


class NoSkeleton(ValueError):
    """Nothing is known of a model before its weights are loaded: its pipeline or its networks are not those of diffusers."""


def skeleton(model: str, text_encoders: bool = False, **kwargs: Any) -> diffusers.DiffusionPipeline:
    """
    The pipeline of `model` with its scheduler, and with networks of the right shape and no weights (on the `meta` device).
    Reads configuration files only.

    Args:
        model (`str`): a local folder, a Hub name, or `"shapes"`.
        text_encoders (`bool`, *optional*, defaults to `False`): with tokenizers and a [`~text_skeleton.TextSkeleton`] for
            each text encoder; without, there are none.
        kwargs: of [`HUB_OPTIONS`].

    Raises:
        NoSkeleton: if the pipeline or its denoiser is of a class that diffusers does not have.
        ValueError: as [`~families.family_class`] does; if a tokenizer or a component's configuration cannot be read.
    """
    family = family_class(model, **kwargs)
    path = str(EMBEDDED[model]()) if model in EMBEDDED else model
    index = diffusers.DiffusionPipeline.load_config(path, **kwargs)
    denoiser = index.get(family.denoiser_name) or [None, None]
    if not hasattr(diffusers, index["_class_name"]) or denoiser[0] != "diffusers":
        raise NoSkeleton(
            f"`model` {model!r} is a {index['_class_name']} of classes that diffusers does not have, so that nothing is known "
            "of it before its weights are loaded; use `trl-progrpo train` without --dry_run."
        )
    parts = {name: value for name, value in index.items() if not name.startswith("_")}
    components = {
        name: _component(path, name, value, text_encoders, kwargs) if isinstance(value, (list, tuple)) else value
        for name, value in parts.items()
    }
    if "safety_checker" in components:
        components["requires_safety_checker"] = False
    return getattr(diffusers, index["_class_name"])(**components)


def preview_decoder_skeleton(decoder: str) -> torch.nn.Module:
    """
    The [`~diffusers.AutoencoderTiny`] of a folder, a Hub name or an embedded name, on the `meta` device.

    Raises:
        ValueError: if its configuration cannot be read.
    """
    path = str(EMBEDDED_PREVIEW_DECODERS[decoder]()) if decoder in EMBEDDED_PREVIEW_DECODERS else decoder
    try:
        config = diffusers.AutoencoderTiny.load_config(path)
    except OSError as error:
        raise ValueError(
            f"`preview_decoder` {decoder!r} is neither a folder with an AutoencoderTiny nor one that could be read from "
            "the Hub; check the name, or leave it unset to decode previews with the VAE."
        ) from error
    # Of options that the class computes itself, and that are written all the same.
    known = inspect.signature(diffusers.AutoencoderTiny).parameters
    with torch.device("meta"):
        return diffusers.AutoencoderTiny.from_config({name: value for name, value in config.items() if name in known})


def _component(path: str, name: str, value: list[str | None], text_encoders: bool, kwargs: dict[str, Any]) -> Any:
    library, class_name = value
    if text_encoders and class_name is not None and name.startswith(PREFIXES):
        return text_component(path, name, class_name, **kwargs)
    kind = getattr(diffusers, class_name, None) if library == "diffusers" else None
    if kind is None:
        return None
    try:
        config = kind.load_config(path, subfolder=name, **kwargs)
    except OSError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"`model` {path!r} has no configuration of its {name} that can be read ({reason}); give a folder that is whole, or "
            "a Hub name."
        ) from error
    if not issubclass(kind, torch.nn.Module):
        return kind.from_config(config)
    with torch.device("meta"):
        return kind.from_config(config)
