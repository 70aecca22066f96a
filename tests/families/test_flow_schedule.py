# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Families whose pipelines take Euler's steps refuse schedulers that take others."""

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, UniPCMultistepScheduler
from pipelines import make_sd3
from pipelines_flux import tiny_flux, tiny_flux2_klein
from pipelines_qwen import make_qwen_image, make_z_image

from trl_progrpo.families import family_class


@pytest.mark.parametrize("make", [make_sd3, tiny_flux, tiny_flux2_klein, make_qwen_image, make_z_image])
def test_other_schedulers_are_refused(make):
    pipeline = make()
    own, family = pipeline.scheduler, family_class(pipeline)
    for other in (
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        FlowMatchHeunDiscreteScheduler(),
    ):
        pipeline.scheduler = other
        with pytest.raises(
            ValueError, match=rf"has a {type(other).__name__}, .*FlowMatchEulerDiscreteScheduler.from_"
        ):
            family(pipeline).make_schedule(2)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(own.config, stochastic_sampling=True)
    with pytest.raises(ValueError, match=r"with `stochastic_sampling`.*; set it to False"):
        family(pipeline).make_schedule(2)
    pipeline.scheduler = own
    family(pipeline).make_schedule(2)
