# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
At which step is the reward decided? The share of its variance that is still open when trajectories share all noise so far.

```
python examples/benchmarks/where_decided.py
python examples/benchmarks/where_decided.py --prompts 2 --families 2 --siblings 2    # small: only shows that it works
```

For every prompt there are a number of families of siblings. Siblings have the same initial noise and the same noise of all
steps up to the one in the row, and noise of their own after it. The variance among siblings, over that among all, is what the
later steps still decide: the most that branching there can tell apart, and the most that sharing the initial noise takes off
the variance.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator

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
    with tempfile.TemporaryDirectory() as folder:
        size = families * siblings
        settings = {"num_generations": size, "per_device_train_batch_size": size, "num_inference_steps": steps}
        trainer = make_trainer(folder, 0, **settings)
    sampler = trainer.sampler
    sampler.__class__, sampler.siblings = Families, siblings
    dataset = trainer.train_dataset
    rows = dataset[torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:num_prompts].tolist()]
    prompts = rows.pop("prompt")
    conditioning = trainer.prompt_cache(prompts, trainer.args.negative_prompt)
    for step in range(INITIAL_NOISE - 1, window):
        sampler.shared_until = step
        rollout = sampler.rollout(
            trainer.family.denoiser, prompts, rows, conditioning=conditioning, train_steps=range(window)
        )
        rewards = rollout.rewards.double().view(num_prompts, families, siblings)
        within, whole = rewards.var(2).mean(1), rewards.flatten(1).var(1)
        share = within.mean() / whole.mean()
        error = (within - share * whole).std() / whole.mean() / num_prompts**0.5
        name = {INITIAL_NOISE - 1: "nothing", INITIAL_NOISE: "initial noise"}.get(step, f"step {step}")
        yield name, share.item(), error.item()


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


if __name__ == "__main__":
    main()
