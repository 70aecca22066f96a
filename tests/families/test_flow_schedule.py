# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Schedulers on flow families: what `pipeline(...)` samples with, or a refusal whose advice leads there."""

import copy
import functools
import re

import diffusers
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)
from pipelines import assert_equals_pipeline, make_sd3
from pipelines_flux import tiny_flux, tiny_flux2, tiny_flux2_klein
from pipelines_qwen import make_qwen_image, make_sana, make_z_image

from trl_progrpo.families import family_class
from trl_progrpo.families.ddim_schedule import explicit_config
from trl_progrpo.policies import FlowSDE


MAKERS = [make_sd3, tiny_flux, tiny_flux2_klein, tiny_flux2, make_qwen_image, make_z_image, make_sana]
SOLVER = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
OTHERS = {
    "UniPC": lambda own: UniPCMultistepScheduler.from_config(own, **SOLVER, flow_shift=3.0),
    "UniPC from scratch": lambda own: UniPCMultistepScheduler(**SOLVER, use_dynamic_shifting=True),
    "DPM, Karras": lambda own: DPMSolverMultistepScheduler.from_config(own, **SOLVER, use_karras_sigmas=True),
    "Euler for diffusion": lambda own: EulerDiscreteScheduler.from_config(own),
    "Heun": lambda own: FlowMatchHeunDiscreteScheduler.from_config(own),
    "LCM": lambda own: FlowMatchLCMScheduler.from_config(own, invert_sigmas=True),
    "noise of its own": lambda own: FlowMatchEulerDiscreteScheduler.from_config(own, stochastic_sampling=True),
    "from image to noise": lambda own: FlowMatchEulerDiscreteScheduler.from_config(own, invert_sigmas=True),
}


@pytest.fixture(scope="module", params=MAKERS, ids=lambda make: make.__name__.removeprefix("make_"))
def made(request):
    return request.param()


@pytest.fixture
def pipeline(made):
    """A pipeline of each family; what a test puts on it is gone in the next one."""
    own = made.scheduler
    yield made
    made.scheduler = own


def family_of(pipeline):
    size = {} if type(pipeline).__name__ == "StableDiffusion3Pipeline" else {"height": 32, "width": 32}
    return family_class(pipeline)(pipeline, **size, max_sequence_length=16)


class Spaced(Exception):
    """The pipeline has its noise levels; what it does with them is the matter of `check_family`."""


def assert_noise_levels_are_the_pipelines(family, steps, monkeypatch):
    kind = type(family.pipeline.scheduler)
    set_timesteps = kind.set_timesteps

    @functools.wraps(set_timesteps)
    def stop(self, *args, **kwargs):
        set_timesteps(self, *args, **kwargs)
        raise Spaced

    schedule = family.make_schedule(steps)
    with monkeypatch.context() as patched:
        patched.setattr(kind, "set_timesteps", stop)
        with pytest.raises(Spaced):
            family.pipeline(prompt=["a red circle"], num_inference_steps=steps, **family.pipeline_call_kwargs)
    assert torch.equal(schedule.timesteps, family.pipeline.scheduler.timesteps)
    assert torch.equal(schedule.sigmas.float(), family.pipeline.scheduler.sigmas)
    FlowSDE().stochastic_steps(schedule)


def saved_and_reloaded(scheduler, folder):
    scheduler.save_pretrained(folder)
    return type(scheduler).from_pretrained(folder)


@pytest.mark.parametrize("saved", [False, True], ids=["in memory", "saved"])
@pytest.mark.parametrize("name", OTHERS)
def test_who_follows_the_advice_of_a_refusal_samples_as_the_pipeline(pipeline, name, saved, tmp_path, monkeypatch):
    other = OTHERS[name](pipeline.scheduler.config)
    pipeline.scheduler = saved_and_reloaded(other, tmp_path) if saved else other
    with pytest.raises(ValueError, match=rf"`model` has a {type(other).__name__}") as refusal:
        family_of(pipeline).make_schedule(2)
    [advice] = re.findall(r"\w+\.from_config\(.*\)", str(refusal.value))
    pipeline.scheduler = eval(advice, {**vars(diffusers), "pipeline": pipeline})
    assert_noise_levels_are_the_pipelines(family_of(pipeline), 3, monkeypatch)


def test_the_advice_keeps_the_noise_levels(pipeline):
    """FLUX pipelines space them otherwise where a config says `use_flow_sigmas`, which `from_config` takes over."""
    expected = family_of(pipeline).make_schedule(4).sigmas
    own = copy.copy(pipeline.scheduler)
    pipeline.scheduler = UniPCMultistepScheduler.from_config(own.config, **SOLVER)
    with pytest.raises(ValueError) as refusal:
        family_of(pipeline).make_schedule(4)
    [advice] = re.findall(r"\w+\.from_config\(.*\)", str(refusal.value))
    pipeline.scheduler = eval(advice, {**vars(diffusers), "pipeline": pipeline})
    if isinstance(own, FlowMatchEulerDiscreteScheduler):
        assert torch.equal(family_of(pipeline).make_schedule(4).sigmas, expected)
    else:
        assert pipeline.scheduler.shift == own.config.flow_shift


@pytest.mark.parametrize(
    "options",
    [
        {"use_flow_sigmas": True},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True, "shift": 2.0},
        {"shift_terminal": 0.02},
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    ],
    ids=str,
)
def test_options_of_the_euler_scheduler_are_those_of_the_pipeline(pipeline, options, monkeypatch):
    if "use_dynamic_shifting" in options and type(pipeline).__name__ == "SanaPipeline":
        options = {"shift": 5.0}
    config = {**explicit_config(FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)), **options}
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    assert all(pipeline.scheduler.config[name] == value for name, value in options.items())
    assert_noise_levels_are_the_pipelines(family_of(pipeline), 3, monkeypatch)


def test_asking_for_a_schedule_leaves_the_scheduler_as_it_is(pipeline):
    family, before = family_of(pipeline), dict(vars(pipeline.scheduler))
    family.make_schedule(3)
    after = vars(pipeline.scheduler)
    assert before.keys() == after.keys()
    assert all(after[name] is value for name, value in before.items())


@pytest.mark.parametrize("make", [tiny_flux2_klein, tiny_flux])
def test_images_are_the_pipelines_where_a_config_says_use_flow_sigmas(make):
    pipeline = make()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        UniPCMultistepScheduler.from_config(pipeline.scheduler.config, **SOLVER).config
    )
    assert pipeline.scheduler.config.use_flow_sigmas
    assert_equals_pipeline(family_of(pipeline), steps=2)
