# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Rewards beside sampling: while one set of prompts waits for its scores, another denoises."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from .timing import PhaseTimer


Job = Callable[[], torch.Tensor]
Wave = Generator[Job, torch.Tensor, Any]
"""Samples some prompts; yields what is to be scored as a function and is sent its scores; returns its result."""


def run_waves(waves: Sequence[Wave], timer: PhaseTimer, saved: PhaseTimer) -> list[Any]:
    """
    The results of all waves, in their order.

    One wave is scored in place. Several take turns: a wave that asks for scores steps back, and the scores are computed
    in one thread (reward functions need not be thread-safe) while the next wave goes on. Every job sees what it would
    have seen alone, so only the number of rows per reward call depends on how many waves there are.

    Args:
        waves (`Sequence[Wave]`): generators, see [`Wave`].
        timer ([`~timing.PhaseTimer`]): gets, under `"reward"`, the seconds in which sampling waited for scores.
        saved ([`~timing.PhaseTimer`]): gets, under `"reward"`, the seconds of scoring in which sampling went on.
    """
    if len(waves) == 1:
        return [_run_alone(waves[0], timer)]
    results: list[Any] = [None] * len(waves)
    turns: deque[tuple[int, Future | None]] = deque((index, None) for index in range(len(waves)))
    with ThreadPoolExecutor(1, "rewards") as thread:
        while turns:
            index, pending = turns.popleft()
            try:
                job = waves[index].send(None if pending is None else _wait(pending, timer, saved))
                turns.append((index, thread.submit(_timed, job)))
            except StopIteration as stop:
                results[index] = stop.value
    return results


def _run_alone(wave: Wave, timer: PhaseTimer) -> Any:
    scores = None
    while True:
        try:
            job = wave.send(scores)
        except StopIteration as stop:
            return stop.value
        with timer("reward"):
            scores = job()


def _wait(pending: Future, timer: PhaseTimer, saved: PhaseTimer) -> torch.Tensor:
    start = time.perf_counter()
    scores, seconds = pending.result()
    waited = time.perf_counter() - start
    timer.add("reward", waited)
    saved.add("reward", max(0.0, seconds - waited))
    return scores


def _timed(job: Job) -> tuple[torch.Tensor, float]:
    start = time.perf_counter()
    scores = job()
    return scores, time.perf_counter() - start


def scoring_job(scorer: Callable[..., torch.Tensor], prompts, images: torch.Tensor, columns, preview: bool) -> Job:
    """
    A call of `scorer` as a [`Job`]: without gradients and without the mixed precision of sampling, which a thread would
    not inherit; on a CUDA device in a stream of its own, which waits for the images.
    """
    ready = None
    if images.is_cuda:
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(images.device))

    def score() -> torch.Tensor:
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            if ready is None:
                return scorer(prompts, images, columns, preview=preview)
            stream = torch.cuda.Stream(images.device)
            stream.wait_event(ready)
            images.record_stream(stream)
            with torch.cuda.stream(stream):
                scores = scorer(prompts, images, columns, preview=preview)
            stream.synchronize()
            return scores

    return score
