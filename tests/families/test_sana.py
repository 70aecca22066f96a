# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
import warnings

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from pipelines_qwen import PROMPTS, difference, draw_noise, make_sana, sample, sana_scheduler

from trl_progrpo.families import SanaFamily, family_class
from trl_progrpo.policies import DDIM, FlowSDE
from trl_progrpo.testing import check_family


SIZE = {"height": 32, "width": 64, "max_sequence_length": 16}


def stock_latents(family, noise, **kwargs):
    call = {**family.pipeline_call_kwargs, "num_inference_steps": 2, "output_type": "latent", **kwargs}
    return family.pipeline(list(PROMPTS), latents=noise, **call).images


def test_contract():
    report = check_family(
        make_sana,
        heights_widths=[(32, 64), (32, 32)],
        num_inference_steps=(2, 3),
        prompts=PROMPTS,
        max_sequence_length=16,
    )
    assert report.family == "SanaFamily"
    assert report.latents_difference < 1e-4


def test_family_is_found_by_pipeline_class():
    assert family_class(make_sana()) is SanaFamily


def test_scheduler_of_the_checkpoint_becomes_first_order_with_its_noise_levels():
    family = SanaFamily(make_sana(), **SIZE)
    original, scheduler = sana_scheduler(), family.pipeline.scheduler
    names = [name for name in original.config if not name.startswith("_")]
    changed = {name for name in names if scheduler.config[name] != original.config[name]}
    assert changed == {"solver_order"}
    original.set_timesteps(5)
    schedule = family.make_schedule(5)
    assert torch.equal(schedule.sigmas, original.sigmas.double())
    assert torch.equal(schedule.timesteps, original.timesteps)


def test_first_order_approaches_the_checkpoints_own_sampler():
    pipeline = make_sana()
    own = pipeline.scheduler
    family = SanaFamily(pipeline, **SIZE)
    noise = draw_noise(family)
    pipeline.scheduler = own
    expected = stock_latents(family, noise, num_inference_steps=32)
    pipeline.scheduler = SanaFamily(make_sana(), **SIZE).pipeline.scheduler
    errors = [difference(sample(family, noise, steps=steps), expected) for steps in (2, 8, 32)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@pytest.mark.parametrize(
    "options", [{}, {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}, {"thresholding": True}]
)
def test_what_a_replacement_changes_is_said_once(options):
    pipeline = make_sana(sana_scheduler(**options))
    with pytest.warns(UserWarning, match=f"`{[*options, 'solver_order'][0]}` .*first order") as warned:
        family = SanaFamily(pipeline, **SIZE)
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SanaFamily(pipeline, **SIZE)
    noise = draw_noise(family)
    assert difference(sample(family, noise), stock_latents(family, noise)) < 1e-4


@pytest.mark.parametrize("steps", [4, 10, 20])
def test_noise_leaves_the_latents_their_size(steps):
    """Its noise levels begin a little below 1, next to the pole of Flow-GRPO's SDE."""
    schedule, policy = SanaFamily(make_sana(), **SIZE).make_schedule(steps), FlowSDE(0.7)
    assert 0.999 < schedule.sigma(0) < 1
    # Exactly, for data with variance 1: the velocity is (2 s - 1) / (s^2 + (1 - s)^2) x.
    variance = 1.0
    for i in range(steps - 1):
        s, c = schedule.sigma(i), policy.coefficients(schedule, i)
        variance *= (c.x + c.m * (2 * s - 1) / (s**2 + (1 - s) ** 2)) ** 2
        variance += c.std**2
        assert variance < 1.5


def test_flow_match_euler_is_left_as_it_is():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    family = SanaFamily(make_sana(scheduler), guidance_scale=4.0, **SIZE)
    assert family.pipeline.scheduler is scheduler
    noise = draw_noise(family)
    assert difference(sample(family, noise), stock_latents(family, noise)) < 1e-4


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler(), sana_scheduler(use_flow_sigmas=False), sana_scheduler(prediction_type="epsilon")]
)
def test_other_schedulers_are_refused(scheduler):
    with pytest.raises(ValueError, match=type(scheduler).__name__):
        SanaFamily(make_sana(scheduler), **SIZE)


def test_prompts_follow_the_pipelines_instruction():
    family = SanaFamily(make_sana(), **SIZE)
    embeds = family.encode_prompts(PROMPTS).positive["prompt_embeds"]
    plain, _, _, _ = family.pipeline.encode_prompt(list(PROMPTS), False, max_sequence_length=16)
    assert embeds.shape == plain.shape == (2, 16, 16)
    assert difference(embeds, plain) > 1e-2
    # That the instruction is the one of the pipeline's call is a matter of the parity in `check_family`.


def test_negative_prompts_are_the_pipelines():
    family = SanaFamily(make_sana(), guidance_scale=4.0, **SIZE)
    noise, negative = draw_noise(family), ("two blue squares above a red circle", "red")
    latents = sample(family, noise, negative_prompts=negative)
    assert difference(latents, stock_latents(family, noise, negative_prompt=list(negative))) < 1e-4
    assert difference(latents, sample(family, noise)) > 1e-3


def test_learned_variance_is_cut_off():
    family = SanaFamily(make_sana(out_channels=8), guidance_scale=4.0, **SIZE)
    noise = draw_noise(family)
    assert difference(sample(family, noise), stock_latents(family, noise)) < 1e-4


def test_timestep_scale():
    family = SanaFamily(make_sana(timestep_scale=0.5), **SIZE)
    noise = draw_noise(family)
    assert difference(sample(family, noise), stock_latents(family, noise)) < 1e-4


def test_half_precision_transformer_takes_prompts_of_a_full_precision_encoder():
    pipeline = make_sana()
    pipeline.transformer.to(torch.bfloat16)
    family = SanaFamily(pipeline, guidance_scale=4.0, **SIZE)
    assert sample(family, draw_noise(family)).isfinite().all()


def test_sizes_are_what_the_pipeline_takes():
    pipeline = make_sana()
    family = SanaFamily(pipeline)
    assert (family.height, family.size_multiple) == (32, 32)
    with pytest.raises(ValueError, match="multiples of 32"):
        SanaFamily(pipeline, height=48)


def test_wrong_policy_is_refused():
    family = SanaFamily(make_sana(), **SIZE)
    with pytest.raises(ValueError, match="DDIM"):
        DDIM().step(draw_noise(family), draw_noise(family), family.make_schedule(2), 0)
