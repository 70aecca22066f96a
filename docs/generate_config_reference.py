# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Writes docs/config.md from the docstring and the fields of `ProGRPOConfig`: `python docs/generate_config_reference.py`."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path

from trl_progrpo import ProGRPOConfig
from trl_progrpo.inherited import UNFIT_OPTIMIZERS
from trl_progrpo.options import INHERITED_RULES, RESUME_RULES, resume_rule


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

OPTIMIZERS = """\
## Optimisers

| `optim` | Needs |
|---|---|
| `adamw_torch_fused` (default), `adamw_torch`, `adafactor`, `sgd`, `adagrad`, `rmsprop` | nothing else |
| `adamw_torch_8bit`, `adamw_torch_4bit` | `pip install torchao` |
| `adamw_8bit`, `adamw_bnb_8bit`, `paged_adamw_32bit`, `paged_adamw_8bit`, `ademamix`, \
`ademamix_8bit`, `paged_ademamix_32bit`, `paged_ademamix_8bit`, `lion_32bit`, `lion_8bit`, `paged_lion_32bit`, \
`paged_lion_8bit`, `rmsprop_bnb`, `rmsprop_bnb_8bit`, `rmsprop_bnb_32bit` | `pip install bitsandbytes` |
| `schedule_free_adamw`, `schedule_free_sgd`, `schedule_free_radam` | `pip install schedulefree` |
| `stable_adamw` | `pip install torch-optimi` |
| `adamw_anyprecision`, `adamw_torch_xla`, `adamw_torch_npu_fused` | torchdistx, a TPU, an NPU; not tried |

One that is not installed is refused when the configuration is made. Refused in any case are:

{refused}

The schedule-free optimisers keep an average of the weights in the place of a schedule. Rollouts and updates use the weights
in training, so that their log-probabilities agree; evaluation, and everything that is saved, has the average, and so have
the weights when `train()` returns. Checkpoints hold both. Use `lr_scheduler_type: constant`; `warmup_steps` is read by the
first two; `ema_decay` is refused, as it would be a second average.

## Learning rate schedules

| `lr_scheduler_type` | `lr_scheduler_kwargs` |
|---|---|
| `constant` (default), `constant_with_warmup`, `linear` | none |
| `cosine`, `cosine_with_restarts` | `num_cycles` |
| `polynomial` | `lr_end`, `power` |
| `inverse_sqrt` | `timescale` |
| `cosine_with_min_lr`, `cosine_warmup_with_min_lr` | `min_lr` or `min_lr_rate`, one of which is needed |
| `warmup_stable_decay` | `num_decay_steps`, which is needed, and others |
| `reduce_lr_on_plateau` | those of `torch.optim.lr_scheduler.ReduceLROnPlateau` |
| `greedy` | those of `transformers.optimization.GreedyLR`; `min_lr` is 0 unless given |

The last two watch the held-out reward, or what `metric_for_best_model` names, at every evaluation: the rate is cut when it
no longer rises (`mode` follows `greater_is_better`), and `greedy` raises it while it does, up to its `max_lr`, which is 1
unless it is given. `warmup_steps` does nothing with them, nor with `constant`.
"""

RESUMING = """\
## Resuming with other values

What becomes of an option that has another value when a run is [resumed](reliability.md#resuming) than in the run that saved
the checkpoint; refused means by name, before anything is loaded. The dataset must be the same, which is not checked.

| Options | In a resumed run |
|---|---|
{rows}
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
    refused = [f"- {_names(names)}: {reason}" for reason, names in _by_value(UNFIT_OPTIMIZERS).items()]
    rules = _by_value({**{name: resume_rule(field) for name, field in own.items()}, **INHERITED_RULES})
    rows = [f"| {_names(rules[rule])} | {text} |" for rule, text in RESUME_RULES.items()]
    parts += [OPTIMIZERS.format(refused="\n".join(refused)), RESUMING.format(rows="\n".join(rows))]
    return "\n".join(parts)


def _by_value(mapping: dict[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, value in mapping.items():
        groups.setdefault(value, []).append(key)
    return groups


def _names(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


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
