# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What a report needs and transformers does not write: pictures, one group, command and versions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hub import redact
from ..model_card import portable_text
from ..model_card.facts import describe_device, describe_weights, versions
from ..policies import POLICIES, noise_option
from ..rewards import to_pil
from .run_folder import FILE, FOLDER
from .sheets import write_sheet


if TYPE_CHECKING:
    import torch
    from PIL import Image

    from ..monitoring import WatchedGroup
    from ..progrpo_trainer import ProGRPOTrainer


MAX_SIDE = 512
"""Pixels of the longer side of images before and after; larger ones are reduced."""


def record_run(
    trainer: ProGRPOTrainer,
    prompts: Sequence[str] = (),
    images: Sequence[torch.Tensor] = (),
    labels: Sequence[str] = (),
    scores: Sequence[Sequence[float]] = (),
    cases: Sequence[str | None] = (),
    num_fixed: int | None = None,
    data: str | None = None,
) -> Path:
    """
    Writes `report/run.json` and images beside it into the output folder, for [`write_report`].

    Args:
        trainer ([`ProGRPOTrainer`]): the run.
        prompts (`Sequence[str]` of length `N`, *optional*): of the images.
        images (`Sequence[torch.Tensor]`, *optional*): per label `(N, 3, height, width)` in [0, 1].
        labels (`Sequence[str]`, *optional*): e.g. before, after.
        scores (`Sequence[Sequence[float]]`, *optional*): reward of every image.
        cases (`Sequence[str]` of length `N`, *optional*): what a prompt was chosen for, `None` for those that are always shown.
        num_fixed (`int`, *optional*): how many of the first are shown whatever comes of them; all when unset.
        data (`str`, *optional*): where the training prompts came from.

    Returns:
        `Path`: the JSON file.
    """
    folder = Path(trainer.args.output_dir, FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    group = trainer.group_watch.group
    policy = trainer.args.policy or trainer.family.policies[0]
    run = {
        "model": portable_text(trainer.model_name or ""),
        "adapter": trainer.use_adapter,
        "weights": describe_weights(trainer),
        "data": portable_text(data or ""),
        "num_prompts": _count(trainer.train_dataset),
        "num_held_out": _count(trainer.eval_dataset),
        "policy": policy,
        "noise_option": noise_option(POLICIES.get(policy)),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "reward_funcs": trainer.reward_runner.names,
        "eval_reward_funcs": trainer.eval_reward_runner.names if trainer.eval_reward_runner else [],
        "device": describe_device(trainer),
        "nfe_per_row": trainer.family.nfe_per_row,
        "groups_per_process": trainer.geometry.groups_per_process,
        "command": trainer.command.line if trainer.command else None,
        "config_name": trainer.command.config_name if trainer.command else None,
        "config": trainer.command.config if trainer.command else None,
        "versions": versions(),
        "prompts": list(prompts),
        "cases": list(cases),
        "num_fixed": len(prompts) if num_fixed is None else num_fixed,
        "images": [
            {"label": label, "scores": list(row), "sheet": write_sheet(_reduced(batch), folder, label)}
            for label, batch, row in zip(labels, images, scores)
        ],
        "group": _group(group, folder) if group is not None else None,
    }
    path = folder / FILE
    text = json.dumps(without_nan(run), indent=1, ensure_ascii=False) + "\n"
    path.write_text(redact(text, [trainer.args.hub_token]), encoding="utf-8")
    return path


def _count(dataset: Any) -> int | None:
    """Rows of a dataset, or of all in a mapping; `None` for a stream, or if there is none."""
    if isinstance(dataset, Mapping):
        return sum(map(len, dataset.values()))
    return len(dataset) if hasattr(dataset, "__len__") else None


def without_nan(value: Any) -> Any:
    """`value` with `None` for every NaN, which is no JSON."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _reduced(images: torch.Tensor) -> list[Image.Image]:
    pictures = to_pil(images)
    for picture in pictures:
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return pictures


def _group(group: WatchedGroup, folder: Path) -> dict[str, Any]:
    return {
        "prompt": group.prompt,
        "global_step": group.global_step,
        "num_inference_steps": group.num_inference_steps,
        "checkpoints": [
            {
                "step_index": checkpoint.step_index,
                "member": checkpoint.member.tolist(),
                "rewards": checkpoint.rewards.tolist(),
                "kept": checkpoint.kept.tolist(),
                "sheet": write_sheet(_from_bytes(checkpoint.images), folder, f"step_{checkpoint.step_index}"),
            }
            for checkpoint in group.checkpoints
        ],
        "survivors": {
            "rewards": group.rewards.tolist(),
            "advantages": group.advantages.tolist(),
            "sheet": write_sheet(_from_bytes(group.images), folder, "survivors"),
        },
    }


def _from_bytes(images: torch.Tensor) -> list[Image.Image]:
    from PIL import Image

    return [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in images]
