# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The pictures of a model card: the validation prompts before and after training, and the reward curve."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..adapters import trainable_parameters
from ..rewards.runner import to_pil
from ..validation import validation_prompts


if TYPE_CHECKING:
    from PIL import Image

    from ..progrpo_trainer import ProGRPOTrainer


FOLDER = "images"
CURVE = f"{FOLDER}/reward_curve.png"
MIN_SIDE = 256
"""Pixels; smaller pictures are enlarged by a whole number, pixel by pixel, for a page would blur or hide them."""


@dataclass(frozen=True)
class Picture:
    """One prompt; `before` and `after` are paths beside the card, of pictures from the same initial noise."""

    prompt: str
    after: str
    before: str | None


class CardPictures:
    """
    Samples the validation prompts with and without what was trained, once for every state of the weights.

    Args:
        trainer ([`ProGRPOTrainer`]): samples them.
    """

    def __init__(self, trainer: ProGRPOTrainer):
        self.trainer = trainer
        self._before: torch.Tensor | None = None
        self._after: torch.Tensor | None = None
        self._state: tuple[float, ...] | None = None

    def remember_before(self) -> None:
        """To be called before the first update of a full fine-tune, which does not keep the base weights."""
        if self._wanted():
            self._before = self.trainer.generate(self._prompts())

    def write(self, directory: str) -> list[Picture]:
        """Writes the pictures below `directory`; none before the first update, or with `num_validation_prompts=0`."""
        if self.trainer.state.global_step == 0 or not self._wanted():
            return []
        try:
            self._sample()
        # Out of memory, above all: the weights are saved by now, and a card without pictures is still a card.
        except RuntimeError as error:
            warnings.warn(f"the model card has no pictures, as sampling them failed ({error}).", stacklevel=2)
            return []
        prompts, paths = self._prompts(), {}
        for name, images in (("before", self._before), ("after", self._after)):
            for index, image in enumerate(to_pil(images) if images is not None else []):
                paths[name, index] = f"{FOLDER}/{name}_{index}.png"
                os.makedirs(os.path.join(directory, FOLDER), exist_ok=True)
                _enlarged(image).save(os.path.join(directory, paths[name, index]))
        return [Picture(prompt, paths["after", i], paths.get(("before", i))) for i, prompt in enumerate(prompts)]

    def write_curve(self, directory: str) -> bool:
        """Draws the reward curve below `directory`; not if there is but one point of it."""
        from ..plots import reward_curve

        history = self.trainer.state.log_history
        if sum("reward" in entry or "eval_reward" in entry for entry in history) < 2:
            return False
        return reward_curve(history, Path(directory, CURVE)) is not None

    def _wanted(self) -> bool:
        # Sharded weights take all processes to sample, and cards are written by one.
        trainer = self.trainer
        sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        return trainer.args.num_validation_prompts > 0 and not sharded and bool(self._prompts())

    def _prompts(self) -> list[str]:
        return validation_prompts(self.trainer)

    def _sample(self) -> None:
        trainer = self.trainer
        if self._before is None and trainer.use_adapter:
            self._before = trainer.generate(self._prompts(), adapter=False)
        weights = trainer.ema.shadow_params if trainer.ema else trainable_parameters(trainer.family.denoiser)
        state = tuple(weight.detach().double().sum().item() for weight in weights)
        if state != self._state:
            self._after, self._state = trainer.generate(self._prompts()), state


def _enlarged(image: Image.Image) -> Image.Image:
    factor = max(1, MIN_SIDE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), resample=0)
