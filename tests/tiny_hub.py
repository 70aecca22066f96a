# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Tiny random pipelines of the classes that repositories of the Hub have, for what the documentation names."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


FAMILIES = Path(__file__).parent / "families"

MAKERS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("pipelines", "make_sd"),
    "stabilityai/stable-diffusion-xl-base-1.0": ("pipelines", "make_sdxl"),
    "stabilityai/stable-diffusion-3.5-medium": ("pipelines", "make_sd3"),
    "black-forest-labs/FLUX.1-dev": ("pipelines_flux", "tiny_flux"),
    "Qwen/Qwen-Image": ("pipelines_qwen", "make_qwen_image"),
}

# Of images, in pixels: the least that is a multiple of what the family asks for and that all of them take.
SIZE = 16


def save_tiny(name: str, folder: Path) -> str:
    """Writes the tiny pipeline that stands for the repository `name` into `folder`, once; returns the folder."""
    path = folder / name.replace("/", "--")
    if not path.exists():
        if str(FAMILIES) not in sys.path:
            sys.path.insert(0, str(FAMILIES))
        module, maker = MAKERS[name]
        getattr(importlib.import_module(module), maker)().save_pretrained(path)
    return str(path)
