import time

import numpy as np
import pytest
import torch
from PIL import Image

from trl_progrpo.tiny import shapes_reward, shapes_strict_reward, verify, world
from trl_progrpo.tiny.world import Object, PlacedObject, Scene


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(0)
    captions = [
        world.all_captions(kind)[index]
        for kind in world.KINDS
        for index in rng.integers(len(world.all_captions(kind)), size=400)
    ]
    return world.render(world.sample_scenes(captions, seed=1)), [str(caption) for caption in captions]


def draw(text, *placed):
    caption = world.parse_caption(text)
    places = [PlacedObject(Object(color, shape), x, y, r) for color, shape, x, y, r in placed]
    return world.render([Scene(caption, tuple(places))]), [text]


def graded(text, *placed):
    return verify(*draw(text, *placed)).graded[0]


def test_ground_truth_passes(truth):
    images, captions = truth
    verdict = verify(images, captions)
    assert verdict.strict.mean() >= 0.99
    assert verdict.graded.mean() >= 0.95
    kinds = np.array([world.parse_caption(caption).kind for caption in captions])
    for kind in world.KINDS:
        assert verdict.strict[kinds == kind].mean() >= 0.985


def test_random_captions_fail(truth):
    images, captions = truth
    order = np.random.default_rng(1).permutation(len(captions))
    other = [captions[j] if captions[j] != captions[i] else captions[j - 1] for i, j in enumerate(order)]
    assert verify(images, other).strict.mean() < 0.05


def test_graded_is_bounded_on_noise_and_extremes(truth):
    _, captions = truth
    noise = np.random.default_rng(2).integers(0, 256, size=(64, 32, 32, 3), dtype=np.uint8)
    extremes = np.stack([np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)])
    images = np.concatenate([noise, extremes])
    verdict = verify(images, captions[: len(images)])
    assert np.isfinite(verdict.graded).all()
    assert (verdict.graded >= 0).all()
    assert (verdict.graded <= 1).all()
    assert not verdict.strict.any()
    assert verdict.graded[-2] == 0


def test_degenerate_pictures_are_no_square():
    noise = np.random.default_rng(3).integers(0, 256, size=(64, 32, 32, 3), dtype=np.uint8)
    images = np.concatenate([noise, np.full((1, 32, 32, 3), 255, np.uint8)])
    verdict = verify(images, ["a white square"] * len(images))
    assert not verdict.strict.any()
    assert verdict.graded.max() < 0.6


def test_strict_images_have_high_grades(truth):
    images, captions = truth
    verdict = verify(images, captions)
    assert np.percentile(verdict.graded[verdict.strict], 1) > 0.8


def test_more_of_the_caption_is_more_reward():
    text = "a red circle left of a blue square"
    red, blue = ("red", "circle", 8, 16, 5), ("blue", "square", 24, 16, 5)
    right = graded(text, red, blue)
    wrong_order = graded(text, ("red", "circle", 24, 16, 5), ("blue", "square", 8, 16, 5))
    wrong_color = graded(text, ("green", "circle", 8, 16, 5), blue)
    only_one = graded(text, red)
    nothing = graded(text)
    assert nothing == 0 < only_one < wrong_color < right
    assert only_one < wrong_order < right


def test_counts_are_graded():
    text = "three white squares"
    places = [(6, 6), (6, 25), (25, 6), (25, 25)]
    grades = [graded(text, *[("white", "square", x, y, 4.2) for x, y in places[:n]]) for n in range(5)]
    assert grades[0] == 0
    assert grades[0] < grades[1] < grades[2] < grades[3]
    assert grades[4] < grades[3]


def test_relation_margin_is_graded():
    text = "a red circle above a blue square"
    grades = [graded(text, ("red", "circle", 8, 16 + d, 5), ("blue", "square", 24, 16 - d, 5)) for d in (6, 2, -2, -6)]
    assert grades == sorted(grades)


@pytest.mark.parametrize("relation", list(world.RELATIONS))
def test_each_relation_and_its_opposite(relation):
    caption = next(c for c in world.all_captions("relation") if c.relation == relation)
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[relation]
    image = world.render(world.sample_scenes([caption], seed=0))
    assert verify(image, [str(caption)]).strict[0]
    assert not verify(image, [str(caption).replace(relation, opposite)]).strict[0]


def test_surplus_objects_fail():
    image, _ = draw("a red circle and a blue square", ("red", "circle", 8, 16, 5), ("blue", "square", 24, 16, 5))
    verdict = verify(image, ["a red circle"])
    assert not verdict.strict[0]
    assert 0.5 < verdict.graded[0] < 0.9


def test_floats_and_bytes_agree(truth):
    images, captions = truth
    a, b = verify(images[:64], captions[:64]), verify(images[:64] / 255, captions[:64])
    np.testing.assert_allclose(a.graded, b.graded, atol=1e-4)
    assert (a.strict == b.strict).all()


def test_a_row_does_not_depend_on_its_batch(truth):
    images, captions = truth
    whole = verify(images[::50], captions[::50])
    alone = [verify(images[i : i + 1], captions[i : i + 1]).graded[0] for i in range(0, len(images), 50)]
    np.testing.assert_allclose(whole.graded, alone, atol=1e-12)


def test_empty_batch():
    verdict = verify(np.zeros((0, 32, 32, 3), np.uint8), [])
    assert verdict.graded.shape == verdict.strict.shape == (0,)


def test_errors_name_the_field(truth):
    images, captions = truth
    with pytest.raises(ValueError, match="a purple cow"):
        verify(images[:1], ["a purple cow"])
    with pytest.raises(ValueError, match="one caption per image"):
        verify(images[:2], captions[:1])
    with pytest.raises(ValueError, match="shape"):
        verify(images[:, :16], captions)
    with pytest.raises(ValueError, match="int64"):
        verify(images[:1].astype(np.int64), captions[:1])


def test_fast_enough(truth):
    images, captions = truth
    verify(images[:64], captions[:64])
    best = float("inf")
    for start in range(0, 960, 96):
        begin = time.process_time()
        verify(images[start : start + 96], captions[start : start + 96])
        best = min(best, (time.process_time() - begin) / 96)
    assert best < 1e-3


def test_rewards_take_pictures_and_tensors(truth):
    images, captions = truth
    images, captions = images[::100], captions[::100]
    expected = verify(images, captions)
    pictures = [Image.fromarray(image) for image in images]
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    for form in (pictures, tensor, images):
        rewards = shapes_reward(prompts=captions, images=form, kind=["ignored"] * len(captions))
        assert all(isinstance(reward, float) for reward in rewards)
        np.testing.assert_allclose(rewards, expected.graded, atol=1e-4)
        assert shapes_strict_reward(prompts=captions, images=form) == expected.strict.astype(float).tolist()


def test_reward_errors():
    with pytest.raises(ValueError, match="sizes"):
        shapes_reward(["a red circle"] * 2, [Image.new("RGB", (32, 32)), Image.new("RGB", (16, 16))])
    with pytest.raises(ValueError, match="shape"):
        shapes_reward(["a red circle"], torch.zeros(1, 32, 32, 3))
