# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import inspect
import re
import warnings

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from pipelines import STABLE_DIFFUSION, assert_equals_pipeline, make_sd, make_sd2, make_sdxl, seeded, unet

from trl_progrpo.families import StableDiffusionFamily, family_class, load_pipeline
from trl_progrpo.families.ddim_schedule import ddim_schedule, ddim_scheduler
from trl_progrpo.policies import DDIM, FlowSDE
from trl_progrpo.sampler import ExpandPruneSampler
from trl_progrpo.testing import PROMPTS, check_family


TABLE = {name: STABLE_DIFFUSION[name] for name in ("beta_start", "beta_end", "beta_schedule")}


def make_sample():
    """A model that predicts the clean sample."""
    return make_sd(DDIMScheduler(**STABLE_DIFFUSION, prediction_type="sample"))


def with_scheduler(scheduler):
    """A pipeline that kept its scheduler's `steps_offset`, which the constructor would set to 1."""
    pipeline = make_sd()
    pipeline.scheduler = scheduler
    return pipeline


@seeded
def make_distilled():
    return make_sd(unet=unet(time_cond_proj_dim=8))


class TestContract:
    @pytest.mark.parametrize("make", [make_sd, make_sd2, make_sample])
    def test_checkpoints(self, make):
        report = check_family(make)
        assert report.family == "StableDiffusionFamily"
        assert report.latents_difference < 2e-5
        assert report.image_difference < 1e-4
        assert report.prompt_effect > 0.1

    @pytest.mark.parametrize(
        "options",
        [
            {"steps_offset": 0, "set_alpha_to_one": True},
            {"steps_offset": 0, "set_alpha_to_one": False},
            {"timestep_spacing": "trailing", "set_alpha_to_one": False},
            {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        ],
        ids=lambda options: "-".join(map(str, options.values())),
    )
    def test_schedulers(self, options):
        pipeline = with_scheduler(DDIMScheduler(**{**STABLE_DIFFUSION, **options}))
        assert_equals_pipeline(StableDiffusionFamily(pipeline, height=24, guidance_scale=5.0))

    @pytest.mark.parametrize(
        "scheduler",
        [EulerDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing="linspace"), KDPM2DiscreteScheduler()],
    )
    @pytest.mark.filterwarnings("ignore:`model` has a")
    def test_other_schedulers_become_ddim(self, scheduler):
        assert_equals_pipeline(StableDiffusionFamily(make_sd(scheduler), guidance_scale=5.0))


class TestSchedule:
    @pytest.mark.parametrize("steps", [1, 4, 5, 50])
    # At eta = 1 and zero terminal SNR diffusers takes the root of a rounding error: NaN.
    @pytest.mark.parametrize("eta", [0.0, 0.9])
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"set_alpha_to_one": False},
            {"set_alpha_to_one": False, "steps_offset": 0, "prediction_type": "sample"},
            {"timestep_spacing": "trailing", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
            {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
            {"num_train_timesteps": 120, "steps_offset": 1},
        ],
        ids=str,
    )
    def test_is_the_path_of_the_scheduler_step(self, options, eta, steps):
        options = {**STABLE_DIFFUSION, "clip_sample": False, **options}
        scheduler = DDIMScheduler(**options)
        schedule = ddim_schedule(ddim_scheduler(scheduler), steps)
        scheduler.set_timesteps(steps)
        assert torch.equal(schedule.timesteps, scheduler.timesteps)
        generator = torch.Generator().manual_seed(0)
        latents, output, noise = torch.randn(3, 2, 4, 6, 6, generator=generator)
        for i, t in enumerate(scheduler.timesteps):
            expected, x0 = scheduler.step(output, t, latents, eta=eta, variance_noise=noise, return_dict=False)
            transition = DDIM(eta).step(output, latents, schedule, i)
            torch.testing.assert_close(transition.sample(noise), expected, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(transition.pred_original_sample, x0, atol=2e-5, rtol=1e-4)

    @pytest.mark.parametrize("steps", [3, 7, 28, 30])
    def test_leading_spacing_takes_any_number_of_steps(self, steps):
        assert ddim_schedule(DDIMScheduler(**STABLE_DIFFUSION), steps).num_steps == steps

    def test_trailing_spacing_wants_steps_that_meet(self):
        scheduler = DDIMScheduler(**STABLE_DIFFUSION, timestep_spacing="trailing")
        with pytest.raises(ValueError, match=r"`num_inference_steps` is 28, .* divides 1000; use 25 or 40"):
            ddim_schedule(scheduler, 28)

    @pytest.mark.parametrize(
        ("offset", "steps", "cure"), [(1, 1000, 999), (2, 500, 499), (5, 200, 199), (3, 1000, 997), (40, 25, 24)]
    )
    def test_an_offset_that_leads_out_of_the_table(self, offset, steps, cure):
        scheduler = DDIMScheduler(**{**STABLE_DIFFUSION, "steps_offset": offset})
        with pytest.raises(
            ValueError,
            match=rf"`num_inference_steps` is {steps}, .*`steps_offset` {offset} .* use {cure} .*`eval_num_inf",
        ):
            ddim_schedule(scheduler, steps)
        assert ddim_schedule(scheduler, cure).num_steps == cure

    def test_the_scheduler_is_left_as_it_is(self):
        scheduler = DDIMScheduler(**STABLE_DIFFUSION)
        scheduler.set_timesteps(7)
        before = dict(vars(scheduler))
        ddim_schedule(scheduler, 3)
        assert all(vars(scheduler)[name] is value for name, value in before.items())

    def test_final_level_is_where_the_last_step_leads(self):
        scheduler = DDIMScheduler(**{**STABLE_DIFFUSION, "steps_offset": 35}, timestep_spacing="leading")
        schedule = ddim_schedule(scheduler, 30)
        assert schedule.timesteps[-1] == 35
        assert schedule.alphas[-1] == scheduler.alphas_cumprod[35 - 33].double().sqrt()


class TestScheduler:
    def test_keeps_betas_that_were_another_class_default(self):
        old = KDPM2DiscreteScheduler()
        new = ddim_scheduler(old)
        assert new.config.beta_end == old.config.beta_end == 0.012
        assert torch.equal(new.alphas_cumprod, old.alphas_cumprod)

    def test_keeps_an_offset_that_the_pipeline_corrected(self):
        pipeline = make_sd(DDIMScheduler(clip_sample=False))
        assert pipeline.scheduler.config.steps_offset == 1
        StableDiffusionFamily(pipeline)
        assert pipeline.scheduler.config.steps_offset == 1

    def test_never_clips(self):
        config = ddim_scheduler(DDPMScheduler(clip_sample=True, thresholding=True)).config
        assert not config.clip_sample
        assert not config.thresholding

    def test_linspace_becomes_leading(self):
        with pytest.warns(UserWarning, match="linspace"):
            assert ddim_scheduler(DDIMScheduler(timestep_spacing="linspace")).config.timestep_spacing == "leading"

    @pytest.mark.parametrize(
        ("scheduler", "told"),
        [
            (PNDMScheduler(**TABLE), ""),
            (EulerDiscreteScheduler(**TABLE, use_karras_sigmas=True), 'without `use_karras_sigmas`.*"leading"'),
            (EulerAncestralDiscreteScheduler(**TABLE, timestep_spacing="trailing"), ""),
            (DPMSolverMultistepScheduler(**TABLE, use_lu_lambdas=True), "without `use_lu_lambdas`"),
            (UniPCMultistepScheduler(**TABLE, use_exponential_sigmas=True), "without `use_exponential_sigmas`"),
            (LCMScheduler(**TABLE, clip_sample=False), ""),
            (DDIMScheduler(**TABLE, clip_sample=False, thresholding=True), "without `thresholding`"),
            (DDIMScheduler(**TABLE, clip_sample=True), "without `clip_sample`"),
            (DDPMScheduler(**TABLE, clip_sample=False, rescale_betas_zero_snr=True, prediction_type="sample"), ""),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, SchedulerMixin) else "",
    )
    @pytest.mark.parametrize("make", [make_sd, make_sdxl])
    def test_what_a_replacement_changes_is_said_once(self, scheduler, told, make, tmp_path):
        """And what it makes is the same of a scheduler in memory and of the one that was saved."""
        scheduler.save_pretrained(tmp_path)
        configs = []
        for own in (scheduler, type(scheduler).from_pretrained(tmp_path)):
            pipeline = make()
            pipeline.scheduler = own
            family = family_class(pipeline)
            with pytest.warns(UserWarning, match=rf"has a {type(own).__name__}.*{told}") as warned:
                family(pipeline)
            assert len(warned) == 1
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                family(pipeline)
            names = inspect.signature(DDIMScheduler).parameters
            configs.append({name: pipeline.scheduler.config[name] for name in names})
        assert configs[0] == configs[1]
        kept = {"set_alpha_to_one", "steps_offset", "rescale_betas_zero_snr"} & set(scheduler.config)
        assert all(configs[0][name] == scheduler.config[name] for name in kept)

    @pytest.mark.parametrize(
        "scheduler", [PNDMScheduler(**TABLE, steps_offset=1), UniPCMultistepScheduler(**TABLE, steps_offset=1)]
    )
    @pytest.mark.filterwarnings("ignore:`model` has a")
    def test_images_to_compare_with_are_those_of_a_pipeline_with_its_scheduler(self, scheduler):
        """As the warning says."""
        pipeline, stock = make_sd(scheduler), make_sd(scheduler)
        family = StableDiffusionFamily(pipeline)
        stock.scheduler = pipeline.scheduler
        noise = torch.randn(2, *family.latent_shape, generator=torch.Generator().manual_seed(0))
        call = {"prompt": list(PROMPTS), "num_inference_steps": 3, "output_type": "pt", **family.pipeline_call_kwargs}
        assert torch.equal(*(p(**call, latents=noise).images for p in (pipeline, stock)))
        assert_equals_pipeline(family)

    def test_a_scheduler_that_fits_is_kept_without_a_word(self):
        pipeline = make_sd()
        pipeline.scheduler = DDIMScheduler(**{**STABLE_DIFFUSION, "clip_sample": False})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            StableDiffusionFamily(pipeline)

    @pytest.mark.filterwarnings("ignore:`model` has a")
    def test_betas_that_ddim_does_not_know_are_refused_with_code_that_works(self):
        pipeline = with_scheduler(DDPMScheduler(beta_schedule="sigmoid", steps_offset=1))
        betas = pipeline.scheduler.betas
        with pytest.raises(ValueError, match="beta schedule 'sigmoid'") as refusal:
            StableDiffusionFamily(pipeline)
        [advice] = re.findall(r"DDIMScheduler\.from_config\(.*\)", str(refusal.value))
        pipeline.scheduler = eval(advice, {"DDIMScheduler": DDIMScheduler, "pipeline": pipeline})
        assert_equals_pipeline(StableDiffusionFamily(pipeline))
        torch.testing.assert_close(pipeline.scheduler.betas, betas)

    def test_is_stable_when_a_family_is_built_twice(self):
        pipeline = make_sd()
        configs = [StableDiffusionFamily(pipeline).pipeline.scheduler.to_json_string() for _ in range(2)]
        assert configs[0] == configs[1]

    @pytest.mark.parametrize(
        "scheduler", [FlowMatchEulerDiscreteScheduler(), DDIMScheduler(prediction_type="flow_prediction")]
    )
    def test_refuses_models_without_a_ddim_form(self, scheduler):
        with pytest.raises(ValueError, match=r"has no DDIM form; .* epsilon, v_prediction or sample"):
            StableDiffusionFamily(with_scheduler(scheduler))


class TestFamily:
    @pytest.mark.parametrize("size", [{"height": 20}, {"width": 17}])
    def test_refuses_sizes_that_do_not_divide(self, size):
        (name, value), *_ = size.items()
        with pytest.raises(ValueError, match=f"`{name}` is {value}, .* multiples of 8; use 16"):
            StableDiffusionFamily(make_sd(), **size)

    def test_default_size_may_have_two_sides(self):
        @seeded
        def make():
            return make_sd(unet=unet(sample_size=(8, 12)))

        family = StableDiffusionFamily(make())
        assert (family.height, family.width) == (16, 24)
        assert family.latent_shape == (4, 8, 12)

    def test_refuses_a_distilled_guidance_input(self):
        with pytest.raises(ValueError, match="distilled"):
            StableDiffusionFamily(make_distilled())

    def test_refuses_a_flow_policy_and_names_ddim(self):
        schedule = StableDiffusionFamily(make_sd()).make_schedule(4)
        with pytest.raises(ValueError, match=r"FlowSDE steps flow models, .* 'epsilon'; use DDIM"):
            FlowSDE().step(torch.zeros(1, 4), torch.zeros(1, 4), schedule, 0)

    def test_own_negative_prompts(self):
        family = StableDiffusionFamily(make_sd(), guidance_scale=3.0)
        usual, own = family.encode_prompts(PROMPTS), family.encode_prompts(PROMPTS, ["a square", "two circles"])
        assert torch.equal(usual.positive["prompt_embeds"], own.positive["prompt_embeds"])
        assert torch.equal(usual.negative["prompt_embeds"][0], usual.negative["prompt_embeds"][1])
        assert not torch.equal(own.negative["prompt_embeds"][0], own.negative["prompt_embeds"][1])

    def test_a_safety_checker_does_not_black_out_training_images(self):
        pipeline = make_sd()
        pipeline.run_safety_checker = lambda image, device, dtype: (torch.zeros_like(image), [True] * len(image))
        family = StableDiffusionFamily(pipeline)
        latents = torch.randn(2, *family.latent_shape)
        stock = pipeline(prompt=list(PROMPTS), latents=latents, num_inference_steps=1, output_type="pt").images
        assert not stock.any()
        with torch.no_grad():
            assert family.decode(latents).std() > 0.01

    def test_loads_without_a_safety_checker(self, tmp_path):
        make_sd().save_pretrained(tmp_path)
        assert family_class(str(tmp_path)) is StableDiffusionFamily
        pipeline = load_pipeline(str(tmp_path))
        assert pipeline.safety_checker is None
        assert_equals_pipeline(StableDiffusionFamily(pipeline))


class TestHalfPrecision:
    @staticmethod
    def log_probs(family, rollout, policy):
        """Of the stored latents, with all survivors in one call."""
        conditioning = rollout.conditioning.rows(rollout.prompt_index)
        values = []
        for s, step in enumerate(rollout.step_indices):
            latents = rollout.latents[:, s].float()
            with torch.no_grad():
                output = family.predict(family.denoiser, latents, rollout.schedule.timesteps[step], conditioning)
            values.append(policy.step(output, latents, rollout.schedule, step).log_prob(rollout.latents[:, s + 1]))
        return torch.stack(values, 1)

    @pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16], ids=str)
    def test_log_probs_are_those_of_the_rounded_latents(self, weights, storage):
        pipeline = make_sd().to(weights)
        pipeline.vae.float()
        family, policy = StableDiffusionFamily(pipeline, guidance_scale=3.0), DDIM()
        sampler = ExpandPruneSampler(
            family,
            policy,
            lambda prompts, images, columns, preview: images.mean((1, 2, 3))[:, None],
            reward_weights=torch.ones(1),
            num_inference_steps=4,
            num_generations=2,
            num_expansions=4,
            prune_steps=[1],
            prune_sizes=[2],
            storage_dtype=storage,
        )
        rollout = sampler.rollout(family.denoiser, list(PROMPTS))
        assert rollout.latents.dtype == storage
        assert rollout.images.dtype == torch.float32
        drift = (self.log_probs(family, rollout, policy) - rollout.log_probs).abs().max()
        assert drift < 1e-4
