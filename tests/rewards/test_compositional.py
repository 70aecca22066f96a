# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from trl_progrpo.rewards import REWARDS, GenEvalReward, RewardRunner
from trl_progrpo.rewards.compositional_rules import is_placed, read_specification, shapes_metadata
from trl_progrpo.rewards.detectors import UNCLEAR, Detection, ShapesDetector, color_name
from trl_progrpo.testing import check_reward_func
from trl_progrpo.tiny import verify
from trl_progrpo.tiny.world import (
    ALL_OBJECTS,
    KINDS,
    PALETTE,
    Caption,
    all_captions,
    parse_caption,
    render,
    sample_scenes,
)


OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SIDE = 100


def found(label, x=50, y=50, size=10, score=0.9, color=None):
    return Detection(label, (x - size / 2, y - size / 2, x + size / 2, y + size / 2), score, color)


def score(include, detections, *, exclude=None, tag=None, image=None, **options):
    """Graded and strict reward of one picture in which a detector finds `detections`."""
    image = image or Image.new("RGB", (SIDE, SIDE))
    columns = {"include": [include], "exclude": [exclude], "tag": [tag]}
    rewards = [
        GenEvalReward(lambda images, classes: [detections], strict=strict, **options)(["a"], [image], **columns)[0]
        for strict in (False, True)
    ]
    assert isinstance(rewards[1], float)
    return tuple(rewards)


class TestCounts:
    @pytest.mark.parametrize(("there", "graded"), [(0, 0.0), (1, 0.5), (2, 1.0), (3, 0.5)])
    def test_exactly_two(self, there, graded):
        include, exclude = [{"class": "bear", "count": 2}], [{"class": "bear", "count": 3}]
        bears = [found("bear", x=20 * i) for i in range(there)]
        assert score(include, bears, exclude=exclude, tag="counting") == (graded, float(there == 2))

    def test_at_least_two(self):
        assert score([{"class": "bear", "count": 2}], [found("bear")] * 5) == (1.0, 1.0)

    def test_other_classes_neither_help_nor_harm(self):
        assert score([{"class": "bear", "count": 1}], [found("dog")]) == (0.0, 0.0)
        assert score([{"class": "bear", "count": 1}], [found("dog"), found("bear")]) == (1.0, 1.0)

    def test_two_classes(self):
        include = [{"class": "bear", "count": 1}, {"class": "dog", "count": 1}]
        assert score(include, [found("dog")]) == (0.5, 0.0)
        assert score(include, [found("dog"), found("bear")]) == (1.0, 1.0)

    def test_an_empty_picture_earns_nothing_for_what_it_lacks(self):
        exclude = [{"class": name, "count": 1} for name in ("cat", "cow", "car")]
        assert score([{"class": "bear", "count": 1}], [], exclude=exclude) == (0.0, 0.0)
        assert score([], [], exclude=exclude) == (1.0, 1.0)
        assert score([], [found("cow")], exclude=exclude) == (pytest.approx(2 / 3), 0.0)

    def test_unsure_detections(self):
        bear, include = [found("bear", score=0.5)], [{"class": "bear", "count": 1}]
        options = {"min_score": 0.3, "counting_min_score": 0.9}
        assert score(include, bear, tag="single_object", **options) == (1.0, 1.0)
        assert score(include, bear, tag="counting", **options) == (0.0, 0.0)
        assert score(include, bear, tag="counting", min_score=0.5) == (1.0, 1.0)
        assert score(include, bear, min_score=0.51) == (0.0, 0.0)


class TestColors:
    INCLUDE = [{"class": "dog", "count": 2, "color": "red"}]

    def test_that_the_detector_names(self):
        dogs = [found("dog", color="red"), found("dog", color="blue")]
        assert score(self.INCLUDE, dogs) == (0.75, 0.0)
        assert score(self.INCLUDE, [*dogs, found("dog", score=0.1, color="red")]) == (1.0, 1.0)

    def test_that_are_read_from_the_box(self):
        image = Image.new("RGB", (SIDE, SIDE), "green")
        ImageDraw.Draw(image).rectangle((20, 20, 40, 40), fill="red")
        assert score(self.INCLUDE, [found("dog", 30, 30, 20), found("dog", 31, 31, 20)], image=image) == (1.0, 1.0)
        assert score(self.INCLUDE, [found("dog", 30, 30, 20), found("dog", 70, 70, 20)], image=image) == (0.75, 0.0)

    def test_however_they_are_spelt(self):
        image = Image.new("RGB", (SIDE, SIDE), "gray")
        for color in ("gray", "grey", "Grey "):
            assert score([{"class": "cup", "color": color}], [found("cup")], image=image) == (1, 1)

    def test_that_nobody_could_name(self):
        include = [[{"class": "cup", "color": "oragne"}]]
        with pytest.raises(ValueError, match=r"asks for the color 'oragne'.* did you mean 'orange'\? it knows black"):
            GenEvalReward()(["a"], [Image.new("RGB", (8, 8))], include=include)
        names = {"oragne"}
        GenEvalReward(lambda images, classes: [[]], name_color=lambda image, box: names.pop())(
            ["a"], [Image.new("RGB", (8, 8))], include=include
        )

    def test_are_only_asked_where_they_matter(self):
        def never(image, box):
            raise AssertionError

        assert score([{"class": "dog", "count": 1, "color": None}], [found("dog")], name_color=never) == (1.0, 1.0)

    def test_two_of_one_class(self):
        include = [{"class": "dog", "count": 1, "color": color} for color in ("red", "blue")]
        assert score(include, [found("dog", color="red")]) == (0.75, 0.0)
        assert score(include, [found("dog", color="red"), found("dog", color="blue")]) == (1.0, 1.0)

    @pytest.mark.parametrize(
        ("name", "css"),
        [(name, name) for name in "red orange yellow green blue purple pink brown black white gray".split()]
        + [("red", "crimson"), ("brown", "saddlebrown"), ("brown", "sienna"), ("blue", "navy"), ("blue", "skyblue"),
           ("green", "limegreen"), ("yellow", "gold"), ("pink", "hotpink"), ("purple", "indigo"), ("gray", "dimgray"),
           ("orange", "darkorange"), ("blue", "turquoise"), ("white", "ivory"), ("black", "#0d0d20")],
    )  # fmt: skip
    def test_names(self, name, css):
        image = Image.new("RGB", (SIDE, SIDE), "white" if name == "black" else "black")
        ImageDraw.Draw(image).ellipse((10, 10, 60, 60), fill=css)
        noise = np.random.default_rng(0).integers(-8, 9, (SIDE, SIDE, 3))
        noisy = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
        assert color_name(image, (10, 10, 60, 60)) == name
        assert color_name(noisy, (10, 10, 60, 60)) == name

    def test_names_of_the_shapes_world(self):
        for name, color in PALETTE.items():
            pixel = tuple(round(255 * value) for value in color)
            assert color_name(Image.new("RGB", (8, 8), pixel), (0, 0, 8, 8)) == name

    @pytest.mark.parametrize("turn", [0, 90, 180, 270])
    def test_only_the_middle_of_a_box_is_read(self, turn):
        image = Image.new("RGB", (SIDE, SIDE), "blue")
        # More than half of the middle, and less of whatever is larger.
        ImageDraw.Draw(image).rectangle((25, 0, 54, SIDE), fill="red")
        assert color_name(image.rotate(turn), (0, 0, SIDE, SIDE)) == "red"

    @pytest.mark.parametrize("box", [(0, 0, 0, 0), (99.6, 99.6, 100, 100), (-5, -5, 200, 200), (150, 150, 160, 160)])
    def test_boxes_at_and_over_the_edge(self, box):
        assert color_name(Image.new("RGB", (SIDE, SIDE), "red"), box) == "red"


class TestPositions:
    INCLUDE = [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}]

    @pytest.mark.parametrize(
        ("x", "y", "relations"),
        [(20, 50, {"left of"}), (80, 50, {"right of"}), (50, 20, {"above"}), (50, 80, {"below"}),
         (20, 20, {"left of", "above"}), (80, 82, {"right of", "below"}), (30, 85, {"below"}), (50, 50, set()),
         # Closer than a tenth of both sizes.
         (48.1, 50, set()), (47.9, 50, set()), (45, 50, {"left of"})],
    )  # fmt: skip
    def test_of_boxes(self, x, y, relations):
        boxes = [found("cat", x, y).box, found("dog").box]
        assert {relation for relation in OPPOSITE if is_placed(boxes[0], relation, boxes[1])} == relations
        assert {relation for relation in OPPOSITE if is_placed(boxes[1], OPPOSITE[relation], boxes[0])} == relations

    def test_large_things_must_be_further_apart(self):
        assert is_placed(found("cat", 40).box, "left of", found("dog").box)
        assert not is_placed(found("cat", 40, size=50).box, "left of", found("dog", size=50).box)

    def test_reward(self):
        assert score(self.INCLUDE, [found("dog"), found("cat", 20)]) == (1.0, 1.0)
        assert score(self.INCLUDE, [found("dog"), found("cat", 80)]) == (pytest.approx(2 / 3), 0.0)
        assert score(self.INCLUDE, [found("cat", 20)]) == (pytest.approx(1 / 3), 0.0)

    def test_every_pair_counts(self):
        include = [{"class": "dog", "count": 2}, {"class": "cat", "count": 1, "position": ["left of", 0]}]
        detections = [found("dog", 20), found("dog", 80), found("cat", 50)]
        assert score(include, detections) == (pytest.approx(2.5 / 3), 0.0)

    def test_the_surest_are_compared(self):
        detections = [found("dog"), found("cat", 80, score=0.3), found("cat", 20, score=0.8)]
        assert score(self.INCLUDE, detections) == (1.0, 1.0)


class TestColumns:
    IMAGES = [Image.new("RGB", (8, 8))] * 3

    @staticmethod
    def one_dog(images, classes):
        return [[Detection("dog", (0, 0, 8, 8))] for _ in images]

    def test_geneval_lines(self, tmp_path):
        """Lines as in GenEval's evaluation_metadata.jsonl, read by `datasets`."""
        from datasets import load_dataset

        rows = [
            {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"},
            {"tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}],
             "prompt": "a photo of two dogs"},
            {"tag": "position", "include": [{"class": "cow", "count": 1}, {"class": "dog", "count": 1,
             "position": ["right of", 0]}], "prompt": "a photo of a dog right of a cow"},
        ]  # fmt: skip
        path = tmp_path / "metadata.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        dataset = load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path))
        columns = {name: [row[name] for row in dataset] for name in dataset.column_names}
        rewards = RewardRunner(GenEvalReward(self.one_dog))(columns.pop("prompt"), torch.zeros(3, 3, 8, 8), columns)
        assert rewards[:, 0].tolist() == pytest.approx([1.0, 0.5, 1 / 3])

    def test_json_text(self):
        include = [json.dumps([{"class": name, "count": 1}]) for name in ("dog", "cat", "dog")]
        assert GenEvalReward(self.one_dog)(["a"] * 3, self.IMAGES, include=include) == [1.0, 0.0, 1.0]

    def test_rows_without_requirements_are_skipped(self):
        seen = []

        def detector(images, classes):
            seen.append(classes)
            return self.one_dog(images, classes)

        include = [None, [{"class": "dog"}, {"class": "cat"}], []]
        exclude = [[], [{"class": "dog", "count": 2}], None]
        rewards = GenEvalReward(detector)(["a"] * 3, self.IMAGES, include=include, exclude=exclude)
        assert rewards == [None, pytest.approx(0.5), None]
        assert seen == [[["dog", "cat"]]]

    def test_missing_column(self):
        with pytest.raises(ValueError, match=r"reward `geneval` needs the dataset column `include`, .*; add it"):
            GenEvalReward(self.one_dog)(["a"] * 3, self.IMAGES)

    @pytest.mark.parametrize(
        ("include", "why"),
        [
            ([{"count": 1}], "'class' is missing"),
            ([{"class": ""}], "'' is no name"),
            ([{"class": "dog", "count": 0}], "count 0 is no whole number from 1"),
            ([{"class": "dog", "count": 1.5}], "count 1.5"),
            ([{"class": "dog", "count": "1"}], "count '1'"),
            (
                [{"class": "dog", "position": ["near", 0]}],
                "relation 'near' is none of left of, right of, above, below",
            ),
            ([{"class": "dog", "position": ["left of", 0]}], "refers to entry 0, which does not come before it"),
            ([{"class": "dog"}, {"class": "cat", "position": ["left of", -1]}], "refers to entry -1"),
            ([{"class": "dog"}, {"class": "cat", "position": "left of"}], "too many values"),
            (["dog"], "indices must be integers"),
            ([{"class": "dog", "colour": "red"}], "the key 'colour' is none of class, count, color, position"),
            ([{"class": "dog", "color": 3}], "the color 3 is no name"),
            ([{"class": "dog", "color": " "}], "the color ' ' is no name"),
            ([{"class": "dog", "count": float("inf")}], "the count inf is no whole number"),
            ({"class": ["dog"]}, "it is a dict, not a list"),
            ("[{", "Expecting"),
        ],
    )
    def test_senseless_requirements(self, include, why):
        with pytest.raises(ValueError, match="the dataset column `include` of the prompt 'a dog' is") as error:
            read_specification("a dog", include, None)
        assert why in str(error.value)
        assert "give GenEval's metadata" in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_detector_that_returns_something_else(self):
        for bad in (None, [], [[]]):
            with pytest.raises(ValueError, match="must return one list of detections for each of 3 images, not"):
                GenEvalReward(lambda images, classes, bad=bad: bad)(
                    ["a"] * 3, self.IMAGES, include=[[{"class": "dog"}]] * 3
                )

    @pytest.mark.parametrize("mode", ["RGBA", "L", "P"])
    def test_other_modes_are_converted(self, mode):
        def detector(images, classes):
            assert [image.mode for image in images] == ["RGB"]
            return self.one_dog(images, classes)

        image = Image.new("RGB", (8, 8), "red").convert(mode)
        assert GenEvalReward(detector)(["a"], [image], include=[[{"class": "dog"}]]) == [1.0]

    def test_contract(self):
        check_reward_func(GenEvalReward(self.one_dog), columns={"include": [[{"class": "dog"}], None, "[]"]})

    def test_registered(self):
        geneval, strict = REWARDS.get("geneval"), REWARDS.get("geneval_strict")
        assert (geneval.strict, strict.strict) == (False, True)
        assert RewardRunner([geneval, strict]).names == ["geneval", "geneval_strict"]
        assert geneval.detector is strict.detector
        assert geneval.detector.model == "google/owlv2-base-patch16-ensemble"


def mutated(caption, rng):
    """A caption that differs in one word, so that its picture would be another one."""
    first, *rest = caption.objects
    if caption.relation and rng.random() < 0.5:
        return Caption("relation", caption.objects, OPPOSITE[caption.relation])
    if caption.kind == "count" and rng.random() < 0.5:
        count = rng.choice([n for n in (2, 3, 4) if n != len(caption.objects)])
        return Caption("count", (first,) * count)
    near = [other for other in ALL_OBJECTS if (other.color == first.color) != (other.shape == first.shape)]
    other = rng.choice([other for other in near if other not in rest])
    return Caption(
        caption.kind, tuple(other if thing == first else thing for thing in caption.objects), caption.relation
    )


class TestShapesWorld:
    @pytest.fixture(scope="class")
    def captions(self):
        rng = random.Random(0)
        return [caption for kind in KINDS for caption in rng.choices(all_captions(kind), k=150)]

    @pytest.fixture(scope="class")
    def pictures(self, captions):
        return render(sample_scenes(captions, seed=0))

    @staticmethod
    def rewards(pictures, captions, strict):
        rows = [shapes_metadata(caption) for caption in captions]
        columns = {name: [row[name] for row in rows] for name in ("tag", "include", "exclude")}
        reward = GenEvalReward(ShapesDetector(), strict=strict)
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        return RewardRunner(reward)([row["prompt"] for row in rows], images, columns)[:, 0].numpy()

    def test_ground_truth(self, captions, pictures):
        expected = verify(pictures, [str(caption) for caption in captions]).strict
        strict = self.rewards(pictures, captions, strict=True)
        assert expected.mean() > 0.99
        assert (strict == expected).mean() > 0.99
        assert ((self.rewards(pictures, captions, strict=False) == 1) == (strict == 1)).all()

    def test_one_word_off(self, captions, pictures):
        rng = random.Random(1)
        wrong = [mutated(caption, rng) for caption in captions]
        expected = verify(pictures, [str(caption) for caption in wrong])
        assert expected.strict.mean() < 0.01
        assert (self.rewards(pictures, wrong, strict=True) == expected.strict).mean() > 0.99
        graded = self.rewards(pictures, wrong, strict=False)
        assert 0.3 < graded.mean() < 0.9
        assert np.corrcoef(graded, expected.graded)[0, 1] > 0.5

    def test_spoiled_pictures(self, captions, pictures):
        """Blurred, noisy, cut: what the verifier does not take for an object, or takes for debris."""
        rows = [row for row, caption in enumerate(captions) if caption.relation is None]
        rng = np.random.default_rng(0)
        for spoil in ("blur", "noise", "mixture"):
            images = [Image.fromarray(pictures[row]) for row in rows]
            if spoil == "blur":
                images = [image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5))) for image in images]
            spoiled = np.stack([np.asarray(image) for image in images])
            if spoil == "noise":
                strength = rng.uniform(10, 50, (len(rows), 1, 1, 1))
                spoiled = np.clip(spoiled + strength * rng.normal(size=spoiled.shape), 0, 255).astype(np.uint8)
            if spoil == "mixture":
                spoiled = np.maximum(spoiled, spoiled[::-1] // 4 * 3)
            chosen = [captions[row] for row in rows]
            expected = verify(spoiled, [str(caption) for caption in chosen]).strict
            assert 0.02 < expected.mean() < 0.98
            assert (self.rewards(spoiled, chosen, strict=True) == expected).mean() > 0.99

    def test_what_is_found(self):
        picture = render(sample_scenes([parse_caption("a red circle left of a blue square")], seed=0))[0]
        circle, square = sorted(ShapesDetector()([Image.fromarray(picture)])[0], key=lambda thing: thing.box[0])
        assert (circle.label, circle.color, square.label, square.color) == ("circle", "red", "square", "blue")
        assert is_placed(circle.box, "left of", square.box)
        for thing in (circle, square):
            left, top, right, bottom = (round(value) for value in thing.box)
            assert color_name(Image.fromarray(picture), thing.box) == thing.color
            outside = picture.copy()
            outside[top:bottom, left:right] = 0
            assert len(ShapesDetector()([Image.fromarray(outside)])[0]) == 1

    def test_what_is_unclear(self):
        white = Image.new("RGB", (32, 32), "white")
        assert [thing.label for thing in ShapesDetector()([white])[0]] == [UNCLEAR]
        dots = np.zeros((32, 32, 3), dtype=np.uint8)
        dots[::4, ::4] = 255
        assert [thing.label for thing in ShapesDetector()([Image.fromarray(dots)])[0]] == [UNCLEAR]
        assert ShapesDetector()([Image.new("RGB", (32, 32))]) == [[]]
        assert ShapesDetector()([]) == []

    def test_other_sizes(self):
        with pytest.raises(
            ValueError, match="an image has 64x32 pixels; the shapes world has 32x32; use another detector"
        ):
            ShapesDetector()([Image.new("RGB", (64, 32))])

    def test_metadata_is_geneval_s(self):
        assert shapes_metadata("a red circle above a blue square") == {
            "prompt": "a red circle above a blue square",
            "tag": "position",
            "include": [
                {"class": "square", "count": 1, "color": "blue"},
                {"class": "circle", "count": 1, "color": "red", "position": ["above", 0]},
            ],
            "exclude": [
                {"class": "circle", "count": 2},
                {"class": "square", "count": 2},
                {"class": "triangle", "count": 1},
                {"class": "unclear", "count": 1},
            ],
        }
