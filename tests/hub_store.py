# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The repositories behind [`HubServer`]: commits, branches and files in memory, and the Hub's rules for a card's header."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

import yaml


LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".png", ".jpg", ".webp", ".parquet", ".onnx")
"""What the Hub's default `.gitattributes` keeps in large file storage, as far as it matters here."""

LICENSES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0",
    "cc0-1.0", "creativeml-openrail-m", "gpl-3.0", "mit", "openrail", "openrail++", "other", "unknown", "unlicense",
}  # fmt: skip
RELATIONS = {"adapter", "finetune", "merge", "quantized"}
REPO_ID = re.compile(r"(?:[\w.-]+/)?[\w.-]+")


@dataclass(frozen=True)
class File:
    """One version of a file."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_oid(self) -> str:
        content = self.content
        if self.lfs:
            content = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n"
            content = content.encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid

    def entry(self, path: str) -> dict:
        """What the tree and paths-info endpoints say of it."""
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.git_oid}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 130}
        return entry


@dataclass(frozen=True)
class Commit:
    oid: str
    message: str
    files: dict[str, File]


@dataclass
class Repo:
    """A repository: its commits, and names for some of them."""

    repo_id: str
    repo_type: str = "model"
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, list[str]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.branches["main"] = []
        self.commit("main", "initial commit", {".gitattributes": File(b"*.safetensors filter=lfs\n", lfs=False)})

    @property
    def namespace(self) -> str:
        return self.repo_id.split("/")[0]

    def commit(self, branch: str, message: str, files: dict[str, File]) -> Commit:
        history = self.branches[branch]
        oid = hashlib.sha1(f"{self.repo_id} {branch} {len(self.commits)} {message}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, message, files)
        history.append(oid)
        return self.commits[oid]

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch, a tag, or a (shortened) commit id."""
        if revision in self.branches:
            return self.commits[self.branches[revision][-1]]
        if revision in self.tags:
            return self.commits[self.tags[revision]]
        return next((c for oid, c in self.commits.items() if len(revision) >= 7 and oid.startswith(revision)), None)

    def refs(self) -> dict:
        def ref(kind, name, oid):
            return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid}

        return {
            "branches": [ref("heads", name, history[-1]) for name, history in self.branches.items()],
            "tags": [ref("tags", name, oid) for name, oid in self.tags.items()],
            "converts": [],
        }

    def info(self, commit: Commit) -> dict:
        card = header_of(commit.files["README.md"].content.decode()) if "README.md" in commit.files else None
        card = card if isinstance(card, dict) else {}
        return {
            "id": self.repo_id,
            "modelId": self.repo_id,
            "author": self.namespace,
            "sha": commit.oid,
            "private": self.private,
            "gated": "manual" if self.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "createdAt": "2026-01-01T00:00:00.000Z",
            "lastModified": "2026-01-01T00:00:00.000Z",
            "tags": card.get("tags", []),
            "pipeline_tag": card.get("pipeline_tag"),
            "library_name": card.get("library_name"),
            "cardData": card,
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }


def tree_entries(files: dict[str, File], folder: str, recursive: bool) -> list[dict] | None:
    """What lies in a folder, or `None` if there is no such folder."""
    prefix = f"{folder}/" if folder else ""
    below = {path: file for path, file in files.items() if path.startswith(prefix)}
    if not below and folder:
        return None
    folders, entries = {}, []
    for path, file in sorted(below.items()):
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            name = prefix + "/".join(parts[:depth])
            folders[name] = {"type": "directory", "path": name, "size": 0, "oid": "0" * 40}
        if recursive or len(parts) == 1:
            entries.append(file.entry(path))
    return [*folders.values(), *entries]


def header_of(text: str):
    """The YAML between the first two lines of dashes; `None` if there is none."""
    match = re.match(r"\A---\r?\n(.*?)^---\s*$", text, re.M | re.S)
    return yaml.safe_load(match[1]) if match else None


def card_errors(text: str) -> list[str]:
    """What is wrong with a card's header, by the rules that the Hub documents for model cards."""
    try:
        header = header_of(text)
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"]
    if header is None:
        return []
    if not isinstance(header, dict):
        return ["the header is no mapping"]
    errors = []

    def check(name, valid, expected):
        if name in header and not valid(header[name]):
            errors.append(f'"{name}" must be {expected}, is {header[name]!r}')

    def is_text(value):
        return isinstance(value, str) and value != ""

    def are_ids(value):
        values = value if isinstance(value, list) else [value]
        return bool(values) and all(is_text(item) and REPO_ID.fullmatch(item) for item in values)

    check("license", lambda value: value in LICENSES, "a known licence or other")
    if header.get("license") == "other" and not is_text(header.get("license_name")):
        errors.append('"license_name" is required with license: other')
    check("license_name", lambda v: is_text(v) and re.fullmatch(r"[a-z0-9.-]+", v), "lower case with dashes")
    check("license_link", is_text, "a link or LICENSE")
    for name in ("library_name", "pipeline_tag", "instance_prompt"):
        check(name, is_text, "a string")
    check("tags", lambda value: isinstance(value, list) and all(map(is_text, value)), "a list of strings")
    check("datasets", are_ids, "repository ids")
    check("base_model", are_ids, "repository ids")
    check("base_model_relation", lambda value: value in RELATIONS, f"one of {sorted(RELATIONS)}")
    check("widget", lambda value: isinstance(value, list) and all(map(_is_widget, value)), "text and output.url each")
    return errors


def _is_widget(item) -> bool:
    output = item.get("output") if isinstance(item, dict) else None
    return isinstance(output, dict) and isinstance(output.get("url"), str) and isinstance(item.get("text"), str)
