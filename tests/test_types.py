# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import pytest
import torch

from trl_progrpo.types import Conditioning, Rollout, SamplingCost, Schedule, Transition


def make_transition(std=0.3, reduction="mean", dtype=torch.float64, shape=(3, 4, 2, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(shape, generator=generator, dtype=dtype)
    return Transition(mean, torch.tensor(std, dtype=torch.float64), mean + 1, reduction)


@pytest.fixture
def rollout():
    return Rollout(
        prompt_index=torch.tensor([0, 0, 1, 1]),
        member=torch.tensor([0, 1, 0, 1]),
        latents=torch.arange(24.0).view(4, 3, 2),
        step_indices=(0, 1),
        log_probs=torch.arange(8.0).view(4, 2),
        rewards=torch.arange(4.0),
        rewards_per_func=torch.arange(4.0)[:, None],
        conditioning=Conditioning({"embeds": torch.arange(2.0)[:, None]}),
        schedule=Schedule.flow(torch.tensor([1000.0, 500.0]), torch.tensor([1.0, 0.5, 0.0])),
    )


class TestTransition:
    @pytest.mark.parametrize("std", [1e-3, 0.3, 2.0])
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_log_prob_is_torchs_normal(self, std, reduction):
        transition = make_transition(std, reduction)
        following = transition.sample(torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(1)))
        expected = torch.distributions.Normal(transition.mean, std).log_prob(following).flatten(1)
        expected = expected.mean(1) if reduction == "mean" else expected.sum(1)
        torch.testing.assert_close(transition.log_prob(following), expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_kl_is_torchs(self, reduction):
        one, other = make_transition(reduction=reduction), make_transition(reduction=reduction, seed=1)
        normal = torch.distributions.Normal
        expected = torch.distributions.kl_divergence(normal(one.mean, 0.3), normal(other.mean, 0.3)).flatten(1)
        expected = expected.mean(1) if reduction == "mean" else expected.sum(1)
        torch.testing.assert_close(one.kl(other), expected, rtol=1e-12, atol=0)

    def test_sample_moments(self):
        transition = make_transition(0.5, dtype=torch.float32, shape=(2, 3))
        noise = torch.randn(40000, 2, 3, generator=torch.Generator().manual_seed(0))
        samples = transition.sample(noise)
        torch.testing.assert_close(samples.mean(0), transition.mean, rtol=0, atol=0.012)
        torch.testing.assert_close(samples.std(0), torch.full((2, 3), 0.5), rtol=0, atol=0.01)

    def test_sample_keeps_the_dtype_of_the_mean(self):
        for dtype in (torch.float32, torch.float64):
            transition = make_transition(dtype=dtype)
            assert transition.sample(torch.ones(3, 4, 2, 2, dtype=torch.bfloat16)).dtype == dtype
            assert transition.log_prob(transition.mean.bfloat16()).dtype == dtype

    def test_deterministic_step_has_no_density(self):
        transition = make_transition(std=0.0)
        torch.testing.assert_close(transition.sample(torch.ones(3, 4, 2, 2)), transition.mean, rtol=0, atol=0)
        with pytest.raises(ValueError, match="`log_prob` needs a stochastic step"):
            transition.log_prob(transition.mean)
        with pytest.raises(ValueError, match="`kl` needs a stochastic step"):
            transition.kl(transition)

    def test_kl_refuses_another_step(self):
        with pytest.raises(ValueError, match=r"0\.3 and 0\.4"):
            make_transition(0.3).kl(make_transition(0.4))

    def test_gradients_reach_the_mean_and_never_the_sample(self):
        mean = torch.zeros(2, 3, requires_grad=True)
        following = torch.ones(2, 3, requires_grad=True)
        transition = Transition(mean, torch.tensor(0.5, dtype=torch.float64), mean)
        reference = Transition(torch.ones(2, 3), torch.tensor(0.5, dtype=torch.float64), mean)
        (grad,) = torch.autograd.grad(transition.log_prob(following).sum(), mean, retain_graph=True)
        torch.testing.assert_close(grad, torch.full((2, 3), 1 / 0.25 / 3))
        (grad,) = torch.autograd.grad(transition.kl(reference).sum(), mean)
        torch.testing.assert_close(grad, torch.full((2, 3), -1 / 0.25 / 3))
        assert torch.autograd.grad(transition.log_prob(following).sum(), following, allow_unused=True) == (None,)


class TestSchedule:
    def test_coefficients_are_float64_on_the_cpu(self):
        schedule = Schedule.flow(torch.tensor([1000.0, 250.0]), torch.tensor([1.0, 0.25, 0.0]))
        assert schedule.num_steps == 2
        assert schedule.sigmas.dtype == schedule.alphas.dtype == torch.float64
        assert (schedule.sigma(1), schedule.alpha(1), schedule.alpha(2)) == (0.25, 0.75, 1.0)

    def test_wrong_length_is_refused(self):
        with pytest.raises(ValueError, match="need 3 entries"):
            Schedule.flow(torch.tensor([1000.0, 250.0]), torch.tensor([1.0, 0.25]))


class TestConditioning:
    def test_rows_picks_prompts(self):
        conditioning = Conditioning({"a": torch.arange(3.0)[:, None]}, {"a": -torch.arange(3.0)[:, None]})
        rows = conditioning.rows(torch.tensor([2, 0, 2]))
        assert len(conditioning) == 3
        assert len(rows) == 3
        assert rows.positive["a"].flatten().tolist() == [2, 0, 2]
        assert rows.negative["a"].flatten().tolist() == [-2, 0, -2]
        assert conditioning.to(torch.float64).negative["a"].dtype == torch.float64

    def test_no_negative(self):
        assert Conditioning({"a": torch.zeros(2, 1)}).rows(torch.tensor([1])).negative is None


class TestRollout:
    def test_select_takes_every_row_tensor_along(self, rollout):
        rollout = rollout.replace(advantages=torch.arange(4.0) * 10, images=torch.arange(4.0).view(4, 1, 1, 1))
        selected = rollout.select(torch.tensor([3, 0]))
        assert len(selected) == 2
        for name, value in rollout.state_dict().items():
            torch.testing.assert_close(getattr(selected, name), value[[3, 0]], msg=name)
        assert selected.conditioning is rollout.conditioning
        assert selected.step_indices == (0, 1)

    def test_every_tensor_field_is_a_row_field(self, rollout):
        full = rollout.replace(advantages=torch.zeros(4), images=torch.zeros(4, 3, 1, 1))
        tensors = {name for name, value in vars(full).items() if isinstance(value, torch.Tensor)}
        assert tensors == set(full.state_dict())

    def test_select_by_mask_and_without_optional_fields(self, rollout):
        selected = rollout.select(torch.tensor([False, True, True, False]))
        assert selected.rewards.tolist() == [1, 2]
        assert selected.advantages is None
        assert selected.images is None
        assert "images" not in selected.state_dict()


def test_costs_add_up():
    assert SamplingCost(1, 2, 3, 4) + SamplingCost(nfe=10, reward_calls=40) == SamplingCost(11, 2, 3, 44)
