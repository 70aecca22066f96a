# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
Processes that do something with everything imported: real ones, each a fork of one that did the importing, which takes
longer than what they do.

```python
with Forks() as forks:
    child = forks.start("train", folder / "out.txt", model=path, output_dir=str(folder))
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait() == 143
```
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Child:
    """A forked process."""

    forks: Forks
    pid: int
    output: Path
    status: int | None = field(default=None)

    def wait(self) -> int:
        """Its exit status; the signal's number below 0 if one ended it."""
        if self.status is None:
            self.status = self.forks.ask({"wait": self.pid})
        return self.status

    @property
    def said(self) -> str:
        """All that it wrote on standard output and standard error so far."""
        return self.output.read_text() if self.output.exists() else ""


class Forks:
    """
    Starts the process that imports; a context manager.

    Args:
        environment (`Mapping[str, str]`, *optional*): further variables, known before anything is imported.
    """

    def __init__(self, environment: Mapping[str, str] = {}):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *error) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def ask(self, question: dict) -> int:
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, job: str, output: Path, environment: Mapping[str, str] = {}, **kwargs) -> Child:
        """Begins one of the functions below in a process of its own, which writes to the file `output`."""
        question = {"job": job, "output": str(output), "environment": dict(environment), "kwargs": kwargs}
        return Child(self, self.ask(question), output)

    def run(self, job: str, output: Path, environment: Mapping[str, str] = {}, **kwargs) -> Child:
        """[`~Forks.start`], and waits for its end."""
        child = self.start(job, output, environment, **kwargs)
        child.wait()
        return child


# ---- in the process that imports, and in its forks -------------------------------------------------------------------


def train(phase: str | None = None, at: int | None = None, count: str | None = None, **kwargs) -> int:
    """A run of `dying`; with `count` the calls of every phase are written to that file."""
    import dying

    watched = phase is not None or count is not None
    moments = dying.Moments(phase, at) if watched else None
    trainer = dying.train(moments=moments, **kwargs)
    if count is not None:
        Path(count).write_text(json.dumps({"calls": moments.calls, "times": moments.times}))
    # A fork ends without what Python does at its end.
    trainer.rank_watch.leave()
    return 143 if trainer.stopped_by_signal else 0


def train_ranked(**kwargs) -> int:
    """A run of `ranked`, which may be one process of several."""
    import ranked

    return ranked.train(**kwargs)


def command_line(argv: list[str], path: str) -> int:
    """`trl-progrpo` with `argv`, and with modules of the user's own in the folder `path`."""
    from trl_progrpo.cli.main import main

    sys.path.insert(0, path)
    return main(argv)


def die_in_every_save(**kwargs) -> int:
    import dying

    dying.die_in_every_save(**kwargs)
    return 0


JOBS = {function.__name__: function for function in (train, train_ranked, command_line, die_in_every_save)}


def _serve() -> None:
    import torch

    torch.set_num_threads(1)
    import gc

    import datasets  # noqa: F401
    import diffusers
    import dying  # noqa: F401
    import tensorboard  # noqa: F401
    import transformers

    import trl_progrpo.cli.train
    import trl_progrpo.progrpo_trainer  # noqa: F401

    # Loaded when they are asked for, otherwise by every fork for itself.
    for library, names in (
        (diffusers, ("StableDiffusion3Pipeline", "DiffusionPipeline")),
        (transformers, ("CLIPTextModelWithProjection", "CLIPTokenizer")),
    ):
        for name in names:
            getattr(library, name)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            _, status = os.waitpid(question["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            _do(question)
        print(pid, flush=True)


def _do(question: dict) -> None:
    status = 1
    try:
        output = os.open(question["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(question["environment"])
        status = JOBS[question["job"]](**question["kwargs"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not the end of the process that imported, which has a loop to go on with.
        os._exit(status)


if __name__ == "__main__":
    _serve()
