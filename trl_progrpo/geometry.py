# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
How the prompts and trajectories of a rollout are dealt to processes, optimiser updates and micro-batches. Arithmetic only.

None of the numbers need divide another. What is dealt out is filled up to equal parts: with further groups of the last prompt,
or with rows that weigh nothing, so that every process makes as many network calls as any other and none waits for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


PLACEMENTS = ("rank-local", "spread")


@dataclass(frozen=True)
class Geometry:
    """
    The geometry of one rollout and the updates on it.

    Rows are counted over all processes in the order (prompt, member): a survivor has the same number however many processes
    there are, and with it the update that trains it.

    Args:
        num_prompts (`int`): prompts over all processes, `P`.
        num_generations (`int`): survivors per prompt, `K`.
        num_processes (`int`): processes, `W`.
        num_updates (`int`): optimiser updates that one pass over the rollout makes.
        micro_batches (`int`): micro-batches of an update on each process.
        micro_batch_size (`int`): most rows of a micro-batch.
        placement (`str`): `"rank-local"`, whole groups on one process; or `"spread"`, every group on all of them.

    Raises:
        ValueError: if the micro-batches of a process are too few or too small for its rows.
    """

    num_prompts: int
    num_generations: int
    num_processes: int
    num_updates: int
    micro_batches: int
    micro_batch_size: int
    placement: str = "rank-local"

    def __post_init__(self):
        if self.placement == "rank-local" and self.num_prompts < self.num_processes:
            raise ValueError(
                f"`prompts_per_rollout` is {self.num_prompts}, fewer than {self.num_processes} processes; use as many, or "
                "`group_placement` 'spread', where every process has a part of every group."
            )
        room = self.num_updates * self.micro_batches * self.micro_batch_size
        if self.rows_per_process > room:
            each = f"each of {self.num_processes} processes" if self.num_processes > 1 else "the process"
            raise ValueError(
                f"`prompts_per_rollout` is {self.num_prompts}, which with `num_generations` {self.num_generations} gives {each} "
                f"{self.rows_per_process} trajectories to train on, but `per_device_train_batch_size` {self.micro_batch_size} "
                f"times `steps_per_generation` {self.num_updates * self.micro_batches} is {room}; raise one of these, or use "
                "fewer prompts."
            )

    @property
    def num_rows(self) -> int:
        """Trajectories that are trained on, over all processes."""
        return self.num_prompts * self.num_generations

    @property
    def prompts_per_process(self) -> int:
        """Groups that each process samples, or has a part of."""
        return self.num_prompts if self.placement == "spread" else -(-self.num_prompts // self.num_processes)

    @property
    def groups_per_process(self) -> float:
        """How many groups' worth of trajectories each process samples."""
        return self.num_prompts / self.num_processes if self.placement == "spread" else self.prompts_per_process

    @property
    def rows_per_process(self) -> int:
        """Trajectories at most that a process trains on."""
        if self.placement == "spread":
            return -(-self.num_rows // self.num_processes)
        return self.prompts_per_process * self.num_generations

    def slots(self, rank: int) -> range:
        """
        Prompts that the process samples, on every process as many. Those after the first [`~Geometry.own_prompts`] fill up the
        number: they are another process's, or lie beyond the last, which they stand for, and are not trained here.
        """
        if self.placement == "spread":
            return range(self.num_prompts)
        share, over = divmod(self.num_prompts, self.num_processes)
        first = rank * share + min(rank, over)
        return range(first, first + self.prompts_per_process)

    def own_prompts(self, rank: int) -> int:
        """How many of [`~Geometry.slots`] are the process's own."""
        if self.placement == "spread":
            return self.num_prompts
        share, over = divmod(self.num_prompts, self.num_processes)
        return share + (rank < over)

    def rows(self, rank: int) -> range:
        """Rows that are trained by the process; the first ones of its rollout."""
        if self.placement == "spread":
            first = min(rank * self.rows_per_process, self.num_rows)
            return range(first, min(first + self.rows_per_process, self.num_rows))
        first = self.slots(rank).start * self.num_generations
        return range(first, first + self.own_prompts(rank) * self.num_generations)

    def rows_of_update(self, update: int, turn: int = 0) -> int:
        """How many rows an update trains over all processes; `turn` as in [`~Geometry.micro_batches_of`]."""
        return len(_every(range(self.num_rows), self.num_updates, update - turn))

    def micro_batches_of(self, rank: int, update: int, turn: int = 0) -> list[Sequence[int]]:
        """
        Which of its own rows, counted from its first, a process trains in each micro-batch of an update. Shorter than
        [`~Geometry.micro_batch_sizes`] says where other processes have more.

        Neighbouring rows go to different updates, so each update has of every group as many as of any other, but for one.

        Args:
            rank (`int`): the process.
            update (`int`): which update of the pass over the rollout.
            turn (`int`, *optional*, defaults to 0): moves the rows on by so many updates, for another pass.
        """
        rows, first = self.rows(rank), self.rows(rank).start
        mine = [row - first for row in _every(rows, self.num_updates, update - turn)]
        batches = []
        for size in self.micro_batch_sizes(update, turn):
            batches.append(mine[:size])
            mine = mine[size:]
        return batches

    def micro_batch_sizes(self, update: int, turn: int = 0) -> list[int]:
        """Rows of each micro-batch of an update, on all processes alike; at least one."""
        most = max(len(_every(self.rows(r), self.num_updates, update - turn)) for r in range(self.num_processes))
        return [max(1, -(-(most - i) // self.micro_batches)) for i in range(self.micro_batches)]


def _every(rows: range, stride: int, remainder: int) -> range:
    """Those of `rows` that leave `remainder` when divided by `stride`."""
    return range(rows.start + (remainder - rows.start) % stride, rows.stop, stride)
