# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Held-out rewards before and after, the alarm when one falls, and which weights are evaluated."""

import math

import pytest
import torch
from datasets import Dataset

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
        assert row["gain_se"] == pytest.approx(0.05)
        assert row["step"] == 9
        assert not row["fell"]

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
        assert "clip (0.5 ± 0.01 before training, 0.3 ± 0.02 at step 4)" in said
        assert "reward hacking" in said
        assert "trained (" not in said
        assert watch.update(history) is None
        history.append(evaluation(6, 0.2, 0.02) | evaluation(6, 0.95, 0.01, "trained"))
        assert watch.update(history) is None

    def test_a_fall_of_the_trained_reward_is_no_hacking(self):
        assert HackingWatch(["clip"]).update([evaluation(0, 0.5, 0.01), evaluation(4, 0.1, 0.01)]) is None

    @pytest.mark.parametrize("falls", [True, False])
    def test_the_trainer_warns_during_training(self, make_trainer, falls, recwarn):
        steps = []

        def measured_only(prompts, images, **columns):
            value = -len(steps) if falls else len(steps)
            return [value + 0.001 * i for i in range(len(prompts))]

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
            assert "measured_only (0.001 ± 0.00058 before training, -0.999 ± 0.00058 at step 1)" in said[0]
            assert "other" not in said[0].split(";")[0]


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
