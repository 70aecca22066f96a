# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import pytest
import torch
from pipelines import make_sd3

from trl_progrpo.families import StableDiffusion3Family, load_pipeline
from trl_progrpo.policies import DDIM
from trl_progrpo.testing import PROMPTS, check_family


class TestContract:
    def test_with_t5(self):
        report = check_family(make_sd3, max_sequence_length=12)
        assert report.family == "StableDiffusion3Family"
        assert report.latents_difference < 2e-5
        assert report.prompt_effect > 0.1

    def test_without_t5(self):
        check_family(lambda: make_sd3(with_t5=False))

    def test_resolution_dependent_shift(self):
        check_family(
            lambda: make_sd3(with_t5=False, use_dynamic_shifting=True),
            heights_widths=((8, 8), (12, 8)),
            num_inference_steps=(3,),
            guidance_scales=(5.0,),
        )

    def test_without_t5_from_a_folder(self, tmp_path):
        make_sd3(with_t5=False).save_pretrained(tmp_path)
        pipeline = load_pipeline(str(tmp_path))
        assert pipeline.text_encoder_3 is None
        assert StableDiffusion3Family(pipeline).max_sequence_length == 0


class TestFamily:
    @pytest.mark.parametrize("with_t5", [True, False])
    def test_tokens(self, with_t5):
        family = StableDiffusion3Family(make_sd3(with_t5))
        tokens = family.encode_prompts(PROMPTS).positive["prompt_embeds"].shape[1]
        assert tokens == 10 + 256 * with_t5

    def test_refuses_sizes_that_do_not_divide(self):
        with pytest.raises(ValueError, match=r"`width` is 10, .* multiples of 4; use 8"):
            StableDiffusion3Family(make_sd3(with_t5=False), width=10)

    def test_refuses_ddim_and_names_the_flow_policies(self):
        schedule = StableDiffusion3Family(make_sd3(with_t5=False)).make_schedule(4)
        with pytest.raises(ValueError, match=r"use .*FlowCPS or FlowSDE"):
            DDIM().step(torch.zeros(1, 4), torch.zeros(1, 4), schedule, 0)
