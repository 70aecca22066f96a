# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
Which schedule and which weighting learn most per second? Answered from a pool of recorded trajectories, without training.

```
python benchmarks/learning_signal.py                                          # about ten minutes on one core
python benchmarks/learning_signal.py --reference 1 --batches 1 --groups 1     # small: only shows that it works
```

First a reference direction: the policy gradient over many groups. Then a pool of unpruned groups of other prompts, with rewards,
previews at every step and, for every trajectory and trained step, the derivative of the log-probability along the
reference. A schedule with a weighting would have made of each group an update `sum_i A_i sum_s w_s grad log p_is` over its
survivors `i`. Its part along the reference is the signal, its expected squared length the noise, and

    signal^2 / (noise x cost)

is what it learns per second: with steps of the best length, progress is proportional to it. The table gives the ratio to
plain GRPO with 24 members, and a standard error from bootstrap samples of the groups.

The file is not called `signal.py`, for that is a module of the standard library, which scripts beside it would import.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from signal_pool import Pool, make_trainer, measure, reference_direction, rollouts
from signal_score import Method, score


METHODS = [
    Method("plain 24", 24),
    Method("plain 12", 12),
    Method("plain 48", 48),
    Method("plain 24, equal weights", 24, power=0.0),
    Method("plain 24, weights std", 24, power=1.0),
    Method("plain 24, previews as baseline", 24, preview_baseline=True),
    Method("random 24 -> 12", 24, 12, rule="random"),
    Method("top-k 24 -> 12", 24, 12, rule="top_k"),
    Method("post-hoc OVF 24 -> 12", 24, 12),
    Method("post-hoc OVF 24 -> 12, advantages from all", 24, 12, mean_of_all=True),
    Method("post-hoc OVF 24 -> 12, not scaled", 24, 12, scale="none"),
    Method("post-hoc OVF 24 -> 8", 24, 8),
    Method("post-hoc OVF 24 -> 6", 24, 6),
    Method("post-hoc OVF 36 -> 12", 36, 12),
    Method("post-hoc OVF 48 -> 12", 48, 12),
    Method("Pro 48 -> 24 -> 12 after 5, 7", 48, 12, prune=((5, 24), (7, 12))),
    Method("Pro 48 -> 24 -> 12 after 5 and at the end", 48, 12, prune=((5, 24),)),
    Method("Pro 24 -> 12 after 7", 24, 12, prune=((7, 12),)),
    Method("Pro 24 -> 16 -> 12 after 6 and at the end", 24, 12, prune=((6, 16),)),
    Method("Pro 36 -> 24 -> 12 after 4 and at the end", 36, 12, prune=((4, 24),)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument(
        "--output_dir", default="outputs/signal", help="where reference and pools are kept and looked for"
    )
    parser.add_argument(
        "--reference", type=int, default=36, help="batches of 8 groups of 24 for the reference direction"
    )
    parser.add_argument("--batches", type=int, default=20, help="batches of groups of 48 in the pool")
    parser.add_argument("--groups", type=int, default=4, help="groups a batch")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    parser.add_argument("--windows", type=int, nargs="+", default=[6], help="noisy, trained steps; one pool for each")
    parser.add_argument("--power", type=float, default=2.0, help="of the step weights, where a method does not say")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    direction = reference(args, folder / "reference.safetensors")
    for window in args.windows:
        pool = recorded(args, window, direction, folder / f"pool-{args.steps}-{window}.safetensors")
        print(
            f"\n{args.steps} steps, of which the first {window} are noisy and trained; {len(pool.rewards)} groups of 48\n"
        )
        print_steps(pool)
        print_methods(pool, args.power)


def reference(args: argparse.Namespace, path: Path) -> torch.Tensor:
    """The reference direction, from its file if it is there."""
    if not path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(folder, 0, num_generations=24, num_inference_steps=args.steps)
            direction = reference_direction(trainer, rollouts(trainer, 8, args.reference, first=1000), args.power)
        save_file({"direction": direction}, path)
    return load_file(path)["direction"]


def recorded(args: argparse.Namespace, window: int, direction: torch.Tensor, path: Path) -> Pool:
    """A pool of groups that the reference has not seen, from its file if it is there."""
    if not path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            settings = {"num_generations": 48, "num_inference_steps": args.steps}
            trainer = make_trainer(folder, 0, sde_window="fixed", sde_window_size=window, **settings)
            measure(trainer, args.groups, args.batches, 3000, direction).save(path)
    return Pool.load(path)


def print_steps(pool: Pool) -> None:
    """Where the signal is."""
    signal = pool.signal_per_step()
    print("| Step | std | signal | squared norm | signal^2 / squared norm, x1e-6 |", "|---" * 5 + "|", sep="\n")
    for step, (std, (mean, error), norm) in enumerate(zip(pool.stds.tolist(), signal, pool.norms.tolist())):
        print(f"| {step} | {std:.3f} | {mean:.1e} ± {error:.0e} | {norm:.1e} | {1e6 * mean * abs(mean) / norm:.1f} |")
    print()


def print_methods(pool: Pool, power: float) -> None:
    """What every method learns per second, as a ratio to the first one."""
    print("| Method | Trained | ms a prompt | Learning per second |", "|---" * 4 + "|", sep="\n")
    baseline = score(pool, METHODS[0], power)
    for method in METHODS:
        if any(step >= int(pool.steps) - 1 for step, _ in method.prune):
            continue
        found = score(pool, method, power)
        ratio = found.samples / baseline.samples
        print(
            f"| {method.name} | {method.kept} | {1000 * found.cost:.0f} | {found.value / baseline.value:.2f} ± "
            f"{ratio.std().item():.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
