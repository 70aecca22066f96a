# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Two trained rewards of different scale, and two that are only measured: `python examples/several_rewards.py`."""

from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
from trl_progrpo.tiny import load_shapes


def main():
    args = ProGRPOConfig(
        output_dir="outputs/several-rewards",
        # Each reward is normalised within its group first, so the kilobytes of the second do not drown the first.
        multi_objective_aggregation="normalize_then_sum",
        reward_weights=[1.0, 0.25],
        num_generations=12,
        num_expansions=48,
        prune_steps=[5, 7],
        prune_sizes=[24, 12],
        preview_decoder="shapes",
        preview_reward_weights=[1.0],
        per_device_train_batch_size=48,
        rollout_batch_size=192,
        learning_rate=7e-4,
        step_weighting=2,
        max_steps=20,
        eval_strategy="steps",
        eval_steps=10,
        logging_steps=1,
        report_to="none",
    )
    trainer = ProGRPOTrainer(
        model="shapes",
        reward_funcs=["shapes", "jpeg_compressibility"],
        preview_reward_funcs=["shapes"],  # groups are pruned by this one alone
        eval_reward_funcs=["shapes_strict", "jpeg_incompressibility"],
        args=args,
        train_dataset=load_shapes("train"),
        eval_dataset=load_shapes("test").shuffle(seed=0).select(range(64)),
    )
    before = trainer.evaluate()
    trainer.train()
    trainer.save_model()
    after = trainer.evaluate()
    for name in ("shapes", "jpeg_compressibility", "shapes_strict", "jpeg_incompressibility"):
        error = after[f"eval_rewards/{name}/stderr"]
        mean = f"eval_rewards/{name}/mean"
        print(f"{name:23} {before[mean]:7.3f} -> {after[mean]:7.3f} +- {error:.3f}")


if __name__ == "__main__":
    main()
