# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The model card of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard, ModelCardData


if TYPE_CHECKING:
    from .progrpo_trainer import ProGRPOTrainer


def write_model_card(
    trainer: ProGRPOTrainer,
    output_dir: str,
    model_name: str | None = None,
    dataset_name: str | None = None,
    tags: str | Sequence[str] | None = None,
) -> None:
    """
    Writes `README.md` into `output_dir`: what was trained and how, the measured held-out rewards, how to load it.

    Only what the run knows is stated; rewards without an evaluation before training are given without a gain.
    """
    base = trainer.model_name if trainer.model_name and not os.path.isdir(trainer.model_name) else None
    base = None if base == "shapes" else base
    extra = [tags] if isinstance(tags, str) else list(tags or [])
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=base,
        base_model_relation=("adapter" if trainer.use_adapter else "finetune") if base else None,
        tags=sorted(
            {"text-to-image", "diffusers", *trainer._tag_names, *(["lora"] if trainer.use_adapter else []), *extra}
        ),
        datasets=[dataset_name] if dataset_name else None,
    )
    card = ModelCard.from_template(
        data,
        template_str=files("trl_progrpo").joinpath("templates/model_card.md").read_text(encoding="utf-8"),
        title=model_name or os.path.basename(os.path.abspath(output_dir)),
        base_model_name=trainer.model_name or "a diffusers pipeline",
        what="LoRA adapter" if trainer.use_adapter else "fine-tuned denoiser",
        reward_names=trainer.reward_runner.names,
        evaluation=evaluation_table(trainer.state.log_history),
        schedule=describe_schedule(trainer.args),
        load=loading_code(trainer, output_dir),
        steps=trainer.state.global_step,
        args=trainer.args,
        rank=trainer.family.denoiser.peft_config["default"].r if trainer.use_adapter else None,
    )
    card.save(os.path.join(output_dir, "README.md"))


def evaluation_table(log_history: Sequence[dict]) -> list[dict]:
    """First and last evaluation of every held-out reward: `{"name", "before", "before_se", "after", "after_se"}`."""
    evaluations = [entry for entry in log_history if "eval_reward" in entry]
    if not evaluations:
        return []
    first, last = evaluations[0], evaluations[-1]
    measured_before = first.get("step") == 0 and first is not last
    rows = []
    for key in last:
        if key.startswith("eval_rewards/") and key.endswith("/mean"):
            stderr = key.removesuffix("mean") + "stderr"
            rows.append(
                {
                    "name": key.removeprefix("eval_rewards/").removesuffix("/mean"),
                    "before": first[key] if measured_before else None,
                    "before_se": first[stderr] if measured_before else None,
                    "after": last[key],
                    "after_se": last[stderr],
                    "num_prompts": last["eval_num_prompts"],
                }
            )
    return rows


def describe_schedule(args) -> str:
    """One sentence: what was started, pruned and trained."""
    if args.num_expansions == args.num_generations:
        return f"Plain GRPO: {args.num_generations} trajectories per prompt, all trained on."
    sizes = " -> ".join(str(size) for size in [args.num_expansions, *(args.prune_sizes or [])])
    if not args.prune_steps:
        return (
            f"{args.num_expansions} trajectories per prompt were finished; the {args.num_generations} chosen by "
            f"`{args.pruning_rule}` on their rewards were trained on."
        )
    text = f"{sizes} trajectories per prompt, pruned by `{args.pruning_rule}` after steps {args.prune_steps} (0-based)"
    return text + f" of {args.num_inference_steps}; {args.num_generations} were trained on."


def loading_code(trainer: ProGRPOTrainer, output_dir: str) -> str:
    """The lines that load the result with stock diffusers and sample as the run did."""
    family, name = trainer.family, trainer.model_name
    imports, source = ["from diffusers import DiffusionPipeline"], repr(name)
    if name == "shapes":
        imports.append("from trl_progrpo.tiny import model_path")
        source = "model_path()"
    # Stock diffusers wants to hear by name of a component that a checkpoint lacks on purpose.
    absent = [
        component
        for component in family.optional_components
        if getattr(family.pipeline, component, None) is None
        and component not in (*family.pipeline._optional_components, *trainer.prompt_cache.dropped)
    ]
    dtype = str(family.dtype)
    if dtype != "torch.float32":
        imports.insert(0, "import torch")
    options = [source, *([f"dtype={dtype}"] if dtype != "torch.float32" else []), *(f"{key}=None" for key in absent)]
    lines = [f"pipeline = DiffusionPipeline.from_pretrained({', '.join(options)})"]
    if trainer.use_adapter:
        lines.append(f"pipeline.load_lora_weights({output_dir!r})")
    else:
        denoiser, folder = type(family.denoiser).__name__, family.denoiser_name
        imports[imports.index("from diffusers import DiffusionPipeline")] = (
            f"from diffusers import DiffusionPipeline, {denoiser}"
        )
        lines.append(f"pipeline.{folder} = {denoiser}.from_pretrained({output_dir!r}, subfolder={folder!r})")
    steps = trainer.args.eval_num_inference_steps or trainer.args.num_inference_steps
    call = {"num_inference_steps": steps, **family.pipeline_call_kwargs}
    arguments = ", ".join(f"{key}={value!r}" for key, value in call.items())
    lines.append(f"image = pipeline(prompt=prompt, {arguments}).images[0]")
    return "\n".join([*imports, "", *lines])
