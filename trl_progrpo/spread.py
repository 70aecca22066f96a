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
        staying = (wanted[rank] // size == rank).nonzero().flatten()
        dealt = {name: tensor.new_empty(len(wanted[rank]), *tensor.shape[1:]) for name, tensor in tensors.items()}
        _put(dealt, staying, _rows(tensors, wanted[rank][staying] % size))
        work, arriving = [], []
        for other, theirs in enumerate(wanted):
            if other == rank:
                continue
            going = theirs[theirs // size == rank] % size
            if len(going):
                packed = _pack(_rows(tensors, going)).to(device)
                self.bytes_sent += packed.numel()
                work.append(dist.P2POp(dist.isend, packed, other))
            coming = (wanted[rank] // size == other).nonzero().flatten()
            if len(coming):
                width = sum(_width(tensor) for tensor in tensors.values())
                arriving.append((coming, torch.empty(len(coming), width, dtype=torch.uint8, device=device)))
                work.append(dist.P2POp(dist.irecv, arriving[-1][1], other))
        for request in dist.batch_isend_irecv(work) if work else []:
            request.wait()
        for coming, packed in arriving:
            _put(dealt, coming, _unpack(packed, tensors))
        return dealt


def _rows(tensors: Mapping[str, torch.Tensor], index: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: tensor[index.to(tensor.device)] for name, tensor in tensors.items()}


def _put(tensors: Mapping[str, torch.Tensor], index: torch.Tensor, rows: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor[index.to(tensor.device)] = rows[name]


def _pack(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """One row of bytes `(n, bytes)` for each row of the tensors."""
    device = next(iter(tensors.values())).device
    rows = (_2d(tensor.detach()).flatten(1).contiguous() for tensor in tensors.values())
    return torch.cat([row.view(torch.uint8).to(device) for row in rows], 1)


def _unpack(packed: torch.Tensor, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for (name, tensor), part in zip(like.items(), packed.split([_width(tensor) for tensor in like.values()], 1)):
        # A tensor of its own: of one row a part would keep the place and stride that it had, which fit no other dtype.
        values = part.flatten().clone().view(tensor.dtype)
        found[name] = values.view(len(packed), *tensor.shape[1:]).to(tensor.device)
    return found


def _width(tensor: torch.Tensor) -> int:
    """Bytes of a row."""
    return math.prod(tensor.shape[1:]) * tensor.element_size()


def _2d(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, None] if tensor.ndim == 1 else tensor
