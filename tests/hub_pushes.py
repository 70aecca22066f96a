# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Runs that push to a Hub, of the command line and of Python, in a process of their own: `python hub_pushes.py job.json`."""

import contextlib
import io
import json
import logging
import os
import runpy
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


def command_line(job):
    """What `python -m trl_progrpo.cli` does, in here as importing it all once more takes the time of several runs."""
    printed, argv = io.StringIO(), sys.argv
    sys.argv = ["trl-progrpo", *job["command"]]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            runpy.run_module("trl_progrpo.cli", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code
    sys.argv = argv
    return {"status": status, "printed": printed.getvalue()}


def names(job):
    """Status, output and errors of every call of the command line."""
    from trl_progrpo.cli.main import main

    answers, known = [], os.environ["HF_TOKEN"]
    for argv, token in job["calls"]:
        os.environ["HF_TOKEN"] = token
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            answers.append([main(argv)])
        answers[-1] += [out.getvalue(), err.getvalue()]
    os.environ["HF_TOKEN"] = known
    return answers


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
        job,
        "full",
        hub_model_id="full",
        lora=False,
        learning_rate=5e-3,
        drop_text_encoders=True,
        bf16=False,
        save_strategy="steps",
        save_steps=1,
    )
    trainer.train()
    trainer.push_to_hub(dataset_name="maker/prompts", tags="extra")
    torch.save(trainer.generate(job["prompts"]), Path(job["root"], "full.pt"))
    return sorted(path.name for path in Path(trainer.args.output_dir).glob("checkpoint-*"))


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
    results = {
        function.__name__: function(job) for function in (names, command_line, refused, checkpoints, full, failures)
    }
    Path(job["root"], "results.json").write_text(json.dumps(results))
