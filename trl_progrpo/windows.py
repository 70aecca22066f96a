# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Which denoising steps of a rollout carry noise and are trained; the others run the noise-free policy."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .seeds import derive_seed


WINDOWS = ("fixed", "sliding", "random")


def window_steps(
    stochastic_steps: Sequence[int],
    kind: str | None,
    size: int | None = None,
    start: int = 0,
    interval: int = 1,
    rollout_index: int = 0,
    seed: int = 0,
) -> tuple[int, ...]:
    """
    The trained steps of one rollout: consecutive steps among those that may carry noise.

    `"fixed"` always takes the same window, `"sliding"` moves it by one step every `interval` rollouts and starts over at
    the end (MixGRPO, arXiv 2507.21802), `"random"` draws its place for every rollout (Flow-GRPO-Fast). The rollouts of
    all processes have the same window, so they make the same number of network calls.

    Args:
        stochastic_steps (`Sequence[int]`): steps whose transition has a density, ascending; see
            [`~policies.Policy.stochastic_steps`].
        kind (`str`, *optional*): one of `WINDOWS`; `None` trains all stochastic steps.
        size (`int`, *optional*): steps in the window; all from `start` on when unset.
        start (`int`, *optional*, defaults to 0): first step a window may hold.
        interval (`int`, *optional*, defaults to 1): rollouts between two moves of a sliding window.
        rollout_index (`int`, *optional*, defaults to 0): which rollout of the run this is.
        seed (`int`, *optional*, defaults to 0): the run's seed.

    Raises:
        ValueError: if the kind is unknown or the window does not fit.
    """
    if kind is None:
        return tuple(stochastic_steps)
    if kind not in WINDOWS:
        raise ValueError(f"`sde_window` is {kind!r}; use one of {', '.join(WINDOWS)}, or leave it unset.")
    steps = [step for step in stochastic_steps if step >= start]
    if not steps:
        raise ValueError(
            f"`sde_window_start` is {start}, but the last step that carries noise is {max(stochastic_steps, default=None)}; "
            "use an earlier start."
        )
    size = len(steps) if size is None else size
    if not 1 <= size <= len(steps):
        raise ValueError(
            f"`sde_window_size` is {size}, but from `sde_window_start` {start} on {len(steps)} steps carry noise "
            f"({steps}); use a size from 1 to {len(steps)}, or an earlier start."
        )
    places = len(steps) - size + 1
    place = {
        "fixed": 0,
        "sliding": rollout_index // interval % places,
        "random": random.Random(derive_seed(seed, rollout_index)).randrange(places),
    }[kind]
    return tuple(steps[place : place + size])
