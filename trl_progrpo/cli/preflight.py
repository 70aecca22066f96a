# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What would stop a run after its weights are loaded, found out before from its arguments and configuration files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import user_errors


if TYPE_CHECKING:
    from ..families import Family
    from ..progrpo_config import ProGRPOConfig
    from .script_arguments import ModelArguments


def preflight(model_args: ModelArguments, args: ProGRPOConfig) -> None:
    """
    Looks at everything that a trainer looks at too late: it has the weights by then.

    Raises:
        CommandError: for a mistake of the user's.
    """
    from ..families.skeleton import NoSkeleton
    from .dry_run import resolve_model, resolve_policy

    with user_errors():
        check_arguments(args)
        try:
            family, _ = resolve_model(model_args, args)
        except NoSkeleton:
            # A pipeline of the user's own: what is wrong with it is told when it is there.
            return
        check_previews(family, args)
        resolve_policy(family, args)


def check_arguments(args: ProGRPOConfig) -> None:
    """
    Raises:
        ValueError: for a push that cannot work, or trackers whose packages are not installed.
    """
    from ..hub import check_push
    from ..monitoring import check_trackers

    if args.push_to_hub:
        check_push(args)
    check_trackers(args.report_to)


def check_previews(family: Family, args: ProGRPOConfig) -> None:
    """
    Args:
        family ([`~families.Family`]): may be without weights.
        args ([`ProGRPOConfig`]): says how previews are decoded.

    Raises:
        ValueError: if the preview decoder is not there, or nothing would be left of the latents.
    """
    import torch

    from ..families.skeleton import preview_decoder_skeleton

    if args.preview_decoder:
        preview_decoder_skeleton(args.preview_decoder)
    latents = family.spatial_latents(torch.empty(1, *family.latent_shape, device="meta"))
    most = min(latents.shape[-2:])
    if args.preview_downscale > most:
        raise ValueError(
            f"`preview_downscale` is {args.preview_downscale}, but the latents of a {family.width} x {family.height} image "
            f"have only {most} in one direction; use at most {most}."
        )


def checkpoint_to_resume(args: ProGRPOConfig) -> str | None:
    """
    `resume_from_checkpoint` as a folder; `true` and `last` mean the newest in `output_dir`.

    Raises:
        CommandError: if there is none, or it cannot be resumed from.
    """
    from ..checkpoint_folders import check_checkpoint, newest_to_resume

    value = args.resume_from_checkpoint
    if value is None or str(value).lower() in ("false", "no", ""):
        return None
    with user_errors():
        folder = newest_to_resume(args, value) if str(value).lower() in ("true", "yes", "last") else value
        check_checkpoint(folder, args)
    return folder
