# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import io
import re
from types import SimpleNamespace

import pytest
from transformers import TrainerState

from trl_progrpo import callbacks
from trl_progrpo.callbacks import ProGRPOProgressCallback
from trl_progrpo.words import number


PHASES = [
    ("denoise", 1, 4),
    ("denoise", 4, 4),
    ("preview", 8, 8),
    ("reward", 0, 8),
    ("decode", 4, 8),
    ("update", 3, 9),
]


def make_state(max_steps=100, main=True):
    return TrainerState(max_steps=max_steps, is_world_process_zero=main, is_local_process_zero=main)


def run_training(callback, state, rewards):
    """Calls `callback` as the trainer does, one rollout and one log per step."""
    callback.on_train_begin(None, state, None)
    for reward in rewards:
        for phase, done, total in PHASES:
            callback.on_phase(None, state, None, phase=phase, done=done, total=total)
        state.global_step += 1
        callback.on_step_end(None, state, None)
        callback.on_log(None, state, None, logs={"loss": 0.1, "reward": reward, "reward_std": 0.2, "kl": 0.0})
    callback.on_train_end(None, state, None)


@pytest.fixture
def terminal(monkeypatch):
    """A fake terminal of 80 columns in place of standard error."""
    stream = io.StringIO()
    stream.isatty = lambda: True
    # Not `sys.stderr` itself: pytest puts its own there between set-up and test.
    monkeypatch.setattr(callbacks, "sys", SimpleNamespace(stderr=stream))
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda stream: (80, 24))
    return stream


class TestPlain:
    def test_prints_one_line_per_log_without_control_characters(self, capsys):
        run_training(ProGRPOProgressCallback(), make_state(), [0.25, 0.5, 0.125])
        out, err = capsys.readouterr()
        assert out == ""
        lines = err.splitlines()
        assert len(lines) == 3
        assert not re.search(r"[\r\x1b█]", err)
        assert lines[0].startswith("step 1/100  reward 0.250 (+0.000)  std 0.200  elapsed ")
        assert lines[1].startswith("step 2/100  reward 0.500 (+0.250)")
        assert lines[2].startswith("step 3/100  reward 0.125 (-0.125)")
        assert all(re.search(r"left \d\d:\d\d", line) and len(line) <= 80 for line in lines)

    def test_other_logs_print_nothing(self, capsys):
        callback, state = ProGRPOProgressCallback(), make_state()
        callback.on_train_begin(None, state, None)
        callback.on_log(None, state, None, logs={"train_runtime": 3.0, "train_loss": 0.1})
        callback.on_log(None, state, None, logs={"eval_reward": 3.0})
        callback.on_log(None, state, None, logs=None)
        assert capsys.readouterr() == ("", "")

    def test_evaluation_leaves_a_line(self, capsys):
        callback, state = ProGRPOProgressCallback(), make_state()
        callback.on_phase(None, state, None, phase="evaluate", done=1, total=2)
        callback.on_evaluate(None, state, None, metrics={"eval_reward": 0.5, "eval_reward_stderr": 0.0125})
        assert capsys.readouterr().err == "step 0: held-out reward 0.500 ± 0.013\n"

    def test_evaluation_names_several_sets(self, capsys):
        metrics = {"eval_easy_reward": 0.5, "eval_easy_reward_stderr": float("nan"), "eval_hard_reward": 0.25}
        ProGRPOProgressCallback().on_evaluate(None, make_state(), None, metrics=metrics)
        assert capsys.readouterr().err == "step 0: held-out reward easy 0.500, hard 0.250\n"

    def test_the_gain_since_before_training(self, capsys):
        callback, state = ProGRPOProgressCallback(), make_state()
        metrics = {"eval_reward": 0.5, "eval_reward_stderr": 0.125, "eval_reward_gain": 0.0375}
        callback.on_evaluate(None, state, None, metrics=metrics | {"eval_reward_gain_stderr": 0.0125})
        assert capsys.readouterr().err == "step 0: held-out reward 0.500 ± 0.125, gain +0.037 ± 0.013\n"

    def test_other_processes_are_silent(self, capsys):
        run_training(ProGRPOProgressCallback(), make_state(main=False), [0.25, 0.5])
        assert capsys.readouterr() == ("", "")

    def test_resumed_run_keeps_its_first_reward(self, capsys):
        state = make_state()
        state.global_step, state.log_history = 10, [{"step": 5, "reward": 0.125}, {"step": 10, "reward": 0.25}]
        run_training(ProGRPOProgressCallback(), state, [0.5])
        assert "step 11/100  reward 0.500 (+0.375)" in capsys.readouterr().err


class TestTerminal:
    def test_bar_shows_step_reward_phase_and_time_left_in_80_columns(self, terminal):
        run_training(ProGRPOProgressCallback(min_interval=0), make_state(), [0.25, 0.5])
        frames = [frame for frame in re.split(r"[\r\n]", terminal.getvalue()) if "%|" in frame]
        assert 70 < max(map(len, frames)) <= 80
        text = "\n".join(frames)
        for phase in ("denoise 25%", "denoise 100%", "preview 100%", "decode 50%", "update 33%"):
            assert phase in text
        assert re.search(r"\] reward *$", text, re.MULTILINE), "a reward without progress stands without a percentage"
        last = frames[-1].rstrip()
        assert last.startswith("  2%|")
        assert re.search(r"\| 2/100 \[\d\d:\d\d<[\d:]+\] reward 0\.500 \(\+0\.250\)$", last)
        assert "loss" not in text

    def test_draws_at_phase_changes_only_within_the_interval(self, terminal, monkeypatch):
        callback, state = ProGRPOProgressCallback(min_interval=60), make_state()
        callback.on_train_begin(None, state, None)
        drawn = []
        monkeypatch.setattr(callback, "_draw", lambda: drawn.append(callback._phase_text))
        callback._last_drawn = callbacks.time.monotonic()
        for done in range(1, 5):
            callback.on_phase(None, state, None, phase="denoise", done=done, total=4)
        callback.on_phase(None, state, None, phase="decode", done=1, total=4)
        assert drawn == ["denoise 25%", "denoise 100%", "decode 25%"]

    def test_evaluation_outside_training_has_its_own_bar(self, terminal):
        callback, state = ProGRPOProgressCallback(), make_state()
        callback.on_phase(None, state, None, phase="evaluate", done=1, total=4)
        assert "evaluate  25%|" in terminal.getvalue()
        callback.on_evaluate(None, state, None, metrics={"eval_reward": 0.5, "eval_reward_stderr": 0.125})
        assert callback.evaluation_bar is None
        assert terminal.getvalue().endswith("step 0: held-out reward 0.500 ± 0.125\n")

    def test_evaluation_within_training_goes_above_the_bar(self, terminal):
        callback, state = ProGRPOProgressCallback(), make_state()
        callback.on_train_begin(None, state, None)
        callback.on_phase(None, state, None, phase="evaluate", done=1, total=4)
        callback.on_evaluate(None, state, None, metrics={"eval_reward": 0.5})
        assert "step 0: held-out reward 0.500\n" in terminal.getvalue()
        callback.on_train_end(None, state, None)
        assert callback.bar is None


def test_a_run_shows_its_phases_its_reward_and_the_time_left(terminal, make_trainer):
    trainer = make_trainer(disable_tqdm=False, max_steps=3)
    trainer.train()
    frames = [frame for frame in re.split(r"[\r\n]", terminal.getvalue()) if "%|" in frame]
    assert max(map(len, frames)) <= 80
    # Of the second rollout, when there is a reward and a pace.
    middle = [frame for frame in frames if re.search(r"\| 1/3 \[\d\d:\d\d<\d\d:\d\d\]", frame)]
    rewards = [number(entry["reward"]) for entry in trainer.state.log_history if "reward" in entry]
    for phase in ("denoise", "preview", "decode", "reward", "update"):
        assert any(f"] reward {rewards[0]} (+0.000) · {phase}" in frame for frame in middle), phase
    assert re.search(rf"\| 3/3 \[\d\d:\d\d<00:00\] reward {re.escape(rewards[-1])} ", frames[-1])
