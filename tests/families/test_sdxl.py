# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from pipelines import STABLE_DIFFUSION, assert_equals_pipeline, make_sdxl

from trl_progrpo.families import StableDiffusionXLFamily, family_class, load_pipeline
from trl_progrpo.testing import PROMPTS, check_family


LATENT_STATISTICS = {"latents_mean": [-0.4, 0.3, 0.1, 0.2], "latents_std": [1.3, 0.8, 1.1, 0.9]}


class TestContract:
    def test_checkpoint(self):
        report = check_family(make_sdxl)
        assert report.family == "StableDiffusionXLFamily"
        assert report.latents_difference < 2e-5
        assert report.image_difference < 1e-4
        assert report.prompt_effect > 0.1

    @pytest.mark.parametrize(
        "options",
        [
            {"force_zeros_for_empty_prompt": False},
            {"vae_kwargs": LATENT_STATISTICS},
            {"scheduler": EulerDiscreteScheduler(**STABLE_DIFFUSION, prediction_type="v_prediction")},
            {"scheduler": DDIMScheduler(**STABLE_DIFFUSION, timestep_spacing="trailing")},
        ],
        ids=["empty prompt", "latent statistics", "v_prediction", "trailing"],
    )
    def test_variants(self, options):
        assert_equals_pipeline(StableDiffusionXLFamily(make_sdxl(**options), height=24, guidance_scale=5.0))

    def test_loads_from_a_folder(self, tmp_path):
        make_sdxl().save_pretrained(tmp_path)
        assert family_class(str(tmp_path)) is StableDiffusionXLFamily
        family = StableDiffusionXLFamily(load_pipeline(str(tmp_path)), height=24)
        assert (family.height, family.width) == (24, 16)
        assert isinstance(family.pipeline.scheduler, DDIMScheduler)


class TestConditioning:
    def test_size_is_told_on_both_sides(self):
        conditioning = StableDiffusionXLFamily(make_sdxl(), height=24, guidance_scale=3.0).encode_prompts(PROMPTS)
        expected = torch.tensor([24.0, 16, 0, 0, 24, 16]).expand(2, 6)
        assert torch.equal(conditioning.positive["time_ids"], expected)
        assert torch.equal(conditioning.negative["time_ids"], expected)

    @pytest.mark.parametrize("zeros", [True, False])
    def test_missing_negative_prompt(self, zeros):
        pipeline = make_sdxl(force_zeros_for_empty_prompt=zeros)
        family = StableDiffusionXLFamily(pipeline, guidance_scale=3.0)
        negative = family.encode_prompts(PROMPTS).negative
        assert bool(negative["prompt_embeds"].any()) is not zeros
        assert bool(negative["text_embeds"].any()) is not zeros
        # An empty prompt that is given is encoded like any other.
        assert family.encode_prompts(PROMPTS, ["", ""]).negative["prompt_embeds"].any()


class TestDecode:
    def test_upcasts_a_vae_that_overflows_in_fp16(self):
        pipeline = make_sdxl()
        pipeline.vae.half()
        StableDiffusionXLFamily(pipeline)
        assert pipeline.vae.dtype == torch.float32

    def test_refuses_sizes_that_do_not_divide(self):
        with pytest.raises(ValueError, match=r"`height` is 12, .* multiples of 8; use 16"):
            StableDiffusionXLFamily(make_sdxl(), height=12)
