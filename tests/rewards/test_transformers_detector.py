# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import json
from importlib.util import find_spec
from string import ascii_lowercase

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel

from trl_progrpo.rewards import GenEvalReward
from trl_progrpo.rewards.detectors import Detection
from trl_progrpo.rewards.transformers_detector import TransformersDetector, best_boxes
from trl_progrpo.testing import check_reward_func


KINDS = [
    "owlvit",
    pytest.param("owlv2", marks=pytest.mark.skipif(not find_spec("scipy"), reason="OWLv2 resizes with scipy")),
    "yolos",
]
CLASSES = ["circle", "square", "triangle"]
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = [(40, 24), (24, 40), (32, 32)]


def save(kind, path):
    """A random network of an architecture, with all its files, in a folder."""
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "yolos":
            config = transformers.YolosConfig(
                **SMALL,
                image_size=[32, 32],
                patch_size=8,
                num_detection_tokens=6,
                id2label=dict(enumerate(CLASSES)),
                label2id={name: i for i, name in enumerate(CLASSES)},
            )
            model = transformers.YolosForObjectDetection(config)
            processor = transformers.YolosImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64})
        else:
            prefix = "Owlv2" if kind == "owlv2" else "OwlViT"
            # The first id is no start token: these networks take a text that begins with 0 for padding.
            letters = [*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase)]
            vocab = {token: i for i, token in enumerate(["!", *letters, "<|startoftext|>", "<|endoftext|>"])}
            tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=32)
            text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 32}
            text |= {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
            vision = {**SMALL, "image_size": 32, "patch_size": 8}
            config = getattr(transformers, f"{prefix}Config")(
                text_config=text, vision_config=vision, projection_dim=16
            )
            model = getattr(transformers, f"{prefix}ForObjectDetection")(config)
            images = getattr(transformers, f"{prefix}ImageProcessorPil")(size={"height": 32, "width": 32})
            processor = getattr(transformers, f"{prefix}Processor")(images, tokenizer)
        # A fresh network gives every box nearly the same score.
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("head", "class", "bbox", "tokens", "embedding")):
                parameter.data.normal_(std=0.5)
    model.save_pretrained(path)
    processor.save_pretrained(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("detectors")


@pytest.fixture(scope="module", params=KINDS)
def folder(request, folders):
    path = folders / request.param
    save(request.param, path)
    return path


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]


def by_hand(folder, image, names):
    """`(label, box, score)` of every query of the network, from its raw outputs."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection
    from transformers import AutoModelForZeroShotObjectDetection as AutoOpen

    kind = AutoConfig.from_pretrained(folder).model_type
    pixels = AutoImageProcessor.from_pretrained(folder)(images=image, return_tensors="pt")["pixel_values"]
    width, height = image.size
    if kind == "yolos":
        outputs = AutoModelForObjectDetection.from_pretrained(folder)(pixel_values=pixels)
        # The last class is "nothing".
        scores, labels = outputs.logits[0].softmax(-1)[:, :-1].max(-1)
        names, scale = CLASSES, torch.tensor([width, height, width, height])
    else:
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        texts = [f"a photo of a {name}" for name in names]
        tokens = tokenizer(texts, padding="max_length", max_length=32, return_tensors="pt")
        outputs = AutoOpen.from_pretrained(folder)(pixel_values=pixels, **tokens)
        scores, labels = outputs.logits[0].sigmoid().max(-1)
        # OWLv2 pads to a square; OWL-ViT squeezes.
        scale = torch.tensor([max(width, height)] * 4 if kind == "owlv2" else [width, height, width, height])
    x, y, w, h = outputs.pred_boxes[0].unbind(-1)
    boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1) * scale
    return [(names[label], tuple(box.tolist()), score.item()) for label, box, score in zip(labels, boxes, scores)]


def test_boxes_of_images_that_are_not_square(folder, images):
    detector = TransformersDetector(folder, threshold=0.0, max_overlap=1.0)
    for image, found in zip(images, detector(images, [CLASSES] * 3)):
        expected = sorted(by_hand(folder, image, CLASSES), key=lambda entry: -entry[2])
        assert len(found) == len(expected) > 3
        assert len({round(thing.score, 3) for thing in found}) > 3
        for thing, (label, box, score) in zip(found, expected):
            assert thing.label == label
            assert thing.score == pytest.approx(score, abs=1e-5)
            assert thing.box == pytest.approx(box, abs=1e-3)


def test_the_batch_size_changes_nothing(folder, images):
    together, alone = (
        TransformersDetector(folder, threshold=0.0, batch_size=size)(images * 2, [CLASSES] * 6) for size in (4, 1)
    )
    for many, one in zip(together, alone):
        assert [thing.label for thing in many] == [thing.label for thing in one]
        assert [thing.score for thing in many] == pytest.approx([thing.score for thing in one], abs=1e-5)


def test_threshold_and_overlap(folder, images):
    every = TransformersDetector(folder, threshold=0.0, max_overlap=1.0)(images, [CLASSES] * 3)
    middle = float(np.median([thing.score for things in every for thing in things]))
    some = TransformersDetector(folder, threshold=middle, max_overlap=1.0)(images, [CLASSES] * 3)
    assert 0 < sum(map(len, some)) < sum(map(len, every))
    assert all(thing.score > middle for things in some for thing in things)
    few = TransformersDetector(folder, threshold=0.0, max_overlap=0.0)(images, [CLASSES] * 3)
    assert few == [best_boxes(things, 0.0) for things in every]
    assert sum(map(len, few)) < sum(map(len, every))


def test_images_that_are_asked_different_things(folder, images):
    detector = TransformersDetector(folder, threshold=0.0)
    asked = [["circle"], ["square", "triangle", "circle"], ["circle", "circle"]]
    found = detector(images, asked)
    for image, names, things in zip(images, asked, found):
        (alone,) = detector([image], [names])
        assert [thing.label for thing in alone] == [thing.label for thing in things]
        if detector.is_open_vocabulary:
            assert {thing.label for thing in things} <= set(names)
    if detector.is_open_vocabulary:
        assert detector(images[:1], [[]]) == [[]]


def test_as_a_reward(folder, images):
    include = [[{"class": "circle", "count": 2}], [{"class": "square"}], [{"class": "triangle", "color": "red"}]]
    reward = GenEvalReward(TransformersDetector(folder, threshold=0.0))
    values = reward(["a", "b", "c"], images, include=include)
    assert all(0 <= value <= 1 for value in values)
    check_reward_func(reward, columns={"include": include})


def test_detectors_with_fixed_classes_know_what_they_know(folders):
    save("yolos", folders / "known")
    detector = TransformersDetector(folders / "known", rename={"circle": "disc"}, threshold=0.0)
    image = Image.new("RGB", (32, 32))
    assert {thing.label for thing in detector([image], [["disc"]])[0]} <= {"disc", "square", "triangle"}
    for unknown in ("circle", "dog"):
        with pytest.raises(
            ValueError, match=rf"has no class '{unknown}'; .*`rename`.* such as disc, square, triangle"
        ):
            detector([image], [["disc", unknown]])


def test_overlapping_boxes():
    things = [
        Detection("dog", (0, 0, 10, 10), 0.5),
        Detection("dog", (0, 0, 10, 9), 0.9),
        Detection("dog", (20, 0, 30, 10), 0.2),
        Detection("cat", (0, 0, 10, 10), 0.4),
        # A third of the union of the two lies in both.
        Detection("dog", (5, 0, 15, 9), 0.3),
    ]
    by_score = [things[1], things[0], things[3], things[4], things[2]]
    assert best_boxes(things, 0.5) == [by_score[0], *by_score[2:]]
    assert best_boxes(things, 0.3) == [by_score[0], by_score[2], by_score[4]]
    assert best_boxes(things, 1.0) == by_score
    assert best_boxes([Detection("dog", (1, 1, 1, 1)), Detection("dog", (1, 1, 1, 1))], 0.5)
    assert best_boxes([], 0.5) == []


class TestBadInput:
    def test_nothing_there(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"reward `geneval` cannot load .*nowhere.*; give a complete folder"
        ) as error:
            GenEvalReward(TransformersDetector(tmp_path / "nowhere")).load()
        assert "\n" not in str(error.value)

    def test_no_detector(self, tmp_path):
        vision = CLIPVisionModel(CLIPVisionConfig(**SMALL, image_size=32, patch_size=8))
        vision.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"is a clip_vision_model, which is neither OWLv2.*; give a function"):
            TransformersDetector(tmp_path).load()

    def test_weights_that_do_not_fit(self, tmp_path):
        save("yolos", tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
        with pytest.raises(ValueError, match=r"the checkpoint .* lacks \d+ weights"):
            TransformersDetector(tmp_path).load()

    @pytest.mark.parametrize(
        ("option", "named"),
        [
            ({"threshold": 2}, "`threshold` of the detector is 2; use a number from 0 to 1"),
            ({"max_overlap": -1}, "`max_overlap` of the detector is -1"),
            ({"template": "a photo"}, "`template` of the detector is 'a photo'; put {} where"),
            ({"dtype": "int8"}, "`dtype` of the detector is 'int8'; use one of float32"),
            ({"batch_size": 0}, "`batch_size` of the detector is 0; use 1 or more"),
        ],
    )
    def test_options(self, option, named):
        with pytest.raises(ValueError) as error:
            TransformersDetector(**option)
        assert named in str(error.value)

    def test_owlv2_without_scipy(self, folders, monkeypatch):
        save("owlv2", folders / "without_scipy")
        for library in ("scipy", "torchvision"):
            monkeypatch.setattr(f"transformers.utils.is_{library}_available", lambda: False)
        with pytest.raises(ValueError, match=r"OWLv2 resizes images with scipy, .*trl-progrpo\[geneval\]"):
            TransformersDetector(folders / "without_scipy").load()
        save("owlvit", folders / "needs_no_scipy")
        TransformersDetector(folders / "needs_no_scipy").load()
