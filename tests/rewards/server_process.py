# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Reward servers in processes of their own, started through the command line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2


HERE = Path(__file__).parent


class ServerProcess:
    """
    A `trl-progrpo reward-server` of functions in toy_rewards.py. Starts at once; `wait_until_ready` returns itself.

    Args:
        rewards (`list[str]`): functions of toy_rewards.py.
        flags (`list[str]`, *optional*): further flags.
        port (`int`, *optional*, defaults to 0): 0 takes a free one.
        token (`str`, *optional*): bearer token.
        gate (`Path`, *optional*): the file that the reward `slow` waits for.
    """

    def __init__(self, rewards, flags=(), port=0, token=None, gate=None):
        names = [f"toy_rewards:{reward}" for reward in rewards]
        env = {**os.environ, "PYTHONPATH": str(HERE), "GATE": str(gate), "OMP_NUM_THREADS": "1"}
        env.pop("TRL_PROGRPO_REWARD_TOKEN", None)
        if token is not None:
            env["TRL_PROGRPO_REWARD_TOKEN"] = token
        command = [sys.executable, "-m", "trl_progrpo.cli", "reward-server", "--reward", *names, "--port", str(port)]
        self.process = subprocess.Popen([*command, *flags], env=env, stdout=subprocess.PIPE, text=True)
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.url = None

    def wait_until_ready(self):
        line = self.process.stdout.readline()
        assert line.startswith("serving "), line
        self.url = line.split()[-1]
        return self

    @property
    def port(self):
        return int(self.url.rpartition(":")[2])

    def health(self):
        return httpx2.get(f"{self.url}/health", headers=self.headers, trust_env=False, timeout=60).json()

    def wait_for_queue(self, images):
        """Until the server has accepted that many images and not yet scored them."""
        until(lambda: self.health()["queue"] == images)

    def memory(self):
        """Resident bytes, `None` where the system does not tell."""
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except FileNotFoundError:
            return None
        return pages * os.sysconf("SC_PAGE_SIZE")

    def ask_to_stop(self):
        self.process.send_signal(signal.SIGTERM)

    def kill(self):
        self.process.kill()
        self.process.wait(300)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.kill()
        self.process.stdout.close()


def until(condition):
    """Waits, five minutes at most: machines may be busy."""
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
