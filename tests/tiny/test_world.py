import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_progrpo.tiny import load_shapes, world


EVERY_CAPTION = [caption for kind in world.KINDS for caption in world.all_captions(kind)]


@given(st.sampled_from(EVERY_CAPTION))
def test_caption_round_trip(caption):
    assert world.parse_caption(str(caption)) == caption


@given(st.sampled_from(EVERY_CAPTION))
def test_parsing_ignores_case_space_and_full_stop(caption):
    assert world.parse_caption(f"  {str(caption).upper().replace(' ', '  ')}. ") == caption


@pytest.mark.parametrize(
    "text",
    ["", "a cat", "two blue square", "a red circle and a red circle", "five red circles", "a red circle near a"],
)
def test_parsing_names_the_caption_it_does_not_know(text):
    with pytest.raises(ValueError, match="is not of the shapes world") as error:
        world.parse_caption(text)
    assert repr(text) in str(error.value)


def test_captions_are_distinct():
    assert len({str(caption) for caption in EVERY_CAPTION}) == len(EVERY_CAPTION)


def test_splits_share_no_composition():
    def compositions(split):
        return {tuple(sorted(c.objects)) for c in world.captions_of(split)}

    assert compositions("train").isdisjoint(compositions("test"))


def test_test_split_is_made_of_known_parts():
    def parts(split):
        captions = world.captions_of(split)
        objects = {object for c in captions for object in c.objects}
        return objects, {c.relation for c in captions}, {len(c.objects) for c in captions if c.kind == "count"}

    for train, test in zip(parts("train"), parts("test"), strict=True):
        assert test <= train


def test_split_is_stable_across_processes():
    code = (
        "import hashlib; from trl_progrpo.tiny import world;"
        "print(hashlib.sha256('|'.join(map(str, world.captions_of('test'))).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_scenes_are_reproducible_and_keep_their_distance():
    captions = EVERY_CAPTION[::7]
    scenes = world.sample_scenes(captions, seed=3)
    assert scenes == world.sample_scenes(captions, seed=3)
    assert scenes != world.sample_scenes(captions, seed=4)
    for scene in scenes:
        assert tuple(p.object for p in scene.placed) == scene.caption.objects
        for p in scene.placed:
            assert p.radius <= min(p.x, p.y)
            assert max(p.x, p.y) <= world.IMAGE_SIZE - p.radius


def test_render_shape_dtype_and_background():
    images = world.render(world.sample_scenes(EVERY_CAPTION[:5], seed=0))
    assert images.shape == (5, 32, 32, 3)
    assert images.dtype == np.uint8
    assert images.min() == round(world.BACKGROUND * 255)
    assert len(world.render([])) == 0


@pytest.mark.parametrize("split", ["train", "test"])
def test_dataset(split):
    dataset = load_shapes(split)
    assert dataset.column_names == ["prompt", "kind"]
    assert dataset["prompt"] == [str(caption) for caption in world.captions_of(split)]
    assert len(dataset) == {"train": 1267, "test": 335}[split]
    assert all(world.parse_caption(row["prompt"]).kind == row["kind"] for row in dataset)


def test_unknown_split_and_kind():
    with pytest.raises(ValueError, match="'validation'"):
        load_shapes("validation")
    with pytest.raises(ValueError, match="'triple'"):
        world.all_captions("triple")


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, trl_progrpo.tiny as t; t.model_path(); print({'torch', 'numpy', 'datasets'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"


def test_verifier_needs_numpy_only():
    code = (
        "import sys, trl_progrpo.tiny as t; t.verify; t.shapes_reward;"
        "print({'torch', 'PIL', 'diffusers', 'datasets'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
