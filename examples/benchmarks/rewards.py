# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
Images per second of rewards, and what previews cost in a rollout of the embedded model. Nothing is downloaded.

```
python examples/benchmarks/rewards.py
python examples/benchmarks/rewards.py --rewards pickscore aesthetic geneval --device cuda    # random weights, real sizes
```

Learned rewards get networks of the published sizes with random weights, since time does not depend on weights; the tokenizer
is the embedded model's, and images are noise. For `geneval` the detector is OWLv2 base.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont

from trl_progrpo.families import family_class
from trl_progrpo.policies import FlowSDE
from trl_progrpo.rewards import GenEvalReward, RewardRunner, resolve_reward
from trl_progrpo.rewards.learned_images import ImageTransform
from trl_progrpo.rewards.transformers_detector import TransformersDetector
from trl_progrpo.sampler import ExpandPruneSampler
from trl_progrpo.timing import PhaseTimer
from trl_progrpo.tiny import load_pipeline, load_preview_decoder, load_shapes, model_path


OFFLINE = ("shapes", "jpeg_compressibility", "ocr")
LEARNED = ("clip_score", "pickscore", "hpsv2", "aesthetic", "siglip", "geneval")
WORDS = ("OPEN", "Bakery", "Library", "Hotel")


def tower(width: int, layers: int, heads: int, intermediate: int | None = None, **other: int) -> dict[str, int]:
    """A tower's configuration."""
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**sizes, "intermediate_size": intermediate or 4 * width, **other}


# Text tower, image tower, width of the features, side of the images.
CLIP_L = (tower(768, 12, 12), tower(1024, 24, 16, patch_size=14), 768, 224)
CLIP_H = (tower(1024, 24, 16), tower(1280, 32, 16, patch_size=14), 1024, 224)
SO400M = (
    tower(1152, 27, 16, 4304, vocab_size=256000),
    tower(1152, 27, 16, 4304, patch_size=14, image_size=384),
    0,
    384,
)
SIZES = {"clip_score": CLIP_L, "aesthetic": CLIP_L, "pickscore": CLIP_H, "hpsv2": CLIP_H, "siglip": SO400M}


def with_random_weights(name: str, device: str, dtype: str, batch_size: int) -> Any:
    """A learned reward of the published size, as if it had been loaded."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, SiglipConfig, SiglipModel

    options = {"device": device, "dtype": dtype, "batch_size": batch_size}
    if name == "geneval":
        return GenEvalReward(random_owlv2(options))
    reward = type(resolve_reward(name))(**options)
    text, vision, dim, side = SIZES[name]
    with torch.device(device):
        if name == "siglip":
            network = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        else:
            network = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=dim))
    reward.network = network.to(reward.dtype).requires_grad_(False).eval()
    if name == "aesthetic":
        from trl_progrpo.rewards.aesthetic import aesthetic_head

        network.aesthetic_head = aesthetic_head(dim).to(device).eval()
    shortest_edge = None if name == "siglip" else side
    reward.transform = ImageTransform(side, side, (0.5,) * 3, (0.5,) * 3, shortest_edge, pad=name == "hpsv2")
    reward.tokenizer = CLIPTokenizer.from_pretrained(model_path() / "tokenizer")
    return reward


def random_owlv2(options: dict[str, Any]) -> TransformersDetector:
    """OWLv2 base with random weights."""
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2Processor

    try:
        from transformers import Owlv2ImageProcessorPil as Owlv2ImageProcessor
    except ImportError:
        from transformers import Owlv2ImageProcessor
    detector = TransformersDetector(**options)
    config = Owlv2Config(
        text_config=tower(512, 12, 8),
        vision_config=tower(768, 12, 12, patch_size=16, image_size=960),
        projection_dim=512,
    )
    with torch.device(detector.device):
        network = Owlv2ForObjectDetection(config)
    detector.network = network.to(detector.dtype).requires_grad_(False).eval()
    tokenizer = CLIPTokenizer.from_pretrained(model_path() / "tokenizer", model_max_length=16)
    detector.processor = Owlv2Processor(Owlv2ImageProcessor(), tokenizer)
    return detector


def prompts_and_images(name: str, size: int, count: int) -> tuple[list[str], torch.Tensor]:
    """What the reward is made for: scenes for `shapes`, a word on a sign for `ocr`, noise for the others."""
    if name in ("shapes", "shapes_strict"):
        from trl_progrpo.tiny.world import parse_caption, render, sample_scenes

        prompts = ["a red circle left of a blue square"] * count
        pixels = torch.from_numpy(render(sample_scenes([parse_caption(prompt) for prompt in prompts], seed=0)))
        return prompts, pixels.permute(0, 3, 1, 2).float() / 255
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    words = [WORDS[i % len(WORDS)] for i in range(count)]
    if name == "ocr":
        font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size // 6)
        for image, word in zip(images, words):
            sign = Image.new("L", (size, size))
            ImageDraw.Draw(sign).text((size // 8, size // 3), word, font=font, fill=255)
            ink = torch.frombuffer(bytearray(sign.tobytes()), dtype=torch.uint8).view(size, size)
            image.mul_(0.2).add_(ink * (0.8 / 255))
    return [f'a sign that says "{word}"' for word in words], images


def images_per_second(score: Callable[[], Any], count: int, device: str, seconds: float) -> float:
    """The best of calls that together take about `seconds`, after one to warm up."""

    def once() -> float:
        start = time.perf_counter()
        score()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    times = [once()]
    while sum(times) < seconds:
        times.append(once())
    return count / min(times)


def print_speed(args: argparse.Namespace) -> None:
    """A table: one row per reward and image size, one column per batch size."""
    print(f"| Reward | Image | {' | '.join(f'batch {batch}' for batch in args.batch_sizes)} |")
    print("|---" * (2 + len(args.batch_sizes)) + "|")
    for name in args.rewards:
        for size in [32] if name.startswith("shapes") else args.sizes:
            cells = []
            for batch in args.batch_sizes:
                learned = name in LEARNED
                reward = with_random_weights(name, args.device, args.dtype, batch) if learned else name
                scorer = RewardRunner(reward)
                prompts, images = prompts_and_images(name, size, batch)
                columns = {"include": [[{"class": "circle"}, {"class": "square"}]] * batch}
                # As in a rollout: from a tensor, and PIL images where the reward asks for them.
                speed = images_per_second(
                    lambda scorer=scorer, prompts=prompts, images=images, columns=columns: scorer(
                        prompts, images, columns
                    ),
                    batch,
                    args.device,
                    args.seconds,
                )
                cells.append(f"{speed:,.0f}" if speed >= 10 else f"{speed:.2f}")
            print(f"| `{name}` | {size} x {size} | {' | '.join(cells)} |", flush=True)


class TimedScorer:
    """Scores like the runner it wraps, and adds up its seconds for previews and for finished images."""

    def __init__(self, runner: RewardRunner):
        self.runner, self.timer = runner, PhaseTimer()

    def __call__(self, prompts: Sequence[str], images: torch.Tensor, columns: Any = None, preview: bool = False):
        with self.timer("preview reward" if preview else "final reward"):
            return self.runner(prompts, images, columns, preview=preview)


def print_previews(args: argparse.Namespace) -> None:
    """A table: seconds of each phase of the demo's rollout, with the tiny decoder, the full one, and without pruning."""
    pipeline = load_pipeline()
    family = family_class(pipeline)(pipeline, guidance_scale=1.0)
    prompts = [row["prompt"] for row in load_shapes("train").select(range(args.prompts))]
    conditioning = family.encode_prompts(prompts)
    demo = {"num_expansions": 48, "prune_steps": [5, 7], "prune_sizes": [24, 12]}
    cases = {
        "tiny decoder": {**demo, "preview_decoder": load_preview_decoder()},
        "full decoder": demo,
        "no pruning, 24 per prompt": {"num_expansions": 24},
    }
    phases = ("denoise", "preview", "preview reward", "decode", "final reward")
    print(f"| Previews by | {' | '.join(phases)} | all | share of previews |\n{'|---' * (len(phases) + 3)}|")
    for name, options in cases.items():
        scorer = TimedScorer(RewardRunner("shapes"))
        sampler = ExpandPruneSampler(
            family,
            FlowSDE(noise_level=0.7),
            scorer,
            reward_weights=torch.ones(1),
            num_inference_steps=10,
            num_generations=12,
            rollout_batch_size=192,
            **options,
        )
        best: dict[str, float] = {}
        for index in range(args.rollouts + 1):
            sampler.rollout(family.denoiser, prompts, conditioning=conditioning, rollout_index=index)
            seconds = {**sampler.timer.drain(), **scorer.timer.drain()}
            seconds.pop("reward")
            if index and (not best or sum(seconds.values()) < sum(best.values())):
                best = seconds
        total = sum(best.values())
        share = (best.get("preview", 0) + best.get("preview reward", 0)) / total
        cells = [f"{best.get(phase, 0):.2f}" for phase in phases]
        print(f"| {name} | {' | '.join(cells)} | {total:.2f} | {share:.0%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument(
        "--rewards", nargs="*", default=OFFLINE, help=f"names; with random weights: {', '.join(LEARNED)}"
    )
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--sizes", nargs="+", type=int, default=[256, 512], help="sides of the images in pixels")
    parser.add_argument("--seconds", type=float, default=2.0, help="time to spend on each cell")
    parser.add_argument("--device", default="cpu", help="of learned rewards")
    parser.add_argument("--dtype", default="float32", help="of learned rewards")
    parser.add_argument("--prompts", type=int, default=8, help="prompts of the rollout")
    parser.add_argument(
        "--rollouts", type=int, default=3, help="rollouts per row, after one to warm up; 0 for no such table"
    )
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.device}\n")
    print_speed(args)
    if args.rollouts:
        print()
        print_previews(args)


if __name__ == "__main__":
    main()
