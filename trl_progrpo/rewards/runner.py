# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Scores images with several reward functions, and decides what a failure of one means."""

from __future__ import annotations

import inspect
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from PIL import Image

from .base import RewardFunc, resolve_reward, reward_name
from .calls import RewardError, begin_call, failing, refused_arguments, wanted_arguments
from .rows import first_fault


OnRewardError = Literal["raise", "skip", "retry"]
ON_REWARD_ERROR = ("raise", "skip", "retry")


class RewardRunner:
    """
    Scores images with several reward functions.

    Args:
        reward_funcs (`RewardFunc`, `str` or a list of them): callables, registered names or dotted paths. Coroutine
            functions (`async def`) are awaited together, in an event loop that lives as long as the process.
        reward_weights (`list[float]`, *optional*): one weight per function; all 1 when unset.
        weights_name (`str`, *optional*, defaults to `"reward_weights"`): what errors call the weights.
        on_error (`str`, *optional*, defaults to `"raise"`): what follows when a function raises, takes longer than `timeout`,
            or returns something else than one finite number or `None` per image.

            * `"raise"`: [`~rewards.RewardError`].
            * `"skip"`: the images it has no score for are left without any reward: all their rewards are NaN, also those
              of the other functions, for a sum without one of its terms would be another reward. A call that raised, or
              returned a wrong number of scores, is repeated in halves until the images to blame are found; one that
              took too long or lost its connection is not.
            * `"retry"`: the call is made again after 1, 2, 4, ... seconds, `max_retries` times, then as `"raise"`.
        timeout (`float`, *optional*): seconds that a call may take; any time when unset.
        max_retries (`int`, *optional*, defaults to 3): for `"retry"`.

    Attributes:
        errors (`Counter`): images without a score so far, by kind of error (see [`~rewards.RewardError`]).

    Raises:
        ValueError: if there is no function, an unknown name, one that does not take `prompts` and `images`, the number of
            weights differs, or one is no finite number.
    """

    def __init__(
        self,
        reward_funcs: RewardFunc | str | Sequence,
        reward_weights: Sequence[float] | None = None,
        weights_name: str = "reward_weights",
        on_error: OnRewardError = "raise",
        timeout: float | None = None,
        max_retries: int = 3,
    ):
        if isinstance(reward_funcs, Mapping):
            raise ValueError(
                f"`reward_funcs` is a dict of {', '.join(map(repr, reward_funcs))}; give a list of its values."
            )
        if callable(reward_funcs) or isinstance(reward_funcs, str):
            reward_funcs = [reward_funcs]
        if not reward_funcs:
            raise ValueError("`reward_funcs` is empty; give at least one reward function or name.")
        self.functions = [resolve_reward(function) for function in reward_funcs]
        self.names = _unique([reward_name(function) for function in self.functions])
        for name, function in zip(self.names, self.functions):
            refused = refused_arguments(function, ("prompts", "images"))
            if refused:
                raise ValueError(
                    f"reward function `{name}` does not take `{refused[0]}`; reward functions are called with the keywords "
                    "`prompts` and `images`, so give it these two parameters, and `**columns` for what else there is."
                )
        weights = [1.0] * len(self.functions) if reward_weights is None else list(reward_weights)
        if len(weights) != len(self.functions):
            raise ValueError(
                f"`{weights_name}` has {len(weights)} entries for {len(self.functions)} reward functions; "
                "give one weight per function."
            )
        if not all(math.isfinite(weight) for weight in weights):
            raise ValueError(f"`{weights_name}` is {weights}; give finite numbers.")
        self.weights = torch.tensor(weights, dtype=torch.float32)
        self.on_error, self.timeout, self.max_retries = on_error, timeout, max_retries
        self.errors: Counter[str] = Counter()
        self._told: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self.functions)

    @property
    def reads_prompts(self) -> bool:
        """Whether any function looks at prompts: all do but those with the attribute `reads_prompts = False`."""
        return any(getattr(function, "reads_prompts", True) for function in self.functions)

    def load(self) -> None:
        """
        Loads what the functions have put off: every one that is an object with a method `load` is told to, so that a model
        that is missing stops a run at its start.

        Raises:
            ValueError: whatever a function's `load` has to say.
        """
        for function in self.functions:
            if not inspect.isclass(function) and callable(getattr(function, "load", None)):
                function.load()

    def check_columns(self, columns: Collection[str], dataset: str) -> None:
        """
        Args:
            columns (`Collection[str]`): of the dataset, beside the prompts.
            dataset (`str`): what the error calls it.

        Raises:
            ValueError: if a function has a parameter without default that it will not be given.
        """
        for name, function in zip(self.names, self.functions):
            missing = wanted_arguments(function, {"prompts", "images", "preview", *columns})
            if missing:
                raise ValueError(
                    f"reward function `{name}` has the parameter `{missing[0]}`, which {dataset} has no column for; reward "
                    f"functions are given `prompts`, `images`, `preview` and {', '.join(columns) or 'no column'}, so rename "
                    "the parameter, add the column, or give a default."
                )
            check = getattr(function, "check_row", None)
            missing = [] if check is None else wanted_arguments(check, {"prompt", *columns})
            if missing:
                raise ValueError(
                    f"`check_row` of reward function `{name}` has the parameter `{missing[0]}`, which {dataset} has no column "
                    f"for; it is given `prompt` and {', '.join(columns) or 'no column'}, so rename it, add the column, or give "
                    "a default."
                )

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[str],
        images: torch.Tensor,
        columns: Mapping[str, Sequence[Any]] | None = None,
        preview: bool = False,
    ) -> torch.Tensor:
        """
        Rewards `(B, F)`, fp32 on the CPU; NaN where a function returned `None`, and in all of a row that has no reward
        because a function failed.

        Args:
            prompts (`Sequence[str]` of length `B`): the prompt of each image.
            images (`torch.Tensor` of shape `(B, 3, height, width)`): fp32 in [0, 1].
            columns (`Mapping[str, Sequence]`, *optional*): further dataset columns, one entry per image.
            preview (`bool`, *optional*, defaults to `False`): whether the images are previews; told to the functions.

        Raises:
            RewardError: as `on_error` says.
        """
        batch = _Batch(prompts, images, columns or {}, preview)
        # All are begun before the first is waited for.
        finishing = [self._begin(column, batch, slice(None)) for column in range(len(self))]
        scores = torch.empty(len(prompts), len(self))
        failed = torch.zeros(len(prompts), dtype=torch.bool)
        for column, finish in enumerate(finishing):
            values, lost = self._finish(column, batch, slice(0, len(prompts)), finish)
            scores[:, column] = torch.tensor(values)
            failed[lost] = True
        scores[failed] = math.nan
        return scores

    def _begin(self, column: int, batch: _Batch, rows: slice) -> Callable[[], list[float]]:
        function, name = self.functions[column], self.names[column]
        fault = first_fault(name, function, batch.prompts[rows], batch.columns_of(rows))
        if fault is not None:
            refusal = RewardError(str(fault), "exception", divisible=len(batch.prompts[rows]) > 1)
            refusal.__cause__ = fault.__cause__
            return failing(refusal)
        images, keywords = batch.given(function, rows)
        return begin_call(name, function, batch.prompts[rows], images, keywords, self.timeout)

    def _finish(self, column: int, batch: _Batch, rows: slice, finish) -> tuple[list[float], list[int]]:
        """Scores of `rows`, and which of the batch's rows have none because of an error."""
        try:
            return finish(), []
        except RewardError as error:
            if self.on_error == "retry":
                return self._retry(column, batch, rows, error), []
            if self.on_error == "raise":
                raise self._traced(column, batch, rows, error) from error.__cause__
            return self._skip(column, batch, rows, error)

    def _retry(self, column: int, batch: _Batch, rows: slice, error: RewardError) -> list[float]:
        for attempt in range(self.max_retries):
            self._tell(column, error, "it is called again")
            time.sleep(2.0**attempt)
            try:
                return self._begin(column, batch, rows)()
            except RewardError as another:
                error = another
        raise self._traced(column, batch, rows, error) from error.__cause__

    def _traced(self, column: int, batch: _Batch, rows: slice, error: RewardError) -> RewardError:
        """The error with the prompt of the image to blame, where halves of the call lead to one."""
        smallest = error
        while smallest.divisible and error.kind == "exception":
            for half in _halves(rows):
                try:
                    self._begin(column, batch, half)()
                except RewardError as smaller:
                    smallest, rows = smaller, half
                    break
            else:  # the parts are fine, so that no single image is to blame
                return error
        first = error.rows[0] if error.rows else 0 if rows.stop - rows.start == 1 else None
        told = str(smallest)
        if first is not None and repr(batch.prompts[rows.start + first]) not in told:
            told = f"{told} The image is of the prompt {batch.prompts[rows.start + first]!r}."
        traced = RewardError(told, error.kind, error.rows, error.scores, error.divisible)
        traced.__cause__ = smallest.__cause__
        return traced

    def _skip(self, column: int, batch: _Batch, rows: slice, error: RewardError) -> tuple[list[float], list[int]]:
        if error.divisible:
            parts = [self._finish(column, batch, half, self._begin(column, batch, half)) for half in _halves(rows)]
            return parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]
        count = rows.stop - rows.start
        lost = range(count) if error.rows is None else error.rows
        self.errors[error.kind] += len(lost)
        self._tell(column, error, "images without a score are left out of their groups")
        return error.scores or [math.nan] * count, [rows.start + index for index in lost]

    def _tell(self, column: int, error: RewardError, consequence: str) -> None:
        """Once per function and kind of error; `errors` counts the rest."""
        if (self.names[column], error.kind) not in self._told:
            self._told.add((self.names[column], error.kind))
            warnings.warn(f'{error} With `on_reward_error="{self.on_error}"` {consequence}.', stacklevel=2)


def _halves(rows: slice) -> list[slice]:
    middle = (rows.start + rows.stop) // 2
    return [slice(rows.start, middle), slice(middle, rows.stop)]


class _Batch:
    """What is to be scored, in the form each function wants."""

    def __init__(self, prompts, images: torch.Tensor, columns: Mapping[str, Sequence[Any]], preview: bool):
        self.prompts, self.images, self.columns, self.preview = prompts, images, columns, preview
        self._pil: list[Image.Image] | None = None

    def given(self, function: RewardFunc, rows: slice) -> tuple[Any, dict[str, Any]]:
        """Images and keywords for `function`."""
        images = self.images[rows]
        if getattr(function, "image_type", "pil") != "pt":
            self._pil = to_pil(self.images) if self._pil is None else self._pil
            # Copies, as of the columns: functions sort lists and make thumbnails in place.
            images = [image.copy() for image in self._pil[rows]]
        return images, {**self.columns_of(rows), "preview": self.preview}

    def columns_of(self, rows: slice) -> dict[str, list[Any]]:
        """The columns, as lists of their own."""
        return {name: list(values)[rows] for name, values in self.columns.items()}


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """PIL images of a tensor `(B, 3, height, width)` in [0, 1], rounded as diffusers' image processor does."""
    # Rounded in place: of a large image every copy is gigabytes.
    array = (images.detach().float() * 255).round_().to(torch.uint8).cpu().permute(0, 2, 3, 1).contiguous().numpy()
    return [Image.fromarray(image) for image in array]


def _unique(names: list[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)]
