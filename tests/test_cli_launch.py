# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Flags of `accelerate launch` on the command line of `trl-progrpo train`."""

import json
import os
import socket
import subprocess
import sys

import pytest

from trl_progrpo.cli.arguments import TrainParser
from trl_progrpo.cli.base import CommandError
from trl_progrpo.cli.launch import LAUNCHED, accelerate_configs, launch_arguments, split_launch
from trl_progrpo.cli.main import main


SHAPES = ["--model_name_or_path", "shapes", "--dataset_name", "shapes", "--reward_funcs", "shapes"]
SMALL = [
    "--num_generations",
    "2",
    "--per_device_train_batch_size",
    "2",
    "--num_inference_steps",
    "2",
    "--max_steps",
    "1",
]
QUIET = ["--use_cpu", "--report_to", "none", "--save_strategy", "no", "--eval_samples", "4", "--no_plot"]


@pytest.fixture(autouse=True)
def not_launched(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv(LAUNCHED, raising=False)


@pytest.fixture(scope="module")
def split():
    parser = TrainParser()
    return lambda flags, **config: split_launch(parser, flags, config, "run.yaml")


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class TestSplit:
    def test_what_is_ours_stays_in_process(self, split):
        flags = [*SHAPES, "--seed", "2", "--fsdp", "full_shard", "--prune_steps", "1", "2"]
        assert split(flags, learning_rate=1e-3) == ([], flags, {"learning_rate": 1e-3})

    def test_flags_of_the_launcher_go_to_it(self, split):
        flags = [
            "--num_processes",
            "2",
            *SHAPES,
            "--main-process-port",
            "0",
            "--seed",
            "2",
            "--multi_gpu",
            "--beta",
            "0",
        ]
        launch, own, _ = split(flags)
        assert launch == ["--num_processes", "2", "--main-process-port", "0", "--multi_gpu"]
        assert own == [*SHAPES, "--seed", "2", "--beta", "0"]

    def test_equal_values_are_not_confused(self, split):
        launch, own, _ = split(["--seed", "2", "--num_processes", "2", "--max_steps=2", "--num_machines=1"])
        assert launch == ["--num_processes", "2", "--num_machines=1"]
        assert own == ["--seed", "2", "--max_steps=2"]

    def test_keys_of_the_file_come_first(self, split):
        config = {"num-processes": 4, "multi_gpu": True, "tpu": False, "fsdp_offload_params": False, "seed": 1}
        launch, own, rest = split(["--num_processes", "2"], **config)
        assert launch == [
            "--num_processes",
            "4",
            "--multi_gpu",
            "--fsdp_offload_params",
            "false",
            "--num_processes",
            "2",
        ]
        assert (own, rest) == ([], {"seed": 1})
        assert launch_arguments(launch, []).num_processes == 2

    @pytest.mark.parametrize("variable", [LAUNCHED, "LOCAL_RANK"])
    def test_a_launched_process_does_not_launch_again(self, split, monkeypatch, variable):
        monkeypatch.setenv(variable, "0")
        assert split(["--seed", "2"], num_processes=4, beta=0.1) == ([], ["--seed", "2"], {"beta": 0.1})

    @pytest.mark.parametrize(
        ("flags", "config", "message"),
        [
            (
                ["--num_processes", "2", "--learning_rat", "1"],
                {},
                "unknown flag --learning_rat; did you mean --learning_rate",
            ),
            (["--num_proceses", "2"], {}, "unknown flag --num_proceses; did you mean --num_processes"),
            (["stray", "--num_processes", "2"], {}, "unexpected argument 'stray'"),
            (["-m", "--num_processes", "2"], {}, "unknown flag -m"),
            (["--module", "--num_processes", "2"], {}, "unknown flag --module"),
            ([], {"num_processes": [1, 2]}, r"`num_processes` is \[1, 2\] in run.yaml; give one value"),
        ],
    )
    def test_mistakes(self, split, flags, config, message):
        with pytest.raises(CommandError, match=message):
            split(flags, **config)


class TestLaunchArguments:
    def test_runs_this_command(self):
        arguments = launch_arguments(["--num_processes", "1"], ["train", "--seed", "1"])
        assert arguments.module
        assert arguments.training_script == "trl_progrpo.cli"
        assert arguments.training_script_args == ["train", "--seed", "1"]
        assert not arguments.multi_gpu

    def test_several_processes_on_a_cpu_are_several(self):
        assert launch_arguments(["--num_processes", "2"], [], use_cpu=True).multi_gpu

    def test_named_configurations(self, tmp_path):
        assert "zero2" in accelerate_configs()
        named = launch_arguments(["--num_processes", "2", "--accelerate_config", "zero2"], [])
        assert named.config_file.endswith("zero2.yaml")
        assert os.path.isfile(named.config_file)
        (tmp_path / "mine.yaml").write_text("distributed_type: 'NO'\nnum_processes: 2\n")
        path = str(tmp_path / "mine.yaml")
        assert launch_arguments([f"--accelerate_config={path}"], []).config_file == path

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--num_processes", "two"], "--num_processes.*: invalid int value: 'two'"),
            (["--num_processes"], "expected one argument"),
            (["--num_processes", "2", "stray"], "unexpected argument 'stray'"),
            (["--accelerate_config"], "`--accelerate_config` has no value"),
            (["--accelerate_config", "zero9"], "`--accelerate_config` 'zero9' is neither a file nor one of .*zero3"),
        ],
    )
    def test_mistakes(self, flags, message):
        with pytest.raises(CommandError, match=message):
            launch_arguments(flags, ["train"])


def test_mistakes_of_the_training_are_told_before_the_launch(capsys, tmp_path):
    argv = ["train", *SHAPES, *QUIET, "--num_processes", "2", "--beta", "-1", "--output_dir", str(tmp_path)]
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if line] == [
        "trl-progrpo train: error: `beta` is -1.0; use 0 for no KL term, or a positive number."
    ]


@pytest.mark.slow
class TestRuns:
    def run(self, *argv):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "trl_progrpo.cli", "train", *argv]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)

    @pytest.mark.parametrize("streaming", [False, True])
    def test_two_processes(self, tmp_path, streaming):
        (tmp_path / "run.yaml").write_text(f"num_processes: 2\nmain_process_port: {free_port()}\n")
        out = str(tmp_path / "out")
        more = ["--dataset_streaming"] if streaming else []
        result = self.run("--config", str(tmp_path / "run.yaml"), *SHAPES, *SMALL, *QUIET, *more, "--output_dir", out)
        assert result.returncode == 0, result.stderr
        arguments = json.loads((tmp_path / "out/training_args.json").read_text())
        assert arguments["max_steps"] == 1
        # Both processes sampled one prompt each; the epoch says how much of the data that was, or of the steps in a stream.
        state = json.loads((tmp_path / "out/trainer_state.json").read_text())
        from trl_progrpo.tiny import load_shapes

        rollouts = 1 if streaming else -(-len(load_shapes("train")) // 2)
        assert state["epoch"] == pytest.approx(1 / rollouts)

    def test_the_exit_status_is_that_of_the_processes(self, tmp_path):
        flags = ["--num_processes", "1", "--dataset_train_split", "none-such", "--output_dir", str(tmp_path)]
        result = self.run(*SHAPES, *SMALL, *QUIET, *flags)
        assert result.returncode == 2
        assert "none-such" in result.stderr
        assert "Traceback" not in result.stderr
