# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
The figures and tables of the paper (arXiv 2512.15347) in miniature, on the embedded model as a flow and as a diffusion model.

```
python benchmarks/paper.py clustering --model flow          # its Fig. 1: rewards lie near the mean of their group
python benchmarks/paper.py cost --model flow                # its Table 4
python benchmarks/paper.py curves --model diffusion         # its Fig. 2 and 5: reward and spread in training
python benchmarks/paper.py group_sizes --model diffusion    # its Table 5
python benchmarks/paper.py checkpoints --model diffusion    # its Table 6
```

The last three train. A run is one JSONL file per schedule and seed in `--output`, and is not made again: an interrupted
command goes on with the first run that is not finished, and commands share the runs they have in common.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from paper_clustering import DISTANCES, compare, normal_shares, over_groups, record
from paper_figures import clustering_figure, curves_figure
from paper_settings import SETTINGS, STEPS, Setting, name_of
from paper_training import Size, runs

from trl_progrpo.adapters import add_adapter, default_lora_config
from trl_progrpo.cost import PruneSchedule, UnitCost, WorkCount
from trl_progrpo.families import family_class, load_preview_decoder
from trl_progrpo.flops import unit_flops
from trl_progrpo.metrics import rank_correlation


PAPER_UNIT = UnitCost(network=3.88 / 2, training=4 * 3.88 / 2, decode=2.82, preview=2.82)
"""TFLOPs that reproduce the paper's cost table: a step with guidance is two evaluations, an image decoded and scored 2.82."""

PAPER_COSTS = (
    (PruneSchedule.plain(10, 24), 453474, "1"),
    (PruneSchedule(10, 12, 48, (5, 7), (24, 12)), 335627, "1.26"),
    (PruneSchedule(10, 12, 24, (5, 7), (16, 12)), 267366, "1.41"),
)
"""Schedule, TFLOPs and speed-up as the paper reports them."""


def clustering(args: argparse.Namespace) -> None:
    """Fig. 1."""
    setting = SETTINGS[args.model]
    groups = record(setting, args.groups, args.seed)
    rows, deviations = compare(setting, groups, args.seed)
    flat = int((groups.final.std(1, correction=0) == 0).sum())
    print(
        f"{args.model}, {args.groups} groups, {flat} of them without spread; share of members near the mean of their set"
    )
    cells = [
        [
            row["set"],
            *(percent(*near) for near in row["near"]),
            measured(*row["spread"], 3),
            measured(*row["signal"], 2),
        ]
        for row in rows
    ]
    cells.append(["normal rewards", *map(percent, normal_shares()), "", ""])
    print(table(["Set", *(f"within {d:g}" for d in DISTANCES), "Spread", "Sum of squares"], cells))
    correlations = {
        step: over_groups(rank_correlation(previews, groups.final)) for step, previews in groups.previews.items()
    }
    print("\nrank correlation of preview and final reward")
    print(table(list(map(str, correlations)), [[measured(*value, 2) for value in correlations.values()]]))
    write(args, {"groups": args.groups, "seed": args.seed, "rank_correlations": correlations, "sets": rows})
    title = f"Rewards around their mean, {args.groups} groups of the {args.model} model"
    print(clustering_figure(title, deviations, args.output / f"clustering_{args.model}.png"))


def cost(args: argparse.Namespace) -> None:
    """Table 4, by the paper's own units and by counted FLOPs of the miniature."""
    paper = []
    for schedule, reported, speedup in PAPER_COSTS:
        total = WorkCount.of(schedule, num_prompts=96, nfe_per_row=2).cost(PAPER_UNIT).total
        ratio = PAPER_COSTS[0][1] / reported
        paper.append([name_of(schedule), str(reported), f"{total:.0f}", speedup, f"{ratio:.3f}"])
    print(table(["Schedule", "TFLOPs, reported", "Computed", "Speed-up, reported", "Ratio of its TFLOPs"], paper))
    setting = SETTINGS[args.model]
    unit, rows = counted_flops(setting), []
    baseline = None
    for schedule in (setting.plain, PruneSchedule.plain(STEPS, setting.keep), setting.pro()):
        work = WorkCount.of(schedule, trained_steps=setting.trained_steps)
        total = work.cost(unit).total
        baseline = baseline or total
        counts = (work.nfe, work.preview_decodes, work.decodes, work.training_passes)
        rows.append([name_of(schedule), *map(str, counts), f"{total / 1e9:.2f}", f"{baseline / total:.2f}"])
    print(f"\n{args.model}, per prompt, {setting.trained_steps} of {STEPS} steps trained")
    header = ["Schedule", "Evaluations", "Previews", "Decodes", "Training passes", "GFLOPs", "Ratio"]
    print(table(header, rows))
    write(args, {"paper": paper, "miniature": rows, "unit_flops": vars(unit)})


def counted_flops(setting: Setting) -> UnitCost:
    """Of the networks themselves, with the adapter that is trained."""
    pipeline = setting.load()
    family = family_class(pipeline)(pipeline)
    with torch.no_grad():
        # Otherwise the backward pass would run on into the text encoders.
        conditioning = family.encode_prompts(["a red circle"])
    add_adapter(family, default_lora_config(family))
    return unit_flops(family, conditioning, load_preview_decoder("shapes", family.device))


def study(args: argparse.Namespace) -> None:
    """Trains what a figure or table compares, and says how it went."""
    size = Size(args.iterations, args.prompts, args.eval_prompts, args.eval_every)
    methods = {
        name_of(schedule): runs(args.model, schedule, args.seeds, size, args.output / "runs")
        for schedule in SETTINGS[args.model].studies()[args.command]
    }
    before = next(iter(methods.values()))[0].evaluations[0]
    print(
        f"{args.model}, {size.iterations} rollouts of {size.prompts} prompts, seeds {', '.join(map(str, args.seeds))}"
    )
    print(
        f"held-out reward before training {before['reward']:.3f} ± {before['stderr']:.3f} over {size.eval_prompts} prompts"
    )
    rows = []
    for name, found in methods.items():
        held_out, spread = [run.held_out for run in found], [run.spread for run in found]
        seconds = [run.total("seconds") for run in found]
        work = [f"{found[0].total(what):.0f}" for what in ("nfe", "training_passes")]
        rows.append([name, mean_and_error(held_out), mean_and_error(spread), mean_and_error(seconds, 0), *work])
    print(table(["Schedule", "Held-out reward", "Spread", "Seconds", "Evaluations", "Training passes"], rows))
    write(args, {"before": before, "methods": rows, "seeds": args.seeds, **vars(size)})
    if args.command == "curves":
        title = f"Training the {args.model} model: mean and standard error over {len(args.seeds)} seeds"
        print(curves_figure(title, methods, args.output / f"curves_{args.model}.png"))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def percent(share: float, error: float | None = None) -> str:
    """Of a share in [0, 1]."""
    return f"{100 * share:.0f} %" if error is None else f"{100 * share:.0f} ± {100 * error:.0f} %"


def measured(mean: float, error: float, digits: int) -> str:
    """A mean and its standard error."""
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def mean_and_error(values: Sequence[float], digits: int = 3) -> str:
    """Mean over seeds with its standard error, if there are several."""
    mean = fmean(values)
    return f"{mean:.{digits}f}" if len(values) < 2 else measured(mean, stdev(values) / len(values) ** 0.5, digits)


def write(args: argparse.Namespace, values: dict[str, Any]) -> None:
    """What a command found out, as JSON."""
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / f"{args.command}_{args.model}.json"
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", choices=list(SETTINGS), default="flow")
    common.add_argument("--output", type=Path, default=Path("outputs/paper"))
    common.add_argument("--threads", type=int, default=1, help="of torch")
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("clustering", parents=[common], help="Fig. 1")
    command.add_argument("--groups", type=int, default=64, help="of 48, each of another training prompt")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=clustering)
    commands.add_parser("cost", parents=[common], help="Table 4").set_defaults(run=cost)
    for name, what in (("curves", "Fig. 2 and 5"), ("group_sizes", "Table 5"), ("checkpoints", "Table 6")):
        command = commands.add_parser(name, parents=[common], help=what)
        command.add_argument("--iterations", type=int, default=24, help="rollouts")
        command.add_argument("--prompts", type=int, default=8, help="per rollout")
        command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        command.add_argument("--eval_prompts", type=int, default=256, help="held out")
        command.add_argument("--eval_every", type=int, default=6, help="rollouts")
        command.set_defaults(run=study)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    main()
