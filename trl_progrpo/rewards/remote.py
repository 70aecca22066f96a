# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""A reward that is computed by reward servers elsewhere."""

from __future__ import annotations

import io
import json
import re
import threading
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, as_completed
from typing import Any

from PIL import Image

from .base import REMOTE_PREFIX, REWARDS
from .calls import accepted_keywords, given_up_event
from .remote_client import RewardServers, TooLarge


TOKEN_ENV = "TRL_PROGRPO_REWARD_TOKEN"
"""The environment variable that holds the bearer token, for client and server."""

IMAGE_MODES = ("RGB", "L")
"""PIL modes that are sent and accepted: 8 bits, no alpha channel."""

_SAVE_OPTIONS = {"png": {"compress_level": 1}, "webp": {"lossless": True, "method": 0}}


class RemoteReward:
    """
    A reward function whose scores come from one or several `trl-progrpo reward-server`s; see docs/remote_rewards.md.

    Images go out as 8-bit PNG or lossless WebP, so a score may differ from a local one for a reward that would be given
    a float tensor (`image_type = "pt"`). A call is cut into chunks, sent over kept-open connections by a few threads and
    put together again in order. A chunk that a server does not answer goes to the next server, then, after a pause that
    grows, round all of them again. May be called from several threads.

    Args:
        urls (`str` or `list[str]`): `"http://host:port"` of each server; all of them serve the reward.
        reward (`str`): the reward's name on the servers.
        token_env (`str`, *optional*, defaults to `"TRL_PROGRPO_REWARD_TOKEN"`): environment variable that holds the
            bearer token. It is read once and kept out of `repr`, logs and errors.
        timeout (`float`, *optional*, defaults to 300.0): seconds a server may take over a chunk, and seconds to wait
            for a place in full queues.
        retries (`int`, *optional*, defaults to 7): further rounds over all servers after failures; with the pauses
            between them about a minute.
        chunk_size (`int`, *optional*, defaults to 16): images per request; halved for good where a server finds that too
            large.
        max_workers (`int`, *optional*, defaults to 4): requests at a time.
        image_format (`str`, *optional*, defaults to `"png"`): `"png"`, or `"webp"`: smaller and slower; both lossless.

    Raises:
        ValueError: if an argument is wrong, no server can be reached, the token is refused, or a server does not know
            the reward. A warning if only some servers can be reached.
    """

    image_type = "pil"

    def __init__(
        self,
        urls: str | Sequence[str],
        reward: str,
        *,
        token_env: str = TOKEN_ENV,
        timeout: float = 300.0,
        retries: int = 7,
        chunk_size: int = 16,
        max_workers: int = 4,
        image_format: str = "png",
    ):
        for name, value in (("chunk_size", chunk_size), ("max_workers", max_workers)):
            if value < 1:
                raise ValueError(f"`{name}` is {value}; use at least 1.")
        if image_format not in _SAVE_OPTIONS:
            raise ValueError(f'`image_format` is {image_format!r}; use "png" or "webp".')
        self.reward, self.image_format = reward, image_format
        self.chunk_size, self.max_workers = chunk_size, max_workers
        # A dotted path is logged under its function's name, as it would be here.
        self.__name__ = reward.rpartition(":")[2].rpartition(".")[2] if ":" in reward else reward
        self._dropped: set[str] = set()
        # Of a built-in reward it is known what it reads and refuses.
        self._local = REWARDS.get(reward) if reward in REWARDS.registered() else None
        self.dataset_columns: Sequence[str] | None = getattr(self._local, "dataset_columns", None)
        self.reads_prompts: bool = getattr(self._local, "reads_prompts", True)
        self._servers = RewardServers(
            [urls] if isinstance(urls, str) else urls, token_env=token_env, timeout=timeout, retries=retries
        )
        self._servers.check(reward)

    @classmethod
    def from_name(cls, name: str, **kwargs) -> RemoteReward:
        """
        From the form of a command line or config: `remote:http://host:8000/pickscore`, with commas between servers:
        `remote:http://a:8000,http://b:8000/pickscore`.

        Raises:
            ValueError: as the class does, and if `name` has another form.
        """
        servers, _, reward = name.removeprefix(REMOTE_PREFIX).rpartition("/")
        if not reward or servers.endswith("/") or "://" not in servers:
            raise ValueError(
                f"reward {_without_login(name)!r} names no server and reward; write remote:http://host:8000/pickscore, "
                "with commas between several servers."
            )
        return cls(servers.split(","), reward, **kwargs)

    def __call__(
        self, prompts: Sequence[str], images: Sequence[Image.Image], preview: bool = False, **columns
    ) -> list[float | None]:
        """
        Scores of `images`, in order; `None` where the reward does not apply.

        Raises:
            RemoteRewardUnreachable: if no server answered after all retries; RemoteRewardTimeout if none did in time.
            RemoteRewardError: if the reward failed on a server.
            ValueError: if the servers refuse what they are given.
        """
        if len(prompts) != len(images):
            raise ValueError(f"{len(prompts)} prompts came with {len(images)} images; give one prompt per image.")
        request = {"reward": self.reward, "preview": bool(preview)}
        columns = {"prompts": list(prompts), **self._plain(columns)}
        # A call that is given up asks nobody again.
        files, stop = _Files(images, self.image_format), given_up_event() or threading.Event()
        scored = _in_threads(
            lambda chunk: self._score(request, columns, files, chunk, stop),
            self._chunks(range(len(images))),
            self.max_workers,
            stop,
        )
        try:
            for future in as_completed(scored):
                future.result()  # whichever fails first ends the call
            return [value for future in scored for value in future.result()]
        finally:
            stop.set()

    def check_row(self, prompt: str, **columns) -> None:
        """
        Check a row as the reward of this name does here, except for what depends on the server: its models, its detector.

        Args:
            prompt (`str`): of the row.
            columns: that the reward reads.

        Raises:
            ValueError: if the reward would refuse it.
        """
        check = getattr(self._local, "check_row", None)
        check = getattr(self._local, "check_row_of_server", check)
        if check is not None:
            check(**accepted_keywords(check, {"prompt": prompt, **columns}))

    def __repr__(self) -> str:
        return f"RemoteReward({self._servers.urls}, {self.reward!r})"

    def close(self) -> None:
        """Closes the connections."""
        self._servers.close()

    def _score(
        self,
        request: dict[str, Any],
        columns: Mapping[str, Sequence[Any]],
        images: _Files,
        rows: range,
        stop: threading.Event,
    ) -> list[float | None]:
        # A chunk before may have found that servers take less than a call began with.
        chunks = self._chunks(rows)
        if len(chunks) > 1:
            return [value for chunk in chunks for value in self._score(request, columns, images, chunk, stop)]
        chunk = {name: [values[row] for row in rows] for name, values in columns.items()}
        asked = {**request, "prompts": chunk.pop("prompts"), "columns": chunk}
        files = [images.file(row) for row in rows]
        try:
            return self._servers.score(asked, files, f"image/{self.image_format}", stop)
        except TooLarge:
            if len(rows) == 1:
                raise
            self.chunk_size = min(self.chunk_size, -(-len(rows) // 2))
        return self._score(request, columns, images, rows, stop)

    def _chunks(self, rows: range) -> list[range]:
        size = self.chunk_size
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _plain(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """The columns as JSON knows them; those it does not know stay here, and one warning says so."""
        plain = {}
        for name, values in columns.items():
            try:
                plain[name] = json.loads(json.dumps(list(values), default=_plain_value))
            except (TypeError, ValueError):
                if name not in self._dropped:
                    self._dropped.add(name)
                    warnings.warn(
                        f"column {name!r} is not sent to the reward server, as it holds values that are no JSON; if "
                        f"{self.reward!r} needs it, turn it into numbers, strings or lists in the dataset.",
                        stacklevel=3,
                    )
        return plain


class _Files:
    """Images as files: each is encoded when it is first asked for, and kept while the call lasts."""

    def __init__(self, images: Sequence[Image.Image], image_format: str):
        self._images, self._format = images, image_format
        self._files: dict[int, bytes] = {}

    def file(self, row: int) -> bytes:
        if row not in self._files:
            self._files[row] = encode_image(self._images[row], self._format, row)
        return self._files[row]


def encode_image(image: Image.Image, image_format: str, index: int) -> bytes:
    """
    A file in memory.

    Raises:
        ValueError: if it is no PIL image, or has an alpha channel or other than 8 bits a channel.
    """
    mode = image.mode if isinstance(image, Image.Image) else type(image).__name__
    if mode not in IMAGE_MODES:
        raise ValueError(
            f"image {index} is {mode!r}; reward servers take PIL images of 8-bit RGB or grey, so convert it first, "
            'e.g. `image.convert("RGB")`.'
        )
    file = io.BytesIO()
    image.save(file, image_format, **_SAVE_OPTIONS[image_format])
    return file.getvalue()


def _in_threads(
    score: Callable[[range], list[float | None]], chunks: Sequence[range], workers: int, stop: threading.Event
) -> list[Future[list[float | None]]]:
    """What `score` makes of each chunk; none is begun once `stop` is set, nor by a thread whose chunk failed."""
    futures = [Future() for _ in chunks]
    waiting = deque(zip(chunks, futures))

    def work() -> None:
        while waiting and not stop.is_set():
            try:
                chunk, future = waiting.popleft()
            except IndexError:  # another thread was quicker
                return
            try:
                future.set_result(score(chunk))
            except BaseException as error:
                future.set_exception(error)
                return  # the caller sets `stop` only once it has seen this: no chunk may be begun until then

    # Daemons, unlike the threads of a pool: a run that ends because one server failed does not wait for one that hangs.
    for _ in range(min(workers, len(chunks))):
        threading.Thread(target=work, name="remote-reward", daemon=True).start()
    return futures


def _plain_value(value: Any) -> Any:
    # numpy scalars and arrays, and tensors
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError


def _without_login(name: str) -> str:
    return re.sub(r"//[^/@,]*@", "//", name)
