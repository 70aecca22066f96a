# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Runs of the Python interface that push to a Hub, in a process of its own: `python hub_pushes.py job.json`."""

import json
import logging
import sys
from pathlib import Path

import torch


torch.set_num_threads(1)


def redness(prompts, images, **columns):
    return (images[:, 0] - images[:, 2]).mean((1, 2)).tolist()


redness.image_type = "pt"


def make_trainer(job, name, **kwargs):
    from datasets import Dataset
    from peft import LoraConfig

    from trl_progrpo import ProGRPOConfig, ProGRPOTrainer

    options = {
        "output_dir": str(Path(job["root"], name)),
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "num_inference_steps": 4,
        "num_validation_prompts": 2,
        "max_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "push_to_hub": True,
        "hub_strategy": "end",
        "save_strategy": "no",
    }
    lora = kwargs.pop("lora", True)
    return ProGRPOTrainer(
        model=job["base"],
        reward_funcs=redness,
        args=ProGRPOConfig(**{**options, **kwargs}),
        train_dataset=Dataset.from_dict({"prompt": job["prompts"]}),
        peft_config=LoraConfig(r=4, lora_alpha=8) if lora else None,
    )


def refused(job):
    try:
        make_trainer(job, "refused", hub_model_id=job["base"])
    except ValueError as error:
        return str(error)


def checkpoints(job):
    """A checkpoint in the middle of a rollout, onto a branch, with an average and two tokens that must not be told."""
    trainer = make_trainer(
        job,
        "checkpoints",
        hub_model_id="team/checkpoints",
        hub_strategy="checkpoint",
        hub_revision="exp/1",
        hub_token=job["hub_token"],
        save_strategy="steps",
        save_steps=3,
        max_steps=3,
        steps_per_generation=2,
        learning_rate=0.05,
        ema_decay=0.5,
        model_init_kwargs={"token": job["model_token"]},
    )
    trainer.train()
    return sorted(path.name for path in Path(trainer.args.output_dir, "checkpoint-3").iterdir())


def full(job):
    trainer = make_trainer(
        job, "full", hub_model_id="full", lora=False, learning_rate=5e-3, drop_text_encoders=True, bf16=False
    )
    trainer.train()
    info = trainer.push_to_hub(dataset_name="maker/prompts", tags="extra")
    torch.save(trainer.generate(job["prompts"]), Path(job["root"], "full.pt"))
    return info.commit_message


def failures(job):
    """One run pushed to repositories that fail each in its own way; what each push returned and said."""
    trainer = make_trainer(job, "failures", hub_model_id="works", learning_rate=0.05)
    trainer.train()
    results, said, handler = {}, [], logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("trl_progrpo.hub").addHandler(handler)
    for repo_id in job["failing"]:
        trainer.hub_model_id = repo_id
        results[repo_id] = {"returned": trainer.push_to_hub(), "said": said.copy()}
        said.clear()
    return results


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    results = {function.__name__: function(job) for function in (refused, checkpoints, full, failures)}
    Path(job["root"], "results.json").write_text(json.dumps(results))
