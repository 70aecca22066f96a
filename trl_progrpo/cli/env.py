# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`trl-progrpo env`: what a bug report needs to say."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata

from .base import CommandParser


PACKAGES = {
    "PyTorch": "torch",
    "Diffusers": "diffusers",
    "Transformers": "transformers",
    "TRL": "trl",
    "PEFT": "peft",
    "Accelerate": "accelerate",
    "Datasets": "datasets",
    "HF Hub": "huggingface_hub",
}
"""Display name -> distribution name."""


def run(argv: Sequence[str]) -> int:
    """Prints [`environment`] as a list for copying."""
    parser = CommandParser(
        prog="trl-progrpo env",
        description="Print versions and hardware for a bug report; no paths, names or tokens.",
    )
    parser.parse_args(argv)
    lines = [f"- {name}: {value}" for name, value in environment().items()]
    print("\nCopy-paste the following information when reporting an issue:\n\n" + "\n".join(lines) + "\n")
    return 0


def environment() -> dict[str, str]:
    """Platform, versions and accelerators, by display name."""
    from .. import __version__

    return {
        "Platform": platform.platform(),
        "Python version": platform.python_version(),
        "trl_progrpo version": __version__,
        **{f"{name} version": _version(package) for name, package in PACKAGES.items()},
        "accelerator(s)": _accelerators(),
    }


def _version(package: str) -> str:
    # Of the installed distribution: importing eight packages to read eight strings takes seconds.
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _accelerators() -> str:
    try:
        import torch
    except ImportError:
        return "unknown, as PyTorch cannot be imported"
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    accelerator = getattr(torch, "accelerator", None)
    if accelerator is not None and accelerator.is_available():
        return f"{accelerator.device_count()} x {accelerator.current_accelerator().type}"
    return "cpu"
