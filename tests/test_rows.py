# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Rows that a reward cannot score: found before weights load, kept from costing a run, and never decoded for nobody."""

import io
import os
from importlib.util import find_spec
from pathlib import Path

import datasets
import pytest
from PIL import Image

from trl_progrpo import ProGRPOTrainer
from trl_progrpo.cli.main import main
from trl_progrpo.data import RolloutStream, check_rows, without_unread
from trl_progrpo.rewards import GenEvalReward, RemoteReward, RewardError, RewardRunner, RowError
from trl_progrpo.rewards.detectors import ShapesDetector
from trl_progrpo.testing import check_reward_func


SHAPES = [f"a {color} {shape}" for color in ("red", "green", "blue") for shape in ("circle", "square", "triangle")]
FINE = {
    "ocr": {"prompt": 'a sign that says "OPEN"'},
    "shapes": {"prompt": "a red circle"},
    "shapes_strict": {"prompt": "two blue squares"},
    "geneval": {"prompt": "a dog", "include": [{"class": "dog", "count": 1}]},
}


def picture():
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


GARBAGE, CUT, GONE = {"bytes": b"no picture", "path": None}, picture(), {"bytes": None, "path": "/nowhere/1.png"}
CUT["bytes"] = CUT["bytes"][:-30]


def with_pictures(**bad):
    """Prompts of the shapes world with a picture each; `row_3=GARBAGE` makes one of them bad."""
    pictures = [bad.get(f"row_{index}", picture()) for index in range(len(SHAPES))]
    features = datasets.Features({"prompt": datasets.Value("string"), "reference": datasets.Image()})
    return datasets.Dataset.from_dict({"prompt": SHAPES, "reference": pictures}, features=features)


def reading(prompts, images, reference, **columns):
    """A reward that reads pictures."""
    return [
        0.0 if picture is None else float(picture.width + len(prompt)) for prompt, picture in zip(prompts, reference)
    ]


def reading_all(prompts, images, **columns):
    return reading(prompts, images, columns["reference"])


class Checking:
    """A reward with a `check_row` of the test's."""

    __name__ = "checking"

    def __init__(self, check_row):
        self.check_row = check_row

    def __call__(self, prompts, images, **columns):
        return [float(len(prompt)) for prompt in prompts]


def refuse_blue(prompt):
    if "blue" in prompt:
        raise ValueError(f"the prompt {prompt!r} is blue; say red.")


def check(rows, reward, on_error="raise"):
    check_rows(rows, "prompt", "`train_dataset`", [RewardRunner(reward)], on_error)


def as_table(rows):
    return datasets.Dataset.from_list(rows)


needs_reader = pytest.mark.skipif(not find_spec("rapidocr"), reason='needs `pip install "trl-progrpo[ocr]"`')


class TestBuiltIns:
    @pytest.mark.parametrize(
        ("reward", "row", "said"),
        [
            pytest.param(
                "ocr", {"prompt": "a street"}, "finds nothing in quotes in the prompt 'a street'", marks=needs_reader
            ),
            pytest.param("ocr", {"prompt": 'says "ПРИВЕТ"'}, "the model for Cyrillic", marks=needs_reader),
            ("shapes", {"prompt": "a red dog"}, "The caption 'a red dog' is not of the shapes world"),
            ("shapes_strict", {"prompt": "a red dog"}, "The caption 'a red dog' is not of the shapes world"),
            ("geneval", {"include": [{"class": "dog", "count": 0}]}, "the count 0 is no whole number from 1"),
            ("geneval", {"include": [{"class": "dog", "count": "2"}]}, "the count '2' is no whole number from 1"),
            ("geneval", {"include": [{"class": "dog", "color": "teal"}]}, "asks for the color 'teal'"),
            ("geneval", {"include": [{"klass": "dog"}]}, "'class' is missing"),
            ("geneval", {"include": [{"class": ""}]}, "the class '' is no name"),
            (
                "geneval",
                {"include": [{"class": "cow"}, {"class": "dog", "position": ["behind", 0]}]},
                "the relation 'behind' is none of left of",
            ),
            (
                "geneval",
                {"include": [{"class": "cow"}, {"class": "dog", "position": ["above", "0"]}]},
                "refers to '0', which is no whole number",
            ),
        ],
    )
    def test_tell_from_the_row(self, reward, row, said):
        rows = [FINE[reward], FINE[reward], {**FINE[reward], **row}]
        with pytest.raises(RowError, match=r"^`train_dataset` row 2.*reward `" + reward) as error:
            check(rows, reward)
        assert said in str(error.value)
        assert "\n" not in str(error.value)
        check(rows[:2], reward)

    def test_geneval_without_its_column(self):
        with pytest.raises(
            RowError, match=r"row 0 .*needs the dataset column `include`.* 2 of 2 rows cannot be scored: 0, 1"
        ):
            check(as_table([{"prompt": "a"}, {"prompt": "b"}]), "geneval")

    def test_classes_that_a_detector_never_finds(self):
        with pytest.raises(RowError, match="the shapes world has no class 'dog'; use circle, square, triangle"):
            check([FINE["geneval"]], GenEvalReward(ShapesDetector()))

    @needs_reader
    @pytest.mark.parametrize("text", [3, 2.5, True, ["OPEN"]])
    def test_a_target_that_is_no_text(self, text):
        with pytest.raises(RowError, match=r"row 1 \(prompt 'b'\): the dataset column `text` holds "):
            check([{"prompt": "a", "text": None}, {"prompt": "b", "text": text}], "ocr")

    @needs_reader
    def test_targets_that_do_not_apply(self):
        check(as_table([{"prompt": "a", "text": text} for text in (None, "", "  ", "OPEN")]), "ocr")

    @pytest.mark.parametrize("name", ["shapes", "geneval", "ocr"])
    def test_of_a_server(self, name, monkeypatch):
        monkeypatch.setattr("trl_progrpo.rewards.remote_client.RewardServers.check", lambda self, reward: None)
        reward = RemoteReward("http://127.0.0.1:1", name)
        # A server may read and find what nothing here does.
        may = {"ocr": {"prompt": '"ПРИВЕТ"'}, "geneval": {"include": [{"class": "dog", "color": "teal"}]}}
        check([FINE[name], {**FINE[name], **may.get(name, {})}], reward)
        bad = {"prompt": "a street", "include": [{"class": "dog", "count": 0}]}
        with pytest.raises(RowError, match="row 1"):
            check([FINE[name], {key: bad[key] for key in FINE[name]}], reward)


class TestOnesOwn:
    @pytest.mark.parametrize(
        ("check_row", "said"),
        [
            (refuse_blue, "row 6: reward `checking`: the prompt 'a blue circle' is blue; say red. 3 of 9 rows"),
            (
                lambda prompt: {}[prompt],
                "row 0: `check_row` of reward `checking` raised KeyError: 'a red circle' (test_rows.py, line",
            ),
            (lambda prompt: 1 / 0, "raised ZeroDivisionError: division by zero (test_rows.py, line"),
            (lambda prompt: False, "`check_row` of reward `checking` returned False; let it return nothing"),
            (lambda **columns: "bad", "returned 'bad'"),
        ],
    )
    def test_what_it_raises_and_returns(self, check_row, said):
        for rows in (as_table([{"prompt": prompt} for prompt in SHAPES]), [{"prompt": prompt} for prompt in SHAPES]):
            with pytest.raises(RowError) as error:
                check(rows, Checking(check_row))
            assert said in str(error.value)

    @pytest.mark.filterwarnings("error")
    def test_a_coroutine(self):
        async def check_row(prompt):
            pass

        with pytest.raises(RowError, match="`check_row` of reward `checking` returned <coroutine"):
            check([{"prompt": "a"}], Checking(check_row))

    def test_parameters_that_nothing_fills(self, make_config):
        with pytest.raises(
            ValueError, match="`check_row` of reward function `checking` has the parameter `row`, which `train_da"
        ):
            ProGRPOTrainer("missing", Checking(lambda row: None), make_config(), SHAPES)

    def test_it_is_given_what_it_names(self):
        given = []
        rows = as_table([{"prompt": "a", "target": 3, "other": 4}])
        check(rows, Checking(lambda target: given.append(target)))
        check(rows, Checking(lambda **row: given.append(row)))
        assert given == [3, {"prompt": "a", "target": 3, "other": 4}]

    def test_equal_rows_are_asked_about_once(self):
        asked = []
        rows = as_table([{"prompt": prompt, "number": index} for index, prompt in enumerate(SHAPES * 500)])
        check(rows, Checking(lambda prompt: asked.append(prompt)))
        assert asked == SHAPES
        check(rows, Checking(lambda prompt, number: asked.append(number)))
        assert asked[len(SHAPES) :] == list(range(len(rows)))

    def test_the_contract_knows_it(self):
        check_reward_func(Checking(lambda prompt: None), SHAPES[:2])
        with pytest.raises(AssertionError, match="the prompt 'a blue circle' is blue"):
            check_reward_func(Checking(refuse_blue), SHAPES[-3:])
        with pytest.raises(AssertionError, match="`check_row` of reward `checking` has the parameter `row`"):
            check_reward_func(Checking(lambda row: None))


class TestPictures:
    @pytest.mark.parametrize(
        ("bad", "said"), [(GARBAGE, "cannot identify"), (CUT, "truncated"), (GONE, "/nowhere/1.png")]
    )
    @pytest.mark.parametrize("reward", [reading, reading_all])
    def test_of_a_column_that_is_read_are_decoded(self, bad, said, reward):
        with pytest.raises(
            RowError, match=r"row 4 \(prompt 'a green square'\): reward `\w+` reads the column 'reference'"
        ) as e:
            check(with_pictures(row_4=bad), reward)
        assert said in str(e.value)
        assert " object at " not in str(e.value)
        with pytest.raises(RowError, match="row 0"):
            check(with_pictures(row_0=bad).to_iterable_dataset(), reward)

    def test_that_are_not_there_may_be_none(self):
        check(with_pictures(row_4=None), reading)

    def test_of_a_list(self, tmp_path):
        (tmp_path / "cut.png").write_bytes(CUT["bytes"])
        rows = [{"prompt": "a", "reference": Image.open(tmp_path / "cut.png")}]
        with pytest.raises(RowError, match=r"row 0 .*'reference', whose value cannot be decoded"):
            check(rows, reading)
        check([{"prompt": "a", "reference": Image.open(tmp_path / "cut.png")}], "jpeg_compressibility")

    @pytest.mark.parametrize("reward", ["shapes", "jpeg_compressibility", "pickscore", "geneval"])
    def test_of_a_column_that_nobody_reads_are_not(self, reward):
        rows = with_pictures(row_0=GARBAGE, row_1=GONE)
        for given in (rows, rows.to_iterable_dataset()):
            kept = without_unread(given, "prompt", [RewardRunner(reward)])
            assert kept.column_names == ["prompt"]
            assert [row["prompt"] for row in kept] == SHAPES

    def test_nested_ones(self):
        features = datasets.Features(
            {"prompt": datasets.Value("string"), "reference": datasets.List(datasets.Image())}
        )
        rows = datasets.Dataset.from_dict(
            {"prompt": SHAPES[:1], "reference": [[picture(), GARBAGE]]}, features=features
        )
        assert without_unread(rows, "prompt", [RewardRunner("shapes")]).column_names == ["prompt"]
        with pytest.raises(RowError, match="'reference', whose value cannot be decoded"):
            check(rows, reading)


ERRORS = "reward_errors/exception"
SETTINGS = {
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_generations": 2, "num_expansions": None,
    "prune_steps": None, "prune_sizes": None, "num_inference_steps": 2, "rollout_batch_size": 4, "max_steps": 4,
    "train_sampling_strategy": "sequential",
}  # fmt: skip


@pytest.fixture
def shapes_trainer(make_config):
    def make(
        train_dataset, reward_funcs="shapes", model="shapes", eval_dataset=None, eval_reward_funcs=None, **settings
    ):
        return ProGRPOTrainer(
            model,
            reward_funcs,
            make_config(**{**SETTINGS, **settings}),
            train_dataset,
            eval_dataset,
            eval_reward_funcs=eval_reward_funcs,
        )

    return make


def broken():
    yield from ({"prompt": prompt} for prompt in SHAPES[:4])
    raise ConnectionError("it is gone")


def without_a_prompt():
    yield from ({"prompt": prompt} for prompt in [*SHAPES[:4], " "])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (broken, r"cannot be read beyond row 4 of this pass .ConnectionError: it is gone"),
        (without_a_prompt, "holds a row that has ' ' in column 'prompt'"),
    ],
)
def test_what_is_wrong_with_a_row_of_a_stream_is_told_as_such(rows, said):
    stream = RolloutStream(datasets.IterableDataset.from_generator(rows), "prompt", 2, 1, seed=0, shuffle=False)
    passing = iter(stream)
    assert [next(passing)["prompt"] for _ in range(4)] == SHAPES[:4]
    with pytest.raises(RowError, match=said):
        next(passing)


class TestTrainer:
    """`missing` is no model: what is refused for a row is refused before anybody looks for weights."""

    @pytest.mark.parametrize("place", ["train", "eval", "one of several", "watched", "previews", "list"])
    def test_refuses_a_row_before_weights_load(self, make_config, place):
        bad, red = Checking(refuse_blue), SHAPES[:3]
        sets = {
            "train": {"train_dataset": SHAPES, "reward_funcs": bad},
            "list": {"train_dataset": [{"prompt": prompt, "n": 1} for prompt in SHAPES], "reward_funcs": bad},
            "eval": {"train_dataset": red, "eval_dataset": SHAPES, "reward_funcs": bad},
            "one of several": {"train_dataset": red, "eval_dataset": {"a": red, "b": SHAPES}, "reward_funcs": bad},
            "watched": {
                "train_dataset": red,
                "eval_dataset": SHAPES,
                "reward_funcs": "shapes",
                "eval_reward_funcs": bad,
            },
            "previews": {"train_dataset": SHAPES, "reward_funcs": "shapes", "preview_reward_funcs": [bad]},
        }[place]
        named = {"eval": "`eval_dataset`", "watched": "`eval_dataset`", "one of several": r"`eval_dataset\['b'\]`"}
        with pytest.raises(
            RowError, match=rf"{named.get(place, '`train_dataset`')} row 6: reward `checking`: .* is blue; say red"
        ):
            ProGRPOTrainer("missing", args=make_config(), **sets)

    def test_a_set_that_is_evaluated_later(self, shapes_trainer):
        trainer = shapes_trainer(SHAPES)
        with pytest.raises(RowError, match="`eval_dataset` row 1: reward `shapes`: The caption 'a dog'"):
            trainer.evaluate(["a red circle", "a dog"])
        rows = with_pictures(row_0=GARBAGE).select(range(2))
        assert trainer.evaluate(rows)["eval_num_prompts"] == 2

    def test_pictures_that_nobody_reads_cost_nothing(self, shapes_trainer):
        rows = with_pictures(row_0=GARBAGE, row_1=GONE)
        trainer = shapes_trainer(rows, max_steps=1, eval_dataset=rows)
        trainer.train_dataset = without_unread(rows.to_iterable_dataset(), "prompt", [trainer.reward_runner])
        trainer.train()
        assert trainer.evaluate()["eval_num_prompts"] == len(rows)

    def test_a_row_of_a_stream_keeps_what_is_trained(self, shapes_trainer, tmp_path):
        rows = with_pictures(row_4=GARBAGE)
        with pytest.raises(RowError, match=r"`train_dataset` holds a row .*'a green square'.*'reference'") as error:
            shapes_trainer(rows.to_iterable_dataset(), reading).train()
        place = str(tmp_path / "out" / "checkpoint-2")
        assert f"by step 2 is in {place!r}" in error.value.__notes__[0]
        trainer = shapes_trainer(with_pictures().to_iterable_dataset(), reading)
        trainer.train(resume_from_checkpoint=place)
        assert trainer.state.global_step == 4

    def test_a_reward_that_fails_names_the_prompt_and_keeps_what_is_trained(self, shapes_trainer, tmp_path):
        def failing(prompts, images, **columns):
            return [{"a blue circle": None}.get(prompt, 1.0) + 1 for prompt in prompts]

        with pytest.raises(
            RewardError, match=r"raised TypeError.* The image is of the prompt 'a blue circle'\."
        ) as error:
            shapes_trainer(SHAPES, failing).train()
        assert "checkpoint-3" in error.value.__notes__[0]
        assert os.listdir(tmp_path / "out") == ["checkpoint-3"]

    def test_nothing_is_kept_where_nothing_is_trained(self, shapes_trainer, tmp_path):
        def failing(prompts, images, **columns):
            raise KeyError("x")

        with pytest.raises(RewardError, match="raised KeyError") as error:
            shapes_trainer(SHAPES, failing).train()
        assert not getattr(error.value, "__notes__", None)
        assert not list(tmp_path.glob("out/checkpoint-*"))

    @pytest.mark.parametrize("streaming", [False, True])
    def test_skip_leaves_such_rows_out(self, shapes_trainer, streaming):
        rows = with_pictures(row_1=GARBAGE, row_4=CUT)
        train = rows.to_iterable_dataset() if streaming else rows
        with pytest.warns(UserWarning, match=r'2 of 9 rows cannot be scored: 1, 4\. With `on_reward_error="skip"`'):
            trainer = shapes_trainer(train, reading, on_reward_error="skip", eval_dataset=rows)
        with pytest.warns(UserWarning, match='With `on_reward_error="skip"` images without a score are left out'):
            trainer.train()
        lost = [entry[ERRORS] for entry in trainer.state.log_history if ERRORS in entry]
        assert lost == [2, 0, 2, 0]
        assert trainer.evaluate()["eval_num_failed"] == 2

    def test_skip_heeds_a_check_of_a_reward_that_would_score(self, shapes_trainer):
        with pytest.warns(UserWarning, match="3 of 9 rows cannot be scored: 6, 7, 8"):
            trainer = shapes_trainer(SHAPES, Checking(refuse_blue), on_reward_error="skip", max_steps=5)
        with pytest.warns(UserWarning, match="is blue; say red"):
            trainer.train()
        lost = [entry[ERRORS] for entry in trainer.state.log_history if ERRORS in entry]
        assert lost == [0, 0, 0, 4, 2]


class TestCommand:
    ARGV = [
        "train", "--model_name_or_path", "shapes", "--num_generations", "2", "--num_inference_steps", "2", "--use_cpu",
        "--report_to", "none", "--per_device_train_batch_size", "4", "--save_strategy", "no", "--plot", "false",
        "--max_steps", "4",
    ]  # fmt: skip

    @pytest.mark.parametrize("dry", [True, False])
    def test_a_row_is_told_by_the_name_of_the_file(self, dry, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(
            "trl_progrpo.progrpo_trainer.load_pipeline", lambda *_, **__: pytest.fail("weights are loaded")
        )
        (tmp_path / "prompts.txt").write_text("\n".join([*SHAPES, "a red dog"]))
        argv = [*self.ARGV, "--dataset_name", str(tmp_path / "prompts.txt"), "--reward_funcs", "shapes"]
        assert main([*argv, "--output_dir", str(tmp_path / "out"), *(["--dry_run"] if dry else [])]) == 2
        told = capsys.readouterr().err
        assert "prompts.txt' row 9: reward `shapes`: The caption 'a red dog' is not of the shapes world" in told

    def test_a_failure_in_mid_run_says_how_to_go_on(self, tmp_path, capsys, monkeypatch):
        (tmp_path / "own_reward.py").write_text(
            "calls = []\n"
            "def late(prompts, images, **columns):\n"
            "    calls.append(prompts)\n"
            "    return [1.0 * i for i in range(len(prompts))] if len(calls) < 3 else [None + 1]\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        (tmp_path / "prompts.txt").write_text("\n".join(SHAPES))
        argv = [*self.ARGV, "--dataset_name", str(tmp_path / "prompts.txt"), "--reward_funcs", "own_reward:late"]
        assert main([*argv, "--output_dir", str(tmp_path / "out")]) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert "raised TypeError" in told
        assert f"is in '{tmp_path / 'out' / 'checkpoint-2'}'" in told
        assert "`resume_from_checkpoint`" in told
        assert Path(tmp_path, "out", "checkpoint-2", "pytorch_lora_weights.safetensors").is_file()
