# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What a trainer is made of in Python: objects that cannot work are refused, and those of the user are left as they were."""

import functools
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoHaConfig
from transformers import TrainerCallback, TrainingArguments

from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
from trl_progrpo.rewards import RewardError, RewardRunner
from trl_progrpo.tiny import model_path


PROMPTS = ["a bird", "a cat"]
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Scorer(torch.nn.Module):
    def forward(self, prompts, images, mask):
        return images.mean((1, 2, 3))


class TestRefused:
    @pytest.mark.parametrize("given", [{"r": 4}, "lora", LoHaConfig(r=4)])
    def test_a_lora_that_is_none(self, make_trainer, given):
        with pytest.raises(ValueError, match=r"`peft_config` is .*; give a `peft.LoraConfig`"):
            make_trainer(peft_config=given)

    def test_a_config_of_another_trainer(self, make_trainer, tmp_path):
        with pytest.raises(ValueError, match=r"`args` is a TrainingArguments; give a `ProGRPOConfig`"):
            make_trainer(args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True))

    def test_an_optimiser_without_the_adapter(self, make_trainer, make_pipeline):
        pipeline = make_pipeline()
        optimizer = torch.optim.AdamW(pipeline.transformer.parameters())
        with pytest.raises(
            ValueError, match=r"`optimizers` holds an optimiser without .* override `create_optimizer`"
        ):
            make_trainer(model=pipeline, optimizers=(optimizer, None))

    def test_an_optimiser_of_all_weights_is_used(self, make_trainer, make_pipeline):
        pipeline = make_pipeline()
        optimizer = torch.optim.SGD(pipeline.transformer.parameters(), lr=0.1)
        trainer = make_trainer(model=pipeline, optimizers=(optimizer, None), peft_config=None, max_steps=1)
        before = pipeline.transformer.proj_out.weight.detach().clone()
        trainer.train()
        assert not torch.equal(before, pipeline.transformer.proj_out.weight)

    def test_half_precision_that_is_to_be_trained(self, make_trainer, make_pipeline):
        pipeline = make_pipeline()
        pipeline.transformer.to(torch.bfloat16)
        with pytest.raises(ValueError, match=r"`model` is a pipeline in bfloat16.* load it in float32"):
            make_trainer(model=pipeline, peft_config=None)

    def test_a_vae_in_half_precision_is_told(self, make_trainer, make_pipeline):
        pipeline = make_pipeline()
        pipeline.vae.to(torch.bfloat16)
        with pytest.warns(UserWarning, match=r"the VAE of `model` is in bfloat16.* load the pipeline with dtype="):
            make_trainer(model=pipeline)

    @pytest.mark.parametrize("prompts", ["a red circle", [], [None]])
    def test_prompts_that_are_no_list_of_texts(self, make_trainer, prompts):
        with pytest.raises(ValueError, match=r"`prompts` is .*; give a list of texts"):
            make_trainer().generate(prompts)

    @pytest.mark.parametrize(
        ("dataset", "told"),
        [([], "is empty"), (Dataset.from_dict({"text": ["a"]}), "no column 'prompt'"), ([{"prompt": None}], "row 0"),
         (Dataset.from_dict({"prompt": ["a"]}).to_iterable_dataset(), "is a stream"), ("a", "is the text 'a'")],
    )  # fmt: skip
    def test_what_cannot_be_evaluated_on(self, make_trainer, dataset, told):
        with pytest.raises(ValueError, match=rf"`eval_dataset` .*{told}"):
            make_trainer().evaluate(dataset)

    def test_predict(self, make_trainer):
        with pytest.raises(NotImplementedError, match=r"use `generate` for images"):
            make_trainer().predict(PROMPTS)

    def test_a_reward_that_asks_for_a_column_that_is_not_there(self, make_trainer):
        def answer(prompts, images, answer):
            return [0.0] * len(prompts)

        rows = [{"prompt": prompt, "answer": "yes"} for prompt in PROMPTS]
        told = (
            r"`answer` has the parameter `answer`, which `{}` has no column for; .* `preview` and no column, so rename"
        )
        with pytest.raises(ValueError, match=told.format("train_dataset")):
            make_trainer(reward_funcs=answer)
        with pytest.raises(ValueError, match=told.format("train_dataset")):
            make_trainer(preview_reward_funcs=answer, num_expansions=8, prune_steps=[0], prune_sizes=[4])
        with pytest.raises(ValueError, match=told.format(r"eval_dataset\['birds'\]")):
            make_trainer(eval_reward_funcs=answer, train_dataset=rows, eval_dataset={"birds": PROMPTS})
        make_trainer(reward_funcs=answer, train_dataset=rows, eval_dataset=rows)

    def test_a_wrapper_gives_what_its_function_asks_for(self):
        def scale(prompts, images, factor):
            return [factor] * len(prompts)

        @functools.wraps(scale)
        def wrapped(*args, **kwargs):
            return scale(*args, factor=2.0, **kwargs)

        def optional(prompts, images, *rest, answer=None, **columns):
            return [0.0] * len(prompts)

        RewardRunner([wrapped, optional, functools.partial(scale, factor=1.0)]).check_columns([], "it")
        with pytest.raises(ValueError, match=r"`Scorer` has the parameter `mask`.* `preview` and tag, size, so"):
            RewardRunner(Scorer()).check_columns(["tag", "size"], "it")

    def test_a_best_metric_of_no_reward(self, make_trainer):
        best = {
            "load_best_model_at_end": True,
            "eval_strategy": "steps",
            "save_strategy": "steps",
            "eval_dataset": PROMPTS,
        }
        with pytest.raises(ValueError, match=r"no reward is called 'nope'; there are redness\."):
            make_trainer(metric_for_best_model="rewards/nope/mean", **best)
        make_trainer(metric_for_best_model="eval_rewards/redness/mean", **best)

    def test_methods_that_are_never_called_are_told(self, make_trainer, make_pipeline, make_config, redness):
        class Mine(ProGRPOTrainer):
            def compute_loss(self, *args, **kwargs):
                raise AssertionError

        with pytest.warns(UserWarning, match=r"`compute_loss` of Mine is never called.*`_step_loss`"):
            Mine(model=make_pipeline(), reward_funcs=redness, args=make_config(), train_dataset=PROMPTS)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make_trainer()

    @pytest.mark.parametrize(
        ("change", "told"),
        [({"prune_steps": 1}, r"`prune_steps` is 1; give a list such as \[5, 7\]"),
         ({"prune_sizes": "8"}, r"`prune_sizes` is '8'; give a list"),
         ({"reward_weights": 0.5}, r"`reward_weights` is 0.5; give a list such as \[1.0, 0.5\]"),
         ({"num_generations": 2.0}, "`num_generations` is 2.0; give a whole number, such as 2"),
         ({"pruning_rule": max}, "pruning rule <built-in function max> is no name"),
         ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "`gradient_checkpointing_kwargs` is .* use None")],
    )  # fmt: skip
    def test_values_of_the_config(self, tmp_path, change, told):
        with pytest.raises(ValueError, match=told):
            ProGRPOConfig(output_dir=str(tmp_path), use_cpu=True, **change)

    def test_rewards_in_a_dict(self, redness):
        with pytest.raises(ValueError, match="`reward_funcs` is a dict of 'a'; give a list of its values"):
            RewardRunner({"a": redness})

    def test_a_table_of_pandas(self, make_trainer):
        pandas = pytest.importorskip("pandas")
        with pytest.raises(
            ValueError, match=r"`train_dataset` is a DataFrame of pandas; give `datasets.Dataset.from_pandas"
        ):
            make_trainer(train_dataset=pandas.DataFrame({"prompt": PROMPTS}))


class TestTaken:
    def test_numbers_of_numpy_in_lists(self, tmp_path):
        args = ProGRPOConfig(
            output_dir=str(tmp_path), use_cpu=True, num_generations=2, num_expansions=4, prune_steps=(np.int64(3),),
            prune_sizes=np.array([2]), reward_weights=np.array([0.5]), per_device_train_batch_size=2,
        )  # fmt: skip
        assert (args.prune_steps, args.prune_sizes, args.reward_weights) == ([3], [2], [0.5])
        assert {type(args.prune_steps[0]), type(args.prune_sizes[0])} == {int}
        assert '"prune_sizes": [\n    2\n  ]' in args.to_json_string()

    def test_a_path_as_the_model(self, make_config, redness):
        trainer = ProGRPOTrainer(model=model_path(), reward_funcs=redness, args=make_config(), train_dataset=PROMPTS)
        assert trainer.model_name == str(model_path())

    def test_the_name_of_one_of_several_sets(self, make_trainer):
        sets = {name: Dataset.from_dict({"prompt": PROMPTS}) for name in ("birds", "cats")}
        trainer = make_trainer(eval_dataset=sets, per_device_eval_batch_size=2)
        assert [key for key in trainer.evaluate("cats") if key.endswith("_reward")] == ["eval_cats_reward"]

    def test_rows_with_one_prompt_and_different_columns(self, make_trainer):
        rows = [{"prompt": "draw it", "target": target} for target in range(4)]
        make_trainer(train_dataset=rows)
        with pytest.raises(ValueError, match="all of them the prompt 'draw it' with the same columns"):
            make_trainer(train_dataset=rows[:1] * 4)


class TestLeftAsTheyWere:
    def test_the_config(self, make_trainer, make_config):
        args = make_config(gradient_checkpointing=True, max_steps=1)
        for _ in range(2):
            trainer = make_trainer(args=args)
            assert trainer.family.denoiser.is_gradient_checkpointing
            trainer.train()
            assert trainer.family.denoiser.is_gradient_checkpointing
        assert args.gradient_checkpointing

    def test_images_and_columns_of_a_batch(self):
        def spoil(prompts, images, target, **columns):
            target.sort()
            for image in images:
                image.thumbnail((2, 2))
            return [0.0] * len(prompts)

        def look(prompts, images, target, **columns):
            return [float(value) + image.width for value, image in zip(target, images)]

        columns = {"target": [2, 1]}
        for functions, column in (([spoil, look], 1), ([look, spoil], 0)):
            assert RewardRunner(functions)(PROMPTS, IMAGES, columns)[:, column].tolist() == [10, 9]
        assert columns == {"target": [2, 1]}

    def test_a_tensor_that_is_changed_in_place(self):
        def normalise(prompts, images, **columns):
            return images.sub_(0.5).mean((1, 2, 3))

        normalise.image_type = "pt"
        with pytest.raises(
            RewardError,
            match=r"`normalise`, or one that runs beside it, has changed `images` in place.* `images.clone\(\)`",
        ):
            RewardRunner(normalise)(PROMPTS, IMAGES.clone())


class TestRewards:
    def test_no_gradients_wherever_images_are_scored(self, make_trainer):
        seen = []

        def reward(prompts, images, **columns):
            seen.append(torch.is_grad_enabled())
            return [0.1 * i for i in range(len(prompts))]

        trainer = make_trainer(reward_funcs=reward, max_steps=1, eval_dataset=Dataset.from_dict({"prompt": PROMPTS}))
        trainer.evaluate()
        trainer.train()
        trainer.create_model_card()
        assert set(seen) == {False}

    def test_a_network_is_given_what_its_forward_names(self):
        class Network(torch.nn.Module):
            image_type = "pt"

            def forward(self, prompts, images):
                return images.mean((1, 2, 3))

        assert RewardRunner(Network())(PROMPTS, IMAGES, {"target": [1, 2]}).shape == (2, 1)

    @pytest.mark.parametrize(
        ("values", "told"), [({0.5, 0.6}, "returned set"), ([1e300, 0], "returned 1e\\+300 for image 0")]
    )
    def test_values_that_are_none(self, values, told):
        with pytest.raises(RewardError, match=told):
            RewardRunner(lambda prompts, images: values)(PROMPTS, IMAGES)

    def test_a_series_of_pandas(self):
        pandas = pytest.importorskip("pandas")
        runner = RewardRunner(lambda prompts, images: pandas.Series([0.5, 0.25], index=[7, 8]))
        assert runner(PROMPTS, IMAGES).flatten().tolist() == [0.5, 0.25]


class TestEvaluationBeforeTraining:
    def test_of_several_sets_it_is_kept(self, make_trainer):
        sets = {name: Dataset.from_dict({"prompt": PROMPTS}) for name in ("birds", "cats")}
        trainer = make_trainer(eval_dataset=sets, per_device_eval_batch_size=2, max_steps=1)
        trainer.evaluate()
        trainer.train()
        found = trainer.evaluate()
        assert {"eval_birds_reward_gain", "eval_cats_reward_gain"} <= set(found)
        steps = [entry["step"] for entry in trainer.state.log_history if "eval_birds_reward" in entry]
        assert steps == [0, 1]

    def test_tensorboard_writes_where_the_run_is(self, make_trainer, tmp_path, monkeypatch):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
        trainer = make_trainer(
            output_dir=str(tmp_path / "run"), report_to="tensorboard", max_steps=1,
            eval_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        )  # fmt: skip
        trainer.evaluate()
        trainer.train()
        assert list((tmp_path / "run" / "runs").rglob("events.*"))
        assert not list(elsewhere.iterdir())


def test_callbacks_see_the_average_of_the_update_they_follow(make_trainer):
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(trainer.ema.optimization_step)

    trainer = make_trainer(ema_decay=0.9, max_steps=2, callbacks=[Look()])
    trainer.train()
    assert seen == [1, 2]


def test_a_folder_that_was_emptied_is_written_whole_again(make_trainer, tmp_path):
    folder = tmp_path / "whole"
    trainer = make_trainer(peft_config=None)
    trainer.save_model(str(folder))
    (folder / "model_index.json").unlink()
    trainer.save_model(str(folder))
    assert (folder / "model_index.json").is_file()
