# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import copy
import functools
import json
import math
import operator
import os
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from trl_progrpo.rewards import image_type


def history(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@image_type("pt")
def constant(prompts, images, **columns):
    return [0.5] * len(prompts)


def move_adapter(trainer, scale=0.5):
    """Puts the adapter somewhere else than its start, where it is no change at all."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in trainer.family.denoiser.named_parameters():
            if "lora_B" in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


class TestFirstPass:
    @pytest.mark.parametrize("guidance", [1.0, 3.0])
    @pytest.mark.parametrize("iterations", [1, 2])
    def test_the_ratio_of_the_first_pass_is_one(self, make_trainer, capsys, guidance, iterations):
        trainer = make_trainer(
            guidance_scale=guidance, num_iterations=iterations, num_inference_steps=6, prune_steps=[1, 3],
            prune_sizes=[5, 4], num_expansions=8, rollout_batch_size=7, max_steps=3, learning_rate=1e-2,
        )  # fmt: skip
        trainer.train()
        worst = max(history(trainer, "sampling/sampling_logp_difference/max"))
        with capsys.disabled():
            print(f"\n  trainer, guidance {guidance:g}, {iterations} iterations, after pruning: {worst:.1e}")
        assert len(history(trainer, "sampling/sampling_logp_difference/max")) == (3 if iterations == 1 else 2)
        assert worst < 1e-6
        if iterations == 1:
            assert history(trainer, "ratio/max") == history(trainer, "ratio/min") == [1.0] * 3
        else:
            first, second, third = history(trainer, "ratio/deviation")
            assert max(first, third) < 1e-6
            assert second > 1e-5

    def test_gradient_checkpointing_changes_nothing(self, make_trainer, adapter_of):
        weights = []
        for checkpointing in (False, True):
            trainer = make_trainer(gradient_checkpointing=checkpointing)
            assert trainer.family.denoiser.is_gradient_checkpointing == checkpointing
            trainer.train()
            weights.append(adapter_of(trainer))
        for name, weight in weights[0].items():
            torch.testing.assert_close(weight, weights[1][name], rtol=0, atol=1e-6)


class TestUpdate:
    def test_one_step_raises_good_survivors_and_lowers_bad_ones(self, make_trainer, replay):
        trainer = make_trainer(
            max_steps=1, learning_rate=3e-3, num_generations=8, num_expansions=12, prune_sizes=[8],
            per_device_train_batch_size=8, gradient_accumulation_steps=4, num_inference_steps=6,
        )  # fmt: skip
        trainer.train()
        rollout = trainer.last_rollout
        change = replay(trainer.family, trainer.sampler.policy, rollout) - rollout.log_probs
        change, good = change.mean(1), rollout.advantages > 0
        assert change[good].mean() > 1e-5
        assert change[~good].mean() < -1e-5
        assert (change * rollout.advantages).mean() > 1e-5

    def test_the_first_gradient_is_that_of_the_objective(self, make_trainer, replay):
        """Written down once more, in one expression, without micro-batches."""
        trainer = make_trainer(max_steps=1, optim="sgd", learning_rate=1.0, max_grad_norm=0.0)
        trainer.train()
        twin = make_trainer()
        rollout, family, policy = trainer.last_rollout, twin.family, twin.sampler.policy
        objective = 0.0
        for s, i in enumerate(rollout.step_indices):
            x, t = rollout.latents[:, s], rollout.schedule.timesteps[i]
            output = family.predict(family.denoiser, x, t, rollout.conditioning.rows(rollout.prompt_index))
            log_prob = policy.step(output, x, rollout.schedule, i).log_prob(rollout.latents[:, s + 1])
            objective = objective + (rollout.advantages * log_prob).mean() / len(rollout.step_indices)
        parameters = {n: p for n, p in family.denoiser.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(objective, list(parameters.values()))
        moved = dict(trainer.family.denoiser.named_parameters())
        assert max(g.abs().max() for g in gradients) > 1e-3
        for (name, parameter), gradient in zip(parameters.items(), gradients):
            torch.testing.assert_close(moved[name] - parameter, gradient, rtol=1e-3, atol=1e-6)

    def test_advantages_are_those_of_the_survivors(self, make_trainer):
        trainer = make_trainer(max_steps=1)
        trainer.train()
        rewards = trainer.last_rollout.rewards.view(2, 4)
        expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, correction=0, keepdim=True) + 1e-4)
        torch.testing.assert_close(trainer.last_rollout.advantages.view(2, 4), expected, rtol=1e-4, atol=1e-5)

    def test_batch_scaling_divides_by_the_spread_of_all_survivors(self, make_trainer):
        trainer = make_trainer(max_steps=1, scale_rewards="batch", adv_clip_max=1.5)
        trainer.train()
        rewards = trainer.last_rollout.rewards.view(2, 4)
        expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(correction=0) + 1e-4)
        expected = expected.clamp(-1.5, 1.5)
        torch.testing.assert_close(trainer.last_rollout.advantages.view(2, 4), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("weighting", [0.0, 1.0])
    def test_one_batch_of_eight_is_eight_of_one(self, make_trainer, adapter_of, weighting):
        weights, losses = [], []
        for size, accumulation in ((8, 1), (1, 8), (4, 2)):
            trainer = make_trainer(
                per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, optim="sgd",
                learning_rate=10.0, max_grad_norm=0.0, beta=0.1, step_weighting=weighting,
            )  # fmt: skip
            start = adapter_of(trainer)
            trainer.train()
            weights.append(adapter_of(trainer))
            losses.append(history(trainer, "loss"))
        assert max((weights[0][name] - start[name]).abs().max() for name in start) > 1e-3
        for other in weights[1:]:
            for name, weight in weights[0].items():
                torch.testing.assert_close(weight, other[name], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-5)

    def test_step_weighting_changes_the_update(self, make_trainer, adapter_of):
        weights = []
        for weighting in (0.0, 2.0):
            trainer = make_trainer(step_weighting=weighting, max_steps=1, optim="sgd", learning_rate=0.1)
            trainer.train()
            weights.append(adapter_of(trainer))
        assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    def test_clipping_takes_gradient_away_after_the_first_pass(self, make_trainer):
        norms, regions = {}, {}
        for epsilon in (1e-6, 1e6):
            trainer = make_trainer(num_iterations=2, epsilon=epsilon, learning_rate=1e-2)
            trainer.train()
            norms[epsilon] = history(trainer, "grad_norm")
            regions[epsilon] = history(trainer, "clip_ratio/region_mean")
        assert regions[1e6] == [0.0, 0.0]
        assert regions[1e-6][0] == 0
        assert regions[1e-6][1] > 0.1
        assert norms[1e-6][0] == norms[1e6][0]
        assert norms[1e-6][1] != norms[1e6][1]

    def test_zero_spread_groups_leave_the_weights_alone(self, make_trainer, adapter_of):
        trainer = make_trainer(reward_funcs=constant, optim="sgd", learning_rate=1.0)
        start = adapter_of(trainer)
        trainer.train()
        assert_equal_weights(start, adapter_of(trainer))
        assert history(trainer, "frac_reward_zero_std") == [1.0, 1.0]
        assert history(trainer, "grad_norm") == [0.0, 0.0]

    def test_rewards_that_do_not_apply_are_no_obstacle(self, make_trainer, redness):
        @image_type("pt")
        def sometimes(prompts, images, **columns):
            values = redness(prompts, images)
            return [None if "square" in prompt else value for prompt, value in zip(prompts, values)]

        trainer = make_trainer(reward_funcs=sometimes, max_steps=3)
        trainer.train()
        assert all(torch.tensor(history(trainer, "grad_norm")).isfinite())
        assert all(torch.tensor(history(trainer, "reward")).isfinite())
        assert all(torch.tensor(history(trainer, "reward_std")).isfinite())

    def test_only_the_adapter_moves(self, make_trainer, make_pipeline):
        pipeline = make_pipeline()
        before = copy.deepcopy({k: v for k, v in pipeline.components.items() if isinstance(v, torch.nn.Module)})
        trainer = make_trainer(model=pipeline, max_steps=1)
        trainer.train()
        for name, module in before.items():
            now = dict(pipeline.components[name].named_parameters())
            for key, value in module.named_parameters():
                now_key = (
                    key
                    if key in now
                    else key.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
                )
                assert torch.equal(value, now[now_key]), (name, key)
                assert not now[now_key].requires_grad


class TestKL:
    def test_it_is_exactly_zero_at_first_and_then_grows(self, make_trainer):
        trainer = make_trainer(beta=0.1, num_iterations=2, max_steps=4, learning_rate=1e-2)
        trainer.train()
        kl = history(trainer, "kl")
        assert kl[0] == 0
        assert min(kl[1:]) > 0

    def test_beta_acts_once_the_weights_have_moved(self, make_trainer, adapter_of):
        after = {}
        for beta in (0.0, 100.0):
            for steps in (1, 2):
                trainer = make_trainer(
                    beta=beta, num_iterations=2, max_steps=steps, optim="sgd", learning_rate=0.3, max_grad_norm=0.0
                )
                trainer.train()
                after[beta, steps] = adapter_of(trainer)
        for name, weight in after[0.0, 1].items():
            torch.testing.assert_close(weight, after[100.0, 1][name], rtol=0, atol=1e-7)
        largest = max((after[0.0, 2][n] - after[100.0, 2][n]).abs().max() for n in after[0.0, 2])
        assert largest > 1e-4

    @pytest.mark.parametrize("peft", [True, False], ids=["lora", "full"])
    def test_without_any_advantage_it_pulls_back_to_the_reference(self, make_trainer, peft):
        kwargs = {} if peft else {"peft_config": None}
        trainer = make_trainer(
            beta=1.0, reward_funcs=constant, max_steps=8, learning_rate=3e-2 if peft else 1e-3, **kwargs
        )
        if peft:
            move_adapter(trainer)
        else:
            with torch.no_grad():
                trainer.family.denoiser.proj_out.weight.mul_(1.5)
        trainer.train()
        kl = history(trainer, "kl")
        assert kl[0] > 0
        assert kl[-1] < 0.8 * kl[0]

    def test_the_reference_is_the_base_model_and_stays_it(self, make_trainer, make_family, replay):
        trainer = make_trainer(beta=0.1, max_steps=1)
        move_adapter(trainer)
        trainer.train()
        rollout = trainer.last_rollout
        base = make_family()
        with torch.no_grad():
            reference = trainer._reference_transition(rollout, 1)
            output = base.predict(
                base.denoiser, rollout.latents[:, 1], rollout.schedule.timesteps[1],
                rollout.conditioning.rows(rollout.prompt_index),
            )  # fmt: skip
            expected = trainer.sampler.policy.step(output, rollout.latents[:, 1], rollout.schedule, 1)
        torch.testing.assert_close(reference.mean, expected.mean, rtol=0, atol=1e-6)
        # And the adapter is on again afterwards.
        assert (
            replay(trainer.family, trainer.sampler.policy, rollout) - replay(base, trainer.sampler.policy, rollout)
        ).any()


class TestBookkeeping:
    @pytest.fixture
    def recorded(self, monkeypatch):
        """The rollouts of a run, and the rows of every micro-batch, in order."""
        from trl_progrpo import ProGRPOTrainer

        rollouts, micro_batches = [], []
        log_rollout, prepare = ProGRPOTrainer._log_rollout, ProGRPOTrainer._prepare_inputs

        def log(self, rollout):
            rollouts.append(rollout)
            return log_rollout(self, rollout)

        def inputs(self, columns):
            batch = prepare(self, columns)
            rows = batch.rows.select(torch.arange(batch.num_rows))
            micro_batches.append((len(rollouts), list(zip(rows.prompt_index.tolist(), rows.member.tolist()))))
            return batch

        monkeypatch.setattr(ProGRPOTrainer, "_log_rollout", log)
        monkeypatch.setattr(ProGRPOTrainer, "_prepare_inputs", inputs)
        return rollouts, micro_batches

    @pytest.mark.parametrize(("per_generation", "iterations"), [(2, 1), (4, 1), (2, 2), (4, 2)])
    def test_every_pass_covers_every_row_once_and_every_update_all_groups_alike(
        self, make_trainer, recorded, per_generation, iterations
    ):
        rollouts, micro_batches = recorded
        make_trainer(steps_per_generation=per_generation, num_iterations=iterations, max_steps=4).train()
        updates = per_generation * iterations // 2
        assert len(rollouts) == 4 // updates
        assert len(micro_batches) == 8
        for index, rollout in enumerate(rollouts, 1):
            rows = sorted(zip(rollout.prompt_index.tolist(), rollout.member.tolist()))
            batches = [batch for of, batch in micro_batches if of == index]
            assert all(len(batch) == 4 for batch in batches)
            passes = [
                functools.reduce(operator.iadd, batches[i : i + per_generation], [])
                for i in range(0, len(batches), per_generation)
            ]
            assert len(passes) == iterations
            assert all(sorted(rows_of_pass) == rows for rows_of_pass in passes)
            assert iterations == 1 or per_generation == 2 or passes[0] != passes[1]
            # Two micro-batches are an update.
            for update in (batches[i] + batches[i + 1] for i in range(0, len(batches), 2)):
                of_each = Counter(prompt for prompt, _ in update)
                assert set(of_each) == set(rollout.prompt_index.tolist())
                assert max(of_each.values()) - min(of_each.values()) <= 1

    def test_an_epoch_visits_every_prompt_with_its_columns(self, make_trainer, recorded):
        seen = []

        @image_type("pt")
        def spy(prompts, images, number, preview):
            seen.append((preview, list(zip(prompts, number))))
            return images.mean((1, 2, 3)).tolist()

        prompts = [f"a {c} {s}" for c in ("red", "blue", "green") for s in ("circle", "square")]
        dataset = Dataset.from_dict({"prompt": prompts, "number": list(range(6))})
        make_trainer(reward_funcs=spy, train_dataset=dataset, max_steps=-1, num_train_epochs=2).train()
        assert len(recorded[0]) == 6
        finals = [pairs for preview, pairs in seen if not preview]
        assert len(finals) == 6
        assert all(len(pairs) == 8 for pairs in finals)
        for epoch in (finals[:3], finals[3:]):
            visited = [pair for pairs in epoch for pair in pairs]
            assert sorted(set(visited)) == sorted(zip(prompts, range(6)))
            assert all(visited.count(pair) == 4 for pair in set(visited))
        assert finals[:3] != finals[3:]

    def test_the_sampler_is_told_the_epoch_whatever_wraps_it(self, make_trainer):
        """On one process accelerate passes it on, too; on several its wrapper hides the sampler."""
        trainer = make_trainer()
        trainer.get_train_dataloader()
        trainer.state.epoch = 2.0
        trainer.callback_handler.on_epoch_begin(trainer.args, trainer.state, trainer.control)
        assert trainer.prompt_sampler.epoch == 2

    def test_the_same_seed_is_the_same_run(self, make_trainer, adapter_of):
        runs = []
        for seed in (3, 3, 4):
            torch.manual_seed(len(runs))
            trainer = make_trainer(seed=seed)
            trainer.train()
            runs.append(adapter_of(trainer))
        assert_equal_weights(runs[0], runs[1])
        assert any(not torch.equal(runs[0][name], runs[2][name]) for name in runs[0])

    def test_training_twice_starts_again(self, make_trainer, adapter_of):
        """The second call is a new run from the weights of the first, with rollouts of its own."""
        trainer = make_trainer(max_steps=1, learning_rate=1e-2)
        trainer.train()
        first = trainer.last_rollout
        trainer.train()
        second = trainer.last_rollout
        assert not torch.equal(first.latents, second.latents)
        assert history(trainer, "ratio/deviation")[-1] == 0

    def test_logs_have_the_names_of_trl(self, make_trainer, redness):
        @image_type("pt")
        def green(prompts, images, **columns):
            return images[:, 1].mean((1, 2)).tolist()

        trainer = make_trainer(
            reward_funcs=[redness, green], reward_weights=[1.0, 0.5], beta=0.01, num_expansions=10, num_inference_steps=8,
            prune_steps=[2, 5], prune_sizes=[8, 5], num_generations=4, max_steps=2,
        )  # fmt: skip
        trainer.train()
        expected = {"loss", "grad_norm", "learning_rate", "epoch", "step", "reward", "reward_std", "kl"}
        expected |= {"rewards/redness/mean", "rewards/green/mean", "frac_reward_zero_std", "frac_groups_left_out"}
        expected |= {"clip_ratio/region_mean", "clip_ratio/low_mean", "clip_ratio/high_mean"}
        expected |= {"sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max"}
        expected |= {"ratio/mean", "ratio/min", "ratio/max", "ratio/deviation"}
        expected |= {"sampling/nfe", "sampling/decodes", "sampling/preview_decodes", "sampling/reward_calls"}
        spread = {"reward_std_before", "reward_std_after", "reward_std_random"}
        expected |= {f"prune/step_{i}/{name}" for i in (2, 5) for name in (*spread, "rank_corr")}
        expected |= {f"prune/step_8/{name}" for name in spread}
        expected |= {f"time/{name}" for name in ("denoise", "preview", "decode", "reward", "update")}
        first, second = trainer.state.log_history[:2]
        assert set(first) == set(second) == expected
        rollout = trainer.last_rollout
        assert second["reward"] == pytest.approx(rollout.rewards.mean().item())
        assert second["rewards/green/mean"] == pytest.approx(rollout.rewards_per_func[:, 1].mean().item())
        spread = rollout.rewards.view(2, 4).std(1, correction=0).mean().item()
        assert second["reward_std"] == pytest.approx(spread)
        assert second["prune/step_8/reward_std_after"] == pytest.approx(spread)
        assert second["sampling/nfe"] == 2 * (10 * 3 + 8 * 3 + 5 * 2)
        for i in (2, 5, 8):
            prefix = f"prune/step_{i}/reward_std"
            assert second[f"{prefix}_before"] < second[f"{prefix}_after"]
            assert second[f"{prefix}_random"] < second[f"{prefix}_after"]

    def test_metrics_are_means_over_the_steps_between_two_logs(self, make_trainer):
        every, second = make_trainer(max_steps=4), make_trainer(max_steps=4, logging_steps=2)
        every.train()
        second.train()
        for name in ("reward", "reward_std", "sampling/nfe", "frac_reward_zero_std"):
            a, b, c, d = history(every, name)
            assert history(second, name) == pytest.approx([(a + b) / 2, (c + d) / 2])
        peaks = history(every, "sampling/sampling_logp_difference/max")
        assert history(second, "sampling/sampling_logp_difference/max") == [max(peaks[:2]), max(peaks[2:])]

    def test_phases_are_told_to_callbacks(self, make_trainer):
        from transformers import TrainerCallback

        class Listener(TrainerCallback):
            phases = []

            def on_phase(self, args, state, control, phase, done, total, **kwargs):
                assert 0 <= done <= total
                self.phases.append(phase)

        make_trainer(callbacks=[Listener()], max_steps=1).train()
        assert set(Listener.phases) == {"denoise", "preview", "decode", "reward", "update"}

    def test_a_pipeline_from_a_folder_trains_like_the_same_one_in_memory(
        self, make_trainer, make_pipeline, pipeline_path, adapter_of
    ):
        weights = []
        for model in (make_pipeline(), pipeline_path):
            trainer = make_trainer(model=model, max_steps=1)
            trainer.train()
            weights.append(adapter_of(trainer))
        assert_equal_weights(*weights)

    def test_the_embedded_model_trains(self, make_trainer):
        trainer = make_trainer(model="shapes", reward_funcs="shapes", max_steps=1, num_inference_steps=3)
        trainer.train()
        assert trainer.state.global_step == 1
        assert trainer.generate(["a red circle"]).shape == (1, 3, 32, 32)


class TestLearning:
    def test_the_tiny_model_learns(self, make_trainer, redness):
        trainer = make_trainer(
            num_generations=8, num_expansions=12, prune_steps=[1], prune_sizes=[8], per_device_train_batch_size=16,
            gradient_accumulation_steps=1, rollout_batch_size=24, max_steps=20, learning_rate=2e-2, epsilon=1e-2,
            num_inference_steps=4, step_weighting=1.0,
            peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=["proj_out", "attn.to_v", "attn.to_out.0"]),
        )  # fmt: skip
        prompts = ["a red circle", "two blue squares", "a green triangle"] * 16

        def score(adapter):
            return torch.tensor(redness(prompts, trainer.generate(prompts, adapter=adapter)))

        trainer.train()
        before, after = score(adapter=False), score(adapter=True)
        print(f"redness {before.mean():.4f} -> {after.mean():.4f}, spread {before.std():.4f}")
        # Half-way: a spread of the untrained model's images above where it starts.
        assert before.mean() < -0.06
        assert after.mean() > -0.045


class TestGenerateAndEvaluate:
    def test_an_image_depends_on_its_seed_and_place_alone(self, make_trainer):
        trainer = make_trainer()
        prompts = ["a red circle", "two blue squares", "a green triangle"]
        images = trainer.generate(prompts)
        assert images.shape == (3, 3, 8, 8)
        torch.testing.assert_close(trainer.generate(prompts[1:], first_slot=1), images[1:], rtol=0, atol=1e-5)
        assert not torch.equal(images, trainer.generate(prompts, seed=9))
        assert torch.equal(images, trainer.generate(prompts))

    def test_the_base_model_is_at_hand(self, make_trainer):
        trainer = make_trainer()
        prompts = ["a red circle"]
        start = trainer.generate(prompts)
        move_adapter(trainer)
        moved = trainer.generate(prompts)
        assert (moved - start).abs().max() > 1e-3
        torch.testing.assert_close(trainer.generate(prompts, adapter=False), start, rtol=0, atol=1e-6)
        assert torch.equal(trainer.generate(prompts), moved)

    def test_full_fine_tuning_has_no_base_model(self, make_trainer):
        trainer = make_trainer(peft_config=None)
        with pytest.raises(ValueError, match="`adapter=False` needs a LoRA run"):
            trainer.generate(["a red circle"], adapter=False)

    def test_evaluation_gives_mean_and_standard_error_of_every_reward(self, make_trainer, redness):
        @image_type("pt")
        def held_out(prompts, images, **columns):
            return [None if "two" in prompt else 1.0 for prompt in prompts]

        prompts = ["a red circle", "two blue squares", "a green triangle", "a yellow square", "three white circles"]
        results = []
        for batch_size in (2, 8):
            trainer = make_trainer(
                eval_dataset=Dataset.from_dict({"prompt": prompts}), eval_reward_funcs=held_out, reward_weights=[2.0],
                per_device_eval_batch_size=batch_size,
            )  # fmt: skip
            results.append(trainer.evaluate())
        one, other = results
        scores = torch.tensor(redness(prompts, trainer.generate(prompts)))
        for metrics in results:
            assert metrics["eval_num_prompts"] == 5
            assert metrics["eval_rewards/redness/mean"] == pytest.approx(scores.mean().item(), abs=1e-5)
            assert metrics["eval_rewards/redness/stderr"] == pytest.approx(scores.std().item() / 5**0.5, abs=1e-5)
            assert metrics["eval_reward"] == pytest.approx(2 * scores.mean().item(), abs=1e-5)
            assert metrics["eval_rewards/held_out/mean"] == 1.0
            assert metrics["eval_rewards/held_out/stderr"] == 0.0
        assert one.keys() == other.keys()
        assert trainer.state.log_history[-1]["eval_reward"] == other["eval_reward"]

    def test_prompts_without_a_reward_do_not_count_as_zero(self, make_trainer):
        @image_type("pt")
        def sometimes(prompts, images, **columns):
            return [None if "two" in prompt else 1.0 for prompt in prompts]

        dataset = Dataset.from_dict({"prompt": ["a red circle", "two blue squares"]})
        metrics = make_trainer(reward_funcs=sometimes, eval_dataset=dataset).evaluate()
        assert metrics["eval_reward"] == metrics["eval_rewards/sometimes/mean"] == 1.0

    def test_evaluation_in_training_and_several_datasets(self, make_trainer):
        datasets = {name: Dataset.from_dict({"prompt": [name]}) for name in ("a red circle", "a blue square")}
        datasets = {"red": datasets["a red circle"], "blue": datasets["a blue square"]}
        trainer = make_trainer(eval_dataset=datasets, eval_strategy="steps", eval_steps=1, eval_on_start=True)
        trainer.train()
        for name in datasets:
            assert len(history(trainer, f"eval_{name}_reward")) == 3

    def test_the_best_checkpoint_is_loaded_at_the_end(self, make_trainer, adapter_of):
        values = iter([0.0, 5.0, 1.0])

        @image_type("pt")
        def scripted(prompts, images, **columns):
            return [next(values)] * len(prompts)

        kept = {}
        from transformers import TrainerCallback

        class Keep(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                kept[state.global_step] = adapter_of(trainer)

        trainer = make_trainer(
            max_steps=3, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, callbacks=[Keep()],
            eval_dataset=Dataset.from_dict({"prompt": ["a red circle"]}), eval_reward_funcs=scripted, learning_rate=1e-2,
            load_best_model_at_end=True, metric_for_best_model="eval_rewards/scripted/mean", greater_is_better=True,
        )  # fmt: skip
        trainer.train()
        assert trainer.state.best_global_step == 2
        assert_equal_weights(adapter_of(trainer), kept[2])
        assert not all(torch.equal(kept[2][name], kept[3][name]) for name in kept[2])


class TestEMA:
    def test_it_is_the_average_and_evaluation_uses_it(self, make_trainer, adapter_of):
        from transformers import TrainerCallback

        weights = []

        class Keep(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                weights.append(adapter_of(trainer))

        trainer = make_trainer(ema_decay=0.05, max_steps=3, learning_rate=1e-2, callbacks=[Keep()])
        start = adapter_of(trainer)
        trainer.train()
        # diffusers' first update copies, then the decay is at most (1 + n) / (10 + n).
        average = start
        for decay, now in zip((0.0, 0.05, 0.05), weights):
            average = {name: decay * average[name] + (1 - decay) * now[name] for name in now}
        for shadow, (name, expected) in zip(trainer.ema.shadow_params, average.items()):
            torch.testing.assert_close(shadow, expected, rtol=1e-5, atol=1e-7, msg=name)
        raw = adapter_of(trainer)
        images = trainer.generate(["a red circle"])
        assert_equal_weights(raw, adapter_of(trainer))
        parameters = [p for p in trainer.family.denoiser.parameters() if p.requires_grad]
        with torch.no_grad():
            for parameter, shadow in zip(parameters, trainer.ema.shadow_params):
                parameter.copy_(shadow)
        trainer.ema = None
        assert torch.equal(trainer.generate(["a red circle"]), images)

    def test_the_interval_is_in_optimiser_updates(self, make_trainer):
        trainer = make_trainer(ema_decay=0.9, ema_update_interval=2, max_steps=3)
        trainer.train()
        assert trainer.ema.optimization_step == 1


class TestEnvironment:
    def test_nothing_is_reported_home_when_ci_is_unset(self, make_trainer, monkeypatch):
        import trl.trainer.base_trainer

        monkeypatch.delenv("CI", raising=False)
        monkeypatch.setattr(
            trl.trainer.base_trainer, "send_telemetry", lambda *args, **kwargs: pytest.fail("telemetry was sent")
        )
        trainer = make_trainer(max_steps=1)
        trainer.train()
        assert trainer.state.global_step == 1

    def test_tensorboard_logs_are_written(self, make_trainer, tmp_path, monkeypatch):
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
        trainer = make_trainer(report_to="tensorboard")
        trainer.train()
        events = EventAccumulator(str(tmp_path / "board")).Reload()
        assert [event.value for event in events.Scalars("train/reward")] == pytest.approx(history(trainer, "reward"))
        assert "model_config/text_summary" in events.Tags()["tensors"]

    def test_the_config_of_the_denoiser_still_saves(self, make_trainer, tmp_path):
        from diffusers import SD3Transformer2DModel

        trainer = make_trainer()
        config = trainer.family.denoiser.config
        assert json.loads(config.to_json_string())["num_layers"] == 2
        assert config.to_dict()["num_layers"] == config.num_layers == 2
        trainer.family.denoiser.save_config(tmp_path)
        assert SD3Transformer2DModel.from_config(SD3Transformer2DModel.load_config(tmp_path)).config.num_layers == 2

    def test_training_is_the_same_on_transformers_own_trainer(self, make_trainer, adapter_of, pipeline_path, tmp_path):
        """Without TRL's private base classes, in a fresh process."""
        import trl.trainer.base_trainer

        from trl_progrpo import ProGRPOTrainer

        kwargs = {
            "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 4, "num_expansions": 6,
            "prune_steps": [1], "prune_sizes": [4], "num_inference_steps": 4, "rollout_batch_size": 6, "max_steps": 2,
            "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
            "seed": 3, "beta": 0.1, "bf16": False,
        }  # fmt: skip
        script = f"""
import sys, torch
torch.set_num_threads(1)
sys.modules["trl.trainer.base_trainer"] = None
sys.modules["trl.trainer.base_config"] = None
from datasets import Dataset
from peft import LoraConfig
from transformers import Trainer, TrainingArguments
from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
assert ProGRPOTrainer.__base__.__bases__ == (Trainer,) and ProGRPOConfig.__bases__ == (TrainingArguments,)
def redness(prompts, images, **columns):
    return (images[:, 0] - images[:, 2]).mean((1, 2)).tolist()
redness.image_type = "pt"
trainer = ProGRPOTrainer(
    model={pipeline_path!r}, reward_funcs=redness, args=ProGRPOConfig(output_dir={str(tmp_path / "fallback")!r}, **{kwargs!r}),
    train_dataset=Dataset.from_dict({{"prompt": ["a red circle", "two blue squares", "a green triangle"]}}),
    peft_config=LoraConfig(r=4, lora_alpha=8, init_lora_weights="gaussian"),
)
trainer.train()
trainer.save_model()
torch.save({{n: p.detach() for n, p in trainer.family.denoiser.named_parameters() if p.requires_grad}},
           {str(tmp_path / "weights.pt")!r})
"""
        environment = {k: v for k, v in os.environ.items() if k != "CI"} | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", script], check=True, env=environment, capture_output=True, timeout=600)
        trainer = make_trainer(
            model=pipeline_path, prompts=["a red circle", "two blue squares", "a green triangle"], **kwargs
        )
        assert ProGRPOTrainer.__base__.__bases__ == (trl.trainer.base_trainer._BaseTrainer,)
        trainer.train()
        assert_equal_weights(adapter_of(trainer), torch.load(tmp_path / "weights.pt"))

    def test_mixed_precision_evaluates_alike_before_and_after_training(self, make_trainer):
        """accelerate returns outputs in fp32 once a model is prepared, and guidance magnifies rounding."""
        trainer = make_trainer(bf16=True, guidance_scale=3.0, learning_rate=1e-30, weight_decay=0.0, max_steps=1)
        before = trainer.generate(["a red circle"], seed=0)
        trainer.train()
        assert torch.equal(before, trainer.generate(["a red circle"], seed=0))

    def test_a_lora_config_can_be_used_again(self, make_trainer):
        config = LoraConfig(r=2, lora_alpha=4)
        make_trainer(peft_config=config)
        assert config.target_modules is None
        make_trainer(peft_config=config)

    def test_a_pipeline_that_carries_an_adapter_is_refused(self, make_trainer, make_pipeline):
        pipeline = make_pipeline()
        make_trainer(model=pipeline)
        with pytest.raises(ValueError, match=r"`model` already carries the adapters \['default'\]"):
            make_trainer(model=pipeline)

    def test_model_card_and_arguments_lie_beside_the_weights(self, make_trainer):
        trainer = make_trainer(max_steps=1)
        trainer.train()
        trainer.save_model()
        folder = Path(trainer.args.output_dir)
        assert "load_lora_weights" in (folder / "README.md").read_text()
        assert json.loads((folder / "training_args.json").read_text())["num_expansions"] == 6


class TestSeveralRewards:
    @staticmethod
    @image_type("pt")
    def brightness(prompts, images, **columns):
        return (100 * images.mean((1, 2, 3))).tolist()

    def test_gdpo_normalises_each_reward_first(self, make_trainer, redness):
        trainer = make_trainer(
            reward_funcs=[redness, self.brightness], reward_weights=[1.0, 0.5], max_steps=1, adv_clip_max=None,
            multi_objective_aggregation="normalize_then_sum",
        )  # fmt: skip
        trainer.train()
        rewards = trainer.last_rollout.rewards_per_func.double().view(2, 4, 2)
        centred = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, correction=0, keepdim=True) + 1e-4)
        total = (centred * torch.tensor([1.0, 0.5])).sum(2)
        expected = (total / (total.std(correction=0) + 1e-4)).flatten().float()
        torch.testing.assert_close(trainer.last_rollout.advantages, expected, rtol=1e-4, atol=1e-5)
        # The other way, brightness, which is a hundred times as large, decides almost alone.
        other = make_trainer(reward_funcs=[redness, self.brightness], reward_weights=[1.0, 0.5], max_steps=1)
        other.train()
        assert (other.last_rollout.advantages - expected).abs().max() > 0.1

    def test_previews_may_be_scored_by_other_functions(self, make_trainer, redness):
        asked = []

        @image_type("pt")
        def cheap(prompts, images, preview):
            asked.append(preview)
            return images.mean((1, 2, 3)).tolist()

        @image_type("pt")
        def dear(prompts, images, preview):
            asked.append(preview)
            return redness(prompts, images)

        make_trainer(reward_funcs=dear, preview_reward_funcs=cheap, audit_fraction=0, max_steps=1).train()
        assert asked == [True] * (len(asked) - 1) + [False]

    def test_weights_without_preview_functions_are_refused(self, make_trainer):
        with pytest.raises(ValueError, match=r"`preview_reward_weights` is .* without `preview_reward_funcs`"):
            make_trainer(preview_reward_weights=[1.0])
        with pytest.raises(ValueError, match="`preview_reward_weights` has 2 entries for 1"):
            make_trainer(preview_reward_funcs=constant, preview_reward_weights=[1.0, 2.0])


class TestWavesAndAudits:
    def test_waves_train_the_same_adapter(self, make_trainer, adapter_of):
        weights = []
        for waves in (1, 2):
            trainer = make_trainer(rollout_waves=waves, rollout_batch_size=1)
            trainer.train()
            weights.append(adapter_of(trainer))
        assert_equal_weights(*weights)
        assert all(seconds >= 0 for seconds in history(trainer, "sampling/reward_seconds_saved"))

    def test_audits_are_logged_and_train_the_same_adapter(self, make_trainer, adapter_of):
        weights, names = [], {"rank_corr", "reward_std_kept", "reward_std_random"}
        for fraction in (0.0, 1.0):
            trainer = make_trainer(audit_fraction=fraction, rollout_batch_size=1)
            trainer.train()
            weights.append(adapter_of(trainer))
            logged = {key for entry in trainer.state.log_history for key in entry if key.startswith("audit/")}
            step = trainer.args.prune_steps[0]
            assert {f"audit/step_{step}/{name}" for name in names} <= logged if fraction else not logged
        assert_equal_weights(*weights)

    def test_pruning_by_useless_previews_is_told(self, make_trainer, monkeypatch):
        noise = torch.Generator().manual_seed(0)

        @image_type("pt")
        def dice(prompts, images):
            return torch.rand(len(prompts), generator=noise).tolist()

        with pytest.warns(UserWarning, match="no more reward spread than chance.*`preview_decoder`"):
            make_trainer(preview_reward_funcs=dice, audit_fraction=1.0, max_steps=16, learning_rate=1e-6).train()


class TestSkippedRewards:
    @staticmethod
    def losing(*lost):
        """Raises for the `lost` members of every group of finished images, counted in the order of the call."""

        @image_type("pt")
        def reward(prompts, images, preview):
            if preview:
                return images.mean((1, 2, 3)).tolist()
            names = list(dict.fromkeys(prompts))
            scores, seen = [], dict.fromkeys(names, 0)
            for prompt, image in zip(prompts, images):
                scores.append(math.nan if (names.index(prompt), seen[prompt]) in lost else image.mean().item())
                seen[prompt] += 1
            return scores

        return reward

    def trained(self, make_trainer, *lost, **settings):
        trainer = make_trainer(
            reward_funcs=self.losing(*lost), on_reward_error="skip", max_steps=1, num_generations=4, **settings
        )
        if lost:
            with pytest.warns(UserWarning, match="images without a score are left out of their groups"):
                trainer.train()
        else:
            trainer.train()
        return trainer

    def test_members_are_dropped_from_their_group(self, make_trainer):
        rollout = self.trained(make_trainer, (0, 1)).last_rollout
        first, second = rollout.rewards.view(2, 4), rollout.advantages.view(2, 4)
        assert first.isnan().nonzero().tolist() == second.isnan().nonzero().tolist() == [[0, 1]]
        # The others of the group are compared among themselves.
        alone = first[0][~first[0].isnan()]
        expected = (alone - alone.mean()) / (alone.std(correction=0) + 1e-4)
        torch.testing.assert_close(second[0][~first[0].isnan()], expected, rtol=1e-4, atol=1e-5)

    def test_a_group_of_one_is_left_out_and_counted(self, make_trainer):
        trainer = self.trained(make_trainer, (1, 0), (1, 2), (1, 3))
        assert trainer.last_rollout.advantages.view(2, 4)[1].isnan().all()
        assert history(trainer, "frac_groups_left_out") == [0.5]
        assert history(trainer, "reward_errors/not_finite") == [3.0]
        assert history(trainer, "reward_errors/timeout") == [0.0]

    @pytest.mark.parametrize("loss_type", ["grpo", "grpo_guard"])
    def test_what_is_left_out_moves_nothing(self, make_trainer, adapter_of, loss_type):
        """Not by its reward, and not by the KL: that of a whole rollout without rewards leaves the weights alone."""
        everything = [(group, member) for group in range(2) for member in range(4)]
        for lost, moves in ((everything, False), ([], True)):
            trainer = make_trainer(
                reward_funcs=self.losing(*lost), on_reward_error="skip", max_steps=1, beta=0.5, loss_type=loss_type,
                num_generations=4, learning_rate=1e-2, weight_decay=0.0,
            )  # fmt: skip
            move_adapter(trainer)
            before = {name: value.clone() for name, value in adapter_of(trainer).items()}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trainer.train()
            changed = any(not torch.equal(before[name], value) for name, value in adapter_of(trainer).items())
            assert changed == moves

    @pytest.mark.parametrize("loss_type", ["grpo", "grpo_guard"])
    def test_the_kl_weighs_beta_whatever_the_loss(self, make_trainer, loss_type):
        """GRPO-Guard divides the policy loss by the step size, and not the penalty."""
        trainer = make_trainer(
            reward_funcs=lambda prompts, images, **columns: [0.0] * len(prompts), max_steps=1, beta=0.5, loss_type=loss_type,
            learning_rate=1e-8,
        )  # fmt: skip
        move_adapter(trainer)
        trainer.train()
        [kl], [loss] = history(trainer, "kl"), history(trainer, "loss")
        assert kl > 0
        # Trainer logs four decimals of a loss that small less exactly than the KL.
        assert loss == pytest.approx(0.5 * kl, rel=1e-3)

    def test_when_nothing_has_a_reward_it_says_so(self, make_trainer):
        def silent(prompts, images, **columns):
            return [None] * len(prompts)

        trainer = make_trainer(
            reward_funcs=silent, max_steps=1, eval_dataset=Dataset.from_dict({"prompt": ["a", "b"]})
        )
        with pytest.warns(UserWarning, match="`silent` has given no number for any of 2 held-out images"):
            trainer.evaluate()
        with pytest.warns(UserWarning, match="no image of a rollout has a reward"):
            trainer.train()

    def test_evaluation_counts_them(self, make_trainer):
        prompts = Dataset.from_dict({"prompt": ["a", "b", "c"]})
        trainer = make_trainer(reward_funcs=self.losing((1, 0)), on_reward_error="skip", eval_dataset=prompts)
        with pytest.warns(UserWarning, match="left out"):
            metrics = trainer.evaluate()
        assert metrics["eval_num_failed"] == 1
        assert math.isfinite(metrics["eval_reward"])
        assert not trainer.reward_runner.errors

    def test_without_errors_nothing_is_different(self, make_trainer, adapter_of):
        one = self.trained(make_trainer)
        other = make_trainer(reward_funcs=self.losing(), max_steps=1, num_generations=4)
        other.train()
        assert_equal_weights(adapter_of(one), adapter_of(other))
