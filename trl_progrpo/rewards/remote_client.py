# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Requests to reward servers: token, time-outs, retries with growing pauses, failover."""

from __future__ import annotations

import difflib
import ipaddress
import itertools
import json
import math
import os
import random
import threading
import time
import uuid
import warnings
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx2


REQUEST_FIELD = "request"
"""The multipart field with the JSON."""

IMAGE_FIELD = "images"
"""The multipart field of every image, in the order of the prompts."""

# Seconds.
_CONNECT_TIMEOUT = 5.0
_HEALTH_TIMEOUT = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_REST = 30.0

# Of its own: the global one is seeded, and a run must not depend on how often a server was busy.
_RANDOM = random.Random()

_BUSY = 429
_PASSING = (408, 502, 503, 504)


class RemoteRewardError(RuntimeError):
    """No server gave an answer that can be used."""


class RemoteRewardUnreachable(RemoteRewardError, ConnectionError):
    """No server answered; another request would fare no better."""


class RemoteRewardTimeout(RemoteRewardUnreachable, TimeoutError):
    """No server answered in time."""


class TooLarge(ValueError):
    """A server takes no request of this size."""


class RewardServers:
    """
    Servers that are asked in turn until one answers.

    Args:
        urls (`Sequence[str]`): `"http://host:port"` of each.
        token_env (`str`): environment variable that holds the bearer token, if there is one.
        timeout (`float`): seconds to wait for an answer.
        retries (`int`): further rounds over all servers.

    Raises:
        ValueError: if an argument is wrong.
    """

    def __init__(self, urls: Sequence[str], *, token_env: str, timeout: float, retries: int):
        if not timeout > 0:
            raise ValueError(f"`timeout` is {timeout}; use a number of seconds above 0.")
        if retries < 0:
            raise ValueError(f"`retries` is {retries}; use 0 for none, or more.")
        self.urls = list(dict.fromkeys(_checked_url(url) for url in urls))
        if not self.urls:
            raise ValueError("`urls` is empty; give at least one, e.g. http://127.0.0.1:8000.")
        self.timeout, self.retries, self._token_env = timeout, retries, token_env
        token = read_token(os.environ.get(token_env, ""), f"the environment variable {token_env}")
        if token and any(url.startswith("http:") and not is_loopback(urlsplit(url).hostname) for url in self.urls):
            warnings.warn(
                "the reward servers' token travels unencrypted over http; use https, or a tunnel that ends at 127.0.0.1.",
                stacklevel=4,
            )
        # Not as it is: these do not show it in their `repr`.
        self._headers = httpx2.Headers({"Authorization": f"Bearer {token}"} if token else {})
        self._clients: dict[int, httpx2.Client] = {}
        self._resting: dict[str, float] = {}
        # Many ranks have the same list, and should not all begin with its first server.
        self._turns = itertools.count(_RANDOM.randrange(len(self.urls)))

    @property
    def _client(self) -> httpx2.Client:
        # One per process: a fork that wrote into the connections of the process it comes from would spoil both.
        process = os.getpid()
        return self._clients.get(process) or self._clients.setdefault(process, self._new_client())

    def _new_client(self) -> httpx2.Client:
        return httpx2.Client(
            headers=self._headers,
            timeout=httpx2.Timeout(self.timeout, connect=min(self.timeout, _CONNECT_TIMEOUT)),
            # Proxies and .netrc are for the way out; these servers are neighbours, and their token is not for others.
            trust_env=False,
            # But SSL_CERT_FILE and SSL_CERT_DIR say whom to believe, neighbours or not.
            verify=httpx2.create_ssl_context(trust_env=True),
        )

    def check(self, reward: str) -> None:
        """
        Asks every server whether it serves `reward`.

        Raises:
            ValueError: if none can be reached, or one of them refuses the token or does not know the reward.
        """
        down = {}
        for url in self.urls:
            try:
                response = self._client.get(f"{url}/health", timeout=_HEALTH_TIMEOUT)
            except httpx2.TransportError as error:
                down[url] = _reason(error)
                continue
            except (httpx2.InvalidURL, UnicodeError) as error:
                raise ValueError(
                    f"{url!r} is no address of a reward server ({error}); use http://host:port."
                ) from error
            if response.status_code in _PASSING:
                down[url] = f"status {response.status_code}"
                continue
            try:
                known = self._answer(url, response).get("rewards")
            except RemoteRewardError as error:
                raise ValueError(f"{str(error).rstrip('.')}; check the address.") from error
            if not isinstance(known, list):
                raise ValueError(f"{url} is no reward server; start one with `trl-progrpo reward-server`.")
            if reward not in known:
                nearest = difflib.get_close_matches(reward, known, n=1)
                raise ValueError(
                    f"{url} does not serve the reward {reward!r}; "
                    f"{f'did you mean {nearest[0]!r}? ' if nearest else ''}it serves: {', '.join(known)}."
                )
        told = "; ".join(f"{url}: {why}" for url, why in down.items())
        if len(down) == len(self.urls):
            raise ValueError(
                f"no reward server for {reward!r} can be reached ({told}); start one with "
                f"`trl-progrpo reward-server --reward {reward}` and check the address."
            )
        if down:
            warnings.warn(f"these reward servers cannot be reached and are tried again later: {told}.", stacklevel=4)
            self._resting = dict.fromkeys(down, time.monotonic() + _REST)

    def score(
        self, request: dict[str, Any], images: Sequence[bytes], media_type: str, stop: threading.Event
    ) -> list[float | None]:
        """
        The scores of `images`. Servers take turns; those that failed lately are asked last. Once `stop` is set, nothing
        is tried again.

        Raises:
            RemoteRewardUnreachable: if no server answers.
            RemoteRewardError: if the reward failed on one.
            TooLarge: if a server takes no request of this size.
            ValueError: if a server refuses the request.
        """
        request = {**request, "request_id": uuid.uuid4().hex}
        files = [(IMAGE_FIELD, (f"{index}", image, media_type)) for index, image in enumerate(images)]
        body = {"data": {REQUEST_FIELD: json.dumps(request)}, "files": files}
        busy_until = time.monotonic() + self.timeout
        failures: dict[str, str] = {}
        failed_rounds, turn = 0, next(self._turns)
        while failed_rounds <= self.retries:
            wait_for_place = 0.0
            for url in self._in_order(turn):
                if stop.is_set():
                    raise RemoteRewardError("another part of the same call failed.")
                try:
                    response = self._client.post(f"{url}/score", **body)
                except httpx2.TransportError as error:
                    failures[url] = _reason(error)
                    self._resting[url] = time.monotonic() + _REST
                    continue
                if response.status_code == _BUSY:
                    failures[url] = "its queue is full"
                    wait_for_place = max(wait_for_place, _retry_after(response))
                elif response.status_code in _PASSING:
                    failures[url] = f"status {response.status_code}"
                    self._resting[url] = time.monotonic() + _REST
                else:
                    self._resting.pop(url, None)
                    return _checked_scores(url, self._answer(url, response), request["request_id"], len(images))
            if not wait_for_place or time.monotonic() > busy_until:
                failed_rounds += 1
            if failed_rounds <= self.retries:
                stop.wait(max(_pause(failed_rounds), wait_for_place))
        raise self._given_up(request["reward"], failures)

    def close(self) -> None:
        """Closes the connections."""
        client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    def _in_order(self, turn: int) -> list[str]:
        start, now = turn % len(self.urls), time.monotonic()
        # sorted() is stable: those that rest keep their order behind those that do not.
        return sorted(self.urls[start:] + self.urls[:start], key=lambda url: self._resting.get(url, 0.0) > now)

    def _answer(self, url: str, response: httpx2.Response) -> dict[str, Any]:
        status = response.status_code
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if status == 200 and isinstance(answer, dict):
            return answer
        told = answer.get("error") if isinstance(answer, dict) else None
        told = self._without_token(str(told)) if told else f"it answered with status {status}."
        if status == 401:
            raise ValueError(f"{url} refuses the token; set {self._token_env} to the token of the server.")
        if status == 413:
            raise TooLarge(f"{url} refuses the request: {told}")
        if 400 <= status < 500:
            raise ValueError(f"{url} refuses the request: {told}")
        if status == 500:
            raise RemoteRewardError(f"{url} failed: {told}")
        raise RemoteRewardError(f"{url} is no reward server: {told}")

    def _without_token(self, text: str) -> str:
        token = self._headers.get("Authorization", "").removeprefix("Bearer ")
        return text.replace(token, "***") if token else text

    def _given_up(self, reward: str, failures: dict[str, str]) -> RemoteRewardUnreachable:
        told = "; ".join(f"{url}: {why}" for url, why in failures.items())
        late = all(why.startswith("no answer") for why in failures.values())
        kind = RemoteRewardTimeout if late else RemoteRewardUnreachable
        return kind(
            f"reward {reward!r} was not computed, after {self.retries} retries ({told}); check that the servers run, "
            "or raise `timeout` and `retries` of RemoteReward."
        )


def read_token(text: str, where: str) -> str | None:
    """
    The bearer token in `text`, `None` if there is none.

    Raises:
        ValueError: if it cannot stand in an HTTP header; the message does not show it.
    """
    token = text.strip()
    if not all("!" <= character <= "~" for character in token):
        raise ValueError(f"the token in {where} has a space, a line break or a character beyond ASCII; remove it.")
    return token or None


def is_loopback(host: str | None) -> bool:
    """Whether only this machine can reach a server on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _checked_url(url: str) -> str:
    # The text may hold a password: it is only shown once it is known that it does not.
    try:
        parts = urlsplit(url.strip())
        login, port = parts.username or parts.password, parts.port
    except ValueError as error:
        raise ValueError(f"the address of a reward server is malformed ({error}); use http://host:port.") from None
    if login is not None:
        raise ValueError(
            "the address of a reward server holds a user name or password; use http://host:port, and give the token in "
            "the environment."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or port == 0:
        raise ValueError(f"{url!r} is no address of a reward server; use http://host:port.")
    return url.strip().rstrip("/")


def _checked_scores(url: str, answer: dict[str, Any], request_id: str, expected: int) -> list[float | None]:
    scores = answer.get("rewards")
    numbers = isinstance(scores, list) and all(
        score is None or (isinstance(score, (int, float)) and math.isfinite(score)) for score in scores
    )
    if not numbers or len(scores) != expected or answer.get("request_id") != request_id:
        raise RemoteRewardError(
            f"{url} did not answer with {expected} numbers; is it a reward server of this version?"
        )
    return scores


def _reason(error: httpx2.TransportError) -> str:
    if isinstance(error, httpx2.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, httpx2.TimeoutException):
        return "no answer in time"
    return " ".join(str(error).split()) or type(error).__name__


def _retry_after(response: httpx2.Response) -> float:
    try:
        seconds = float(response.headers.get("Retry-After", "1"))
    except ValueError:  # a date is allowed too
        seconds = 1.0
    return min(max(seconds, 0.1), 2 * _LONGEST_PAUSE) if math.isfinite(seconds) else 1.0


def _pause(failed_rounds: int) -> float:
    # Ranks that failed together should not come back together.
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** max(failed_rounds - 1, 0))
    return longest * _RANDOM.uniform(0.5, 1.0)
