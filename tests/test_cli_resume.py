# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`trl-progrpo train --resume_from_checkpoint true` goes on with the prompts that an unbroken run would have had."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from trl_progrpo.cli.main import main


RUN = [
    "train", "--dataset_name", "shapes", "--dataset_train_split", "train[:7]", "--dataset_test_split", "none",
    "--reward_funcs", "test_cli_resume:brightness", "--num_generations", "2", "--per_device_train_batch_size", "4",
    "--num_inference_steps", "2", "--lora_target_modules", "to_q", "--max_steps", "6", "--logging_steps", "1",
    "--save_strategy", "steps", "--save_steps", "3", "--use_cpu", "--report_to", "none", "--no_plot",
]  # fmt: skip

SEEN = []


def brightness(prompts, images, **columns):
    """Notes which prompts were asked for."""
    SEEN.append(list(dict.fromkeys(prompts)))
    return images.mean((1, 2, 3)).tolist()


brightness.image_type = "pt"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_resumed_run_goes_on_with_the_same_prompts(tmp_path, streaming, pipeline_path, monkeypatch):
    """Seven prompts, two to a rollout: the checkpoint lies in the first pass over them, and its run goes on into the second."""
    # Each has a plot, and takes longer than the training.
    monkeypatch.setattr("trl_progrpo.progrpo_trainer.write_model_card", lambda *args, **kwargs: None)
    more = ["--model_name_or_path", pipeline_path, *(["--dataset_streaming"] if streaming else [])]
    SEEN.clear()
    assert main([*RUN, *more, "--output_dir", str(tmp_path / "whole")]) == 0
    whole = list(SEEN)
    assert len({tuple(rollout) for rollout in whole}) > 3
    shutil.copytree(tmp_path / "whole/checkpoint-3", tmp_path / "resumed/checkpoint-3")
    SEEN.clear()
    resume = ["--resume_from_checkpoint", "true", "--output_dir", str(tmp_path / "resumed")]
    assert main([*RUN, *more, *resume]) == 0
    assert SEEN == whole[3:]

    def rewards(folder):
        state = json.loads((tmp_path / folder / "trainer_state.json").read_text())
        return [(entry["step"], entry["reward"]) for entry in state["log_history"] if "reward" in entry]

    assert rewards("resumed") == rewards("whole")
    # Tensors, not bytes: the order of the entries in a file's header is not fixed.
    adapters = [load_file(tmp_path / name / "pytorch_lora_weights.safetensors") for name in ("resumed", "whole")]
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.equal(tensor, adapters[1][name]) for name, tensor in adapters[0].items())
