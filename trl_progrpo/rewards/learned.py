# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What the learned rewards share: loading, device and precision, batches, features of images and prompts."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch.nn.functional import normalize

from .learned_loading import first_line


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .learned_images import ImageTransform

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# One at a time: a reward may be called from several threads, and transformers switches global state while it loads.
_LOADING = threading.RLock()
# A tokenizer's padding and truncation are state of its own, and two threads may not set them at once.
_TOKENIZING = threading.Lock()


class LearnedReward:
    """
    Base class of rewards that are a network from the Hub or from a folder.

    Nothing is read or downloaded before [`load`] or the first call. A call scores all images of the batch: the image
    tower runs `batch_size` images at a time, the text tower once for every different prompt. Images of any size and mode
    are accepted; transparent ones are put on white. Prompts over the token limit are cut.

    A subclass sets `__name__`, under which it is logged, and implements `_load` and `_rate`.

    Args:
        model (`str`): folder, or name of a repository on the Hub.
        revision (`str`, *optional*): commit, branch or tag of that repository. Unset: the commit in
            `learned_loading.REVISIONS` for the repositories named there, else `main`.
        device (`str` or `torch.device`, *optional*): where to run; the training device of this process when unset.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"float32"`): precision of the towers: `"float32"`,
            `"bfloat16"` or `"float16"`. Scores are computed from the features in fp32, and autocast does not reach them.
        batch_size (`int`, *optional*, defaults to 32): images per forward pass.

    Raises:
        ValueError: if `dtype` or `batch_size` cannot work.
    """

    __name__ = "learned"
    image_type = "pil"
    dataset_columns = ()

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        batch_size: int = 32,
    ):
        self.model = os.path.expanduser(model)
        self.revision = revision
        self.device = device
        self.dtype = checked_dtype(dtype, f"reward `{self.__name__}`")
        self.batch_size = checked_batch_size(batch_size, f"reward `{self.__name__}`")
        self.network: PreTrainedModel | None = None
        self.transform: ImageTransform | None = None
        self.tokenizer: Any = None

    def load(self) -> LearnedReward:
        """
        Loads the weights, once; returns itself.

        Raises:
            ValueError: if the model cannot be found, is incomplete, or the device does not exist.
        """
        with _LOADING:
            if self.network is None:
                device = resolve_device(self.device, self.__name__)
                network = self._load().requires_grad_(False).eval()
                self._check_tokenizer(network)
                self.network = network.to(device)
        return self

    def __call__(self, prompts: Sequence[str], images: Sequence[Image.Image], **columns) -> list[float]:
        """
        One score per image.

        Args:
            prompts (`Sequence[str]` of length `B`): the prompt of each image.
            images (`Sequence[PIL.Image.Image]` of length `B`): the images.
            columns: further dataset columns and `preview`; not used.

        Raises:
            ValueError: if the lengths differ, an image is no PIL image, or the weights cannot be loaded.
        """
        if len(prompts) != len(images):
            raise ValueError(
                f"reward `{self.__name__}` got {len(prompts)} prompts for {len(images)} images; give one prompt per image."
            )
        if len(images) == 0:
            return []
        self.load()
        with torch.inference_mode(), torch.autocast(self.network.device.type, enabled=False):
            return self._rate(list(prompts), list(images)).tolist()

    def _load(self) -> PreTrainedModel:
        """Sets `transform` and, where prompts are read, `tokenizer`; returns the network, on any device."""
        raise NotImplementedError

    def _check_tokenizer(self, network: PreTrainedModel) -> None:
        # Where its files are absent transformers makes a tokenizer that knows three tokens, and says nothing.
        size = network.config.text_config.vocab_size
        if self.tokenizer is not None and len(self.tokenizer) < size // 2:
            source = getattr(self, "processor", self.model)
            raise ValueError(
                f"reward `{self.__name__}`: the tokenizer of {source!r} knows {len(self.tokenizer)} tokens and the model "
                f"{size}; give a folder or repository with the tokenizer.json of the model."
            )

    def _rate(self, prompts: list[str], images: list[Image.Image]) -> torch.Tensor:
        """Scores `(B,)`, fp32."""
        raise NotImplementedError

    def _image_features(self, images: list[Image.Image]) -> torch.Tensor:
        """Unit vectors `(B, dim)`, fp32."""
        features = []
        for start in range(0, len(images), self.batch_size):
            pixels = self.transform(images[start : start + self.batch_size])
            pixels = pixels.to(self.network.device, self.dtype)
            features.append(self.network.get_image_features(pixel_values=pixels).pooler_output.float())
        return normalize(torch.cat(features), dim=-1)

    def _prompt_features(self, prompts: list[str]) -> torch.Tensor:
        """Unit vectors `(B, dim)`, fp32; each different prompt is encoded once."""
        different = list(dict.fromkeys(prompts))
        features = []
        for start in range(0, len(different), self.batch_size):
            with _TOKENIZING:
                ids = self._tokens(different[start : start + self.batch_size])
            ids = ids.to(self.network.device)
            features.append(self.network.get_text_features(input_ids=ids).pooler_output.float())
        rows = torch.tensor([different.index(prompt) for prompt in prompts], device=self.network.device)
        return normalize(torch.cat(features), dim=-1)[rows]

    def _tokens(self, prompts: list[str]) -> torch.Tensor:
        """Token ids `(B, length)`. CLIP looks back only and reads its result at the end token, so padding needs no mask."""
        limit = self.network.config.text_config.max_position_embeddings
        return self.tokenizer(prompts, padding=True, truncation=True, max_length=limit, return_tensors="pt").input_ids

    def _cosine(self, prompts: list[str], images: list[Image.Image]) -> torch.Tensor:
        """Cosine of image and prompt `(B,)`, fp32."""
        return (self._image_features(images) * self._prompt_features(prompts)).sum(-1)


def checked_dtype(dtype: str | torch.dtype, owner: str) -> torch.dtype:
    """
    Raises:
        ValueError: if `dtype` is none of [`DTYPES`], nor the name of one; the sentence says that it is `owner`'s.
    """
    if dtype not in DTYPES and dtype not in DTYPES.values():
        raise ValueError(f"`dtype` of {owner} is {dtype!r}; use one of {', '.join(DTYPES)}.")
    return DTYPES.get(dtype, dtype)


def checked_batch_size(batch_size: int, owner: str) -> int:
    """
    Raises:
        ValueError: if `batch_size` is no whole number above 0; the sentence says that it is `owner`'s.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"`batch_size` of {owner} is {batch_size!r}; use 1 or more.")
    return batch_size


def resolve_device(device: str | torch.device | None, reward: str) -> torch.device:
    """
    The device a reward runs on: the one asked for, else accelerate's for this process.

    Raises:
        ValueError: if there is no such device.
    """
    if device is None:
        from accelerate import PartialState

        # The current CUDA device is a matter of the thread, and rewards are called from threads; this is not.
        return PartialState().device
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"`device` of reward `{reward}` is {str(device)!r}, which this machine does not offer "
            f"({first_line(error)}); leave it unset, or use cpu or one of {torch.cuda.device_count()} CUDA devices."
        ) from error
