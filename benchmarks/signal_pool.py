# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Pools of unpruned groups with everything that schedules and weightings can be judged by without training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from trl_progrpo import ProGRPOConfig, ProGRPOTrainer, Rollout
from trl_progrpo.adapters import trainable_parameters
from trl_progrpo.advantages import group_advantages
from trl_progrpo.losses import step_weights
from trl_progrpo.recording import preview_rewards, sample_whole_groups
from trl_progrpo.stopwatch import Stopwatch
from trl_progrpo.tiny import load_shapes


STEP = 0.05
"""Length of the two moves along the reference direction, in units of the weights; the answer is linear far beyond it."""

NORMS_EVERY = 4
"""Norms are means of large numbers, known well from one batch in four."""


@dataclass
class Pool:
    """
    Groups of `n` trajectories for `P` prompts, `S` trained steps of `T`.

    Attributes:
        rewards (`torch.Tensor` of shape `(P, n)`): of finished images.
        previews (`torch.Tensor` of shape `(T - 1, P, n)`): of the one-step previews after every step but the last.
        slopes (`torch.Tensor` of shape `(P, n, S)`): derivative of the log-probability of the trained steps along the reference
            direction, whose length is 1.
        norms (`torch.Tensor` of shape `(S,)`): mean squared norm of the gradient of that log-probability.
        stds (`torch.Tensor` of shape `(S,)`): standard deviation of the steps.
        unit (`torch.Tensor` of shape `(6,)`): the fields of a [`UnitCost`], in seconds.
        steps (`torch.Tensor`, 0-dimensional): denoising steps, `T`.
    """

    rewards: torch.Tensor
    previews: torch.Tensor
    slopes: torch.Tensor
    norms: torch.Tensor
    stds: torch.Tensor
    unit: torch.Tensor
    steps: torch.Tensor

    def signal_per_step(self) -> list[tuple[float, float]]:
        """Mean over groups of advantage times slope, step by step, with its standard error."""
        advantages = self.rewards - self.rewards.mean(1, keepdim=True)
        advantages = advantages / (advantages.std(1, correction=0, keepdim=True) + 1e-4)
        per_group = (advantages[:, :, None] * self.slopes).mean(1)
        errors = per_group.std(0) / len(per_group) ** 0.5
        return list(zip(per_group.mean(0).tolist(), errors.tolist()))

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({f.name: getattr(self, f.name).contiguous() for f in fields(self)}, path)

    @classmethod
    def load(cls, path: Path) -> Pool:
        return cls(**load_file(path))


def make_trainer(folder: str, seed: int, **settings: Any) -> ProGRPOTrainer:
    """A trainer of the embedded model; `settings` are of [`ProGRPOConfig`]."""
    defaults = {"per_device_train_batch_size": 48, "rollout_batch_size": 192, "preview_decoder": "shapes"}
    args = ProGRPOConfig(
        output_dir=folder,
        seed=seed,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        num_validation_prompts=0,
        **{**defaults, **settings},
    )
    return ProGRPOTrainer(model="shapes", reward_funcs="shapes", args=args, train_dataset=load_shapes("train"))


def rollouts(
    trainer: ProGRPOTrainer, prompts_each: int, count: int, first: int, watch: Stopwatch | None = None
) -> Iterator[Rollout]:
    """
    Rollouts of whole groups with previews at every step; rollout and prompts follow from the index, counted from `first`.

    Args:
        trainer ([`ProGRPOTrainer`]): whose sampler is used; `num_generations` trajectories per prompt.
        prompts_each (`int`): prompts per rollout.
        count (`int`): rollouts.
        first (`int`): index of the first.
        watch ([`Stopwatch`], *optional*): times the work.
    """
    sampler, dataset = trainer.sampler, trainer.train_dataset
    steps = trainer.args.noise_steps(trainer.stochastic_steps)
    for index in range(first, first + count):
        draw = torch.Generator().manual_seed(index)
        rows = dataset[torch.randperm(len(dataset), generator=draw)[:prompts_each].tolist()]
        prompts = rows.pop("prompt")
        conditioning = trainer.prompt_cache(prompts, trainer.args.negative_prompt)
        trainer.family.denoiser.eval()
        yield sample_whole_groups(
            sampler if watch is None else watch.watch(sampler),
            trainer.family.denoiser,
            prompts,
            rows,
            num_expansions=sampler.num_generations,
            conditioning=conditioning,
            noise_steps=steps,
            rollout_index=index,
        )


def reference_direction(trainer: ProGRPOTrainer, batches: Iterator[Rollout], power: float) -> torch.Tensor:
    """
    The policy gradient over many groups as one vector of length 1: the direction in which rewards rise.

    Args:
        trainer ([`ProGRPOTrainer`]): whose weights are looked at and stay as they are.
        batches (`Iterator[Rollout]`): the groups, disjoint from those that are judged with it.
        power (`float`): of the step's standard deviation in the weights of the steps. 2 keeps the noise of late steps out.
    """
    parameters = trainable_parameters(trainer.family.denoiser)
    total = torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
    for rollout in batches:
        advantages = group_advantages(rollout.rewards, rollout.prompt_index)
        weights = step_weights(_stds(trainer, rollout), power)
        for rows in torch.arange(len(rollout)).split(trainer.args.per_device_train_batch_size):
            part = rollout.select(rows)
            for s, weight in enumerate(weights.tolist()):
                total += weight * _gradient(trainer, parameters, part, s, advantages[rows])
    return (total / total.norm()).float()


def measure(trainer: ProGRPOTrainer, prompts_each: int, count: int, first: int, direction: torch.Tensor) -> Pool:
    """
    Looks at every trajectory of the groups of [`rollouts`]; see [`Pool`].

    Args:
        trainer ([`ProGRPOTrainer`]): whose weights are looked at and stay as they are.
        prompts_each, count, first (`int`): see [`rollouts`].
        direction (`torch.Tensor`): from [`reference_direction`].
    """
    parameters, watch = trainable_parameters(trainer.family.denoiser), Stopwatch(trainer.accelerator.device)
    rewards, previews, slopes, norms = [], [], [], []
    for number, rollout in enumerate(rollouts(trainer, prompts_each, count, first, watch)):
        rewards.append(rollout.rewards.view(len(rollout.conditioning), -1))
        previews.append(torch.stack(list(preview_rewards(rollout).values())))
        found = []
        for rows in torch.arange(len(rollout)).split(trainer.args.per_device_train_batch_size):
            part = rollout.select(rows)
            found.append(_slopes(trainer, parameters, part, direction))
            if number % NORMS_EVERY:
                continue
            signs = torch.randint(0, 2, (len(rows),), generator=torch.Generator().manual_seed(int(rows[0]))) * 2.0 - 1
            # With random signs the cross terms vanish on average, and one backward pass serves all rows.
            squares = torch.zeros(len(part.step_indices), dtype=torch.float64)

            def passes(part=part, signs=signs, squares=squares):
                for s in range(len(squares)):
                    squares[s] = _gradient(trainer, parameters, part, s, signs).square().sum()

            watch.time("training", len(rows) * len(squares), passes)
            norms.append(squares * len(rows))
        slopes.append(torch.cat(found).view(*rewards[-1].shape, -1))
        last = rollout
    return Pool(
        rewards=torch.cat(rewards),
        previews=torch.cat(previews, 1),
        slopes=torch.cat(slopes),
        norms=torch.stack(norms).mean(0),
        stds=torch.tensor(_stds(trainer, last)),
        unit=torch.tensor(astuple(watch.unit_cost(trainer.family.nfe_per_row))),
        steps=torch.tensor(trainer.args.num_inference_steps),
    )


def _stds(trainer: ProGRPOTrainer, rollout: Rollout) -> list[float]:
    return [trainer.sampler.policy.std(rollout.schedule, i) for i in rollout.step_indices]


def _mean(trainer: ProGRPOTrainer, rows: Rollout, s: int) -> torch.Tensor:
    index, latents = rows.step_indices[s], rows.latents[:, s]
    output = trainer.family.predict(
        trainer.family.denoiser, latents, rows.schedule.timesteps[index], rows.conditioning.rows(rows.prompt_index)
    )
    return trainer.sampler.policy.step(output, latents, rows.schedule, index)


def _gradient(trainer, parameters, rows: Rollout, s: int, factors: torch.Tensor) -> torch.Tensor:
    """Gradient of the mean of `factors` times log-probability, flat, float64."""
    log_prob = _mean(trainer, rows, s).log_prob(rows.latents[:, s + 1])
    gradients = torch.autograd.grad((factors * log_prob).mean(), parameters, allow_unused=True)
    return torch.cat(
        [torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(gradients, parameters)]
    ).double()


@torch.no_grad()
def _slopes(trainer, parameters, rows: Rollout, direction: torch.Tensor) -> torch.Tensor:
    """Central differences `(B, S)`. Of the means, not of log-probabilities, whose digits would not suffice."""
    ends = []
    for sign in (1, -1):
        with _moved(parameters, sign * STEP * direction):
            ends.append([_mean(trainer, rows, s) for s in range(len(rows.step_indices))])
    columns = []
    for s, (up, down) in enumerate(zip(*ends)):
        std = float(up.std)
        middle = (up.mean + down.mean) / 2
        residual = (rows.latents[:, s + 1] - middle) / std
        columns.append((residual * (up.mean - down.mean) / (2 * STEP * std)).flatten(1).mean(1))
    return torch.stack(columns, 1)


@contextmanager
def _moved(parameters: Sequence[torch.nn.Parameter], step: torch.Tensor):
    before = [parameter.detach().clone() for parameter in parameters]
    offset = 0
    for parameter in parameters:
        parameter.data += step[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()
    try:
        yield
    finally:
        for parameter, value in zip(parameters, before):
            parameter.data.copy_(value)
