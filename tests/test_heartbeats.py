# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""This process has another one beside it, which is killed, frozen, kept busy or sent home."""

import ctypes
import multiprocessing
import os
import signal
import threading
import time

import psutil
import pytest

from trl_progrpo import heartbeats
from trl_progrpo.heartbeats import EXIT_CODE, Failure, Heartbeats, read_failure, serve_store, tell_failure


def other_process(pipe, rank, port, silence):
    """Takes part in the run, and does what it is told."""
    heartbeats.ASK_EVERY, heartbeats.SILENCE = 0.2, silence
    if rank == 0:
        store = serve_store("127.0.0.1")
        pipe.send(port := store.port)
    beats = Heartbeats(rank, 2, "127.0.0.1", port)
    for task, argument in iter(pipe.recv, None):
        pipe.send(task(beats, argument))
    beats.leave()


def keep_python_to_oneself(beats, seconds):
    # Other functions of C are called without the lock of the interpreter, those of `PyDLL` with it.
    ctypes.PyDLL(None).sleep(seconds)


def failure_after(beats, seconds):
    time.sleep(seconds)
    return beats.failure


def tell(beats, failure):
    return tell_failure(beats._store, failure)


class Other:
    """The other process of the run."""

    def __init__(self, rank, port, silence):
        # Not a fork of this process, which has threads; one that has imported what it needs.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["trl_progrpo.heartbeats"])
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=other_process, args=(end, rank, port, silence), daemon=True)
        self.process.start()
        end.close()
        self.port = self.pipe.recv() if rank == 0 else port

    def do(self, task, argument):
        self.pipe.send((task, argument))
        return self.pipe.recv()

    def send_signal(self, signum):
        os.kill(self.process.pid, signum)


@pytest.fixture
def two(monkeypatch):
    """A function: the heartbeats of this process, of rank 0 or 1, and the other process."""
    monkeypatch.setattr(heartbeats, "ASK_EVERY", 0.2)
    monkeypatch.setattr(heartbeats, "GRACE", 0.5)
    others, stores, all_beats = [], [], []

    def make(rank, silence=30, silence_of_other=30, **kwargs):
        monkeypatch.setattr(heartbeats, "SILENCE", silence)
        if rank == 0:
            stores.append(serve_store("127.0.0.1"))
        others.append(Other(1 - rank, stores[0].port if stores else None, silence_of_other))
        all_beats.append(Heartbeats(rank, 2, "127.0.0.1", others[-1].port, **kwargs))
        return all_beats[-1], others[-1]

    yield make
    for other in others:
        other.process.kill()
        other.process.join()
    for beats in all_beats:
        beats.leave()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_missed(two, rank):
    beats, other = two(rank)
    other.process.kill()
    failure = beats.find_out(30)
    assert failure.rank == 1 - rank
    assert failure.status == EXIT_CODE
    who = f"process {1 - rank} of 2 (pid {other.process.pid} on "
    assert failure.message.startswith(who)
    assert "has ended without a word: it was killed" in failure.message
    # All others read it where it is posted, unless that went with process 0.
    if rank == 0:
        assert read_failure(beats._store) == failure


@pytest.mark.parametrize("rank", [0, 1])
def test_a_frozen_process_is_missed_and_who_is_stuck_is_ended(two, rank, capfd):
    ended = threading.Event()
    status = []
    beats, other = two(rank, silence=1.5, end=lambda code: (status.append(code), ended.set()))
    beats.on_duty = 1
    other.send_signal(signal.SIGSTOP)
    assert ended.wait(30)
    assert status == [EXIT_CODE]
    assert beats.failure.rank == 1 - rank
    assert "has not answered for" in beats.failure.message
    assert capfd.readouterr().err.strip().splitlines()[-1] == f"trl-progrpo: error: {beats.failure.message}"


def test_who_is_off_duty_is_not_ended(two):
    ended = []
    beats, other = two(0, end=ended.append)
    other.process.kill()
    beats.find_out(30)
    beats.leave()
    assert ended == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_busy_process_is_alive_even_if_it_keeps_python_to_itself(two, rank):
    beats, other = two(rank, silence=2.5, silence_of_other=2.5)
    other.do(keep_python_to_oneself, 4)
    assert beats.failure is None
    assert other.do(failure_after, 0) is None


def test_who_was_frozen_itself_does_not_blame_the_others(two):
    beats, other = two(0, silence_of_other=1.5)
    other.send_signal(signal.SIGSTOP)
    assert beats.find_out(2.5) is None
    other.send_signal(signal.SIGCONT)
    assert other.do(failure_after, 0.5) is None


@pytest.mark.parametrize("rank", [0, 1])
def test_who_leaves_in_good_order_is_not_missed(two, rank):
    beats, other = two(rank)
    other.pipe.send(None)
    other.process.join()
    assert other.process.exitcode == 0
    assert beats.find_out(1) is None
    assert beats.left == {1 - rank}


def test_a_failure_that_was_told_reaches_the_others_and_the_first_counts(two):
    beats, other = two(0)
    first = Failure(1, "process 1 of 2 stopped the run: no.", 2)
    other.do(tell, first)
    assert tell(beats, Failure(0, "too late")) == first
    assert beats.find_out(30) == first


def test_what_is_served_on_loopback_is_served_nowhere_else():
    store = serve_store("127.0.0.1")
    served = [c.laddr for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert [address.ip for address in served if address.port == store.port] == ["127.0.0.1"]
