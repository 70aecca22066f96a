# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import asyncio
import math
import os
import pickle
import signal
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from trl_progrpo.rewards import REWARDS, RewardError, RewardRunner, image_type, resolve_reward, reward_name, to_pil


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

    def test_pictures_are_converted_once_and_given_as_copies(self, monkeypatch):
        seen, converted = [], []

        def one(prompts, images):
            seen.append(images)
            return [0.0] * 3

        monkeypatch.setattr("trl_progrpo.rewards.runner.to_pil", lambda images: converted.append(1) or to_pil(images))
        RewardRunner([one, one])(PROMPTS, IMAGES)
        assert len(converted) == 1
        assert seen[0] == seen[1]
        assert seen[0][0] is not seen[1][0]

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
        assert RewardRunner(["shapes", zeros, "builtins:max"]).names == ["shapes", "zeros", "max"]
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
        with pytest.raises(
            ValueError, match=r"`reward_funcs` holds PickScore, which is a class; give an object of it"
        ):
            RewardRunner("trl_progrpo.rewards:PickScore")
        with pytest.raises(ValueError, match="`reward_funcs` holds 3, an int; give a function"):
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
        loops = []

        async def reward(prompts, images):
            loops.append(asyncio.get_running_loop())
            return [0.0] * len(prompts)

        runner = RewardRunner(reward)
        runner(PROMPTS, IMAGES)
        runner(PROMPTS, IMAGES)
        assert loops[0] is loops[1]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_fork_has_a_loop_of_its_own(self):
        async def reward(prompts, images):
            return [1.0] * len(prompts)

        runner = RewardRunner(reward, timeout=60.0)
        runner(PROMPTS, IMAGES)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(0 if runner(PROMPTS, IMAGES).tolist() == [[1.0]] * 3 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

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


class TestBuiltIns:
    """What a built-in reward says when it refuses is a sentence with its own cure."""

    @pytest.mark.parametrize("timeout", [None, 30.0])
    def test_speak_for_themselves(self, timeout):
        with pytest.raises(RewardError, match=r"^reward `geneval` needs the dataset column `include`") as error:
            RewardRunner("geneval", timeout=timeout)(PROMPTS, IMAGES)
        assert (error.value.kind, error.value.divisible) == ("exception", True)
        assert type(error.value.__cause__) is ValueError

    def test_are_named_where_the_sentence_does_not(self):
        def mine(prompts, images, **columns):
            return REWARDS.get("geneval")(prompts=prompts, images=images, **columns)

        with pytest.raises(RewardError, match=r"^reward `mine`: reward `geneval` needs the dataset column"):
            RewardRunner(mine)(PROMPTS, IMAGES)

    def test_a_defect_is_told_as_any_other(self, monkeypatch):
        """A `ValueError` that NumPy, a network or the user's function raises is no sentence of ours."""

        def theirs(prompts, images, **columns):
            return [float("x")]

        def raising(prompts, images, **columns):
            raise ValueError("no such colour")

        with pytest.raises(RewardError, match=r"reward function `theirs` raised ValueError: could not convert"):
            RewardRunner(theirs)(PROMPTS, IMAGES)
        with pytest.raises(
            RewardError, match=r"`raising` raised ValueError: no such colour .* while scoring 1 image; "
        ):
            RewardRunner(raising)(PROMPTS[:1], IMAGES[:1])

    def test_it_comes_back_whole_from_another_process(self):
        error = RewardError("no score.", "not_finite", [1], [0.5, math.nan], True)
        back = pickle.loads(pickle.dumps(error))
        assert str(back) == "no score."
        assert repr(vars(back)) == repr(vars(error))


class TestFaults:
    """What `on_error` makes of a function that fails; `Faulty` fails for some images of the twelve."""

    PROMPTS = [f"prompt {index}" for index in range(12)]
    IMAGES = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    VALUES = torch.arange(12.0)

    def faulty(self, bad, how):
        """Scores image `i` with `i`; when any of `bad` is among the images, does what `how` says."""

        def reward(prompts, images, index):
            hit = [position for position, i in enumerate(index) if i in bad]
            scores = [float(i) for i in index]
            return how(scores, hit) if hit else scores

        return reward

    def run(self, function, **settings):
        runner = RewardRunner(function, on_error="skip", **settings)
        with pytest.warns(UserWarning, match='With `on_reward_error="skip"` images without a score are left out'):
            scores = runner(self.PROMPTS, self.IMAGES, {"index": list(range(12))})
        return runner, scores

    @staticmethod
    def raising(scores, hit):
        raise RuntimeError("out of ideas")

    @staticmethod
    def short(scores, hit):
        return [score for position, score in enumerate(scores) if position not in hit]

    @staticmethod
    def with_value(value):
        def replace(scores, hit):
            return [value if position in hit else score for position, score in enumerate(scores)]

        return replace

    @pytest.mark.parametrize("bad", [{0}, {11}, {3, 4, 9}, set(range(12))], ids=str)
    @pytest.mark.parametrize(
        ("how", "kind"),
        [
            ("raising", "exception"),
            ("short", "wrong_length"),
            (math.nan, "not_finite"),
            (10**400, "not_finite"),
            (-math.inf, "not_finite"),
            ("0.5", "wrong_type"),
            ([1.0], "wrong_type"),
        ],
        ids=str,
    )
    def test_skip_loses_the_images_to_blame_and_no_others(self, bad, how, kind):
        function = self.faulty(bad, getattr(self, how, None) if how in ("raising", "short") else self.with_value(how))
        runner, scores = self.run([function, zeros])
        lost = torch.tensor([index in bad for index in range(12)])
        # Without any reward, those of the other functions included.
        assert torch.equal(scores.isnan(), lost[:, None].expand(12, 2))
        assert torch.equal(scores[~lost, 0], self.VALUES[~lost])
        assert runner.errors == {kind: len(bad)}

    def test_skip_leaves_none_what_it_is(self):
        runner = RewardRunner([self.faulty({2}, self.with_value(None)), zeros], on_error="skip")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scores = runner(self.PROMPTS, self.IMAGES, {"index": list(range(12))})
        assert scores[2].isnan().tolist() == [True, False]
        assert not runner.errors

    def test_a_kind_of_error_is_told_once_and_counted_always(self):
        runner, _ = self.run(self.faulty({1}, self.raising))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            runner(self.PROMPTS, self.IMAGES, {"index": list(range(12))})
        assert runner.errors == {"exception": 2}
        runner.functions[0] = self.faulty({1}, self.with_value(math.nan))
        with pytest.warns(UserWarning, match="returned nan"):
            runner(self.PROMPTS, self.IMAGES, {"index": list(range(12))})

    @pytest.mark.parametrize("kind", ["sync", "async"])
    def test_a_call_that_takes_too_long(self, kind):
        over, calls = threading.Event(), []

        def sync(prompts, images):
            calls.append(len(prompts))
            over.wait()

        async def later(prompts, images):
            calls.append(len(prompts))
            await asyncio.Event().wait()

        function = {"sync": sync, "async": later}[kind]
        with pytest.raises(
            RewardError, match=r"`\w+` took longer than `reward_timeout` of 0.05 s for 12 images"
        ) as told:
            RewardRunner(function, timeout=0.05)(self.PROMPTS, self.IMAGES)
        assert told.value.kind == "timeout"
        runner, scores = self.run([function, zeros], timeout=0.05)
        assert scores.isnan().all()
        assert runner.errors == {"timeout": 12}
        # Halves of what took too long are not asked for.
        assert calls == [12, 12]
        over.set()

    @pytest.mark.parametrize("error", [TimeoutError, ConnectionRefusedError])
    def test_halves_are_not_asked_of_a_server_that_is_away(self, error):
        calls = []

        def away(prompts, images):
            calls.append(len(prompts))
            raise error("nobody there")

        runner, scores = self.run(away)
        assert calls == [12]
        assert scores.isnan().all()
        assert runner.errors == {"timeout" if error is TimeoutError else "exception": 12}

    def test_within_its_time_nothing_is_different(self):
        def gradients(prompts, images):
            return [float(torch.is_grad_enabled())] * len(prompts)

        async def later(prompts, images):
            return [2.0] * len(prompts)

        def brightness(prompts, images):
            return [float(np.asarray(image).mean()) for image in images]

        with torch.no_grad():
            scores = RewardRunner([gradients, later, brightness], timeout=60)(self.PROMPTS, self.IMAGES)
            expected = RewardRunner([gradients, later, brightness])(self.PROMPTS, self.IMAGES)
        assert torch.equal(scores, expected)
        assert scores[0, :2].tolist() == [0.0, 2.0]

    def test_retry_calls_again_and_then_stops(self, monkeypatch):
        waited, calls = [], []
        monkeypatch.setattr("trl_progrpo.rewards.runner.time.sleep", waited.append)

        def third_time_lucky(prompts, images):
            calls.append(len(prompts))
            if len(calls) < 3:
                raise ConnectionError("not now")
            return [1.0] * len(prompts)

        runner = RewardRunner(third_time_lucky, on_error="retry")
        with pytest.warns(UserWarning, match='not now.* With `on_reward_error="retry"` it is called again'):
            assert runner(self.PROMPTS, self.IMAGES).tolist() == [[1.0]] * 12
        assert (calls, waited) == ([12] * 3, [1.0, 2.0])

        waited.clear()
        runner = RewardRunner(returning([1.0] * 3), on_error="retry", max_retries=4)
        with pytest.raises(RewardError, match="3 values for 12"), pytest.warns(UserWarning, match="called again"):
            runner(self.PROMPTS, self.IMAGES)
        assert waited == [1.0, 2.0, 4.0, 8.0]
