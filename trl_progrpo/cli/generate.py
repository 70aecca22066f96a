# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Images for `sample` and `score`, drawn by the stock diffusers pipeline, without and with an adapter."""

from __future__ import annotations

import argparse
import inspect
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import CommandError, CommandParser, user_errors


if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image

    from ..families import Family


def add_model_arguments(parser: CommandParser, required: bool) -> None:
    """Which model, which adapter, and how to sample."""
    group = parser.add_argument_group("model and sampling")
    group.add_argument(
        "--model_name_or_path", required=required, type=os.path.expanduser, metavar="MODEL",
        help="'shapes' (embedded), a diffusers pipeline's folder, or its name on the Hub",
    )  # fmt: skip
    group.add_argument("--model_revision", default="main", metavar="REVISION", help="branch, tag or commit on the Hub")
    group.add_argument(
        "--adapter", type=os.path.expanduser, metavar="LORA",
        help="folder, file or Hub name of LoRA weights; without it only the base is drawn",
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=0, help="prompt number i is drawn with seed + i")
    group.add_argument("--num_inference_steps", type=int, default=10, metavar="STEPS", help="denoising steps")
    group.add_argument(
        "--guidance_scale", type=float, default=1.0, metavar="SCALE", help="classifier-free guidance, 1 is off"
    )
    group.add_argument("--negative_prompt", metavar="TEXT", help="negative prompt, for guidance")
    group.add_argument("--height", type=int, metavar="PIXELS", help="the pipeline's default if unset")
    group.add_argument("--width", type=int, metavar="PIXELS", help="the pipeline's default if unset")
    group.add_argument(
        "--max_sequence_length", type=int, metavar="TOKENS", help="limit of the long text encoder, where there is one"
    )
    group.add_argument("--batch_size", type=int, default=8, metavar="IMAGES", help="images per call")
    group.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"],
        help="of the weights; auto is bfloat16 where the accelerator has it, else float32",
    )  # fmt: skip
    group.add_argument("--device", metavar="DEVICE", help="cuda where there is one, else cpu, if unset")


def check_model_arguments(args: argparse.Namespace) -> None:
    """
    Raises:
        CommandError: for what can be known to be wrong before the heavy imports.
    """
    for name in ("num_inference_steps", "batch_size", "height", "width", "max_sequence_length"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise CommandError(f"`--{name}` is {getattr(args, name)}; use at least 1.")
    if not 0 <= args.seed < 2**63:
        raise CommandError(f"`--seed` is {args.seed}; use a number from 0 to {2**63 - 1}.")
    if not 1 <= args.guidance_scale < math.inf:
        raise CommandError(f"`--guidance_scale` is {args.guidance_scale}; use 1 for no guidance, or a number above 1.")
    if args.model_name_or_path == "shapes" and args.model_revision != "main":
        raise CommandError(
            f"`--model_revision` is {args.model_revision!r}, but the model 'shapes' is embedded and has none; leave it away."
        )
    if args.adapter is not None and os.path.isdir(args.adapter):
        if not any(Path(args.adapter).glob("*.safetensors")):
            raise CommandError(
                f"`--adapter` {args.adapter!r} holds no .safetensors file; give the folder of a LoRA run."
            )
    elif args.adapter is not None and not os.path.isfile(args.adapter) and args.adapter.count("/") != 1:
        raise CommandError(f"`--adapter` {args.adapter!r} is neither a folder nor a Hub name `owner/name`.")


def check_writable(flag: str, path: str) -> None:
    """
    Makes the folder of a file that is to be written.

    Raises:
        CommandError: if it cannot be written; better now than after the sampling.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise CommandError(
            f"`{flag}` {path!r} cannot be written ({error.strerror}); choose a file in a folder you may write to."
        ) from error


def load_model(args: argparse.Namespace) -> tuple[DiffusionPipeline, dict[str, Any]]:
    """
    The base pipeline on its device, and the keywords to call it with.

    Raises:
        CommandError: if it cannot be loaded, or cannot do what the arguments ask.
    """
    import numpy as np
    import torch

    from ..families import family_class, load_pipeline
    from ..families.skeleton import NoSkeleton, skeleton

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.dtype == "auto":
        dtype = torch.bfloat16 if device.startswith("cuda") and torch.cuda.is_bf16_supported() else torch.float32
    else:
        dtype = getattr(torch, args.dtype)

    def make_family(pipeline: DiffusionPipeline) -> Family:
        family = family_class(pipeline).with_options(pipeline, args)
        # numpy's warning would stand above the sentence of the refusal.
        with np.errstate(invalid="ignore"):
            family.make_schedule(args.num_inference_steps)
        return family

    _move(torch.nn.Linear(1, 1), device)
    if args.adapter is not None:
        _check_readable(args.adapter)
    with user_errors():
        revision = {} if args.model_revision == "main" else {"revision": args.model_revision}
        try:
            # First without weights, which take long to load.
            make_family(skeleton(args.model_name_or_path, **revision))
        except NoSkeleton:
            pass
        pipeline = load_pipeline(args.model_name_or_path, dtype, **revision)
        _move(pipeline, device)
        # The stock pipeline hands its latents to the VAE in the denoiser's dtype.
        if pipeline.vae.dtype != dtype:
            pipeline.vae.to(dtype)
        family = make_family(pipeline)
        call = {"num_inference_steps": args.num_inference_steps, **family.pipeline_call_kwargs}
    if args.negative_prompt is not None:
        if "negative_prompt" not in inspect.signature(pipeline.__call__).parameters:
            raise CommandError(
                f"`--negative_prompt` is set, but a {type(pipeline).__name__} takes none; leave it away."
            )
        if args.guidance_scale == 1:
            warnings.warn(
                "`--negative_prompt` is set, but `--guidance_scale` is 1, so that it does nothing; raise --guidance_scale, or "
                "leave it away.",
                stacklevel=2,
            )
        call["negative_prompt"] = args.negative_prompt
    return pipeline, call


def _check_readable(adapter: str) -> None:
    """Looks into a local file of weights, at what is in it and not at the weights."""
    from safetensors import SafetensorError, safe_open

    for path in [Path(adapter)] if os.path.isfile(adapter) else Path(adapter).glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                file.keys()
        except (OSError, SafetensorError) as error:
            raise CommandError(
                f"`--adapter` {adapter!r} cannot be read ({path.name}: {error}); give the folder of a LoRA run."
            ) from error


def _move(pipeline: DiffusionPipeline | torch.nn.Module, device: str) -> None:
    try:
        pipeline.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CommandError(f"`--device` {device!r} cannot be used ({reason}); use cpu, or leave it unset.") from error


def base_and_adapter(
    pipeline: DiffusionPipeline, prompts: Sequence[str], call: Mapping[str, Any], args: argparse.Namespace
) -> dict[str, list[Image.Image]]:
    """Images of the `"base"` and, if there is one, of the `"adapter"`, at equal prompts and seeds."""
    if args.adapter is None:
        return {"base": draw(pipeline, prompts, call, args.seed, args.batch_size)}
    # First, so that an adapter that does not fit is told before anything is sampled.
    load_adapter(pipeline, args.adapter)
    pipeline.disable_lora()
    base = draw(pipeline, prompts, call, args.seed, args.batch_size)
    pipeline.enable_lora()
    return {"base": base, "adapter": draw(pipeline, prompts, call, args.seed, args.batch_size)}


def draw(
    pipeline: DiffusionPipeline, prompts: Sequence[str], call: Mapping[str, Any], seed: int, batch_size: int
) -> list[Image.Image]:
    """One image per prompt; number `i` is drawn with `seed + i`, whatever the batches."""
    import torch

    images = []
    for start in range(0, len(prompts), batch_size):
        batch = list(prompts[start : start + batch_size])
        extra = dict(call)
        if "negative_prompt" in extra:
            extra["negative_prompt"] = [extra["negative_prompt"]] * len(batch)
        # On the CPU, so that every device draws the same noise; one per prompt, so that batches do not matter.
        generators = [torch.Generator("cpu").manual_seed(seed + start + i) for i in range(len(batch))]
        images += pipeline(prompt=batch, generator=generators, output_type="pil", **extra).images
    return images


def load_adapter(pipeline: DiffusionPipeline, adapter: str) -> None:
    """
    Puts LoRA weights on a pipeline, after looking whether they were made for it: diffusers leaves out what does not fit.

    Args:
        pipeline ([`~diffusers.DiffusionPipeline`]): of a family of this package.
        adapter (`str`): folder, file or Hub name.

    Raises:
        CommandError: if there is no such adapter, it may not be read, or it belongs to another model.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import httpx

    from ..adapters import ADAPTER_FILE, base_of
    from ..families import family_class

    options = {}
    if constants.HF_HUB_OFFLINE and not os.path.exists(adapter):
        # Without asking the Hub which files there are, diffusers wants to be told.
        options["weight_name"] = ADAPTER_FILE
    try:
        state, *_, metadata = type(pipeline).lora_state_dict(adapter, return_lora_metadata=True, **options)
        family = family_class(pipeline)
        base = base_of(metadata, family.denoiser_name)
        check_fits(getattr(pipeline, family.denoiser_name), state, family, adapter, base)
        _warn_of_another_base(adapter, base, pipeline.name_or_path)
        pipeline.load_lora_weights(adapter, **options)
    except GatedRepoError as error:
        raise CommandError(
            f"`--adapter` {adapter!r} is gated on the Hub; ask for access on its page, then `hf auth login` or set HF_TOKEN."
        ) from error
    except RepositoryNotFoundError as error:
        raise CommandError(
            f"`--adapter` {adapter!r} is no folder or file here and no model that you can read on the Hub; check the "
            "spelling, and for a private one run `hf auth login` or set HF_TOKEN."
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, httpx.HTTPError, HFValidationError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CommandError(f"`--adapter` {adapter!r} could not be loaded into this model ({reason}).") from error


def _warn_of_another_base(adapter: str, base: str | None, given: str) -> None:
    """Where all shapes fit it may still be the wrong model: a fine-tune of the base, or another of the same size."""
    from ..model_card import name_on_hub

    if base and name_on_hub(given) and base != given:
        print(
            f"`--adapter` {adapter!r} was trained on {base!r}; images of it on {given!r} may differ.", file=sys.stderr
        )


def check_fits(denoiser: Any, state: Any, family: Any, adapter: str, base: str | None = None) -> None:
    """
    Compares the shapes of LoRA weights with the layers they are for.

    Args:
        denoiser (`torch.nn.Module`): the network.
        state (`dict` of tensors, or a tuple that begins with one): what `lora_state_dict` gave.
        family (`type[Family]`): names the network.
        adapter (`str`): for the message.
        base (`str`, *optional*): the Hub name of the model that they were trained on, where it is known.

    Raises:
        CommandError: if a layer is missing or has other sides.
    """
    state = state[0] if isinstance(state, tuple) else state
    own = f"its own base, {base!r}," if base else "its own base"
    cure = f"it was made for another model than this {type(denoiser).__name__}; give {own} as --model_name_or_path."
    prefix = f"{family.denoiser_name}."
    layers: dict[str, dict[str, Any]] = {}
    for key, tensor in state.items():
        for side, marks in (("in", (".lora_A.", ".lora.down.")), ("out", (".lora_B.", ".lora.up."))):
            mark = next((mark for mark in marks if mark in key), None)
            if key.startswith(prefix) and mark is not None:
                layers.setdefault(key.removeprefix(prefix).split(mark)[0], {})[side] = tensor
    if not layers:
        others = sorted({key.split(".")[0] for key in state})
        raise CommandError(
            f"`--adapter` {adapter!r} has no weights for the {family.denoiser_name} (only for {', '.join(others)}): {cure}"
        )
    modules = dict(denoiser.named_modules())
    for name, sides in layers.items():
        weight = getattr(modules.get(name), "weight", None)
        if weight is None:
            raise CommandError(f"`--adapter` {adapter!r} has weights for a layer {name!r} that is not there: {cure}")
        theirs = sides["in"].shape[1] if "in" in sides else None, sides["out"].shape[0] if "out" in sides else None
        ours = weight.shape[1], weight.shape[0]
        if any(their is not None and their != our for their, our in zip(theirs, ours)):
            raise CommandError(
                f"`--adapter` {adapter!r} has weights for {theirs[0]} inputs and {theirs[1]} outputs of {name!r}, which has "
                f"{ours[0]} and {ours[1]}: {cure}"
            )
