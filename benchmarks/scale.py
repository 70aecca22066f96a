# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
The same work on more and more processes, with both placements of groups; and what it would be on many more.

```
python benchmarks/scale.py
python benchmarks/scale.py --smoke     # a minute long: only shows that the script works
```

All processes run on this machine, over gloo, one thread each. Where there are more of them than cores the wall clock says
nothing of scaling, so the seconds of a process's own CPU stand beside it. Numbers are medians over rollouts, the first left out.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch


# Six prompts do not divide among four processes.
PROMPTS, EXPANSIONS, SURVIVORS, STEPS = 6, (48, 24), 12, 10


# ---- one process of a run --------------------------------------------------------------------------------------------


def timed(totals: dict[str, float], name: str, owner: Any, method: str) -> None:
    """Adds to `totals` how long the calls of a method take."""
    inner: Callable = getattr(owner, method)

    def watched(*args, **kwargs):
        began, began_cpu = time.perf_counter(), time.process_time()
        try:
            return inner(*args, **kwargs)
        finally:
            totals[name] = totals.get(name, 0.0) + time.perf_counter() - began
            totals[f"{name}_cpu"] = totals.get(f"{name}_cpu", 0.0) + time.process_time() - began_cpu

    setattr(owner, method, watched)


def work(placement: str, rollouts: int, result: Path) -> None:
    """Trains for some rollouts and writes down what each of them took on this process."""
    from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
    from trl_progrpo.tiny import load_shapes

    torch.set_num_threads(1)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    updates, rows = 2, -(-PROMPTS // processes) * SURVIVORS
    with tempfile.TemporaryDirectory() as folder:
        args = ProGRPOConfig(
            output_dir=folder, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1,
            num_validation_prompts=0, max_steps=updates * rollouts, num_inference_steps=STEPS, num_generations=SURVIVORS,
            num_expansions=EXPANSIONS[0], prune_steps=[5, 7], prune_sizes=[EXPANSIONS[1], SURVIVORS], audit_fraction=0.0,
            prompts_per_rollout=PROMPTS, steps_per_generation=updates, group_placement=placement,
            per_device_train_batch_size=-(-rows // updates), rollout_batch_size=96, preview_decoder="shapes",
        )  # fmt: skip
        trainer = ProGRPOTrainer(
            model="shapes", reward_funcs="shapes", args=args, train_dataset=load_shapes("train").select(range(64))
        )
        told, totals = [], {}
        timed(totals, "rollout", trainer.sampler, "rollout")
        timed(totals, "step", trainer, "training_step")
        spread = trainer.sampler.spread
        for name in ("gather", "deal") if spread else ():
            timed(totals, name, spread, name)
        step = trainer.training_step

        def training_step(*args, **kwargs):
            loss = step(*args, **kwargs)
            if (trainer.state.global_step + 1) % updates == 0:
                sent = spread.bytes_sent if spread else 0
                told.append({**totals, "bytes_sent": sent - sum(one["bytes_sent"] for one in told)})
                totals.clear()
            return loss

        trainer.training_step = training_step
        trainer.train()
    result.write_text(json.dumps(told))


def meet(times: int, result: Path) -> None:
    """Gathers the rewards of a checkpoint again and again, and nothing else."""
    from accelerate import PartialState

    from trl_progrpo.ranks import RankWatch

    torch.set_num_threads(1)
    watch = RankWatch.of(PartialState(cpu=True))
    rows = torch.rand(12, 4, dtype=torch.float64)
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        watch.gather(rows)
        seconds.append(time.perf_counter() - began)
    result.write_text(json.dumps(seconds))


# ---- all processes ---------------------------------------------------------------------------------------------------


def run(processes: int, folder: Path, *arguments: str) -> list[Any]:
    """What every process wrote, in their order."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    everyone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    everyone |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)} if processes > 1 else {}
    started, files = [], []
    for rank in range(processes):
        files.append(folder / f"{rank}.json")
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        command = [sys.executable, __file__, *arguments, "--result", str(files[-1])]
        started.append(
            subprocess.Popen(command, env={**os.environ, **everyone, **own}, stderr=subprocess.PIPE, text=True)
        )
    for process in started:
        said = process.communicate()[1]
        if process.returncode:
            raise SystemExit(said)
    return [json.loads(file.read_text()) for file in files]


def measured(processes: int, placement: str, rollouts: int) -> dict[str, float]:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        told = run(processes, Path(folder), "--placement", placement, "--rollouts", str(rollouts + 1))
    names = {name for one in told for entry in one for name in entry}
    rounds = [
        {
            # Seconds of the slowest process, bytes of all.
            name: (sum if name == "bytes_sent" else max)(one[index].get(name, 0.0) for one in told)
            for name in names
        }
        for index in range(1, rollouts + 1)
    ]
    middle = {name: median(entry[name] for entry in rounds) for name in names}
    images, rows = PROMPTS * EXPANSIONS[0], PROMPTS * SURVIVORS
    update, update_cpu = (middle[f"step{kind}"] - middle[f"rollout{kind}"] for kind in ("", "_cpu"))
    meetings = 3
    return {
        "processes": processes,
        "placement": placement,
        "rollout": images / middle["rollout"],
        "update": rows / update,
        "rollout_cpu": images / processes / middle["rollout_cpu"],
        "update_cpu": rows / processes / update_cpu,
        "exchange": (middle.get("gather_cpu", 0.0) + middle.get("deal_cpu", 0.0)) / middle["rollout_cpu"],
        "bytes": middle["bytes_sent"] / (meetings - 1),
    }


def table(lines: Sequence[dict[str, float]]) -> str:
    """Markdown."""
    head = (
        "| Processes | Placement | Images/s, rollout | Rows/s, update | Images/s of CPU | Rows/s of CPU | "
        "Gathering and moving, of the rollout's CPU | KB moved per prune |"
    )
    rows = [
        f"| {line['processes']} | {line['placement']} | {line['rollout']:.0f} | {line['update']:.0f} "
        f"| {line['rollout_cpu']:.0f} | {line['update_cpu']:.0f} | {line['exchange']:.1%} | {line['bytes'] / 1024:.0f} |"
        for line in lines
    ]
    return "\n".join([head, "|" + "---|" * 8, *rows])


def filling() -> str:
    """Markdown: the share of the sampled work that only fills up uneven ends. Arithmetic."""
    ranks = (8, 64, 512)
    head = [f"{processes}, {placement}" for processes in ranks for placement in ("rank-local", "spread")]
    rows = ["| Prompts | " + " | ".join(head) + " |", "|" + "---|" * (1 + len(head))]
    sizes = [EXPANSIONS[0]] * 6 + [EXPANSIONS[1]] * 2 + [SURVIVORS] * 2
    for prompts in (6, 24, 100, 768):
        shares = []
        for processes in ranks:
            groups = processes * -(-prompts // processes)
            spent = sum(processes * -(-prompts * size // processes) for size in sizes)
            shares += ["refused" if prompts < processes else f"{1 - prompts / groups:.0%}"]
            shares += [f"{1 - prompts * sum(sizes) / spent:.0%}"]
        rows.append(f"| {prompts} | " + " | ".join(shares) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rollouts", type=int, default=5, help="timed rollouts of each line")
    parser.add_argument("--meetings", type=int, nargs="+", default=[2, 4, 8, 16], help="processes that only gather")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--placement", help=argparse.SUPPRESS)
    parser.add_argument("--meet", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.meet:
        meet(args.meet, args.result)
    elif args.placement:
        work(args.placement, args.rollouts, args.result)
    else:
        if args.smoke:
            args.processes, args.rollouts, args.meetings = [1, 2], 1, [2]
        lines = [
            measured(processes, placement, args.rollouts)
            for processes in args.processes
            for placement in (("rank-local", "spread") if processes > 1 else ("rank-local",))
        ]
        print(table(lines))
        print("\n| Processes | ms to gather the rewards of a checkpoint |\n|---|---|")
        for processes in args.meetings:
            with tempfile.TemporaryDirectory() as folder:
                told = run(processes, Path(folder), "--meet", "10" if args.smoke else "200")
            print(f"| {processes} | {1000 * median(max(times) for times in zip(*told)):.1f} |", flush=True)
        print(f"\n{filling()}")


if __name__ == "__main__":
    main()
