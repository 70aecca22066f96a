# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`trl-progrpo score`: files, models and adapters, means with errors."""

import json
import math
import re
import sys

import numpy as np
import pytest
from PIL import Image
from test_cli_sample import assert_one_sentence, shapes_adapter  # noqa: F401 (a fixture)

from trl_progrpo.cli.main import main
from trl_progrpo.cli.score import mean_and_error


MODEL = ["--model_name_or_path", "shapes", "--num_inference_steps", "2", "--batch_size", "3"]


def redness(prompts, images, **columns):
    """How red the middle is, 0 to 1, if the prompt says red; none for others."""
    return [
        image.getpixel((image.width // 2, image.height // 2))[0] / 255 if "red" in prompt else None
        for prompt, image in zip(prompts, images)
    ]


def wanted(prompts, images, target, **columns):
    """A reward that needs a column."""
    return target


@pytest.fixture
def pictures(tmp_path):
    """Four pictures of two sizes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, red, size in (("a", 0, 8), ("b", 51, 8), ("c", 102, 12), ("d", 255, 8)):
        Image.new("RGB", (size, size), (red, 0, 0)).save(folder / f"{name}.png")
    return folder


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_reward_of_the_folder_one_is_in(pictures, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_rewards_here.py").write_text("def one(prompts, images):\n    return [1.0] * len(images)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["score", "--reward", "my_rewards_here:one", str(pictures), "--prompt", "red"]) == 0
    assert re.search(r"one +1\.000", capsys.readouterr().out)


class TestFiles:
    def run(self, *argv):
        return main(["score", "--reward", "test_cli_score:redness", *map(str, argv)])

    def test_a_folder_with_texts_beside_the_images(self, pictures, tmp_path, capsys):
        for name, prompt in zip("abcd", ("red", "red\n", "a red thing", "blue")):
            (pictures / f"{name}.txt").write_text(prompt)
        assert self.run(pictures, "--output", tmp_path / "out.jsonl") == 0
        # Of 0, 0.2 and 0.4: mean 0.2, sample deviation 0.2.
        assert re.search(r"redness +0\.200 ± 0\.115", capsys.readouterr().out)
        written = records(tmp_path / "out.jsonl")
        assert [record["image"] for record in written] == [str(pictures / f"{name}.png") for name in "abcd"]
        assert [record["prompt"] for record in written] == ["red", "red", "a red thing", "blue"]
        assert [record["rewards"]["redness"] for record in written] == [
            0,
            pytest.approx(0.2),
            pytest.approx(0.4),
            None,
        ]

    def test_metadata_and_columns(self, pictures, tmp_path, capsys):
        rows = [{"file_name": f"{name}.png", "caption": "red", "target": i} for i, name in enumerate("dcba")]
        (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
        argv = [pictures, "--prompt_column", "caption", "--output", tmp_path / "out.jsonl", "--batch_size", "2"]
        argv = [*map(str, argv), "--reward_funcs", "test_cli_score:redness", "test_cli_score:wanted"]
        assert main(["score", *argv]) == 0
        out = capsys.readouterr().out
        assert re.search(r"over 4 images", out)
        assert re.search(r"wanted +1\.500 ± 0\.645", out)
        assert [record["rewards"]["wanted"] for record in records(tmp_path / "out.jsonl")] == [0, 1, 2, 3]

    def test_a_list_elsewhere_and_one_prompt_for_all(self, pictures, tmp_path, capsys):
        (tmp_path / "list.jsonl").write_text("".join(f'{{"image": "pictures/{name}.png"}}\n' for name in "bd"))
        assert self.run(tmp_path / "list.jsonl", "--prompt", "red") == 0
        assert re.search(r"redness +0\.600 ± 0\.400", capsys.readouterr().out)
        assert self.run(pictures, "--prompts", "blue") == 0
        assert re.search(r"redness +–", capsys.readouterr().out)

    def test_as_the_shell_gives_them(self, pictures, capsys, monkeypatch):
        """The reward, files, and their prompt: one row each, in the order given, then the mean."""
        monkeypatch.chdir(pictures.parent)
        files = [f"pictures/{name}.png" for name in "dcb"]
        assert self.run(*files, "--prompt", "a red fox") == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "pictures/d.png 1.000 pictures/c.png 0.400 pictures/b.png 0.200" in out
        assert "redness 0.533 ± 0.240" in out
        assert self.run("--prompt", "red", files[1]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert out.endswith("pictures/c.png 0.400")
        assert "standard error" not in out

    def test_long_paths_can_be_copied(self, tmp_path, capsys):
        """Folded, not shortened."""
        path = tmp_path / f"{'x' * 200}.png"
        Image.new("RGB", (8, 8)).save(path)
        assert self.run(path, "--prompt", "red") == 0
        out = capsys.readouterr().out
        assert out.count("x") >= 200
        assert "0.000" in out

    def test_files_and_folders_and_several_rewards(self, pictures, tmp_path, capsys):
        (pictures / "b.txt").write_text("red")
        (tmp_path / "more").mkdir()
        Image.new("RGB", (8, 8), "white").save(tmp_path / "more/e.png")
        (tmp_path / "more/e.txt").write_text("blue")
        assert self.run("--reward", "jpeg_compressibility", pictures / "b.png", tmp_path / "more", "--json") == 0
        written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [record["image"] for record in written] == [str(pictures / "b.png"), str(tmp_path / "more/e.png")]
        assert [record["rewards"]["redness"] for record in written] == [pytest.approx(0.2), None]
        assert all(record["rewards"]["jpeg_compressibility"] < 0 for record in written)

    def test_json_is_what_the_file_holds(self, pictures, tmp_path, capsys):
        assert self.run(pictures, "--prompt", "red", "--json", "--output", tmp_path / "out.jsonl") == 0
        out = capsys.readouterr().out
        assert out == (tmp_path / "out.jsonl").read_text()
        assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["red"] * 4

    @pytest.mark.parametrize(
        ("mode", "grey"), [("RGBA", 128), ("LA", 128), ("L", 128), ("P", 128), ("1", 255), ("I;16", 128)]
    )
    def test_alpha_and_one_channel(self, mode, grey, tmp_path, capsys):
        """What is transparent is white."""
        image = Image.new("L", (8, 8), grey)
        if mode == "I;16":
            image = Image.fromarray(np.full((8, 8), 257 * grey, np.uint16))
        image.convert(mode).save(tmp_path / "a.png")
        Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "b.png")
        assert self.run(tmp_path / "a.png", tmp_path / "b.png", "--prompt", "red", "--json") == 0
        rewards = [json.loads(line)["rewards"]["redness"] for line in capsys.readouterr().out.splitlines()]
        assert rewards == pytest.approx([grey / 255, 1.0], abs=1e-6)


class TestModels:
    def test_adapter_against_base(self, tmp_path, capsys, shapes_adapter):  # noqa: F811
        argv = ["score", "--reward_funcs", "shapes", *MODEL, "--dataset_name", "shapes", "--eval_samples", "5"]
        argv += [
            "--adapter",
            shapes_adapter,
            "--output",
            str(tmp_path / "o.jsonl"),
            "--save_images",
            str(tmp_path / "i"),
        ]
        assert main(argv) == 0
        out = capsys.readouterr().out
        written = records(tmp_path / "o.jsonl")
        base, adapter = (
            [record["rewards"]["shapes"] for record in written if record["source"] == source]
            for source in ("base", "adapter")
        )
        assert len(base) == len(adapter) == 5
        assert "over 5 images" in out
        numbers = [float(x) for x in re.search(r"shapes (.*)", out).group(1).replace("±", " ").split()]
        expected = [*mean_and_error(base), *mean_and_error(adapter)]
        expected += mean_and_error([b - a for a, b in zip(base, adapter)])
        assert numbers == pytest.approx(expected, abs=6e-4)
        # The images are those of the prompts, and scoring them again gives the same.
        again = ["score", "--reward", "shapes", str(tmp_path / "o.jsonl")]
        assert main([*again, "--output", str(tmp_path / "again.jsonl")]) == 0
        assert [r["rewards"] for r in records(tmp_path / "again.jsonl")] == [r["rewards"] for r in written]

    def test_one_image_is_not_many(self, capsys, shapes_adapter):  # noqa: F811
        argv = ["score", "--reward", "shapes", *MODEL, "--adapter", shapes_adapter, "--prompts", "a red circle"]
        assert main(argv) == 0
        assert "over 1 image" in capsys.readouterr().out.replace("images", "")

    def test_given_prompts(self, capsys):
        assert main(["score", "--reward_funcs", "shapes", *MODEL, "--prompts", "a red circle", "a blue square"]) == 0
        assert "over 2 images" in capsys.readouterr().out


def test_mean_and_error():
    assert mean_and_error([1.0, math.nan, 3.0]) == (2.0, 1.0)
    assert mean_and_error([2.0])[0] == 2.0
    assert math.isnan(mean_and_error([2.0])[1])
    assert all(math.isnan(value) for value in mean_and_error([math.nan]))


class TestMistakes:
    @pytest.mark.parametrize(
        ("argv", "parts"),
        [
            ([], ["give either images", "or --model_name_or_path"]),
            (["x", *MODEL], ["give either images", "or --model_name_or_path"]),
            (MODEL, ["give either --prompts or --dataset_name"]),
            ([*MODEL, "--dataset_name", "shapes", "--prompts", "a"], ["give either --prompts or --dataset_name"]),
            ([*MODEL, "--dataset_name", "shapes", "--eval_samples", "-1"], ["`--eval_samples` is -1"]),
            ([*MODEL, "--dataset_name", "shapes", "--dataset_test_split", "dev"], ["`dataset_test_split` is 'dev'"]),
            ([*MODEL, "--dataset_name", "shapes", "--prompt_column", "text"], ["no column 'text'", "are prompt, "]),
            ([*MODEL, "--dataset_name", "BAD"], ["row 0 has 2 in column 'prompt'"]),
            ([*MODEL, "--prompts", "a", " "], ["`--prompts` entry 1 has ' '"]),
            (["x"], ["'x' does not exist; give image files, folders or .jsonl files"]),
            (["x", "--prompt", "a", "--prompt", "b"], ["`--prompt` has 2 entries"]),
            (["EMPTY"], ["holds no images"]),
            (["UNTOLD"], ["a.png has no prompt under 'prompt'", "metadata.jsonl"]),
            (["l.jsonl"], ["line 1 of l.jsonl names no image"]),
            (["m.jsonl"], ["line 2 of m.jsonl is no JSON"]),
            (["n.jsonl"], ["line 1 of n.jsonl", "n.jsonl' cannot be read as an image"]),
            (["o.jsonl"], ["line 1 of o.jsonl has no prompt under 'prompt'; its other keys are text"]),
            (["q.jsonl"], ["has the key 'preview'", "rename it"]),
            (
                ["UNTOLD", "--prompts", "a", "--output", "l.jsonl/o.jsonl"],
                ["`--output`", "cannot be written"],
            ),
            ([*MODEL, "--prompts", "a", "--save_images", "l.jsonl"], ["`--save_images`", "cannot be written"]),
            (
                ["UNTOLD", "--prompts", "a", "--reward", "shaeps"],
                ["unknown reward function 'shaeps'; did you mean 'shapes'?"],
            ),
            (
                ["UNTOLD", "--prompts", "a", "--reward_func", "shapes"],
                ["--reward_func", "did you mean --reward_funcs?"],
            ),
        ],
    )
    def test_exit_2_and_one_sentence(self, argv, parts, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for folder in ("EMPTY", "UNTOLD"):
            (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "UNTOLD/a.png")
        (tmp_path / "l.jsonl").write_text('{"picture": "a.png", "prompt": "a"}\n')
        (tmp_path / "m.jsonl").write_text('{"image": "UNTOLD/a.png", "prompt": "a"}\n{"image"\n')
        (tmp_path / "n.jsonl").write_text('{"image": "n.jsonl", "prompt": "a"}\n')
        (tmp_path / "o.jsonl").write_text('{"image": "UNTOLD/a.png", "text": "a"}\n')
        (tmp_path / "q.jsonl").write_text('{"image": "UNTOLD/a.png", "prompt": "a", "preview": 1}\n')
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
        argv = ["bad.jsonl" if part == "BAD" else part for part in argv]
        (tmp_path / "bad.jsonl").write_text('{"prompt": 2}\n{"prompt": 3}\n')
        extra = ["--dataset_test_split", "train"] if "bad.jsonl" in argv else []
        reward = [] if "--reward" in argv else ["--reward", "shapes"]
        assert main(["score", *reward, *argv, *extra]) == 2
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.strip() and "Generating" not in line]
        assert out == ""
        assert len(lines) == 1, err
        for part in ["trl-progrpo score: error:", *parts]:
            assert part in lines[0]

    def test_a_reward_that_lacks_its_column(self, pictures, capsys):
        argv = ["score", "--reward", "test_cli_score:wanted", str(pictures), "--prompt", "a"]
        assert main(argv) == 2
        assert_one_sentence(capsys, "wanted", "target")

    @pytest.mark.parametrize("reward", ["pickscore", "geneval"])
    def test_a_built_in_reward_speaks_for_itself(self, reward, pictures, capsys, monkeypatch):
        """It is not the user's to mend."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert main(["score", "--reward", reward, str(pictures / "a.png"), "--prompt", "a red fox"]) == 2
        told = {"pickscore": "cannot load '", "geneval": "needs the dataset column `include`"}[reward]
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"trl-progrpo score: error: reward `{reward}` {told}")
        assert "raised" not in err

    def test_a_reward_that_cannot_be_had_is_told_before_anything_is_drawn(self, capsys, monkeypatch):
        def draw(*args):
            raise AssertionError

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("trl_progrpo.cli.score.base_and_adapter", draw)
        assert main(["score", "--reward", "pickscore", *MODEL, "--prompts", "a red circle"]) == 2
        assert_one_sentence(capsys, "error: reward `pickscore` cannot load")

    @pytest.mark.parametrize("name", ["o.json", "o.JSONL", "o"])
    def test_an_output_of_lines_of_json(self, name, pictures, tmp_path, capsys):
        argv = ["--reward", "test_cli_score:redness", str(pictures / "a.png"), "--prompt", "red"]
        assert main(["score", *argv, "--output", str(tmp_path / name)]) == 0
        assert len(records(tmp_path / name)) == 1

    def test_no_reward(self, pictures, capsys):
        assert main(["score", str(pictures), "--prompt", "a"]) == 2
        assert_one_sentence(capsys, "no reward is named", "--reward pickscore")
