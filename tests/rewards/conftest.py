# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""One reward server for all tests that leave it as they found it."""

import pytest
from server_process import ServerProcess


REWARDS = ["number", "red", "target", "slow", "bad"]
LIMITS = {"max_batch_size": 4, "max_queue": 32, "max_body_mb": 1, "max_image_pixels": 65536}


@pytest.fixture(scope="session")
def gate(tmp_path_factory):
    """The file that the server's reward `slow` waits for; tests create and remove it."""
    return tmp_path_factory.mktemp("gate") / "open"


@pytest.fixture(scope="session")
def reward_server(gate):
    """A server with a token and small limits."""
    flags = [text for name, value in LIMITS.items() for text in (f"--{name}", str(value))]
    with ServerProcess(REWARDS, flags, token="s3cret-t0ken", gate=gate) as server:
        yield server.wait_until_ready()
