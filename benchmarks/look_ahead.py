# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
What would previews be worth that look further ahead, or through the pipeline's own decoder?

```
python benchmarks/look_ahead.py
python benchmarks/look_ahead.py --groups 4 --members 12      # only to see it work
```

A preview of the program is the clean sample that a step's own network output predicts: no evaluation, but the noise of that
step is not in it, and one step to the end is a long one. Here previews are made from the latents that the step leads to, with
one, two or three evaluations and no more noise. The first of them is the next step's, so those who survive have it for nothing.

It samples unpruned groups and prints two tables: the rank correlation of these previews with the final reward, within groups;
and the pruning schedule with the most signal (`docs/cost.md`) per FLOP, as a ratio to plain GRPO with 24, which is the best of
hundreds on the same groups and so a little too good.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from ceiling import PROMPTS, WINDOW, best_schedule, whole_group_trainer
from paper_clustering import over_groups

from trl_progrpo import ProGRPOTrainer, Rollout
from trl_progrpo.flops import unit_flops
from trl_progrpo.metrics import rank_correlation
from trl_progrpo.recording import sample_whole_groups


EVALUATIONS = (0, 1, 2, 3)
"""Of the network, for a preview. None: it is the program's, from the step's own output."""

DECODE = {"small": "preview", "VAE": "decode"}
"""Decoder -> what a [`UnitCost`] calls its work."""

Previews = Mapping[tuple[int, str], Mapping[int, torch.Tensor]]
"""(evaluations, decoder) -> step -> rewards of the previews `(P, n)`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--groups", type=int, default=24, help="of another training prompt each")
    parser.add_argument("--members", type=int, default=48, help="of each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    trainer = whole_group_trainer(args.members)
    dataset = trainer.train_dataset.shuffle(seed=0)
    rewards, previews = [], {}
    for start in range(0, args.groups, PROMPTS):
        columns = dataset[start : min(start + PROMPTS, args.groups)]
        prompts = columns.pop("prompt")
        rollout = sample(trainer, prompts, columns, start // PROMPTS)
        rewards.append(rollout.rewards.view(len(prompts), -1))
        for kind, step, images in look_ahead(trainer, rollout):
            found = score(trainer, rollout, prompts, columns, images).view(len(prompts), -1)
            previews.setdefault(kind, {}).setdefault(step, []).append(found)
    rewards = torch.cat(rewards)
    previews = {
        kind: {step: torch.cat(parts) for step, parts in by_step.items()} for kind, by_step in previews.items()
    }
    print_correlations(previews, rewards)
    print_gains(trainer, previews, rewards)


def sample(trainer: ProGRPOTrainer, prompts: Sequence[str], columns: Mapping[str, Any], rollout_index: int) -> Rollout:
    """Unpruned groups with the latents of all noisy steps."""
    return sample_whole_groups(
        trainer.sampler,
        trainer.family.denoiser.eval(),
        prompts,
        columns,
        num_expansions=trainer.args.num_generations,
        conditioning=trainer.prompt_cache(prompts, trainer.args.negative_prompt),
        noise_steps=trainer.args.noise_steps(trainer.stochastic_steps),
        rollout_index=rollout_index,
    )


@torch.no_grad()
def look_ahead(trainer: ProGRPOTrainer, rollout: Rollout) -> Iterator[tuple[tuple[int, str], int, torch.Tensor]]:
    """Yields what kind of preview it is, the step it is made after, and the images of all rows."""
    family, sigmas = trainer.family, rollout.schedule.sigmas.tolist()
    parts = torch.arange(len(rollout)).split(trainer.args.rollout_batch_size)
    conditionings = [rollout.conditioning.rows(rollout.prompt_index[part]) for part in parts]

    def to_the_end(latents: torch.Tensor, sigma: float, steps: int) -> torch.Tensor:
        for k in range(steps):
            time = torch.tensor(sigma * (1 - k / steps) * 1000)
            outputs = [family.predict(family.denoiser, latents[p], time, c) for p, c in zip(parts, conditionings)]
            latents = latents - sigma / steps * torch.cat(outputs)
        return latents

    for step in range(WINDOW):
        for evaluations in EVALUATIONS:
            begin = step + (evaluations > 0)
            clean = to_the_end(rollout.latents[:, begin], sigmas[begin], max(evaluations, 1))
            for name, decoder in (("small", trainer.preview_decoder), ("VAE", None)):
                images = [family.decode_preview(clean[part], decoder) for part in parts]
                yield (evaluations, name), step, torch.cat(images)


def score(
    trainer: ProGRPOTrainer,
    rollout: Rollout,
    prompts: Sequence[str],
    columns: Mapping[str, Any],
    images: torch.Tensor,
) -> torch.Tensor:
    """Rewards `(B,)` of the previews of a rollout's rows."""
    index = rollout.prompt_index.tolist()
    given = {name: [values[i] for i in index] for name, values in columns.items()}
    return trainer.sampler.preview_scorer([prompts[i] for i in index], images, given, preview=True)[:, 0]


def print_correlations(previews: Previews, rewards: torch.Tensor) -> None:
    print("| Evaluations | Decoder | " + " | ".join(f"after step {step}" for step in range(WINDOW)) + " |")
    print("|---" * (2 + WINDOW) + "|")
    for (evaluations, decoder), guesses in sorted(previews.items()):
        correlations = (over_groups(rank_correlation(guess, rewards)) for guess in guesses.values())
        cells = ["{:.2f} ± {:.2f}".format(*found) for found in correlations]
        print(f"| {evaluations} | {decoder} | {' | '.join(cells)} |")


def print_gains(trainer: ProGRPOTrainer, previews: Previews, rewards: torch.Tensor) -> None:
    conditioning = trainer.prompt_cache(["a red circle"], trainer.args.negative_prompt)
    unit = unit_flops(trainer.family, conditioning, trainer.preview_decoder)
    print(
        "\n| Evaluations | Decoder | Best schedule with a checkpoint | At its price | At the small decoder's | For nothing |",
        "|---" * 6 + "|",
        sep="\n",
    )
    for (evaluations, decoder), guesses in sorted(previews.items()):
        saved = unit.network if evaluations else 0.0
        prices = [decode + evaluations * unit.network for decode in (getattr(unit, DECODE[decoder]), unit.preview)]
        found = [best_schedule(guesses, rewards, replace(unit, preview=price), saved, True) for price in prices]
        found.append(best_schedule(guesses, rewards, replace(unit, preview=0.0), must_prune=True))
        ratios = " | ".join(f"{ratio:.2f} ± {error:.2f}" for _, ratio, error in found)
        print(f"| {evaluations} | {decoder} | {found[0][0].in_words()} | {ratios} |", flush=True)
    schedule, ratio, error = best_schedule({}, rewards, unit)
    print(f"\nWithout a checkpoint: {schedule.in_words()}, {ratio:.2f} ± {error:.2f}")


if __name__ == "__main__":
    main()
