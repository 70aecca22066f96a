# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
Finding out that another process of a run has ended or frozen without a word, while this one works, waits for it, or
is stuck in a collective operation.

Every process serves a small key-value store, which torch answers from a thread outside of Python, whatever Python does
meanwhile. Each asks that of the next one, and all ask that of process 0, where news are posted. A connection that breaks
off tells of a death at once; one that gives no answer, of a process that is frozen, or of a machine or network that is gone.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import json
import os
import selectors
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from functools import partial

import torch.distributed as dist


ASK_EVERY = 1.0
"""Seconds between two questions to the same process."""

SILENCE = 20.0
"""Seconds without an answer after which a process is lost. Nothing but a frozen process keeps its store from answering."""

GRACE = 10.0
"""Seconds that a run has to notice that another process failed, and as many again to leave, before it is ended from outside."""

EXIT_CODE = 75
"""Exit status of processes that end because another was lost: EX_TEMPFAIL of sysexits.h, for the same may work next time."""

_DIED = (
    "{who} has ended without a word: it was killed, often for want of memory, or crashed; see what it printed last, "
    "and go on from the last checkpoint."
)
_SILENT = (
    "{who} has not answered for {seconds:.0f} seconds: it is frozen, or its machine or network is gone; see to it, and "
    "go on from the last checkpoint."
)


@dataclass(frozen=True)
class Failure:
    """Why a run cannot go on: a sentence that names the process and the cause, and the exit status of those that stop for it."""

    rank: int
    message: str
    status: int = EXIT_CODE


def tell_failure(store: dist.Store, failure: Failure) -> Failure:
    """Posts a failure for all processes; returns the one that stands, the first."""
    return Failure(**json.loads(store.compare_set("failure", "", json.dumps(asdict(failure)))))


def read_failure(store: dist.Store) -> Failure | None:
    """The failure that was posted, if any."""
    return Failure(**json.loads(store.get("failure"))) if store.check(["failure"]) else None


def serve_store(address: str, own: bool = False) -> dist.TCPStore:
    """
    A store for others to connect to, on a free port.

    Args:
        address (`str`): by which they reach it; if it is a loopback address, it is served nowhere else.
        own (`bool`, *optional*, defaults to `False`): whether it is known to be this machine's, and enough to serve on.
    """
    if not own and not address.startswith(("127.", "localhost", "::1")):
        # A name by which others know this machine may mean something else on it.
        return dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 0), family=family, backlog=1024)
    served = partial(dist.TCPStore, address, listener.getsockname()[1], is_master=True, wait_for_workers=False)
    listening = listener.detach()
    try:
        return served(master_listen_fd=listening)
    except NotImplementedError:
        # Of the two backends of older versions of torch, only that which is no longer the default takes a socket.
        return served(master_listen_fd=listening, use_libuv=False)


class Heartbeats:
    """
    Asks process 0 and the next process whether they are there, in a thread, until [`~Heartbeats.leave`]. Every process
    makes one; the constructor waits for the next one's.

    Args:
        rank (`int`): this process.
        world_size (`int`): how many there are, at least 2.
        host (`str`): where process 0 serves the store of all.
        port (`int`): its port there.
        end (`Callable`, *optional*): ends a process that is stuck, with a status; `os._exit` by default.

    Attributes:
        failure ([`Failure`] or `None`): why the run cannot go on.
        left (`set[int]`): processes that have ended in good order.
        on_duty (`int`): above 0 while this process must end if another fails.
        since (`float`): when it became known, on the clock of `time.monotonic`.
        noticed (`bool`): whether the run itself has noticed the failure.
    """

    def __init__(self, rank: int, world_size: int, host: str, port: int, end: Callable[[int], None] = os._exit):
        self.rank, self.world_size, self.end = rank, world_size, end
        self.failure: Failure | None = None
        self.left: set[int] = set()
        self.on_duty, self.noticed, self.since = 0, False, 0.0
        self._pid, self._known, self._leaving = os.getpid(), threading.Event(), threading.Event()
        self._asked, self._silence, self._heard = None, 0.0, False
        # A connection of its own: one on which somebody waits is locked.
        self._store = dist.TCPStore(host, port, is_master=False)
        self._lines = selectors.DefaultSelector()
        self._wake, woken = socket.socketpair()
        self._lines.register(woken, selectors.EVENT_READ)
        address = self._open_line(0, host, port) if rank else host
        self._served = serve_store(address, own=True) if rank else None
        card = {"address": address, "port": self._served.port if rank else port}
        card |= {"pid": self._pid, "machine": socket.gethostname()}
        self._store.set(f"process/{rank}", json.dumps(card))
        self._next = (rank + 1) % world_size
        self._names = {other: self._name(other) for other in {0, self._next}}
        self._next_store = self._connect_to_next() if self._next else None
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._ask, self._judge)]
        for thread in self._threads:
            thread.start()

    def find_out(self, seconds: float) -> Failure | None:
        """The failure; waits until one is known, but no longer than that."""
        self._known.wait(seconds)
        return self.failure

    def learn(self, failure: Failure | None) -> None:
        """Takes note of a failure, unless there is none; the first one counts."""
        if failure is not None and self.failure is None:
            self.failure, self.since = failure, time.monotonic()
            self._known.set()
            atexit.unregister(_end_soon)
            atexit.register(_end_soon)

    def await_heard(self) -> None:
        """Returns when the others know of the failure, or after a while."""
        with contextlib.suppress(dist.DistError):
            self._await_all("heard")

    def forked(self) -> bool:
        """Whether this process is a fork, which has no part in this, and none of the threads."""
        return os.getpid() != self._pid

    def leave(self) -> None:
        """Tells the others that this process ends in good order, and asks no more."""
        if self.forked() or self._leaving.is_set():
            return
        self._leaving.set()
        self._wake.send(b".")
        # A thread that Python finds in the midst of something when it ends could make it crash.
        # Garbage is collected in any thread, these included; one that waits for a frozen process does not come back.
        for thread in set(self._threads) - {threading.current_thread()}:
            thread.join(4 * ASK_EVERY if self._silence < SILENCE else 0.0)

    # ---- beginning ---------------------------------------------------------------------------------------------------

    def _open_line(self, rank: int, host: str, port: int) -> str:
        """A connection on which nothing is ever said, and which is heard to break off; returns this end's address."""
        line = socket.create_connection((host, port), timeout=10)
        self._lines.register(line, selectors.EVENT_READ, rank)
        return line.getsockname()[0]

    def _connect_to_next(self) -> dist.TCPStore | None:
        card = json.loads(self._store.get(f"process/{self._next}"))
        try:
            self._open_line(self._next, card["address"], card["port"])
            return dist.TCPStore(card["address"], card["port"], is_master=False)
        except (OSError, dist.DistError) as error:
            warnings.warn(
                f"{self._names[self._next]} cannot be reached at {card['address']} ({error}), so nobody will notice if it is "
                "lost before collective operations time out; open the ports between the machines.",
                stacklevel=2,
            )
            return None

    def _name(self, rank: int) -> str:
        card = json.loads(self._store.get(f"process/{rank}"))
        return f"process {rank} of {self.world_size} (pid {card['pid']} on {card['machine']})"

    # ---- asking ------------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        while not self._leaving.is_set():
            closed = self._closed_lines()
            if not self._answers(0, self._read_news, closed):
                self.learn(self._loss(0, _DIED))
                return
            if 0 in self.left:
                # It waits for this before it takes the store along.
                self._answers(0, partial(self._store.append, "seen", f"{self.rank} "))
                return
            if self._next_store is not None:
                if not self._answers(self._next, partial(self._next_store.check, ["there"]), closed):
                    self._next_store = None
                    self._miss_next()
        self._answers(0, self._say_goodbye)

    def _miss_next(self) -> None:
        # It says so before it ends in good order.
        if self._answers(0, self._read_news) and self._next not in self.left:
            loss = self._loss(self._next, _DIED)
            self._answers(0, partial(self._post, loss))
            self.learn(loss)

    def _closed_lines(self) -> set[int]:
        """Processes whose lines have broken off; takes a while if none has."""
        closed = set()
        for key, _ in self._lines.select(ASK_EVERY):
            with contextlib.suppress(ConnectionError):
                if key.fileobj.recv(1):
                    continue
            closed.add(key.data)
            self._lines.unregister(key.fileobj)
        return closed

    def _answers(self, rank: int, question: Callable[[], object], closed: Collection[int] = ()) -> bool:
        if rank in closed:
            return False
        self._asked, self._silence = rank, 0.0
        try:
            question()
        except dist.DistError:
            return False
        finally:
            self._asked = None
        return True

    def _read_news(self) -> None:
        failure = read_failure(self._store)
        if failure is not None and not self._heard:
            self._heard = True
            self._store.append("heard", f"{self.rank} ")
        self.learn(failure)
        self.left = _ranks(self._store, "left")

    def _say_goodbye(self) -> None:
        self._store.append("left", f"{self.rank} ")
        self._await_all("seen")

    def _await_all(self, key: str) -> None:
        """Process 0 waits a while for all others to have read something: the store goes with it."""
        lost = set() if self.failure is None else {self.failure.rank}
        until = time.monotonic() + 3 * ASK_EVERY
        while not self.rank and time.monotonic() < until:
            if len(_ranks(self._store, key) | _ranks(self._store, "left") | lost | {0}) == self.world_size:
                return
            time.sleep(0.01)

    # ---- judging -----------------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        then, waited = time.monotonic(), 0.0
        while not self._leaving.wait(ASK_EVERY):
            # If it is this process that was frozen, the others get their time from now on.
            passed = min(time.monotonic() - then, 2 * ASK_EVERY)
            then = time.monotonic()
            self._silence += passed
            asked = self._asked
            if asked is not None and self._silence > SILENCE and self.failure is None:
                loss = self._loss(asked, _SILENT)
                self.learn(loss)
                # Process 0 may be frozen as well, and whoever posts it wait for ever.
                threading.Thread(target=self._post, args=[loss], daemon=True).start()
            waited = waited + passed if self.failure is not None and self.on_duty else 0.0
            if waited > (2 if self.noticed else 1) * GRACE:
                # Not `print`: the thread that is stuck may be in the midst of it.
                os.write(2, f"trl-progrpo: error: {self.failure.message}\n".encode())
                self.end(self.failure.status)
                return

    def _loss(self, rank: int, sentence: str) -> Failure:
        return Failure(rank, sentence.format(who=self._names[rank], seconds=self._silence))

    def _post(self, loss: Failure) -> None:
        with contextlib.suppress(dist.DistError):
            self.learn(tell_failure(self._store, loss))


def _end_soon() -> None:
    # Libraries that wait for the device as they are unloaded may do so for ever, and no thread of Python runs by then.
    if sys.__stderr__ is not None:
        faulthandler.dump_traceback_later(2 * GRACE, exit=True, file=sys.__stderr__)


def _ranks(store: dist.Store, key: str) -> set[int]:
    return set(map(int, store.get(key).split())) if store.check([key]) else set()
