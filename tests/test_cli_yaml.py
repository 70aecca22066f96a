# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What a value in a YAML file is: as it was written where a text belongs, a number or a truth value where one does."""

import json

import pytest

from trl_progrpo.cli.arguments import TrainParser
from trl_progrpo.cli.base import CommandError
from trl_progrpo.cli.config_file import Plain, dump_yaml, load_yaml, to_values
from trl_progrpo.cli.launch import split_launch
from trl_progrpo.cli.train import read_config


GIVEN = (
    "--model_name_or_path shapes --reward_funcs shapes --use_cpu --num_generations 4 --per_device_train_batch_size 4"
).split()

ODD = [
    "1.10", "007", "12:30:45", "no", "on", "Yes", "True", "2024-01-01", "2024-01-01 10:00:00", "0o17", "0x1F", "0b11",
    "1_000", "1e5", "1e-4", "+5", ".5", ".inf", ".NaN", "=", "caf\u00e9", "190:20:30",
]  # fmt: skip


@pytest.fixture(scope="module")
def parser_free(tmp_path_factory):
    """A function from the lines of a YAML file to the three dataclasses."""
    folder = tmp_path_factory.mktemp("yaml")

    def parse(text, dataset=True):
        path = folder / "run.yaml"
        path.write_text(text, encoding="utf-8")
        output = [] if "output_dir" in text else ["--output_dir", str(folder / "out")]
        flags, config, _ = read_config(["--config", str(path), *GIVEN, *output])
        config.pop("env", None)
        return TrainParser().parse([*flags, *(["--dataset_name", "shapes"] if dataset else [])], config, "run.yaml")

    return parse


class TestLoading:
    @pytest.mark.parametrize("written", ODD)
    def test_a_text_is_what_was_written(self, parser_free, written):
        script, model, config = parser_free(
            f"run_name: {written}\nhub_model_id: {written}\nmodel_revision: {written}\ndataset_config: {written}\n"
            f"negative_prompt: {written}\nguidance_scale: 2\neval_reward_funcs: [{written}]\nlora_target_modules: {written}\n"
            f"model_init_kwargs: {{revision: {written}, variant: {written}}}\n"
        )
        assert config.model_init_kwargs == {"revision": written, "variant": written}
        assert script.eval_reward_funcs == model.lora_target_modules == [written]
        texts = [
            config.run_name,
            config.hub_model_id,
            config.negative_prompt,
            script.dataset_config,
            model.model_revision,
        ]
        assert texts == [written] * 5
        assert all(type(text) is str for text in texts)

    @pytest.mark.parametrize(
        ("written", "value"),
        [("1e-4", 1e-4), ("1E+3", 1e3), ("5e0", 5.0), ("-1.5", -1.5), (".5", 0.5), ("3", 3), ("0x10", 16), ("1_000", 1000),
         ("yes", True), ("Off", False), ("null", None), ("~", None), ("12:30:45", "12:30:45"), ("2024-01-01", "2024-01-01"),
         ("007", "007"), ("'1e-4'", "1e-4"), ("'no'", "no"), ("!!str 1", "1"), ("!!float 1", 1.0)],
    )  # fmt: skip
    def test_at_every_depth_where_nothing_has_a_type(self, parser_free, written, value):
        config = parser_free(f"model_init_kwargs: {{a: {written}, b: {{c: [{written}, {{d: {written}}}]}}}}\n")[2]
        assert config.model_init_kwargs == {"a": value, "b": {"c": [value, {"d": value}]}}
        assert type(config.model_init_kwargs["a"]) is type(value)

    def test_numbers_and_truth_values(self, parser_free):
        script, _, config = parser_free(
            "learning_rate: 1e-4\nseed: 0x10\ndata_seed: 010\nmax_steps: 1_000\nreward_weights: 1e-1\nplot: off\n"
            "prune_steps: 5\nprune_sizes: [4]\nnum_expansions: 8\nsave_strategy: off\n"
            "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-5}\n"
            "accelerator_config: {split_batches: no}\n"
        )
        assert (config.learning_rate, config.seed, config.data_seed, config.max_steps) == (1e-4, 16, 10, 1000)
        assert (config.reward_weights, config.prune_steps, script.plot) == ([0.1], [5], False)
        assert (config.save_strategy, config.lr_scheduler_kwargs) == ("no", {"min_lr": 1e-5})
        assert config.accelerator_config.split_batches is False

    def test_a_folder_with_the_name_of_a_number(self, parser_free, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert parser_free("output_dir: 2024")[2].output_dir == "2024"

    def test_variables_are_texts(self, tmp_path):
        path = tmp_path / "run.yaml"
        path.write_bytes(b"\xef\xbb\xbfenv: {A: 007, B: no, C: 1e-4}\r\nseed: 1\r\n")
        config = read_config(["--config", str(path)])[1]
        assert config == {"env": {"A": "007", "B": "no", "C": "1e-4"}, "seed": "1"}

    def test_flags_of_the_launcher(self):
        config = {
            "multi_gpu": Plain("no", False),
            "mixed_precision": Plain("no", False),
            "num_machines": Plain("1", 1),
        }
        parser = TrainParser()
        assert split_launch(parser, [], config, "run.yaml")[0] == ["--mixed_precision", "no", "--num_machines", "1"]
        assert split_launch(parser, [], {"multi_gpu": Plain("on", True)}, "run.yaml")[0] == ["--multi_gpu"]
        with pytest.raises(CommandError, match=r"`multi_gpu` is 2 in run.yaml; give true or false"):
            split_launch(parser, [], {"multi_gpu": Plain("2", 2)}, "run.yaml")


class TestMixture:
    @pytest.mark.parametrize(
        ("entry", "expected"),
        [
            ("{path: a.txt, fraction: 9e-1}", {"fraction": 0.9}),
            ("{path: a.txt, fraction: '3'}", {"fraction": 3.0}),
            ("{path: 2024}", {"path": "2024"}),
            ("2024", {"path": "2024"}),
            ("{path: a.txt, name: 1.10, split: null}", {"name": "1.10", "split": "train"}),
            ("{path: a.txt, columns: prompt}", {"columns": ["prompt"]}),
            ("{path: a.txt, columns: [prompt, 5]}", {"columns": ["prompt", "5"]}),
            ("{path: text, data_files: [a.txt, 7]}", {"data_files": ["a.txt", "7"]}),
            ("{path: text, data_files: {train: 007}}", {"data_files": {"train": "007"}}),
            ("'" + '{"path": "a.txt", "name": 1.10, "fraction": 1e-1}' + "'", {"name": "1.10", "fraction": 0.1}),
        ],
    )
    def test_types_of_an_entry(self, parser_free, entry, expected):
        (found,) = parser_free(f"datasets:\n  - {entry}\n", dataset=False)[0].datasets
        assert {key: getattr(found, key) for key in expected} == expected
        json.dumps(vars(found))

    @pytest.mark.parametrize(
        ("entry", "words"),
        [
            ("{path: a.txt, fraction: 90%}", "`fraction` in `datasets` entry 1 is '90%'; give a share"),
            ("{path: a.txt, fraction: -1}", "`fraction` in `datasets` entry 1 is -1; give a share"),
            ("{path: a.txt, fraction: yes}", "`fraction` in `datasets` entry 1 is True; give a share"),
            ("{path: a.txt, fraction: .nan}", "`fraction` in `datasets` entry 1 is nan; give a share"),
            ("{path: a.txt, split: [train]}", "`split` in `datasets` entry 1 is ['train']; give a text"),
            ("{path: {a: 1}}", "`path` in `datasets` entry 1 is {'a': 1}; give a text"),
            ("{path: ''}", "`path` in `datasets` entry 1 is ''; give a text"),
            ("{path: a.txt, columns: {a: 1}}", "`columns` in `datasets` entry 1 is {'a': 1}; give names"),
            ("{path: a.txt, columns: []}", "`columns` in `datasets` entry 1 is []; give names"),
            (
                "{path: a.txt, data_files: {train: [[1]]}}",
                "`data_files` in `datasets` entry 1 is {'train': [[1]]}; give",
            ),
            ("{name: 5}", "`datasets` entry 1 has no `path`"),
            ("[a.txt]", "`datasets` holds ['a.txt'], which is no path"),
            ("null", "`datasets` holds None, which is no path"),
        ],
    )
    def test_what_is_of_no_such_type(self, parser_free, entry, words):
        with pytest.raises(CommandError) as error:
            parser_free(f"datasets:\n  - a.txt\n  - {entry}\n", dataset=False)
        assert words in str(error.value)


@pytest.mark.parametrize(
    "text", ["no", "1e-4", "12:30:45", "007", "1.10", "=", "2024-01-01", "null", "~", "", "a: b", "0x1F"]
)
def test_what_is_written_is_read_again(tmp_path, text):
    """By this package, and by those that take YAML 1.1 for what it is."""
    import yaml

    config = {"texts": [text, {"deep": text}], "numbers": [1e-5, 1e16, 3, True, None]}
    path = tmp_path / "run.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    assert to_values(load_yaml(str(path))) == config
    assert yaml.safe_load(path.read_text()) == config
