# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Names on the Hub: repositories that may be read, may not, or hold something else, and commands that ask for them."""

import json
import os

from hub_server import TOKEN
from safetensors import safe_open
from safetensors.torch import load_file, save

from trl_progrpo.tiny import model_path


def add_names(hub, adapter):
    """Datasets and models; `adapter` is the folder of a LoRA of the embedded model."""
    rows = {
        "train": [{"prompt": f"{n} red circles", "n": i} for i, n in enumerate(("two", "three") * 3)],
        "test": [{"prompt": "a blue square", "n": 0}],
    }
    data = {f"{split}.jsonl": "".join(json.dumps(row) + "\n" for row in part) for split, part in rows.items()}
    header = """---
configs:
- config_name: small
  data_files: [{split: train, path: train.jsonl}, {split: test, path: test.jsonl}]
- config_name: other
  data_files: [{split: train, path: test.jsonl}]
---
"""
    encoded = {name: text.encode() for name, text in {**data, "README.md": header}.items()}
    for name, options in (("user/open", {}), ("user/private", {"private": True}), ("user/gated", {"gated": True})):
        hub.add_repo(name, encoded, repo_type="dataset", **options)
    hub.add_folder("user/shapes", model_path())
    # The weights fit, and yet they are of another model.
    path = os.path.join(adapter, "pytorch_lora_weights.safetensors")
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    config["transformer.base_model_name_or_path"] = "maker/other"
    content = save(load_file(path), {"lora_adapter_metadata": json.dumps(config)})
    hub.add_repo("user/secret-lora", {"pytorch_lora_weights.safetensors": content}, private=True)


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


def calls(tmp_path):
    """`(argv, token, parts)`: without a token those that are refused with a sentence, then those that print; with the parts."""
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
        ([*sample, "--model_name_or_path", "user/shapes", "--adapter", "user/secret-lora"], ["grid.png\n"]),
    ]
    return [(argv, "", parts) for argv, parts in refused] + [(argv, TOKEN, parts) for argv, parts in served]
