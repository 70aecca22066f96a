# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""From a model name to a pipeline and its family, looking before loading."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from ..tiny import model_path, preview_decoder_path
from .base import FAMILIES, Family


EMBEDDED = {"shapes": model_path}
"""Models that ship with the package, by name."""


def by_name(model: str | os.PathLike | DiffusionPipeline) -> str | DiffusionPipeline:
    """A model as it was given, but for paths, which become their text, with the home folder in place of `~`."""
    return os.path.expanduser(model) if isinstance(model, str | os.PathLike) else model


def _resolve(model: str) -> str:
    return str(EMBEDDED[model]()) if model in EMBEDDED else model


def _read_index(model: str, **kwargs: Any) -> dict[str, Any]:
    """
    `model_index.json` of a local folder or a Hub repository; no weights are loaded.

    Raises:
        ValueError: if there is no such model or it is not a diffusers pipeline.
    """
    if os.path.isdir(model) and not os.path.isfile(os.path.join(model, "model_index.json")):
        raise ValueError(
            f"`model` is the folder {model!r}, which has no model_index.json and so is no diffusers pipeline; give a "
            "folder written by `pipeline.save_pretrained`, or a Hub name."
        )
    hub = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in kwargs}
    try:
        index = DiffusionPipeline.load_config(model, **hub)
    except (OSError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"`model` {model!r} is neither a folder with a diffusers pipeline nor one that could be read from the Hub "
            f"({reason}); check the name, your connection and your access."
        ) from error
    if not isinstance(index, dict) or "_class_name" not in index:
        raise ValueError(
            f"`model` {model!r} has a model_index.json that names no pipeline class; give a folder written by "
            "`pipeline.save_pretrained`, or a Hub name."
        )
    return index


def pipeline_class_name(model: str | os.PathLike | DiffusionPipeline, **kwargs: Any) -> str:
    """The pipeline class of a loaded pipeline, a local folder, a Hub name or an embedded model."""
    model = by_name(model)
    if not isinstance(model, str):
        return type(model).__name__
    return _read_index(_resolve(model), **kwargs)["_class_name"]


def family_class(model: str | os.PathLike | DiffusionPipeline, **kwargs: Any) -> type[Family]:
    """
    The family that serves a model.

    Raises:
        ValueError: if no family serves its pipeline class; the message names those that are known.
    """
    name = pipeline_class_name(model, **kwargs)
    if name not in FAMILIES.names():
        raise ValueError(
            f"`model` is a {name}, which no model family serves; known: {', '.join(FAMILIES.names())}; to add one, write "
            "a subclass of `trl_progrpo.families.Family` and decorate it with `@register_family`."
        )
    return FAMILIES.get(name)


def missing_components(family: type[Family], index: dict[str, Any]) -> dict[str, None]:
    """Optional components that a checkpoint does not have; `from_pretrained` wants to be told so by name."""
    return {name: None for name in family.optional_components if (index.get(name) or [None])[0] is None}


def load_pipeline(
    model: str | os.PathLike | DiffusionPipeline, dtype: torch.dtype | None = None, **kwargs: Any
) -> DiffusionPipeline:
    """
    Loads a pipeline by name; a pipeline is returned as it is.

    Args:
        model (`str`, `os.PathLike` or [`~diffusers.DiffusionPipeline`]): a local folder, a Hub name, `"shapes"` or a pipeline.
        dtype (`torch.dtype`, *optional*): of the weights; the VAE stays in fp32, where the decoded image is a reward's
            only input.
        kwargs: for [`~diffusers.DiffusionPipeline.from_pretrained`].

    Raises:
        ValueError: as [`family_class`] does, before any weights are read; if weights are missing or damaged.
    """
    model = by_name(model)
    if not isinstance(model, str):
        return model
    family = family_class(model, **kwargs)
    path = _resolve(model)
    index = _read_index(path, **kwargs)
    missing = missing_components(family, index)
    try:
        with _quiet() if model in EMBEDDED else nullcontext():
            # Not cast up afterwards: weights that were read in half precision are rounded.
            dtypes = {"default": dtype, "vae": torch.float32} if dtype is not None else None
            pipeline = DiffusionPipeline.from_pretrained(path, **{"dtype": dtypes, **missing, **kwargs})
    except (OSError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"`model` {model!r} could not be loaded ({reason}); give a folder that is whole, or load it from the Hub again."
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    if pipeline.vae.dtype != torch.float32:
        pipeline.vae.to(torch.float32)
    return pipeline


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and notices for a model that loads in a blink."""
    bars = [module for module in (diffusers_logging, transformers_logging) if module.is_progress_bar_enabled()]
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    for module in bars:
        module.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
        for module in bars:
            module.enable_progress_bar()


def base_folder(pipeline: DiffusionPipeline) -> str | None:
    """Return the folder that a pipeline was loaded from, if it is known; of one from the Hub, that in the cache."""
    base = pipeline.name_or_path
    if not base or os.path.isdir(base):
        return base or None
    try:
        cached = try_to_load_from_cache(base, "model_index.json")
    except HFValidationError:
        return None
    repository = repo_folder_name(repo_id=base, repo_type="model")
    # A component knows its folder in the cache, also of another revision than the main branch.
    configs = (getattr(component, "config", None) for component in pipeline.components.values())
    sources = (str(getattr(config, "_name_or_path", "")) for config in configs)
    own = next((source for source in sources if repository in Path(source).parts), cached)
    return os.path.dirname(own) if isinstance(own, str) else None


def changed_weight(pipeline: DiffusionPipeline, component: str) -> str | None:
    """
    Return the name of a weight that differs from the files of the pipeline's base model: a LoRA was fused in, tokens were
    added, or the component comes from elsewhere.

    Of each weight the first row is looked at, rounded to the precisions it may have been loaded in.

    Args:
        pipeline ([`~diffusers.DiffusionPipeline`]): as it was loaded by a user.
        component (`str`): name of one of its networks; `None` is returned if there is none, or no files to compare it with.
    """
    module, base = getattr(pipeline, component, None), base_folder(pipeline)
    if module is None or base is None or getattr(module, "hf_quantizer", None) is not None:
        return None
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in Path(base, component).glob("*.safetensors")]
        names = [(file, set(file.keys())) for file in files]
        for name, weight in module.named_parameters():
            # PEFT leaves its wrapper about a layer whose adapter was fused and deleted.
            name = name.replace(".base_layer.", ".")
            rows = [_first_row(file, name) for file, keys in names if name in keys]
            known = rows and weight.is_floating_point() and not weight.is_meta
            if known and not any(_is_row_of(weight, *row) for row in rows):
                return name
    return None


def _first_row(file: Any, name: str) -> tuple[list[int], torch.Tensor]:
    shape = file.get_slice(name).get_shape()
    return shape, file.get_slice(name)[:1] if shape else file.get_tensor(name)


def _is_row_of(weight: torch.Tensor, shape: list[int], row: torch.Tensor) -> bool:
    if list(weight.shape) != shape:
        return False
    own = (weight[:1] if shape else weight).detach().cpu()
    return any(torch.equal(own, row.to(via).to(own.dtype)) for via in (row.dtype, torch.bfloat16, torch.float16))


EMBEDDED_PREVIEW_DECODERS = {"shapes": preview_decoder_path}
"""Preview decoders that ship with the package, by name."""


def load_preview_decoder(decoder: str | torch.nn.Module | None, device: torch.device) -> torch.nn.Module | None:
    """
    An [`~diffusers.AutoencoderTiny`] by folder, Hub name or embedded name, frozen, in fp32; `None` stays `None`.

    Raises:
        ValueError: if it cannot be read.
    """
    if decoder is None or isinstance(decoder, torch.nn.Module):
        return decoder
    path = EMBEDDED_PREVIEW_DECODERS[decoder]() if decoder in EMBEDDED_PREVIEW_DECODERS else decoder
    try:
        with _quiet():
            loaded = AutoencoderTiny.from_pretrained(path, dtype=torch.float32)
    except OSError as error:
        raise ValueError(
            f"`preview_decoder` {decoder!r} is neither a folder with an AutoencoderTiny nor one that could be read from "
            "the Hub; check the name, or leave it unset to decode previews with the VAE."
        ) from error
    return loaded.to(device).eval().requires_grad_(False)
