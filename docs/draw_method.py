# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Draw the picture of the method in README: one real group of the embedded model, expanded and pruned twice.

python docs/draw_method.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib


matplotlib.use("Agg")

import torch
from matplotlib import pyplot

from trl_progrpo import ExpandPruneSampler
from trl_progrpo.families import family_class, load_preview_decoder
from trl_progrpo.families.loading import load_pipeline
from trl_progrpo.policies import POLICIES
from trl_progrpo.rewards import RewardRunner


PROMPT = "a red circle left of a blue square"
EXPANSIONS, STEPS, SIZES = 10, (5, 7), (6, 3)


def main(output: str = "docs/images/method.png") -> None:
    """Sample one group, keep what pruning saw, and write the picture."""
    pipeline = load_pipeline("shapes", torch.float32)
    family = family_class(pipeline)(pipeline)
    runner, seen = RewardRunner(["shapes"]), []
    sampler = ExpandPruneSampler(
        family, POLICIES.get("flow_sde")(noise_level=0.7), runner, reward_weights=runner.weights, num_inference_steps=10,
        num_generations=SIZES[-1], num_expansions=EXPANSIONS, prune_steps=STEPS, prune_sizes=SIZES, seed=4,
        preview_decoder=load_preview_decoder("shapes", torch.device("cpu")),
        on_preview=lambda images, record: seen.append((images, record)),
    )  # fmt: skip
    rollout = sampler.rollout(family.denoiser, [PROMPT])
    columns = []
    for images, record in seen:
        title = f"{len(images)} previews after step {record.step_index} of {sampler.num_inference_steps}"
        title += f": {int(record.kept.sum())} go on"
        columns.append((title, images, record.member, record.rewards, record.kept))
    everyone = torch.ones(len(rollout), dtype=torch.bool)
    columns.append(
        (f"{len(rollout)} finished images: trained on", rollout.images, rollout.member, rollout.rewards, everyone)
    )
    figure, axes = pyplot.subplots(len(columns), EXPANSIONS, figsize=(EXPANSIONS, len(columns) * 1.5), dpi=110)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.87, bottom=0.01, hspace=0.6, wspace=0.08)
    for axis in axes.flat:
        axis.axis("off")
    for row, (title, images, members, rewards, kept) in zip(axes, columns, strict=True):
        figure.text(0.01, row[0].get_position().y1 + 0.055, title, fontsize=11)
        for image, member, reward, stays in zip(
            images, members.tolist(), rewards.tolist(), kept.tolist(), strict=True
        ):
            pixels = image.permute(1, 2, 0).clamp(0, 1).numpy()
            row[member].imshow(pixels, alpha=1.0 if stays else 0.3, interpolation="nearest")
            row[member].set_title(f"{reward:.2f}", fontsize=9, color="#1a7f37" if stays else "#8c8c8c", pad=3)
    figure.savefig(Path(output), facecolor="white")


if __name__ == "__main__":
    main()
