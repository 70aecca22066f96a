# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
Load an adapter with stock diffusers and draw with and without it: `python examples/sample_adapter.py outputs/shapes-demo`.

`trl-progrpo sample` does the same for any model; this is what it comes down to.
"""

import argparse

import torch
from diffusers import DiffusionPipeline

from trl_progrpo.tiny import model_path


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", help="an output folder, a checkpoint-* folder in it, or a name on the Hub")
    parser.add_argument("--prompt", default="a red circle left of a blue square")
    options = parser.parse_args()

    # For another model: its name. The embedded one has no third text encoder, and diffusers wants to be told.
    pipeline = DiffusionPipeline.from_pretrained(model_path(), text_encoder_3=None, tokenizer_3=None)
    pipeline.load_lora_weights(options.adapter)
    for name, scale in (("before", 0.0), ("after", 1.0)):
        pipeline.set_adapters(pipeline.get_active_adapters(), scale)
        image = pipeline(
            options.prompt,
            num_inference_steps=10,
            guidance_scale=1.0,
            max_sequence_length=0,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
        image.save(f"{name}.png")
        print(f"{name}.png")


if __name__ == "__main__":
    main()
