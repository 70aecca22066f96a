# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Processes are played by threads, with a real store between them; the slow test has real processes."""

import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from trl_progrpo.heartbeats import serve_store
from trl_progrpo.ranks import AnotherRankFailed, RankWatch


@pytest.fixture
def watches():
    store = serve_store("127.0.0.1")
    yield (watches := run_all(lambda rank: RankWatch.joined(rank, 3, "127.0.0.1", store.port), range(3)))
    run_all(lambda watch: watch.heartbeats.leave(), watches)


def run_all(function, watches):
    with ThreadPoolExecutor(3) as pool:
        return [future.exception() or future.result() for future in [pool.submit(function, w) for w in watches]]


def test_one_process_needs_nobody():
    watch = RankWatch()
    watch.check()
    with watch.together():
        pass
    with pytest.raises(KeyError), watch.together():
        raise KeyError


def test_nobody_leaves_before_all_are_done(watches):
    done, slow = [], threading.Event()

    def work(watch):
        for meeting in range(3):
            with watch.together():
                if watch.rank == meeting:
                    slow.wait(0.05)
                done.append((meeting, watch.rank))
            assert {(meeting, rank) for rank in range(3)} <= set(done)

    assert run_all(work, watches) == [None] * 3


def test_all_others_learn_who_failed_and_why(watches):
    def work(watch):
        with watch.together():
            pass
        with watch.together():
            if watch.rank == 1:
                raise ValueError("the reward has had enough.")

    failed = run_all(work, watches)
    assert str(failed[1]) == "the reward has had enough."
    for rank in (0, 2):
        assert isinstance(failed[rank], AnotherRankFailed)
        assert str(failed[rank]) == "process 1 of 3 stopped the run: the reward has had enough."


def test_those_still_at_work_find_out_when_they_ask(watches):
    failed = threading.Event()

    def work(watch):
        with watch.together():
            if watch.rank == 2:
                failed.set()
                raise ValueError("no.")
            failed.wait()
            while True:
                watch.check()

    ended = run_all(work, watches)
    assert [type(error) for error in ended] == [AnotherRankFailed, AnotherRankFailed, ValueError]


def test_the_first_to_fail_is_to_blame(watches):
    first = threading.Event()

    def work(watch):
        with watch.together():
            if watch.rank == 2:
                try:
                    raise ValueError("I was first.")
                finally:
                    threading.Timer(0.1, first.set).start()
            first.wait()
            raise ValueError(f"{watch.rank} also fell.")

    ended = run_all(work, watches)
    assert str(ended[2]) == "I was first."
    with pytest.raises(AnotherRankFailed, match=r"process 2 of 3 stopped the run: I was first\."):
        watches[0].check()


class TestGather:
    def test_each_gets_what_all_gave(self, watches):
        given = [
            torch.tensor([0.1, float("nan"), 3.0]),
            torch.tensor([[1.0, 2.0]], dtype=torch.float64)[:, ::2],
            torch.tensor([], dtype=torch.int64),
        ]

        def exchange(watch):
            first = watch.gather(given[watch.rank])
            second = watch.gather(torch.tensor(watch.rank))
            return first, second

        for first, second in run_all(exchange, watches):
            for tensor, expected in zip(first, given, strict=True):
                torch.testing.assert_close(tensor, expected, rtol=0, atol=0, equal_nan=True)
            assert second == [torch.tensor(rank) for rank in range(3)]

    def test_nothing_piles_up_in_the_store(self, watches):
        def exchange(watch):
            for number in range(5):
                with watch.together():
                    watch.gather(torch.tensor([number]))
            return watch.store.num_keys()

        run_all(exchange, watches)
        before = watches[0].store.num_keys()
        run_all(exchange, watches)
        assert watches[0].store.num_keys() == before

    def test_who_waits_learns_that_another_failed(self, watches):
        def exchange(watch):
            with watch.together():
                if watch.rank == 1:
                    raise ValueError("no tensor of mine.")
                watch.gather(torch.zeros(2))

        failed = run_all(exchange, watches)
        for rank in (0, 2):
            assert str(failed[rank]) == "process 1 of 3 stopped the run: no tensor of mine."

    def test_other_types_are_refused(self, watches):
        with pytest.raises(ValueError, match=r"`tensor` is of torch\.bool; gather one of float32, float64, int64"):
            watches[0].gather(torch.ones(1, dtype=torch.bool))

    def test_alone(self):
        tensor = torch.ones(2)
        assert RankWatch().gather(tensor)[0] is tensor


MOODY = """
import os

calls = 0

def moody(prompts, images):
    global calls
    calls += 1
    if calls == 3 and os.environ["RANK"] == "1":
        raise RuntimeError("not today")
    return [float(i) for i in range(len(prompts))]
"""


@pytest.mark.slow
def test_a_reward_that_raises_on_one_process_stops_both(tmp_path):
    (tmp_path / "moody.py").write_text(MOODY)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    command = [
        sys.executable, "-m", "trl_progrpo.cli.main", "train", "--model_name_or_path", "shapes", "--dataset_name", "shapes",
        "--reward_funcs", "moody:moody", "--num_generations", "2", "--num_expansions", "4", "--prune_steps", "1",
        "--prune_sizes", "2", "--per_device_train_batch_size", "2", "--num_inference_steps", "3", "--max_steps", "50",
        "--audit_fraction", "0", "--use_cpu", "--report_to", "none", "--save_strategy", "no", "--eval_samples", "0",
        "--no_plot", "--output_dir", str(tmp_path / "out"),
    ]  # fmt: skip
    env = {
        **os.environ, "PYTHONPATH": str(tmp_path), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "TRL_PROGRPO_LAUNCHED": "1",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            command,
            env={**env, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        told = [process.communicate(timeout=300)[1].strip().splitlines()[-1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [2, 2], told
    assert "reward function `moody` raised RuntimeError: not today" in told[1]
    assert "process 1 of 2 stopped the run: reward function `moody` raised RuntimeError: not today" in told[0]
