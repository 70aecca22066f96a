# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The web application: who may ask, how much at a time, and what is answered."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import hmac
import math
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..rewards import RewardFunc
from .batching import Job, RefusedInput, RewardWorker
from .wire import BodyBudget, Limits, decode_image, read_request


def create_app(rewards: Mapping[str, RewardFunc], limits: Limits | None = None, token: str | None = None) -> FastAPI:
    """
    A server of `rewards` with `GET /health` and `POST /score`; see docs/remote_rewards.md.

    Args:
        rewards (`Mapping[str, RewardFunc]`): functions by the name under which they are asked for.
        limits (`Limits`, *optional*): what is taken.
        token (`str`, *optional*): the bearer token that every request must carry.
    """
    service = _Service(rewards, limits or Limits(), token)
    app = FastAPI(lifespan=service.running, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/health", service.health, methods=["GET"])
    app.add_api_route("/score", service.score, methods=["POST"])
    app.add_exception_handler(HTTPException, _told)
    app.add_exception_handler(ClientDisconnect, _hung_up)
    app.add_exception_handler(Exception, _defect)
    return app


class _Service:
    def __init__(self, rewards: Mapping[str, RewardFunc], limits: Limits, token: str | None):
        self.limits = limits
        self.workers = {
            name: RewardWorker(name, function, limits.max_batch_size) for name, function in rewards.items()
        }
        self._token = None if token is None else token.encode()
        self._budget = BodyBudget(limits)
        # Only ever touched on the event loop.
        self._accepted = 0

    @contextlib.asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        for worker in self.workers.values():
            worker.start()
        yield
        # By now every request was answered.
        for worker in self.workers.values():
            await run_in_threadpool(worker.close)

    async def health(self, request: Request) -> JSONResponse:
        from .. import __version__

        self._authorise(request)
        return JSONResponse(
            {
                "ready": True,
                "rewards": list(self.workers),
                "queue": self._accepted,
                "max_queue": self.limits.max_queue,
                "version": __version__,
            }
        )

    async def score(self, request: Request) -> JSONResponse:
        self._authorise(request)
        if self._accepted >= self.limits.max_queue:
            raise self._busy()  # before the body was read
        asked, files = await read_request(request, self._budget)
        worker = self._worker(asked.reward, asked.columns)
        with self._places(len(files)):
            limit = self.limits.max_image_pixels
            images = await run_in_threadpool(
                lambda: [decode_image(file, index, limit) for index, file in enumerate(files)]
            )
            files.clear()
            job = Job(asked.prompts, images, asked.columns, asked.preview)
            worker.submit(job)
            scores = await self._scores(job, asked.reward, request)
        return JSONResponse({"request_id": asked.request_id, "rewards": scores})

    def _authorise(self, request: Request) -> None:
        if self._token is None:
            return
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if not hmac.compare_digest(token.encode(), self._token) or scheme.lower() != "bearer":
            raise HTTPException(401, "a bearer token is needed, and this is not it.", {"WWW-Authenticate": "Bearer"})

    def _worker(self, reward: str, columns: Mapping[str, Any]) -> RewardWorker:
        if reward not in self.workers:
            nearest = difflib.get_close_matches(reward[:100], self.workers, n=1)
            raise HTTPException(
                404,
                f"no reward {reward[:100]!r} here; {f'did you mean {nearest[0]!r}? ' if nearest else ''}"
                f"there is: {', '.join(self.workers)}.",
            )
        worker = self.workers[reward]
        for name in worker.required_columns:
            if name not in columns:
                raise HTTPException(422, f"reward {reward!r} needs the column {name!r}.")
        return worker

    @contextlib.contextmanager
    def _places(self, count: int) -> Iterator[None]:
        if self._accepted + count > self.limits.max_queue:
            raise self._busy()
        self._accepted += count
        try:
            yield
        finally:
            self._accepted -= count

    def _busy(self) -> HTTPException:
        each = max(worker.seconds_per_image for worker in self.workers.values())
        seconds = min(max(math.ceil(each * self._accepted), 1), 60)
        return HTTPException(
            429, f"{self._accepted} images are waiting; come back later.", {"Retry-After": f"{seconds}"}
        )

    async def _scores(self, job: Job, reward: str, request: Request) -> list[float | None]:
        scores = asyncio.wrap_future(job.scores)
        # The whole body was read, so the next message says that the client is gone.
        gone = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait({scores, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if not scores.done():
            job.scores.cancel()
            raise ClientDisconnect()
        try:
            return scores.result()
        except RefusedInput as error:
            raise HTTPException(422, f"reward {reward!r} refuses its input: {_one_line(error)}") from None
        except BaseException as error:
            told = f"reward {reward!r} failed: {_one_line(error)}"
            raise HTTPException(500, f"{told} The server's log has the details.") from None


def _one_line(error: BaseException) -> str:
    kind = "" if isinstance(error, (ValueError, RefusedInput)) else f"{type(error).__name__}: "
    text = " ".join(f"{kind}{error}".split())
    return text[:400].rstrip(".") + "."


async def _told(request: Request, error: HTTPException) -> JSONResponse:
    # These two are Starlette's, and more terse.
    where = {404: "Not Found", 405: "Method Not Allowed"}.get(error.status_code)
    told = "there are GET /health and POST /score only." if error.detail == where else str(error.detail)
    return JSONResponse({"error": told}, error.status_code, error.headers)


async def _hung_up(request: Request, error: ClientDisconnect) -> JSONResponse:
    # Nobody reads this.
    return JSONResponse({"error": "the connection was closed."}, 400)


async def _defect(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "the server has a defect; its log has the details."}, 500)
