# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
Stable Diffusion 1.5 or XL, sampled with DDIM, with DDPO's JPEG reward: `python examples/unet_ddim.py`.

Needs a GPU and downloads the model. Nobody has run it at that size yet; the tests run it on tiny random pipelines.
"""

import argparse

from trl_progrpo import ProGRPOConfig, ProGRPOTrainer


ANIMALS = ("cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow", "goat")
SIZES = {"stable-diffusion-v1-5/stable-diffusion-v1-5": 512, "stabilityai/stable-diffusion-xl-base-1.0": 1024}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="stable-diffusion-v1-5/stable-diffusion-v1-5")
    parser.add_argument("--output_dir", default="outputs/unet-ddim")
    options = parser.parse_args()

    size = SIZES.get(options.model)
    args = ProGRPOConfig(
        output_dir=options.output_dir,
        height=size,
        width=size,
        num_inference_steps=50,
        guidance_scale=5.0,
        policy="ddim",  # the default of UNet pipelines
        eta=1.0,
        num_expansions=48,
        prune_steps=[30, 40],
        prune_sizes=[32, 8],
        num_generations=8,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=4,
        decode_batch_size=4,
        gradient_checkpointing=True,
        max_steps=100,
        logging_steps=1,
        report_to="none",
    )
    trainer = ProGRPOTrainer(
        model=options.model,
        reward_funcs="jpeg_compressibility",
        args=args,
        train_dataset=[f"a photo of a {animal}" for animal in ANIMALS],
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
