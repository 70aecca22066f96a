# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
What the program itself costs: time outside the networks, and images per second beside a plain loop and TRL's DDPOTrainer.

```
python benchmarks/speed.py
python benchmarks/speed.py --ddpo_python path/to/python    # of an environment with TRL 0.21, see speed_ddpo.py
python benchmarks/speed.py --device cuda --dtype bfloat16
python benchmarks/speed.py --smoke                         # seconds long: only shows that the script works
```

Contenders take turns in processes of their own; every ratio is of turns that followed each other, and medians are told with
the middle half of the rounds. Seconds of the processor stand beside those of the wall clock, which other programs disturb.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from speed_calls import Calls
from speed_turns import PREFIX, Turns
from speed_work import Setting, make_trainer, settings

from trl_progrpo import ProGRPOTrainer


HERE = Path(__file__).resolve().parent
OURS, STRAIGHT, DDPO = "trl_progrpo", "straight loop", "TRL DDPOTrainer"
SCRIPTS = {OURS: "speed_work.py", STRAIGHT: "speed_straight.py", DDPO: "speed_ddpo.py"}
PARTS = {
    "forward": ("rollout", "forward"),
    "backward": ("backward",),
    "optimiser": ("optimiser",),
    "decode": ("decode", "preview"),
    "reward": ("reward",),
}


@contextmanager
def watched(trainer: ProGRPOTrainer, turns: Turns, echo: bool = False) -> Iterator[Calls]:
    """All calls of networks, decoders, rewards and optimiser inside the block; see [`Calls`]."""
    calls, denoiser, runner = Calls(turns, echo), trainer.family.denoiser, trainer.reward_runner
    with ExitStack() as stack:

        def watch(owner: Any, name: Any, kind: Any) -> None:
            stack.enter_context(calls.watch(owner, name, kind))

        watch(denoiser, "forward", lambda: "forward" if torch.is_grad_enabled() else "rollout")
        watch(trainer.pipeline.vae, "decode", "decode")
        if trainer.preview_decoder is not None:
            watch(trainer.preview_decoder, "decode", "preview")
        watch(runner.functions, 0, "reward")
        watch(trainer.pipeline, "encode_prompt", "text encoder")
        watch(trainer.accelerator, "backward", "backward")
        watch(trainer.accelerator, "clip_grad_norm_", "optimiser")
        # The learning rate's schedule wraps `step` in its own way, so it cannot be replaced.
        for hook in calls.around("optimiser", trainer.create_optimizer()):
            stack.callback(hook.remove)
        yield calls


def share_outside(setting: Setting) -> dict[str, float]:
    """Seconds of a training step by what they were spent on, of the wall clock and (`_cpu`) of the processor."""
    told: list[dict[str, Any]] = []
    begun = itertools.count()

    def forget_the_first() -> None:
        if next(begun) == 1:
            told.clear()
            calls.forget()

    turns = Turns(setting.device, forget_the_first, told.append)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(setting, folder, turns)
        with watched(trainer, turns) as calls:
            trainer.train()
    result = {}
    for index, clock in enumerate(("", "_cpu")):
        whole = sum(turn[f"rollout{clock}"] + turn[f"update{clock}"] for turn in told)
        parts = {name: calls.seconds(*kinds)[index] for name, kinds in PARTS.items()}
        result |= {f"{name}{clock}": seconds / len(told) for name, seconds in parts.items()}
        result |= {f"step{clock}": whole / len(told), f"outside{clock}": 1 - sum(parts.values()) / whole}
    return result


def rollout_over_units(setting: Setting) -> dict[str, Any]:
    """
    Seconds of a rollout over those of its network, decoder and reward calls. Each is made a second time, bare, right beside
    its place in the rollout, and that second call counts as the unit cost; what it takes is taken off the rollout.
    """
    taken = []
    turns = Turns(setting.device, wait=int, tell=lambda turn: None)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(setting, folder)
        denoiser, conditioning = trainer.family.denoiser.eval(), trainer.prompt_cache(setting.prompts)
        with watched(trainer, turns, echo=True) as calls:
            for _ in range(setting.turns):
                calls.forget()
                begun = turns.now()
                with trainer.accelerator.autocast():
                    trainer.sampler.rollout(
                        denoiser, setting.prompts, conditioning=conditioning, train_steps=range(setting.trained_steps)
                    )
                ended = turns.now()
                taken.append([(after - before - b, b) for before, after, b in zip(begun, ended, calls.bare)])
    wall, cpu = zip(*taken[1:])
    return {
        "rollout": median(whole for whole, _ in wall),
        "bare": median(bare for _, bare in wall),
        "calls": len(calls.made),
        "ratio": spread([whole / bare for whole, bare in wall]),
        "ratio_cpu": spread([whole / bare for whole, bare in cpu]),
    }


def race(setting: Setting, pythons: dict[str, str]) -> dict[str, list[dict[str, float]]]:
    """What the turns of every contender took, the first left out; they work one after the other, over and over."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(setting.threads), "HF_HUB_OFFLINE": "1"}
    workers = {}
    with ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile("w+"))
        for name, python in pythons.items():
            command = [python, str(HERE / SCRIPTS[name]), "--setting", setting.argument()]
            workers[name] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
            stack.callback(workers[name].kill)
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
        for _ in range(setting.turns):
            for name, worker in workers.items():
                # One that has ended is found out below.
                with suppress(BrokenPipeError):
                    worker.stdin.write("\n")
                    worker.stdin.flush()
                line = next((line for line in worker.stdout if line.startswith(PREFIX)), None)
                if line is None:
                    errors.seek(0)
                    raise RuntimeError(f"{SCRIPTS[name]} ended early:\n{errors.read()[-3000:]}")
                taken[name].append(json.loads(line.removeprefix(PREFIX)))
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()
    return {name: turns[1:] for name, turns in taken.items()}


def spread(values: list[float]) -> dict[str, float]:
    """Median, and the ends of the middle half."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return {"median": median(ordered), "low": ordered[quarter], "high": ordered[-1 - quarter]}


def compared(taken: dict[str, list[dict[str, float]]], setting: Setting) -> dict[str, dict[str, Any]]:
    """Images per second, memory, and speeds of this package as multiples of every contender's, round by round."""
    started, trained = (len(setting.prompts) * n for n in (setting.num_expansions, setting.num_generations))
    rows = {}
    for name, turns in taken.items():
        row = {
            "rollout, images/s": started / median(turn["rollout"] for turn in turns),
            "update, images/s": trained / median(turn["update"] for turn in turns),
            "peak": turns[-1]["peak"],
            "before": turns[-1]["before"],
        }
        for phase in ("rollout", "update", "rollout_cpu", "update_cpu"):
            row[phase] = spread([other[phase] / own[phase] for other, own in zip(turns, taken[OURS])])
        rows[name] = row
    return rows


def told(ratio: dict[str, float]) -> str:
    """A ratio in a table."""
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def table(*lines: list[str]) -> None:
    """Prints rows, the first of which are the columns' names."""
    print(f"| {' | '.join(lines[0])} |", "|---" * len(lines[0]) + "|", sep="\n")
    for line in lines[1:]:
        print(f"| {' | '.join(line)} |")
    print(flush=True)


def print_outside(found: dict[str, dict[str, float]]) -> None:
    """The first table."""
    print("Where a training step goes: ms of the processor, a rollout and its updates; share outside on both clocks\n")
    rows = [
        [name, *(f"{1000 * part[f'{kind}_cpu']:.0f}" for kind in ("step", *PARTS))]
        + [f"{100 * part['outside_cpu']:.1f} %", f"{100 * part['outside']:.1f} %"]
        for name, part in found.items()
    ]
    table(["Setting", "Step", *(kind.capitalize() for kind in PARTS), "Outside, processor", "Outside, wall"], *rows)


def print_units(found: dict[str, dict[str, Any]]) -> None:
    """The second table."""
    print("A rollout over the sum of its network, decoder and reward calls made bare\n")
    rows = [
        [name, str(part["calls"]), f"{part['rollout']:.3f}", f"{part['bare']:.3f}", told(part["ratio"])]
        + [told(part["ratio_cpu"])]
        for name, part in found.items()
    ]
    table(["Setting", "Calls", "Rollout, s", "Bare, s", "Ratio, wall", "Ratio, processor"], *rows)


def print_race(name: str, rows: dict[str, dict[str, Any]]) -> None:
    """The third table, one per setting."""
    print(f"{name}: images per second, and the speed of {OURS} as a multiple of each contender's\n")
    columns = ["Contender", "Rollout, images/s", "Update, images/s", "Rollout, wall", "Update, wall"]
    lines = [
        [who, *(f"{row[f'{phase}, images/s']:.2f}" for phase in ("rollout", "update"))]
        + [told(row[phase]) for phase in ("rollout", "update", "rollout_cpu", "update_cpu")]
        + [f"{row['peak'] / 2**20:.0f}", f"{(row['peak'] - row['before']) / 2**20:.0f}"]
        for who, row in rows.items()
    ]
    table([*columns, "Rollout, processor", "Update, processor", "Peak, MiB", "of it in turns, MiB"], *lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--turns", type=int, default=8, help="rollouts that are measured, after one that warms up")
    parser.add_argument("--settings", nargs="+", help="which of them are measured, by name; all if unset")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in every process")
    parser.add_argument("--sd_channels", type=int, nargs=2, default=[32, 64], help="of the larger Stable Diffusion")
    parser.add_argument("--sd_latents", type=int, default=16, help="side of its latents")
    parser.add_argument(
        "--ddpo_python", help="Python of an environment with TRL 0.21; without it that row is left out"
    )
    parser.add_argument("--smoke", action="store_true", help="three steps of the smallest networks, two rollouts")
    parser.add_argument("--output", help="a file for everything that was measured, as JSON")
    args = parser.parse_args()
    if args.smoke:
        args.turns = 1
    if args.device != "cpu" and not torch.accelerator.is_available():
        parser.error(f"`device` is {args.device!r}, but torch finds no accelerator here; use cpu.")
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        chosen = settings(args, Path(folder))
        unknown = set(args.settings or ()) - set(chosen)
        if unknown:
            parser.error(f"`settings` names {sorted(unknown)}; there are {list(chosen)}.")
        chosen = {name: setting for name, setting in chosen.items() if name in (args.settings or chosen)}
        result: dict[str, Any] = {"settings": {name: asdict(setting) for name, setting in chosen.items()}}
        result["outside"] = {name: share_outside(setting) for name, setting in chosen.items()}
        print_outside(result["outside"])
        result["units"] = {name: rollout_over_units(setting) for name, setting in chosen.items()}
        print_units(result["units"])
        result["race"], result["turns"] = {}, {}
        for name, setting in chosen.items():
            pythons = {OURS: sys.executable, STRAIGHT: sys.executable}
            if args.ddpo_python and "Diffusion" in name:
                pythons[DDPO] = args.ddpo_python
            result["turns"][name] = race(setting, pythons)
            result["race"][name] = compared(result["turns"][name], setting)
            print_race(name, result["race"][name])
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
