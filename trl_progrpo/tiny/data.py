"""The captions of the shapes world as a `datasets.Dataset`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .world import captions_of


if TYPE_CHECKING:
    from datasets import Dataset


def load_shapes(split: str = "train") -> Dataset:
    """
    Every caption of one split, once each and always in the same order.

    The split is compositional: the pairs of objects and the counts of `"test"` never occur in `"train"`, in any order
    or relation, while every colour, shape, number and relation does. Single objects are in `"train"` only.

    Args:
        split (`str`, *optional*, defaults to `"train"`):
            `"train"` or `"test"`.

    Returns:
        `datasets.Dataset` with the columns `prompt` (the caption) and `kind` (`"single"`, `"count"`, `"pair"` or
        `"relation"`).

    Raises:
        `ValueError`: for any other split.
    """
    captions = captions_of(split)

    from datasets import Dataset

    return Dataset.from_dict(
        {"prompt": [str(caption) for caption in captions], "kind": [caption.kind for caption in captions]}
    )
