# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Prompts and columns arrive as they stand in their files, whole and as streams."""

import codecs
import gzip
import json
import os

import datasets
import pytest

from trl_progrpo.cli import prompt_files
from trl_progrpo.cli.base import CommandError
from trl_progrpo.cli.data import load_prompts
from trl_progrpo.cli.script_arguments import ScriptArguments
from trl_progrpo.data import RolloutStream


MARK = codecs.BOM_UTF8


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path / "files")


@pytest.fixture(params=[False, True], ids=["whole", "stream"])
def rows(request):
    """A function from a file, and what is to be in it, to its rows."""

    def rows(name, content=None, folder=None, prompt_column="prompt"):
        if content is not None:
            os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
            with open(name, "wb") as file:
                file.write(content if isinstance(content, bytes) else content.encode())
        arguments = ScriptArguments(dataset_name=folder or name, reward_funcs=["shapes"], streaming=request.param)
        return list(load_prompts(arguments, prompt_column)[0])

    return rows


class TestMarks:
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("p.txt", "a\r\nb\r\n"),
            ("p.csv", "prompt\r\na\r\nb\r\n"),
            ("p.tsv", "prompt\r\na\r\nb\r\n"),
            ("p.jsonl", '{"prompt": "a"}\r\n{"prompt": "b"}\r\n'),
            ("p.json", '[{"prompt": "a"}, {"prompt": "b"}]'),
        ],
    )
    def test_of_one_file(self, rows, name, content):
        assert rows(name, MARK + content.encode()) == [{"prompt": "a"}, {"prompt": "b"}]

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("{}.txt", "{}\n"),
            ("{}.csv", "prompt\n{}\n"),
            ("{}.jsonl", '{{"prompt": "{}"}}\n'),
            ("{}.json", '[{{"prompt": "{}"}}]'),
        ],
    )
    def test_of_all_files_of_a_folder(self, rows, name, content):
        os.mkdir("folder")
        for text in "abc":
            with open(f"folder/{name.format(text)}", "wb") as file:
                file.write(MARK + content.format(text).encode())
        assert rows("folder") == [{"prompt": text} for text in "abc"]

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
    @pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl"])
    def test_other_encodings_are_refused_with_the_cure(self, rows, name, encoding):
        content = {"txt": "café\n", "csv": "prompt,n\ncafé,1\n", "jsonl": '{"prompt": "café"}\n'}[name.split(".")[1]]
        with pytest.raises(CommandError, match=f"`dataset_name` '{name}' .*{name}.*save it as UTF-8"):
            rows(name, content.encode(encoding))

    def test_old_line_ends(self, rows):
        assert rows("p.txt", "a\rb\r") == rows("p.csv", "prompt\ra\rb\r") == [{"prompt": "a"}, {"prompt": "b"}]


class TestTables:
    def test_only_an_empty_cell_is_missing(self, rows):
        words = ["NULL", "null", "NA", "N/A", "#N/A", "nan", "NaN", "None", "<NA>", "-nan", "1.#IND"]
        lines = [f'"a sign, ""{word}""",{word},{word}' for word in words] + ["nothing,,", "null,x,y"]
        found = rows("p.csv", "prompt,text,other\n" + "\n".join(lines) + "\n")
        assert [row["text"] for row in found] == [row["other"] for row in found][:-1] + ["x"] == [*words, None, "x"]
        assert [row["prompt"] for row in found] == [f'a sign, "{word}"' for word in words] + ["nothing", "null"]

    @pytest.mark.parametrize(
        ("cells", "values"),
        [
            (["1", "-2", "0"], [1, -2, 0]),
            (["1", "", "3"], [1.0, None, 3.0]),
            (["1e-3", ".5", " 2"], [0.001, 0.5, 2.0]),
            (["007", "8", "9"], ["007", "8", "9"]),
            (["1", "2", "NA"], ["1", "2", "NA"]),
            (["+5", "1", "2"], ["+5", "1", "2"]),
            (["12345678901234567890", "1", "2"], ["12345678901234567890", "1", "2"]),
            (["12:30", "1_000", "0x1F"], ["12:30", "1_000", "0x1F"]),
            (["2024-01-01", "2024-01-02", "2024-01-03"], ["2024-01-01", "2024-01-02", "2024-01-03"]),
            (["True", "FALSE", "true"], [True, False, True]),
            (["True", "no", "1"], ["True", "no", "1"]),
            (["", "", ""], [None, None, None]),
        ],
    )
    def test_a_column_is_numbers_if_all_its_values_are(self, rows, cells, values):
        found = rows("p.csv", "prompt,n\n" + "".join(f"p,{cell}\n" for cell in cells))
        assert [row["n"] for row in found] == values
        assert [type(row["n"]) for row in found] == [type(value) for value in values]

    def test_prompts_and_texts_never_are(self, rows):
        content = "caption,text\n1,1.10\n2,2.50\n"
        assert rows("p.csv", content, prompt_column="caption") == [
            {"caption": "1", "text": "1.10"}, {"caption": "2", "text": "2.50"},
        ]  # fmt: skip
        os.mkdir("packed")
        with gzip.open("packed/train.csv.gz", "wb") as file:
            file.write(content.encode())
        assert [row["text"] for row in rows("packed", prompt_column="caption")] == ["1.10", "2.50"]

    def test_lines_within_quotes_and_tabs(self, rows):
        assert rows("p.csv", 'prompt,n\n"two\nlines",1\n') == [{"prompt": "two\nlines", "n": 1}]
        assert rows("p.tsv", "prompt\ttext\na, b\t007\n") == [{"prompt": "a, b", "text": "007"}]

    def test_a_comma_too_many(self, rows):
        """pandas would take the first values for names of the rows, and what follows the comma for the prompt."""
        with pytest.raises(CommandError, match=r"rows of p.csv have more values .*in double quotes"):
            rows("p.csv", "prompt,n\na cat, with a hat,1\na dog, too,2\n")

    def test_by_a_mixture(self):
        with open("p.csv", "w") as file:
            file.write("prompt,text\nNULL,007\n")
        entries = [{"path": "csv", "data_files": "p.csv"}, {"path": "p.csv", "columns": "prompt"}]
        found = load_prompts(ScriptArguments(datasets=entries, reward_funcs=["shapes"]))[0]
        assert list(found) == [{"prompt": "NULL", "text": "007"}, {"prompt": "NULL", "text": None}]


def lines(*found):
    return "".join(json.dumps(row) + "\n" for row in found)


class TestJson:
    @pytest.mark.parametrize(
        ("early", "late"),
        [(None, "OPEN"), ([], ["a"]), (None, {"a": 1}), (1, 1.5), ({"a": None}, {"a": "x"}), (None, True)],
    )
    def test_a_type_that_shows_late(self, rows, early, late, monkeypatch):
        monkeypatch.setattr(prompt_files, "_CHUNK", 200)
        given = [{"prompt": f"p {i}", "x": early} for i in range(20)] + [{"prompt": "q", "x": late}]
        assert rows("p.jsonl", lines(*given)) == given

    def test_after_ten_megabytes(self, rows):
        given = [{"prompt": "p" * 500, "text": None}] * 22_000 + [{"prompt": "q", "text": "OPEN"}]
        found = rows("p.jsonl", lines(*given))
        assert (len(found), found[0], found[-1]) == (len(given), given[0], given[-1])

    def test_dates_are_texts(self, rows):
        given = [
            {"prompt": "a", "text": "2024-01-01", "more": {"d": ["2024-01-01 10:00"]}},
            {"prompt": "b", "text": None},
        ]
        assert rows("p.jsonl", lines(*given))[0] == given[0]
        assert rows("p.json", json.dumps(given))[0]["text"] == "2024-01-01"

    def test_texts_beside_other_values_stay_as_they_are(self, rows):
        texts = ["5", 7, "null", "007", None, True, "a", '"b"']
        found = rows("p.jsonl", lines(*({"prompt": "null", "text": text} for text in texts)))
        assert [row["text"] for row in found] == ["5", "7", "null", "007", None, "true", "a", '"b"']
        assert {row["prompt"] for row in found} == {"null"}

    def test_slices_of_such_a_file(self):
        with open("p.jsonl", "w") as file:
            file.write(lines({"prompt": "a", "text": "1"}, {"prompt": "b", "text": 2}, {"prompt": "c", "text": None}))
        sliced = {"dataset_train_split": "train[1:]", "dataset_test_split": "train[:1]", "eval_samples": 0}
        train, test = load_prompts(ScriptArguments(dataset_name="p.jsonl", reward_funcs=["shapes"], **sliced))
        assert (list(train["text"]), list(test["text"])) == (["2", None], ["1"])

    def test_of_a_stream_that_is_not_read_before(self):
        """From the Hub, say: the sentence names the column and the cure."""
        with open("p.jsonl", "w") as file:
            file.write(
                lines(*[{"prompt": f"p {i}", "text": None} for i in range(20)], {"prompt": "q", "text": "OPEN"})
            )
        stream = datasets.load_dataset("json", data_files="p.jsonl", split="train", streaming=True, chunksize=200)
        rollouts = RolloutStream(stream, "prompt", prompts_per_rollout=2, repeats=1, seed=0, shuffle=False)
        with pytest.raises(
            ValueError, match=r"`train_dataset` cannot be read beyond row \d+ .*column 'text' .*give every column"
        ):
            [row for row, _ in zip(rollouts, range(30))]


@pytest.mark.parametrize(
    ("name", "content"),
    [("p.txt", "{}\n"), ("p.csv", "prompt\n{}\n"), ("p.jsonl", '{{"prompt": "{}"}}\n'), ("folder/train.txt", "{}\n")],
)
def test_a_file_replaced_under_the_same_date_is_read_anew(name, content):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    found = []
    for text in ("old", "new"):
        with open(name, "w") as file:
            file.write(content.format(text))
        os.utime(name, ns=(10**18, 10**18))
        arguments = ScriptArguments(dataset_name=os.path.dirname(name) or name, reward_funcs=["shapes"])
        found += load_prompts(arguments)[0]["prompt"]
    assert found == ["old", "new"]
