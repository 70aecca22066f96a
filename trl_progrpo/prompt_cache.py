# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Prompts are encoded once, each by itself, and kept: the latest of them in CPU memory, or all on disk."""

from __future__ import annotations

import gc
import json
import os
import tempfile
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .families import Family
from .types import Conditioning, to_device


class PromptCache:
    """
    The conditioning of prompts, encoded at the first request.

    Every prompt is encoded in a batch of 1 and without autocast, so its conditioning depends neither on the prompts beside it
    nor on the phase that asks first: an interrupted run that is resumed sees the same bits.

    Entries are known by their content: prompt, negative prompt, guidance on or off, image size, `max_sequence_length`,
    dtype, the model's name and commit, templates and limits of the tokenizers, and a sample of the text encoders' weights,
    since a name says nothing about a pipeline made in memory or a folder that was written anew.

    Args:
        family ([`Family`]): encodes and stacks.
        directory (`str`, *optional*): folder for one safetensors file per prompt, which later runs and other processes
            read too; CPU memory when unset.
        max_bytes (`int`, *optional*, defaults to 4 GiB): beyond this the prompts in memory that were not used for the
            longest time are forgotten, and encoded again when needed. Without text encoders nothing is forgotten.

    Attributes:
        encoded (`int`): prompts that were encoded, rather than found.
        dropped (`tuple[str, ...]`): names of the pipeline's components that [`~PromptCache.drop_text_encoders`] removed.
    """

    def __init__(self, family: Family, directory: str | None = None, max_bytes: int = 4 * 2**30):
        self.family = family
        self.directory = directory
        self.max_bytes = max_bytes
        self.encoded = 0
        self.dropped: tuple[str, ...] = ()
        self._memory: OrderedDict[str, Conditioning] = OrderedDict()
        self._bytes = 0
        self._encoders: dict[str, Any] | None = None
        if directory is not None:
            try:
                os.makedirs(directory, exist_ok=True)
                with tempfile.TemporaryFile(dir=directory):
                    pass
            except OSError as error:
                raise ValueError(
                    f"`prompt_cache_dir` {directory!r} cannot be written ({error.strerror}); choose a folder you may write "
                    "to, or leave it unset to keep prompts in memory."
                ) from error

    def __call__(
        self, prompts: Sequence[str], negative_prompt: str | None = None, device: torch.device | str | None = None
    ) -> Conditioning:
        """
        The conditioning of `P` prompts; prompts that are not known yet are encoded.

        Args:
            prompts (`Sequence[str]` of length `P`): the prompts, repetitions allowed.
            negative_prompt (`str`, *optional*): of all of them; the family's default when unset.
            device (`torch.device`, *optional*): where it is to be; the family's when unset.

        Raises:
            ValueError: if a prompt is unknown and the text encoders are no longer there.
        """
        found = {prompt: self._get(prompt, negative_prompt) for prompt in dict.fromkeys(prompts)}
        # Only now, so that a rollout larger than the limit is still whole.
        self._forget()
        device = self.family.device if device is None else device
        return self.family.stack([found[prompt] for prompt in prompts]).map(lambda tensor: to_device(tensor, device))

    def encode(self, prompts: Iterable[str], negative_prompt: str | None = None) -> None:
        """Encodes the prompts that are not known yet, however much memory they take."""
        for prompt in dict.fromkeys(prompts):
            self._get(prompt, negative_prompt)

    def drop_text_encoders(self) -> None:
        """Removes the text encoders from the pipeline and from memory; from now on only known prompts can be used."""
        # The keys go on naming the weights that are removed.
        self._describe_encoders()
        self.dropped = (*self.dropped, *self.family.text_encoders)
        for name in self.dropped:
            setattr(self.family.pipeline, name, None)
        gc.collect()
        if self.family.device.type != "cpu":
            getattr(torch, self.family.device.type).empty_cache()

    def _get(self, prompt: str, negative_prompt: str | None) -> Conditioning:
        key = self._key(prompt, negative_prompt)
        entry = self._load(key)
        if entry is None:
            entry = self._encode(prompt, negative_prompt)
            self._save(key, entry, prompt)
        return entry

    def _encode(self, prompt: str, negative_prompt: str | None) -> Conditioning:
        if self.dropped:
            raise ValueError(
                f"the prompt {prompt!r} is in none of the datasets, and `drop_text_encoders` has removed what would encode "
                "it; add it to `eval_dataset`, or set `drop_text_encoders=False`."
            )
        negative = None if negative_prompt is None else [negative_prompt]
        with torch.no_grad(), torch.autocast(self.family.device.type, enabled=False):
            conditioning = self.family.encode_prompts([prompt], negative)
        self.encoded += 1
        # Contiguous copies: an entry must not keep a larger tensor alive, nor share memory with another.
        return conditioning.map(lambda tensor: tensor.cpu().clone(memory_format=torch.contiguous_format))

    def _forget(self) -> None:
        while self._bytes > self.max_bytes and len(self._memory) > 1 and not self.dropped:
            _, entry = self._memory.popitem(last=False)
            self._bytes -= _num_bytes(entry)

    def _key(self, prompt: str, negative_prompt: str | None) -> str:
        family = self.family
        content = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "guidance": family.do_classifier_free_guidance,
            "size": [family.height, family.width],
            "max_sequence_length": family.max_sequence_length,
            "dtype": str(family.dtype),
            **self._describe_encoders(),
        }
        return _digest(json.dumps(content, sort_keys=True).encode())

    def _describe_encoders(self) -> dict[str, Any]:
        """What does not change during a run."""
        if self._encoders is None:
            pipeline, encoders = self.family.pipeline, self.family.text_encoders
            configs = [getattr(module, "config", None) for module in encoders.values()]
            self._encoders = {
                "pipeline": type(pipeline).__name__,
                "pipeline_config": {
                    # The components are there in full below; the rest are options such as those for empty prompts.
                    name: value
                    for name, value in pipeline.config.items()
                    if not name.startswith("_") and isinstance(value, (bool, int, float, str))
                },
                # Chat templates and system messages, where a pipeline has any.
                "attributes": {
                    name: value
                    for name, value in vars(pipeline).items()
                    if not name.startswith("_") and isinstance(value, (bool, int, float, str))
                },
                "tokenizers": {
                    name: [type(tokenizer).__name__, getattr(tokenizer, "model_max_length", None)]
                    for name, tokenizer in pipeline.components.items()
                    if name.startswith("tokenizer") and tokenizer is not None
                },
                "model": str(pipeline.name_or_path or ""),
                "commits": [getattr(config, "_commit_hash", None) for config in configs],
                "weights": _digest(*(part for module in encoders.values() for part in _sample_weights(module))),
            }
        return self._encoders

    def _load(self, key: str) -> Conditioning | None:
        """An entry; `None` if it is not known, or its file is damaged and must be written again."""
        if self.directory is None:
            if key in self._memory:
                self._memory.move_to_end(key)
            return self._memory.get(key)
        try:
            with safe_open(self._path(key), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                checksum = (file.metadata() or {}).get("checksum")
        except (OSError, SafetensorError):
            return None
        if checksum != _checksum(tensors):
            return None
        sides = {"positive": {}, "negative": {}}
        for name, tensor in tensors.items():
            side, _, name = name.partition(".")
            sides[side][name] = tensor
        return Conditioning(sides["positive"], sides["negative"] or None)

    def _save(self, key: str, entry: Conditioning, prompt: str) -> None:
        if self.directory is None:
            self._memory[key] = entry
            self._bytes += _num_bytes(entry)
            return
        tensors = {f"positive.{name}": tensor for name, tensor in entry.positive.items()}
        tensors.update({f"negative.{name}": tensor for name, tensor in (entry.negative or {}).items()})
        # Written beside it and renamed: other processes see a whole file or none.
        temporary = f"{self._path(key)}.{uuid.uuid4().hex}.tmp"
        try:
            save_file(tensors, temporary, metadata={"prompt": prompt, "checksum": _checksum(tensors)})
            os.replace(temporary, self._path(key))
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)

    def _path(self, key: str) -> str:
        return os.path.join(self.directory, f"{key}.safetensors")


def _digest(*parts: bytes) -> str:
    state = blake2b(digest_size=20)
    for part in parts:
        state.update(part)
    return state.hexdigest()


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    """Of names and contents; a file of the right length may still hold wrong bits."""
    parts = ((name.encode(), tensors[name].view(torch.uint8).numpy().tobytes()) for name in sorted(tensors))
    return _digest(*(part for pair in parts for part in pair))


def _sample_weights(module: torch.nn.Module, samples: int = 32) -> Iterable[bytes]:
    """Name, shape, dtype and some evenly spaced values of every parameter; all of them would take minutes."""
    for name, parameter in module.named_parameters():
        yield f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode()
        values = parameter.detach().flatten()
        yield values[:: max(1, values.numel() // samples)].float().cpu().numpy().tobytes()


def _num_bytes(entry: Conditioning) -> int:
    tensors = [*entry.positive.values(), *(entry.negative or {}).values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
