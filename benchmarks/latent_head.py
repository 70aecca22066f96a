# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""A latent reward head: a small network that foretells rewards from what the denoiser makes of the latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from trl_progrpo.types import Conditioning


@contextmanager
def last_hidden_states(denoiser: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """A list to which every call of the denoiser adds its last hidden states `(B, tokens, f)`."""
    found = []
    (last,) = (module for name, module in denoiser.named_modules() if name.endswith("norm_out"))
    hook = last.register_forward_hook(lambda module, inputs, output: found.append(inputs[0]))
    try:
        yield found
    finally:
        hook.remove()


def head_features(hidden: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    """Mean and maximum over the tokens of hidden states, and the pooled embedding of each row's prompt `(B, f)`."""
    text = [tokens if tokens.dim() == 2 else tokens.mean(1) for tokens in conditioning.positive.values()]
    return torch.cat([hidden.mean(1), hidden.amax(1), *text], 1)


@torch.enable_grad()
def fit_head(
    inputs: torch.Tensor, target: torch.Tensor, seed: int, epochs: int = 12
) -> Callable[[torch.Tensor], torch.Tensor]:
    """
    A network with two hidden layers that says `(...)` of features `(..., f)` what `target` `(B,)` is of `inputs` `(B, f)`.
    """
    torch.manual_seed(seed)
    mean, std = inputs.mean(0), inputs.std(0) + 1e-3
    head = torch.nn.Sequential(
        torch.nn.Linear(inputs.shape[1], 256),
        torch.nn.GELU(),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(256, 64),
        torch.nn.GELU(),
        torch.nn.Linear(64, 1),
    )
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(256):
            loss = (head((inputs[rows] - mean) / std).squeeze(1) - target[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    head.eval()

    @torch.no_grad()
    def guess(features: torch.Tensor) -> torch.Tensor:
        return head((features - mean) / std).squeeze(-1)

    return guess
