# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Prompts from files, folders and mixtures, whole and as streams."""

import json
from collections import Counter

import pytest
from datasets import Dataset

from trl_progrpo.cli.base import CommandError
from trl_progrpo.cli.data import first_prompts, load_prompts, take_prompts
from trl_progrpo.cli.script_arguments import ScriptArguments
from trl_progrpo.data import is_stream


ROWS = [{"prompt": "a cat", "n": 1}, {"prompt": "a dog", "n": 2}, {"prompt": "a red fox", "n": 3}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def files(tmp_path):
    """The same three prompts as files of every kind."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "p.json").write_text(json.dumps(ROWS))
    (folder / "p.csv").write_text("prompt,n\n" + "".join(f"{row['prompt']},{row['n']}\n" for row in ROWS))
    (folder / "p.txt").write_text("a cat\n\na dog\n \t\na red fox\n\n")
    Dataset.from_list(ROWS).to_parquet(folder / "p.parquet")
    return folder


def arguments(name=None, **changes):
    return ScriptArguments(dataset_name=None if name is None else str(name), reward_funcs=["shapes"], **changes)


def prompts(dataset, column="prompt"):
    return [row[column] for row in dataset]


class TestFiles:
    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt", "parquet"])
    def test_every_kind(self, files, kind, streaming):
        train, test = load_prompts(arguments(files / f"p.{kind}", dataset_streaming=streaming))
        assert is_stream(train) == streaming
        assert prompts(train) == ["a cat", "a dog", "a red fox"]
        assert test is None
        if kind != "txt":
            assert prompts(train, "n") == [1, 2, 3]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_the_lines_of_a_text_get_the_name_of_the_prompts(self, files, streaming):
        for column in ("caption", "text"):
            train, _ = load_prompts(arguments(files / "p.txt", streaming=streaming), column)
            assert prompts(train, column) == ["a cat", "a dog", "a red fox"]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_folder_with_splits(self, tmp_path, streaming):
        folder = tmp_path / "set"
        folder.mkdir()
        (folder / "train.txt").write_text("a\nb\nc\n")
        (folder / "test.txt").write_text("d\ne\n")
        train, test = load_prompts(arguments(folder, dataset_streaming=streaming, eval_samples=3))
        assert prompts(train) == ["a", "b", "c"]
        assert sorted(set(prompts(test))) == ["d", "e"]
        assert len(test) == 3
        assert load_prompts(arguments(folder, dataset_test_split="none"))[1] is None

    def test_slices(self, files):
        sliced = arguments(files / "p.csv", dataset_train_split="train[:2]", dataset_test_split="train[2:]")
        train, test = load_prompts(sliced)
        assert (prompts(train), set(prompts(test))) == (["a cat", "a dog"], {"a red fox"})

    def test_held_out_share(self, tmp_path):
        path = tmp_path / "p.txt"
        path.write_text("\n".join(f"prompt {i}" for i in range(40)))
        for size, count in ((0.25, 10), (7, 7), (7.0, 7)):
            train, test = load_prompts(arguments(path, test_split_size=size, eval_samples=0))
            assert (len(train), len(test)) == (40 - count, count)
            assert set(prompts(train)) | set(prompts(test)) == {f"prompt {i}" for i in range(40)}
        again = load_prompts(arguments(path, test_split_size=7, eval_samples=0))[1]
        assert prompts(again) == prompts(test)

    def test_shapes(self):
        train, test = load_prompts(arguments("shapes", eval_samples=3))
        assert len(test) == 3
        assert not set(test["prompt"]) & set(train["prompt"])
        assert list(load_prompts(arguments("shapes", eval_samples=3))[1]["prompt"]) == list(test["prompt"])
        stream, _ = load_prompts(arguments("shapes", streaming=True))
        assert next(iter(stream)) == train[0]
        sliced, _ = load_prompts(arguments("shapes", dataset_train_split="train[:5]+test[-1:]"))
        assert prompts(sliced)[:5] == prompts(train)[:5]
        assert prompts(sliced)[5] not in prompts(train)
        for split in ("dev", "train[:x]"):
            with pytest.raises(CommandError, match=r"`dataset_train_split` is '.*'; use train, test, or a slice"):
                load_prompts(arguments("shapes", dataset_train_split=split))


class TestCounts:
    def test_fewer_prompts_than_samples_start_over(self):
        data = Dataset.from_dict({"prompt": ["a", "b"]})
        taken = take_prompts(data, 5)["prompt"]
        assert sorted(taken[:2]) == ["a", "b"]
        assert list(taken) == [*taken[:2], *taken[:2], taken[0]]
        assert len(take_prompts(data, 0)) == 2
        assert prompts(first_prompts(data.to_iterable_dataset(), 5)) == ["a", "b", "a", "b", "a"]


class TestMixture:
    @pytest.mark.parametrize("streaming", [False, True])
    def test_all_of_several(self, files, streaming):
        entries = [
            {"path": str(files / "p.txt")},
            {"path": str(files / "p.jsonl"), "columns": ["prompt"]},
            {"path": "csv", "data_files": str(files / "p.csv"), "split": "train", "columns": ["prompt"]},
        ]
        train, test = load_prompts(arguments(datasets=entries, streaming=streaming))
        # One after the other, as TRL has it; a run shuffles rows, and of a stream those in its buffer.
        assert prompts(train) == ["a cat", "a dog", "a red fox"] * 3
        assert test is None

    def test_further_columns_are_none_where_a_dataset_has_none(self, files):
        train, _ = load_prompts(arguments(datasets=[{"path": str(files / n)} for n in ("p.jsonl", "p.txt")]))
        assert prompts(train, "n") == [1, 2, 3, None, None, None]

    def test_shares_and_held_out(self, tmp_path):
        for name, count in (("a", 30), ("b", 100)):
            (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} {i}" for i in range(count)))
        entries = [{"path": str(tmp_path / "a.txt"), "fraction": 3}, {"path": str(tmp_path / "b.txt"), "fraction": 1}]
        train, test = load_prompts(arguments(datasets=entries, test_split_size=8, eval_samples=0))
        assert Counter(p[0] for p in [*prompts(train), *prompts(test)]) == {"a": 30, "b": 10}
        assert len(test) == 8

    def test_in_yaml_and_on_the_command_line(self, files, tmp_path):
        from trl_progrpo.cli.arguments import TrainParser

        common = [
            "--model_name_or_path",
            "shapes",
            "--reward_funcs",
            "shapes",
            "--use_cpu",
            "--output_dir",
            str(tmp_path),
        ]
        path = str(files / "p.txt")
        expected = [(path, "train", None), (path, "train[:3]", ["prompt"])]
        entry = {"path": path, "split": "train[:3]", "columns": ["prompt"]}
        by_yaml = TrainParser().parse(common, {"datasets": [path, entry]}, "run.yaml")[0]
        by_flag = TrainParser().parse([*common, "--datasets", path, json.dumps(entry)], {}, "")[0]
        for script_args in (by_yaml, by_flag):
            assert [(e.path, e.split, e.columns) for e in script_args.datasets] == expected
            assert prompts(load_prompts(script_args)[0]) == ["a cat", "a dog", "a red fox", "a cat", "a dog"]
        flags = [*common, "--datasets", "none", "--dataset_name", "shapes"]
        assert TrainParser().parse(flags, {"datasets": [path]}, "run.yaml")[0].datasets == []
        for bad, part in (([1], "no path and no mapping"), ([{"path": path, "nmae": 1}], "unknown key 'nmae'")):
            with pytest.raises(CommandError, match=part):
                TrainParser().parse(common, {"datasets": bad}, "run.yaml")


class TestMistakes:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"dataset_name": None}, "`dataset_name` is not set"),
            ({"datasets": [{"path": "a"}]}, "`dataset_name` is 'shapes' and `datasets` is set too"),
            ({"dataset_name": None, "datasets": [{"split": "train"}]}, "`datasets` entry 0 has no `path`"),
            ({"test_split_size": 0.0}, "`test_split_size` is 0.0"),
            ({"test_split_size": 1.5}, "`test_split_size` is 1.5; give a share"),
            ({"test_split_size": 0.1, "streaming": True}, "`test_split_size` cannot be taken from a stream"),
        ],
    )
    def test_of_arguments(self, changes, message):
        with pytest.raises(ValueError, match=message):
            ScriptArguments(**{"dataset_name": "shapes", "reward_funcs": ["shapes"], **changes})

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize(
        ("name", "changes", "message"),
        [
            ("none.jsonl", {}, "no such file"),
            ("p.xyz", {}, "a file of unknown kind; use one of .txt, .json"),
            ("p.txt", {"dataset_train_split": "dev"}, r"has no `dataset_train_split` 'dev' \(.*train"),
            ("p.txt", {"dataset_test_split": "dev"}, r"has no `dataset_test_split` 'dev' \(.*train"),
            ("empty", {}, "could not be loaded .*any data files"),
        ],
    )
    def test_of_names(self, files, name, changes, message, streaming):
        (files / "p.xyz").write_text("a")
        (files / "empty").mkdir()
        with pytest.raises(CommandError, match=message) as info:
            load_prompts(arguments(files / name, streaming=streaming, **changes))
        assert "\n" not in str(info.value)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("broken.jsonl", b'{"prompt": \n', "could not be loaded .*(JSON parse error|Expected object)"),
            ("latin.csv", "prompt\ncafé\n".encode("latin-1"), "could not be loaded .*utf-8"),
            ("empty.jsonl", b"", "holds no rows"),
        ],
    )
    def test_of_contents(self, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CommandError, match=message) as info:
            load_prompts(arguments(tmp_path / name))
        assert "\n" not in str(info.value)

    def test_of_a_stream(self, files):
        with pytest.raises(CommandError, match=r"`eval_samples` is 0, .* but it is a stream"):
            load_prompts(arguments(files / "p.csv", streaming=True, dataset_test_split="train", eval_samples=0))

    def test_of_counts(self, files):
        with pytest.raises(CommandError, match="`test_split_size` is 3, but there are 3 prompts"):
            load_prompts(arguments(files / "p.csv", test_split_size=3))

    @pytest.mark.parametrize(
        ("second", "streaming", "message"),
        [
            (
                {"path": "p.csv", "columns": ["promt"]},
                False,
                r"`datasets\[1\].columns` names 'promt', .*are prompt, n",
            ),
            ({"path": "none.csv"}, False, r"`datasets\[1\].path` is .*none.csv', but there is no such file"),
            ({"path": "p.csv", "fraction": 0.5}, False, r"`fraction` in `datasets` is \[None, 0.5\]"),
            ({"path": "text.csv"}, False, "`datasets` do not fit together .*columns: "),
        ],
    )
    def test_of_mixtures(self, files, second, streaming, message):
        (files / "text.csv").write_text("prompt,n\na,many\n")
        entries = [{"path": str(files / "p.jsonl")}, {**second, "path": str(files / second["path"])}]
        with pytest.raises(CommandError, match=message):
            load_prompts(arguments(datasets=entries, streaming=streaming))

    def test_offline(self):
        with pytest.raises(CommandError, match="is neither a file nor a folder here, and the Hub could not be asked"):
            load_prompts(arguments("user/prompts"))
