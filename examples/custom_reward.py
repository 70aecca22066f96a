# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""A dataset with a column of its own, and a reward that uses it: `python examples/custom_reward.py`."""

from datasets import Dataset

from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
from trl_progrpo.rewards import image_type
from trl_progrpo.testing import check_reward_func


CHANNEL = {"red": 0, "green": 1, "blue": 2}


@image_type("pt")
def purity(prompts, images, color, **columns):
    """How much of its colour an image has beyond the other two; `color` is the column of the dataset."""
    channels = images.mean((2, 3))
    own = channels[range(len(color)), [CHANNEL[name] for name in color]]
    return (own - (channels.sum(1) - own) / 2).tolist()


def main():
    shapes = ("circle", "square", "triangle")
    dataset = Dataset.from_list([{"prompt": f"a {c} {s}", "color": c} for c in CHANNEL for s in shapes])
    # Before a run: one number per image, the same alone and in a batch, nothing changed.
    check_reward_func(purity, dataset["prompt"], columns={"color": dataset["color"]})

    args = ProGRPOConfig(
        output_dir="outputs/custom-reward",
        num_generations=8,
        num_expansions=16,  # all are finished, and the 8 whose rewards differ most are trained on
        per_device_train_batch_size=24,  # 3 prompts
        learning_rate=1e-3,
        max_steps=10,
        logging_steps=1,
        report_to="none",
    )
    trainer = ProGRPOTrainer(
        model="shapes", reward_funcs=purity, args=args, train_dataset=dataset, eval_dataset=dataset
    )
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    trainer.save_model()
    print(f"reward {before:.3f} -> {trainer.evaluate()['eval_reward']:.3f}, adapter in {args.output_dir}")


if __name__ == "__main__":
    main()
