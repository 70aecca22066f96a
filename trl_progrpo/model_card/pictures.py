# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The pictures of a model card: the validation prompts before and after training, and the reward curve."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..adapters import trainable_parameters
from ..rewards.runner import to_pil
from ..validation import validation_prompts, validation_rows, validation_scores, with_gain_cases


if TYPE_CHECKING:
    from PIL import Image

    from ..progrpo_trainer import ProGRPOTrainer


FOLDER = "images"
CURVE = f"{FOLDER}/reward_curve.png"
MIN_SIDE = 256
"""Pixels; smaller pictures are enlarged by a whole number, pixel by pixel, for a page would blur or hide them."""


@dataclass(frozen=True)
class Picture:
    """
    One prompt.

    Attributes:
        prompt (`str`): of both pictures.
        after (`str`): path beside the card, of the picture after training.
        before (`str`, *optional*): of the one before, from the same initial noise.
        scores (`tuple[float, float]`, *optional*): rewards before and after.
        case (`str`, *optional*): what it was chosen for, as [`~validation.gain_cases`] calls it.
    """

    prompt: str
    after: str
    before: str | None = None
    scores: tuple[float, float] | None = None
    case: str | None = None


class CardPictures:
    """
    Samples the validation prompts with and without what was trained, once for every state of the weights, and the prompts that
    gained and lost most beside them.

    Args:
        trainer ([`ProGRPOTrainer`]): samples them.
    """

    def __init__(self, trainer: ProGRPOTrainer):
        self.trainer = trainer
        self._before: torch.Tensor | None = None
        self._shown: tuple[list[Any], list[torch.Tensor | None], list[str | None]] = ([], [], [])
        self._scores: list[tuple[float, float]] | None = None
        self._state: tuple[Any, ...] | None = None

    def remember_before(self) -> None:
        """Sample before the first update of a full fine-tune, which does not keep the base weights."""
        if self._wanted():
            self._before = self.trainer.generate(validation_prompts(self.trainer))

    def write(self, directory: str) -> list[Picture]:
        """Write the pictures below `directory`; none before the first update, or with `num_validation_prompts=0`."""
        if self.trainer.state.global_step == 0 or not self._wanted():
            return []
        try:
            self._sample()
        # Out of memory, above all: the weights are saved by now, and a card without pictures is still a card.
        except RuntimeError as error:
            warnings.warn(f"the model card has no pictures, as sampling them failed ({error}).", stacklevel=2)
            return []
        (rows, shown, cases), paths = self._shown, {}
        for name, images in zip(("before", "after"), shown):
            for index, image in enumerate(to_pil(images) if images is not None else []):
                paths[name, index] = f"{FOLDER}/{name}_{index}.png"
                os.makedirs(os.path.join(directory, FOLDER), exist_ok=True)
                _enlarged(image).save(os.path.join(directory, paths[name, index]))
        return [
            Picture(
                row[self.trainer.args.prompt_column],
                paths["after", i],
                paths.get(("before", i)),
                self._scores[i] if self._scores else None,
                case,
            )
            for i, (row, case) in enumerate(zip(rows, cases))
        ]

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
        return trainer.args.num_validation_prompts > 0 and not sharded and bool(validation_prompts(trainer))

    def _sample(self) -> None:
        trainer = self.trainer
        weights = trainer.ema.shadow_params if trainer.ema else trainable_parameters(trainer.family.denoiser)
        step = trainer.kept_step or trainer.state.global_step
        state = (step, *(weight.detach().double().sum().item() for weight in weights))
        if state == self._state:
            return
        rows = validation_rows(trainer)
        prompts = [row[trainer.args.prompt_column] for row in rows]
        if self._before is None and trainer.use_adapter:
            self._before = trainer.generate(prompts, adapter=False)
        self._shown = with_gain_cases(trainer, step, rows, [self._before, trainer.generate(prompts)])
        self._scores, self._state = self._scored(), state

    def _scored(self) -> list[tuple[float, float]] | None:
        rows, shown, _ = self._shown
        if shown[0] is None:
            return None
        try:
            return list(zip(*(validation_scores(self.trainer, rows, images) for images in shown)))
        # A reward that cannot be asked any more costs the scores, and not the card.
        except Exception as error:
            warnings.warn(
                f"the pictures of the model card have no rewards, as scoring them failed ({error}).", stacklevel=2
            )
            return None


def _enlarged(image: Image.Image) -> Image.Image:
    factor = max(1, MIN_SIDE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), resample=0)
