# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
What could pruning gain at best?

```
python benchmarks/ceiling.py
python benchmarks/ceiling.py --groups 4 --members 12 --lessons 8 --still_open 2 --siblings 2    # only to see it work
```

It samples unpruned groups and prints three tables.

1. After each noisy step, the rank correlation within groups of the final reward with the reward of the preview; with a latent
   reward head, a network on what the denoiser makes of the latents, trained on other prompts; and with both. Beside them
   stands the correlation of the best guess there can be, from the share of the variance that later noise decides
   (`where_decided.py`).
2. The schedule with the most signal (`docs/cost.md`) per FLOP, as a ratio to plain GRPO with 24, if it were pruned by such
   guesses. It is the best of hundreds on the same groups, so a little too good.
3. The signal of selections on finished images that keep more of the groups with more spread, as a ratio to those that keep
   equally many of each.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from latent_head import fit_head, head_features, last_hidden_states
from paper_clustering import over_groups
from signal_pool import make_trainer, rollouts
from where_decided import still_open

from trl_progrpo import ProGRPOTrainer, Rollout
from trl_progrpo.cost import PruneSchedule, UnitCost, WorkCount
from trl_progrpo.flops import unit_flops
from trl_progrpo.metrics import rank_correlation
from trl_progrpo.planning import Gain, RecordedGroups, candidates, evaluate
from trl_progrpo.pruning import ovf
from trl_progrpo.recording import preview_rewards


STEPS, WINDOW = 10, 6
PROMPTS = 8
"""Prompts of a rollout."""

KEPT = (4, 6, 8, 12, 16, 24)
"""Numbers of survivors that are tried."""


@dataclass(frozen=True)
class Recorded:
    """
    Unpruned groups of `n` trajectories for `P` prompts.

    Attributes:
        rewards (`torch.Tensor` of shape `(P, n)`): of finished images.
        previews (`torch.Tensor` of shape `(T - 1, P, n)`): of the previews after every step but the last.
        features (`torch.Tensor` of shape `(WINDOW, P, n, f)`): what the denoiser makes of the latents of each noisy step.
    """

    rewards: torch.Tensor
    previews: torch.Tensor
    features: torch.Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--groups", type=int, default=48, help="that are judged")
    parser.add_argument("--members", type=int, default=48, help="of each")
    parser.add_argument(
        "--lessons", type=int, default=256, help="groups of 24 that the head learns from, of other prompts"
    )
    parser.add_argument("--still_open", type=int, default=12, help="prompts for the best guess there can be")
    parser.add_argument("--siblings", type=int, default=8, help="of each of them, in as many families")
    args = parser.parse_args()
    torch.set_num_threads(1)
    trainer = whole_group_trainer(args.members)
    everything = trainer.train_dataset.shuffle(seed=0)
    judged = record(trainer, everything.select(range(args.groups)), args.members)
    lessons = record(
        trainer, everything.select(range(args.groups, args.groups + args.lessons)), min(24, args.members), first=1000
    )
    heads = [learn(lessons, step) for step in range(WINDOW)]
    guessed = torch.stack([head(judged) for head in heads])
    both = torch.stack([blend(lessons, judged, step, heads[step]) for step in range(WINDOW)])
    shares = [share for _, share, _ in still_open(args.still_open, args.siblings, args.siblings, STEPS, WINDOW)]
    # The first two rows are those of nothing and of the initial noise.
    best = [math.sqrt(1 - min(max(share, 0.0), 1.0)) for share in shares[2:]]
    print_correlations(judged, guessed, both, best)
    print_gains(trainer, judged, best)
    print_adaptive(judged.rewards.double())


def whole_group_trainer(members: int) -> ProGRPOTrainer:
    """Its sampler makes groups of `members` trajectories, noisy in the first steps."""
    with tempfile.TemporaryDirectory() as folder:
        return make_trainer(
            folder,
            0,
            num_generations=members,
            per_device_train_batch_size=members,
            num_inference_steps=STEPS,
            sde_window="fixed",
            sde_window_size=WINDOW,
        )


def record(trainer: ProGRPOTrainer, dataset, members: int, first: int = 0) -> Recorded:
    """Samples a group for every prompt of `dataset`; rollouts are numbered from `first`."""
    trainer.sampler.num_generations = members
    rewards, previews, features = [], [], []
    for start in range(0, len(dataset), PROMPTS):
        trainer.train_dataset = dataset.select(range(start, min(start + PROMPTS, len(dataset))))
        prompts = len(trainer.train_dataset)
        (rollout,) = rollouts(trainer, prompts, 1, first + start // PROMPTS)
        rewards.append(rollout.rewards.view(prompts, members))
        previews.append(torch.stack(list(preview_rewards(rollout).values())))
        features.append(_features(trainer, rollout).unflatten(1, (prompts, members)))
    return Recorded(torch.cat(rewards), torch.cat(previews, 1), torch.cat(features, 1))


@torch.no_grad()
def _features(trainer: ProGRPOTrainer, rollout: Rollout) -> torch.Tensor:
    """[`head_features`] of every trained step `(S, B, f)`."""
    denoiser, steps = trainer.family.denoiser, []
    with last_hidden_states(denoiser) as found:
        for s, index in enumerate(rollout.step_indices):
            rows = []
            for part in torch.arange(len(rollout)).split(192):
                conditioning = rollout.conditioning.rows(rollout.prompt_index[part])
                timestep = rollout.schedule.timesteps[index]
                trainer.family.predict(denoiser, rollout.latents[part, s], timestep, conditioning)
                rows.append(head_features(found.pop(), conditioning))
            steps.append(torch.cat(rows))
    return torch.stack(steps)


def learn(lessons: Recorded, step: int, epochs: int = 12) -> Callable[[Recorded], torch.Tensor]:
    """
    A head for one step, trained on seven eighths of the lessons to say by how much a member's reward is above the mean of its
    group. Returns what it says of the members `(P, n)` of other groups.
    """
    taught = _taught(lessons)
    head = fit_head(
        lessons.features[step, :taught].flatten(0, 1), _centred(lessons.rewards[:taught]).flatten(), step, epochs
    )
    return lambda groups: head(groups.features[step])


def blend(lessons: Recorded, judged: Recorded, step: int, head: Callable[[Recorded], torch.Tensor]) -> torch.Tensor:
    """Preview and head in the proportion that least squares finds on the eighth of the lessons that the head has not seen."""
    taught = _taught(lessons)
    pairs = torch.stack([lessons.previews[step], head(lessons)], -1)[taught:]
    target = _centred(lessons.rewards[taught:]).reshape(-1, 1)
    weights = torch.linalg.lstsq(_centred(pairs).reshape(-1, 2), target).solution
    return (torch.stack([judged.previews[step], head(judged)], -1) @ weights).squeeze(-1)


def _taught(lessons: Recorded) -> int:
    return len(lessons.rewards) * 7 // 8


def _centred(values: torch.Tensor) -> torch.Tensor:
    return values - values.mean(1, keepdim=True)


def print_correlations(judged: Recorded, guessed: torch.Tensor, both: torch.Tensor, best: list[float]) -> None:
    print("| After step | Preview | Latent reward head | Both | Best guess there can be |", "|---" * 5 + "|", sep="\n")
    for step in range(WINDOW):
        found = [rank_correlation(guess[step], judged.rewards) for guess in (judged.previews, guessed, both)]
        cells = ["{:.2f} ± {:.2f}".format(*over_groups(correlations)) for correlations in found]
        print(f"| {step} | {' | '.join(cells)} | {best[step]:.2f} |")


def print_gains(trainer: ProGRPOTrainer, judged: Recorded, best: list[float]) -> None:
    rewards = judged.rewards
    conditioning = trainer.prompt_cache(trainer.train_dataset[:1]["prompt"], trainer.args.negative_prompt)
    unit = unit_flops(trainer.family, conditioning, trainer.preview_decoder, trainer.args.preview_downscale)
    free = replace(unit, preview=0.0)
    noise = torch.randn(rewards.shape, generator=torch.Generator().manual_seed(0))
    scaled = _centred(rewards) / (rewards.std(1, keepdim=True) + 1e-6)
    previews = dict(enumerate(judged.previews))
    # After the last noisy step nothing is open.
    ideal = {s: r * scaled + math.sqrt(1 - r * r) * noise for s, r in enumerate(best + [1.0] * (STEPS - 1 - WINDOW))}
    print("\n| Pruned by | Best schedule | Signal per FLOP |", "|---" * 3 + "|", sep="\n")
    for name, guesses, price in (
        ("finished images only", {}, unit),
        ("previews", previews, unit),
        ("previews that cost nothing", previews, free),
        ("the best guess there can be, for nothing", ideal, free),
        ("final rewards, known in advance", dict.fromkeys(previews, rewards), free),
    ):
        print_best(name, guesses, rewards, price)


def print_best(name: str, guesses: Mapping[int, torch.Tensor], rewards: torch.Tensor, unit: UnitCost) -> None:
    schedule, ratio, error = best_schedule(guesses, rewards, unit)
    print(f"| {name} | {schedule.in_words()} | {ratio:.2f} ± {error:.2f} |", flush=True)


def best_schedule(
    guesses: Mapping[int, torch.Tensor],
    rewards: torch.Tensor,
    unit: UnitCost,
    saved: float = 0.0,
    must_prune: bool = False,
) -> tuple[PruneSchedule, float, float]:
    """
    The schedule with the most signal per FLOP, its ratio to that of plain GRPO with 24, and the standard error over groups.

    Args:
        guesses (`Mapping`): step -> guesses `(P, n)` of the final reward, by which groups can be pruned after it.
        rewards (`torch.Tensor` of shape `(P, n)`): the final ones.
        unit ([`UnitCost`]): FLOPs.
        saved (`float`, *optional*, defaults to 0): FLOPs of a guess that whoever survives it need not spend again.
        must_prune (`bool`, *optional*, defaults to `False`): look only at schedules with a checkpoint.
    """
    groups, members = RecordedGroups(0.0, guesses, rewards), rewards.shape[1]

    def judge(schedule: PruneSchedule):
        work = WorkCount.of(schedule, trained_steps=WINDOW, num_rewards=1, num_preview_rewards=1)
        return evaluate(schedule, groups, work.cost(unit).total - saved * sum(schedule.prune_sizes))

    tried = [
        judge(schedule)
        for kept in KEPT
        if kept < members
        for schedule in candidates(STEPS, kept, members)
        if set(schedule.prune_steps) <= set(guesses) and (schedule.prune_steps or not must_prune)
    ]
    plain, winner = judge(PruneSchedule.plain(STEPS, min(24, members))), max(tried, key=lambda one: one.score)
    ours, theirs = torch.tensor(winner.per_group), torch.tensor(plain.per_group)
    ratio = ours.mean() / theirs.mean()
    error = (ours - ratio * theirs).std() / theirs.mean() / len(ours) ** 0.5
    return winner.schedule, ratio.item(), error.item()


def print_adaptive(rewards: torch.Tensor) -> None:
    members, spread = rewards.shape[1], rewards.std(1, correction=0)
    low, high = spread.quantile(torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
    print(
        f"\n{(spread == 0).sum()} of {len(rewards)} groups have no spread; it is {low:.2f} to {high:.2f} in the middle 80 %.\n"
    )
    print(
        "| Selection | Numbers in proportion to the spread | The most different of all groups |",
        "|---" * 3 + "|",
        sep="\n",
    )
    for started, kept in ((members // 2, members // 4), (members, members // 4), (members, members // 2)):
        groups = rewards[:, :started]
        furthest = _centred(groups).abs()
        equal = _signal(groups, [kept] * len(groups))
        shares = groups.std(1) / groups.std(1).mean()
        counts = (furthest >= furthest.flatten().topk(kept * len(groups)).values[-1]).sum(1)
        cells = [_signal(groups, numbers) / equal for numbers in ((kept * shares).round().int(), counts)]
        print(f"| {started} to {kept} | {cells[0]:.2f} | {cells[1]:.2f} |")


def _signal(groups: torch.Tensor, kept: Sequence[int]) -> float:
    """Sum of squared deviations of what OVF keeps of each group."""
    total = 0.0
    for rewards, number in zip(groups, kept):
        chosen = ovf(rewards[None], min(max(int(number), 2), len(rewards)))
        total += Gain.of(rewards[chosen]).signal
    return total


if __name__ == "__main__":
    main()
