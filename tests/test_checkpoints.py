# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints are whole or not there, whenever a run is killed; what is damaged is refused, and nothing is forgotten."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import dying
import pytest
import torch
from forks import Forks
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from trl_progrpo import manifest
from trl_progrpo.checkpoint_folders import STAGING, check_checkpoint, clear_leftovers, delete_old, newest_checkpoint
from trl_progrpo.checkpoints import check_shared
from trl_progrpo.cli.base import CommandError
from trl_progrpo.cli.preflight import checkpoint_to_resume
from trl_progrpo.manifest import MANIFEST, Damaged, check_files, read_manifest, write_manifest
from trl_progrpo.stopping import ECHO, StopRequest


def wait_for(condition):
    """The tests' own patience, far above what it takes."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


class TestManifest:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "deep").mkdir()
        (tmp_path / "a.bin").write_bytes(b"a" * 1000)
        (tmp_path / "deep" / "b.bin").write_bytes(bytes(range(256)))
        write_manifest(tmp_path, step=4)
        return tmp_path

    def test_lists_what_is_there(self, folder):
        read = read_manifest(folder)
        assert read["step"] == 4
        assert {name: entry["size"] for name, entry in read["files"].items()} == {"a.bin": 1000, "deep/b.bin": 256}
        check_files(folder, read)

    def test_a_file_that_came_later_is_nobodys_business(self, folder):
        (folder / "notes.txt").write_text("best so far")
        check_files(folder, read_manifest(folder))

    def test_what_may_be_missing(self, folder):
        (folder / "a.bin").unlink()
        check_files(folder, read_manifest(folder), may_lack=frozenset({"a.bin"}))

    @pytest.mark.parametrize("at", [0, 2**10 * 30 + 17, -1])
    def test_of_a_large_file_blocks_are_hashed(self, tmp_path, monkeypatch, at):
        """Many and evenly spaced: here they cover the file."""
        monkeypatch.setattr(manifest, "HASHED_WHOLE", 2**10)
        monkeypatch.setattr(manifest, "_BLOCK", 2**10)
        content = bytearray(2**10 * 60 + 5)
        (tmp_path / "large.bin").write_bytes(content)
        write_manifest(tmp_path)
        check_files(tmp_path, read_manifest(tmp_path))
        content[at] = 1
        (tmp_path / "large.bin").write_bytes(content)
        with pytest.raises(Damaged, match=r"holds a large\.bin that has changed"):
            check_files(tmp_path, read_manifest(tmp_path))


@pytest.fixture(scope="module")
def saved(pipeline_path, tmp_path_factory):
    """Checkpoints after 1, 2 and 3 steps, two to a rollout; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "out"
    dying.make_trainer(pipeline_path, str(folder), max_steps=3, logging_steps=2, eval_strategy="no").train()
    return folder


@pytest.fixture
def out(saved, tmp_path):
    """A copy of them."""
    return Path(shutil.copytree(saved, tmp_path / "out"))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGES = {
    "truncated": (lambda f: truncate(f / "optimizer.pt"), r"holds \d+ bytes of optimizer.pt where \d+ were written"),
    "changed": (
        lambda f: flip(f / "pytorch_lora_weights_raw.safetensors"),
        "holds a pytorch_lora_weights_raw.safetensors that has changed since it was written",
    ),
    "a file missing": (lambda f: (f / "scheduler.pt").unlink(), "lacks scheduler.pt"),
    "random state missing": (lambda f: (f / "rng_state.pth").unlink(), "lacks rng_state.pth"),
    "state of a process missing": (lambda f: (f / "run_state_0.json").unlink(), "lacks run_state_0.json"),
    "trainer state missing": (lambda f: (f / "trainer_state.json").unlink(), "lacks trainer_state.json"),
    "manifest missing": (
        lambda f: (f / MANIFEST).unlink(),
        "has no checkpoint.json, without which nobody knows whether it is whole",
    ),
    "manifest truncated": (lambda f: truncate(f / MANIFEST), r"has a checkpoint.json that cannot be read \(.*\)"),
    "manifest a list": (
        lambda f: (f / MANIFEST).write_text("[]"),
        r"has a checkpoint.json that cannot be read \(.*\)",
    ),
    "later format": (
        lambda f: rewrite(f / MANIFEST, format=2, trl_progrpo="9.1"),
        "has format 2 in its checkpoint.json, written by trl_progrpo 9.1, while this one reads format 1",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_the_newest_whole_one_named(out, make_config, damage):
    change, message = DAMAGES[damage]
    change(out / "checkpoint-3")
    truncate(out / "checkpoint-2" / "optimizer.pt")
    with pytest.raises(ValueError) as error:
        check_checkpoint(str(out / "checkpoint-3"), make_config(steps_per_generation=4))
    assert re.fullmatch(
        rf"`resume_from_checkpoint` is '{out}/checkpoint-3', which {message}; use '{out}/checkpoint-1', the newest that is "
        r"whole\.",
        str(error.value),
    )


def test_without_another_whole_one_that_is_said(out, make_config):
    for step in (1, 2, 3):
        truncate(out / f"checkpoint-{step}" / "optimizer.pt")
    with pytest.raises(ValueError, match=r"no other beside it is whole, so start afresh\.$"):
        check_checkpoint(str(out / "checkpoint-2"), make_config(steps_per_generation=4))


def test_the_command_line_refuses_in_the_same_sentence(out, make_config):
    truncate(out / "checkpoint-3" / "optimizer.pt")
    for asked in ("last", "true", str(out / "checkpoint-3")):
        with pytest.raises(CommandError, match=r"use '.*/checkpoint-2', the newest that is whole\.$"):
            checkpoint_to_resume(
                make_config(output_dir=str(out), resume_from_checkpoint=asked, steps_per_generation=4)
            )


def test_the_trainer_refuses_before_it_loads_anything(out, pipeline_path, adapter_of):
    truncate(out / "checkpoint-3" / "optimizer.pt")
    trainer = dying.make_trainer(pipeline_path, str(out))
    before = adapter_of(trainer)
    with pytest.raises(ValueError, match=r"which holds \d+ bytes of optimizer.pt"):
        trainer.train(resume_from_checkpoint=True)
    assert all(torch.equal(before[name], weight) for name, weight in adapter_of(trainer).items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, r"`seed` is 4, but 3 in the run that saved '.*'; use that again, for it fixes"),
        ({"per_device_train_batch_size": 8}, "`per_device_train_batch_size` is 8, but 4 in the run"),
        ({"steps_per_generation": 2}, "`steps_per_generation` is 2, but 4 in the run"),
    ],
)
def test_a_run_with_other_prompts_cannot_go_on(out, make_config, change, message):
    with pytest.raises(ValueError, match=message):
        check_checkpoint(str(out / "checkpoint-3"), make_config(**{"steps_per_generation": 4, **change}))


def test_other_settings_may_change(out, make_config):
    config = make_config(
        steps_per_generation=4, ema_decay=0.9, learning_rate=1e-3, max_steps=100, beta=0.1, logging_steps=7
    )
    check_checkpoint(str(out / "checkpoint-3"), config)


def test_a_run_of_other_processes_cannot_go_on(out, make_config):
    rewrite(out / "checkpoint-3" / MANIFEST, world_size=2)
    with pytest.raises(
        ValueError, match=r"saved with 2 processes, while this run has 1; use as many as then, for they"
    ):
        check_checkpoint(str(out / "checkpoint-3"), make_config(steps_per_generation=4))


def test_weights_alone_are_not_enough_to_go_on(out, make_config):
    """transformers would begin with a fresh optimiser, without a word."""
    folder = out / "checkpoint-3"
    rewrite(folder / "training_args.json", save_only_model=True)
    write_manifest(folder, world_size=1)
    with pytest.raises(ValueError, match="saved with `save_only_model`, so it has no optimiser to go on with"):
        check_checkpoint(str(folder), make_config(steps_per_generation=4))


def test_machines_that_share_no_disk_are_found_out_at_the_first_save(out, make_config):
    config = make_config(output_dir=str(out))
    check_shared(str(out / "checkpoint-3"), config)
    (out / "checkpoint-3" / "run_state_0.json").unlink()
    with pytest.raises(
        ValueError, match="process 0 of 1 writes to another disk than the first one; put it on storage"
    ):
        check_shared(str(out / "checkpoint-3"), config)
    config.save_on_each_node = True
    check_shared(str(out / "checkpoint-3"), config)


def test_from_the_hub_a_checkpoint_comes_without_its_rollout(out, make_config):
    (out / "checkpoint-3" / "rollout_0.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"checkpoint-3' lacks the rollout it was saved in, as those on the Hub do"):
        check_checkpoint(str(out / "checkpoint-3"), make_config(steps_per_generation=4, ema_decay=0.5, max_steps=9))


def test_no_code_from_a_checkpoint_is_run(out, pipeline_path, tmp_path):
    """Whoever can write a pickle can write a manifest that fits it."""

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        folder = Path(shutil.copytree(out / "checkpoint-3", tmp_path / name / "checkpoint-3"))
        (folder / name).write_bytes(pickle.dumps({"state": Trap()}, protocol=2))
        write_manifest(folder, world_size=1)
        with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
            dying.make_trainer(pipeline_path, str(tmp_path / "again")).train(resume_from_checkpoint=str(folder))
        assert not (tmp_path / "run").exists()


class TestLeftovers:
    def test_they_are_no_checkpoints_and_go_at_the_next_start(self, out, pipeline_path):
        (out / STAGING).mkdir()
        shutil.copytree(out / "checkpoint-3", out / STAGING / "checkpoint-4")
        (out / STAGING / "checkpoint-4" / "optimizer.pt").unlink()
        assert get_last_checkpoint(out) == newest_checkpoint(str(out)) == str(out / "checkpoint-3")
        trainer = dying.make_trainer(pipeline_path, str(out), max_steps=3, save_strategy="no")
        trainer.train(resume_from_checkpoint=True)
        assert not (out / STAGING).exists()

    def test_a_checkpoint_that_was_being_replaced_is_put_back(self, out):
        (out / STAGING / "replaced").mkdir(parents=True)
        (out / "checkpoint-3").rename(out / STAGING / "replaced" / "checkpoint-3")
        shutil.copytree(out / "checkpoint-2", out / STAGING / "replaced" / "checkpoint-2")
        (out / "checkpoint-2" / "new").touch()
        assert newest_checkpoint(str(out)) == str(out / "checkpoint-3")
        clear_leftovers(str(out))
        assert (out / "checkpoint-2" / "new").exists()
        assert sorted(path.name for path in out.glob(".*")) == []

    def test_a_save_that_fails_leaves_the_last_one(self, out, pipeline_path):
        trainer = dying.make_trainer(pipeline_path, str(out), max_steps=5)
        save = trainer._save_scaler
        trainer._save_scaler = lambda folder: save(folder) if trainer.state.global_step < 5 else 1 / 0
        with pytest.raises(ZeroDivisionError):
            trainer.train(resume_from_checkpoint=True)
        assert newest_checkpoint(str(out)) == str(out / "checkpoint-4")
        check_checkpoint(str(out / "checkpoint-4"), trainer.args)
        # And goes on, of the same object too.
        trainer._save_scaler = save
        trainer.train(resume_from_checkpoint=True)
        assert newest_checkpoint(str(out)) == str(out / "checkpoint-5")


@pytest.mark.parametrize("limit", [None, 1, 2, 3, 9])
@pytest.mark.parametrize("best", [None, 5, 20, 30])
def test_the_same_checkpoints_stay_as_with_transformers(tmp_path, limit, best):
    for name in ("ours", "theirs"):
        for age, step in enumerate([5, 20, 10, 30]):
            (tmp_path / name / f"checkpoint-{step}").mkdir(parents=True)
            os.utime(tmp_path / name / f"checkpoint-{step}", times=(1000.0 + 60 * age,) * 2)
    best_of = lambda name: str(tmp_path / name / f"checkpoint-{best}") if best else None
    delete_old(str(tmp_path / "ours"), limit, best_of("ours"))
    rotate_checkpoints(str(tmp_path / "theirs"), limit, best_of("theirs"), use_mtime=True)
    assert sorted(os.listdir(tmp_path / "ours")) == sorted(os.listdir(tmp_path / "theirs"))


def test_the_best_checkpoint_is_kept_and_loaded_in_the_end(make_trainer, adapter_of, tmp_path):
    trainer = make_trainer(
        max_steps=4, learning_rate=1e-2, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1,
        save_total_limit=1, load_best_model_at_end=True, metric_for_best_model="reward", greater_is_better=True,
        eval_dataset=["a red circle"], output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    seen, save = {}, trainer._save_checkpoint

    def note(*args):
        save(*args)
        seen[trainer.state.global_step] = adapter_of(trainer)

    trainer._save_checkpoint = note
    trainer.train()
    best = tmp_path / "out" / f"checkpoint-{trainer.state.best_global_step}"
    assert trainer.state.best_model_checkpoint == str(best)
    state = json.loads((best / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(best), "the place, not where it was written"
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == [best.name]
    for name, weight in adapter_of(trainer).items():
        assert torch.equal(weight, seen[trainer.state.best_global_step][name])


def test_a_run_at_its_end_stays_as_it_is(out, pipeline_path, adapter_of):
    def end(step):
        trainer = dying.make_trainer(pipeline_path, str(out), max_steps=step, save_strategy="no", eval_strategy="no")
        trainer.train(resume_from_checkpoint=str(out / "checkpoint-3"))
        return trainer

    trainer = end(3)
    assert trainer.state.global_step == 3
    one, other = adapter_of(trainer), adapter_of(end(4))
    assert any(not torch.equal(one[name], other[name]) for name in one), "one step more would be seen"
    saved = torch.load(out / "checkpoint-3" / "optimizer.pt", weights_only=True)["state"]
    assert trainer.optimizer.state_dict()["state"][0]["step"] == saved[0]["step"] == 3


def test_the_card_of_a_checkpoint_names_its_place(out):
    text = (out / "checkpoint-3" / "README.md").read_text()
    assert "checkpoint-3" in text
    assert STAGING not in text


class TestStopRequest:
    """In the process of the tests, which keeps its own handler outside of them."""

    @pytest.fixture
    def handed_on(self):
        received, previous = [], signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda signum, frame: received.append(signum))
        yield received
        signal.signal(signal.SIGTERM, previous)

    def test_the_handler_of_before_comes_back(self, handed_on, capfd):
        request, mine = StopRequest(), signal.getsignal(signal.SIGTERM)
        with request.listening():
            assert signal.getsignal(signal.SIGTERM) != mine
            # A launcher passes on what the process has had by itself.
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            request.heeded = True
        assert signal.getsignal(signal.SIGTERM) == mine
        assert request.received
        assert handed_on == []
        assert capfd.readouterr().err.count("saving a checkpoint at the end of this step") == 1

    def test_what_came_too_late_is_handed_on(self, handed_on):
        request = StopRequest()
        with request.listening(say=False):
            signal.raise_signal(signal.SIGTERM)
        assert handed_on == [signal.SIGTERM]

    def test_an_error_is_not_hidden(self, handed_on):
        with pytest.raises(ZeroDivisionError), StopRequest().listening(say=False):
            _ = signal.raise_signal(signal.SIGTERM), 1 / 0
        assert handed_on == []


# ---- processes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forks():
    with Forks() as forks:
        yield forks


UNSAVED = {"save_strategy": "no", "logging_steps": 2, "max_steps": 5}
"""A stop after the third step falls between two logs."""


@pytest.fixture(scope="module")
def whole(forks, pipeline_path, tmp_path_factory):
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    child = forks.run("train", folder / "said", model=pipeline_path, output_dir=str(folder), **UNSAVED)
    assert child.status == 0, child.said
    return folder


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 23])
@pytest.mark.parametrize("replace", [False, True])
def test_killed_at_any_moment_of_saving_the_last_one_is_whole(
    forks, pipeline_path, make_config, tmp_path, replace, every
):
    child = forks.run(
        "die_in_every_save", tmp_path / "said", model=pipeline_path, output_dir=str(tmp_path / "out"),
        replace=replace, every=every,
    )  # fmt: skip
    assert child.status == 0, child.said
    found, half = [], 0
    for folder in sorted(tmp_path.glob("out-*")):
        half += (folder / STAGING / "checkpoint-2").exists()
        seen = get_last_checkpoint(folder)
        for path in [seen, newest_checkpoint(str(folder))]:
            if path is not None:
                check_checkpoint(path, make_config(steps_per_generation=4, ema_decay=0.5))
        found.append(Path(path).name)
        clear_leftovers(str(folder))
        assert newest_checkpoint(str(folder)) == path
        assert not (folder / STAGING).exists()
    assert set(found) == ({"checkpoint-2"} if replace else {"checkpoint-1", "checkpoint-2"})
    assert half > 3, "they died when there was nothing to lose"


def test_sigterm_saves_and_the_run_goes_on_bit_for_bit(forks, pipeline_path, whole, tmp_path):
    """It comes in the midst of the second rollout, and of what is gathered for the next log."""
    out, go = tmp_path / "out", tmp_path / "go"
    run = {"model": pipeline_path, "output_dir": str(out), **UNSAVED}
    child = forks.start("train", tmp_path / "said", pause=str(go), **run)
    wait_for(lambda: (out / "rollouts.jsonl").exists() and len((out / "rollouts.jsonl").read_text().splitlines()) == 2)
    os.kill(child.pid, signal.SIGTERM)
    wait_for(lambda: "SIGTERM: saving a checkpoint at the end of this step" in child.said)
    go.touch()
    assert child.wait() == 143, child.said
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-3"]
    assert {"rollout_0.safetensors", "run_state_0.json"} <= set(os.listdir(out / "checkpoint-3"))
    child = forks.run("train", tmp_path / "said", resume=True, **run)
    assert child.status == 0, child.said
    assert dying.differences(whole, out) == []


@pytest.mark.slow
def test_a_second_sigterm_ends_at_once(forks, pipeline_path, tmp_path):
    out = tmp_path / "out"
    child = forks.start(
        "train", tmp_path / "said", model=pipeline_path, output_dir=str(out), pause=str(tmp_path / "never"),
        save_strategy="no",
    )  # fmt: skip
    wait_for(lambda: (out / "rollouts.jsonl").exists() and len((out / "rollouts.jsonl").read_text().splitlines()) == 2)
    os.kill(child.pid, signal.SIGTERM)
    wait_for(lambda: "a second SIGTERM ends at once" in child.said)
    os.kill(child.pid, signal.SIGTERM)
    time.sleep(ECHO + 0.2)
    os.kill(child.pid, 0)  # The echo did not end it.
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait() == -signal.SIGTERM
    assert not list(out.glob("checkpoint-*"))


SLOW_REWARD = """
import pathlib, time

def slow(prompts, images):
    here = pathlib.Path(__file__)
    here.with_name("begun").touch()
    while not here.with_name("go").exists():
        time.sleep(0.02)
    return [float(i) for i in range(len(prompts))]
"""

COMMAND = [
    "train", "--dataset_name", "shapes", "--dataset_test_split", "none", "--reward_funcs", "slow:slow", "--num_generations",
    "2", "--per_device_train_batch_size", "2", "--num_inference_steps", "2", "--lora_target_modules", "to_q",
    "--max_steps", "50", "--use_cpu", "--report_to", "none", "--save_strategy", "no", "--no_plot",
]  # fmt: skip


def test_the_command_line_says_how_to_go_on(forks, pipeline_path, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_REWARD)
    out = tmp_path / "out"
    argv = [*COMMAND, "--model_name_or_path", pipeline_path, "--output_dir", str(out)]
    child = forks.start("command_line", tmp_path / "said", argv=argv, path=str(tmp_path))
    wait_for((tmp_path / "begun").exists)
    os.kill(child.pid, signal.SIGTERM)
    wait_for(lambda: "SIGTERM: saving" in child.said)
    (tmp_path / "go").touch()
    assert child.wait() == 143, child.said
    assert child.said.splitlines()[-1] == (
        "trl-progrpo train: stopped by SIGTERM after step 1 of 50; run the same command with `--resume_from_checkpoint "
        f"{out}/checkpoint-1` to go on from there."
    )
    assert not (out / "pytorch_lora_weights.safetensors").exists(), "that is for the run that ends"
    more = ["--resume_from_checkpoint", "last", "--max_steps", "2"]
    child = forks.run("command_line", tmp_path / "said", argv=[*argv, *more], path=str(tmp_path))
    assert child.status == 0, child.said
    assert (out / "pytorch_lora_weights.safetensors").exists()


TWO = {"steps_per_generation": 2, "num_iterations": 2, "eval_strategy": "no", **UNSAVED}


def start_two(forks, folder, **kwargs):
    """The same run as two processes; the rank that saves is the first."""
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    world = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    return [
        forks.start("train", folder / f"said_{rank}", {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **kwargs)
        for rank in range(2)
    ]


@pytest.fixture(scope="module")
def stopped_two(forks, pipeline_path, tmp_path_factory):
    """Two processes of which only the second was told to stop, in the second rollout; not to be changed."""
    folder = tmp_path_factory.mktemp("two")
    out, go = folder / "out", folder / "go"
    children = start_two(forks, folder, model=pipeline_path, output_dir=str(out), pause=str(go), **TWO)
    wait_for(lambda: all(len(list(out.glob(f"rollouts{end}.jsonl"))) for end in ("", "_1")))
    wait_for(lambda: len((out / "rollouts_1.jsonl").read_text().splitlines()) == 2)
    os.kill(children[1].pid, signal.SIGTERM)
    time.sleep(0.1)
    go.touch()
    for child in children:
        assert child.wait() == 143, child.said
    return out


def test_one_of_two_processes_is_told_and_both_stop_after_the_same_step(stopped_two):
    [folder] = stopped_two.glob("checkpoint-*")
    files = set(read_manifest(folder)["files"])
    for rank in range(2):
        assert {f"rng_state_{rank}.pth", f"run_state_{rank}.json", f"rollout_{rank}.safetensors"} <= files
    assert read_manifest(folder)["world_size"] == 2
    assert folder.name == "checkpoint-3"


def test_one_process_does_not_go_on_for_two(stopped_two, make_config):
    with pytest.raises(ValueError, match="saved with 2 processes, while this run has 1"):
        check_checkpoint(str(stopped_two / "checkpoint-3"), make_config())


@pytest.mark.slow
def test_two_processes_go_on_bit_for_bit(forks, pipeline_path, stopped_two, tmp_path):
    out = shutil.copytree(stopped_two, tmp_path / "out")
    for child in start_two(forks, tmp_path, model=pipeline_path, output_dir=str(out), resume=True, **TWO):
        assert child.wait() == 0, child.said
    for child in start_two(forks, tmp_path, model=pipeline_path, output_dir=str(tmp_path / "whole"), **TWO):
        assert child.wait() == 0, child.said
    for rank in range(2):
        assert dying.differences(tmp_path / "whole", out, rank) == []


@pytest.mark.slow
def test_two_processes_refuse_together(forks, pipeline_path, stopped_two, tmp_path):
    out = shutil.copytree(stopped_two, tmp_path / "out")
    (out / "checkpoint-3" / "rng_state_1.pth").unlink()
    for child in start_two(forks, tmp_path, model=pipeline_path, output_dir=str(out), resume=True, **TWO):
        assert child.wait() == 1
        assert "which lacks rng_state_1.pth; no other beside it is whole, so start afresh." in child.said


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_launcher_passes_sigterm_on_and_gives_time(pipeline_path, tmp_path, processes):
    (tmp_path / "slow.py").write_text(SLOW_REWARD)
    out, said = tmp_path / "out", tmp_path / "said"
    command = [
        sys.executable, "-m", "trl_progrpo.cli", *COMMAND, "--model_name_or_path", pipeline_path, "--output_dir", str(out),
        "--num_processes", str(processes), "--main_process_port", "0",
    ]  # fmt: skip
    environment = {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with said.open("w") as file:
        launcher = subprocess.Popen(command, env={**os.environ, **environment}, stdout=file, stderr=file)
    try:
        wait_for((tmp_path / "begun").exists)
        launcher.terminate()
        wait_for(lambda: "SIGTERM: saving" in said.read_text())
        (tmp_path / "go").touch()
        assert launcher.wait(timeout=120) == 143, said.read_text()
    finally:
        launcher.kill()
    assert said.read_text().count("stopped by SIGTERM after step 1 of 50; run the same command with") == 1
    assert len(list(out.glob("checkpoint-1/run_state_*.json"))) == processes
