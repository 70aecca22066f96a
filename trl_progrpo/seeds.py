# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Random numbers that belong to a trajectory and not to the order in which trajectories happen to be computed."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import torch


INITIAL_NOISE = -1
"""The `step` under which a trajectory's initial latents are drawn."""

PRUNING = -1
"""The `member` under which a pruning rule draws: that of no trajectory."""


def derive_seed(*parts: int) -> int:
    """
    A 63-bit seed from integers such as `(run, rollout, prompt slot, member, step)`.

    Distinct tuples give unrelated seeds (BLAKE2b), the same tuple gives the same seed on every platform.
    """
    digest = hashlib.blake2b(struct.pack(f"<{len(parts)}q", *parts), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def row_noise(
    shape: Sequence[int], run_seed: int, rollout_index: int, slots: Sequence[int], members: Sequence[int], step: int
) -> torch.Tensor:
    """
    Standard normal noise of shape `(B, *shape)`, fp32 on the CPU, one independent generator per row.

    It is drawn on the CPU so that a run gives the same numbers on every device; row `b` depends on
    `(run_seed, rollout_index, slots[b], members[b], step)` alone, never on which other rows are alive.

    Args:
        shape (`Sequence[int]`): dimensions of one row.
        run_seed (`int`): the run's seed.
        rollout_index (`int`): which rollout of the run this is.
        slots (`Sequence[int]` of length `B`): prompt slot of each row within the rollout, counted over all ranks.
        members (`Sequence[int]` of length `B`): slot of each row in its group.
        step (`int`): denoising step, or [`INITIAL_NOISE`].
    """
    noise = torch.empty((len(members), *shape))
    generator = torch.Generator()
    for row, slot, member in zip(noise.unbind(), slots, members):
        generator.manual_seed(derive_seed(run_seed, rollout_index, slot, member, step))
        row.normal_(generator=generator)
    return noise
