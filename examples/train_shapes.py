# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
Pro-GRPO on the embedded model with two rewards, one of them written here: `python examples/train_shapes.py`.

Runs on a CPU. `--max_steps` and `--output_dir` are the only options; everything else is below, to be changed.
"""

import argparse

from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
from trl_progrpo.tiny import load_shapes


def contrast(prompts, images, **columns):
    """A reward is a function of prompts and images; this one likes pictures with more than grey in them."""
    return [(image.convert("L").getextrema()[1] - image.convert("L").getextrema()[0]) / 255 for image in images]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max_steps", type=int, default=20)
    parser.add_argument("--output_dir", default="outputs/train-shapes")
    options = parser.parse_args()

    args = ProGRPOConfig(
        output_dir=options.output_dir,
        max_steps=options.max_steps,
        # Of 48 trajectories per prompt 24 go on after step 5 and 12 after step 7; those 12 are trained on.
        num_expansions=48,
        prune_steps=[5, 7],
        prune_sizes=[24, 12],
        num_generations=12,
        preview_decoder="shapes",
        per_device_train_batch_size=48,  # 4 prompts per rollout
        rollout_batch_size=192,
        learning_rate=7e-4,
        step_weighting=2,
        reward_weights=[1.0, 0.1],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    trainer = ProGRPOTrainer(
        model="shapes",
        reward_funcs=["shapes", contrast],
        args=args,
        train_dataset=load_shapes("train"),
        eval_dataset=load_shapes("test").shuffle(seed=0).select(range(64)),
    )
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    trainer.save_model()
    print(f"held-out reward {before:.3f} -> {trainer.evaluate()['eval_reward']:.3f}, adapter in {options.output_dir}")


if __name__ == "__main__":
    main()
