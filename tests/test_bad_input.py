# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""
Whatever the user gets wrong ends with exit code 2 and one sentence that names field, value and cure, before any weights are
read. What goes wrong, and the words of the sentence, stand in `bad_inputs.py` and `bad_commands.py`.

The command is called in this process, which has imported everything, with all that reads weights replaced by what fails
the test. A few are processes of their own. `pytest -m slow -s -k three_seconds` on 2 busy cores of an AMD EPYC (CPython 3.11,
torch 2.13.0) printed 8.9 seconds of CPU time for `--beta -1` and 13.2 for `--height 30`, where processes that only import the
same modules took 10.1 and 11.8: what the command does itself is lost in the noise of the imports.
"""

import json
import os
import resource
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from bad_commands import FILES, OTHER_COMMANDS, TRAIN
from bad_inputs import CONFIGURATIONS, YAML
from hub_server import HubServer
from PIL import Image

from trl_progrpo.cli.main import COMMANDS, main
from trl_progrpo.data import check_variety
from trl_progrpo.tiny import model_path


MODEL = "--model_name_or_path shapes --num_inference_steps 2"
GOOD = (
    "--model_name_or_path shapes --dataset_name shapes --dataset_test_split none --reward_funcs shapes --num_generations 4 "
    "--per_device_train_batch_size 4 --max_steps 1 --report_to none --use_cpu --output_dir out"
)
# As `make_config` has them.
SMALL = (
    "--gradient_accumulation_steps 2 --num_expansions 6 --prune_steps 1 --prune_sizes 4 --num_inference_steps 4 "
    "--rollout_batch_size 6"
)


class WeightsRead(BaseException):
    """No `Exception`, so that nothing on the way turns it into a sentence."""


@pytest.fixture
def no_weights(monkeypatch):
    import diffusers
    import safetensors.torch
    import torch
    import transformers

    def read(*args, **kwargs):
        raise WeightsRead(args[:2])

    for owner in (diffusers.DiffusionPipeline, diffusers.ModelMixin, transformers.PreTrainedModel):
        monkeypatch.setattr(owner, "from_pretrained", classmethod(read))
    for module, name in ((safetensors.torch, "load_file"), (safetensors.torch, "load"), (torch, "load")):
        monkeypatch.setattr(module, name, read)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """The folder with all files, and what stands for the two ports: one where nobody listens, one that is taken."""
    folder = tmp_path_factory.mktemp("bad")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for name in ("a.png", "picture.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    with socket.socket() as closed, socket.socket() as taken:
        closed.bind(("127.0.0.1", 0))
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield folder, {"CLOSED": str(closed.getsockname()[1]), "TAKEN": str(taken.getsockname()[1])}


@pytest.fixture
def refused(workspace, no_weights, capsys, monkeypatch):
    """A function: checks that a command line is refused with a sentence that has these words."""
    folder, ports = workspace
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(folder / "cache"))

    def refused(argv, words):
        for name, port in ports.items():
            argv, words = ([text.replace(name, port) for text in texts] for texts in (argv, words))
        assert main(argv) == 2
        check_sentence(argv[0], *capsys.readouterr(), words)

    return refused


def check_sentence(command, out, err, words):
    lines = [line for line in err.splitlines() if line.strip()]
    assert out == ""
    assert len(lines) == 1, err
    prog = f"trl-progrpo {command}" if command in COMMANDS else "trl-progrpo"
    assert lines[0].startswith(f"{prog}: error: ")
    assert lines[0].endswith((".", "?", "`"))
    assert "Traceback" not in err
    for text in words:
        assert text in lines[0]


def expanded(line):
    return shlex.split(line.replace("MODEL", MODEL).replace("TRAIN", GOOD))


def flags_of(arguments):
    """Keywords of `ProGRPOConfig` as a command line has them."""
    for name, value in arguments.items():
        values = value if isinstance(value, list) else [value]
        yield f"--{name}"
        yield from (
            json.dumps(item) if isinstance(item, dict) else "none" if item is None else str(item) for item in values
        )


def rows(table):
    return [
        pytest.param(what, words, id=what if isinstance(what, str) else " ".join(flags_of(what)))
        for what, words in table
    ]


class TestOneSentence:
    @pytest.mark.parametrize(("arguments", "words"), rows(CONFIGURATIONS))
    def test_configuration(self, refused, arguments, words):
        # A flag without a value is one that is on; the words of what it is called with are those of the configuration.
        refused(["train", *expanded(GOOD), *expanded(SMALL), *flags_of(arguments)], words)

    @pytest.mark.parametrize(("text", "words"), rows(YAML))
    def test_yaml(self, refused, workspace, text, words):
        (workspace[0] / "run.yaml").write_text(text + "\n")
        refused(["train", *expanded(GOOD), "--config", "run.yaml"], words)

    @pytest.mark.parametrize(("flags", "words"), rows(TRAIN))
    def test_training(self, refused, flags, words):
        refused(["train", *expanded(GOOD), *shlex.split(flags)], words)

    @pytest.mark.parametrize(("line", "words"), rows(OTHER_COMMANDS))
    def test_other_commands(self, refused, line, words):
        refused(expanded(line), words)


def test_a_full_disk_does_not_take_the_scores_with_it(workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace[0])
    assert main(shlex.split("score --reward jpeg_compressibility a.png --prompt a --json --output /dev/full")) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["prompt"] == "a"
    check_sentence(
        "score", "", err, ["`--output` '/dev/full' cannot be written (No space left on device)", "choose another"]
    )


def test_there_are_enough_of_them_and_no_two_are_the_same():
    lines = [row.id for table in (CONFIGURATIONS, YAML, TRAIN, OTHER_COMMANDS) for row in rows(table)]
    assert len(lines) == len(set(lines)) > 60


@pytest.mark.parametrize(
    "line",
    [
        f"train {GOOD}",
        f"train {GOOD} {SMALL}",
        f"plan {GOOD}",
        f"sample {MODEL}",
        f"score --reward shapes {MODEL} --prompts 'a red circle'",
    ],
)
def test_without_a_mistake_weights_are_read(no_weights, line, tmp_path, monkeypatch, capsys):
    """Or else the tests above would show nothing."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsRead):
        main(shlex.split(line))


def test_a_full_disk_is_found_out_at_the_start(refused):
    """The limit on the size of a file is the one way to have a disk that takes no more without being root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        refused(
            ["train", *expanded(GOOD)],
            ["`output_dir` 'out' cannot be written (File too large)", "a disk that is not full"],
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestRepeatedRows:
    def test_are_a_warning(self):
        with pytest.warns(
            UserWarning, match=r"2 of the first 4 training prompts are the same .*; remove repeated rows"
        ):
            check_variety([{"prompt": text} for text in "abaa"], "prompt", "train_dataset")

    def test_with_other_columns_are_none(self, recwarn):
        check_variety([{"prompt": "a", "n": 1}, {"prompt": "a", "n": 2}, {"prompt": "b", "n": 1}], "prompt", "x")
        check_variety([{"prompt": "a"}], "prompt", "x")
        assert not recwarn.list


def run(argv, folder, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **options.pop("env", {})}
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, **options)


class TestProcesses:
    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("train --config no-such.yaml", ["`--config` 'no-such.yaml' cannot be read", "check the path"]),
            (f"sample {MODEL} --adapter nowhere", ["`--adapter` 'nowhere'", "neither a folder nor a Hub name"]),
            ("report nowhere", ["'nowhere' is no folder", "give the `output_dir` of a run"]),
            pytest.param(f"train {GOOD} --beta -1", ["`beta` is -1.0", "use 0"], marks=pytest.mark.slow),
            pytest.param(f"train {GOOD} --dataset_name no.csv", ["'no.csv'", "no such file"], marks=pytest.mark.slow),
            pytest.param(f"train {GOOD} --height 30", ["`height` is 30", "use 32"], marks=pytest.mark.slow),
        ],
    )
    def test_end_with_the_sentence(self, line, words, tmp_path):
        done = run([Path(sys.executable).with_name("trl-progrpo"), *shlex.split(line)], tmp_path)
        assert done.returncode == 2
        check_sentence(line.split()[0], done.stdout, done.stderr, words)

    @pytest.mark.slow
    def test_a_disk_that_is_full_later(self, tmp_path):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

        flags = shlex.split(f"{GOOD} --no_plot --num_inference_steps 2 --num_validation_prompts 0 --save_strategy no")
        done = run([sys.executable, "-m", "trl_progrpo.cli", "train", *flags], tmp_path, preexec_fn=limit)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        sentence = done.stderr.splitlines()[-1]
        for text in ("trl-progrpo train: error: ", "out", "could not be written (File too large)", "make room there"):
            assert text in sentence

    @pytest.mark.slow
    def test_the_hub(self, tmp_path):
        """A repository of somebody else and no token, asked of a real server, which is never asked for weights."""
        (tmp_path / "no_token.yaml").write_text("env: {HF_TOKEN: ''}\n")
        train = ["train", *expanded(GOOD), "--model_name_or_path", "user/shapes", "--push_to_hub", "--hub_model_id"]
        calls = [[*train, "maker/base"], [*train, "user/own", "--config", "no_token.yaml"]]
        code = """if True:
            import json, sys
            from trl_progrpo.cli.main import main
            for argv in json.load(sys.stdin):
                assert main(argv) == 2
        """
        with HubServer() as hub:
            hub.add_folder("user/shapes", model_path())
            hub.add_repo("maker/base")
            environment = hub.environment(tmp_path / "home")
            done = run([sys.executable, "-c", code], tmp_path, input=json.dumps(calls), env=environment)
            asked = [request for request, _ in hub.requests]
        assert done.returncode == 0, done.stderr
        others, no_token = done.stderr.splitlines()
        check_sentence(
            "train", done.stdout, others, ["`push_to_hub` cannot write to 'maker/base'", "403", "of your own"]
        )
        check_sentence("train", "", no_token, ["`push_to_hub` is set", "no Hub token", "run `hf auth login`"])
        assert any("user/shapes/resolve" in request for request in asked)
        assert not [request for request in asked if "safetensors" in request]

    @pytest.mark.slow
    @pytest.mark.parametrize("flags", ["--beta -1", "--height 30"])
    def test_within_three_seconds_on_top_of_the_imports(self, flags, tmp_path):
        """CPU time of the command, less that of a process that imports the same modules."""
        command = """if True:
            import json, sys
            from trl_progrpo.cli.main import main
            status = main(sys.argv[1:])
            json.dump([name for name in sys.modules if not name.startswith("__")], open("modules.json", "w"))
            sys.exit(status)
        """
        imports = """if True:
            import contextlib, importlib, json
            for name in json.load(open("modules.json")):
                # Some names are made up by those who put them there.
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
        """
        spent = [
            cpu_seconds([sys.executable, "-c", command, "train", *shlex.split(f"{GOOD} {flags}")], tmp_path, 2),
            cpu_seconds([sys.executable, "-c", imports], tmp_path, 0),
        ]
        print(f"{flags}: {spent[0]:.1f} s, of which {spent[1]:.1f} s are imports")
        assert spent[0] - spent[1] < 3


def cpu_seconds(argv, folder, status):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run(argv, folder).returncode == status
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
