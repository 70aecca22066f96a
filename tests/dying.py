# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""A run that ends itself with SIGKILL at a chosen moment of a chosen phase, and that notes what it did."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import torch


PHASES = ("rollout", "pruning", "reward", "update", "saving", "logging", "pushing")
ON_FILES = {
    "open", "write", "writelines", "flush", "close", "fsync", "mkdir", "rename", "unlink", "rmdir", "serialize_file",
    "PyTorchFileWriter", "write_record", "write_end_of_file",
}  # fmt: skip
"""Of the calls in saving these are counted, or nearly all moments would lie between the same two files."""
PROMPTS = ["a red circle", "two blue squares", "a green triangle", "a yellow square", "three white circles"]


class Moments:
    """
    Counts the calls that Python makes in each phase of a run, those of C functions included, and kills the process at one.

    A phase inside of another one interrupts it.

    Args:
        phase (`str`, *optional*): in which to die.
        at (`int`, *optional*): at the how manieth call.
    """

    def __init__(self, phase: str | None = None, at: int | None = None):
        self.phase, self.at = phase, at
        self.calls, self.times = (dict.fromkeys(PHASES, 0) for _ in range(2))
        # Pushes have a thread of their own.
        self._local = threading.local()

    @contextmanager
    def __call__(self, phase: str):
        outer, self._local.phase = getattr(self._local, "phase", None), phase
        self.times[phase] += 1
        if self.phase in (None, phase):
            sys.setprofile(self._tick)
        try:
            yield
        finally:
            sys.setprofile(None)
            self._local.phase = outer
            if outer is not None and self.phase in (None, outer):
                sys.setprofile(self._tick)

    def _tick(self, frame, event, argument):
        phase = self._local.phase
        if event in ("call", "c_call") and (phase != "saving" or _is_on_file(argument)):
            self.calls[phase] += 1
            if phase == self.phase and self.calls[phase] == self.at:
                os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, owner, name: str, phase: str) -> None:
        """Makes calls of a method or function be that phase."""
        inner = getattr(owner, name)

        def watched(*args, **kwargs):
            with self(phase):
                return inner(*args, **kwargs)

        setattr(owner, name, watched)


def _is_on_file(function) -> bool:
    # Templates are compiled into a file that is none.
    return getattr(function, "__name__", None) in ON_FILES and not isinstance(function.__self__, io.StringIO)


def redness(prompts, images, **columns):
    """Has no opinion on some of the images, and refuses others."""
    if int(images.sum().item() * 1e4) % 7 == 0:
        raise RuntimeError("not this one")
    values = (images[:, 0] - images[:, 2]).mean((1, 2)).tolist()
    return [None if int(value * 1e6) % 5 == 0 else value for value in values]


redness.image_type = "pt"


def blueness(prompts, images, **columns):
    return images[:, 2].mean((1, 2)).tolist()


blueness.image_type = "pt"


def make_trainer(model: str, output_dir: str, moments: Moments | None = None, pause: str | None = None, **kwargs):
    """
    A run with everything that a checkpoint has to keep: an average, updates, logs and evaluations that do not fall together,
    audits, images without a reward.

    Args:
        model (`str`): folder of the pipeline.
        output_dir (`str`): of the run.
        moments ([`Moments`], *optional*): when to die.
        pause (`str`, *optional*): file for which the second rollout waits, after noting itself.
        kwargs: of the configuration.
    """
    from datasets import Dataset
    from peft import LoraConfig

    from trl_progrpo import ProGRPOConfig, ProGRPOTrainer

    options = {
        "output_dir": output_dir,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_generations": 4,
        "num_expansions": 6,
        "prune_steps": [1],
        "prune_sizes": [4],
        "audit_fraction": 0.5,
        "num_inference_steps": 4,
        "rollout_batch_size": 6,
        "learning_rate": 1e-2,
        "ema_decay": 0.5,
        "on_reward_error": "skip",
        "max_steps": 8,
        "logging_steps": 3,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 3,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "num_validation_prompts": 0,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
        **kwargs,
    }
    torch.manual_seed(os.getpid())  # Whatever it was, it must not matter.
    trainer = ProGRPOTrainer(
        model=model,
        reward_funcs=redness,
        eval_reward_funcs=blueness,
        args=ProGRPOConfig(**options),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        eval_dataset=Dataset.from_dict({"prompt": PROMPTS[:2]}),
        peft_config=LoraConfig(r=4, lora_alpha=8, init_lora_weights="gaussian"),
    )
    _note_rollouts(trainer, Path(output_dir, "rollouts.jsonl"), pause)
    if moments is not None:
        _watch(trainer, moments)
    return trainer


def _note_rollouts(trainer, path: Path, pause: str | None) -> None:
    if not trainer.is_world_process_zero():
        path = path.with_name(f"rollouts_{trainer.accelerator.process_index}.jsonl")
    inner = trainer._rollout

    def noted(inputs, rollout_index):
        inner(inputs, rollout_index)
        rollout = trainer.last_rollout
        seen = [rollout_index, trainer.last_prompts, rollout.member.tolist(), rollout.rewards.tolist()]
        with path.open("a") as file:
            file.write(json.dumps(seen) + "\n")
        while rollout_index == 1 and pause and not os.path.exists(pause):
            time.sleep(0.02)

    trainer._rollout = noted


def _watch(trainer, moments: Moments) -> None:
    from trl_progrpo import hub

    moments.watch(trainer, "_rollout", "rollout")
    moments.watch(trainer.sampler, "_prune", "pruning")
    for runner in (trainer.reward_runner,):
        runner.functions = [_watched_reward(function, moments) for function in runner.functions]
    moments.watch(trainer, "training_step", "update")
    moments.watch(trainer, "_save_checkpoint", "saving")
    moments.watch(trainer, "log", "logging")
    moments.watch(trainer, "_push_from_checkpoint", "pushing")
    moments.watch(hub, "upload", "pushing")


def _watched_reward(function, moments):
    def watched(*args, **kwargs):
        with moments("reward"):
            return function(*args, **kwargs)

    watched.image_type = function.image_type
    return watched


def train(model: str, output_dir: str, moments: Moments | None = None, resume: bool | str = False, **kwargs):
    """Trains, and writes beside the checkpoints what is to be compared."""
    trainer = make_trainer(model, output_dir, moments, **kwargs)
    trainer.train(resume_from_checkpoint=resume or None)
    if trainer.stopped_by_signal:
        return trainer
    trainer.save_model(_internal_call=True)
    state = trainer.optimizer.state_dict()["state"]
    torch.save(
        {
            "weights": {
                name: parameter.detach().clone()
                for name, parameter in trainer.family.denoiser.named_parameters()
                if parameter.requires_grad
            },
            "average": [tensor.clone() for tensor in trainer.ema.shadow_params],
            "optimiser": [torch.as_tensor(value) for moments in state.values() for value in moments.values()],
            "log": logged(trainer.state.log_history),
            "audited": len(trainer._audit_watch.state_dict()["gains"]),
        },
        Path(output_dir, f"final_{trainer.accelerator.process_index}.pt"),
    )
    return trainer


def die_in_every_save(model: str, output_dir: str, replace: bool, every: int = 1) -> int:
    """
    Saves after the second step again and again, in forks that die at one moment after the other, each in a copy of the
    folder; the copies are named after the moments.

    Args:
        model (`str`): folder of the pipeline.
        output_dir (`str`): of the run; the copies lie beside it.
        replace (`bool`): whether that checkpoint is there already.
        every (`int`, *optional*, defaults to 1): leaves out moments between.

    Returns:
        `int`: how many moments there were.
    """
    from trl_progrpo import progrpo_trainer

    # One file among others, and it takes longer than all of them.
    progrpo_trainer.write_model_card = lambda trainer, folder, **kwargs: Path(folder, "README.md").write_text(
        "A card."
    )
    trainer = make_trainer(model, output_dir, max_steps=2, save_total_limit=1, eval_strategy="no")
    save, status, at = trainer._save_checkpoint, [], 0

    def save_or_die(*args):
        nonlocal at
        if trainer.state.global_step == 1 or replace:
            save(*args)
        while trainer.state.global_step == 2 and 0 not in status:
            at += every
            copy = f"{output_dir}-{at}"
            shutil.copytree(output_dir, copy)
            pid = os.fork()
            if pid == 0:
                trainer.args.output_dir = copy
                with Moments("saving", at)("saving"):
                    save(*args)
                os._exit(0)
            status.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    trainer._save_checkpoint = save_or_die
    trainer.train()
    assert set(status) == {0, -signal.SIGKILL}, status
    return at


def logged(log_history):
    """The log without what is measured in seconds, and without the summaries of calls."""
    entries = [entry for entry in log_history if "train_runtime" not in entry]
    return [{key: value for key, value in entry.items() if not key.startswith("time/")} for entry in entries]


def differences(one: Path, other: Path, rank: int = 0) -> list[str]:
    """What is not bit for bit the same at the end of two runs, and in their rollouts."""
    ends = [torch.load(Path(folder, f"final_{rank}.pt"), weights_only=True) for folder in (one, other)]
    found = []
    for name in ("weights", "average", "optimiser"):
        a, b = (list(end[name].values()) if name == "weights" else end[name] for end in ends)
        if len(a) != len(b) or not all(map(torch.equal, a, b)):
            found.append(name)
    # As text, in which a NaN is like another.
    logs = [json.dumps(end["log"], sort_keys=True) for end in ends]
    found += ["logged metrics"] if logs[0] != logs[1] else []
    found += ["audits"] if ends[0]["audited"] != ends[1]["audited"] else []
    # A killed run makes some rollouts again, and they are to be the same.
    name = f"rollouts_{rank}.jsonl" if rank else "rollouts.jsonl"
    orders = [set(Path(folder, name).read_text().splitlines()) for folder in (one, other)]
    return found + (["sample order"] if orders[0] != orders[1] else [])
