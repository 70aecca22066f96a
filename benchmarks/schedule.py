# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
Does a schedule that is chosen by measurement beat the paper's fixed one? Spread and signal per second on the embedded model.

```
python benchmarks/schedule.py
python benchmarks/schedule.py --groups 2 --seeds 0 --calibration_seconds 1    # small: only shows that it works
```

For each seed, groups of 48 are recorded with previews at every step, and seconds per piece of work are measured. A schedule is
chosen on these groups, and then judged beside the paper's 48 -> 24 -> 12 after steps 5 and 7, plain GRPO and post-hoc
selection on as many other groups, of other prompts, which the choice has not seen. Noise stays at 0.7 unless
`--noise_levels` says otherwise. Two objectives: the survivors' spread per second, and their signal (sum of squared
deviations) per second.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
from trl_progrpo.calibration import calibration_config, measure_seconds, record_untrained
from trl_progrpo.cost import PruneSchedule, WorkCount
from trl_progrpo.planning import OBJECTIVES, Candidate, RecordedGroups, evaluate, propose
from trl_progrpo.policies import FlowSDE
from trl_progrpo.tiny import load_shapes


STEPS, KEPT, STARTED = 10, 12, 48
FIXED = {
    "paper, 48 -> 24 -> 12": PruneSchedule(STEPS, KEPT, STARTED, (5, 7), (24, 12)),
    "plain GRPO with 12": PruneSchedule.plain(STEPS, KEPT),
    "plain GRPO with 24": PruneSchedule.plain(STEPS, 24),
    "post-hoc OVF 24 -> 12": PruneSchedule(STEPS, KEPT, 24),
}


def make_trainer(args: argparse.Namespace, seed: int, folder: str) -> ProGRPOTrainer:
    """A trainer of the embedded model with the batch sizes of the demo."""
    config = ProGRPOConfig(
        output_dir=folder,
        num_generations=KEPT,
        per_device_train_batch_size=48,
        rollout_batch_size=192,
        num_inference_steps=STEPS,
        guidance_scale=args.guidance_scale,
        preview_decoder="shapes",
        seed=seed,
        use_cpu=True,
        report_to="none",
    )
    rows = list(load_shapes("train"))
    small = calibration_config(config, folder, previews=True)
    return ProGRPOTrainer(model="shapes", reward_funcs="shapes", args=small, train_dataset=rows)


def recorded(trainer: ProGRPOTrainer, args: argparse.Namespace, seed: int) -> list[list[RecordedGroups]]:
    """Groups to choose by and groups of other prompts to judge by, each one record per noise level."""
    rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    # Far from each other in a list that is ordered by what captions say, and different for every seed.
    spread_out = [rows[(i * len(rows) // (2 * args.groups) + 7 * seed) % len(rows)] for i in range(2 * args.groups)]
    records = []
    for half in (spread_out[::2], spread_out[1::2]):
        levels = []
        for level in args.noise_levels:
            policy = FlowSDE(noise_level=level)
            noisy = policy.stochastic_steps(trainer.family.make_schedule(STEPS))[: args.trained_steps]
            levels.append(record_untrained(trainer, half, level, policy, noisy, STEPS, STARTED))
        records.append(levels)
    return records


def measure(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One seed: what is chosen, and what it and the fixed schedules are worth on groups that were not used to choose."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(args, seed, folder)
        choose_by, judge_by = recorded(trainer, args, seed)
        unit = measure_seconds(trainer, args.calibration_seconds)

    def price(schedule: PruneSchedule) -> float:
        work = WorkCount.of(schedule, trained_steps=args.trained_steps, nfe_per_row=1 + (args.guidance_scale > 1))
        return work.cost(unit).total

    methods = {name: (schedule, args.noise_levels[0]) for name, schedule in FIXED.items()}
    for objective in OBJECTIVES:
        chosen = propose(choose_by, price, STEPS, KEPT, objective)
        methods[f"chosen for {objective}"] = (chosen.schedule, chosen.level)
    unseen = {groups.level: groups for groups in judge_by}
    return {
        "seed": seed,
        "seconds per unit": asdict(unit),
        "rank correlations": choose_by[0].rank_correlations(),
        "methods": {
            name: row(evaluate(schedule, unseen[level], price(schedule)))
            for name, (schedule, level) in methods.items()
        },
    }


def row(candidate: Candidate) -> dict[str, Any]:
    """What is told of a schedule."""
    schedule = candidate.schedule
    return {
        "sizes": schedule.sizes,
        "prune_steps": schedule.prune_steps,
        "noise_level": candidate.level,
        "spread": candidate.spread,
        "signal": candidate.signal,
        "seconds": candidate.cost,
        "spread per second": candidate.spread / candidate.cost,
        "signal per second": candidate.signal / candidate.cost,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--groups", type=int, default=16, help="groups to choose by, and as many to judge by")
    parser.add_argument("--noise_levels", type=float, nargs="+", default=[0.7])
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument(
        "--trained_steps", type=int, default=9, help="the first so many steps carry noise and are trained"
    )
    parser.add_argument("--calibration_seconds", type=float, default=20.0)
    parser.add_argument("--output", help="a file for everything that was measured, as JSON")
    args = parser.parse_args()
    results = []
    for seed in args.seeds:
        result = measure(args, seed)
        results.append(result)
        paper = result["methods"]["paper, 48 -> 24 -> 12"]
        print(f"seed {seed}, {args.groups} groups to choose by and {args.groups} others to judge by")
        print(
            "| Schedule | Sizes | After steps | Spread | Signal | ms | Spread / s | Signal / s |",
            "|---" * 8 + "|",
            sep="\n",
        )
        for name, found in result["methods"].items():
            ratios = [found[f"{what} per second"] / paper[f"{what} per second"] for what in ("spread", "signal")]
            print(
                f"| {name} | {' -> '.join(map(str, found['sizes']))} | {', '.join(map(str, found['prune_steps'])) or '-'} | "
                f"{found['spread']:.3f} | {found['signal']:.2f} | {1000 * found['seconds']:.0f} | "
                f"{ratios[0]:.2f}x | {ratios[1]:.2f}x |",
                flush=True,
            )
        print()
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
