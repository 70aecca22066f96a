"""The embedded default: a shapes world, its verifier and dataset, and a tiny stable diffusion pipeline trained on it.

`import trl_progrpo.tiny` is instant: numpy, `datasets` and torch are imported by the first call that needs them.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .data import load_shapes
    from .loading import load_pipeline, load_preview_decoder
    from .reward import shapes_reward, shapes_strict_reward
    from .verifier import Verdict, verify


__all__ = [
    "Verdict",
    "load_pipeline",
    "load_preview_decoder",
    "load_shapes",
    "model_path",
    "preview_decoder_path",
    "shapes_reward",
    "shapes_strict_reward",
    "verify",
]

_MODULE_OF = {
    "Verdict": "verifier",
    "load_pipeline": "loading",
    "load_preview_decoder": "loading",
    "load_shapes": "data",
    "shapes_reward": "reward",
    "shapes_strict_reward": "reward",
    "verify": "verifier",
}


def model_path() -> Path:
    """The folder of the tiny pipeline, for `StableDiffusion3Pipeline.from_pretrained`; see `load_pipeline`."""
    return Path(__file__).parent / "model"


def preview_decoder_path() -> Path:
    """The folder of the preview decoder, for `AutoencoderTiny.from_pretrained`; it decodes scaled latents."""
    return model_path() / "preview_decoder"


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
