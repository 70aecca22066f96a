# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Reward functions and the runner that calls them."""

from .aesthetic import Aesthetic
from .base import REWARDS, RewardFunc, image_type, resolve_reward, reward_name
from .calls import REWARD_ERROR_KINDS, RewardError
from .clip_score import ClipScore
from .compositional import GenEvalReward
from .hpsv2 import HPSv2
from .jpeg import jpeg_compressibility, jpeg_incompressibility
from .ocr import OcrReward
from .pickscore import PickScore
from .remote import RemoteReward
from .rows import RowError, Unreadable, checked_columns, read_columns, row_checker
from .runner import ON_REWARD_ERROR, RewardRunner, to_pil
from .shapes import shapes, shapes_strict
from .siglip import SiglipScore


__all__ = [
    "Aesthetic",
    "ClipScore",
    "GenEvalReward",
    "HPSv2",
    "ON_REWARD_ERROR",
    "OcrReward",
    "PickScore",
    "REWARDS",
    "REWARD_ERROR_KINDS",
    "RemoteReward",
    "RewardError",
    "RewardFunc",
    "RewardRunner",
    "RowError",
    "SiglipScore",
    "Unreadable",
    "checked_columns",
    "image_type",
    "jpeg_compressibility",
    "jpeg_incompressibility",
    "read_columns",
    "resolve_reward",
    "reward_name",
    "row_checker",
    "shapes",
    "shapes_strict",
    "to_pil",
]
