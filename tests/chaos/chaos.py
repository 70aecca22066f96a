# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
Kills a run with SIGKILL, again and again and wherever it is, resumes it each time, and compares its end with that of a run
that nobody killed:

    python tests/chaos/chaos.py --kills 25 --seed 0

The run is tiny, and pushes every checkpoint to a Hub on loopback. A moment is a call that Python makes in one of seven phases
(see `dying.Moments`), drawn with a seed; in saving only calls on files are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["HF_HUB_OFFLINE"] = "1"

import dying
from dying import PHASES
from forks import Forks
from hub_server import HubServer

from trl_progrpo.checkpoint_folders import STAGING


STEPS = 30
RUN = {
    "max_steps": STEPS,
    "push_to_hub": True,
    "hub_model_id": "user/chaos",
    "hub_strategy": "checkpoint",
    "hub_always_push": True,
}


@dataclass
class Kill:
    """One attempt: at which call of a phase it was killed, from which step it had gone on, and what lay on the disk then."""

    phase: str
    call: int
    status: int
    resumed: int
    newest: int
    half: bool


@dataclass
class Outcome:
    """
    All attempts; `differences` of the end from that of the uninterrupted run; how many rollouts either made; and how many calls
    a phase has each time it comes.
    """

    kills: list[Kill]
    differences: list[str]
    rollouts_whole: int
    rollouts_made: int
    calls: dict[str, int]

    def table(self) -> str:
        """As Markdown."""
        lines = [
            "| Kill | Phase | Call | Went on from step | Newest checkpoint | A save was going on |",
            "|" + "---|" * 6,
        ]
        for index, kill in enumerate(self.kills, 1):
            resumed = "start" if kill.resumed == 0 else str(kill.resumed)
            newest = "none" if kill.newest == 0 else f"`checkpoint-{kill.newest}`"
            half = "yes" if kill.half else "no"
            lines.append(f"| {index} | {kill.phase} | {kill.call:,} | {resumed} | {newest} | {half} |")
        return "\n".join(lines)


def run_chaos(
    model: str, folder: Path, kills: int = 25, seed: int = 0, say: Callable[[str], None] = lambda line: None
) -> Outcome:
    """
    Args:
        model (`str`): folder of the tiny pipeline.
        folder (`Path`): for what the runs write.
        kills (`int`, *optional*, defaults to 25): how many.
        seed (`int`, *optional*, defaults to 0): of the moments.
        say (`Callable`, *optional*): is told of every attempt.
    """
    draw = random.Random(seed)
    with HubServer() as hub, Forks(hub.environment(folder / "home")) as forks:
        # The same run, not killed; and once more to count calls, for what counts them is slow.
        whole, killed = folder / "whole", folder / "killed"
        done = forks.run(
            "train", folder / "whole.txt", model=model, output_dir=str(whole), **RUN | {"hub_model_id": "user/whole"}
        )
        assert done.status == 0, done.said
        short = {**RUN, "max_steps": 4, "hub_model_id": "user/counted"}
        done = forks.run(
            "train",
            folder / "count.txt",
            model=model,
            output_dir=str(folder / "counted"),
            count=str(folder / "count"),
            **short,
        )
        assert done.status == 0, done.said
        count = json.loads((folder / "count").read_text())
        calls = {phase: count["calls"][phase] // count["times"][phase] for phase in PHASES}
        order = [PHASES[index % len(PHASES)] for index in range(kills)]
        draw.shuffle(order)
        attempts = []
        for index, phase in enumerate(order):
            resumed, at = newest(killed), draw.randint(1, 2 * calls[phase])
            child = forks.run(
                "train", folder / f"attempt_{index}.txt", model=model, output_dir=str(killed), phase=phase, at=at,
                resume=resumed > 0, **RUN,
            )  # fmt: skip
            half = any((killed / STAGING).glob("checkpoint-*"))
            attempts.append(Kill(phase, at, child.status, resumed, newest(killed), half))
            say(str(attempts[-1]))
            assert child.status == -9, child.said
        done = forks.run(
            "train", folder / "last.txt", model=model, output_dir=str(killed), resume=newest(killed) > 0, **RUN
        )
        assert done.status == 0, done.said
        lines = [(out / "rollouts.jsonl").read_text().splitlines() for out in (whole, killed)]
        found = dying.differences(whole, killed)
        assert "last-checkpoint/optimizer.pt" in hub.files("user/chaos")
    return Outcome(attempts, found, *map(len, lines), calls)


def newest(folder: Path) -> int:
    """Steps of the newest checkpoint, as anyone would look for it; 0 if there is none."""
    return max((int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")), default=0)


def save_tiny_pipeline(folder: Path) -> str:
    """The tests' own random pipeline."""
    import conftest

    components = conftest._components.__wrapped__()
    from diffusers import StableDiffusion3Pipeline

    StableDiffusion3Pipeline(**components).save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Kill a tiny run again and again; see the head of the file.")
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny_pipeline(Path(folder, "model"))
        outcome = run_chaos(model, Path(folder), args.kills, args.seed, lambda line: print(line, file=sys.stderr))
    print(outcome.table())
    print("\nCalls each time:", ", ".join(f"{phase} {number:,}" for phase, number in outcome.calls.items()) + ".")
    print(f"Rollouts: {outcome.rollouts_made}, of which the uninterrupted run makes {outcome.rollouts_whole}.")
    print(f"Different from the uninterrupted run: {', '.join(outcome.differences) or 'nothing'}.")


if __name__ == "__main__":
    main()
