# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Reward functions and the runner that calls them."""

from .base import REWARDS, RewardFunc, image_type, resolve_reward, reward_name
from .runner import RewardRunner, to_pil
from .shapes import shapes, shapes_strict


__all__ = [
    "REWARDS",
    "RewardFunc",
    "RewardRunner",
    "image_type",
    "resolve_reward",
    "reward_name",
    "shapes",
    "shapes_strict",
    "to_pil",
]
