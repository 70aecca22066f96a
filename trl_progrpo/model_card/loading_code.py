# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The lines that load a result with stock diffusers, for the card and the terminal."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from ..adapters import ADAPTER_FILE
from ..families.ddim_schedule import explicit_config
from ..families.loading import EMBEDDED
from ..validation import validation_prompts


if TYPE_CHECKING:
    from ..families import Family
    from ..progrpo_trainer import ProGRPOTrainer


WHICH_WEIGHTS = ("revision", "variant", "subfolder")
"""Of `model_init_kwargs`, what says which weights the adapter is for."""


def loading_code(
    trainer: ProGRPOTrainer, source: str, revision: str | None = None, model_name: str | None = None
) -> str:
    """
    The lines that load the result and sample as the run did, with one of its validation prompts.

    Args:
        trainer ([`ProGRPOTrainer`]): the run.
        source (`str`): folder or Hub name of the result.
        revision (`str`, *optional*): branch on the Hub.
        model_name (`str`, *optional*): what to call the base model; what the run loaded when unset.
    """
    family = trainer.family
    imports = ["from diffusers import DiffusionPipeline"]
    dtype = str(family.dtype)
    if dtype != "torch.float32":
        imports.insert(0, "import torch")
    options = [f"dtype={dtype}"] if dtype != "torch.float32" else []
    # Stock diffusers wants to hear by name of a component that a checkpoint lacks on purpose.
    options += [
        f"{component}=None"
        for component in family.optional_components
        if getattr(family.pipeline, component, None) is None
        and component not in (*family.pipeline._optional_components, *trainer.prompt_cache.dropped)
    ]
    at = [f"revision={revision!r}"] if revision else []
    if trainer.use_adapter:
        name = model_name or trainer.model_name
        base = repr(name) if name else "path_of_the_base_model"
        if name in EMBEDDED:
            imports.append("from trl_progrpo.tiny import model_path")
            base = "model_path()"
        given = trainer.args.model_init_kwargs or {}
        options += [f"{key}={given[key]!r}" for key in WHICH_WEIGHTS if given.get(key)]
        changes, scheduler = _scheduler_changes(family), type(family.pipeline.scheduler).__name__
        if changes is not None:
            imports[imports.index("from diffusers import DiffusionPipeline")] += f", {scheduler}"
        # Without a name, the file is looked for on the main branch whatever the revision.
        adapter = [repr(source), *([f"weight_name={ADAPTER_FILE!r}"] if at else []), *at]
        lines = [
            f"pipeline = DiffusionPipeline.from_pretrained({', '.join([base, *options])})",
            f"pipeline.load_lora_weights({', '.join(adapter)})",
        ]
        if changes is not None:
            lines += [
                f"pipeline.scheduler = {scheduler}.from_config(",
                "    pipeline.scheduler.config,",
                *(f"    {key}={value!r}," for key, value in changes.items()),
                ")",
            ]
    else:
        lines = [f"pipeline = DiffusionPipeline.from_pretrained({', '.join([repr(source), *options, *at])})"]
    if trainer.accelerator.device.type == "cuda":
        lines.append('pipeline.to("cuda")')
    steps = trainer.args.eval_num_inference_steps or trainer.args.num_inference_steps
    prompt = next(iter(validation_prompts(trainer)), "your prompt")
    call = {"prompt": prompt, "num_inference_steps": steps, **family.pipeline_call_kwargs}
    arguments = {key: repr(value) for key, value in call.items()}
    arguments |= _negative_prompt(family, trainer.args.negative_prompt)
    lines += ["image = pipeline(", *(f"    {key}={value}," for key, value in arguments.items()), ").images[0]"]
    return "\n".join([*imports, "", *lines])


def _negative_prompt(family: Family, negative_prompt: str | None) -> dict[str, str]:
    if negative_prompt is None or not family.do_classifier_free_guidance:
        return {}
    if "negative_prompt" in inspect.signature(type(family.pipeline).__call__).parameters:
        return {"negative_prompt": repr(negative_prompt)}
    encode = f"pipeline.encode_prompt({negative_prompt!r}, max_sequence_length={family.max_sequence_length})[0]"
    return {"negative_prompt_embeds": encode}


def _scheduler_changes(family: Family) -> dict[str, Any] | None:
    """What to set so that the scheduler of the base becomes the one the run sampled with; `None` if it is that one."""
    own, used = family.base_scheduler, family.pipeline.scheduler
    remade = type(used).from_config(explicit_config(own)).config
    changes = {key: value for key, value in used.config.items() if key[0] != "_" and remade.get(key) != value}
    return None if type(own) is type(used) and not changes else changes
