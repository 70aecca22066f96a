# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Reads back what was pushed with stock diffusers, as the cards say to: `python hub_reader.py job.json`."""

import json
import re
import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard


torch.set_num_threads(1)


def read(entry):
    """Images of the pipeline that the card's own code loads, from given noise, and the card's header."""
    card = ModelCard.load(entry["card"])
    card.validate()
    code = re.search(r"^```python\n(.*?)^```", card.text, re.M | re.S)[1]
    # Without the last line, which samples: from noise that cannot be compared. The embedded base is a folder here.
    lines = [line for line in code.partition("\nimage =")[0].splitlines() if "trl_progrpo" not in line]
    namespace = {"model_path": lambda: entry["base"]}
    exec("\n".join(lines), namespace)
    pipeline = namespace["pipeline"]
    assert isinstance(pipeline, DiffusionPipeline)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        entry["prompts"],
        num_inference_steps=entry["steps"],
        guidance_scale=1.0,
        height=entry["size"],
        width=entry["size"],
        max_sequence_length=0,
        latents=torch.load(entry["latents"]),
        output_type="pt",
    ).images
    adapters = getattr(pipeline.transformer, "peft_config", {}).values()
    lora = [(c.r, c.lora_alpha, c.base_model_name_or_path) for c in adapters]
    return {"images": images, "card": card.data.to_dict(), "lora": lora}


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    results = {name: read(entry) for name, entry in job.items()}
    assert "trl_progrpo" not in sys.modules
    torch.save(results, Path(sys.argv[1]).with_suffix(".pt"))
