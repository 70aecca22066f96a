# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import math

import numpy as np
import pytest
import torch
from PIL import Image

from trl_progrpo.rewards import REWARDS, RewardRunner, image_type, resolve_reward, reward_name, to_pil


IMAGES = torch.rand(3, 3, 4, 6, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", "b", "c"]


def zeros(prompts, images, **columns):
    return [0.0] * len(prompts)


def returning(values):
    def bad(prompts, images, **columns):
        return values

    return bad


class TestWhatAFunctionIsGiven:
    def test_pil_images_unless_it_asks_for_a_tensor(self):
        seen = {}

        def pil(prompts, images):
            seen["pil"] = images
            return [0.0] * 3

        @image_type("pt")
        def tensor(prompts, images):
            seen["pt"] = images
            return [0.0] * 3

        RewardRunner([pil, tensor])(PROMPTS, IMAGES)
        assert all(isinstance(image, Image.Image) and image.size == (6, 4) for image in seen["pil"])
        assert torch.equal(seen["pt"], IMAGES)
        expected = (IMAGES[0].permute(1, 2, 0).numpy() * 255).round()
        assert np.array_equal(np.asarray(seen["pil"][0]), expected)

    def test_pictures_are_converted_once(self):
        seen = []

        def one(prompts, images):
            seen.append(images)
            return [0.0] * 3

        RewardRunner([one, one])(PROMPTS, IMAGES)
        assert seen[0] is seen[1]

    def test_pil_conversion_is_diffusers(self):
        from diffusers.image_processor import VaeImageProcessor

        theirs = VaeImageProcessor().postprocess(IMAGES * 2 - 1, output_type="pil")
        assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(to_pil(IMAGES), theirs))
        assert all(a.tobytes() == b.tobytes() for a, b in zip(to_pil(IMAGES), to_pil(IMAGES.double())))

    def test_columns_and_preview_reach_those_who_name_them(self):
        seen = []

        def everything(prompts, images, **columns):
            seen.append(columns)
            return [0.0] * 3

        def some(prompts, images, target):
            seen.append({"target": target})
            return [0.0] * 3

        class Nothing:
            def __call__(self, prompts, images):
                return [0.0] * 3

        columns = {"target": [1, 2, 3], "other": ["x", "y", "z"]}
        runner = RewardRunner([everything, some, Nothing()])
        runner(PROMPTS, IMAGES, columns, preview=True)
        assert seen == [{**columns, "preview": True}, {"target": [1, 2, 3]}]
        runner(PROMPTS, IMAGES, columns)
        assert seen[2]["preview"] is False

    def test_prompts_are_a_list_of_its_own(self):
        def greedy(prompts, images):
            assert isinstance(prompts, list)
            count = len(prompts)
            prompts.clear()
            return [1.0] * count

        prompts = list(PROMPTS)
        assert RewardRunner([greedy, greedy])(prompts, IMAGES).shape == (3, 2)
        assert prompts == PROMPTS


class TestWhatItMayReturn:
    @pytest.mark.parametrize(
        "values",
        [[1, 2.0, True], (1.0, 2.0, 1.0), torch.tensor([1.0, 2.0, 1.0]), np.array([1.0, 2.0, 1.0]),
         [torch.tensor(1.0), np.float32(2), 1], torch.tensor([1.0, 2.0, 1.0], dtype=torch.bfloat16, requires_grad=True)],
    )  # fmt: skip
    def test_numbers_of_any_kind(self, values):
        assert RewardRunner(returning(values))(PROMPTS, IMAGES).tolist() == [[1.0], [2.0], [1.0]]

    def test_none_becomes_nan(self):
        scores = RewardRunner([returning([1.0, None, 2.0]), zeros])(PROMPTS, IMAGES)
        assert scores.dtype == torch.float32
        assert scores.isnan().tolist() == [[False, False], [True, False], [False, False]]

    @pytest.mark.parametrize(
        ("values", "named"),
        [
            ([1.0, 2.0], "2 values for 3 images"),
            ([], "0 values for 3 images"),
            (0.5, "float for 3 images"),
            (None, "NoneType for 3 images"),
            ("abc", "str"),
            ({"a": 1, "b": 2, "c": 3}, "dict"),
            ({"a": 1}, "dict"),
            ([1.0, math.nan, 2.0], "nan for image 1"),
            ([1.0, 2.0, math.inf], "inf for image 2"),
            (torch.tensor([1.0, math.nan, 2.0]), "nan for image 1"),
            (["good", "bad", "ugly"], "'good' for image 0"),
            ([1.0, "0.5", 2.0], "'0.5' for image 1"),
            ([[1.0], [2.0], [3.0]], r"\[1.0\] for image 0"),
            (torch.zeros(3, 1), r"\[0.0\] for image 0"),
            ([{"score": 1.0}] * 3, r"{'score': 1.0} for image 0"),
        ],
    )
    def test_anything_else_is_refused_in_one_sentence(self, values, named):
        with pytest.raises(ValueError, match=rf"reward function `bad` returned .*{named}.*; return a") as error:
            RewardRunner(returning(values))(PROMPTS, IMAGES)
        assert "\n" not in str(error.value)


class TestNamesAndWeights:
    def test_one_function_or_several_by_name_or_by_path(self):
        assert RewardRunner(zeros).names == ["zeros"]
        assert RewardRunner("shapes").names == ["shapes"]
        assert RewardRunner(["shapes", zeros, "builtins:len"]).names == ["shapes", "zeros", "len"]
        assert len(RewardRunner([zeros, zeros])) == 2
        assert RewardRunner([zeros, "shapes", zeros]).names == ["zeros_0", "shapes", "zeros_2"]

    def test_an_object_is_called_by_its_class(self):
        class Aesthetic:
            def __call__(self, prompts, images):
                return [0.0]

        assert reward_name(Aesthetic()) == "Aesthetic"

    def test_weights(self):
        assert RewardRunner([zeros, zeros]).weights.tolist() == [1.0, 1.0]
        assert RewardRunner([zeros, zeros], [0.5, 2]).weights.tolist() == [0.5, 2.0]
        with pytest.raises(ValueError, match="`reward_weights` has 1 entries for 2 reward functions; give one weight"):
            RewardRunner([zeros, zeros], [1.0])

    def test_none_at_all(self):
        with pytest.raises(ValueError, match="`reward_funcs` is empty; give at least one"):
            RewardRunner([])

    def test_an_unknown_name(self):
        with pytest.raises(
            ValueError, match=r"unknown reward function 'shape'; did you mean 'shapes'\? known: .*shapes"
        ):
            resolve_reward("shape")

    def test_something_that_cannot_be_called(self):
        with pytest.raises(ValueError, match="`reward_funcs` holds 3, a int; give a function"):
            RewardRunner([3])
        with pytest.raises(ValueError, match="a str; give a function"):
            resolve_reward("string:digits")

    def test_a_wrong_image_type(self):
        with pytest.raises(ValueError, match=r"`image_type` is 'np'; use \"pil\" or \"pt\""):
            image_type("np")

    def test_registered_functions_are_reached_by_name(self):
        assert resolve_reward("shapes") is REWARDS.get("shapes")
        images = torch.zeros(2, 3, 32, 32)
        scores = RewardRunner(["shapes", "shapes_strict"])(["a red circle", "a blue square"], images)
        assert scores.tolist() == [[0.0, 0.0], [0.0, 0.0]]


class TestCoroutines:
    def test_are_awaited_at_the_same_time(self):
        """Each waits for the other, so one after the other would never end."""
        import asyncio

        arrived = {}

        def meeting(name, other):
            async def reward(prompts, images):
                arrived.setdefault(name, asyncio.Event()).set()
                while other not in arrived:
                    await asyncio.sleep(0.001)
                await arrived[other].wait()
                return [float(len(name))] * len(prompts)

            return reward

        runner = RewardRunner([meeting("one", "three"), zeros, meeting("three", "one")])
        assert runner(PROMPTS, IMAGES).tolist() == [[3.0, 0.0, 5.0]] * 3

    def test_live_in_one_event_loop(self):
        import asyncio

        loops = []

        async def reward(prompts, images):
            loops.append(asyncio.get_running_loop())
            return [0.0] * len(prompts)

        runner = RewardRunner(reward)
        runner(PROMPTS, IMAGES)
        runner(PROMPTS, IMAGES)
        assert loops[0] is loops[1]

    def test_an_object_with_an_async_call_is_one(self):
        class Reward:
            async def __call__(self, prompts, images, **columns):
                return [1.0] * len(prompts)

        assert RewardRunner(Reward())(PROMPTS, IMAGES).tolist() == [[1.0]] * 3

    @pytest.mark.parametrize("kind", ["sync", "async"])
    def test_what_they_raise_is_told_with_the_functions_name(self, kind):
        def sync(prompts, images, **columns):
            raise KeyError("text")

        async def later(prompts, images, **columns):
            raise KeyError("text")

        function = {"sync": sync, "async": later}[kind]
        with pytest.raises(
            ValueError, match=rf"reward function `{function.__name__}` raised KeyError: 'text' .*line \d+"
        ) as e:
            RewardRunner(function)(PROMPTS, IMAGES)
        assert isinstance(e.value.__cause__, KeyError)
