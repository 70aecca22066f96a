# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What prints must not end what works: encodings, pipes without a reader, full disks, closed streams."""

import errno
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
from trl_progrpo.cli import train
from trl_progrpo.cli.main import main
from trl_progrpo.standard_streams import keep_printing, lost_output


SHAPES = {
    "model_name_or_path": "shapes",
    "dataset_name": "shapes",
    "reward_funcs": "shapes",
    "num_generations": 2,
    "num_expansions": 4,
    "prune_steps": [1],
    "prune_sizes": [2],
    "num_inference_steps": 3,
    "per_device_train_batch_size": 4,
    "max_steps": 1,
    "eval_samples": 2,
    "use_cpu": True,
    "save_strategy": "no",
    "log_completions": True,
    "logging_steps": 1,
    "negative_prompt": "déjà vu 日本",
}
TEXT = "4 → 2, 0.5 ± 0.1 – é 日本 😀 \udce9"


def unread_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    return io.TextIOWrapper(os.fdopen(writing, "wb"), encoding="utf-8", write_through=True)


def full_disk():
    return io.TextIOWrapper(open("/dev/full", "wb"), encoding="utf-8", write_through=True)


def closed_stream():
    stream = io.StringIO()
    stream.close()
    return stream


class NoDescriptor(io.RawIOBase):
    """As after `os.close(1)`; a number that is closed indeed may be somebody else's by the next write."""

    def writable(self):
        return True

    def write(self, data):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def closed_number():
    return io.TextIOWrapper(io.BufferedWriter(NoDescriptor()), encoding="utf-8")


def none_at_all():
    return None


def in_encoding(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)


KINDS = [unread_pipe, full_disk, closed_stream, closed_number, none_at_all, "ascii", "latin-1", "cp1252"]
of_every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def broken(monkeypatch):
    """Gives standard output and standard error a kind with which `print` raises, or once did."""

    # Within the test: pytest puts its own streams there between set-up and test.
    def install(kind):
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, in_encoding(kind) if isinstance(kind, str) else kind())

    return install


@of_every_kind
def test_everybody_who_prints(broken, kind):
    broken(kind)
    keep_printing()
    handler = logging.StreamHandler(sys.stderr)
    for file in (sys.stdout, sys.stderr):
        print(TEXT, file=file, flush=True)
        table = Table(title=TEXT)
        table.add_row(TEXT)
        Console(file=file, force_terminal=True).print(table)
        with tqdm(total=2, file=file, desc=TEXT, mininterval=0) as bar:
            bar.update()
            bar.write(TEXT, file=file)
        assert not file.isatty()
    handler.emit(logging.LogRecord("x", logging.WARNING, "x", 1, TEXT, None, None))
    # As `warnings.showwarning` does, which pytest records, and xdist cannot send a surrogate.
    sys.stderr.write(warnings.formatwarning(UserWarning(TEXT), UserWarning, "x", 1))
    sys.stdout.flush()
    reason = {full_disk: "No space left on device", closed_number: "Bad file descriptor"}.get(kind)
    assert lost_output() == reason


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", r"4 > 2, 0.5 +- 0.1 - \xe9 \u65e5\u672c \U0001f600 \udce9"),
        ("latin-1", r"4 > 2, 0.5 ± 0.1 - é \u65e5\u672c \U0001f600 \udce9"),
        ("cp1252", r"4 > 2, 0.5 ± 0.1 – é \u65e5\u672c \U0001f600 \udce9"),
        ("shift_jis", r"4 → 2, 0.5 ± 0.1 - \xe9 日本 \U0001f600 \udce9"),
        ("utf-8", "4 → 2, 0.5 ± 0.1 – é 日本 😀 " + r"\udce9"),
    ],
)
@pytest.mark.parametrize("errors", ["strict", "backslashreplace"])
def test_letters(monkeypatch, encoding, expected, errors):
    stream = in_encoding(encoding)
    stream.reconfigure(errors=errors)
    monkeypatch.setattr(sys, "stdout", stream)
    keep_printing()
    keep_printing()
    print(TEXT, end="")
    assert stream.buffer.getvalue().decode(encoding) == expected


def test_what_is_wrong_is_still_wrong(monkeypatch):
    def write(text):
        raise ValueError("of its own")

    class Frozen:
        __slots__ = ()
        write = flush = staticmethod(lambda *text: None)

    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=write))
    monkeypatch.setattr(sys, "stderr", Frozen())
    keep_printing()
    with pytest.raises(ValueError, match="of its own"):
        print("x")


def test_a_disk_with_room_again(monkeypatch, tmp_path):
    """A long run goes on with its log."""
    with open(tmp_path / "log.txt", "w") as stream:
        whole, full = stream.buffer, [True]

        class Disk(io.RawIOBase):
            def writable(self):
                return True

            def write(self, data):
                if full[0]:
                    raise OSError(28, "No space left on device")
                return whole.raw.write(data)

        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Disk()), encoding="utf-8"))
        keep_printing()
        print("first", flush=True)
        full[0] = False
        print("second", flush=True)
    assert (tmp_path / "log.txt").read_text() == "first\nsecond\n"


class TestCommands:
    @pytest.fixture(autouse=True)
    def here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Image.new("RGB", (8, 8)).save("a.png")
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(SHAPES))

    @pytest.mark.parametrize(
        "command",
        [
            "--help",
            "env",
            "train --config run.yaml --dry_run",
            "score --reward jpeg_compressibility a.png a.png --prompt 日本",
            "score --reward jpeg_compressibility a.png --prompt 日本 --json --output out.jsonl",
            "score --reward jpeg_compressibility nothing.png",
        ],
    )
    @of_every_kind
    def test_status(self, broken, kind, tmp_path, command):
        broken(kind)
        lost = kind in (full_disk, closed_number) and command.split()[0] in ("env", "score")
        assert main(command.split()) == (2 if "nothing" in command else int(lost))
        if "--output" in command:
            assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))["prompt"] == "日本"

    @pytest.mark.parametrize("kind", ["ascii", pytest.param(unread_pipe, marks=pytest.mark.slow)])
    def test_plan(self, broken, kind):
        broken(kind)
        assert main("plan --config run.yaml --no_time".split()) == 0

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
    def test_formats_stay_whole(self, monkeypatch, encoding):
        stdout = in_encoding(encoding)
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["score", "--reward", "jpeg_compressibility", "a.png", "--prompt", "é 😀", "--json"]) == 0
        assert json.loads(stdout.buffer.getvalue().decode(encoding))["prompt"] == "é 😀"
        stdout.buffer.truncate(0)
        stdout.buffer.seek(0)
        assert main(["train", "--config", "run.yaml", "--dry_run"]) == 0
        written = stdout.buffer.getvalue().decode(encoding)
        assert yaml.safe_load(written)["negative_prompt"] == SHAPES["negative_prompt"]

    def test_what_is_lost_is_said(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "stdout", full_disk())
        assert main(["env"]) == 1
        said = "trl-progrpo env: standard output could not be written (No space left on device)"
        assert said in capsys.readouterr().err

    @pytest.mark.parametrize("kind", [unread_pipe, pytest.param("cp1252", marks=pytest.mark.slow)])
    def test_a_whole_training(self, broken, kind, monkeypatch, tmp_path):
        """Save, push, then talk."""
        broken(kind)
        order = []
        monkeypatch.setattr("trl_progrpo.progrpo_trainer.check_push", lambda args: None)
        monkeypatch.setattr("trl_progrpo.cli.preflight.check_push", lambda args: None, raising=False)
        monkeypatch.setattr("trl_progrpo.hub.check_push", lambda args: None)
        monkeypatch.setattr("trl_progrpo.progrpo_trainer.open_repo", lambda *args: "user/name")
        monkeypatch.setattr(
            ProGRPOTrainer,
            "push_to_hub",
            lambda self, **kwargs: order.append(sorted(p.name for p in (tmp_path / "out").iterdir())),
        )
        monkeypatch.setattr(train, "_tell", lambda *args, tell=train._tell: (order.append("told"), tell(*args)))
        assert main(["train", "--config", "run.yaml", "--output_dir", "out", "--push_to_hub"]) == 0
        assert {"README.md", "pytorch_lora_weights.safetensors", "report.html"} <= set(order[0])
        assert order[1:] == ["told"]

    @pytest.mark.parametrize("kind", [unread_pipe, full_disk, closed_stream])
    def test_in_python(self, broken, kind, tmp_path):
        broken(kind)

        def reward(prompts, images, **columns):
            print(TEXT, flush=True)
            print(TEXT, file=sys.stderr, flush=True)
            return list(range(len(prompts)))

        args = ProGRPOConfig(
            str(tmp_path / "out"), num_generations=4, per_device_train_batch_size=4, num_inference_steps=3, max_steps=1,
            use_cpu=True, report_to="none", log_completions=True, logging_steps=1, save_strategy="no",
        )  # fmt: skip
        trainer = ProGRPOTrainer("shapes", reward, args, ["a red circle"], ["a red circle"])
        trainer.train()
        assert trainer.evaluate()["eval_reward"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["| true", "2>&1 | true", ">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_of_a_shell(tmp_path, redirection):
    """With what the interpreter does at its end, which counts for the status."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(SHAPES))
    command = (
        f"set -o pipefail; {sys.executable} -m trl_progrpo.cli train --config run.yaml --output_dir out {redirection}"
    )
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report.html").exists()
