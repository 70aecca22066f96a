# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The shapes model as a diffusion model, as the benchmarks use it: the same weights, another path, other policies."""

import sys
from pathlib import Path

import pytest
import torch

from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
from trl_progrpo.families import StableDiffusion3Family, family_class, load_pipeline
from trl_progrpo.policies import DDIM, FlowSDE
from trl_progrpo.sampler import ExpandPruneSampler
from trl_progrpo.testing import check_family
from trl_progrpo.tiny import load_shapes, shapes_reward


sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from shapes_ddim import ShapesDDIMFamily, load_shapes_ddim


CAPTIONS = ["a red circle", "two blue squares", "a green triangle left of a yellow circle"]


@pytest.fixture(scope="module")
def flow():
    return StableDiffusion3Family(load_pipeline("shapes"), guidance_scale=2.0)


@pytest.fixture(scope="module")
def diffusion():
    return ShapesDDIMFamily(load_shapes_ddim(), guidance_scale=2.0)


def rewards(family, policy, prompts, group=1, steps=10):
    """Final rewards `(P, group)`; the same noise for all families."""
    sampler = ExpandPruneSampler(
        family,
        policy,
        lambda prompts, images, columns, preview: torch.tensor(shapes_reward(prompts, images))[:, None],
        reward_weights=torch.ones(1),
        num_inference_steps=steps,
        num_generations=group,
        rollout_batch_size=128,
    )
    return sampler.rollout(family.denoiser, prompts).rewards.view(len(prompts), group)


def test_keeps_every_promise_of_a_family():
    """Among them: `pipeline(...)` of stock diffusers draws the same image, and loads what was trained."""
    report = check_family(
        load_shapes_ddim,
        heights_widths=[(32, 32)],
        num_inference_steps=[5],
        guidance_scales=[2.0],
        prompts=CAPTIONS[:2],
    )
    assert report.family == "ShapesDDIMFamily"
    assert report.prompt_effect > 0.1


@pytest.mark.parametrize("step", range(10))
def test_noise_and_clean_sample_are_those_of_the_velocity(flow, diffusion, step):
    schedule = diffusion.make_schedule(10)
    alpha, sigma = schedule.alpha(step), schedule.sigma(step)
    time = sigma / (alpha + sigma)
    latents = torch.randn(3, *flow.latent_shape, generator=torch.Generator().manual_seed(step))
    conditioning = flow.encode_prompts(CAPTIONS)
    with torch.no_grad():
        velocity = flow.predict(
            flow.denoiser, latents / (alpha + sigma), torch.tensor(1000 * time, dtype=torch.float32), conditioning
        )
        noise = diffusion.predict(diffusion.denoiser, latents, schedule.timesteps[step], conditioning)
    torch.testing.assert_close(noise, latents / (alpha + sigma) + (1 - time) * velocity, atol=1e-4, rtol=1e-4)
    clean = DDIM(eta=1.0).step(noise, latents, schedule, step).pred_original_sample
    # At the first step alpha is 0.006, and the noise is known to 1e-6.
    torch.testing.assert_close(clean, latents / (alpha + sigma) - time * velocity, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("steps", [4, 10, 20, 50])
def test_path_begins_in_noise_and_ends_clean(diffusion, steps):
    schedule = diffusion.make_schedule(steps)
    assert schedule.prediction_type == "epsilon"
    assert 0 < schedule.alpha(0) < 0.01
    assert (schedule.alpha(steps), schedule.sigma(steps)) == (1, 0)
    assert DDIM(eta=1.0).stochastic_steps(schedule) == tuple(range(steps - 1))


def test_steps_that_do_not_meet_are_refused(diffusion):
    with pytest.raises(ValueError, match="divides 1000; use 10 or 20"):
        diffusion.make_schedule(12)


def test_policies_do_not_mix(diffusion):
    with pytest.raises(ValueError, match="DDIM"):
        FlowSDE().step(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), diffusion.make_schedule(4), 0)


def test_images_are_as_good_as_the_flows_and_noise_spreads_groups():
    flow, diffusion = StableDiffusion3Family(load_pipeline("shapes")), ShapesDDIMFamily(load_shapes_ddim())
    prompts = load_shapes("test").shuffle(seed=0)["prompt"][:64]
    by_flow = rewards(flow, FlowSDE().ode(), prompts)
    by_diffusion = rewards(diffusion, DDIM(eta=0.0), prompts)
    groups = rewards(diffusion, DDIM(eta=1.0), prompts[:6], group=8)
    print(
        f"noise-free: flow {by_flow.mean():.3f}, diffusion {by_diffusion.mean():.3f}, with noise {groups.mean():.3f}"
    )
    assert by_flow.mean() > 0.35
    # The standard error of their difference is about 0.03: the paths have other steps, but the same end.
    assert (by_flow - by_diffusion).mean().abs() < 0.1
    assert groups.mean() > 0.35
    assert groups.std(1).mean() > 0.1


@pytest.mark.filterwarnings("ignore")
def test_two_steps_of_training_and_their_adapter(tmp_path):
    prompts = list(load_shapes("train").select(range(0, 400, 100)))
    args = ProGRPOConfig(
        output_dir=str(tmp_path),
        num_inference_steps=5,
        num_generations=4,
        num_expansions=8,
        prune_steps=[2],
        prune_sizes=[4],
        preview_decoder="shapes",
        audit_fraction=0.0,
        per_device_train_batch_size=8,
        rollout_batch_size=16,
        learning_rate=3e-3,
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        num_validation_prompts=0,
    )
    model = load_shapes_ddim()
    assert family_class(model) is ShapesDDIMFamily
    trainer = ProGRPOTrainer(model=model, reward_funcs="shapes", args=args, train_dataset=prompts)
    assert isinstance(trainer.sampler.policy, DDIM)
    trainer.train()
    trainer.save_model()
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert [entry["sampling/nfe"] for entry in logs] == [2 * (8 * 3 + 4 * 2)] * 2

    trained, fresh = trainer.family, ShapesDDIMFamily(load_shapes_ddim())
    latents = torch.randn(3, *fresh.latent_shape, generator=torch.Generator().manual_seed(0))
    conditioning, timestep = fresh.encode_prompts(CAPTIONS), fresh.make_schedule(5).timesteps[1]

    @torch.no_grad()
    def predicted(family):
        return family.predict(family.denoiser, latents, timestep, conditioning)

    before = predicted(fresh)
    fresh.pipeline.load_lora_weights(str(tmp_path))
    torch.testing.assert_close(predicted(fresh), predicted(trained), atol=1e-5, rtol=1e-5)
    assert (predicted(fresh) - before).abs().max() > 1e-3
