# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Model families: one file each, chosen by the pipeline class in `model_index.json`."""

from .base import FAMILIES, Family, register_family
from .loading import family_class, load_pipeline, load_preview_decoder, pipeline_class_name
from .sd3 import StableDiffusion3Family


__all__ = [
    "FAMILIES",
    "Family",
    "StableDiffusion3Family",
    "family_class",
    "load_pipeline",
    "load_preview_decoder",
    "pipeline_class_name",
    "register_family",
]
