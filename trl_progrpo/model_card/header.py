# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What stands in the YAML header of a model card, for the Hub to read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..families.loading import EMBEDDED


if TYPE_CHECKING:
    from .pictures import Picture


def name_on_hub(name: str | None) -> str | None:
    """A model's or dataset's name if it is that of a repository on the Hub: not a path, nothing embedded or made in memory."""
    if not name or name in EMBEDDED or os.path.exists(os.path.expanduser(name)):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


@lru_cache(maxsize=8)
def inherited_license(model_name: str | None, token: str | None = None) -> dict[str, str]:
    """
    `license`, `license_name` and `license_link` of the base model's own card, those it has; a link into the base's
    repository is made absolute. Empty if there is no such card or it cannot be read.
    """
    base = name_on_hub(model_name)
    path = os.path.join(model_name, "README.md") if model_name else ""
    if base is None and not os.path.isfile(path):
        return {}
    try:
        data = ModelCard.load(base or path, token=token, ignore_metadata_errors=True).data.to_dict()
    # A card that cannot be fetched or parsed must not cost the run its own; the licence is then left open.
    except Exception:
        return {}
    found = {name: data[name] for name in ("license", "license_name", "license_link") if data.get(name)}
    link = found.get("license_link")
    if link and "://" not in link and base is not None:
        found["license_link"] = f"https://huggingface.co/{base}/blob/main/{link}"
    return found


def widget(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """Return the Hub's gallery: pictures after training, every prompt once; those before training are in the card's table."""
    shown = {picture.prompt: picture.after for picture in reversed(pictures)}
    return [{"text": prompt, "output": {"url": path}} for prompt, path in reversed(shown.items())]
