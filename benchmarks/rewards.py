# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
Images per second of rewards, and the share of previews in training steps of the embedded model. Nothing is downloaded.

```
python benchmarks/rewards.py
python benchmarks/rewards.py --rewards pickscore aesthetic geneval --device cuda    # random weights, real sizes
```

Learned rewards get networks of the published sizes with random weights, since time does not depend on weights; the tokenizer
is the embedded model's, and images are noise. For `geneval` the detector is OWLv2 base.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import TrainerCallback

from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
from trl_progrpo.rewards import GenEvalReward, RewardRunner, image_type, resolve_reward, shapes
from trl_progrpo.rewards.learned_images import ImageTransform
from trl_progrpo.rewards.transformers_detector import TransformersDetector
from trl_progrpo.timing import PHASES
from trl_progrpo.tiny import load_shapes, model_path


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


@image_type("pt")
class TimedShapes:
    """The reward `shapes`, which adds up its seconds for previews."""

    def __init__(self):
        self.preview_seconds = 0.0

    def __call__(self, prompts: list[str], images: torch.Tensor, preview: bool, **columns) -> list[float]:
        start = time.perf_counter()
        values = shapes(prompts, images)
        self.preview_seconds += preview * (time.perf_counter() - start)
        return values


class Seconds(TrainerCallback):
    """Seconds by phase of every rollout and the updates on it, with the rewards of previews apart."""

    def __init__(self, reward: TimedShapes):
        self.reward, self.rollouts = reward, []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "time/update" not in (logs or {}):
            return
        seconds = {phase: logs.get(f"time/{phase}", 0.0) for phase in PHASES}
        of_previews, self.reward.preview_seconds = self.reward.preview_seconds, 0.0
        self.rollouts.append({**seconds, "reward": seconds["reward"] - of_previews, "preview reward": of_previews})


def print_previews(args: argparse.Namespace) -> None:
    """A table: seconds of a rollout and its updates in the demo, with the tiny decoder, the full one, and without pruning."""
    pruned = {"num_expansions": 48, "prune_steps": [5, 7], "prune_sizes": [24, 12], "num_generations": 12}
    cases = {
        "the tiny decoder": {**pruned, "preview_decoder": "shapes"},
        "the full decoder": pruned,
        "none: 24 per prompt, no pruning": {"num_generations": 24},
    }
    phases = ("denoise", "preview", "preview reward", "decode", "reward", "update")
    print(f"| Previews by | {' | '.join(phases)} | all | share of previews |\n{'|---' * (len(phases) + 3)}|")
    for name, options in cases.items():
        seconds = min(rollout_seconds(args, options), key=lambda rollout: sum(rollout.values()))
        total = sum(seconds.values())
        share = (seconds["preview"] + seconds["preview reward"]) / total
        cells = [f"{seconds[phase]:.2f}" for phase in phases]
        print(f"| {name} | {' | '.join(cells)} | {total:.2f} | {share:.0%} |", flush=True)


def rollout_seconds(args: argparse.Namespace, options: dict[str, Any]) -> list[dict[str, float]]:
    """Trains for one rollout to warm up and `args.rollouts` more; the seconds of the latter by phase."""
    reward = TimedShapes()
    seconds = Seconds(reward)
    # 48 rows an update as in the demo, or one group where that is less.
    batch = options["num_generations"] * min(args.prompts, 48 // options["num_generations"])
    updates = args.prompts * options["num_generations"] // batch
    with TemporaryDirectory() as folder:
        config = ProGRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            steps_per_generation=updates,
            max_steps=updates * (args.rollouts + 1),
            logging_steps=updates,
            num_inference_steps=10,
            guidance_scale=1.0,
            sde_window="fixed",
            sde_window_size=6,
            rollout_batch_size=192,
            audit_fraction=0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **options,
        )
        with redirect_stdout(io.StringIO()):
            ProGRPOTrainer(
                model="shapes",
                reward_funcs=reward,
                args=config,
                train_dataset=load_shapes("train"),
                callbacks=[seconds],
            ).train()
    return seconds.rollouts[1:]


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
    parser.add_argument("--prompts", type=int, default=16, help="prompts of a rollout")
    parser.add_argument(
        "--rollouts",
        type=int,
        default=3,
        help="rollouts per row, of which the fastest counts, after one to warm up; 0 for no such table",
    )
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.device}\n")
    print_speed(args)
    if args.rollouts:
        print()
        print_previews(args)


if __name__ == "__main__":
    main()
