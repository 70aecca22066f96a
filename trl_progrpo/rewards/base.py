# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What a reward is: a callable in TRL's convention, and how its name becomes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ..registry import Registry


RewardFunc = Callable[..., list[float | None]]
"""
`reward(prompts, images, **columns) -> list[float | None]`.

`prompts` is a list of `str`; `images` a list of PIL images of the same length, or a tensor `(B, 3, height, width)` in
[0, 1] for functions with the attribute `image_type = "pt"`; every other column of the dataset arrives as a keyword with
one entry per image, and so does `preview` (`bool`): whether the images are previews of unfinished trajectories. `None`
means the reward does not apply to that sample. A function without `**kwargs` is given only the keywords it names.

It may have three attributes:

* `check_row(prompt, **columns)` is asked about every row before weights are loaded, and again before images of it are scored; it
  raises a `ValueError` with a sentence for a row that the reward cannot score, and returns nothing.
* `dataset_columns` (`Sequence[str]`): the columns that a function with `**kwargs` reads; all when unset. Pictures in a column
  that no reward reads are never decoded.
* `reads_prompts` (`bool`): `False` for a function that looks at images only; `trl-progrpo score` asks for no prompts then.
"""

REWARDS = Registry("reward function", "trl_progrpo.rewards")
"""Reward functions by name."""

REMOTE_PREFIX = "remote:"
"""Begins the name of a reward that is computed by reward servers: `remote:http://host:8000/pickscore`."""


def image_type(kind: Literal["pil", "pt"]) -> Callable[[RewardFunc], RewardFunc]:
    """
    Decorator: declares whether a reward function wants PIL images (the default) or a float tensor in [0, 1].

    Raises:
        ValueError: if `kind` is neither `"pil"` nor `"pt"`.
    """
    if kind not in ("pil", "pt"):
        raise ValueError(f'`image_type` is {kind!r}; use "pil" or "pt".')

    def decorate(function: RewardFunc) -> RewardFunc:
        function.image_type = kind
        return function

    return decorate


def resolve_reward(reward: str | RewardFunc) -> RewardFunc:
    """
    A callable from a registered name, an entry point, a dotted path, `remote:http://host:port/name`, or a callable
    (returned as it is).

    Raises:
        ValueError: if the name is unknown, what it names is not callable, or no server of a remote reward can be reached.
    """
    if isinstance(reward, str) and reward.startswith(REMOTE_PREFIX):
        from .remote import RemoteReward

        return RemoteReward.from_name(reward)
    function = REWARDS.get(reward) if isinstance(reward, str) else reward
    if isinstance(function, type):
        raise ValueError(
            f"`reward_funcs` holds {function.__name__}, which is a class; give an object of it, on the command line by the name "
            f'of one, as in "my_module:scorer" for `scorer = {function.__name__}()`.'
        )
    if not callable(function):
        kind = type(function).__name__
        raise ValueError(
            f"`reward_funcs` holds {reward!r}, {'an' if kind[0] in 'aeiou' else 'a'} {kind}; give a function "
            "`(prompts, images, **columns) -> list[float]` or the name of one."
        )
    return function


def reward_name(function: RewardFunc) -> str:
    """The name under which a reward function is logged."""
    return getattr(function, "__name__", type(function).__name__)
