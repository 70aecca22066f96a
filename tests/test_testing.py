# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import random

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from trl_progrpo.families import FAMILIES, StableDiffusion3Family
from trl_progrpo.pruning import PRUNING_RULES, ovf
from trl_progrpo.rewards import image_type
from trl_progrpo.testing import check_family, check_pruner, check_reward_func
from trl_progrpo.types import Conditioning, Schedule


QUICK = {"heights_widths": ((12, 8),), "num_inference_steps": (3,), "guidance_scales": (5.0,)}


class WrongGuidance(StableDiffusion3Family):
    def combine_guidance(self, unconditional, conditional):
        return unconditional + (self.guidance_scale + 0.01) * (conditional - unconditional)


class WrongCount(StableDiffusion3Family):
    nfe_per_row = 1


class WrongNoise(StableDiffusion3Family):
    def init_latents(self, noise):
        return noise * 1.1


class WrongImages(StableDiffusion3Family):
    def decode(self, latents):
        return super().decode(latents).sqrt()


class UnclampedImages(StableDiffusion3Family):
    def decode(self, latents):
        return super().decode(latents) * 2 - 1


class TransposedLatents(StableDiffusion3Family):
    @property
    def latent_shape(self):
        channels, height, width = super().latent_shape
        return (channels, width, height)

    def denoise(self, denoiser, latents, timestep, tensors):
        return super().denoise(denoiser, latents.mT, timestep, tensors).mT


class NoNegativeSide(StableDiffusion3Family):
    def encode_prompts(self, prompts, negative_prompts=None):
        return Conditioning(super().encode_prompts(prompts, negative_prompts).positive)


class ShorterNegativeSide(StableDiffusion3Family):
    def encode_prompts(self, prompts, negative_prompts=None):
        both = super().encode_prompts(prompts, negative_prompts)
        negative = {name: tensor[:, :-1] for name, tensor in both.negative.items()}
        return Conditioning(both.positive, negative)


class DeafToPrompts(StableDiffusion3Family):
    def encode_prompts(self, prompts, negative_prompts=None):
        return super().encode_prompts([prompts[0]] * len(prompts), negative_prompts)


class RisingSchedule(StableDiffusion3Family):
    def make_schedule(self, num_inference_steps):
        schedule = super().make_schedule(num_inference_steps)
        return Schedule.flow(schedule.timesteps, schedule.sigmas.flip(0))


class ShorterSchedule(StableDiffusion3Family):
    def make_schedule(self, num_inference_steps):
        return super().make_schedule(num_inference_steps - 1)


class WrongPolicy(StableDiffusion3Family):
    policies = ("ddim",)


class AnySize(StableDiffusion3Family):
    def __init__(self, pipeline, height=None, width=None, **kwargs):
        super().__init__(pipeline, height=height and height // 4 * 4, width=width and width // 4 * 4, **kwargs)


class NotADenoiser(StableDiffusion3Family):
    denoiser_name = "unet"


class RandomOutput(StableDiffusion3Family):
    """So little noise that images agree, but rollout and update do not."""

    def predict(self, *args):
        output = super().predict(*args)
        return output + 1e-5 * torch.randn_like(output)


class MixedRows(StableDiffusion3Family):
    def predict(self, *args):
        output = super().predict(*args)
        return output + 0.01 * output.mean(0)


class FrozenDenoiser(StableDiffusion3Family):
    def predict(self, *args):
        return super().predict(*args).detach().requires_grad_()


BROKEN = {
    WrongGuidance: "latents differ from `pipeline",
    WrongCount: "`WrongCount.nfe_per_row` counts 6 network rows, but 12 went",
    WrongNoise: "`WrongNoise.init_latents` makes noise of std",
    WrongImages: "images differ from `pipeline",
    UnclampedImages: r"images are in \[0, 1\]",
    TransposedLatents: "but the pipeline's latents are|decode` gives",
    NoNegativeSide: "negative side exactly when guidance",
    ShorterNegativeSide: "gives shapes .* and negative",
    DeafToPrompts: "latents differ from `pipeline",
    RisingSchedule: "must go from noise to image",
    ShorterSchedule: "has 2 steps",
    WrongPolicy: r"`WrongPolicy.policies` names 'ddim', but .* use .*FlowSDE",
    AnySize: "accepts {'height': 9}, which is no multiple of `size_multiple` = 4",
    NotADenoiser: "`NotADenoiser.denoiser_name` is 'unet'",
    RandomOutput: "the first ratio is not 1|pruning changed the trajectories",
    MixedRows: "latents differ from `pipeline",
    FrozenDenoiser: "no gradient in the adapter",
}


class TestCheckFamily:
    @pytest.mark.parametrize("family", BROKEN, ids=lambda family: family.__name__)
    def test_names_the_broken_promise(self, family, make_pipeline, monkeypatch):
        monkeypatch.setitem(FAMILIES._objects, "StableDiffusion3Pipeline", family)
        with pytest.raises(AssertionError, match=BROKEN[family]):
            check_family(make_pipeline, **QUICK)

    def test_leaves_a_given_pipeline_alone(self, make_pipeline):
        pipeline = make_pipeline()
        report = check_family(pipeline, **QUICK)
        assert report.latents_difference < 1e-5
        assert report.log_prob_difference < 1e-6
        assert report.lora_difference < 1e-5 < 1e-3 < report.lora_effect
        assert not getattr(pipeline.transformer, "peft_config", None)

    def test_unknown_pipeline(self, make_pipeline):
        class UnknownPipeline(StableDiffusion3Pipeline):
            pass

        pipeline = UnknownPipeline(**make_pipeline().components)
        with pytest.raises(AssertionError, match="is a UnknownPipeline, which no model family serves"):
            check_family(pipeline)

    def test_different_weights_at_every_call(self, make_pipeline):
        def make():
            pipeline = make_pipeline()
            torch.nn.init.normal_(pipeline.transformer.proj_out.weight, std=random.random())
            return pipeline

        with pytest.raises(AssertionError, match="a stock StableDiffusion3Pipeline that loaded the adapter"):
            check_family(make, **QUICK)


def brightness(prompts, images, **columns):
    return [sum(image.convert("L").tobytes()) / 1000 for image in images]


class TestCheckRewardFunc:
    def test_good_functions(self):
        assert check_reward_func(brightness).image_type == "pil"
        report = check_reward_func("shapes", image_size=32)
        assert (report.name, report.image_type, report.deterministic) == ("shapes", "pt", True)

    @pytest.mark.parametrize(
        "kind", [np.array, torch.tensor, lambda scores: [np.float32(score) for score in scores], tuple]
    )
    def test_numbers_of_any_kind(self, kind):
        check_reward_func(lambda prompts, images, **columns: kind(brightness(prompts, images)))

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("kind", [torch.tensor, lambda scores: [torch.tensor(score) for score in scores]])
    def test_tensors_on_another_device(self, kind):
        def reward(prompts, images, **columns):
            with torch.device("cuda"):
                return kind(brightness(prompts, images))

        check_reward_func(reward)

    def test_needs_only_the_keywords_it_names(self):
        def by_style(prompts, images, style):
            return [float(len(value)) if prompt else None for prompt, value in zip(prompts, style)]

        check_reward_func(by_style, ["a", ""], columns={"style": ["oil", "ink"]})

    def test_a_random_function_says_so(self):
        def noise(prompts, images, **columns):
            return [random.random() for _ in prompts]

        with pytest.raises(AssertionError, match=r"noise\.deterministic = False"):
            check_reward_func(noise)
        noise.deterministic = False
        assert not check_reward_func(noise).deterministic

    @pytest.mark.parametrize(
        "broken, message",
        [
            (lambda prompts, images, **columns: [0.0], "returned 1 values for 3 images"),
            (lambda prompts, images, **columns: 0.5, "return a list"),
            (lambda prompts, images, **columns: np.full(len(prompts), "high"), "'high'.* for image 0"),
            (lambda prompts, images, **columns: [float("nan")] * len(prompts), "finite"),
            (lambda prompts, images, **columns: ["good"] * len(prompts), "'good' for image 0"),
            (lambda prompts, images, **columns: [float(len(images))] * len(prompts), "when it comes alone"),
            (
                lambda prompts, images, **columns: [prompts.sort() or 0.0 for _ in images],
                "changes its argument `prompts`",
            ),
            (lambda prompts, images, **columns: [image.putpixel((0, 0), 9) or 0.0 for image in images], "`images`"),
            (lambda prompts, completions: [0.0] * len(prompts), "must accept the keyword `images`"),
        ],
    )
    def test_names_the_broken_promise(self, broken, message):
        with pytest.raises(AssertionError, match=message):
            check_reward_func(broken)

    def test_coroutines(self):
        async def later(prompts, images, **columns):
            return brightness(prompts, images)

        async def short(prompts, images, **columns):
            return [0.0]

        assert check_reward_func(later).batch_difference == 0
        with pytest.raises(AssertionError, match="returned 1 values for 3 images"):
            check_reward_func(short)

    def test_tensors_are_watched_too(self):
        @image_type("pt")
        def darken(prompts, images, **columns):
            return images.mul_(0.5).mean((1, 2, 3)).tolist()

        with pytest.raises(AssertionError, match="changes its argument `images`"):
            check_reward_func(darken)


class TestCheckPruner:
    @pytest.mark.parametrize("name", ["ovf", "top_bottom", "top_k", "random", "none"])
    def test_own_rules(self, name):
        report = check_pruner(name)
        assert report.random == (name == "random")
        assert report.shift_invariant
        assert name in PRUNING_RULES.names()

    @pytest.mark.parametrize(
        "broken, message",
        [
            (lambda rewards, k, generator=None: ovf(rewards, k).flip(1), "ascending"),
            (lambda rewards, k, generator=None: ovf(rewards, k).int(), "int64"),
            (lambda rewards, k, generator=None: ovf(rewards, k)[:, :1], "int64 indices of shape"),
            (lambda rewards, k, generator=None: ovf(rewards, k).zero_(), "distinct"),
            (
                lambda rewards, k, generator=None: ovf(rewards.sort().values.mul_(1), k) + 1,
                "distinct members of each group",
            ),
            (lambda rewards, k, generator=None: ovf(rewards.neg_(), k), "changes the rewards"),
            (lambda rewards, k, generator=None: PRUNING_RULES.get("random")(rewards, k), "equal `generator`"),
            (lambda rewards, k, generator=None: ovf(rewards.nan_to_num(0, 0, 0), k), "accepts a reward of nan"),
            (lambda rewards, k, generator=None: ovf(rewards, min(max(k, 1), rewards.shape[1])), "accepts k = 0|int64"),
        ],
    )
    def test_names_the_broken_promise(self, broken, message):
        with pytest.raises(AssertionError, match=message):
            check_pruner(broken)
