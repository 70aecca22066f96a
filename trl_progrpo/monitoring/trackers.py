# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Pictures for the trackers of `report_to`; their scalars are the business of transformers' own callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from transformers import TrainerCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK, TensorBoardCallback, TrackioCallback, WandbCallback

from ..validation import validation_prompts, validation_rows, validation_scores
from ..words import change_in_words
from .group_plots import previews_picture, reward_histogram, survivors_picture


if TYPE_CHECKING:
    from PIL import Image

    from ..progrpo_trainer import ProGRPOTrainer


PACKAGES = {
    "wandb": ("wandb",), "trackio": ("trackio",), "tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",),
    "comet_ml": ("comet_ml",), "neptune": ("neptune",), "codecarbon": ("codecarbon",), "clearml": ("clearml",),
    "dagshub": ("dagshub",), "flyte": ("flytekit",), "dvclive": ("dvclive",), "swanlab": ("swanlab",),
    "azure_ml": ("azureml_sdk", "azureml"),
}  # fmt: skip
"""Tracker -> packages of which it needs one; the first three are also sent pictures."""


def check_trackers(report_to: Sequence[str]) -> None:
    """
    Looks for the trackers' packages; transformers would do so after the weights are loaded.

    Args:
        report_to (`Sequence[str]`): names of trackers.

    Raises:
        ValueError: if there is no tracker of such a name, or its package is not installed.
    """
    for name in report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(f"`report_to` is {name!r}; use none, or some of {', '.join(INTEGRATION_TO_CALLBACK)}.")
        packages = PACKAGES.get(name, ())
        if packages and not any(map(find_spec, packages)):
            raise ValueError(
                f"`report_to` is {name!r}, but the package is not installed; run `pip install {packages[0]}`, or use none."
            )


class TrackerImagesCallback(TrainerCallback):
    """
    Sends pictures to Weights & Biases, Trackio and TensorBoard, those of them that the trainer reports to:

    * `images/validation`: the validation prompts from the same initial noise, before training and now, with rewards;
    * `images/prune_step_{i}`: previews of one group at checkpoint `i`, survivors and pruned, with their rewards (for
      plain GRPO `images/survivors`: the group's finished images);
    * `images/reward_histogram`: rewards of that group before and after pruning.

    Every `log_images_steps` optimiser steps, and after the last. Does nothing without one of the three trackers.

    Args:
        trainer ([`ProGRPOTrainer`]): draws the pictures.
    """

    def __init__(self, trainer: ProGRPOTrainer):
        self.trainer = trainer
        self._before: torch.Tensor | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Draws the validation prompts before the first update, if nothing can do so later."""
        trackers = self._trackers()
        if not trackers:
            return
        _keep_trackio_run(trackers, args)
        self._before = None
        if state.global_step == 0 and not self.trainer.use_adapter:
            self._before = self._draw()

    def on_step_end(self, args, state, control, **kwargs):
        """Draws and sends, if it is time."""
        every = args.log_images_steps or max(1, state.max_steps // 10)
        due = state.global_step % every == 0 or state.global_step == state.max_steps
        trackers = self._trackers() if due else []
        if not trackers:
            return
        self.trainer.on_phase("images", 0, 0)
        # Every process draws: sharded weights take all of them.
        if self._before is None and self.trainer.use_adapter:
            self._before = self._draw(adapter=False)
        now = self._draw()
        if state.is_world_process_zero:
            send_images(trackers, {**self._validation(now), **self._group()}, state.global_step)

    def _trackers(self) -> list[TrainerCallback]:
        return [
            callback for callback in self.trainer.callback_handler.callbacks if isinstance(callback, tuple(SENDERS))
        ]

    def _draw(self, adapter: bool = True) -> torch.Tensor | None:
        prompts = validation_prompts(self.trainer)
        return self.trainer.generate(prompts, adapter=adapter) if prompts else None

    def _validation(self, now: torch.Tensor | None) -> dict[str, Image.Image]:
        if now is None:
            return {}
        from ..plots import draw_image_grid

        rows = validation_rows(self.trainer)
        drawn = {"before": self._before, "now": now}
        drawn = {label: images for label, images in drawn.items() if images is not None}
        scores = [validation_scores(self.trainer, rows, images) for images in drawn.values()]
        prompts = [row[self.trainer.args.prompt_column] for row in rows]
        title = change_in_words(*scores) if len(scores) > 1 else None
        return {"images/validation": draw_image_grid(list(drawn.values()), list(drawn), prompts, scores, title=title)}

    def _group(self) -> dict[str, Image.Image]:
        group = self.trainer.group_watch.group
        if group is None:
            return {}
        pictures = {f"images/prune_step_{c.step_index}": previews_picture(c, group) for c in group.checkpoints}
        return {
            **(pictures or {"images/survivors": survivors_picture(group)}),
            "images/reward_histogram": reward_histogram(group),
        }


def send_images(trackers: list[TrainerCallback], images: Mapping[str, Image.Image], step: int) -> None:
    """
    Hands pictures to trackers.

    Args:
        trackers (`list[TrainerCallback]`): transformers' callbacks of trackers that have begun their run.
        images (`Mapping[str, PIL.Image.Image]`): by the name they are shown under.
        step (`int`): optimiser steps done.
    """
    for tracker in trackers:
        for kind, send in SENDERS.items():
            if isinstance(tracker, kind):
                send(tracker, images, step)


def _to_wandb(tracker: WandbCallback, images: Mapping[str, Image.Image], step: int) -> None:
    import wandb

    # With the step as a value: transformers makes it the x-axis of everything.
    wandb.log({**{name: wandb.Image(image) for name, image in images.items()}, "train/global_step": step})


def _to_trackio(tracker: TrackioCallback, images: Mapping[str, Image.Image], step: int) -> None:
    import trackio

    trackio.log({**{name: trackio.Image(image) for name, image in images.items()}, "train/global_step": step})


def _to_tensorboard(tracker: TensorBoardCallback, images: Mapping[str, Image.Image], step: int) -> None:
    import numpy as np

    for name, image in images.items():
        tracker.tb_writer.add_image(name, np.asarray(image), step, dataformats="HWC")
    tracker.tb_writer.flush()


SENDERS: dict[type[TrainerCallback], Callable[[TrainerCallback, Mapping[str, Image.Image], int], None]] = {
    WandbCallback: _to_wandb,
    TrackioCallback: _to_trackio,
    TensorBoardCallback: _to_tensorboard,
}
"""transformers' callback of a tracker -> what hands it pictures."""


def _keep_trackio_run(trackers: list[TrainerCallback], args) -> None:
    """
    Gives the run a name if it has none. transformers ends the run with the training, and an evaluation after it would
    open a second one under another random name; under the same name it continues the first.
    """
    if args.run_name is None and any(isinstance(tracker, TrackioCallback) for tracker in trackers):
        import trackio

        run = trackio.context_vars.current_run.get()
        args.run_name = None if run is None else run.name
