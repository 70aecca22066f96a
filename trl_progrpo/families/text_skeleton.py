# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Text encoders without weights: what they answer has the right shapes, so prompts can be encoded for counting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch.utils._pytree import tree_map_only


if TYPE_CHECKING:
    from ..types import Conditioning
    from .base import Family


PREFIXES = ("text_encoder", "tokenizer")
"""Beginnings of the names of a pipeline's components that encode prompts."""


def text_component(path: str, name: str, class_name: str, **kwargs: Any) -> Any:
    """
    A tokenizer, which is read, or a [`TextSkeleton`], for which only the configuration is.

    Args:
        path (`str`): folder or Hub name of the pipeline.
        name (`str`): the component.
        class_name (`str`): its class in transformers.
        kwargs: of `from_pretrained`, where files are.

    Raises:
        ValueError: if a tokenizer cannot be read.
    """
    kind = getattr(transformers, class_name)
    if name.startswith("tokenizer"):
        return _tokenizer(kind, path, name, kwargs)
    config = kind.config_class.from_pretrained(path, subfolder=name, **kwargs)
    # The other kinds of attention look at the values of a mask, which are not there.
    with torch.device("meta"):
        return TextSkeleton(kind._from_config(config, attn_implementation="eager"))


def _tokenizer(kind: type, path: str, name: str, kwargs: dict[str, Any]) -> Any:
    try:
        tokenizer = kind.from_pretrained(path, subfolder=name, **kwargs)
    # OSError for a missing file, and what the readers of half a dozen formats raise.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    else:
        # Without its files a tokenizer of transformers knows its special tokens and nothing else, and does not say so.
        if not hasattr(tokenizer, "all_special_ids") or len(tokenizer) > len(tokenizer.all_special_ids):
            return tokenizer
        reason = "it has no vocabulary"
    raise ValueError(
        f"the {name} of {path!r} cannot be read ({reason}), and without it the tokens of a prompt are not known."
    )


class TextSkeleton(torch.nn.Module):
    """
    Stands in for a text encoder: takes what it takes, and answers with zeros of the shapes that it would answer with.

    Args:
        encoder (`torch.nn.Module`): the text encoder, on the `meta` device.
    """

    def __init__(self, encoder: torch.nn.Module):
        super().__init__()
        # In a list, so that it is no submodule: this module is on the CPU, where masks and token numbers have values.
        self._encoder = [encoder]
        self.config, self.dtype, self.device = encoder.config, encoder.dtype, torch.device("cpu")

    @property
    def encoder(self) -> torch.nn.Module:
        """What it stands for, on the `meta` device."""
        return self._encoder[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        with torch.no_grad():
            answer = self._encoder[0](*args, **kwargs)
        return tree_map_only(
            torch.Tensor, lambda tensor: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape), answer
        )


def encode(family: Family, prompts: Sequence[str]) -> Conditioning:
    """The conditioning of `prompts`, zeros of the right shapes, from a family whose pipeline has [`TextSkeleton`]s."""
    pipeline, name, denoiser = family.pipeline, family.denoiser_name, family.denoiser
    setattr(pipeline, name, _OnCPU(denoiser))
    try:
        with torch.no_grad():
            return family.encode_prompts(prompts)
    finally:
        setattr(pipeline, name, denoiser)


class _OnCPU(torch.nn.Module):
    """A network without weights that says it is on the CPU, so that what is encoded for it is put there."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self._network = [network]
        self.here = torch.nn.Parameter(torch.zeros(()), requires_grad=False)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_network"][0], name)
