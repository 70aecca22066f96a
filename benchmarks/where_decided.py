# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
At which step is the reward decided? The share of its variance that is still open when trajectories share all noise so far.

```
python benchmarks/where_decided.py
python benchmarks/where_decided.py --prompts 2 --families 2 --siblings 2    # small: only shows that it works
```

For every prompt there are a number of families of siblings. Siblings have the same initial noise and the same noise of all
steps up to the one in the row, and noise of their own after it. The variance among siblings, over that among all, is what the
later steps still decide: the most that branching there can tell apart, and the most that sharing the initial noise takes off
the variance. Below the table stands the correlation of partners all of whose noise is each other's negative: pairs like these
are worth `1 / (1 - correlation)` of what independent members are.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator

import torch
from signal_pool import make_trainer

from trl_progrpo.sampler import ExpandPruneSampler
from trl_progrpo.seeds import INITIAL_NOISE


class Families(ExpandPruneSampler):
    """A sampler whose neighbouring members share their noise up to a step."""

    siblings: int
    shared_until: int

    def _noise(self, prompt_index, member, rollout_index, slots, step):
        if step <= self.shared_until:
            member = member // self.siblings
        return super()._noise(prompt_index, member, rollout_index, slots, step)


class Pairs(ExpandPruneSampler):
    """A sampler whose neighbouring members have opposite noise."""

    def _noise(self, prompt_index, member, rollout_index, slots, step):
        noise = super()._noise(prompt_index, member // 2, rollout_index, slots, step)
        signs = 1 - 2 * (member % 2)
        return noise * signs.view(-1, *[1] * (noise.dim() - 1)).to(noise)


def still_open(
    num_prompts: int, families: int, siblings: int, steps: int, window: int
) -> Iterator[tuple[str, float, float]]:
    """
    What is shared, the share of the variance that is still open, and its standard error: for nothing, for the initial noise and
    then for every noisy step.

    Args:
        num_prompts (`int`): training prompts.
        families (`int`): of each prompt.
        siblings (`int`): in each family.
        steps (`int`): denoising steps.
        window (`int`): the first so many steps carry noise.
    """
    sample = _sampling(Families, num_prompts, families * siblings, steps, window)
    for step in range(INITIAL_NOISE - 1, window):
        rewards = sample(siblings=siblings, shared_until=step).view(num_prompts, families, siblings)
        within, whole = rewards.var(2).mean(1), rewards.flatten(1).var(1)
        share = within.mean() / whole.mean()
        error = (within - share * whole).std() / whole.mean() / num_prompts**0.5
        name = {INITIAL_NOISE - 1: "nothing", INITIAL_NOISE: "initial noise"}.get(step, f"step {step}")
        yield name, share.item(), error.item()


def antithetic(num_prompts: int, members: int, steps: int, window: int) -> tuple[float, float]:
    """Correlation within groups of the rewards of members with opposite noise, and its standard error."""
    rewards = _sampling(Pairs, num_prompts, members, steps, window)().view(num_prompts, -1)
    centred = (rewards - rewards.mean(1, keepdim=True)).unflatten(1, (-1, 2))
    products, squares = centred.prod(2).mean(1), centred.square().mean((1, 2))
    correlation = products.mean() / squares.mean()
    error = (products - correlation * squares).std() / squares.mean() / num_prompts**0.5
    return correlation.item(), error.item()


def _sampling(
    kind: type[ExpandPruneSampler], num_prompts: int, members: int, steps: int, window: int
) -> Callable[..., torch.Tensor]:
    """A function that samples groups of the first training prompts, always the same; attributes of the sampler -> rewards."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"num_generations": members, "per_device_train_batch_size": members, "num_inference_steps": steps}
        trainer = make_trainer(folder, 0, **settings)
    sampler, dataset = trainer.sampler, trainer.train_dataset
    sampler.__class__ = kind
    rows = dataset[torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:num_prompts].tolist()]
    prompts = rows.pop("prompt")
    conditioning = trainer.prompt_cache(prompts, trainer.args.negative_prompt)

    def sample(**attributes: int) -> torch.Tensor:
        vars(sampler).update(attributes)
        rollout = sampler.rollout(
            trainer.family.denoiser, prompts, rows, conditioning=conditioning, train_steps=range(window)
        )
        return rollout.rewards.double()

    return sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--families", type=int, default=8, help="of each prompt")
    parser.add_argument("--siblings", type=int, default=8, help="in each family")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    parser.add_argument("--window", type=int, default=6, help="the first so many steps carry noise")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| The same until | Variance still open | standard error |", "|---" * 3 + "|", sep="\n")
    for name, share, error in still_open(args.prompts, args.families, args.siblings, args.steps, args.window):
        print(f"| {name} | {share:.2f} | {error:.2f} |", flush=True)
    correlation, error = antithetic(args.prompts, args.families * args.siblings // 2 * 2, args.steps, args.window)
    print(f"\nCorrelation of members with opposite noise: {correlation:.2f} ± {error:.2f}")


if __name__ == "__main__":
    main()
