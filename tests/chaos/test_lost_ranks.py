# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""One process of two is killed, frozen, or fails, in mid-rollout or mid-update: the other ends soon, and says why."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from forks import Forks


SOON = 60
"""Seconds in which everything has to end."""

FLAGS = [
    "--model_name_or_path", "shapes", "--dataset_name", "shapes", "--reward_funcs", "doomed:doomed", "--num_generations", "2",
    "--num_expansions", "4", "--prune_steps", "1", "--prune_sizes", "2", "--per_device_train_batch_size", "2",
    "--num_inference_steps", "3", "--max_steps", "50", "--audit_fraction", "0", "--use_cpu", "--report_to", "none",
    "--save_strategy", "no", "--eval_samples", "0", "--no_plot",
]  # fmt: skip

# At its second rollout the process whose rank is told meets its end, or does at the first network call of the update.
DOOMED = """
import os, pathlib, signal, torch
from torch.nn.modules.module import register_module_forward_pre_hook

fate, moment, rank = os.environ["DOOM"].split()
calls = 0

def meet_it():
    pathlib.Path(os.environ["MARK"]).write_text(str(os.getpid()))
    if fate == "raise":
        raise RuntimeError("not today")
    os.kill(os.getpid(), getattr(signal, fate))

def in_update(module, inputs):
    if torch.is_grad_enabled():
        meet_it()

def doomed(prompts, images):
    global calls
    calls += 1
    if calls == 3 and os.environ["RANK"] == rank:
        meet_it() if moment == "rollout" else register_module_forward_pre_hook(in_update)
    return [float(i) for i in range(len(prompts))]
"""

SAYS = {
    "SIGKILL": "process {rank} of 2 (pid {pid} on {machine}) has ended without a word: it was killed",
    "SIGSTOP": "process {rank} of 2 (pid {pid} on {machine}) has not answered for ",
    "raise": "process {rank} of 2 stopped the run: ",
}
LOST = 75


@pytest.fixture(scope="module")
def forks():
    with Forks() as forks:
        yield forks


@pytest.fixture
def world(tmp_path):
    """Environment of a run with a doomed process, but for what each process has of its own."""
    (tmp_path / "doomed.py").write_text(DOOMED)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "TRL_PROGRPO_LAUNCHED": "1", "MARK": str(tmp_path / "mark"), "OMP_NUM_THREADS": "1"}  # fmt: skip


def await_doom(world, has_ended):
    """The process that met its end."""
    while not os.path.exists(world["MARK"]) or not open(world["MARK"]).read():
        assert not has_ended(), "too early"
        time.sleep(0.1)
    return int(open(world["MARK"]).read())


def await_end(has_ended):
    """Whether it comes in time; says how long it took."""
    start = time.monotonic()
    while not has_ended() and time.monotonic() < start + SOON:
        time.sleep(0.1)
    print(f"ended after {time.monotonic() - start:.0f} s")
    return has_ended()


def is_gone(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("moment", ["rollout", "update"])
@pytest.mark.parametrize("fate", SAYS)
def test_the_other_process_ends(forks, world, tmp_path, fate, moment, rank):
    argv = ["train", *FLAGS, "--output_dir", str(tmp_path / "out")]
    children = [
        forks.start(
            "command_line",
            tmp_path / f"said_{r}.txt",
            {**world, "DOOM": f"{fate} {moment} {rank}", "RANK": str(r), "LOCAL_RANK": str(r)},
            argv=argv,
            path=str(tmp_path),
        )
        for r in range(2)
    ]
    doomed, other = children[rank], children[1 - rank]
    try:
        assert await_doom(world, lambda: is_gone(other.pid)) == doomed.pid
        in_time = await_end(lambda: is_gone(other.pid))
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            child.wait()
    assert in_time, other.said
    last = other.said.strip().splitlines()[-1]
    assert SAYS[fate].format(rank=rank, pid=doomed.pid, machine=socket.gethostname()) in last
    if fate != "raise":
        assert other.status == LOST
    elif moment == "rollout":
        # What a reward function raises is told in a sentence by the process that called it.
        assert (doomed.status, other.status) == (2, 2)
        assert "reward function `doomed` raised RuntimeError: not today" in last
    else:
        assert (doomed.status, other.status) == (1, 1)
        assert last.endswith("RuntimeError: not today")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fate", "moment", "rank"),
    [("SIGKILL", "rollout", 0), ("SIGKILL", "update", 1), ("SIGSTOP", "rollout", 1), ("SIGSTOP", "update", 0)],
)
def test_so_does_all_that_was_launched(world, tmp_path, fate, moment, rank):
    own = {name: world[name] for name in ("MARK", "OMP_NUM_THREADS")}
    command = [sys.executable, "-m", "trl_progrpo.cli.main", "train", *FLAGS, "--output_dir", str(tmp_path / "out")]
    launcher = subprocess.Popen(
        [*command, "--num_processes", "2", "--main_process_port", world["MASTER_PORT"]],
        env={
            **os.environ,
            **own,
            "DOOM": f"{fate} {moment} {rank}",
            "PYTHONPATH": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    family = []
    try:
        doomed = await_doom(world, lambda: launcher.poll() is not None)
        family = psutil.Process(launcher.pid).children(recursive=True)
        in_time = await_end(lambda: launcher.poll() is not None)
    finally:
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        launcher.kill()
        said = launcher.communicate()[1]
    assert in_time, said
    assert SAYS[fate].format(rank=rank, pid=doomed, machine=socket.gethostname()) in said
    # That of the first process that ended.
    assert launcher.returncode in (LOST, 128 + signal.SIGKILL), said
