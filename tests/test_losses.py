# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler

from trl_progrpo.losses import clip_advantages, guard_log_ratio, log_ratio, policy_loss, step_weights
from trl_progrpo.policies import DDIM, DanceSDE, FlowCPS, FlowSDE
from trl_progrpo.types import Schedule, Transition


SCHEDULE = Schedule.flow(torch.tensor([900.0, 500.0]), torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64))


class TestPolicyLoss:
    def test_ratio_one_gives_minus_the_advantage(self):
        advantages = torch.tensor([-2.0, 0.0, 3.0])
        log_prob = torch.tensor([-1.3, 0.2, 5.0], requires_grad=True)
        loss, metrics = policy_loss(log_ratio(log_prob, log_prob.detach()), advantages, 1e-4)
        assert torch.equal(loss, -advantages)
        assert metrics["ratio/mean"] == 1
        assert metrics["ratio/deviation"] == 0
        loss.sum().backward()
        torch.testing.assert_close(log_prob.grad, -advantages)

    @pytest.mark.parametrize("epsilon_high", [None, 0.4])
    def test_matches_the_formula(self, epsilon_high):
        generator = torch.Generator().manual_seed(0)
        ratios = torch.empty(200, dtype=torch.float64).uniform_(0.3, 2.0, generator=generator)
        advantages = torch.randn(200, generator=generator, dtype=torch.float64)
        loss, _ = policy_loss(ratios.log(), advantages, 0.2, epsilon_high)
        for row, rho, a in zip(loss.tolist(), ratios.tolist(), advantages.tolist(), strict=True):
            clipped = min(max(rho, 0.8), 1 + (epsilon_high or 0.2))
            assert row == pytest.approx(max(-a * rho, -a * clipped), rel=1e-12)

    def test_clipping_stops_the_gradient_on_one_side_only(self):
        ratios = torch.tensor([0.5, 0.5, 1.5, 1.5, 0.5, 1.5, 1.5, 1.5]).log().requires_grad_()
        loss, metrics = policy_loss(ratios, torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0, 1.0, 0.0]), 0.2)
        loss.sum().backward()
        torch.testing.assert_close(ratios.grad, torch.tensor([0.0, -0.5, 1.5, 0.0, 0.0, 0.0, 0.0, 0.0]))
        fractions = [metrics[f"clip_ratio/{name}_mean"].item() for name in ("low", "high", "region")]
        assert fractions == [2 / 8, 3 / 8, 5 / 8]
        assert metrics["ratio/min"].item() == pytest.approx(0.5)
        assert metrics["ratio/max"].item() == pytest.approx(1.5)
        assert metrics["ratio/mean"].item() == pytest.approx(1.125)
        assert metrics["ratio/deviation"].item() == pytest.approx(0.5)
        assert not any(value.requires_grad or value.ndim for value in metrics.values())

    def test_tiny_clip_widths_are_not_lost_in_float32(self):
        # 1 + 1e-8 is 1 in float32.
        ratios = torch.tensor([0.9e-8, 1.1e-8], requires_grad=True)
        loss, metrics = policy_loss(ratios, torch.ones(2), 1e-8)
        loss.sum().backward()
        assert ratios.grad.tolist() == [-1, 0]
        assert metrics["clip_ratio/high_mean"] == 0.5

    def test_no_gradient_through_the_old_policy_or_the_advantage(self):
        new, old, advantages = (torch.zeros(2, requires_grad=True) for _ in range(3))
        policy_loss(log_ratio(new, old), advantages + 1, 0.1)[0].sum().backward()
        assert new.grad is not None
        assert old.grad is None
        assert advantages.grad is None

    @pytest.mark.parametrize(("low", "high"), [(0.0, None), (-1e-4, None), (math.nan, None), (1e-4, 0.0)])
    def test_refuses_clip_widths(self, low, high):
        with pytest.raises(ValueError, match=r"`epsilon(_high)?` is .*positive"):
            policy_loss(torch.zeros(2), torch.zeros(2), low, high)

    def test_refuses_shapes_that_would_broadcast(self):
        with pytest.raises(ValueError, match="both are per row"):
            policy_loss(torch.zeros(2, 1), torch.zeros(2), 0.1)


class TestKL:
    def test_beta_has_a_gradient(self):
        weight = torch.zeros((), requires_grad=True)
        latents = torch.ones(2, 3)
        new, reference = (FlowSDE().step(latents * w, latents, SCHEDULE, 0) for w in (weight, torch.tensor(0.5)))
        log_prob = new.log_prob(latents)
        policy, _ = policy_loss(log_ratio(log_prob, log_prob), torch.zeros(2), 1e-4)
        (policy + 0.04 * new.kl(reference)).mean().backward()
        assert weight.grad < 0

    def test_equals_the_formula_with_the_full_std(self):
        v, w, x = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        one, other = (FlowSDE(0.7).step(output, x, SCHEDULE, 0) for output in (v, w))
        std_t, dt = 0.7 * math.sqrt(0.9 / 0.1), -0.4
        expected = ((one.mean - other.mean) ** 2).mean(1) / (2 * std_t**2 * -dt)
        torch.testing.assert_close(one.kl(other), expected, rtol=1e-12, atol=0)


class TestGuard:
    @pytest.fixture
    def transitions(self):
        mean, change, noise = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        std = torch.tensor(0.25, dtype=torch.float64)
        old, new = Transition(mean, std, mean), Transition((mean + 0.1 * change).requires_grad_(), std, mean)
        return new, old, noise

    def test_equals_the_formula_per_sample(self, transitions):
        new, old, noise = transitions
        following = old.sample(noise)
        result = guard_log_ratio(new.log_prob(following), old.log_prob(following), new.kl(old), new.std)
        for i in range(4):
            bias = ((new.mean[i] - old.mean[i]) ** 2).mean() / (2 * 0.25**2)
            raw = -((following[i] - new.mean[i]) ** 2).mean() + ((following[i] - old.mean[i]) ** 2).mean()
            torch.testing.assert_close(result[i], (raw / (2 * 0.25**2) + bias) * 0.25, rtol=1e-9, atol=1e-12)

    def test_is_linear_in_the_change_of_the_mean(self, transitions):
        new, old, noise = transitions
        following = old.sample(noise)
        result = guard_log_ratio(new.log_prob(following), old.log_prob(following), new.kl(old), new.std)
        torch.testing.assert_close(result, (noise * (new.mean - old.mean)).mean(1), rtol=1e-9, atol=1e-12)
        (grad,) = torch.autograd.grad(result.sum(), new.mean)
        torch.testing.assert_close(grad, noise / 6, rtol=1e-9, atol=1e-12)

    def test_is_one_at_the_old_policy(self, transitions):
        _, old, noise = transitions
        log_prob = old.log_prob(old.sample(noise))
        result = guard_log_ratio(log_prob, log_prob, old.kl(old), old.std)
        loss, _ = policy_loss(result, torch.ones(4, dtype=torch.float64), 1e-4)
        assert loss.tolist() == [-1.0] * 4


class TestClipAdvantages:
    def test_clips_both_sides(self):
        advantages = torch.tensor([-7.0, -1.0, 0.0, 6.0])
        assert clip_advantages(advantages, 5.0).tolist() == [-5, -1, 0, 5]
        assert clip_advantages(advantages, None) is advantages

    @pytest.mark.parametrize("bad", [0.0, -5.0, math.nan])
    def test_refusals(self, bad):
        with pytest.raises(ValueError, match="`adv_clip_max` is"):
            clip_advantages(torch.zeros(1), bad)


class TestStepWeights:
    STDS = (0.5, 0.25, 1.0)

    @pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 1.0, 2.0])
    def test_proportional_and_of_mean_one(self, power):
        weights = step_weights(self.STDS, power)
        assert weights.dtype == torch.float32
        assert weights.mean().item() == pytest.approx(1, rel=1e-6)
        expected = [weights[0].item() * (std / 0.5) ** power for std in self.STDS]
        assert weights.tolist() == pytest.approx(expected, rel=1e-6)

    def test_power_zero_is_exactly_one(self):
        assert step_weights(torch.tensor([0.3, 0.7, 1e-3])).tolist() == [1, 1, 1]

    @pytest.mark.parametrize("stds", [[0.5, 0.0], [0.5, -1.0], [math.nan], [math.inf], [], [[0.5]]])
    def test_refuses_deterministic_steps(self, stds):
        with pytest.raises(ValueError, match="`stds` is"):
            step_weights(stds, 1.0)

    def test_refuses_power(self):
        with pytest.raises(ValueError, match="`power` is nan"):
            step_weights([0.5], math.nan)


class TestGuardBySteps:
    """GRPO-Guard's policy loss, divided by the step size, on the noise levels of Stable Diffusion."""

    @staticmethod
    def shares(policy, schedule, step_size=None):
        """Of each trained step in the gradient at the network's output, for the same noise in all of them."""
        noise = torch.randn(4, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        norms = []
        for i in policy.stochastic_steps(schedule):
            output = torch.zeros(4, 64, dtype=torch.float64, requires_grad=True)
            new = policy.step(output, noise.flip(0), schedule, i)
            old = replace(new, mean=new.mean.detach())
            following = old.sample(noise)
            ratio = guard_log_ratio(new.log_prob(following), old.log_prob(following), new.kl(old), new.std)
            loss, _ = policy_loss(ratio, torch.ones(4, dtype=torch.float64), 1e-4)
            size = policy.step_size(schedule, i) if step_size is None else step_size(schedule, i)
            (loss.sum() / size).backward()
            norms.append(output.grad.norm())
        return torch.stack(norms) / sum(norms)

    @pytest.mark.parametrize("eta", [0.2, 1.0])
    @pytest.mark.parametrize(
        ("kind", "zero_snr"),
        [("epsilon", False), ("v_prediction", False), ("v_prediction", True), ("sample", False), ("sample", True)],
    )
    @pytest.mark.parametrize("steps", [10, 50])
    def test_no_part_of_a_ddim_path_holds_the_gradient(self, kind, eta, zero_snr, steps):
        scheduler = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, prediction_type=kind,
            rescale_betas_zero_snr=zero_snr, timestep_spacing="trailing" if zero_snr else "leading", set_alpha_to_one=False,
        )  # fmt: skip
        scheduler.set_timesteps(steps)
        levels = [*scheduler.timesteps, scheduler.timesteps[-1] - 1000 // steps]
        table = scheduler.alphas_cumprod.double()
        acp = torch.stack([table[max(t, 0)] for t in levels])
        schedule = Schedule(scheduler.timesteps, acp.sqrt(), (1 - acp).sqrt(), kind)
        share = self.shares(DDIM(eta), schedule)
        # 1 + eta^2 at small steps, less where a step is large; never more than a factor of 2 between two of them.
        assert share.max() / share.min() < 2
        assert share[: steps // 10].sum() < 0.12
        # A difference of standard deviations is no size of such a step.
        of_sigmas = self.shares(DDIM(eta), schedule, lambda schedule, i: schedule.sigma(i) - schedule.sigma(i + 1))
        assert of_sigmas.square().max() / of_sigmas.square().sum() > 2 * share.square().max() / share.square().sum()

    @pytest.mark.parametrize("policy", [FlowSDE(0.7), FlowCPS(0.7), DanceSDE(0.3)])
    def test_of_flows_it_is_the_papers(self, policy):
        sigmas = torch.linspace(1, 0, 11, dtype=torch.float64)
        schedule = Schedule.flow(sigmas[:-1] * 1000, 3 * sigmas / (1 + 2 * sigmas))
        for i in range(10):
            assert policy.step_size(schedule, i) == schedule.sigma(i) - schedule.sigma(i + 1)
        if isinstance(policy, FlowSDE):
            share = self.shares(policy, schedule)[1:]
            assert share.max() / share.min() == pytest.approx(1)

    @pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
    def test_of_ddim_it_is_the_move_of_the_noise_free_step(self, kind):
        acp = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        schedule = Schedule(torch.tensor([2, 1]), acp.sqrt(), (1 - acp).sqrt(), kind)
        a, s, b, r = (getattr(schedule, name)(i) for i in (0, 1) for name in ("alpha", "sigma"))
        expected = {
            "epsilon": b * (s / a - r / b),
            "v_prediction": b * s - a * r,
            "sample": s * (b / s - a * r / s**2),
        }
        assert DDIM(0.7).step_size(schedule, 0) == pytest.approx(expected[kind])
