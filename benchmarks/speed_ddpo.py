# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
TRL's DDPOTrainer as a contender of `speed.py`, which starts this file with the Python of an environment that has TRL 0.21:

```
pip install "trl==0.21.*" "transformers==4.56.*" "diffusers==0.35.*" "peft==0.17.*" "accelerate==1.10.*"
```

The trainer is TRL's own, with its options; only the moment when its rewards are there is noted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from typing import Any

import torch
from speed_turns import Turns
from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline


def brightness(images: torch.Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]) -> tuple[torch.Tensor, dict]:
    """Mean of all pixels."""
    return images.float().mean((1, 2, 3)), {}


class TimedDDPO(DDPOTrainer):
    """Notes when the rewards of an epoch have been computed."""

    turns: Turns

    def compute_rewards(self, *args, **kwargs):
        rewards = super().compute_rewards(*args, **kwargs)
        self.turns.sampled()
        return rewards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--setting", type=json.loads, required=True)
    setting = parser.parse_args().setting
    torch.set_num_threads(setting["threads"])
    prompts = itertools.cycle(p for p in setting["prompts"] for _ in range(setting["num_generations"]))
    images = len(setting["prompts"]) * setting["num_generations"]
    with tempfile.TemporaryDirectory() as folder:
        config = DDPOConfig(
            num_epochs=setting["turns"],
            # Saving is not what is compared.
            save_freq=setting["turns"] + 1,
            mixed_precision="bf16" if setting["dtype"] == "bfloat16" else "no",
            allow_tf32=False,
            accelerator_kwargs={"cpu": setting["device"] == "cpu"},
            project_kwargs={"project_dir": folder},
            sample_num_steps=setting["num_inference_steps"],
            sample_eta=1.0,
            sample_guidance_scale=setting["guidance_scale"],
            sample_batch_size=setting["rollout_batch_size"],
            sample_num_batches_per_epoch=images // setting["rollout_batch_size"],
            train_batch_size=setting["train_batch_size"],
            train_gradient_accumulation_steps=setting["accumulated_batches"],
            train_learning_rate=setting["learning_rate"],
            train_cfg=setting["guidance_scale"] > 1,
        )
        pipeline = DefaultDDPOStableDiffusionPipeline(setting["model"], use_lora=True)
        trainer = TimedDDPO(config, brightness, lambda: (next(prompts), {}), pipeline)
        # Written at every denoising step otherwise.
        pipeline.set_progress_bar_config(disable=True)
        trainer.turns = Turns(setting["device"])
        step = 0
        for epoch in range(setting["turns"]):
            trainer.turns.begin()
            step = trainer.step(epoch, step)
        trainer.turns.end()


if __name__ == "__main__":
    main()
