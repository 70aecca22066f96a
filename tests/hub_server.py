# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
A Hub on loopback: a real HTTP server that speaks what `huggingface_hub` speaks, for pushes and downloads of fresh
processes.

```python
with HubServer() as hub:
    hub.add_repo("user/model", {"config.json": b"{}"})
    subprocess.run([...], env={**os.environ, **hub.environment(tmp_path / "home")})
    hub.files("user/model")
```
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hub_routes import Handler
from hub_store import LFS_SUFFIXES, File, Repo


TOKEN = "hf_loopbackTokenThatMustNeverBeWritten"
"""The token of `user`, who may write to `user/...` and `team/...`."""


@dataclass
class Fault:
    """What goes wrong, with which requests: the first `after` that match the pattern pass, the next `times` fail."""

    pattern: str
    status: int | None = 500
    after: int = 0
    times: float = float("inf")
    revoke: bool = False
    seen: int = 0

    def hits(self, request: str) -> bool:
        if not re.search(self.pattern, request):
            return False
        self.seen += 1
        return self.after < self.seen <= self.after + self.times


class HubServer:
    """Repositories in memory and a threaded server on a free port of 127.0.0.1; a context manager."""

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.tokens: dict[str, dict[str, Any]] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, int | None]] = []
        """`"METHOD path"` and status of every answer, `None` for a connection that was cut."""
        self.lock = threading.RLock()
        self.add_token(TOKEN, "user", orgs=["team"])
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, home: str | Path, token: str | None = TOKEN) -> dict[str, str]:
        """Variables for a fresh process: this Hub, a cache of its own, no retries over minutes, one thread."""
        home = Path(home)
        home.mkdir(parents=True, exist_ok=True)
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": token or "",
            "HF_HUB_OFFLINE": "0",
            # The server speaks LFS; with hf_xet the client would ask it for xet storage.
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    # ---- what tests put in and take out ------------------------------------------------------------------------------

    def add_token(self, token: str, name: str, orgs: list[str] | None = None, role: str = "write") -> None:
        self.tokens[token] = {"name": name, "orgs": orgs or [], "role": role}

    def add_repo(
        self,
        repo_id: str,
        files: dict[str, bytes] | None = None,
        repo_type: str = "model",
        private: bool = False,
        gated: bool = False,
    ) -> Repo:
        """A repository with these files in its second commit."""
        repo = Repo(repo_id, repo_type, private, gated)
        if files:
            made = {path: File(content, path.endswith(LFS_SUFFIXES)) for path, content in files.items()}
            repo.commit("main", "add files", {**repo.at("main").files, **made})
        self.repos[repo_type, repo_id] = repo
        return repo

    def add_folder(self, repo_id: str, folder: str | Path, **kwargs) -> Repo:
        """A repository with all files below a folder."""
        paths = [path for path in Path(folder).rglob("*") if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return self.add_repo(repo_id, files, **kwargs)

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        commit = self.repos[repo_type, repo_id].at(revision)
        return {path: file.content for path, file in commit.files.items() if path != ".gitattributes"}

    def messages(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> list[str]:
        """Messages of the commits of a branch, the first commit left out."""
        repo = self.repos[repo_type, repo_id]
        return [repo.commits[oid].message for oid in repo.branches[revision][1:]]

    def fail(self, pattern: str, status: int | None = 500, after: int = 0, times: float = float("inf")) -> Fault:
        """Answers requests whose `"METHOD path"` matches with `status`, or cuts the connection if it is `None`."""
        self.faults.append(Fault(pattern, status, after, times))
        return self.faults[-1]

    def revoke_at(self, pattern: str, after: int = 0) -> Fault:
        """Forgets the token of the first request that matches after `after` others, and so refuses it and all later ones."""
        self.faults.append(Fault(pattern, 401, after, times=1, revoke=True))
        return self.faults[-1]

    def fault_of(self, request: str, token: str) -> Fault | None:
        with self.lock:
            hits = [fault for fault in self.faults if fault.hits(request)]
            if any(fault.revoke for fault in hits):
                self.tokens.pop(token, None)
            # A revoked token is refused as any unknown token is.
            return next((fault for fault in hits if not fault.revoke), None)
