# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Held-out rewards before and after, the alarm when one falls, and which weights are evaluated."""

import json
import math

import pytest
import torch
from datasets import Dataset

from trl_progrpo.evaluation import PairedGains
from trl_progrpo.heldout import HackingWatch, evaluation_table


def evaluation(step, mean, error, name="clip", prefix="eval"):
    return {
        "step": step,
        f"{prefix}_num_prompts": 8,
        f"{prefix}_reward": mean,
        f"{prefix}_rewards/{name}/mean": mean,
        f"{prefix}_rewards/{name}/stderr": error,
    }


class TestEvaluationTable:
    def test_first_and_last(self):
        history = [evaluation(0, 0.2, 0.03), {"step": 1, "reward": 9.0}, evaluation(5, 9, 9), evaluation(9, 0.5, 0.04)]
        [row] = evaluation_table(history)
        assert (row["name"], row["before"], row["after"], row["num_prompts"]) == ("clip", 0.2, 0.5, 8)
        assert row["gain"] == pytest.approx(0.3)
        assert row["gain_stderr"] == pytest.approx(0.05)
        assert row["step"] == 9
        assert not row["fell"]

    def test_the_weights_that_were_kept(self):
        history = [evaluation(0, 0.2, 0.03), evaluation(5, 0.6, 0.01), evaluation(9, 0.5, 0.04)]
        [row] = evaluation_table(history, kept_step=5)
        assert (row["before"], row["after"], row["step"]) == (0.2, 0.6, 5)

    def test_before_is_of_as_many_prompts(self):
        few, many = evaluation(0, 0.2, 0.03) | {"eval_num_prompts": 2}, evaluation(0, 0.3, 0.03)
        [row] = evaluation_table([few, many, evaluation(9, 0.5, 0.04)])
        assert row["before"] == 0.3
        [row] = evaluation_table([few, evaluation(9, 0.5, 0.04)])
        assert (row["before"], row["gain"]) == (None, None)

    def test_the_gain_of_pairs(self):
        pairs = {"eval_rewards/clip/gain": 0.31, "eval_rewards/clip/gain_stderr": 0.01}
        [row] = evaluation_table([evaluation(0, 0.2, 0.3), evaluation(5, 0.5, 0.4) | pairs])
        assert (row["gain"], row["gain_stderr"]) == (0.31, 0.01)

    def test_the_weighted_total_comes_first_where_it_is_none_of_the_rewards(self):
        total = {
            "eval_reward": 0.7,
            "eval_reward_stderr": 0.3,
            "eval_reward_gain": 0.4,
            "eval_reward_gain_stderr": 0.1,
        }
        rows = evaluation_table([evaluation(0, 0.2, 0.3), evaluation(5, 0.5, 0.4) | total], trained=["clip"])
        assert [(row["name"], row["trained"]) for row in rows] == [("weighted total", True), ("clip", True)]
        row = rows[0]
        assert [row[key] for key in ("before", "after", "after_stderr", "gain", "gain_stderr")] == [
            0.2,
            0.7,
            0.3,
            0.4,
            0.1,
        ]
        assert math.isnan(row["before_stderr"])

    @pytest.mark.parametrize(("after", "fell"), [(0.31, False), (0.29, True), (math.nan, False)])
    def test_a_fall_is_more_than_two_standard_errors(self, after, fell):
        [row] = evaluation_table([evaluation(0, 0.5, 0.06), evaluation(3, after, 0.08)])
        assert row["fell"] is fell

    def test_without_an_evaluation_before_training_there_is_no_gain(self):
        [row] = evaluation_table([evaluation(4, 0.5, 0.1), evaluation(8, 0.1, 0.1)])
        assert (row["before"], row["gain"], row["fell"]) == (None, None, False)
        [row] = evaluation_table([evaluation(0, 0.5, 0.1)])
        assert (row["before"], row["after"]) == (None, 0.5)
        assert evaluation_table([{"step": 1, "loss": 0.0}]) == []

    def test_a_reward_that_came_later_has_no_gain(self):
        rows = evaluation_table([evaluation(0, 0.5, 0.1), evaluation(4, 0.6, 0.1) | evaluation(4, 0.2, 0.1, "new")])
        assert [(row["name"], row["before"], row["gain"] is None) for row in rows] == [
            ("clip", 0.5, False), ("new", None, True),
        ]  # fmt: skip

    def test_several_sets(self):
        history = [evaluation(step, value, 0.1, prefix=f"eval_{name}") for step, value, name in
                   [(0, 0.1, "birds"), (0, 0.2, "cats_2"), (4, 0.3, "birds"), (4, 0.4, "cats_2")]]  # fmt: skip
        rows = evaluation_table(history, trained=["clip"])
        assert [(row["name"], row["before"], row["after"], row["trained"]) for row in rows] == [
            ("clip (birds)", 0.1, 0.3, True), ("clip (cats_2)", 0.2, 0.4, True),
        ]  # fmt: skip
        assert [row["trained"] for row in evaluation_table(history, trained=[])] == [False, False]
        assert [row["trained"] for row in evaluation_table(history)] == [None, None]


class TestHackingWatch:
    def test_it_warns_once_of_a_reward_that_is_not_trained_on(self):
        watch = HackingWatch(["trained"])
        history = [evaluation(0, 0.5, 0.01) | evaluation(0, 0.5, 0.01, "trained")]
        assert watch.update(history) is None
        history.append(evaluation(2, 0.49, 0.01) | evaluation(2, 0.9, 0.01, "trained"))
        assert watch.update(history) is None
        history.append(evaluation(4, 0.3, 0.02) | evaluation(4, 0.95, 0.01, "trained"))
        said = watch.update(history)
        assert "clip (0.500 before training, 0.300 at step 4: -0.200 ± 0.022)" in said
        assert "reward hacking" in said
        assert "trained (" not in said
        assert watch.update(history) is None
        history.append(evaluation(6, 0.2, 0.02) | evaluation(6, 0.95, 0.01, "trained"))
        assert watch.update(history) is None

    def test_it_asks_for_three_standard_errors(self):
        watch = HackingWatch(["trained"])
        pairs = {"eval_rewards/clip/gain": -0.028, "eval_rewards/clip/gain_stderr": 0.01}
        history = [evaluation(0, 0.5, 0.2), evaluation(2, 0.472, 0.2) | pairs]
        assert evaluation_table(history)[0]["fell"]
        assert watch.update(history) is None
        assert "clip" in watch.update([*history, history[-1] | {"eval_rewards/clip/gain": -0.031}])

    def test_a_fall_of_the_trained_reward_is_no_hacking(self):
        assert HackingWatch(["clip"]).update([evaluation(0, 0.5, 0.01), evaluation(4, 0.1, 0.01)]) is None

    @pytest.mark.parametrize("falls", [True, False])
    def test_the_trainer_warns_during_training(self, make_trainer, falls, recwarn):
        steps = []

        def measured_only(prompts, images, **columns):
            value = -len(steps) if falls else len(steps)
            return [value + 0.01 * i * len(steps) for i in range(len(prompts))]

        def other(prompts, images, **columns):
            return [0.5] * len(prompts)

        trainer = make_trainer(
            max_steps=2, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=8,
            eval_dataset=Dataset.from_dict({"prompt": ["a bird", "a cat", "a dog"]}),
            eval_reward_funcs=[measured_only, other],
        )  # fmt: skip
        trainer.evaluate()
        steps.append(1)
        trainer.train()
        said = [str(warning.message) for warning in recwarn if "reward hacking" in str(warning.message)]
        assert len(said) == (1 if falls else 0)
        if falls:
            assert "measured_only (0.000 before training, -0.990 at step 1: -0.990 ± 0.006)" in said[0]
            assert "other" not in said[0].split(";")[0]


class TestPairedGains:
    prompts, names, weights = ["a", "b", "c"], ["one", "two", "watched"], torch.tensor([1.0, 0.5])
    before = torch.tensor([[0.1, 2.0, 5.0], [0.5, 4.0, math.nan], [0.9, 6.0, 7.0]], dtype=torch.float64)
    after = torch.tensor([[0.3, 2.0, 6.0], [0.8, 5.0, 9.0], [1.3, 6.0, math.nan]], dtype=torch.float64)

    def test_means_and_errors_are_those_of_the_differences(self):
        gains = PairedGains()
        assert gains.update(0, self.prompts, self.names, self.before, self.weights) == {}
        metrics = gains.update(4, self.prompts, self.names, self.after, self.weights)
        one, total = torch.tensor([0.2, 0.3, 0.4]), torch.tensor([0.2, 0.8, 0.4])
        assert metrics["eval_rewards/one/gain"] == pytest.approx(0.3)
        assert metrics["eval_rewards/one/gain_stderr"] == pytest.approx(one.std().item() / 3**0.5)
        assert metrics["eval_reward_gain"] == pytest.approx(total.mean().item(), abs=1e-6)
        assert metrics["eval_reward_gain_stderr"] == pytest.approx(total.std().item() / 3**0.5, abs=1e-6)
        # Of one pair there is no error.
        assert metrics["eval_rewards/watched/gain"] == 1.0
        assert math.isnan(metrics["eval_rewards/watched/gain_stderr"])

    def test_without_pairs_there_is_nothing(self):
        gains = PairedGains()
        assert gains.update(4, self.prompts, self.names, self.after, self.weights) == {}
        gains.update(0, self.prompts, self.names, self.before, self.weights)
        assert gains.update(4, ["a", "b", "d"], self.names, self.after, self.weights) == {}
        assert gains.update(4, self.prompts, self.names, self.after, self.weights, "eval_easy") == {}
        silent = torch.full_like(self.after, math.nan)
        assert gains.update(4, self.prompts, self.names, silent, self.weights) == {}

    def test_of_a_reward_that_came_later_and_of_a_total_with_it(self):
        gains = PairedGains()
        gains.update(0, self.prompts, ["one"], self.before[:, :1], self.weights[:1])
        metrics = gains.update(4, self.prompts, self.names, self.after, self.weights)
        assert sorted(metrics) == ["eval_rewards/one/gain", "eval_rewards/one/gain_stderr"]

    def test_every_prompt_has_its_own(self):
        gains = PairedGains()
        gains.update(0, self.prompts, self.names, self.before, self.weights)
        gains.update(4, self.prompts, self.names, self.after, self.weights)
        assert gains.of_total(4, self.prompts) == pytest.approx([0.2, 0.8, 0.4], abs=1e-6)
        assert (
            gains.of_total(0, self.prompts)
            == gains.of_total(4, ["a"])
            == gains.of_total(4, self.prompts, "eval_x")
            == []
        )

    def test_a_checkpoint_keeps_them(self):
        gains, resumed = PairedGains(), PairedGains()
        gains.update(0, self.prompts, self.names, self.before, self.weights)
        resumed.load_state_dict(json.loads(json.dumps(gains.state_dict())))
        expected = gains.update(4, self.prompts, self.names, self.after, self.weights)
        # As texts, for NaN is not equal to itself.
        assert str(resumed.update(4, self.prompts, self.names, self.after, self.weights)) == str(expected)

    def test_a_run_that_is_resumed_with_other_prompts_has_pairs_of_them(self, make_trainer, tmp_path):
        arguments = {
            "learning_rate": 0.05,
            "save_steps": 1,
            "save_strategy": "steps",
            "output_dir": str(tmp_path / "out"),
        }
        first = make_trainer(eval_dataset=["a bird"], max_steps=1, **arguments)
        first.evaluate()
        first.train()
        second = make_trainer(eval_dataset=["a dog", "a cat"], max_steps=2, **arguments)
        before = second.evaluate()
        second.train(resume_from_checkpoint=True)
        after = second.evaluate()
        [row] = evaluation_table(second.state.log_history)
        assert (row["before"], row["after"]) == (before["eval_reward"], after["eval_reward"])
        assert row["gain"] == after["eval_reward_gain"] == pytest.approx(row["after"] - row["before"])
        assert [entry["eval_num_prompts"] for entry in second.state.log_history if "eval_num_prompts" in entry] == [
            1,
            2,
            2,
        ]

    def test_the_trainer_logs_them(self, make_trainer, redness, tmp_path):
        prompts = ["a bird", "a cat", "a dog"]
        arguments = {
            "max_steps": 2, "learning_rate": 0.05, "per_device_eval_batch_size": 2, "save_steps": 1,
            "eval_dataset": Dataset.from_dict({"prompt": prompts}),
        }  # fmt: skip
        trainer = make_trainer(output_dir=str(tmp_path / "whole"), save_strategy="steps", **arguments)

        def scores():
            images = [trainer.generate(prompts[i : i + 2], first_slot=i) for i in (0, 2)]
            return torch.tensor(redness(prompts, torch.cat(images)), dtype=torch.float64)

        before = scores()
        assert "eval_reward_gain" not in trainer.evaluate()
        trainer.train()
        differences, metrics = scores() - before, trainer.evaluate()
        assert metrics["eval_reward_gain"] == pytest.approx(differences.mean().item(), abs=1e-6)
        assert metrics["eval_reward_gain_stderr"] == pytest.approx(differences.std().item() / 3**0.5, abs=1e-6)

        resumed = make_trainer(output_dir=str(tmp_path / "resumed"), **arguments)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
        assert resumed.evaluate()["eval_reward_gain"] == metrics["eval_reward_gain"]


def test_a_reward_that_is_trained_on_need_not_be_watched(make_trainer, redness):
    with pytest.raises(ValueError, match=r"`eval_reward_funcs` has 'redness', .*leave it out"):
        make_trainer(eval_reward_funcs=redness)


@pytest.mark.parametrize("eval_use_ema", [True, False])
def test_evaluation_of_the_average_or_of_the_raw_weights(make_trainer, redness, eval_use_ema):
    prompts = ["a bird", "a cat"]
    trainer = make_trainer(
        ema_decay=0.9, eval_use_ema=eval_use_ema, max_steps=3, learning_rate=0.05, per_device_eval_batch_size=2,
        eval_dataset=Dataset.from_dict({"prompt": prompts}),
    )  # fmt: skip
    trainer.train()
    average, raw = (trainer.generate(prompts, ema=ema) for ema in (True, False))
    assert not torch.equal(average, raw)
    mean = {name: sum(redness(prompts, images)) / 2 for name, images in (("average", average), ("raw", raw))}
    assert mean["average"] != pytest.approx(mean["raw"], abs=1e-5)
    assert trainer.evaluate()["eval_reward"] == pytest.approx(mean["average" if eval_use_ema else "raw"], abs=1e-6)
    trainer.create_model_card()
    with open(f"{trainer.args.output_dir}/README.md") as file:
        assert ("Measured with the raw weights, not their average." in file.read()) is not eval_use_ema
