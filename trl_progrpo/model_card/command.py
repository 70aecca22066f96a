# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The command that began a run and the config it read, fit to be shown to others: no secrets, no paths of this machine."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


# Words of names such as `hub_token`, `AWS_SECRET_ACCESS_KEY` or `OPENAI_KEY`; `max_tokens` and `monkey` are none.
_SECRET = r"(?:.*[_-])?(?:token|(?:api)?key|passw(?:or)?d|passphrase|secret.*|credentials?|auth)(?:[_-]id)?"
_SECRET_FLAG = re.compile(rf"--?{_SECRET}", re.IGNORECASE)
_SECRET_KEY = re.compile(_SECRET, re.IGNORECASE)
# Of an environment, where anything may stand under any name, only what is known to hold no secret.
_SHOWN = re.compile(
    r"(?:ACCELERATE|CUDA|HF|MKL|NCCL|OMP|PYTORCH|TOKENIZERS|TORCH|TRANSFORMERS)_\w+|WANDB_(?:MODE|PROJECT)"
)
# After the start, or what stands before a value in shells, YAML and JSON; so neither in `a/b` nor in `http://host/a`.
_PATH = re.compile(r"""(?<![^\s'"=,;:(\[{])~?/[^\s'"=,;:()\[\]{}/]+(?:/+[^\s'"=,;:()\[\]{}/]+)*/*""")


@dataclass(frozen=True)
class Command:
    """
    Attributes:
        line (`str`): one shell command.
        config_name (`str`, *optional*): the file after `--config`, as `line` has it.
        config (`str`, *optional*): that file's keys, as YAML.
    """

    line: str
    config_name: str | None = None
    config: str | None = None


def started_with() -> Command | None:
    """
    The command line of this process, and the YAML file it names; `None` in a notebook or an interactive session.

    Flags and keys that name a token, key or password are left out (tokens elsewhere are for [`~hub.redact`]), and paths
    are made portable, see [`portable_path`].
    """
    program, *rest = sys.argv
    if not program or hasattr(sys, "ps1") or "ipykernel" in os.path.basename(os.path.dirname(program)):
        return None
    ours = os.path.basename(program) == "trl-progrpo" or os.path.dirname(program).endswith(
        os.path.join("trl_progrpo", "cli")
    )
    command = ["trl-progrpo"] if ours else ["python", portable_path(program)]
    for previous, argument in zip(["", *rest], rest):
        if not _SECRET_FLAG.fullmatch(argument.partition("=")[0]) and not _SECRET_FLAG.fullmatch(previous):
            command.append(portable_text(argument))
    path = _config_path(rest)
    config = _config(path)
    return Command(shlex.join(command), portable_path(path) if config else None, config)


def portable_path(path: str) -> str:
    """A path as somebody else could use it: relative to the working folder if it lies below, else its last part alone."""
    full = os.path.normpath(os.path.expanduser(path))
    if not os.path.isabs(full):
        return path
    below = os.path.relpath(full, os.getcwd())
    return os.path.basename(full) if below.startswith(os.pardir) else below


def portable_text(text: str) -> str:
    """`text` with every absolute path in it made portable; one that is a path as a whole, or after `=`, may have spaces."""
    flag, equals, value = text.partition("=")
    if equals and re.fullmatch(r"--?[\w-]+", flag):
        return f"{flag}={portable_text(value)}"
    if os.path.isabs(os.path.expanduser(text)) and "\n" not in text:
        return portable_path(text)
    return _PATH.sub(lambda match: portable_path(match[0]), text)


def portable_values(value: Any) -> Any:
    """The same for all texts in what JSON or YAML can hold."""
    if isinstance(value, dict):
        return {key: portable_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [portable_values(item) for item in value]
    return portable_text(value) if isinstance(value, str) else value


def _config_path(arguments: Sequence[str]) -> str | None:
    for previous, argument in zip(["", *arguments], arguments):
        if previous == "--config":
            return argument
        if argument.startswith("--config="):
            return argument.partition("=")[2]
    return None


def _config(path: str | None) -> str | None:
    """The keys of a YAML file; `None` if there is no such file, for it may be another program's `--config`."""
    # As nodes, which are written as they were read: `no` stays `no`, and `1e-4` and `1.10` what they are.
    try:
        config = (
            yaml.compose(Path(path).expanduser().read_text(encoding="utf-8-sig"), yaml.SafeLoader) if path else None
        )
        if not isinstance(config, yaml.MappingNode):
            return None
        _make_portable(config)
    # The last for a node that holds itself.
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    for entry in list(config.value):
        key, variables = entry
        if key.value == "env" and isinstance(variables, yaml.MappingNode):
            variables.value = [pair for pair in variables.value if _SHOWN.fullmatch(str(pair[0].value))]
            if not variables.value:
                config.value.remove(entry)
    return yaml.serialize(config, Dumper=yaml.SafeDumper, allow_unicode=True, width=110).strip()


def _make_portable(node: yaml.Node) -> None:
    """Leave out keys that name secrets, and make paths portable, within `node` and in place."""
    if isinstance(node, yaml.MappingNode):
        node.value = [pair for pair in node.value if not _SECRET_KEY.fullmatch(str(pair[0].value))]
        for _, value in node.value:
            _make_portable(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _make_portable(value)
    elif node.tag == "tag:yaml.org,2002:str":
        node.value = portable_text(node.value)
