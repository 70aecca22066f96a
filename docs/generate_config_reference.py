# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Writes docs/config.md from the docstring and the fields of `ProGRPOConfig`: `python docs/generate_config_reference.py`."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path

from trl_progrpo import ProGRPOConfig


TARGET = Path(__file__).with_name("config.md")

HEAD = """\
# Configuration reference

<!-- Written by docs/generate_config_reference.py; edit the docstring of ProGRPOConfig instead. -->

`ProGRPOConfig` holds the arguments of `ProGRPOTrainer`. It extends `transformers.TrainingArguments` (through TRL's own base
configuration), so everything of it applies too: `output_dir`, `max_steps`, `seed`, `save_steps`, `report_to` and so on. This
page lists only what `ProGRPOConfig` adds, and what it gives another default.

The same names are keyword arguments in Python, keys of the YAML file of `trl-progrpo train --config`, and flags of the command
line (`--num_expansions 48 --prune_steps 5 7 --prune_sizes 24 12`). `trl-progrpo train --help` also lists the arguments for
model, data and rewards, which in Python belong to the trainer.

In the YAML file a field that is a text gets what is written, with or without quotes: `run_name: 1.10`, `007`, `12:30:45` and
`no` are these texts, and only `null`, `none` and nothing at all mean none. `1e-4` is a number in numbers and at every depth
of mappings that have no types of their own, such as `lr_scheduler_kwargs`; there `yes`, `no`, `on` and `off` are truth
values too, while dates, times and what begins with 0 are texts. One value may stand for a list of one. `lr_scheduler_kwargs`
and `optim_args` are tried out before weights are loaded; what the schedule or the optimiser does not take is refused.

{introduction}

Values that cannot work are refused when the object is made, with a sentence that says what to change.
"""

OTHER = "Other defaults of transformers and TRL that differ here"


def reference() -> str:
    """The page as text."""
    introduction, sections = parse_docstring(inspect.getdoc(ProGRPOConfig))
    # In the order of the class: that of `fields` depends on the base class, and so on the version of transformers.
    known = {field.name: field for field in fields(ProGRPOConfig)}
    own = {name: known[name] for name in ProGRPOConfig.__annotations__ if name in known}
    documented = {name for entries in sections.values() for names, _ in entries for name in names}
    missing = sorted(documented - set(own))
    if missing:
        raise ValueError(f"the docstring of ProGRPOConfig describes {missing}, which are not fields of its own.")
    rest = [((name,), field.metadata["help"]) for name, field in own.items() if name not in documented]
    parts = [HEAD.format(introduction=introduction)]
    for title, entries in {**sections, OTHER: rest}.items():
        parts.append(f"## {title}\n")
        parts += [_entry(names, text, own) for names, text in entries]
    return "\n".join(parts)


def parse_docstring(text: str) -> tuple[str, dict[str, list[tuple[tuple[str, ...], str]]]]:
    """The second paragraph, and for every `> title` its entries `(names, description)`."""
    introduction = " ".join(text.split("\n\n")[1].split())
    sections: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    entries: list[tuple[tuple[str, ...], str]] = []
    for line in text.partition("\nRaises:")[0].splitlines():
        title = re.fullmatch(r"> Parameters of (.*)", line)
        head = re.fullmatch(r" {4}(\w+(?:, \w+)*) \(.*\):", line)
        if title:
            entries = sections.setdefault(title[1][0].upper() + title[1][1:], [])
        elif head:
            entries.append((tuple(head[1].split(", ")), ""))
        elif line.startswith(" " * 8) and entries:
            names, description = entries[-1]
            entries[-1] = (names, f"{description} {line.strip()}".strip())
    return introduction, sections


def _entry(names: tuple[str, ...], text: str, own) -> str:
    field = own[names[0]]
    # Not `field.type`: transformers' argument parser replaces it on the class, so it depends on what ran before.
    kind = re.sub(r"\s*\|\s*None", "", ProGRPOConfig.__annotations__[names[0]])
    default = "unset" if field.default is None or field.default is MISSING else f"`{_literal(field.default)}`"
    return f"- {', '.join(f'**`{name}`**' for name in names)} (`{kind}`, default {default}): {text}\n"


def _literal(value) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value:g}" if isinstance(value, float) else repr(value)


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
