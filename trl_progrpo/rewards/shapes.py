# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The shapes world's verifier as registered reward functions."""

from __future__ import annotations

import torch

from ..tiny import shapes_reward, shapes_strict_reward
from ..tiny.world import parse_caption
from .base import REWARDS, image_type


def _check_row(prompt: str) -> None:
    parse_caption(prompt)


@REWARDS.register("shapes")
@image_type("pt")
def shapes(prompts: list[str], images: torch.Tensor, **columns) -> list[float]:
    """Graded agreement of picture and caption in [0, 1]; see [`trl_progrpo.tiny.verify`]. Under 1 ms an image."""
    return shapes_reward(prompts, images)


@REWARDS.register("shapes_strict")
@image_type("pt")
def shapes_strict(prompts: list[str], images: torch.Tensor, **columns) -> list[float]:
    """1 where the picture shows exactly what its caption says, else 0."""
    return shapes_strict_reward(prompts, images)


for _reward in (shapes, shapes_strict):
    _reward.check_row, _reward.dataset_columns = _check_row, ()
