# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import math

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from trl_progrpo.policies import DDIM, POLICIES, DanceSDE, FlowCPS, FlowSDE, Policy, noise_option
from trl_progrpo.types import Schedule


FLOW_POLICIES = [FlowSDE, FlowCPS, DanceSDE]
DIFFUSION_TYPES = ["epsilon", "v_prediction", "sample"]

SIGMAS = torch.tensor([1.0, 0.93, 0.8, 0.55, 0.3, 0.06, 0.0], dtype=torch.float64)
FLOW = Schedule.flow(SIGMAS[:-1] * 1000, SIGMAS)

ACP = torch.tensor([0.006, 0.08, 0.35, 0.7, 0.93, 0.9991], dtype=torch.float64)


def diffusion_schedule(prediction_type, acp=ACP):
    return Schedule(torch.arange(len(acp) - 1, 0, -1), acp.sqrt(), (1 - acp).sqrt(), prediction_type)


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(
    ("policy", "option"),
    [*((policy, "noise_level") for policy in FLOW_POLICIES), (DDIM, "eta"), (lambda eta, log_prob_reduction: None, "eta"),
     (lambda **options: None, "noise_level")],
)  # fmt: skip
def test_a_policy_says_which_option_sets_its_noise(policy, option):
    assert noise_option(policy) == option


# The published formulas, written down once more and as naively as possible: tensors in, (mean, full std, x0) out.


def naive_flow_sde(x, v, sigmas, i, a):
    s, dt = sigmas[i], sigmas[i + 1] - sigmas[i]
    stand_in = sigmas[1] if s == 1 else s
    std_t = a * torch.sqrt(s / (1 - stand_in))
    mean = x * (1 + std_t**2 / (2 * s) * dt) + v * (1 + std_t**2 * (1 - s) / (2 * s)) * dt
    return mean, std_t * torch.sqrt(-dt), x - s * v


def naive_flow_cps(x, v, sigmas, i, a):
    s, s_next = sigmas[i], sigmas[i + 1]
    std = s_next * math.sin(a * math.pi / 2)
    x0, x1 = x - s * v, x + (1 - s) * v
    return x0 * (1 - s_next) + x1 * torch.sqrt(s_next**2 - std**2), std, x0


def naive_dance_sde(x, v, sigmas, i, a):
    s, dt = sigmas[i], sigmas[i + 1] - sigmas[i]
    x0 = x - s * v
    score = -(x - x0 * (1 - s)) / s**2
    return x + v * dt - 0.5 * a**2 * score * dt, a * torch.sqrt(-dt), x0


def naive_ddim(x, out, acp, i, eta, prediction_type):
    a, a_next = acp[i], acp[i + 1]
    if prediction_type == "epsilon":
        x0, eps = (x - (1 - a).sqrt() * out) / a.sqrt(), out
    elif prediction_type == "v_prediction":
        x0, eps = a.sqrt() * x - (1 - a).sqrt() * out, a.sqrt() * out + (1 - a).sqrt() * x
    else:
        x0, eps = out, (x - a.sqrt() * out) / (1 - a).sqrt()
    std = eta * torch.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))
    return a_next.sqrt() * x0 + (1 - a_next - std**2).sqrt() * eps, std, x0


NAIVE = {FlowSDE: naive_flow_sde, FlowCPS: naive_flow_cps, DanceSDE: naive_dance_sde}
FLOW_CASES = [(FlowSDE, 0.7), (FlowSDE, 1.3), (FlowCPS, 0.7), (FlowCPS, 1.0), (DanceSDE, 0.3), (DanceSDE, 1.0)]


class TestFormulas:
    def check(self, policy, schedule, i, naive):
        x, out = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1)
        mean, std, x0 = naive(x, out)
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-6)):
            transition = policy.step(out.to(dtype), x.to(dtype), schedule, i)
            assert transition.mean.dtype == transition.pred_original_sample.dtype == dtype
            scale = mean.abs().max().item(), x0.abs().max().item()
            torch.testing.assert_close(transition.mean.double(), mean, rtol=0, atol=tolerance * max(1, scale[0]))
            torch.testing.assert_close(
                transition.pred_original_sample.double(), x0, rtol=0, atol=tolerance * max(1, scale[1])
            )
            assert transition.std.dtype == torch.float64
            assert transition.std.ndim == 0
            # sqrt(s'^2 - std^2) may leave the naive formula a rounding error below the exact value.
            assert float(transition.std) == pytest.approx(float(std), rel=1e-9, abs=1e-12)
            assert policy.std(schedule, i) == float(transition.std)

    @pytest.mark.parametrize(("cls", "level"), FLOW_CASES)
    @pytest.mark.parametrize("i", range(6))
    def test_flow(self, cls, level, i):
        self.check(cls(level), FLOW, i, lambda x, v: NAIVE[cls](x, v, SIGMAS, i, level))

    @pytest.mark.parametrize("prediction_type", DIFFUSION_TYPES)
    @pytest.mark.parametrize("eta", [1.0, 0.4])
    @pytest.mark.parametrize("i", range(5))
    def test_ddim(self, prediction_type, eta, i):
        naive = lambda x, out: naive_ddim(x, out, ACP, i, eta, prediction_type)
        self.check(DDIM(eta), diffusion_schedule(prediction_type), i, naive)

    def test_flow_sde_starts_at_sigma_one_with_the_second_sigma(self):
        assert FlowSDE(0.7).std(FLOW, 0) == pytest.approx(0.7 * math.sqrt(1 / 0.07) * math.sqrt(0.07), rel=1e-12)
        one_step = Schedule.flow(torch.tensor([1000.0]), torch.tensor([1.0, 0.0]))
        assert FlowSDE(0.7).std(one_step, 0) == pytest.approx(0.7)

    @pytest.mark.parametrize("shift", [1.18, 1.32, 1.43, 1.66, 3.0])
    def test_flow_sde_starts_alike_whatever_rounding_made_of_sigma_one(self, shift):
        """Shifts of fp32 sigmas end a little above 1 (1.32), below it (1.43), or at it."""
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(10)
        schedule = Schedule.flow(scheduler.timesteps, scheduler.sigmas)
        assert schedule.sigma(0) == 1
        assert FlowSDE(0.7).std(schedule, 0) == pytest.approx(0.7, rel=1e-6)

    def test_flow_sde_near_its_pole(self):
        sigmas = torch.tensor([0.9997, 0.95, 0.5, 0.0])
        schedule = Schedule.flow(sigmas[:-1] * 1000, sigmas)
        # Of the formula itself it is 9.
        assert FlowSDE(0.7).std(schedule, 0) == pytest.approx(0.7, abs=0.01)
        assert FlowSDE(0.7).std(schedule, 1) == pytest.approx(0.7 * math.sqrt(0.95 / 0.05 * 0.45), rel=1e-6)

    @pytest.mark.parametrize(
        ("policy", "level"), [(FlowSDE(), 0.7), (FlowCPS(), 0.7), (DanceSDE(), 0.3), (DDIM(), 1.0)]
    )
    def test_defaults(self, policy, level):
        assert (policy.eta if isinstance(policy, DDIM) else policy.noise_level) == level
        assert policy.log_prob_reduction == "mean"

    @pytest.mark.parametrize("policy", [FlowSDE(), FlowCPS(), DanceSDE(), DDIM()])
    def test_half_precision_is_upcast_before_any_arithmetic(self, policy):
        schedule = diffusion_schedule("epsilon") if isinstance(policy, DDIM) else FLOW
        x, out = draw(2, 5, dtype=torch.bfloat16), draw(2, 5, dtype=torch.bfloat16, seed=1)
        transition, reference = policy.step(out, x, schedule, 2), policy.step(out.float(), x.float(), schedule, 2)
        assert transition.mean.dtype == torch.float32
        assert torch.equal(transition.mean, reference.mean)
        assert torch.equal(transition.pred_original_sample, reference.pred_original_sample)

    @pytest.mark.parametrize("policy", [FlowSDE(), FlowCPS(), DanceSDE(), DDIM()])
    def test_a_row_does_not_depend_on_its_batch(self, policy):
        schedule = diffusion_schedule("epsilon") if isinstance(policy, DDIM) else FLOW
        x, out = draw(7, 3, 5, dtype=torch.float32), draw(7, 3, 5, dtype=torch.float32, seed=1)
        together = policy.step(out, x, schedule, 2).mean
        assert torch.equal(
            together, torch.cat([policy.step(o[None], y[None], schedule, 2).mean for o, y in zip(out, x)])
        )


class TestPredictedSample:
    def test_exact_networks_give_back_the_clean_sample(self):
        x0, eps = draw(2, 6), draw(2, 6, seed=1)
        for i in range(FLOW.num_steps):
            x = FLOW.alpha(i) * x0 + FLOW.sigma(i) * eps
            for cls in FLOW_POLICIES:
                predicted = cls().step(eps - x0, x, FLOW, i).pred_original_sample
                torch.testing.assert_close(predicted, x0, rtol=0, atol=1e-12)
        for kind in DIFFUSION_TYPES:
            schedule = diffusion_schedule(kind)
            for i in range(schedule.num_steps):
                alpha, sigma = schedule.alpha(i), schedule.sigma(i)
                out = {"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "sample": x0}[kind]
                predicted = DDIM().step(out, alpha * x0 + sigma * eps, schedule, i).pred_original_sample
                torch.testing.assert_close(predicted, x0, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("cls", FLOW_POLICIES)
    def test_it_is_one_euler_step_to_the_end(self, cls):
        v, x = draw(2, 6), draw(2, 6, seed=1)
        one_step = Schedule.flow(FLOW.timesteps[2:3], torch.tensor([FLOW.sigma(2), 0.0], dtype=torch.float64))
        expected = cls().ode().step(v, x, one_step, 0).mean
        torch.testing.assert_close(cls().step(v, x, FLOW, 2).pred_original_sample, expected, rtol=0, atol=1e-12)


class TestDiffusersParity:
    @pytest.mark.parametrize("cls", FLOW_POLICIES)
    def test_without_noise_flow_is_the_euler_step_to_the_last_bit(self, cls):
        v, x = draw(2, 50), draw(2, 50, seed=1)
        for i in range(FLOW.num_steps):
            assert torch.equal(cls(0.0).step(v, x, FLOW, i).mean, x + (SIGMAS[i + 1] - SIGMAS[i]) * v)

    @pytest.mark.parametrize("cls", FLOW_POLICIES)
    @pytest.mark.parametrize("shift", [1.0, 3.0])
    def test_without_noise_flow_is_the_euler_scheduler(self, cls, shift):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(10)
        schedule = Schedule.flow(scheduler.timesteps, scheduler.sigmas)
        policy = cls().ode()
        ours = theirs = draw(2, 4, 3, 3, dtype=torch.float32)
        for i, t in enumerate(scheduler.timesteps):
            output = torch.sin(3 * theirs + i)
            theirs = scheduler.step(output, t, theirs).prev_sample
            ours = policy.step(output, ours, schedule, i).mean
            assert torch.equal(ours, theirs), f"step {i}"
        assert policy.stochastic_steps(schedule) == ()

    @pytest.mark.parametrize("prediction_type", DIFFUSION_TYPES)
    @pytest.mark.parametrize("steps_offset", [0, 1])
    @pytest.mark.parametrize("set_alpha_to_one", [True, False])
    @pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
    def test_ddim_is_the_ddim_scheduler(self, prediction_type, steps_offset, set_alpha_to_one, eta):
        scheduler, schedule = self.ddim_pair(
            prediction_type, steps_offset=steps_offset, set_alpha_to_one=set_alpha_to_one
        )
        self.check_chain(DDIM(eta), scheduler, schedule, eta, atol=1e-9)
        last = schedule.num_steps - 1
        finite = steps_offset == 1 and not set_alpha_to_one
        expected = range(last + finite) if eta else ()
        assert DDIM(eta).stochastic_steps(schedule) == tuple(expected)

    def test_zero_terminal_snr(self):
        options = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
        scheduler, schedule = self.ddim_pair("v_prediction", **options)
        assert schedule.alpha(0) < 1e-3
        self.check_chain(DDIM(), scheduler, schedule, 1.0, atol=1e-9)

    @staticmethod
    def ddim_pair(prediction_type, **options):
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction_type,
            clip_sample=False,
            **options,
        )
        # In float64 diffusers' formula is a sharp reference; in float32 its 1 - abar / abar' has few digits left.
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
        if not options.get("set_alpha_to_one", True):
            scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
        scheduler.set_timesteps(10)
        acp = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps], scheduler.final_alpha_cumprod.view(1)])
        return scheduler, Schedule(scheduler.timesteps, acp.sqrt(), (1 - acp).sqrt(), prediction_type)

    @staticmethod
    def check_chain(policy, scheduler, schedule, eta, atol):
        ours = theirs = draw(2, 4, 3, 3)
        for i, t in enumerate(scheduler.timesteps):
            output, noise = 0.5 * torch.sin(3 * theirs + i), draw(2, 4, 3, 3, seed=10 + i)
            step = scheduler.step(output, t, theirs, eta=eta, variance_noise=noise)
            transition = policy.step(output, ours, schedule, i)
            torch.testing.assert_close(
                transition.pred_original_sample, step.pred_original_sample, rtol=atol, atol=atol
            )
            theirs, ours = step.prev_sample, transition.sample(noise)
            torch.testing.assert_close(ours, theirs, rtol=atol, atol=atol)


class TestStochasticSteps:
    @pytest.mark.parametrize("cls", FLOW_POLICIES)
    def test_flow_leaves_out_the_step_to_zero(self, cls):
        assert cls().stochastic_steps(FLOW) == (0, 1, 2, 3, 4)
        assert cls().ode().stochastic_steps(FLOW) == ()

    def test_the_last_step_still_follows_the_formula(self):
        assert FlowCPS().std(FLOW, 5) == 0
        assert FlowSDE().std(FLOW, 5) > 0
        assert DanceSDE().std(FLOW, 5) > 0

    @pytest.mark.parametrize("cls", FLOW_POLICIES)
    def test_a_schedule_that_ends_above_zero_keeps_its_last_step(self, cls):
        assert cls().stochastic_steps(Schedule.flow(FLOW.timesteps[:3], SIGMAS[:4])) == (0, 1, 2)

    def test_ddim_leaves_out_steps_without_variance(self):
        acp = torch.tensor([0.1, 0.5, 0.5, 0.9, 1.0])
        assert DDIM().stochastic_steps(diffusion_schedule("epsilon", acp)) == (0, 2)

    @pytest.mark.parametrize(
        "policy", [FlowSDE(0.5, "sum"), FlowCPS(0.5, "sum"), DanceSDE(0.5, "sum"), DDIM(0.5, "sum")]
    )
    def test_ode_is_the_same_class_without_noise(self, policy):
        ode = policy.ode()
        assert type(ode) is type(policy)
        assert ode.log_prob_reduction == "sum"
        schedule = diffusion_schedule("epsilon") if isinstance(policy, DDIM) else FLOW
        transition = ode.step(draw(1, 2), draw(1, 2, seed=1), schedule, 1)
        assert transition.std == 0
        assert policy.std(schedule, 1) > 0
        for use in (transition.log_prob, lambda mean: transition.kl(transition)):
            with pytest.raises(ValueError, match="needs a stochastic step"):
                use(transition.mean)


class TestTransitions:
    @pytest.mark.parametrize("policy", [FlowSDE(), FlowCPS(), DanceSDE(), DDIM()])
    def test_replay_has_ratio_one(self, policy):
        schedule = diffusion_schedule("epsilon") if isinstance(policy, DDIM) else FLOW
        x, out = draw(3, 4, 2, 2, dtype=torch.bfloat16), draw(3, 4, 2, 2, dtype=torch.bfloat16, seed=1)
        for i in policy.stochastic_steps(schedule):
            first = policy.step(out, x, schedule, i)
            following = first.sample(draw(3, 4, 2, 2, seed=2)).bfloat16()
            again = policy.step(out.clone(), x.clone(), schedule, i)
            assert torch.equal(first.log_prob(following), again.log_prob(following))

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_reduction_is_handed_on(self, reduction):
        transition = FlowSDE(log_prob_reduction=reduction).step(draw(2, 3), draw(2, 3), FLOW, 1)
        following = draw(2, 3, seed=3)
        expected = torch.distributions.Normal(transition.mean, float(transition.std)).log_prob(following)
        torch.testing.assert_close(transition.log_prob(following), getattr(expected, reduction)(1))

    @pytest.mark.parametrize("policy", [FlowSDE(), FlowCPS(), DanceSDE(), DDIM()])
    def test_log_prob_has_a_gradient(self, policy):
        schedule = diffusion_schedule("v_prediction") if isinstance(policy, DDIM) else FLOW
        out = draw(2, 3).requires_grad_()
        transition = policy.step(out, draw(2, 3, seed=1), schedule, 1)
        transition.log_prob(transition.sample(draw(2, 3, seed=2))).sum().backward()
        assert out.grad.abs().min() > 0


class TestMarginals:
    """What the samplers do to distributions whose exact network is known, in closed form."""

    @staticmethod
    def step_1d(policy, schedule, i, network):
        """`x' = gain * x + shift + std * n` of a 1-D step with an affine network."""
        at = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        transition = policy.step(network(at, i), at, schedule, i)
        shift, one = transition.mean.flatten().tolist()
        return one - shift, shift, float(transition.std)

    @pytest.mark.parametrize("policy", [FlowCPS(0.0), FlowCPS(0.3), FlowCPS(0.9), DDIM(0.0), DDIM(0.6), DDIM(1.0)])
    def test_cps_and_ddim_keep_the_noise_level_exactly(self, policy):
        # All data at one point: x_t is N(alpha point, sigma^2) at every step, whatever the step size.
        point, schedule = 1.7, FLOW if isinstance(policy, FlowCPS) else diffusion_schedule("epsilon")

        def network(x, i):
            eps = (x - schedule.alpha(i) * point) / schedule.sigma(i)
            return eps - point if schedule is FLOW else eps

        for i in range(schedule.num_steps):
            gain, shift, std = self.step_1d(policy, schedule, i, network)
            mean = gain * schedule.alpha(i) * point + shift
            variance = (gain * schedule.sigma(i)) ** 2 + std**2
            assert mean == pytest.approx(schedule.alpha(i + 1) * point, abs=1e-12)
            assert variance == pytest.approx(schedule.sigma(i + 1) ** 2, abs=1e-12)

    @staticmethod
    def final_error(policy, steps, data_std=0.5):
        """Error of the variance at sigma .05 when Gaussian data are sampled from sigma .95 on in `steps` steps."""
        sigmas = torch.linspace(0.95, 0.05, steps + 1, dtype=torch.float64)
        schedule = Schedule.flow(sigmas[:-1], sigmas)

        def marginal(i):
            return (schedule.alpha(i) * data_std) ** 2 + schedule.sigma(i) ** 2

        def network(x, i):
            return x * (schedule.sigma(i) - schedule.alpha(i) * data_std**2) / marginal(i)

        variance = marginal(0)
        for i in range(steps):
            gain, shift, std = TestMarginals.step_1d(policy, schedule, i, network)
            assert shift == 0
            variance = gain**2 * variance + std**2
        return abs(variance / marginal(steps) - 1)

    @pytest.mark.parametrize("policy", [FlowSDE(0.0), FlowSDE(0.7), DanceSDE(0.3), DanceSDE(0.7)])
    def test_the_sdes_have_the_marginals_of_the_flow(self, policy):
        coarse, fine = self.final_error(policy, 50), self.final_error(policy, 400)
        # Euler-Maruyama is of first order: an eighth of the step, an eighth of the error.
        assert fine < 0.03
        assert fine < coarse / 6


class TestRefusals:
    @pytest.mark.parametrize("cls", FLOW_POLICIES)
    @pytest.mark.parametrize("kind", DIFFUSION_TYPES)
    def test_flow_policies_refuse_diffusion(self, cls, kind):
        message = f"`policy` {cls.__name__} steps flow models, but this schedule predicts '{kind}'; use DDIM."
        for use in (lambda p, s: p.step(draw(1, 2), draw(1, 2), s, 0), lambda p, s: p.stochastic_steps(s)):
            with pytest.raises(ValueError) as error:
                use(cls(), diffusion_schedule(kind))
            assert str(error.value) == message

    def test_ddim_refuses_flow(self):
        with pytest.raises(ValueError, match=r"DDIM steps .* predicts 'flow'; use DanceSDE or FlowCPS or FlowSDE\."):
            DDIM().step(draw(1, 2), draw(1, 2), FLOW, 0)

    @pytest.mark.parametrize("policy", [FlowSDE(), DDIM()])
    @pytest.mark.parametrize("i", [-1, 6])
    def test_step_index_out_of_range(self, policy, i):
        schedule = diffusion_schedule("epsilon") if isinstance(policy, DDIM) else FLOW
        with pytest.raises(ValueError, match=f"`step_index` is {i}"):
            policy.step(draw(1, 2), draw(1, 2), schedule, i)

    @pytest.mark.parametrize("cls", FLOW_POLICIES)
    @pytest.mark.parametrize("sigmas", [[0.5, 0.5], [0.3, 0.5], [0.0, 0.0], [1.5, 0.5], [0.5, -0.1]])
    def test_flow_sigmas_must_fall(self, cls, sigmas):
        with pytest.raises(ValueError, match="must fall"):
            cls().step(draw(1, 2), draw(1, 2), Schedule.flow(torch.zeros(1), torch.tensor(sigmas)), 0)

    def test_sigmas_are_numbers(self):
        """Some schedulers divide by zero when asked for a single step."""
        with pytest.raises(ValueError, match="1 denoising step noise levels that are no numbers; use more steps"):
            Schedule.flow(torch.zeros(1), torch.tensor([math.nan, 0.0]))

    @pytest.mark.parametrize(
        ("kind", "acp"),
        [("epsilon", [0.0, 0.5]), ("epsilon", [1.0, 1.0]), ("sample", [1.0, 1.0]), ("sample", [0.5, 0.0])],
    )
    def test_ddim_refuses_steps_that_determine_nothing(self, kind, acp):
        with pytest.raises(ValueError, match="does not determine"):
            DDIM().step(draw(1, 2), draw(1, 2), diffusion_schedule(kind, torch.tensor(acp)), 0)

    @pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf, "0.7", None])
    @pytest.mark.parametrize(
        ("cls", "field"),
        [(FlowSDE, "noise_level"), (FlowCPS, "noise_level"), (DanceSDE, "noise_level"), (DDIM, "eta")],
    )
    def test_levels(self, cls, field, bad):
        with pytest.raises(ValueError, match=f"`{field}` is {bad!r}; use a number from 0"):
            cls(**{field: bad})

    @pytest.mark.parametrize(("cls", "field"), [(FlowCPS, "noise_level"), (DDIM, "eta")])
    def test_upper_limits(self, cls, field):
        cls(**{field: 1})
        with pytest.raises(ValueError, match=f"`{field}` is 1.01; use a number from 0 .no noise. to 1."):
            cls(**{field: 1.01})

    @pytest.mark.parametrize("cls", [*FLOW_POLICIES, DDIM])
    def test_reduction(self, cls):
        with pytest.raises(ValueError, match="`log_prob_reduction` is 'max'"):
            cls(log_prob_reduction="max")


class TestExtending:
    def test_a_policy_needs_only_step_and_ode(self):
        class Coin(Policy):
            prediction_types = ("flow",)

            def step(self, model_output, latents, schedule, step_index):
                self.check(schedule, step_index)
                return FlowCPS(0.5).step(model_output, latents, schedule, step_index)

            def ode(self):
                return self

        assert Coin().std(FLOW, 1) == FlowCPS(0.5).std(FLOW, 1)
        assert Coin().stochastic_steps(FLOW) == (0, 1, 2, 3, 4)

    def test_config_names_build_policies(self):
        assert repr(POLICIES.get("flow_cps")(noise_level=0.5)) == "FlowCPS(log_prob_reduction='mean', noise_level=0.5)"
