# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Groups that lie on all processes: who has which row, what all must know of them, and rows that change their process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist


if TYPE_CHECKING:
    from .ranks import RankWatch


class Spread:
    """
    Deals the rows of all groups to all processes in equal parts, in their order; what is missing at the end is filled up
    with copies of the last row, so that all processes make the same number of network calls.

    Rows are meant by their position among all of them. Every process must call the same methods with the same totals.

    Args:
        watch ([`~ranks.RankWatch`]): of the processes; carries what is small, and knows when one of them is lost.

    Attributes:
        bytes_sent (`int`): latents and other rows that this process has sent to others so far.
    """

    def __init__(self, watch: RankWatch):
        self.watch = watch
        self.bytes_sent = 0

    def share(self, total: int, rank: int | None = None) -> torch.Tensor:
        """Positions `(ceil(total / W),)` of the rows that a process has, this one when unset, copies included."""
        size = -(-total // self.watch.world_size)
        first = (self.watch.rank if rank is None else rank) * size
        return torch.arange(first, first + size).clamp(max=total - 1)

    def own(self, total: int) -> range:
        """Positions of the rows that this process has and that are no copies: the first ones of its share."""
        size = -(-total // self.watch.world_size)
        first = min(self.watch.rank * size, total)
        return range(first, min(first + size, total))

    def gather(self, values: torch.Tensor, total: int) -> torch.Tensor:
        """
        What all processes know of their rows.

        Args:
            values (`torch.Tensor` of shape `(ceil(total / W), n)`): of the share of this process.
            total (`int`): rows on all processes.

        Returns:
            `torch.Tensor` of shape `(total, n)`, on the CPU.
        """
        return torch.cat(self.watch.gather(values.cpu()))[:total]

    def deal(
        self, tensors: Mapping[str, torch.Tensor], total: int, stay: torch.Tensor, device: torch.device | str
    ) -> dict[str, torch.Tensor]:
        """
        The share of this process once only the rows at `stay` `(m,)`, rising, are left. Those that come from another
        process are sent, all their tensors in one piece.

        Args:
            tensors (`Mapping[str, torch.Tensor]` of shapes `(ceil(total / W), ...)`): of the share up to now.
            total (`int`): rows on all processes up to now.
            stay (`torch.Tensor` of shape `(m,)`): positions of those that stay.
            device (`torch.device`): what the backend of the processes sends from.
        """
        size, rank = -(-total // self.watch.world_size), self.watch.rank
        wanted = [stay[self.share(len(stay), other)] for other in range(self.watch.world_size)]
        packed = _pack(tensors).to(device)
        dealt = packed.new_empty(len(wanted[rank]), packed.shape[1])
        work, arriving = [], []
        for other, theirs in enumerate(wanted):
            coming = (wanted[rank] // size == other).nonzero().flatten()
            if other == rank:
                dealt[coming.to(device)] = packed[(wanted[rank][coming] % size).to(device)]
                continue
            going = theirs[theirs // size == rank] % size
            if len(going):
                rows = packed[going.to(device)]
                self.bytes_sent += rows.numel()
                work.append(dist.P2POp(dist.isend, rows, other))
            if len(coming):
                arriving.append((coming, packed.new_empty(len(coming), packed.shape[1])))
                work.append(dist.P2POp(dist.irecv, arriving[-1][1], other))
        for request in dist.batch_isend_irecv(work) if work else []:
            request.wait()
        for coming, rows in arriving:
            dealt[coming.to(device)] = rows
        return _unpack(dealt, tensors)


def _pack(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """One row of bytes `(n, bytes)` for each row of the tensors."""
    device = next(iter(tensors.values())).device
    return torch.cat(
        [t.detach().flatten(1).contiguous().view(torch.uint8).to(device) for t in map(_2d, tensors.values())], 1
    )


def _unpack(packed: torch.Tensor, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    widths = [math.prod(t.shape[1:]) * t.element_size() for t in like.values()]
    found = {}
    for (name, tensor), part in zip(like.items(), packed.split(widths, 1)):
        found[name] = part.contiguous().view(tensor.dtype).view(len(packed), *tensor.shape[1:]).to(tensor.device)
    return found


def _2d(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, None] if tensor.ndim == 1 else tensor
