# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Runs that have pushed to a Hub on loopback, and fresh processes that have read from it; the fixture `hub_world`."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
from hub_names import add_names, calls
from hub_server import TOKEN, HubServer
from hub_store import header_of
from test_cli_sample import write_adapter

from trl_progrpo.families import load_pipeline
from trl_progrpo.progrpo_trainer import EVAL_ROLLOUT
from trl_progrpo.seeds import INITIAL_NOISE, row_noise
from trl_progrpo.tiny import model_path


HERE = Path(__file__).parent
HUB_TOKEN, MODEL_TOKEN = "hf_givenAsAnArgumentOfTheRun", "hf_givenForTheBaseModelOnly1"
PROMPTS = ["a red circle", "two blue squares", "a green triangle"]
BASE_CARD = b"---\nlicense: other\nlicense_name: makers-licence\nlicense_link: LICENSE.md\n---\n# Base\n"
TRAIN = [
    "train", "--model_name_or_path", "shapes", "--dataset_name", "shapes", "--reward_funcs", "shapes", "--eval_samples", "4",
    "--num_generations", "2", "--per_device_train_batch_size", "4", "--num_inference_steps", "2", "--max_steps", "2",
    "--num_expansions", "3", "--prune_steps", "0", "--prune_sizes", "2", "--num_validation_prompts", "2",
    "--learning_rate", "0.01", "--save_steps", "1", "--ema_decay", "0.5", "--use_cpu", "--report_to", "none",
    "--push_to_hub",
]  # fmt: skip


def run(command, hub, home, cwd, status=0, **environment):
    """A fresh process against the hub; everything it printed."""
    known = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and key != "CI"}
    done = subprocess.run(
        [str(part) for part in command],
        env={**known, **hub.environment(home), **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == status, done.stdout[-1000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def train(hub, root, *flags, status=0, **environment):
    return run(
        [sys.executable, "-m", "trl_progrpo.cli", *TRAIN, *flags], hub, root / "home", root, status, **environment
    )


def noise(path, latent_shape, seed, count):
    torch.save(row_noise(latent_shape, seed, EVAL_ROLLOUT, range(count), [0] * count, INITIAL_NOISE), path)
    return str(path)


@contextmanager
def make_world(root, pipeline_path):
    """The Hub, what the runs in `hub_pushes.py` gave, said and wrote below `root`, and what `hub_reader.py` read back."""
    with HubServer() as hub:
        hub.add_token(HUB_TOKEN, "colleague", orgs=["team"])
        hub.add_token(MODEL_TOKEN, "reader", role="read")
        hub.add_folder("maker/base", pipeline_path)
        hub.add_repo("maker/base", {**hub.files("maker/base"), "README.md": BASE_CARD})
        add_names(hub, write_adapter(load_pipeline("shapes"), root / "adapter"))
        for name in ("cut", "down", "revoked"):
            hub.add_repo(f"user/{name}")
        hub.fail("POST .*user/down/commit", status=500)
        hub.fail("POST .*user/cut/commit", status=None)
        hub.revoke_at("POST /user/revoked.git/info/lfs")

        out = root / "shapes-out"
        (root / "private.yaml").write_text(f"hub_private_repo: true\nhub_token: {TOKEN}\nlogging_steps: 1\n")
        flags = ["--config", root / "private.yaml", "--output_dir", out, "--hub_model_id", "shapes-lora"]

        job = {
            "calls": [call[:2] for call in calls(root / "calls")],
            "command": [*TRAIN, *map(str, flags)],
            "root": str(root),
            "base": "maker/base",
            "prompts": PROMPTS,
            "hub_token": HUB_TOKEN,
            "model_token": MODEL_TOKEN,
            "failing": ["user/down", "user/cut", "user/revoked"],
        }
        (root / "job.json").write_text(json.dumps(job))
        printed = run([sys.executable, HERE / "hub_pushes.py", root / "job.json"], hub, root / "home", root)

        hub.add_token(TOKEN, "user", orgs=["team"])
        widgets = header_of(hub.files("user/shapes-lora")["README.md"].decode())["widget"]
        tiny = {
            "steps": 4,
            "size": 8,
            "prompts": PROMPTS,
            "base": "",
            "latents": noise(root / "n.pt", (4, 4, 4), 42, 3),
        }
        reads = {
            "shapes": {
                "card": "user/shapes-lora",
                "base": str(model_path()),
                "prompts": [widget["text"] for widget in widgets[:2]],
                "steps": 2,
                "size": 32,
                "latents": noise(root / "shapes.pt", (4, 8, 8), 42, 2),
            },
            "full": {**tiny, "card": "user/full"},
            "checkpoints": {**tiny, "card": str(root / "checkpoints" / "README.md")},
        }
        (root / "read.json").write_text(json.dumps(reads))
        run([sys.executable, HERE / "hub_reader.py", root / "read.json"], hub, root / "other-home", root)
        results = json.loads((root / "results.json").read_text())
        yield SimpleNamespace(
            hub=hub, root=root, printed=printed, results=results, read=torch.load(root / "read.pt"), out=out
        )
