"""Load the shipped model with stock diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import model_path, preview_decoder_path


if TYPE_CHECKING:
    from diffusers import AutoencoderTiny, StableDiffusion3Pipeline


def load_pipeline(path: str | Path | None = None, **kwargs) -> StableDiffusion3Pipeline:
    """
    Load the tiny pipeline, in float32 and without its progress bar.

    Stock diffusers lists the third text encoder as required, so `from_pretrained` must hear that it is absent on
    purpose; this is the only thing done here beyond `StableDiffusion3Pipeline.from_pretrained(path)`.

    Args:
        path (`str` or `Path`, *optional*):
            Folder of a pipeline made by `scripts/build_tiny_model.py`. Defaults to the one in the package.
        kwargs:
            Passed on to `from_pretrained`.
    """
    from diffusers import StableDiffusion3Pipeline

    absent = {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Pipeline.from_pretrained(path or model_path(), **(absent | kwargs))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_preview_decoder(path: str | Path | None = None, **kwargs) -> AutoencoderTiny:
    """
    Load the preview decoder. `decoder.decode(latents).sample` maps the scaled latents that the denoiser sees, of shape
    `(N, 4, 8, 8)`, to images `(N, 3, 32, 32)` around [-1, 1].

    Args:
        path (`str` or `Path`, *optional*):
            Folder of a decoder made by `scripts/build_tiny_model.py`. Defaults to the one in the package.
        kwargs:
            Passed on to `from_pretrained`.
    """
    from diffusers import AutoencoderTiny

    return AutoencoderTiny.from_pretrained(path or preview_decoder_path(), **kwargs)
