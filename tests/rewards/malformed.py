# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Requests that no reward server can score, in endless variation."""

import json
import pickle
import random
import struct
import zlib


FIELDS = {"reward": "toy_rewards:number", "prompts": ["a"], "columns": {}, "preview": False, "request_id": "x"}
JUNK = [None, True, -1, 2**70, 1e308, "", "x", [], {}, [[]], [None], {"a": 1}, "\x00", "../../etc/passwd"]
TRAVERSAL = ["../../../etc/passwd", "..\\..\\boot.ini", "/etc/shadow", "file:///etc/passwd", "%2e%2e%2f", "a\x00b.png"]


def malformed_requests(count, seed, valid):
    """
    `(kind, headers, body)`, `count` times; every kind in turn.

    Args:
        count (`int`): how many.
        seed (`int`): of the variation.
        valid (`bytes`): an image file.
    """
    rng = random.Random(seed)
    kinds = list(_KINDS.items())
    for index in range(count):
        kind, make = kinds[index % len(kinds)]
        content_type, body = make(rng, valid)
        yield kind, {"Content-Type": content_type}, body


def _request(fields, files, boundary="bound"):
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="request"\r\n\r\n'.encode() + fields]
    for name, data in files:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'
        parts.append(head.encode() + data)
    return f"multipart/form-data; boundary={boundary}", b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()])


def _image(data):
    return _request(json.dumps(FIELDS).encode(), [("i.png", data)])


def _truncated_body(rng, valid):
    kind, body = _image(valid)
    return kind, body[: rng.randrange(len(body) - len(valid) // 2)]


def _truncated_image(rng, valid):
    return _image(valid[: rng.randrange(len(valid) - 20)])


def _flipped(rng, valid):
    data = bytearray(valid)
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return _image(bytes(data))


def _noise(rng, valid):
    return _image(rng.choice([b"", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\xff\xff\xffWEBPVP8X"]) + rng.randbytes(500))


def _pickle(rng, valid):
    data = pickle.dumps({"prompts": ["a"], "x": rng.random()}, rng.randrange(6))
    return _request(data, [("i.png", valid)]) if rng.random() < 0.5 else _image(data)


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _bomb(rng, valid):
    """Small files that unpack to much: pixels, a text chunk, a WebP canvas."""
    which, side = rng.randrange(3), rng.randrange(3_000, 16_000)
    if which == 0:
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", _BOMB) + _chunk(b"IEND", b"")
        return _image(b"\x89PNG\r\n\x1a\n" + chunks)
    if which == 1:
        header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
        text = _chunk(rng.choice([b"zTXt", b"iCCP"]), b"a\x00\x00" + _BOMB)
        return _image(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + text)
    canvas = struct.pack("<I", side)[:3] * 2
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0]) + canvas
    return _image(b"RIFF" + struct.pack("<I", len(body)) + body)


_BOMB = zlib.compress(bytes(50_000_000), 9)


def _wrong_types(rng, valid):
    name = rng.choice(list(FIELDS))
    # What happens to be right for the field is left out.
    right = {"columns": [{}], "preview": [True], "request_id": ["", "x", "\x00", "../../etc/passwd"]}.get(name, [])
    junk = rng.choice([value for value in JUNK if value not in right or isinstance(value, float)])
    return _request(json.dumps({**FIELDS, name: junk}).encode(), [("i.png", valid)])


def _broken_json(rng, valid):
    text = rng.choice(
        [b"", b"{", b"[" * 5_000, b'{"a":' * 5_000, b"\xff\xfe", b'"\\ud800"', b"NaN", b"null", b"[]", b"1" * 5_000]
    )
    return _request(text, [("i.png", valid)])


def _traversal(rng, valid):
    name = rng.choice(TRAVERSAL)
    fields = rng.choice([{"reward": name}, {"columns": {name: []}}, {name: 1}])
    return _request(json.dumps({**FIELDS, **fields}).encode(), [(name, valid)])


def _parts(rng, valid):
    """Too few, too many, or others than are known."""
    text = json.dumps(FIELDS).encode()
    kind, body = _request(text, [("i.png", valid)] * rng.choice([0, 2, 33, 60]))
    return kind, rng.choice([body, body.replace(b'name="request"', b'name="x"'), body.replace(b"request", b"images")])


def _headers(rng, valid):
    _, body = _image(valid)
    kinds = ["", "multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=other",
             "multipart/mixed; boundary=bound", "application/json", "text/plain", "application/x-python-pickle",
             "multipart/form-data; boundary=" + "b" * 500]  # fmt: skip
    return rng.choice(kinds), body


def _part_headers(rng, valid):
    kind, body = _image(valid)
    junk = rng.choice([b"", b"\x00", b"Content-Disposition", b": x", b"x" * 9_000 + b": 1", b"a: b\r\n" * 500])
    return kind, body.replace(b'Content-Disposition: form-data; name="images"; filename="i.png"', junk)


def _oversized(rng, valid):
    size = 2**20 + rng.randrange(2**18)
    if rng.random() < 0.5:
        return _image(bytes(size))
    kind, body = _image(bytes(size))
    # Without a declared length.
    return kind, (body[start : start + 2**16] for start in range(0, len(body), 2**16))


def _garbage(rng, valid):
    return "multipart/form-data; boundary=bound", rng.randbytes(rng.randrange(1, 2_000))


_KINDS = {
    function.__name__.lstrip("_"): function
    for function in (
        _truncated_body,
        _truncated_image,
        _flipped,
        _noise,
        _pickle,
        _bomb,
        _wrong_types,
        _broken_json,
        _traversal,
        _parts,
        _headers,
        _part_headers,
        _oversized,
        _garbage,
    )
}
