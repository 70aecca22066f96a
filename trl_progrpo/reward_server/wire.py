# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""From the bytes of a request to prompts and pixels. Everything in here is fed by strangers."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from ..rewards.remote import IMAGE_MODES
from ..rewards.remote_client import IMAGE_FIELD, REQUEST_FIELD


IMAGE_FORMATS = ("PNG", "WEBP")
"""The only decoders of PIL that a request can reach."""

# The reward function is given these by position or name itself.
_RESERVED_COLUMNS = ("prompts", "images", "preview")


@dataclass(frozen=True)
class Limits:
    """
    What a server takes.

    Args:
        max_batch_size (`int`): images per call of a reward.
        max_queue (`int`): images that were accepted and have no score yet, over all rewards; also the most of a request.
        max_body_bytes (`int`): size of a request.
        max_image_pixels (`int`): width times height of an image.
        body_seconds (`float`): time in which the body of a request must have arrived.
    """

    max_batch_size: int = 16
    max_queue: int = 256
    max_body_bytes: int = 64 * 2**20
    max_image_pixels: int = 2048 * 2048
    body_seconds: float = 60.0


class ScoreRequest(BaseModel):
    """The JSON of a request; every list has one entry per image."""

    model_config = ConfigDict(strict=True, extra="forbid")

    reward: str
    prompts: list[str] = Field(min_length=1)
    columns: dict[str, list[Any]] = {}
    preview: bool = False
    request_id: str = Field("", max_length=100)


class BodyBudget:
    """The bytes of bodies that are held at a time, over all requests; eight of the largest."""

    def __init__(self, limits: Limits):
        self.limits, self._held = limits, 0

    async def limited(self, request: Request) -> AsyncIterator[bytes]:
        """
        The body in chunks as they arrive.

        Raises:
            HTTPException: 413 as soon as the body is too large, 429 if too much is being received at once.
        """
        size, limit = 0, self.limits.max_body_bytes
        declared = request.headers.get("Content-Length", "")
        try:
            if declared.isdecimal() and int(declared) > limit:
                raise _too_large(limit)
            async for chunk in request.stream():
                size += len(chunk)
                self._held += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                if self._held > 8 * limit:
                    raise HTTPException(429, "too many requests are being received; try again.", {"Retry-After": "1"})
                yield chunk
        finally:
            self._held -= size


async def read_request(request: Request, budget: BodyBudget) -> tuple[ScoreRequest, list[bytes]]:
    """
    The JSON and the image files of a request, checked against each other; no image is decoded.

    Raises:
        HTTPException: 4xx with a sentence, for whatever else it may be.
    """
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise HTTPException(415, f"send multipart/form-data with a field `{REQUEST_FIELD}` and files `{IMAGE_FIELD}`.")
    limits = budget.limits
    try:
        async with asyncio.timeout(limits.body_seconds):
            form = await _Parser(
                request.headers,
                budget.limited(request),
                max_files=limits.max_queue,
                max_fields=1,
                max_part_size=limits.max_body_bytes,
            ).parse()
    except (HTTPException, ClientDisconnect):
        raise
    except TimeoutError:
        raise HTTPException(408, f"the body took longer than {limits.body_seconds:g} s.") from None
    except MultiPartException as error:
        raise HTTPException(400, f"the multipart body is malformed: {error.message}") from None
    except Exception as error:  # what else a parser may raise about these bytes is their fault, not the server's
        raise HTTPException(400, f"the multipart body is malformed ({type(error).__name__}).") from None
    text = form.get(REQUEST_FIELD)
    if not isinstance(text, str):
        raise HTTPException(400, f"the body has no field `{REQUEST_FIELD}` with JSON.")
    files = [part for name, part in form.multi_items() if name == IMAGE_FIELD and isinstance(part, UploadFile)]
    if len(files) + 1 != len(form.multi_items()):
        raise HTTPException(400, f"the body may hold the field `{REQUEST_FIELD}` and files `{IMAGE_FIELD}` only.")
    return _checked(text, len(files)), [file.file.read() for file in files]


def decode_image(data: bytes, index: int, max_pixels: int) -> np.ndarray:
    """
    Pixels of shape `(height, width, 3)`, uint8.

    Raises:
        HTTPException: 422 with a sentence, if it is not one still PNG or WebP image of 8-bit RGB or grey, or too large.
    """
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            # Only the header was read so far: a small file may claim, and fill, any amount of memory.
            width, height = image.size
            if width * height > max_pixels:
                raise HTTPException(
                    422, f"image {index} is {width} x {height}; at most {max_pixels} pixels are taken."
                )
            if getattr(image, "is_animated", False):
                raise HTTPException(422, f"image {index} is animated; send a still image.")
            if image.mode not in IMAGE_MODES or "transparency" in image.info:
                mode = image.mode if image.mode not in IMAGE_MODES else f"{image.mode} with transparency"
                raise HTTPException(422, f"image {index} is of mode {mode}; send 8-bit RGB or grey, without alpha.")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except HTTPException:
        raise
    except Image.DecompressionBombError:
        raise HTTPException(422, f"image {index} is too large; at most {max_pixels} pixels are taken.") from None
    except Exception:  # decoders raise OSError, SyntaxError, ValueError, struct.error ... about broken files
        raise HTTPException(422, f"image {index} is no PNG or WebP image, or is damaged.") from None


class _Parser(MultiPartParser):
    # Never to disk: the size of a body is bounded.
    spool_max_size = 0

    def on_headers_finished(self) -> None:
        # Before the base class, which has no status of its own for it: clients send fewer after a 413.
        if len(self.items) > self.max_files:
            raise too_many_images(self.max_files)
        super().on_headers_finished()


def too_many_images(limit: int) -> HTTPException:
    """The answer to a request with more images than there are places."""
    return HTTPException(413, f"at most {limit} images are taken at a time; send fewer.")


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the request is larger than {limit / 2**20:g} MiB; send fewer images at a time.")


def _checked(text: str, images: int) -> ScoreRequest:
    try:
        request = ScoreRequest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))[:100]
        raise HTTPException(422, f"`{REQUEST_FIELD}`{f' at {where!r}' if where else ''}: {first['msg']}.") from None
    if len(request.prompts) != images:
        raise HTTPException(422, f"{len(request.prompts)} prompts came with {images} images; send one per image.")
    for name, values in request.columns.items():
        if name in _RESERVED_COLUMNS:
            raise HTTPException(422, f"a column may not be called {name!r}.")
        if len(values) != images:
            raise HTTPException(422, f"column {name[:100]!r} has {len(values)} values for {images} images.")
    return request
