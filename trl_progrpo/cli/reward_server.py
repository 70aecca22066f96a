# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`trl-progrpo reward-server`: reward functions over HTTP, for training that runs elsewhere."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import signal
import socket
import warnings
from collections.abc import Sequence
from pathlib import Path

from .base import CommandError, CommandParser, user_errors


def run(argv: Sequence[str]) -> int:
    """Parses `argv` and serves until a signal ends it; what was accepted by then is still answered."""
    args = _parser().parse_args(argv)
    _check(args)
    return serve(args)


def serve(args: argparse.Namespace) -> int:
    """
    Loads the rewards, then listens.

    Raises:
        CommandError: for a mistake of the user's.
    """
    with _bound_socket(args.host, args.port) as listener:
        from ..rewards import RewardRunner, resolve_reward
        from ..rewards.remote import TOKEN_ENV
        from ..rewards.remote_client import is_loopback, read_token

        with user_errors():
            token = read_token(*_token_source(args.token_file, TOKEN_ENV))
            if token is None and not is_loopback(args.host):
                raise ValueError(
                    f"`--host` {args.host} lets other machines in, and there is no token; put one into a file for "
                    f"--token_file or into {TOKEN_ENV}, or leave the host at 127.0.0.1."
                )
            rewards = {name: resolve_reward(name) for name in dict.fromkeys(args.reward)}
            RewardRunner(list(rewards.values())).load()
        _listen(args, rewards, token, listener)
    return 0


def _listen(args: argparse.Namespace, rewards, token: str | None, listener: socket.socket) -> None:
    import uvicorn
    from PIL import Image

    from ..reward_server import Limits, create_app

    limits = Limits(args.max_batch_size, args.max_queue, int(args.max_body_mb * 2**20), args.max_image_pixels)
    host = f"[{args.host}]" if ":" in args.host else args.host
    address = f"http://{host}:{listener.getsockname()[1]}"

    class Server(uvicorn.Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            print(f"serving {', '.join(rewards)} on {address}", flush=True)

    server = Server(
        uvicorn.Config(
            create_app(rewards, limits, token),
            http="h11",
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            # Longer than clients keep theirs, so that it is they who close an idle connection.
            timeout_keep_alive=75,
        )
    )
    # Strangers must not fill the log; the sentence they are answered is enough.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    # uvicorn shuts down in order and then raises the signal again; by then the work is done.
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda *_: None)
    server.run(sockets=[listener])


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="trl-progrpo reward-server",
        description="Serve reward functions over HTTP; trainings use them as remote:http://HOST:PORT/NAME.",
    )
    parser.add_argument(
        "--reward", nargs="+", required=True, metavar="NAME",
        help="names, or dotted paths (package.module:function), of the rewards",
    )  # fmt: skip
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="HOST",
        help="address to listen on; beyond this machine only with a token",
    )
    parser.add_argument("--port", type=int, default=8000, metavar="PORT", help="0 takes a free one and prints it")
    parser.add_argument(
        "--token_file", type=os.path.expanduser, metavar="FILE",
        help="file with the bearer token that clients must send; without it, the environment variable "
        "TRL_PROGRPO_REWARD_TOKEN, if set",
    )  # fmt: skip
    parser.add_argument("--max_batch_size", type=int, default=16, metavar="IMAGES", help="images per call of a reward")
    parser.add_argument(
        "--max_queue", type=int, default=256, metavar="IMAGES",
        help="images accepted and not yet scored; beyond that clients are asked to come back later",
    )  # fmt: skip
    parser.add_argument("--max_body_mb", type=float, default=64, metavar="MIB", help="size of a request")
    parser.add_argument(
        "--max_image_pixels", type=int, default=2048 * 2048, metavar="PIXELS", help="width times height of an image"
    )
    return parser


def _check(args: argparse.Namespace) -> None:
    """What can be known before the heavy imports."""
    missing = [name for name in ("fastapi", "uvicorn", "python_multipart") if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(f'{" and ".join(missing)} not installed; run pip install "trl_progrpo[server]".')
    for name in ("max_batch_size", "max_queue", "max_image_pixels"):
        if getattr(args, name) < 1:
            raise CommandError(f"`--{name}` is {getattr(args, name)}; use at least 1.")
    if not 0 < args.max_body_mb < 2**20:
        raise CommandError(f"`--max_body_mb` is {args.max_body_mb}; use a number of mebibytes above 0.")
    if not 0 <= args.port <= 65535:
        raise CommandError(f"`--port` is {args.port}; use a number from 0 to 65535.")


def _token_source(file: str | None, variable: str) -> tuple[str, str]:
    """The text with the token, and where it was found."""
    if file is None:
        return os.environ.get(variable, ""), f"the environment variable {variable}"
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(
            f"`--token_file` {file!r} cannot be read ({type(error).__name__}); give a file with the token."
        ) from error
    if not text.strip():
        raise CommandError(f"`--token_file` {file!r} is empty; put the token into it.")
    return text, f"`--token_file` {file!r}"


def _bound_socket(host: str, port: int) -> socket.socket:
    # Bound first, so that a port that is taken is known before weights are loaded; it listens when they are.
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With its protocol, by which asyncio knows to send small answers at once.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise CommandError(
            f"cannot listen on `--host` {host} and `--port` {port} ({error.strerror}); choose others, port 0 for any free one."
        ) from error
    return listener
