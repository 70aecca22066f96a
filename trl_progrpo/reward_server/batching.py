# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""One thread per reward, which scores together what different requests sent."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

import numpy as np
import torch

from ..rewards import RewardFunc, RewardRunner, reward_name
from ..rewards.calls import accepted_keywords, is_own_sentence, raised_at, wanted_arguments
from ..rewards.learned import resolve_device


logger = logging.getLogger(__name__)


_MOST_TOLD = 20
"""Refusals of a reward that are logged; they may name prompts, and clients must not fill the log."""


class RefusedInput(Exception):
    """The reward function itself raised a `ValueError`: it was given something it cannot score."""


class Job:
    """
    The images of one request, and the future of their scores.

    Args:
        prompts (`Sequence[str]` of length `B`): the prompt of each image.
        images (`Sequence[np.ndarray]` of length `B`): each `(height, width, 3)`, uint8.
        columns (`Mapping[str, Sequence]`): further columns, one entry per image.
        preview (`bool`): whether these are previews.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        images: Sequence[np.ndarray],
        columns: Mapping[str, Sequence[Any]],
        preview: bool,
    ):
        self.prompts, self.images, self.columns, self.preview = prompts, images, columns, preview
        self.scores: Future[list[float | None]] = Future()
        self._values: list[float | None] = [None] * len(images)
        self._missing = len(images)

    def kind(self, index: int) -> tuple:
        """What the images of one call of a reward have in common."""
        return self.preview, tuple(sorted(self.columns)), self.images[index].shape

    def store(self, index: int, value: float) -> None:
        """Takes the score of one image, NaN for not applicable; the last one completes the job."""
        self._values[index] = None if math.isnan(value) else value
        self._missing -= 1
        if not self._missing:
            with contextlib.suppress(InvalidStateError):  # the client hung up meanwhile
                self.scores.set_result(self._values)

    def fail(self, error: BaseException) -> None:
        """Ends the job without scores."""
        with contextlib.suppress(InvalidStateError):
            self.scores.set_exception(error)


class RewardWorker:
    """
    Calls one reward function, from a thread of its own.

    Takes what is queued, in order, up to `max_batch_size` images of the same size, columns and preview flag, whichever
    request they came with; never waits for more. When a call with images of several requests fails, each request is
    scored by itself, so that one cannot spoil the others.

    Args:
        name (`str`): for the log.
        function (`RewardFunc`): the reward.
        max_batch_size (`int`): images per call.
    """

    def __init__(self, name: str, function: RewardFunc, max_batch_size: int):
        self.name, self.max_batch_size = name, max_batch_size
        self.seconds_per_image = 0.0
        self._told: set[str] = set()
        self.required_columns = wanted_arguments(function, ("prompts", "images", "preview"))
        # As in training: a function that wants a tensor finds it where its network is.
        wants_tensor = getattr(function, "image_type", "pil") == "pt"
        self._device = resolve_device(None, name) if wants_tensor else torch.device("cpu")
        self._runner = RewardRunner([_marking_refusals(function)])
        self._queue: deque[tuple[Job, int]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        # A daemon: after a second signal the process must not wait for a reward that hangs.
        self._thread = threading.Thread(target=self._run, name=f"reward-{name}", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queues the images of a job."""
        with self._changed:
            self._queue.extend((job, index) for index in range(len(job.images)))
            self._changed.notify()

    def close(self, timeout: float | None = 5.0) -> None:
        """Ends the thread when everything queued has been scored; waits at most `timeout` seconds for that."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        while batch := self._take():
            started = time.monotonic()
            self._score(batch)
            # A moving average, for the advice to come back later.
            each = (time.monotonic() - started) / len(batch)
            self.seconds_per_image += 0.2 * (each - self.seconds_per_image)

    def _take(self) -> list[tuple[Job, int]]:
        """The next batch; empty when closed and done."""
        with self._changed:
            while True:
                # A failed job has an exception, and one whose client hung up is cancelled.
                waiting = [row for row in self._queue if not row[0].scores.done()]
                if waiting or self._closed:
                    break
                self._queue.clear()
                self._changed.wait()
            batch, rest = [], []
            for job, index in waiting:
                fits = len(batch) < self.max_batch_size and job.kind(index) == waiting[0][0].kind(waiting[0][1])
                (batch if fits else rest).append((job, index))
            self._queue = deque(rest)
            return batch

    def _score(self, rows: list[tuple[Job, int]]) -> None:
        values, error = self._call(rows)
        jobs = dict.fromkeys(job for job, _ in rows)
        if error is None:
            for (job, index), value in zip(rows, values):
                job.store(index, value)
        elif len(jobs) > 1:
            for job in jobs:
                self._score([row for row in rows if row[0] is job])
        else:
            if not isinstance(error, RefusedInput):
                logger.error("reward %r failed", self.name, exc_info=error)
            elif str(error) not in self._told and len(self._told) < _MOST_TOLD:
                # To the client it is a sentence; whether the input or the function is to blame, only this tells.
                self._told.add(str(error))
                logger.warning("reward %r refused its input", self.name, exc_info=error)
            rows[0][0].fail(error)

    def _call(self, rows: list[tuple[Job, int]]) -> tuple[list[float], BaseException | None]:
        """The scores, or the error."""
        columns = {name: [job.columns[name][index] for job, index in rows] for name in rows[0][0].columns}
        try:
            images = torch.from_numpy(np.stack([job.images[index] for job, index in rows]))
            scores = self._runner(
                [job.prompts[index] for job, index in rows],
                (images.to(self._device).permute(0, 3, 1, 2).float() / 255).contiguous(),
                columns,
                preview=rows[0][0].preview,
            )
        except BaseException as error:  # the thread must live on; SystemExit is not for a reward to decide either
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, RefusedInput):
                cause = cause.__cause__  # the runner raises an error of its own from that of the reward
            return [], cause or error
        return scores[:, 0].tolist(), None


def _marking_refusals(function: RewardFunc) -> RewardFunc:
    """The same function; a `ValueError` of its own is told apart from one of the runner's about what it returned."""

    @functools.wraps(function, updated=())
    def call(prompts, images, **columns):
        with _refusals():
            values = function(prompts=prompts, images=images, **accepted_keywords(function, columns))
        return awaited(values) if inspect.isawaitable(values) else values

    async def awaited(values):
        with _refusals():
            return await values

    call.__name__ = reward_name(function)
    call.image_type = getattr(function, "image_type", "pil")
    return call


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise RefusedInput(str(error) if is_own_sentence(error) else f"{error}{raised_at(error)}") from error
