"""The verifier as reward functions with TRL's signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .verifier import Verdict, verify


if TYPE_CHECKING:
    import torch
    from PIL import Image

    Images = Sequence[Image.Image] | torch.Tensor | np.ndarray


def shapes_reward(prompts: Sequence[str], images: Images, **columns) -> list[float]:
    """
    Graded reward: how much of each caption its image shows.

    Args:
        prompts (`Sequence[str]`):
            N captions of the shapes world.
        images (`Sequence[PIL.Image.Image]`, `torch.Tensor` or `np.ndarray`):
            N pictures of 32x32 pixels; or a floating point tensor of shape `(N, 3, 32, 32)` in [0, 1], on any device;
            or an array as `verify` takes it.
        columns:
            Further dataset columns; not used.

    Returns:
        `list[float]`: N rewards in [0, 1].

    Raises:
        `ValueError`: if a prompt is not a caption of the shapes world, or if an image is not 32x32.
    """
    return _verdict(prompts, images).graded.tolist()


def shapes_strict_reward(prompts: Sequence[str], images: Images, **columns) -> list[float]:
    """Strict reward: 1.0 where the image shows exactly its caption, else 0.0. Arguments as for `shapes_reward`."""
    return _verdict(prompts, images).strict.astype(float).tolist()


def _verdict(prompts: Sequence[str], images: Images) -> Verdict:
    return verify(_as_array(images), list(prompts))


def _as_array(images: Images) -> np.ndarray:
    if isinstance(images, np.ndarray):
        return images
    # A tensor is told by its methods, so that pictures can be judged without importing torch.
    if hasattr(images, "detach"):
        array = images.detach().float().cpu().numpy()
        if array.ndim != 4 or array.shape[1] != 3:
            raise ValueError(f"`images` is a tensor of shape {tuple(array.shape)}; give (N, 3, 32, 32) in [0, 1].")
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise ValueError(f"`images` holds pictures of the sizes {sorted(sizes)}; give pictures of 32x32 pixels only.")
    pictures = [np.asarray(image.convert("RGB"), dtype=np.uint8) for image in images]
    return np.stack(pictures) if pictures else np.zeros((0, 32, 32, 3), dtype=np.uint8)
