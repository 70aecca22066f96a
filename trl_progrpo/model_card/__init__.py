# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The model card of a run: what was trained, what came of it, measured and with its errors, and how to load it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard, ModelCardData

from ..families.loading import EMBEDDED
from ..heldout import evaluation_table
from ..hub import redact
from ..validation import validation_prompts
from ..words import change_in_words, counted, gained, in_figures, number, with_error
from .command import Command, portable_path, portable_text, portable_values, started_with
from .facts import (
    audit_table,
    compute_table,
    describe_device,
    network_evaluations,
    settings_table,
    training_reward,
    versions,
)
from .header import inherited_license, name_on_hub, widget
from .loading_code import loading_code
from .pictures import CardPictures


if TYPE_CHECKING:
    from ..progrpo_trainer import ProGRPOTrainer


__all__ = [
    "CardPictures", "Command", "loading_code", "name_on_hub", "portable_path", "portable_text", "portable_values",
    "started_with", "write_model_card",
]  # fmt: skip


def write_model_card(
    trainer: ProGRPOTrainer,
    output_dir: str,
    model_name: str | None = None,
    dataset_name: str | Sequence[str] | None = None,
    tags: str | Sequence[str] | None = None,
    pictures: bool = True,
    place: str | None = None,
) -> None:
    """
    Writes `README.md` into `output_dir`, and into `images/` beside it the pictures it shows.

    Only what the run knows is stated; rewards without an evaluation before training are given without a gain. Tokens and
    paths of this machine are left out wherever they might stand.

    Args:
        trainer ([`ProGRPOTrainer`]): the run.
        output_dir (`str`): where to.
        model_name (`str`, *optional*): the title; that of the repository, or the folder's name when unset.
        dataset_name (`str` or `list[str]`, *optional*): Hub name of the training prompts.
        tags (`str` or `list[str]`, *optional*): more tags for the header.
        pictures (`bool`, *optional*, defaults to `True`): whether to sample and draw any.
        place (`str`, *optional*): where the card will be found, if it is not `output_dir`.
    """
    from ..plots import prune_group_sizes, prune_table

    args, history = trainer.args, trainer.state.log_history
    shown = trainer.card_pictures.write(output_dir) if pictures else []
    fixed = shown[: len(validation_prompts(trainer))]
    base = name_on_hub(trainer.model_name)
    extra = {tags} if isinstance(tags, str) else set(tags or ())
    kind = {"lora"} if trainer.use_adapter else set()
    # The Hub's page for LoRAs of image models: it needs a base to load and pictures to show.
    kind |= {"template:sd-lora"} if trainer.use_adapter and base and shown else set()
    token = (args.model_init_kwargs or {}).get("token")
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=base,
        base_model_relation=("adapter" if trainer.use_adapter else "finetune") if base else None,
        tags=sorted({"text-to-image", "diffusers", *trainer._tag_names, *kind, *extra}),
        datasets=([dataset_name] if isinstance(dataset_name, str) else list(dataset_name or [])) or None,
        widget=widget(shown) or None,
        **inherited_license(trainer.model_name, token),
    )
    source = trainer.hub_model_id or _path_for_others(place or output_dir)
    card = ModelCard.from_template(
        data,
        template_str=files("trl_progrpo").joinpath("templates/model_card.md").read_text(encoding="utf-8"),
        counted=counted,
        gained=gained,
        num_fixed=len(fixed),
        change=change_in_words(*zip(*(picture.scores for picture in fixed))) if fixed and fixed[0].scores else "",
        date=datetime.now(UTC).date().isoformat(),
        in_figures=in_figures,
        number=number,
        with_error=with_error,
        plain=_plain,
        title=model_name or os.path.basename(os.path.abspath(trainer.hub_model_id or output_dir)),
        base=_describe_base(trainer.model_name),
        what="LoRA adapter" if trainer.use_adapter else "fine-tuned pipeline",
        averaged=trainer.ema is not None,
        best_step=trainer.kept_step,
        has_eval_dataset=trainer.eval_dataset is not None,
        reward_names=trainer.reward_runner.names,
        evaluation=evaluation_table(history, trainer.reward_runner.names, trainer.kept_step),
        trained=training_reward(history),
        pictures=shown,
        has_curve=pictures and trainer.card_pictures.write_curve(output_dir),
        settings=settings_table(trainer),
        funnel=prune_table(history, prune_group_sizes(args, trainer.schedule_choices), args.num_inference_steps),
        audits=audit_table(history),
        nfe=network_evaluations(history, args, trainer.family.nfe_per_row, trainer.geometry.groups_per_process),
        compute=compute_table(history),
        device=describe_device(trainer),
        command=trainer.command,
        versions=versions(),
        load=loading_code(
            trainer,
            source,
            args.hub_revision if trainer.hub_model_id else None,
            trainer.model_name and (base or _path_for_others(trainer.model_name)),
        ),
        steps=trainer.state.global_step,
        args=args,
        lora=trainer.use_adapter,
    )
    card.content = redact(card.content, [args.hub_token, token])
    card.save(os.path.join(output_dir, "README.md"))


def _plain(text: str) -> str:
    """A user's text for Markdown: no code, emphasis, links or pictures."""
    return re.sub(r"([\\`*\[\]])", r"\\\1", text)


def _describe_base(name: str | None) -> str:
    if name is None or name == "":
        return "a diffusers pipeline made in memory"
    if name in EMBEDDED:
        return f"`{name}`, the small model that comes with `trl_progrpo`"
    on_hub = name_on_hub(name)
    return f"[{on_hub}](https://huggingface.co/{on_hub})" if on_hub else f"`{portable_path(name)}`"


def _path_for_others(path: str) -> str:
    """A path that is of use on this machine alone is given by its last part, and shown to be in need of the others."""
    portable = portable_path(path)
    is_there = os.path.abspath(portable) == os.path.abspath(os.path.expanduser(path))
    return portable if is_there else f"path/to/{portable}"
