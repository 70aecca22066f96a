# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Whether the text that a prompt asks for can be read in the image."""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from .base import REWARDS
from .learned_images import to_rgb


# Measured on rendered words from 64 to 256 pixels: small pictures are enlarged to 128 before detection, and short lines are
# not padded to the length of a sentence; both make reading several times cheaper and cost no accuracy there.
PARAMETERS = {
    "Det.limit_type": "min",
    "Det.limit_side_len": 128,
    "Rec.rec_img_shape": [3, 48, 160],
    # Larger pictures are read at this size; detection takes time per pixel.
    "Global.max_side_len": 512,
    # Upside-down text is no rendered text.
    "Global.use_cls": False,
    "Global.log_level": "error",
    # Rewards run beside sampling, and several processes may share the cores.
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
}

# Single quotes are also apostrophes: they count between words only, and where there is nothing in double quotes.
_DOUBLE_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')
_SINGLE_QUOTED = re.compile(r"(?<!\w)'((?:[^']|'(?=\w))+)'(?!\w)|‘((?:[^’]|’(?=\w))+)’(?!\w)")


class OcrReward:
    """
    `1 - edit_distance(read, target) / len(target)`, not below 0: how much of the target text can be read.

    The text-rendering task of Liu et al., "Flow-GRPO: Training Flow Matching Models via Online RL" (arXiv 2505.05470), with one
    difference: there, a picture in which the target occurs among other text has the full reward. Here surplus letters cost
    as much as missing ones, so that writing more never pays, and a picture with twice the text asked for has nothing left.
    White space, case and the width of characters are ignored. Text is read line by line, from the top left.

    The target is the dataset column `text`, where `None` or an empty text means that the reward does not apply. Without such a
    column it is what the prompt has in quotes; several quoted parts are put together in their order.

    * Range: 0 to 1. For Stable Diffusion 3.5 Medium, Flow-GRPO reports a rise from 0.59 to 0.92 (its own definition).
    * Reader: PP-OCRv6 small in rapidocr on onnxruntime, weights in the package; Apache-2.0.
    * Cost: CPU only; see docs/benchmarks/rewards.md. Images above 512 pixels are read at 512.

    Raises:
        ValueError: if rapidocr is not installed, or a prompt has no target.
    """

    __name__ = "ocr"
    image_type = "pil"

    def __init__(self):
        self._engine: Any = None
        self._loading = threading.Lock()

    def load(self) -> OcrReward:
        """
        Loads the reader, once; returns itself.

        Raises:
            ValueError: if rapidocr or onnxruntime is not installed.
        """
        with self._loading:
            if self._engine is None:
                self._engine = _load_engine()
        return self

    def __call__(
        self,
        prompts: Sequence[str],
        images: Sequence[Image.Image],
        text: Sequence[str | None] | None = None,
        **columns,
    ) -> list[float | None]:
        """
        One score per image.

        Args:
            prompts (`Sequence[str]` of length `B`): give the targets when there is no column `text`.
            images (`Sequence[PIL.Image.Image]` of length `B`): of any size and mode; transparency is put on white.
            text (`Sequence[str]` of length `B`, *optional*): the targets.
            columns: further dataset columns and `preview`; not used.

        Raises:
            ValueError: if a target is missing or no text, an entry is not a PIL image, or the reader is not installed.
        """
        targets = _quoted(prompts) if text is None else _column(text)
        self.load()
        return [text_agreement(self.read(image), target) if target else None for image, target in zip(images, targets)]

    def read(self, image: Image.Image) -> str:
        """All text of an image, line by line from the top left, without separators; `""` where there is none."""
        # The reader was trained on images of OpenCV, whose channels go from blue to red.
        pixels = np.ascontiguousarray(np.asarray(to_rgb(image))[:, :, ::-1])
        return "".join(getattr(self.load()._engine(pixels), "txts", None) or ())


def text_agreement(read: str, target: str) -> float:
    """
    `1 - edit_distance(read, target) / len(target)`, not below 0, with white space, case and width of characters ignored.

    Raises:
        ValueError: if nothing is left of the target.
    """
    read, target = _plain(read), _plain(target)
    if not target:
        raise ValueError("the target text is empty; give at least one letter.")
    # A text longer by the whole target is at 0 already, whatever it says.
    read = read[: 2 * len(target)]
    return max(0.0, 1 - _edit_distance(read, target) / len(target))


def _load_engine() -> Any:
    try:
        import onnxruntime  # noqa: F401
        from rapidocr import RapidOCR
    except ImportError as error:
        raise ValueError(
            f'reward `ocr` needs the packages rapidocr and onnxruntime ({error}); run `pip install "trl-progrpo[ocr]"`.'
        ) from error
    engine = RapidOCR(params=dict(PARAMETERS))
    # It reads its weights at first use, and that of a step it is not asked for never; what it is asked for once stays.
    blank = np.full((64, 64, 3), 255, dtype=np.uint8)
    for use_det in (True, False, True):
        engine(blank, use_det=use_det)
    return engine


def _quoted(prompts: Sequence[str]) -> list[str]:
    targets = []
    for prompt in prompts:
        parts = _DOUBLE_QUOTED.findall(prompt) or _SINGLE_QUOTED.findall(prompt)
        target = _plain("".join("".join(part) for part in parts))
        if not target:
            raise ValueError(
                f"reward `ocr` finds nothing in quotes in the prompt {prompt!r}; put the text to look for in double quotes, or "
                "give the dataset a column `text` (None where the reward does not apply)."
            )
        targets.append(target)
    return targets


def _column(text: Sequence[str | None]) -> list[str]:
    for value in text:
        if value is not None and not isinstance(value, str):
            raise ValueError(
                f"the dataset column `text` holds {value!r}, a {type(value).__name__}; give the text that reward `ocr` looks "
                "for, or None where it does not apply."
            )
    return [_plain(value or "") for value in text]


def _plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _edit_distance(first: str, second: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


REWARDS.register("ocr")(OcrReward())
