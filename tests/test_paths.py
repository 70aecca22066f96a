# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Files and folders as users name them: `~` for the home folder, endings in capitals, formats by their ending."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from trl_progrpo import ProGRPOConfig
from trl_progrpo.cli import plan, reward_server, sample, score, train
from trl_progrpo.cli.base import CommandError
from trl_progrpo.cli.data import load_source
from trl_progrpo.cli.image_files import images_of
from trl_progrpo.cli.launch import launch_arguments
from trl_progrpo.cli.main import main
from trl_progrpo.cli.preflight import checkpoint_to_resume
from trl_progrpo.families import family_class
from trl_progrpo.model_card.command import started_with
from trl_progrpo.report import write_report
from trl_progrpo.rewards import Aesthetic, HPSv2, PickScore
from trl_progrpo.tiny import model_path


REQUIRED = {"dataset_name": "shapes", "reward_funcs": ["shapes"]}
MODEL = {"model_name_or_path": "shapes"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    yield folder
    assert not (tmp_path / "~").exists()


class TestHome:
    @pytest.mark.parametrize("module", [sample, score, plan, reward_server])
    @pytest.mark.parametrize("joined", [True, False], ids=["--flag=~", "--flag ~"])
    def test_flags(self, home, module, joined):
        flags = {
            sample: ["model_name_or_path", "adapter", "output"],
            score: ["model_name_or_path", "adapter", "output", "save_images"],
            plan: ["output"],
            reward_server: ["token_file"],
        }[module]
        argv = ["--reward", "shapes"] if module is reward_server else []
        for flag in flags:
            argv += [f"--{flag}=~/x"] if joined else [f"--{flag}", "~/x"]
        namespace = module._parser().parse_known_args(argv)[0]
        assert {getattr(namespace, flag) for flag in flags} == {str(home / "x")}

    @pytest.mark.parametrize("in_yaml", [True, False], ids=["YAML", "flags"])
    def test_a_run(self, home, in_yaml):
        own = ["model_name_or_path", "output_dir", "prompt_cache_dir", "preview_decoder", "resume_from_checkpoint"]
        given = {**REQUIRED, **dict.fromkeys(own, "~/x"), "model_init_kwargs": {"cache_dir": "~/x"}}
        (home / "run.yaml").write_text(yaml.safe_dump(given if in_yaml else REQUIRED))
        argv = ["--config=~/run.yaml"] + ([] if in_yaml else [f"--{name}=~/x" for name in own])
        (_, model_args, args), _ = train.read_run(argv, train._parser)
        assert [getattr(model_args if name == own[0] else args, name) for name in own] == [str(home / "x")] * 5
        if in_yaml:
            assert args.model_init_kwargs == {"cache_dir": str(home / "x")}

    def test_a_configuration(self, home):
        (home / "x.json").write_text("{}")
        for name in ("fsdp_config", "accelerator_config"):
            ProGRPOConfig(output_dir="~/out", use_cpu=True, **{name: "~/x.json"})
        args = ProGRPOConfig(output_dir=Path("~/out"), use_cpu=True, resume_from_checkpoint=Path("~/out/checkpoint-1"))
        assert args.output_dir == str(home / "out")
        with pytest.raises(CommandError, match=f"`resume_from_checkpoint` is '{home}/out/checkpoint-1', which is no"):
            checkpoint_to_resume(args)

    def test_a_model(self, home):
        (home / "model").symlink_to(model_path())
        for name in ("~/model", Path("~/model")):
            assert family_class(name).__name__ == "StableDiffusion3Family"

    def test_models_of_rewards(self, home):
        assert PickScore("~/x", processor="~/x").processor == str(home / "x")
        assert HPSv2("~/x", processor="~/x").processor == str(home / "x")
        reward = Aesthetic("~/x", head="~/y")
        assert (reward.model, reward.head) == (str(home / "x"), str(home / "y"))

    def test_what_launches(self, home):
        (home / "a.yaml").write_text(
            "distributed_type: MULTI_CPU\ncompute_environment: LOCAL_MACHINE\nnum_processes: 2\n"
        )
        for flag in ("config_file", "accelerate_config"):
            arguments = launch_arguments([f"--{flag}=~/a.yaml", "--log_dir=~/logs"], ["train"])
            assert (arguments.config_file, arguments.log_dir) == (str(home / "a.yaml"), str(home / "logs"))

    def test_data(self, home):
        (home / "p.txt").write_text("a cat\n")
        for name, files in (
            ("~/p.txt", None),
            ("text", "~/p.txt"),
            ("text", ["~/p.txt"]),
            ("text", {"train": "~/p.txt"}),
        ):
            assert load_source(name, data_files=files)["prompt"][:] == ["a cat"]

    def test_a_command_that_is_recorded(self, home, monkeypatch):
        (home / "run.yaml").write_text("max_steps: 3\n")
        monkeypatch.setattr("sys.argv", ["trl-progrpo", "train", "--config=~/run.yaml"])
        assert started_with().config == "max_steps: 3"

    def test_files_are_written_there(self, home, capsys):
        Image.new("RGB", (8, 8)).save(home / "a.png")
        argv = [
            "score",
            "--reward",
            "jpeg_compressibility",
            "~/a.png",
            "--prompt",
            "x",
            "--output=~/made/scores.jsonl",
        ]
        assert main(argv) == 0
        assert json.loads((home / "made" / "scores.jsonl").read_text())["prompt"] == "x"


class TestEndings:
    @pytest.mark.parametrize("name", ["P.JSONL", "P.Json", "P.CSV", "P.TXT", "P.Parquet"])
    @pytest.mark.parametrize("folder", [False, True])
    def test_of_data(self, tmp_path, name, folder):
        from datasets import Dataset

        path = tmp_path / "data" / name
        path.parent.mkdir()
        if path.suffix == ".Parquet":
            Dataset.from_list([{"prompt": "a cat"}]).to_parquet(path)
        else:
            path.write_text({".CSV": "prompt\na cat\n", ".TXT": "a cat\n"}.get(path.suffix, '{"prompt": "a cat"}\n'))
        assert load_source(str(path.parent if folder else path))["prompt"][:] == ["a cat"]

    def test_of_splits_in_a_folder(self, tmp_path):
        for name in ("train.JSONL", "test.jsonl", "README.MD"):
            (tmp_path / name).write_text(json.dumps({"prompt": name}))
        assert [load_source(str(tmp_path), split=split)["prompt"][:] for split in ("train", "test")] == [
            ["train.JSONL"],
            ["test.jsonl"],
        ]

    def test_of_lists_of_images(self, tmp_path):
        Image.new("RGB", (8, 8)).save(tmp_path / "A.PNG")
        (tmp_path / "LIST.JSONL").write_text(json.dumps({"image": "A.PNG", "prompt": "x"}))
        assert [file.prompt for file in images_of(str(tmp_path / "LIST.JSONL"))] == ["x"]

    @pytest.mark.parametrize("name", ["x.pdf", "x.png", "x.json", "~/x.PDF"])
    def test_of_a_report_in_another_format(self, tmp_path, name):
        with pytest.raises(ValueError, match=r"x\.(pdf|png|json|PDF)', for it is a page of HTML; let its name end"):
            write_report(tmp_path, name)
        assert not list(tmp_path.rglob("x.*"))

    @pytest.mark.parametrize("name", ["x.HTML", "x.htm", "x"])
    def test_of_a_report(self, tmp_path, name):
        with pytest.raises(ValueError, match=r"no trainer_state\.json|no run"):
            write_report(tmp_path, name)

    @pytest.mark.parametrize("name", ["plan.json", "plan.PDF"])
    def test_of_a_proposal(self, capsys, name):
        argv = [
            "plan",
            "--model_name_or_path",
            "shapes",
            "--dataset_name",
            "shapes",
            "--reward_funcs",
            "shapes",
            "--use_cpu",
        ]
        assert main([*argv, "--num_expansions", "24", "--calibrate", "--output", name]) == 2
        assert f"`--output` is {name!r}, but a YAML file is written" in capsys.readouterr().err


class TestSavedToDisk:
    """`Dataset.save_to_disk` and `DatasetDict.save_to_disk`."""

    @pytest.fixture
    def rows(self):
        from datasets import Dataset

        return Dataset.from_list([{"prompt": f"a cat {i}", "n": i} for i in range(10)])

    @pytest.mark.parametrize("streaming", [False, True])
    def test_of_splits(self, tmp_path, rows, streaming):
        from datasets import DatasetDict

        splits = DatasetDict({"train": rows, "my-own": rows.select([3])})
        splits.save_to_disk(tmp_path / "saved")
        for split, expected in (
            ("train", range(10)),
            ("train[:20%]", (0, 1)),
            ("my-own", (3,)),
            ("train[8:]", (8, 9)),
        ):
            found = load_source(str(tmp_path / "saved"), split=split, streaming=streaming)
            assert [row["n"] for row in found] == list(expected)
        assert len(load_source(str(tmp_path / "saved" / "train"))) == 10
        with pytest.raises(
            CommandError, match=r"`split` is 'test'; use train, my-own, .* of `dataset_name` '.*saved'\."
        ):
            load_source(str(tmp_path / "saved"), split="test", streaming=streaming)

    def test_without_splits(self, home, rows):
        rows.with_format("torch").save_to_disk(home / "saved")
        found = load_source("~/saved", split="train[:3]")
        assert found["n"][:] == [0, 1, 2]
        assert type(found[0]["n"]) is int

    def test_of_texts(self, tmp_path, rows):
        rows.select_columns("prompt").rename_column("prompt", "text").save_to_disk(tmp_path / "saved")
        assert load_source(str(tmp_path / "saved"), prompt_column="caption").column_names == ["caption"]

    def test_damaged(self, tmp_path, rows):
        rows.save_to_disk(tmp_path / "saved")
        (tmp_path / "saved" / "data-00000-of-00001.arrow").unlink()
        with pytest.raises(CommandError, match=r"`dataset_name` '.*saved' with `split` 'train' could not be loaded"):
            load_source(str(tmp_path / "saved"))

    def test_takes_no_configuration(self, tmp_path, rows):
        rows.save_to_disk(tmp_path / "saved")
        with pytest.raises(CommandError, match="was written by `save_to_disk`, so that it has no configurations"):
            load_source(str(tmp_path / "saved"), "small")
