# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Names on the Hub, asked of a real server on loopback by fresh processes: what is there, and what is not."""

import json
import os
import subprocess
import sys

import pytest
from hub_server import TOKEN, HubServer
from test_cli_sample import shapes_adapter  # noqa: F401 (a fixture)


CALLS = """if True:
    import contextlib, io, json, os, sys
    from trl_progrpo.cli.main import main

    for argv, token in json.loads(sys.argv[1]):
        os.environ["HF_TOKEN"] = token
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(argv)
        print(json.dumps([status, out.getvalue(), err.getvalue()]))
"""


@pytest.fixture
def hub(shapes_adapter):  # noqa: F811
    rows = {"train": [{"prompt": f"red {i}", "n": i} for i in range(6)], "test": [{"prompt": "blue", "n": 0}]}
    data = {f"{split}.jsonl": "".join(json.dumps(row) + "\n" for row in part) for split, part in rows.items()}
    header = """---
configs:
- config_name: small
  data_files: [{split: train, path: train.jsonl}, {split: test, path: test.jsonl}]
- config_name: other
  data_files: [{split: train, path: test.jsonl}]
---
"""
    with HubServer() as hub:
        encoded = {name: text.encode() for name, text in {**data, "README.md": header}.items()}
        for name, options in (("user/open", {}), ("user/private", {"private": True}), ("user/gated", {"gated": True})):
            hub.add_repo(name, encoded, repo_type="dataset", **options)
        hub.add_folder("user/lora", shapes_adapter)
        hub.add_folder("user/secret-lora", shapes_adapter, private=True)
        yield hub


def dry_run(tmp_path, name, *flags):
    model = [
        "--model_name_or_path",
        "shapes",
        "--reward_funcs",
        "shapes",
        "--use_cpu",
        "--output_dir",
        str(tmp_path / "o"),
    ]
    batch = ["--num_generations", "2", "--per_device_train_batch_size", "2", "--max_steps", "1"]
    return ["train", *model, *batch, "--dataset_name", name, "--dry_run", *flags]


def test_names_on_the_hub(hub, tmp_path):
    small = ["--dataset_config", "small"]
    sample = ["sample", "--model_name_or_path", "shapes", "--num_inference_steps", "2", "--prompts", "a red circle"]
    sample += ["--output", str(tmp_path / "grid.png")]
    refused = [
        (dry_run(tmp_path, "user/nothing"), ["'user/nothing' is no file or folder here and no dataset", "hf auth login"]),
        (dry_run(tmp_path, "user/private"), ["'user/private' is no file or folder here and no dataset", "hf auth login"]),
        (dry_run(tmp_path, "user/gated"), ["'user/gated'", "hf auth login"]),
        (dry_run(tmp_path, "user/open"), ["'user/open'", "small", "other"]),
        (dry_run(tmp_path, "user/open", "--dataset_config", "huge"), ["'user/open'", "huge", "small"]),
        (
            dry_run(tmp_path, "user/open", *small, "--dataset_train_split", "dev"),
            ["has no `dataset_train_split` 'dev'", "train", "test"],
        ),
        (
            dry_run(tmp_path, "user/open", *small, "--prompt_column", "caption"),
            ["no column 'caption'", "its columns are prompt, n"],
        ),
        (
            [*dry_run(tmp_path, "user/open", *small), "--model_name_or_path", "user/no-model"],
            ["`model` 'user/no-model'", "check the name"],
        ),
        ([*sample, "--adapter", "user/no-lora"], ["`--adapter` 'user/no-lora' is no folder or file here", "hf auth login"]),
        ([*sample, "--adapter", "user/secret-lora"], ["'user/secret-lora' is no folder or file here", "hf auth login"]),
    ]  # fmt: skip
    private = dry_run(tmp_path, "user/private", *small, "--eval_samples", "0")
    served = [
        (private, ["training prompts      6\n", "held-out prompts      1\n", "columns for rewards   n\n"]),
        ([*private[:-2], "--dataset_streaming"], ["training prompts      a stream\n", "held-out prompts      64\n"]),
        (dry_run(tmp_path, "user/open", *small, "--dataset_train_split", "train[:3]"), ["training prompts      3\n"]),
        ([*sample, "--adapter", "user/secret-lora"], ["grid.png\n"]),
    ]
    calls = [(argv, "") for argv, _ in refused] + [(argv, TOKEN) for argv, _ in served]
    environment = {**os.environ, **hub.environment(tmp_path / "home", token=""), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", CALLS, json.dumps(calls)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]

    for (argv, parts), (status, out, err) in zip(refused, answers):
        lines = [line for line in err.splitlines() if "error:" in line]
        assert (status, out, len(lines)) == (2, "", 1), (argv, out, err)
        assert all(part in lines[0] for part in parts), (argv, lines[0])
        assert "Traceback" not in err
    for (argv, parts), (status, out, err) in zip(served, answers[len(refused) :]):
        assert status == 0, (argv, err)
        assert all(part in out for part in parts), (argv, out)
    assert TOKEN not in result.stdout + result.stderr
    assert (tmp_path / "grid.png").stat().st_size > 1000
