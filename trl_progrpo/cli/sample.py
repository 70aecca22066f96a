# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`trl-progrpo sample`: base model against adapter at equal seeds, drawn by the stock diffusers pipeline."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import CommandError, CommandParser, quieten_libraries, user_errors


if TYPE_CHECKING:
    from PIL import Image


def run(argv: Sequence[str]) -> int:
    """Parses `argv`, samples, and writes the grid."""
    args = _parser().parse_args(argv)
    _check(args)
    path = sample(args)
    print(path)
    return 0


def sample(args: argparse.Namespace) -> Path:
    """
    Images of the base model, and of the adapter if there is one, as a grid; returns where it lies.

    Raises:
        CommandError: for a mistake of the user's.
    """
    quieten_libraries()
    import torch

    from ..families import family_class, load_pipeline
    from ..plots import image_grid

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.dtype == "auto":
        dtype = torch.bfloat16 if device.startswith("cuda") and torch.cuda.is_bf16_supported() else torch.float32
    else:
        dtype = getattr(torch, args.dtype)
    with user_errors():
        prompts = args.prompts or _default_prompts(args.model_name_or_path)
        revision = {} if args.model_revision == "main" else {"revision": args.model_revision}
        family = family_class(args.model_name_or_path, **revision)
        pipeline = load_pipeline(args.model_name_or_path, dtype, **revision)
        pipeline.to(device)
        # The stock pipeline hands its latents to the VAE in the denoiser's dtype.
        if pipeline.vae.dtype != dtype:
            pipeline.vae.to(dtype)
        family = family(
            pipeline,
            height=args.height,
            width=args.width,
            guidance_scale=args.guidance_scale,
            max_sequence_length=args.max_sequence_length,
        )
        call = {"num_inference_steps": args.num_inference_steps, **family.pipeline_call_kwargs}
        if args.negative_prompt is not None:
            call["negative_prompt"] = args.negative_prompt
    rows, labels = [_draw(pipeline, prompts, call, args)], ["base"]
    if args.adapter is not None:
        _load_adapter(pipeline, args.adapter)
        rows.append(_draw(pipeline, prompts, call, args))
        labels.append("adapter")
    with user_errors(OSError):
        return image_grid(rows, labels, prompts, args.output)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="trl-progrpo sample",
        description="Draw a grid of images: the base model above, the same prompts and seeds with the adapter below.",
    )
    parser.add_argument(
        "--model_name_or_path", required=True, metavar="MODEL",
        help="'shapes' (embedded), a diffusers pipeline's folder, or its name on the Hub",
    )  # fmt: skip
    parser.add_argument(
        "--model_revision", default="main", metavar="REVISION", help="branch, tag or commit on the Hub"
    )
    parser.add_argument(
        "--adapter", metavar="DIR", help="folder or Hub name with LoRA weights; without it only the base is drawn"
    )
    parser.add_argument("--prompts", nargs="+", metavar="TEXT", help="one image each; 'shapes' has prompts of its own")
    parser.add_argument("--output", default="grid.png", metavar="FILE", help="PNG to write")
    parser.add_argument("--seed", type=int, default=0, help="prompt number i is drawn with seed + i")
    parser.add_argument("--num_inference_steps", type=int, default=10, metavar="STEPS", help="denoising steps")
    parser.add_argument(
        "--guidance_scale", type=float, default=1.0, metavar="SCALE", help="classifier-free guidance, 1 is off"
    )
    parser.add_argument("--negative_prompt", metavar="TEXT", help="negative prompt, for guidance")
    parser.add_argument("--height", type=int, metavar="PIXELS", help="the pipeline's default if unset")
    parser.add_argument("--width", type=int, metavar="PIXELS", help="the pipeline's default if unset")
    parser.add_argument(
        "--max_sequence_length", type=int, metavar="TOKENS", help="limit of the long text encoder, where there is one"
    )
    parser.add_argument("--batch_size", type=int, default=8, metavar="IMAGES", help="images per pipeline call")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"],
        help="of the weights; auto is bfloat16 where the accelerator has it, else float32",
    )  # fmt: skip
    parser.add_argument("--device", metavar="DEVICE", help="cuda where there is one, else cpu, if unset")
    return parser


def _check(args: argparse.Namespace) -> None:
    """What can be known before the heavy imports."""
    for name in ("num_inference_steps", "batch_size"):
        if getattr(args, name) < 1:
            raise CommandError(f"`--{name}` is {getattr(args, name)}; use at least 1.")
    if not args.guidance_scale >= 1:
        raise CommandError(f"`--guidance_scale` is {args.guidance_scale}; use 1 for no guidance, or a number above 1.")
    if args.prompts is None and args.model_name_or_path != "shapes":
        raise CommandError('`--prompts` is not set; give at least one, e.g. --prompts "a red cube on a blue sphere".')
    if args.adapter is not None and os.path.isdir(args.adapter):
        if not any(Path(args.adapter).glob("*.safetensors")):
            raise CommandError(
                f"`--adapter` {args.adapter!r} holds no .safetensors file; give the folder of a LoRA run."
            )
    elif args.adapter is not None and not os.path.isfile(args.adapter) and args.adapter.count("/") != 1:
        raise CommandError(f"`--adapter` {args.adapter!r} is neither a folder nor a Hub name `owner/name`.")


def _default_prompts(model: str) -> list[str]:
    """Held-out captions of the embedded model, of every kind."""
    from ..tiny import load_shapes

    captions = load_shapes("test")["prompt"]
    return [captions[i * len(captions) // 8] for i in range(8)]


def _draw(pipeline, prompts: Sequence[str], call: dict[str, Any], args: argparse.Namespace) -> list[Image.Image]:
    import torch

    images = []
    for start in range(0, len(prompts), args.batch_size):
        batch = list(prompts[start : start + args.batch_size])
        extra = dict(call)
        if "negative_prompt" in extra:
            extra["negative_prompt"] = [extra["negative_prompt"]] * len(batch)
        # On the CPU, so that every device draws the same noise; one per prompt, so that batches do not matter.
        generators = [torch.Generator("cpu").manual_seed(args.seed + start + i) for i in range(len(batch))]
        images += pipeline(prompt=batch, generator=generators, output_type="pil", **extra).images
    return images


def _load_adapter(pipeline, adapter: str) -> None:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        pipeline.load_lora_weights(adapter)
    except (OSError, ValueError, KeyError, RuntimeError, HfHubHTTPError, HFValidationError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CommandError(f"`--adapter` {adapter!r} could not be loaded into this model ({reason}).") from error
