# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Tokens that a run is given are planted, and looked for in all that it writes, sends and says; and nothing is pickled."""

import ast
import base64
import gzip
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest
from hub_server import HubServer

import trl_progrpo
from trl_progrpo import ProGRPOConfig
from trl_progrpo.cli.resolved_config import resolved_config, to_yaml


HERE = Path(__file__).parent
# Only the first looks like a token of the Hub, which is hidden wherever it stands.
TOKENS = {
    "environment": "hf_plantedInTheEnvironment0123",
    "hub_token": "planted-as-hub-token-4567",
    "model": "planted-for-the-base-model-89",
    "reward_server": "planted-for-the-reward-server",
    "tracker": "planted-for-a-tracker-abcdef",
}
BY_TRANSFORMERS = re.compile(r"(optimizer|scheduler|scaler)\.pt|rng_state(_\d+)?\.pth")
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib")


class Rewards(BaseHTTPRequestHandler):
    """A reward server whose every other answer is an error, with what was sent to it in the text."""

    def do_GET(self):
        self.answer(200, {"rewards": ["judge"]})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.calls.append(self.headers["Authorization"])
        if len(self.server.calls) % 2:
            self.answer(500, {"error": f"no judge for {self.headers['Authorization']}"})
        else:
            request = re.search(rb'"request_id": "(\w+)"', body)[1].decode()
            images = body.count(b"\x89PNG\r\n")
            self.answer(200, {"request_id": request, "rewards": [float(i) for i in range(images)]})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run that pushes and some that fail, with every token planted; what they wrote, sent and said."""
    root = tmp_path_factory.mktemp("tokens")
    rewards = ThreadingHTTPServer(("127.0.0.1", 0), Rewards)
    rewards.calls = []
    threading.Thread(target=rewards.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    with HubServer() as hub:
        hub.add_token(TOKENS["environment"], "user")
        hub.add_token(TOKENS["hub_token"], "user", orgs=["team"])
        hub.add_repo("maker/base", {"README.md": b"x"})
        hub.add_repo("user/down")
        hub.fail("POST .*user/down/commit", status=500)
        (root / "prompts.txt").write_text("a red circle\ntwo blue squares\na green triangle\na dot\na line\n")
        # JSON is YAML.
        (root / "private.yaml").write_text(json.dumps(config(root, f"http://127.0.0.1:{rewards.server_address[1]}")))
        job = {"commands": commands(root), "statuses": str(root / "statuses.json")}
        (root / "job.json").write_text(json.dumps(job))
        known = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and key != "CI"}
        done = subprocess.run(
            [sys.executable, HERE / "token_runs.py", root / "job.json"],
            env={**known, **hub.environment(root / "home", TOKENS["environment"]), "PYTHONPATH": str(HERE)},
            cwd=root,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        yield root, hub, rewards, done.stdout + done.stderr
    rewards.shutdown()
    rewards.server_close()


def config(root, rewards):
    return {
        "env": {"TRL_PROGRPO_REWARD_TOKEN": TOKENS["reward_server"], "WANDB_API_KEY": TOKENS["tracker"]},
        "model_name_or_path": "shapes",
        "model_init_kwargs": {"token": TOKENS["model"]},
        "dataset_name": str(root / "prompts.txt"),
        "reward_funcs": ["jpeg_compressibility", f"remote:{rewards}/judge"],
        "on_reward_error": "skip",
        "hub_token": TOKENS["hub_token"],
        "push_to_hub": True,
        "hub_strategy": "all_checkpoints",
        "report_to": "tensorboard",
        "log_completions": True,
        "eval_samples": 2,
        "ema_decay": 0.5,
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "num_expansions": 3,
        "prune_steps": [0],
        "prune_sizes": [2],
        "num_inference_steps": 2,
        "num_validation_prompts": 1,
        "max_steps": 2,
        "steps_per_generation": 2,
        "save_steps": 1,
        "logging_steps": 1,
        "use_cpu": True,
    }


def commands(root):
    train = ["train", "--config", str(root / "private.yaml")]

    def named(name, *flags):
        return [*train, "--output_dir", str(root / name), "--hub_model_id", name, *flags]

    return {
        "works": named("works"),
        "resumed": named("works", "--max_steps", "3", "--resume_from_checkpoint", "last"),
        "push fails": named("down", "--max_steps", "1", "--save_strategy", "no", "--eval_samples", "0"),
        "foreign": [*named("foreign"), "--hub_model_id", "maker/base"],
        "no such model": named("none", "--model_name_or_path", "maker/nothing"),
        "reward fails": named("ill", "--reward_funcs", "token_runs:failing", "--on_reward_error", "raise"),
        "wrong flag": named("flag", "--hub_tokens", TOKENS["hub_token"]),
        "dry run": named("dry", "--dry_run"),
        "plan": ["plan", "--config", str(root / "private.yaml"), "--output_dir", str(root / "plan"), "--no_time"],
        "report": ["report", str(root / "works")],
        "env": ["env"],
    }


def forms(token):
    """A token as text, in other codings of text, and in base64 at any position."""
    raw = token.encode()
    yield from (raw, quote(token, safe="").encode(), token.encode("utf-16-le"), raw.hex().encode(), raw[::-1])
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            # Only digits that do not depend on what stands beside it.
            yield encode(bytes(before) + raw)[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]


def contents(content):
    """Bytes, and those that are packed in them."""
    yield content
    if content[:2] == b"\x1f\x8b":
        yield gzip.decompress(content)
    for match in re.finditer(rb"[zi]TXt", content) if content[:4] == b"\x89PNG" else ():
        packed = content[match.end() :].partition(b"\x00")[2][1:]
        yield zlib.decompressobj().decompress(packed)


def found(content):
    every = {name: list(forms(token)) for name, token in TOKENS.items()}
    return [name for name, known in every.items() for part in contents(content) if any(form in part for form in known)]


def written(root):
    """Path and content of every file, those inside of zip files too."""
    for path in root.rglob("*"):
        if path.is_file() and path.name not in ("job.json", "private.yaml"):
            yield path, path.read_bytes()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    yield from ((path / name, archive.read(name)) for name in archive.namelist())


def test_the_search_would_find_one():
    token = TOKENS["hub_token"]
    for text in (f"x{token}y", f"user:{token}"):
        for content in (text.encode(), base64.b64encode(text.encode()), gzip.compress(text.encode())):
            assert found(content) == ["hub_token"]
    assert found(b"planted-as-hub") == []


def test_a_resolved_configuration_has_no_token(tmp_path):
    """What a dry run prints, and a plan writes."""
    nested = {"token": TOKENS["model"], "use_auth_token": TOKENS["hub_token"], "variant": "fp16"}
    args = ProGRPOConfig(
        output_dir=str(tmp_path), hub_token=TOKENS["environment"], model_init_kwargs=nested, use_cpu=True
    )
    text = to_yaml(resolved_config(args))
    assert found(text.encode()) == []
    assert "variant: fp16" in text


@pytest.mark.slow
def test_the_runs_did_what_they_were_to_do(world):
    root, hub, rewards, printed = world
    statuses = json.loads((root / "statuses.json").read_text())
    works = ("works", "resumed", "push fails", "dry run", "plan", "report", "env")
    assert {name: statuses[name] for name in works} == dict.fromkeys(works, 0), printed[-6000:]
    assert {statuses[name] for name in ("foreign", "no such model", "wrong flag")} == {2}
    assert statuses["reward fails"] != 0
    # Every token was used, or told to somebody.
    assert f"Bearer {TOKENS['reward_server']}" in rewards.calls
    assert len(hub.files("user/works")) > 10
    for words in ("no judge for", "the judge is ill", "The push to user/down failed", "cannot write to 'maker/base'"):
        assert words in printed, words
    names = {path.name for path, _ in written(root)}
    assert {
        "README.md",
        "training_args.json",
        "trainer_state.json",
        "checkpoint.json",
        "rollout_0.safetensors",
    } <= names
    assert any("tfevents" in name for name in names)


@pytest.mark.slow
def test_no_token_is_written_sent_on_or_said(world):
    root, hub, _, printed = world
    places = dict(written(root)) | {"printed": printed.encode()}
    for (_, repo_id), repo in hub.repos.items():
        for commit in repo.commits.values():
            places |= {(repo_id, path): file.content for path, file in commit.files.items()}
            places[repo_id, commit.message] = commit.message.encode()
    assert len(places) > 100
    leaks = {str(place): names for place, content in places.items() if (names := found(content))}
    assert not leaks


@pytest.mark.slow
def test_nothing_of_ours_is_pickled(world):
    root, *_ = world
    suspicious = [
        path.name
        for path, content in written(root)
        # The protocol's first byte, and an empty zip entry of torch's format.
        if path.suffix in PICKLES or content[:2] in (b"\x80\x02", b"\x80\x04", b"\x80\x05") or path.name == "data.pkl"
    ]
    ours = {name for name in suspicious if name != "data.pkl" and not BY_TRANSFORMERS.fullmatch(name)}
    assert not ours
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth"} <= set(suspicious)


def calls_of(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


@pytest.mark.parametrize("path", sorted(Path(trl_progrpo.__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_what_is_read_runs_no_code(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node, function in calls_of(tree):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if function == "torch.load":
            assert given.get("weights_only") == "True", f"{path}:{node.lineno}"
        assert not re.fullmatch(
            r"(c?pickle|marshal|dill|joblib|shelve)\.(loads?|dumps?|open|Unpickler|Pickler)", function
        ), f"{path}:{node.lineno}: {function}"
        assert not re.fullmatch(r"(np|numpy)\.load", function) or given.get("allow_pickle", "False") == "False"
        assert given.get("trust_remote_code") != "True", f"{path}:{node.lineno}"
