# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What [`HubServer`] answers to which request: the Hub's addresses, status codes, headers and error codes."""

from __future__ import annotations

import base64
import json
import re
import socket
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_store import LFS_SUFFIXES, File, Repo, card_errors, tree_entries


class _Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    """One request to the [`HubServer`] `hub`."""

    hub: Any
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args) -> None:
        pass

    # ---- one request -------------------------------------------------------------------------------------------------

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self.body = self._read_body()
        request = f"{self.command} {parts.path}"
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        self.fault = self.hub.fault_of(request, self.token)
        if self.fault is not None and self.fault.status is None and self.command != "GET":
            return self._cut(request)
        try:
            if self.fault is not None and self.fault.status is not None:
                raise _Refusal(self.fault.status, "Internal Error, we are working on it")
            self._authenticate()
            with self.hub.lock:
                status, headers, content = self._answer(parts.path)
        except _Refusal as refusal:
            status, content = refusal.status, json.dumps({"error": str(refusal)}).encode()
            headers = {"Content-Type": "application/json", "X-Error-Message": str(refusal)}
            headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
        self.hub.requests.append((request, status if self.fault is None or self.fault.status else None))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if self.fault is not None and self.fault.status is None:
            self.wfile.write(content[: len(content) // 2])
            return self._cut(None)
        self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _cut(self, request: str | None) -> None:
        if request is not None:
            self.hub.requests.append((request, None))
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _authenticate(self) -> None:
        self.user = self.hub.tokens.get(self.token)
        if self.token and self.user is None:
            raise _Refusal(401, "Invalid credentials in Authorization header")

    # ---- routes ------------------------------------------------------------------------------------------------------

    def _answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        for method, pattern, handler in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                return handler(self, *map(unquote, (group or "" for group in match.groups())))
        raise _Refusal(404, f"no such address: {path}", "EntryNotFound")

    @staticmethod
    def _json(value: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
        return status, {"Content-Type": "application/json"}, json.dumps(value).encode()

    def _repo(self, kind: str, repo_id: str, write: bool = False) -> Repo:
        repo = self.hub.repos.get((kind.rstrip("s/") or "model", repo_id))
        if repo is None or (repo.private and not self._belongs(repo.namespace)):
            # A stranger is not told which of the two it is.
            raise _Refusal(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write:
            self._check_write(repo.namespace)
        return repo

    def _belongs(self, namespace: str) -> bool:
        return self.user is not None and namespace in (self.user["name"], *self.user["orgs"])

    def _check_write(self, namespace: str) -> None:
        if self.user is None:
            raise _Refusal(401, "Invalid username or password.")
        if not self._belongs(namespace) or self.user["role"] == "read":
            raise _Refusal(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')

    def _commit_at(self, repo: Repo, revision: str):
        commit = repo.at(revision or "main")
        if commit is None:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def whoami(self):
        if self.user is None:
            raise _Refusal(401, "Invalid username or password.")
        orgs = [{"name": name, "roleInOrg": "write", "isEnterprise": False} for name in self.user["orgs"]]
        auth = {"accessToken": {"displayName": "loopback", "role": self.user["role"]}}
        return self._json({"type": "user", "name": self.user["name"], "orgs": orgs, "auth": auth})

    def create_repo(self):
        asked = json.loads(self.body)
        if self.user is None:
            raise _Refusal(401, "Invalid username or password.")
        repo_id = f"{asked.get('organization') or self.user['name']}/{asked['name']}"
        self._check_write(repo_id.split("/")[0])
        kind = asked.get("type", "model")
        answer = {"url": f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}", "name": repo_id}
        if (kind, repo_id) in self.hub.repos:
            return self._json({"error": "You already created this repo", **answer}, 409)
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.add_repo(repo_id, repo_type=kind, private=private)
        return self._json(answer)

    def validate_yaml(self):
        errors = card_errors(json.loads(self.body)["content"])
        return self._json({"errors": [{"message": e} for e in errors], "warnings": []}, 400 if errors else 200)

    def info(self, kind, repo_id, revision):
        repo = self._repo(kind, repo_id)
        return self._json(repo.info(self._commit_at(repo, revision)))

    def refs(self, kind, repo_id):
        return self._json(self._repo(kind, repo_id).refs())

    def create_branch(self, kind, repo_id, name):
        repo = self._repo(kind, repo_id, write=True)
        if name in repo.branches:
            return self._json({"error": "Reference already exists"}, 409)
        start = self._commit_at(repo, (json.loads(self.body or b"{}") or {}).get("startingPoint", "main"))
        repo.branches[name] = [start.oid]
        return self._json({})

    def create_tag(self, kind, repo_id, revision):
        repo = self._repo(kind, repo_id, write=True)
        repo.tags[json.loads(self.body)["tag"]] = self._commit_at(repo, revision).oid
        return self._json({})

    def tree(self, kind, repo_id, revision, folder):
        repo = self._repo(kind, repo_id)
        recursive = self.query.get("recursive", "").lower() in ("1", "true")
        entries = tree_entries(self._commit_at(repo, revision).files, folder, recursive)
        if entries is None:
            raise _Refusal(404, f"{folder} does not exist", "EntryNotFound")
        return self._json(entries)

    def paths_info(self, kind, repo_id, revision):
        files = self._commit_at(self._repo(kind, repo_id), revision).files
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        return self._json([files[path].entry(path) for path in paths if path in files])

    def preupload(self, kind, repo_id, revision):
        repo = self._repo(kind, repo_id, write=True)
        files = self._commit_at(repo, revision).files
        answer = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            lfs = path.endswith(LFS_SUFFIXES) or asked["size"] > 1 << 20
            oid = files[path].etag if path in files else None
            answer.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid})
        return self._json({"files": answer})

    def lfs_batch(self, kind, repo_id):
        self._repo(kind, repo_id, write=True)
        objects = [{"oid": o["oid"], "size": o["size"]} for o in json.loads(self.body)["objects"]]
        for item in objects:
            if item["oid"] not in self.hub.lfs:
                item["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}", "header": {}}}
        return self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid):
        if File(self.body, lfs=True).sha256 != oid:
            raise _Refusal(400, "content does not match its hash")
        self.hub.lfs[oid] = self.body
        return self._json({})

    def commit(self, kind, repo_id, revision):
        repo = self._repo(kind, repo_id, write=True)
        if revision not in repo.branches:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        files, message = dict(repo.at(revision).files), "commit"
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                files[value["path"]] = File(self.hub.lfs[value["oid"]], lfs=True)
            elif key == "deletedFile":
                del files[value["path"]]
            elif key == "deletedFolder":
                files = {path: file for path, file in files.items() if not path.startswith(value["path"])}
        oid = repo.commit(revision, message, files).oid
        return self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}"})

    def resolve(self, kind, repo_id, revision, path):
        repo = self._repo(kind, repo_id)
        if repo.gated and not self._belongs(repo.namespace):
            raise _Refusal(403 if self.user else 401, f"Access to model {repo_id} is restricted", "GatedRepo")
        commit = self._commit_at(repo, revision)
        if path not in commit.files:
            raise _Refusal(404, f"Entry not found: {path}", "EntryNotFound")
        file = commit.files[path]
        headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        headers["Content-Type"] = "application/octet-stream" if file.lfs else "text/plain"
        if file.lfs:
            headers |= {"X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or self.command == "HEAD":
            return 200, headers, file.content
        first, last = int(asked[1]), min(int(asked[2] or len(file.content)), len(file.content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(file.content)}"
        return 206, headers, file.content[first : last + 1]


_ID = r"([\w.-]+/[\w.-]+|[\w.-]+)"
_KIND = r"(models|datasets)"
_ROUTES = [
    (("GET",), r"/api/whoami-v2", Handler.whoami),
    (("POST",), r"/api/repos/create", Handler.create_repo),
    (("POST",), r"/api/validate-yaml", Handler.validate_yaml),
    (("GET",), rf"/api/{_KIND}/{_ID}/refs", Handler.refs),
    (("GET",), rf"/api/{_KIND}/{_ID}/tree/([^/]+)(?:/(.*))?", Handler.tree),
    (("POST",), rf"/api/{_KIND}/{_ID}/branch/([^/]+)", Handler.create_branch),
    (("POST",), rf"/api/{_KIND}/{_ID}/tag/([^/]+)", Handler.create_tag),
    (("POST",), rf"/api/{_KIND}/{_ID}/preupload/([^/]+)", Handler.preupload),
    (("POST",), rf"/api/{_KIND}/{_ID}/paths-info/([^/]+)", Handler.paths_info),
    (("POST",), rf"/api/{_KIND}/{_ID}/commit/([^/]+)", Handler.commit),
    (("GET",), rf"/api/{_KIND}/{_ID}/revision/([^/]+)", Handler.info),
    (("GET",), rf"/api/{_KIND}/{_ID}()", Handler.info),
    (("POST",), rf"/(datasets/)?{_ID}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (("PUT",), r"/lfs/([0-9a-f]{64})", Handler.lfs_put),
    (("GET", "HEAD"), rf"/(datasets/)?{_ID}/resolve/([^/]+)/(.+)", Handler.resolve),
]
"""Methods, path and what answers; the first that matches."""
