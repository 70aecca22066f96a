# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Arguments of `trl-progrpo train` as a YAML file that gives them again."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, fields
from enum import Enum
from typing import Any


_LEFT_OUT = ("dry_run", "streaming")


def resolved_config(*arguments: Any) -> dict[str, Any]:
    """
    The keys of a YAML file that gives these dataclasses again: every option of this package, and those of the libraries
    below it that differ from their defaults. Never a token.
    """
    from ..progrpo_config import ProGRPOConfig
    from .arguments import COMMON

    config: dict[str, Any] = {}
    for dataclass_ in arguments:
        ours, standard = set(COMMON), None
        if isinstance(dataclass_, ProGRPOConfig):
            ours |= set(ProGRPOConfig.__annotations__)
            # What a field means when it is left alone is only known to an object of the class.
            standard = ProGRPOConfig(output_dir=dataclass_.output_dir)
        for f in fields(dataclass_):
            value = getattr(dataclass_, f.name, None)
            if not f.init or f.name in _LEFT_OUT or "token" in f.name or not _is_plain(value):
                continue
            if value is None:
                # What is unset by itself need not be said; of the rest it is what the user has switched off.
                if f.default is None or f.default is MISSING or (standard is not None and f.name not in ours):
                    continue
                value = "none"
            if standard is None or f.name in ours or value != getattr(standard, f.name):
                config[f.name] = _plain(value)
    if not config.get("datasets"):
        config.pop("datasets", None)
    return config


def to_yaml(config: dict[str, Any], unicode: bool = True) -> str:
    """Return keys in their order, lists of numbers on one line; without `unicode` other letters than ASCII as escapes."""
    from .config_file import dump_yaml

    return "".join(
        dump_yaml({key: value}, flow, unicode)
        for key, value in config.items()
        for flow in [None if isinstance(value, list) and not any(isinstance(item, dict) for item in value) else False]
    )


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(_plain(value))
    except TypeError:
        return False
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if not re.fullmatch(r"(.*_)?token", str(key))}
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) is not None}
    return value
