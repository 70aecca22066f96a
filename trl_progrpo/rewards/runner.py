# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Calls reward functions and checks what they return."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
import traceback
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import Future
from os.path import basename
from typing import Any

import torch
from PIL import Image

from .base import RewardFunc, resolve_reward, reward_name


class RewardRunner:
    """
    Scores images with several reward functions.

    Args:
        reward_funcs (`RewardFunc`, `str` or a list of them): callables, registered names or dotted paths. Coroutine
            functions (`async def`) are awaited together, in an event loop that lives as long as the process.
        reward_weights (`list[float]`, *optional*): one weight per function; all 1 when unset.
        weights_name (`str`, *optional*, defaults to `"reward_weights"`): what errors call the weights.

    Raises:
        ValueError: if there is no function, an unknown name, or the number of weights differs.
    """

    def __init__(
        self,
        reward_funcs: RewardFunc | str | Sequence,
        reward_weights: Sequence[float] | None = None,
        weights_name: str = "reward_weights",
    ):
        if callable(reward_funcs) or isinstance(reward_funcs, str):
            reward_funcs = [reward_funcs]
        if not reward_funcs:
            raise ValueError("`reward_funcs` is empty; give at least one reward function or name.")
        self.functions = [resolve_reward(function) for function in reward_funcs]
        self.names = _unique([reward_name(function) for function in self.functions])
        weights = [1.0] * len(self.functions) if reward_weights is None else list(reward_weights)
        if len(weights) != len(self.functions):
            raise ValueError(
                f"`{weights_name}` has {len(weights)} entries for {len(self.functions)} reward functions; "
                "give one weight per function."
            )
        self.weights = torch.tensor(weights, dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.functions)

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

    def __call__(
        self,
        prompts: Sequence[str],
        images: torch.Tensor,
        columns: Mapping[str, Sequence[Any]] | None = None,
        preview: bool = False,
    ) -> torch.Tensor:
        """
        Rewards `(B, F)`, fp32 on the CPU; NaN where a function returned `None`.

        Args:
            prompts (`Sequence[str]` of length `B`): the prompt of each image.
            images (`torch.Tensor` of shape `(B, 3, height, width)`): fp32 in [0, 1].
            columns (`Mapping[str, Sequence]`, *optional*): further dataset columns, one entry per image.
            preview (`bool`, *optional*, defaults to `False`): whether the images are previews; told to the functions.

        Raises:
            ValueError: if a function raises, or returns the wrong length, NaN or infinity, or something that is not a
                number.
        """
        pil, returned = None, []
        for name, function in zip(self.names, self.functions):
            if getattr(function, "image_type", "pil") == "pt":
                batch = images
            else:
                batch = pil = pil if pil is not None else to_pil(images)
            keywords = {**(columns or {}), "preview": preview}
            try:
                values = function(prompts=list(prompts), images=batch, **accepted_keywords(function, keywords))
            except Exception as error:
                raise _failure(name, error, len(prompts)) from error
            # Begun now and awaited below, so that several coroutines wait for their servers at the same time.
            returned.append(_begin(values) if inspect.isawaitable(values) else values)
        scores = torch.empty(len(prompts), len(self))
        for column, (name, values) in enumerate(zip(self.names, returned)):
            if isinstance(values, Future):
                try:
                    values = values.result()
                except Exception as error:
                    raise _failure(name, error, len(prompts)) from error
            scores[:, column] = torch.tensor(check_scores(name, values, len(prompts)))
        return scores


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """PIL images of a tensor `(B, 3, height, width)` in [0, 1], rounded as diffusers' image processor does."""
    array = (images.detach().float().cpu().permute(0, 2, 3, 1).numpy() * 255).round().astype("uint8")
    return [Image.fromarray(image) for image in array]


def accepted_keywords(function: RewardFunc, keywords: dict[str, Any]) -> dict[str, Any]:
    """Those of `keywords` that `function` takes: all with `**kwargs`, else the ones it names."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return keywords
    return {name: value for name, value in keywords.items() if name in parameters}


def check_scores(name: str, values: Any, expected: int) -> list[float]:
    """
    What a reward function returned, as `expected` floats; NaN for `None`.

    Raises:
        ValueError: if it is not one finite number or `None` per image.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().tolist()
    returned = None
    if isinstance(values, (str, dict)) or not hasattr(values, "__len__"):
        returned = type(values).__name__
    elif len(values) != expected:
        returned = f"{len(values)} values"
    if returned is not None:
        raise ValueError(
            f"reward function `{name}` returned {returned} for {expected} images; return a list with one number "
            "(or None) per image."
        )
    checked = []
    for index, value in enumerate(values):
        if value is None:
            checked.append(math.nan)
            continue
        try:
            if isinstance(value, str):  # float("0.5") is a number
                raise TypeError
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"reward function `{name}` returned {value!r} for image {index}; return a number, or None where the "
                "reward does not apply."
            ) from None
        if not math.isfinite(number):
            raise ValueError(
                f"reward function `{name}` returned {number} for image {index}; return a finite number, or None where "
                "the reward does not apply."
            )
        checked.append(number)
    return checked


_loop: asyncio.AbstractEventLoop | None = None
_loop_lock = threading.Lock()


def _begin(values: Awaitable) -> Future:
    """
    Starts a coroutine in the process's event loop. One loop for all calls: clients that a reward function keeps open
    belong to the loop they were made in.
    """
    global _loop
    with _loop_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="async-rewards", daemon=True).start()

    async def wait():
        return await values

    return asyncio.run_coroutine_threadsafe(wait(), _loop)


def _failure(name: str, error: Exception, expected: int) -> ValueError:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    return ValueError(
        f"reward function `{name}` raised {type(error).__name__}: {error}{where} while scoring {expected} images; mend it, "
        "or let it return None for what it cannot score."
    )


def _unique(names: list[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)]
