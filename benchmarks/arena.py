# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
Methods against each other at equal compute, on the embedded model.

```
python benchmarks/arena.py --config benchmarks/arena.yaml --output_dir outputs/arena
```

The YAML file names methods, each the settings of [`ProGRPOConfig`] that set it apart. First every method's learning rate is
chosen among the same candidates, unless it names one: by the reward on TRAINING prompts late in a run. Then every
method is run with every seed until the budget of counted FLOPs (and of CPU seconds, if one is given) is used up, and
evaluated on the same held-out prompts at equal costs. Runs are written to `OUTPUT_DIR/runs/METHOD-SEED.jsonl`; what is
finished is not run again, so the command can be stopped and given again, and methods or seeds added. At the end stand
`table.md`, `summary.json` and `curves.png`.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from arena_report import evaluations, read_log, report, slug
from arena_run import Budget, run


@dataclass
class Arena:
    """
    The YAML file.

    Args:
        methods (`dict`): name -> settings of [`ProGRPOConfig`] on top of `common`; `switch` names one of `arena_switches.py`.
        budget (`dict`): of every run, see [`Budget`].
        seeds (`list[int]`): of the runs.
        common (`dict`): settings of all methods.
        tuning (`dict`, *optional*): `learning_rates` to try, `seed` and `share` of the budget; with it the rate of
            every method that has none of its own is chosen.
        references (`list[str]`, *optional*): methods whose end the others are to reach at less cost; the first one when unset.
        drawn (`list[str]`, *optional*): methods in the figure; all when unset.
        variant (`str`, *optional*, defaults to `"flow"`): or `"ddim"`.
        eval_prompts (`int`, *optional*, defaults to 256): held-out prompts.
        eval_images (`int`, *optional*, defaults to 1): images of each.
    """

    methods: dict[str, dict[str, Any]]
    budget: dict[str, Any]
    seeds: list[int]
    common: dict[str, Any] = field(default_factory=dict)
    tuning: dict[str, Any] | None = None
    references: list[str] | None = None
    drawn: list[str] | None = None
    variant: str = "flow"
    eval_prompts: int = 256
    eval_images: int = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--config", required=True, help="YAML file of methods")
    parser.add_argument("--output_dir", default="outputs/arena")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of those of the file")
    parser.add_argument("--only", nargs="+", help="names of methods to run; the table has all that were run")
    args = parser.parse_args()
    arena = Arena(**yaml.safe_load(Path(args.config).read_text(encoding="utf-8")))
    folder = Path(args.output_dir)
    seeds, names = args.seeds or arena.seeds, args.only or list(arena.methods)
    for field_name, given in (("--only", names), ("references", arena.references), ("drawn", arena.drawn)):
        unknown = set(given or ()) - set(arena.methods)
        if unknown:
            parser.error(f"{field_name} names {', '.join(sorted(unknown))}; the file has {', '.join(arena.methods)}.")

    settings = {name: {**arena.common, **arena.methods[name]} for name in names}
    rates = tune(arena, settings, folder, args.jobs) if arena.tuning else {}
    for name, rate in rates.items():
        settings[name]["learning_rate"] = rate
    budget = Budget(**arena.budget)
    # Seed by seed, so that a table of all methods is there early.
    jobs = [(settings[name], seed, budget, run_file(folder, name, seed), {}) for seed in seeds for name in names]
    finish(arena, jobs, args.jobs)
    methods = list(arena.methods)
    text = report(folder, arena.references or methods[:1], methods, arena.drawn or methods)
    print(text)


def tune(arena: Arena, settings: dict[str, dict[str, Any]], folder: Path, jobs: int) -> dict[str, float]:
    """The learning rate of every method that has none of its own: the best of the candidates on training prompts."""
    tuning = arena.tuning
    open_names = [name for name, setting in settings.items() if "learning_rate" not in setting]
    whole = Budget(**arena.budget)
    budget = Budget(whole.teraflops * tuning["share"], 0.0, evaluations=4)
    files = {
        (name, rate): folder / "tuning" / f"{slug(name)}-{rate:g}.jsonl"
        for name in open_names
        for rate in tuning["learning_rates"]
    }
    finish(
        arena,
        [
            ({**settings[name], "learning_rate": rate}, tuning["seed"], budget, file, {"eval_on": "train"})
            for (name, rate), file in files.items()
        ],
        jobs,
    )

    def late(name: str, rate: float) -> float:
        # The last two of four evaluations: one alone is noisy.
        points = evaluations(read_log(files[name, rate]))
        return sum(point["reward"] for point in points[-2:]) / 2

    return {name: max(tuning["learning_rates"], key=lambda rate: late(name, rate)) for name in open_names}


def finish(arena: Arena, jobs: Iterable[tuple], workers: int) -> None:
    """Runs what is not finished yet, each in a process of its own, so that its CPU seconds are its own."""
    todo = [job for job in jobs if not is_finished(job[3], job[0], job[2])]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        futures = {}
        for settings, seed, budget, log, more in todo:
            given = {
                "variant": arena.variant,
                "eval_prompts": arena.eval_prompts,
                "eval_images": arena.eval_images,
                **more,
            }
            futures[pool.submit(run, settings, seed, budget, log, **given)] = log
        for number, future in enumerate(as_completed(futures), 1):
            future.result()
            points = evaluations(read_log(futures[future]))
            print(
                f"[{number}/{len(todo)}] {futures[future].stem}: {points[0]['reward']:.3f} -> {points[-1]['reward']:.3f} with "
                f"{points[-1]['teraflops']:.2f} TFLOPs, {points[-1]['seconds']:.0f} s",
                flush=True,
            )


def is_finished(log: Path, settings: dict[str, Any], budget: Budget) -> bool:
    """Whether a run with these settings and this budget has been made to its end."""
    lines = read_log(log)
    return lines is not None and lines[0]["settings"] == settings and lines[0]["budget"] == asdict(budget)


def run_file(folder: Path, name: str, seed: int) -> Path:
    """Where a run is logged."""
    return folder / "runs" / f"{slug(name)}-{seed}.jsonl"


if __name__ == "__main__":
    main()
