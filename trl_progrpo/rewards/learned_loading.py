# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Weights, tokenizers and single files from a folder or the Hub, and sentences where that fails."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError


if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from .learned import LearnedReward

REVISIONS = {
    "google/owlv2-base-patch16-ensemble": "cfd3195ba4ea9592eec887ded089f4c08eff231d",
    "google/siglip2-so400m-patch14-384": "e8e487298228002f3d8a82e0cd5c8ea9c567f57f",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "1c2b8495b28150b8a4922ee1c8edee224c284c0c",
    "openai/clip-vit-large-patch14": "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "trl-lib/ddpo-aesthetic-predictor": "cf4bd10345610935a80a5d3be9a3133c50f121e4",
    "xswu/HPSv2": "697403c78157020a1ae59d23f111aa58ced35b0a",
    "yuvalkirstain/PickScore_v1": "a4e4367c6dfa7288a00c550414478f865b875800",
}
"""Hub repositories of the built-in rewards and the commit that is loaded; of other repositories it is `main`."""

FAILURES = (OSError, ValueError, RuntimeError, ImportError, EOFError, pickle.UnpicklingError, SafetensorError)
"""What transformers, huggingface_hub, torch and safetensors raise for a missing or broken model."""


@contextmanager
def explained(reward: str, source: str) -> Iterator[None]:
    """Turns the failures of loading into one sentence."""
    try:
        yield
    except FAILURES as error:
        raise ValueError(
            f"reward `{reward}` cannot load {source!r} ({first_line(error)}); give a complete folder, or the name of a "
            "Hub repository that this machine can reach."
        ) from error


def load_network(
    cls: type[PreTrainedModel], reward: LearnedReward, source: str | None = None, **kwargs
) -> PreTrainedModel:
    """
    A network of class `cls` for a reward in its precision, but for `logit_scale` and `logit_bias`, which stay fp32:
    `cls.from_pretrained`, where no weight may be left random.

    Args:
        cls (`type`): class of transformers.
        reward ([`~rewards.learned.LearnedReward`]): gives model, revision and dtype.
        source (`str`, *optional*): where the weights in `kwargs["state_dict"]` come from; without it they are read from
            `reward.model`.
        kwargs: further arguments of `from_pretrained`.

    Raises:
        ValueError: if the model cannot be loaded, or does not fit the architecture.
    """
    model = reward.model if source is None else None
    with explained(reward.__name__, source or reward.model):
        network, info = cls.from_pretrained(
            model,
            revision=revision_of(reward.model, reward.revision),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **kwargs,
        )
    check_complete(reward.__name__, source or reward.model, **info)
    # Scale and bias of the logits are numbers of the score, and a score in half precision has steps of a quarter.
    numbers = {name: value.data for name, value in network.named_parameters() if name.startswith("logit_")}
    network.to(reward.dtype)
    for name, value in numbers.items():
        network.get_parameter(name).data = value
    return network


def fill(module: torch.nn.Module, weights: dict[str, torch.Tensor], reward: str, source: str) -> None:
    """Loads `weights` into a module; raises `ValueError` where they do not fit it."""
    wanted = module.state_dict()
    other = [(name,) for name in wanted.keys() & weights.keys() if wanted[name].shape != weights[name].shape]
    check_complete(reward, source, missing_keys=wanted.keys() - weights.keys(), mismatched_keys=other)
    module.load_state_dict({name: weights[name] for name in wanted})


def check_complete(reward: str, source: str, missing_keys=(), mismatched_keys=(), unexpected_keys=(), **_) -> None:
    """
    Refuses a checkpoint that does not fill the network.

    Args:
        reward (`str`): name of the reward.
        source (`str`): folder, repository or file.
        missing_keys, mismatched_keys, unexpected_keys: as in the loading information of `from_pretrained`.

    Raises:
        ValueError: if weights are missing, have another shape, or there are more layers than the network has.
    """
    # Old checkpoints hold buffers that no network has any more; only whole layers mean another architecture.
    extra = [name for name in unexpected_keys if ".layers." in name]
    wrong = {
        "lacks": sorted(missing_keys),
        "has another shape for": sorted(str(entry[0]) for entry in mismatched_keys),
        "has unknown layers in": sorted(extra),
    }
    for what, names in wrong.items():
        if names:
            raise ValueError(
                f"reward `{reward}`: the checkpoint {source!r} {what} {len(names)} weights, such as {names[0]!r}; it is "
                "damaged or belongs to another architecture, so download it again or give another one."
            )


def load_tokenizer(reward: str, name: str, revision: str | None = None):
    """The tokenizer of a folder or repository; raises `ValueError` where there is none."""
    from transformers import AutoTokenizer

    with explained(reward, name):
        return AutoTokenizer.from_pretrained(name, revision=revision_of(name, revision))


def load_config(reward: str, name: str, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a folder or repository; raises `ValueError` where there is none."""
    from transformers import AutoConfig

    with explained(reward, name):
        return AutoConfig.from_pretrained(name, revision=revision_of(name, revision))


def load_weights_file(
    reward: str, name: str, filename: str, revision: str | None = None
) -> tuple[str, dict[str, Any]]:
    """
    A `.pt`, `.pth` or `.safetensors` file from a folder or repository, read without running code from it.

    Returns:
        `tuple[str, dict]`: path of the file, and what it holds.

    Raises:
        ValueError: if there is no such file, or it holds anything but tensors and plain containers.
    """
    if os.path.isdir(name):
        path = os.path.join(name, filename)
    else:
        from huggingface_hub import hf_hub_download

        with explained(reward, f"{name}/{filename}"):
            path = hf_hub_download(name, filename, revision=revision_of(name, revision))
    with explained(reward, path):
        if path.lower().endswith(".safetensors"):
            from safetensors.torch import load_file

            return path, load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(weights, dict):
            raise ValueError(f"it holds a {type(weights).__name__} and no named weights")
        return path, weights


def revision_of(name: str, revision: str | None) -> str:
    """The revision to load of a repository."""
    return revision or REVISIONS.get(name, "main")


def first_line(error: BaseException) -> str:
    """The line of an error that says what went wrong, without its full stop."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    # The Hub's errors begin with a status and an id of the request.
    line = lines[1] if " Client Error" in lines[0] and len(lines) > 1 else lines[0]
    return line.strip().rstrip(". ")
