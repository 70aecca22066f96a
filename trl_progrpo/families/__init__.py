# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Model families: one file each, chosen by the pipeline class in `model_index.json`."""

from .base import FAMILIES, Family, register_family
from .flux import FluxFamily
from .flux2 import Flux2Family, Flux2KleinFamily
from .loading import family_class, load_pipeline, load_preview_decoder, pipeline_class_name
from .qwen_image import QwenImageFamily
from .sana import SanaFamily
from .sd import StableDiffusionFamily
from .sd3 import StableDiffusion3Family
from .sdxl import StableDiffusionXLFamily
from .z_image import ZImageFamily


__all__ = [
    "FAMILIES",
    "Family",
    "Flux2Family",
    "Flux2KleinFamily",
    "FluxFamily",
    "QwenImageFamily",
    "SanaFamily",
    "StableDiffusion3Family",
    "StableDiffusionFamily",
    "StableDiffusionXLFamily",
    "ZImageFamily",
    "family_class",
    "load_pipeline",
    "load_preview_decoder",
    "pipeline_class_name",
    "register_family",
]
