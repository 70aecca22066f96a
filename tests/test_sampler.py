# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

from itertools import combinations

import pytest
import torch

from trl_progrpo import ExpandPruneSampler
from trl_progrpo.policies import DanceSDE, FlowCPS, FlowSDE
from trl_progrpo.pruning import PRUNING_RULES
from trl_progrpo.rewards import RewardRunner
from trl_progrpo.seeds import INITIAL_NOISE, derive_seed, row_noise
from trl_progrpo.types import SamplingCost


PROMPTS = ["a red circle", "two blue squares", "a green triangle"]
PAPER = {
    "num_inference_steps": 10,
    "num_expansions": 48,
    "num_generations": 12,
    "prune_steps": [5, 7],
    "prune_sizes": [24, 12],
}


class Scorer:
    """Scores redness and remembers what it was asked."""

    def __init__(self, redness):
        self.runner = RewardRunner(redness)
        self.calls = []

    def __call__(self, prompts, images, columns, preview):
        self.calls.append((preview, prompts, images, columns))
        return self.runner(prompts, images, columns, preview)


@pytest.fixture
def scorer(redness):
    return Scorer(redness)


@pytest.fixture
def make_sampler(make_family, scorer):
    def make(family=None, policy=None, **kwargs):
        defaults = {"reward_weights": torch.ones(1), "num_inference_steps": 5, "num_generations": 4, "seed": 1}
        return ExpandPruneSampler(
            family or make_family(), policy or FlowSDE(), kwargs.pop("scorer", scorer), **{**defaults, **kwargs}
        )

    return make


def run(sampler, prompts=PROMPTS, **kwargs):
    return sampler.rollout(sampler.family.denoiser, prompts, **kwargs)


def rows_by_member(rollout):
    return {pair: row for row, pair in enumerate(zip(rollout.prompt_index.tolist(), rollout.member.tolist()))}


def assert_same_rollout(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


class NetworkRows:
    """Counts the rows that go through the network itself."""

    def __init__(self, denoiser):
        self.calls, self.rows = 0, 0
        denoiser.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        self.calls += 1
        self.rows += len(kwargs["hidden_states"])


class TestShapes:
    def test_a_rollout_has_one_ordered_group_per_prompt(self, make_sampler):
        rollout = run(make_sampler(num_expansions=6, prune_steps=[2], prune_sizes=[5]))
        assert rollout.prompt_index.tolist() == [p for p in range(3) for _ in range(4)]
        assert all(torch.equal(m, m.sort().values) for m in rollout.member.view(3, 4))
        assert rollout.step_indices == (0, 1, 2, 3)
        assert rollout.latents.shape == (12, 5, 4, 4, 4)
        assert rollout.log_probs.shape == (12, 4)
        assert rollout.images.shape == (12, 3, 8, 8)
        assert rollout.images.min() >= 0
        assert rollout.images.max() <= 1
        assert [record.step_index for record in rollout.prune_records] == [2, 5]
        assert [int(record.kept.sum()) for record in rollout.prune_records] == [15, 12]

    def test_repeated_prompts_are_separate_groups(self, make_sampler):
        rollout = run(make_sampler(), ["a red circle", "a red circle"])
        one, other = rollout.latents[:4, 0], rollout.latents[4:, 0]
        assert not any(torch.equal(a, b) for a in one for b in other)

    def test_stored_images_are_the_decoded_ends_of_the_stored_paths(self, make_sampler):
        sampler = make_sampler(policy=FlowSDE(), num_expansions=6)
        rollout = run(sampler, train_steps=range(4))
        family = sampler.family
        with torch.no_grad():
            x = rollout.latents[:, -1]
            output = family.predict(
                family.denoiser, x, rollout.schedule.timesteps[4], rollout.conditioning.rows(rollout.prompt_index)
            )
            clean = x - rollout.schedule.sigma(4) * output
            torch.testing.assert_close(family.decode(clean), rollout.images, rtol=0, atol=1e-5)

    def test_training_a_window_runs_the_rest_without_noise(self, make_sampler):
        sampler = make_sampler(rollout_batch_size=12)
        rollout = run(sampler, train_steps=(1, 2))
        assert rollout.step_indices == (1, 2)
        assert rollout.latents.shape[1] == 3
        family = sampler.family
        noise = row_noise(
            family.latent_shape, 1, 0, rollout.prompt_index.tolist(), rollout.member.tolist(), INITIAL_NOISE
        )
        with torch.no_grad():
            output = family.predict(
                family.denoiser, noise, rollout.schedule.timesteps[0], rollout.conditioning.rows(rollout.prompt_index)
            )
        euler = noise + (rollout.schedule.sigma(1) - rollout.schedule.sigma(0)) * output
        torch.testing.assert_close(rollout.latents[:, 0], euler, rtol=0, atol=1e-6)

    def test_steps_may_carry_noise_and_not_be_trained(self, make_sampler):
        whole, part = (
            run(make_sampler(), train_steps=range(4)),
            run(make_sampler(), train_steps=(0, 1), noise_steps=range(4)),
        )
        assert part.step_indices == (0, 1)
        assert torch.equal(part.images, whole.images)
        assert torch.equal(part.latents, whole.latents[:, :3])
        assert torch.equal(part.log_probs, whole.log_probs[:, :2])
        with pytest.raises(
            ValueError, match=r"`train_steps` is \[0, 1\] and `noise_steps` \[1, 2\]; .*must carry noise"
        ):
            run(make_sampler(), train_steps=(0, 1), noise_steps=(1, 2))
        with pytest.raises(ValueError, match=r"`noise_steps` is .*only steps \[0, 1, 2, 3\] carry noise"):
            run(make_sampler(), train_steps=(0, 1), noise_steps=(0, 1, 4))

    @pytest.mark.parametrize("steps", [(4,), (0, 1, 7)])
    def test_steps_without_noise_cannot_be_trained(self, make_sampler, steps):
        with pytest.raises(ValueError, match=r"`train_steps` is .*only steps \[0, 1, 2, 3\] carry noise"):
            run(make_sampler(), train_steps=steps)

    @pytest.mark.parametrize("steps", [(0, 2), (1, 0), (1, 1)])
    def test_trained_steps_must_be_consecutive(self, make_sampler, steps):
        with pytest.raises(ValueError, match=r"`train_steps` is .*consecutive"):
            run(make_sampler(), train_steps=steps)

    def test_progress_ends_at_its_total_in_every_phase(self, make_sampler):
        told = []
        sampler = make_sampler(
            num_expansions=6,
            prune_steps=[1],
            prune_sizes=[4],
            rollout_batch_size=5,
            on_progress=lambda phase, done, total: told.append((phase, done, total)),
        )
        run(sampler)
        assert {phase for phase, _, _ in told} == {"denoise", "preview", "decode", "reward"}
        assert all(0 <= done <= total for _, done, total in told)
        for phase in ("denoise", "preview", "decode"):
            assert [done == total for p, done, total in told if p == phase][-1]


class TestReplay:
    """What the update recomputes is what the rollout recorded: the ratio of the first pass is 1."""

    @pytest.mark.parametrize("guidance", [1.0, 3.0])
    @pytest.mark.parametrize("policy", [FlowSDE(0.7), FlowCPS(0.7), DanceSDE(0.3)], ids=lambda p: type(p).__name__)
    def test_log_probs_of_survivors_replay_in_other_batches(
        self, make_sampler, make_family, replay, policy, guidance, capsys
    ):
        family = make_family(guidance_scale=guidance)
        sampler = make_sampler(
            family, policy, num_inference_steps=8, num_expansions=12, prune_steps=[3, 5], prune_sizes=[8, 4],
            rollout_batch_size=7,
        )  # fmt: skip
        rollout = run(sampler)
        assert rollout.log_probs.isfinite().all()
        worst = max(
            (replay(family, policy, rollout, size) - rollout.log_probs).abs().max().item() for size in (None, 1, 5)
        )
        with capsys.disabled():
            print(f"\n  largest |log-prob difference|, {policy!r}, guidance {guidance:g}, after pruning: {worst:.1e}")
        # The std of CPS follows sigma, which diffusers' default schedule takes to .002 before its last step: there the
        # network's rounding is 1e3 times as large in units of the std.
        assert worst < (2e-5 if isinstance(policy, FlowCPS) else 1e-6)

    def test_bitwise_when_the_batches_are_the_same(self, make_sampler, make_family, replay):
        family = make_family()
        rollout = run(make_sampler(family, rollout_batch_size=1, num_expansions=6, prune_steps=[1], prune_sizes=[4]))
        assert torch.equal(replay(family, FlowSDE(), rollout, 1), rollout.log_probs)

    def test_sum_reduction_is_the_mean_times_the_dimensions(self, make_sampler, make_family):
        family = make_family()
        mean = run(make_sampler(family, FlowSDE()))
        total = run(make_sampler(family, FlowSDE(log_prob_reduction="sum")))
        torch.testing.assert_close(total.log_probs, mean.log_probs * 64, rtol=1e-5, atol=1e-4)

    def test_half_precision_latents_are_rounded_before_their_log_prob_is_taken(
        self, make_sampler, make_family, replay, capsys
    ):
        family = make_family()
        sampler = make_sampler(
            family,
            storage_dtype=torch.bfloat16,
            num_expansions=6,
            prune_steps=[2],
            prune_sizes=[4],
            rollout_batch_size=5,
        )
        rollout = run(sampler)
        assert rollout.latents.dtype == torch.bfloat16
        assert rollout.log_probs.dtype == torch.float32
        worst = (replay(family, FlowSDE(), rollout) - rollout.log_probs).abs().max().item()
        with capsys.disabled():
            print(f"\n  largest |log-prob difference|, latents stored in bfloat16: {worst:.1e}")
        assert worst < 1e-6
        # And rounding is not invisible: the same run in fp32 has other numbers.
        exact = run(make_sampler(family, rollout_batch_size=5))
        assert (exact.log_probs[:1] - rollout.log_probs[:1]).abs().max() > 1e-5


class TestPruning:
    def test_pruning_to_the_same_size_is_no_pruning_bit_for_bit(self, make_sampler):
        family = make_sampler().family
        plain = run(make_sampler(family, rollout_batch_size=5))
        pruned = run(make_sampler(family, rollout_batch_size=5, prune_steps=[1, 3], prune_sizes=[4, 4]))
        assert_same_rollout(plain, pruned)
        assert pruned.cost.nfe == plain.cost.nfe

    @pytest.mark.parametrize("batch_size", [1, 5])
    @pytest.mark.parametrize("guidance", [1.0, 2.0])
    def test_survivors_walk_the_path_they_would_have_walked_unpruned(
        self, make_sampler, make_family, batch_size, guidance
    ):
        family = make_family(guidance_scale=guidance)
        full = run(make_sampler(family, num_generations=8, rollout_batch_size=batch_size), PROMPTS[:2])
        sampler = make_sampler(
            family, num_expansions=8, prune_steps=[1, 2], prune_sizes=[6, 4], rollout_batch_size=batch_size
        )
        pruned = run(sampler, PROMPTS[:2])
        rows = rows_by_member(full)
        same = full.select(torch.tensor([rows[pair] for pair in rows_by_member(pruned)]))
        assert len(pruned) == 8
        if batch_size == 1:
            assert_same_rollout(pruned, same)
        for name in ("latents", "log_probs", "images", "rewards"):
            torch.testing.assert_close(getattr(pruned, name), getattr(same, name), rtol=0, atol=2e-6)

    def test_records_tell_who_was_kept_and_why(self, make_sampler, scorer):
        rollout = run(make_sampler(num_expansions=8, prune_steps=[1, 3], prune_sizes=[6, 4]))
        first, second = rollout.prune_records
        assert (len(first.rewards), len(second.rewards)) == (24, 18)
        assert torch.equal(first.member[first.kept], second.member)
        assert torch.equal(second.member[second.kept], rollout.member)
        assert torch.equal(second.prompt_index[second.kept], rollout.prompt_index)
        previews = [RewardRunner.__call__(scorer.runner, p, i, c)[:, 0] for flag, p, i, c in scorer.calls if flag]
        assert torch.equal(previews[0], first.rewards)
        assert torch.equal(previews[1], second.rewards)

    def test_every_checkpoint_keeps_a_subset_of_largest_variance(self, make_sampler):
        rollout = run(make_sampler(num_expansions=8, prune_steps=[2], prune_sizes=[5]))
        for record, size in zip(rollout.prune_records, (5, 4)):
            for rewards, kept in zip(record.rewards.view(3, -1).double(), record.kept.view(3, -1)):
                best = max(rewards[list(c)].var(correction=0) for c in combinations(range(len(rewards)), size))
                torch.testing.assert_close(rewards[kept].var(correction=0), best, rtol=1e-9, atol=0)

    def test_post_hoc_selection_is_ovf_on_the_true_rewards(self, make_sampler):
        family = make_sampler().family
        full = run(make_sampler(family, num_generations=10, rollout_batch_size=7))
        chosen = run(make_sampler(family, num_expansions=10, rollout_batch_size=7))
        kept = PRUNING_RULES.get("ovf")(full.rewards.view(3, 10), 4)
        rows = (kept + torch.arange(3)[:, None] * 10).flatten()
        assert_same_rollout(full.select(rows), chosen)
        assert [record.step_index for record in chosen.prune_records] == [5]
        assert chosen.cost == full.cost

    @pytest.mark.parametrize("name", sorted(PRUNING_RULES.registered()))
    def test_rules_are_interchangeable_and_repeatable(self, make_sampler, name):
        family = make_sampler().family

        def members():
            sampler = make_sampler(
                family, num_expansions=8, prune_steps=[1], prune_sizes=[6], pruning_rule=PRUNING_RULES.get(name)
            )
            return run(sampler).member

        assert torch.equal(members(), members())

    def test_a_group_without_preview_rewards_is_pruned_without_stopping_the_run(self, make_sampler):
        def nothing_for_the_second_prompt(prompts, images, columns, preview):
            rewards = images.mean((1, 2, 3))[:, None]
            rewards[[i for i, prompt in enumerate(prompts) if prompt == PROMPTS[1]]] = float("nan")
            return rewards

        sampler = make_sampler(
            scorer=nothing_for_the_second_prompt, num_expansions=8, prune_steps=[2], prune_sizes=[6]
        )
        rollout = run(sampler)
        assert rollout.prompt_index.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert rollout.rewards[4:8].isnan().all()
        assert rollout.rewards[:4].isfinite().all()


class TestCost:
    @pytest.mark.parametrize(("guidance", "factor"), [(1.0, 1), (4.5, 2)])
    def test_the_papers_schedule(self, make_sampler, make_family, scorer, guidance, factor):
        family = make_family(guidance_scale=guidance)
        network = NetworkRows(family.denoiser)
        decoded = []
        decode = family.decode_spatial
        family.decode_spatial = lambda latents: decoded.append(len(latents)) or decode(latents)

        rollout = run(make_sampler(family, **PAPER, rollout_batch_size=24), PROMPTS[:2])

        assert rollout.cost.nfe == 2 * 360 * factor
        assert rollout.cost.nfe == 2 * (48 * 6 + 24 * 2 + 12 * 2) * factor
        # Rows that the network really saw: previews cost none.
        assert network.rows == rollout.cost.nfe
        assert network.calls == 6 * 4 + 2 * 2 + 2
        assert [(preview, len(prompts)) for preview, prompts, _, _ in scorer.calls] == [
            (True, 96),
            (True, 48),
            (False, 24),
        ]
        assert rollout.cost == SamplingCost(
            nfe=720 * factor, decodes=24, preview_decodes=2 * (48 + 24), reward_calls=2 * (48 + 24 + 12)
        )
        assert sum(decoded) == rollout.cost.decodes + rollout.cost.preview_decodes

    def test_plain_grpo(self, make_sampler):
        sampler = make_sampler(num_generations=24, num_inference_steps=10)
        network = NetworkRows(sampler.family.denoiser)
        rollout = run(sampler, PROMPTS[:1])
        assert network.rows == rollout.cost.nfe == 240
        assert rollout.cost == SamplingCost(nfe=240, decodes=24, reward_calls=24)
        assert rollout.prune_records == ()

    def test_every_reward_function_is_counted(self, make_sampler, redness):
        runner = RewardRunner([redness, lambda prompts, images: [0.0] * len(prompts)])
        sampler = make_sampler(
            scorer=runner, reward_weights=runner.weights, num_expansions=6, prune_steps=[1], prune_sizes=[4]
        )
        assert run(sampler).cost.reward_calls == 2 * 3 * (6 + 4)

    def test_decoders_keep_their_precision(self, make_sampler):
        """The denoiser's mixed precision is not theirs: the decoded image is a reward's only input."""
        sampler = make_sampler(num_expansions=6, prune_steps=[1], prune_sizes=[4])
        seen, vae = set(), sampler.family.pipeline.vae
        vae.decoder.conv_in.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            run(sampler)
        assert seen == {torch.float32}

    def test_a_preview_decoder_replaces_the_vae_in_previews_only(self, make_sampler, make_family):
        from diffusers import AutoencoderTiny

        decoder = AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1), latent_channels=4, upsampling_scaling_factor=2,
        )  # fmt: skip
        seen = []
        decoder.decoder.register_forward_hook(lambda module, args, output: seen.append(len(output)))
        family = make_family()
        decode, decoded = family.decode_spatial, []
        family.decode_spatial = lambda latents: decoded.append(len(latents)) or decode(latents)
        run(make_sampler(family, num_expansions=6, prune_steps=[2], prune_sizes=[4], preview_decoder=decoder))
        assert seen == [18]
        assert decoded == [12]


class TestSeeds:
    def test_a_random_rule_draws_from_no_trajectorys_stream(self, make_sampler, monkeypatch):
        """Random pruning is what others are compared with: it must know nothing of the noise."""
        drawn = []
        for module in ("seeds", "sampler"):
            spy = lambda *parts: drawn.append(parts) or derive_seed(*parts)
            monkeypatch.setattr(f"trl_progrpo.{module}.derive_seed", spy)
        kwargs = {"num_expansions": 6, "prune_steps": [1], "prune_sizes": [4]}
        run(make_sampler(pruning_rule=PRUNING_RULES.get("random"), **kwargs))
        assert len(drawn) == len(set(drawn)) > 0

    def test_known_values(self):
        # Seeds are part of what makes a run repeatable: a change of these numbers is a change of every run.
        assert derive_seed(0, 1, 2, 3, 4) == derive_seed(0, 1, 2, 3, 4)
        assert len({derive_seed(0, 0, p, m, s) for p in range(10) for m in range(10) for s in range(-1, 10)}) == 1100
        assert derive_seed(0, 1) != derive_seed(1, 0) != derive_seed(1, 0, 0)
        assert all(0 <= derive_seed(i) < 2**63 for i in range(100))

    def test_a_row_depends_on_its_own_indices_alone(self):
        many = row_noise((2, 3), 5, 7, [0, 0, 1, 4], [0, 1, 0, 2], 3)
        assert torch.equal(many[3], row_noise((2, 3), 5, 7, [4], [2], 3)[0])
        changed = [(6, 7, 4, 2, 3), (5, 8, 4, 2, 3), (5, 7, 3, 2, 3), (5, 7, 4, 1, 3), (5, 7, 4, 2, INITIAL_NOISE)]
        for run_seed, rollout_index, slot, member, step in changed:
            assert not torch.equal(many[3], row_noise((2, 3), run_seed, rollout_index, [slot], [member], step)[0])

    def test_noise_is_standard_normal(self):
        noise = row_noise((100,), 0, 0, [0] * 400, range(400), 0)
        assert abs(noise.mean().item()) < 0.02
        assert abs(noise.std().item() - 1) < 0.02
        assert torch.corrcoef(noise[:8]).fill_diagonal_(0).abs().max() < 0.4

    def test_the_global_generator_is_neither_read_nor_moved(self, make_sampler):
        sampler = make_sampler(
            num_expansions=6, prune_steps=[1], prune_sizes=[4], pruning_rule=PRUNING_RULES.get("random")
        )
        torch.manual_seed(0)
        state = torch.get_rng_state()
        one = run(sampler)
        assert torch.equal(state, torch.get_rng_state())
        torch.manual_seed(1)
        assert_same_rollout(one, run(sampler))

    def test_the_batch_size_of_the_rollout_does_not_matter(self, make_sampler):
        family = make_sampler().family
        one, five = (run(make_sampler(family, rollout_batch_size=size)) for size in (1, 5))
        assert torch.equal(one.latents[:, 0], five.latents[:, 0])
        torch.testing.assert_close(one.latents, five.latents, rtol=0, atol=2e-6)

    def test_the_number_of_prompts_does_not_matter(self, make_sampler):
        family = make_sampler().family
        # Encoded together: the text encoder's own batch size changes low-order bits.
        conditioning = family.encode_prompts(PROMPTS)
        sampler = make_sampler(family, rollout_batch_size=1)
        alone = run(sampler, PROMPTS[:1], conditioning=conditioning.rows(torch.tensor([0])))
        among = run(sampler, PROMPTS, conditioning=conditioning)
        assert_same_rollout(alone, among.select(torch.arange(4)))

    def test_a_rank_with_the_second_prompt_draws_the_second_prompts_noise(self, make_sampler):
        family = make_sampler().family
        sampler = make_sampler(family, rollout_batch_size=1, num_expansions=6, prune_steps=[1], prune_sizes=[4])
        conditioning = family.encode_prompts(PROMPTS[:2])
        both = run(sampler, PROMPTS[:2], conditioning=conditioning)
        second = run(sampler, PROMPTS[1:2], first_slot=1, conditioning=conditioning.rows(torch.tensor([1])))
        rows = both.select(torch.arange(4, 8))
        assert_same_rollout(second, rows.replace(prompt_index=rows.prompt_index - 1))

    def test_runs_and_rollouts_differ(self, make_sampler):
        family = make_sampler().family
        base = run(make_sampler(family)).latents
        assert not torch.equal(base, run(make_sampler(family), rollout_index=1).latents)
        assert not torch.equal(base, run(make_sampler(family, seed=2)).latents)


class TestAgainstThePipeline:
    @pytest.mark.parametrize("guidance", [1.0, 3.0])
    def test_without_noise_the_chain_is_the_stock_pipelines(self, make_sampler, make_family, guidance):
        family = make_family(guidance_scale=guidance)
        sampler = make_sampler(family, FlowSDE().ode(), num_generations=2, num_inference_steps=6)
        rollout = run(sampler)
        slots, members = rollout.prompt_index.tolist(), rollout.member.tolist()
        latents = row_noise(family.latent_shape, 1, 0, slots, members, INITIAL_NOISE)

        def stock(output_type):
            return family.pipeline(
                [PROMPTS[p] for p in slots],
                num_inference_steps=6,
                latents=latents,
                output_type=output_type,
                **family.pipeline_call_kwargs,
            ).images

        assert (rollout.images - stock("pt")).abs().max() < 1e-4
        assert (rollout.latents[:, -1] - stock("latent")).abs().max() < 1e-4
        assert rollout.step_indices == ()

    def test_a_negative_prompt_goes_where_the_pipeline_puts_it(self, make_sampler, make_family):
        family = make_family(guidance_scale=3.0)
        sampler = make_sampler(family, FlowSDE().ode(), num_generations=1)
        negative = ["three white circles"] * 3
        rollout = run(sampler, conditioning=family.encode_prompts(PROMPTS, negative))
        latents = row_noise(family.latent_shape, 1, 0, [0, 1, 2], [0, 0, 0], INITIAL_NOISE)
        expected = family.pipeline(
            PROMPTS, negative_prompt=negative, num_inference_steps=5, latents=latents, output_type="pt",
            **family.pipeline_call_kwargs,
        ).images  # fmt: skip
        assert (rollout.images - expected).abs().max() < 1e-4
        assert (rollout.images - run(sampler).images).abs().max() > 1e-4

    def test_another_image_size(self, make_sampler, make_family):
        family = make_family(height=8, width=4)
        sampler = make_sampler(family, FlowSDE().ode(), num_generations=1)
        rollout = run(sampler)
        latents = row_noise((4, 4, 2), 1, 0, [0, 1, 2], [0, 0, 0], INITIAL_NOISE)
        expected = family.pipeline(
            PROMPTS, num_inference_steps=5, latents=latents, output_type="pt", **family.pipeline_call_kwargs
        ).images
        assert rollout.images.shape == (3, 3, 8, 4)
        assert (rollout.images - expected).abs().max() < 1e-4

    @pytest.mark.parametrize("guidance", [1.0, 3.0])
    def test_a_preview_is_the_decoded_one_step_projection(self, make_sampler, make_family, scorer, guidance):
        family = make_family(guidance_scale=guidance)
        rollout = run(make_sampler(family, num_generations=4, prune_steps=[2], prune_sizes=[4]))
        [preview] = [images for flag, _, images, _ in scorer.calls if flag]
        # By hand: the latents before step 2, the stock network, the stock VAE.
        x, sigma = rollout.latents[:, 2], rollout.schedule.sigma(2)
        cond = rollout.conditioning.rows(rollout.prompt_index)

        def velocity(side):
            return family.denoiser(
                hidden_states=x,
                timestep=torch.full((len(x),), 1000 * sigma),
                encoder_hidden_states=side["prompt_embeds"],
                pooled_projections=side["pooled_prompt_embeds"],
            ).sample

        with torch.no_grad():
            v = velocity(cond.positive)
            if guidance > 1:
                uncond = velocity(cond.negative)
                v = uncond + guidance * (v - uncond)
            decoded = family.pipeline.vae.decode((x - sigma * v) / 1.5 + 0.1).sample
        torch.testing.assert_close(preview, (decoded / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)


class TestScoring:
    def test_prompts_and_columns_follow_their_rows(self, make_sampler, scorer):
        columns = {"target": ["r", "g", "b"], "weight": [1, 2, 3]}
        rollout = run(make_sampler(num_expansions=6, prune_steps=[1], prune_sizes=[4]), columns=columns)
        for preview, prompts, images, given in scorer.calls:
            size = 6 if preview else 4
            assert len(images) == 3 * size
            assert prompts == [p for p in PROMPTS for _ in range(size)]
            assert given == {name: [v for v in values for _ in range(size)] for name, values in columns.items()}
        assert len(rollout) == 12

    def test_rewards_are_weighted_sums(self, make_sampler, redness):
        runner = RewardRunner([redness, lambda prompts, images: [2.0] * len(prompts)], [3.0, 0.5])
        rollout = run(make_sampler(scorer=runner, reward_weights=runner.weights))
        torch.testing.assert_close(rollout.rewards, rollout.rewards_per_func[:, 0] * 3 + 1)

    def test_previews_may_have_a_scorer_of_their_own(self, make_sampler, scorer, redness):
        cheap = Scorer(redness)
        cheap.runner = RewardRunner([redness, redness])
        sampler = make_sampler(
            num_expansions=6, prune_steps=[1], prune_sizes=[4], preview_scorer=cheap,
            preview_reward_weights=torch.tensor([1.0, 0.0]),
        )  # fmt: skip
        rollout = run(sampler)
        assert [preview for preview, *_ in cheap.calls] == [True]
        assert [preview for preview, *_ in scorer.calls] == [False]
        assert rollout.cost.reward_calls == 18 * 2 + 12


class TestWaves:
    PRUNED = {"num_expansions": 8, "prune_steps": [1, 3], "prune_sizes": [6, 4], "rollout_batch_size": 1}

    @pytest.mark.parametrize("waves", [2, 3, 5])
    @pytest.mark.parametrize("rule", ["ovf", "random"])
    def test_give_what_one_wave_gives(self, make_sampler, waves, rule):
        family, rule = make_sampler().family, PRUNING_RULES.get(rule)
        alone = run(make_sampler(family, **self.PRUNED, pruning_rule=rule), audit=[1])
        together = run(make_sampler(family, **self.PRUNED, pruning_rule=rule, num_waves=waves), audit=[1])
        assert_same_rollout(alone, together)
        assert together.cost == alone.cost
        for records in ("prune_records", "audit_records"):
            assert len(getattr(alone, records)) == len(getattr(together, records)) == 2
            for one, other in zip(getattr(alone, records), getattr(together, records)):
                assert one.step_index == other.step_index
                for name in ("prompt_index", "member", "rewards", "kept", "final_rewards"):
                    assert (getattr(one, name) is None) == (getattr(other, name) is None)
                    assert getattr(one, name) is None or torch.equal(getattr(one, name), getattr(other, name)), name

    def test_a_rule_judges_each_group_by_itself(self, make_sampler):
        """So the choice does not depend on which prompts share a rollout, a wave or a process."""
        family, rule = make_sampler().family, PRUNING_RULES.get("random")
        settings = {**self.PRUNED, "pruning_rule": rule}
        together = run(make_sampler(family, **settings))
        apart = [run(make_sampler(family, **settings), [p], first_slot=i) for i, p in enumerate(PROMPTS)]
        assert torch.equal(together.member, torch.cat([rollout.member for rollout in apart]))

    def test_a_reward_that_fails_stops_the_rollout(self, make_sampler):
        def broken(prompts, images, columns, preview):
            raise ZeroDivisionError("no")

        with pytest.raises(ZeroDivisionError):
            run(make_sampler(scorer=broken, num_waves=2))

    def test_the_seconds_of_scoring_are_waited_for_or_saved(self, make_sampler, scorer):
        sampler = make_sampler(**self.PRUNED, num_waves=3)
        run(sampler)
        assert set(sampler.saved.drain()) == {"reward"}
        assert set(sampler.timer.drain()) == {"denoise", "preview", "decode", "reward"}


class TestAudit:
    PRUNED = {"num_expansions": 8, "prune_steps": [1, 3], "prune_sizes": [6, 4], "rollout_batch_size": 1}

    def test_survivors_do_not_notice(self, make_sampler):
        family = make_sampler().family
        plain, audited = (
            run(make_sampler(family, **self.PRUNED)),
            run(make_sampler(family, **self.PRUNED), audit=[0, 2]),
        )
        assert_same_rollout(plain, audited)
        for one, other in zip(plain.prune_records, audited.prune_records):
            assert torch.equal(one.rewards, other.rewards)
            assert torch.equal(one.kept, other.kept)
        assert plain.audit_records == ()
        # Two groups whose 2 rows go 2 steps further, and 2 more 1 step.
        assert audited.cost.nfe - plain.cost.nfe == 2 * (2 * 3 + 2 * 1)
        assert audited.cost.decodes - plain.cost.decodes == 2 * 4
        assert audited.cost.preview_decodes - plain.cost.preview_decodes == 2 * 2

    def test_records_hold_whole_groups_and_their_true_rewards(self, make_sampler):
        family = make_sampler().family
        audited = run(make_sampler(family, **self.PRUNED), audit=[0, 2])
        whole = run(make_sampler(family, num_generations=8, rollout_batch_size=1))
        true = whole.rewards.view(3, 8)[[0, 2]].flatten()
        for record, size in zip(audited.audit_records, (6, 4)):
            assert record.prompt_index.tolist() == [0] * 8 + [2] * 8
            assert record.member.tolist() == [*range(8)] * 2
            assert torch.equal(record.final_rewards, true)
            assert record.kept.view(2, 8).sum(1).tolist() == [size, size]
        first, second = audited.audit_records
        assert not (second.kept & ~first.kept).any()
        survivors = audited.member[audited.prompt_index != 1]
        assert torch.equal(second.member[second.kept], survivors)

    def test_with_a_last_selection_on_true_rewards(self, make_sampler):
        settings = {**self.PRUNED, "prune_sizes": [6, 5]}
        family = make_sampler().family
        plain, audited = run(make_sampler(family, **settings)), run(make_sampler(family, **settings), audit=[1])
        assert_same_rollout(plain, audited)
        assert len(audited.prune_records) == 3
        assert len(audited.audit_records) == 2


class TestSmallPreviews:
    @pytest.mark.parametrize("with_decoder", [False, True])
    def test_previews_are_smaller_and_images_are_not(self, make_sampler, make_family, scorer, with_decoder):
        family = make_family()
        decoder = None
        if with_decoder:
            from diffusers import AutoencoderTiny

            decoder = AutoencoderTiny(
                encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
                num_decoder_blocks=(1, 1), latent_channels=4, upsampling_scaling_factor=2,
            )  # fmt: skip
        sampler = make_sampler(
            family, num_expansions=6, prune_steps=[2], prune_sizes=[4], preview_downscale=2, preview_decoder=decoder
        )
        run(sampler)
        [small], [full] = ([i for flag, _, i, _ in scorer.calls if flag is preview] for preview in (True, False))
        assert full.shape[-2:] == (family.height, family.width)
        assert small.shape == (18, 3, family.height // 2, family.width // 2)

    def test_batches_of_their_own_size(self, make_sampler, make_family):
        family, sizes = make_family(), []
        decode = family.decode_spatial
        family.decode_spatial = lambda latents: sizes.append(len(latents)) or decode(latents)
        run(
            make_sampler(
                family, num_expansions=6, prune_steps=[2], prune_sizes=[4], preview_batch_size=9, decode_batch_size=5
            )
        )
        assert sizes == [9, 9, 5, 5, 2]
