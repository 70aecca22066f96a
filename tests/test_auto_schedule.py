# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`prune_schedule="auto"`: what is chosen, what it leaves alone, and that a resumed run goes on with it."""

import copy
import json
import os
import re
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

from trl_progrpo.auto_schedule import SCHEDULE_ROLLOUT
from trl_progrpo.cli.main import main
from trl_progrpo.cost import PruneSchedule, UnitCost, WorkCount
from trl_progrpo.model_card.facts import describe_schedule, network_evaluations
from trl_progrpo.planning import propose
from trl_progrpo.plots import prune_group_sizes
from trl_progrpo.recording import record_groups
from trl_progrpo.stopwatch import Stopwatch


AUTO = {
    "prune_schedule": "auto", "prune_steps": None, "prune_sizes": None, "num_generations": 2, "num_expansions": 6,
    "per_device_train_batch_size": 2, "prune_schedule_groups": 3, "audit_fraction": 0.0,
}  # fmt: skip

# Finished images are dear, and previews cost next to nothing: checkpoints pay.
PRUNING = UnitCost(network=1.0, training=0.1, decode=100.0, preview=1e-3, reward=1e-3, preview_reward=1e-3)


@pytest.fixture
def priced(monkeypatch):
    """A function that replaces measured seconds."""

    def use(unit):
        monkeypatch.setattr(Stopwatch, "unit_cost", lambda self, nfe_per_row: unit)

    use(PRUNING)
    return use


def history(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


class TestConfiguration:
    def test_defaults(self, make_config):
        config = make_config(**{**AUTO, "prune_schedule_groups": 8})
        assert (config.prune_schedule_interval, config.prune_schedule_groups) == (50, 8)
        assert make_config().prune_schedule is None

    @pytest.mark.parametrize(
        ("changes", "parts"),
        [
            ({"prune_schedule": "car"}, ("`prune_schedule` is 'car'", "use 'auto'")),
            ({"prune_steps": [1], "prune_sizes": [2]}, ("`prune_steps` is [1]", "leave one of the two unset")),
            ({"num_expansions": None}, ("`num_expansions` is 2, not above `num_generations` 2", "e.g. 8")),
            ({"pruning_rule": "top_k"}, ("`pruning_rule` is 'top_k'", "'ovf'")),
            ({"prune_schedule_interval": -1}, ("`prune_schedule_interval` is -1", "use 0")),
            ({"prune_schedule_groups": 1}, ("`prune_schedule_groups` is 1", "use at least 2")),
        ],
        ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
    )
    def test_a_bad_value_is_one_sentence(self, make_config, changes, parts):
        with pytest.raises(ValueError) as error:
            make_config(**{**AUTO, **changes})
        message = str(error.value)
        assert "\n" not in message
        assert message.endswith(".")
        for part in parts:
            assert part in message


class TestChoice:
    def test_it_is_what_propose_gives_for_the_recorded_groups(self, make_trainer, priced):
        trainer = make_trainer(**AUTO, max_steps=1)
        twin = copy.deepcopy(trainer.family.denoiser)
        trainer.train()
        (choice,) = trainer.schedule_choices

        rows = trainer.auto_schedule._rows({}, 0)["prompt"]
        assert len(set(rows)) == 3
        with torch.no_grad():
            groups = record_groups(
                trainer.sampler, twin.eval(), rows, level=0.7, num_expansions=6, rollout_index=SCHEDULE_ROLLOUT
            )
        best = propose([groups], lambda one: WorkCount.of(one, trained_steps=3).cost(PRUNING).total, 4, 2)
        assert trainer.auto_schedule.as_schedule(choice) == best.schedule
        assert best.schedule.prune_steps
        assert choice["signal"] == pytest.approx(best.signal, rel=1e-4)
        assert choice["seconds"] == pytest.approx(best.cost, rel=1e-5)
        assert choice["rank_corr"] == pytest.approx(list(groups.rank_correlations().values()), abs=1e-6)
        assert choice["gain"] >= 1

        # And it is what the rollout does.
        rollout = trainer.last_rollout
        assert [record.step_index for record in rollout.prune_records] == list(best.schedule.prune_steps)
        assert len(rollout.prune_records[0].kept) == 2 * best.schedule.num_expansions
        assert rollout.cost.nfe == WorkCount.of(best.schedule, num_prompts=2).nfe

    def test_prices_decide(self, make_trainer, priced):
        priced(UnitCost(network=1.0, training=0.0, decode=1.0, preview=1e3, reward=1.0, preview_reward=1e3))
        trainer = make_trainer(**AUTO, max_steps=1)
        trainer.train()
        assert trainer.schedule_choices[0]["prune_steps"] == []
        assert not [name for entry in trainer.state.log_history for name in entry if name.startswith("audit/")]

    def test_nothing_else_of_the_run_depends_on_choosing(self, make_trainer, adapter_of, priced):
        """The run with the chosen numbers written down is the same, bit for bit."""
        auto = make_trainer(**AUTO, max_steps=2, learning_rate=1e-2, gradient_checkpointing=True)
        auto.train()
        (choice,) = auto.schedule_choices
        fixed = {name: choice[name] for name in ("num_expansions", "prune_steps", "prune_sizes")}
        same = make_trainer(
            **{**AUTO, "prune_schedule": None, **fixed}, max_steps=2, learning_rate=1e-2, gradient_checkpointing=True
        )
        same.train()
        expected, got = adapter_of(same), adapter_of(auto)
        for name, weight in expected.items():
            assert torch.equal(weight, got[name]), name
        assert history(auto, "reward") == history(same, "reward")
        assert auto.last_rollout.cost == same.last_rollout.cost

    def test_measuring_leaves_gradients_and_random_numbers_alone(self, make_trainer):
        trainer = make_trainer(**AUTO)
        trainer.auto_schedule.memory.choices = []
        torch.manual_seed(7)
        expected = torch.rand(3)
        torch.manual_seed(7)
        weights = copy.deepcopy(trainer.family.denoiser.state_dict())
        trainer.auto_schedule.before_rollout({}, 0)
        assert torch.equal(torch.rand(3), expected)
        assert all(parameter.grad is None for parameter in trainer.family.denoiser.parameters())
        assert all(torch.equal(value, weights[name]) for name, value in trainer.family.denoiser.state_dict().items())
        unit = UnitCost(**trainer.auto_schedule.memory.unit_seconds)
        assert min(vars(unit).values()) > 0
        assert unit.training > unit.network

    def test_it_chooses_again(self, make_trainer, priced):
        small = {**AUTO, "num_expansions": 3, "gradient_accumulation_steps": 1, "max_steps": 3}
        trainer = make_trainer(**small, prune_schedule_interval=2)
        trainer.train()
        assert [choice["rollout"] for choice in trainer.schedule_choices] == [0, 2]
        assert len(history(trainer, "prune_schedule/signal_per_second")) == 2
        assert len(history(trainer, "prune_schedule/num_expansions")) == 3
        once = make_trainer(**small, prune_schedule_interval=0)
        once.train()
        assert [choice["rollout"] for choice in once.schedule_choices] == [0]
        # Training the same object again is a new run.
        once.train()
        assert len(once.schedule_choices) == 1

    @pytest.mark.parametrize("changed", [{"num_expansions": 3}, {"num_inference_steps": 2}])
    def test_a_choice_that_no_longer_fits_is_made_again(self, make_trainer, priced, changed):
        trainer = make_trainer(**AUTO, prune_schedule_interval=0, max_steps=1)
        trainer.train()
        auto, [choice] = trainer.auto_schedule, trainer.schedule_choices
        # As a checkpoint of a run with more of both has it.
        choice.update(num_expansions=4, prune_steps=[1], prune_sizes=[3])
        assert not auto._is_due(1)
        for name, value in changed.items():
            setattr(trainer.args, name, value)
        assert auto._is_due(1)

    def test_groups_without_spread_change_nothing(self, make_trainer, priced):
        def flat(prompts, images, **columns):
            return [0.5] * len(prompts)

        trainer = make_trainer(reward_funcs=flat, **AUTO, max_steps=1)
        with pytest.warns(UserWarning, match=r"all 3 recorded groups have no spread.* goes on with 2\."):
            trainer.train()
        assert trainer.schedule_choices[0]["num_expansions"] == 2
        assert trainer.schedule_choices[0]["gain"] is None

    def test_a_stream_records_its_next_rows(self, make_trainer, priced, redness):
        from datasets import Dataset

        asked = []

        def reward(prompts, images, **columns):
            asked.append(list(dict.fromkeys(prompts)))
            return redness(prompts, images)

        reward.image_type = "pt"
        rows = Dataset.from_dict({"prompt": [f"{n} red circles" for n in range(6)]})
        trainer = make_trainer(
            reward_funcs=reward,
            train_dataset=rows.to_iterable_dataset(),
            **{**AUTO, "prune_schedule_groups": 5},
            max_steps=1,
        )
        trainer.train()
        # Five groups of two rows, no more than a rollout has at a time: each is scored at three steps and at the end.
        sampled = asked[-1]
        assert len(sampled) == 2
        assert asked[:12] == [*[sampled] * 8, *[sampled[:1]] * 4]

    def test_previews_have_their_own_reward_and_waves_go_on(self, make_trainer, priced, redness):
        seen = []

        def cheap(prompts, images, **columns):
            seen.append(len(prompts))
            return redness(prompts, images)

        cheap.image_type = "pt"
        trainer = make_trainer(**AUTO, max_steps=1, preview_reward_funcs=cheap, rollout_waves=2, preview_downscale=2)
        trainer.train()
        checkpoints = len(trainer.schedule_choices[0]["prune_steps"])
        assert checkpoints
        # Three groups of six, two of them at a time, at every step; then the two waves of the rollout.
        assert seen[:6] == [12] * 3 + [6] * 3
        assert len(seen) == 6 + 2 * checkpoints
        assert history(trainer, "prune_schedule/reward_calls") == [18 * 4]
        assert history(trainer, "prune_schedule/nfe") == [18 * 4]
        assert history(trainer, "sampling/nfe") == [trainer.last_rollout.cost.nfe]

    def test_audits_follow_the_schedule(self, make_trainer, priced):
        trainer = make_trainer(**{**AUTO, "audit_fraction": 0.25}, max_steps=2)
        trainer.train()
        steps = trainer.schedule_choices[0]["prune_steps"]
        assert steps
        assert set(steps) == {record.step_index for record in trainer.last_rollout.audit_records}

    def test_what_is_told(self, make_trainer, priced, capsys):
        trainer = make_trainer(**AUTO, max_steps=2, disable_tqdm=False)
        trainer.train()
        first, second = trainer.state.log_history[:2]
        assert first["time/schedule"] > 0
        assert "time/schedule" not in second
        assert first["prune_schedule/reward_std"] > 0
        assert {f"prune_schedule/step_{i}/rank_corr" for i in range(3)} <= set(first)
        assert re.search(
            r"^step 0: prune schedule \d → .*\(after step \d.*\), \d\.\d\d times the signal per second of plain GRPO$",
            capsys.readouterr().err,
            re.M,
        )


class TestStopwatch:
    def test_calls_count_by_their_median(self, make_family, redness, monkeypatch):
        """With a clock that only moves in network and rewards."""
        from trl_progrpo.policies import FlowSDE
        from trl_progrpo.rewards import RewardRunner
        from trl_progrpo.sampler import ExpandPruneSampler

        now = [0.0]
        monkeypatch.setattr("trl_progrpo.stopwatch.time", SimpleNamespace(perf_counter=lambda: now[0]))
        family, calls = make_family(), []
        predict = family.predict

        def slow_predict(denoiser, latents, *args):
            calls.append(len(latents))
            # The first call is one in which something is compiled.
            now[0] += len(latents) * (2.0 if len(calls) > 1 else 1000.0)
            return predict(denoiser, latents, *args)

        def reward(prompts, images, preview):
            now[0] += len(prompts) * (5.0 if preview else 7.0)
            return redness(prompts, images)

        reward.image_type = "pt"
        family.predict = slow_predict
        sampler = ExpandPruneSampler(
            family, FlowSDE(noise_level=0.7), RewardRunner(reward), reward_weights=torch.ones(1), num_inference_steps=4,
            num_generations=3, rollout_batch_size=4, seed=5,
        )  # fmt: skip
        watch = Stopwatch(torch.device("cpu"))
        with torch.no_grad():
            record_groups(
                watch.watch(sampler), family.denoiser, ["a red circle", "a cat"], level=0.7, num_expansions=3
            )
        watch.time("training", 8, lambda: now.__setitem__(0, now[0] + 80.0))
        assert set(calls) == {4, 2}
        assert watch.unit_cost() == UnitCost(network=2, training=10, decode=0, preview=0, reward=7, preview_reward=5)
        assert watch.unit_cost(nfe_per_row=2).network == 1


class TestResuming:
    KWARGS = {
        **AUTO, "max_steps": 5, "learning_rate": 1e-2, "prune_schedule_interval": 2, "save_strategy": "steps",
        "save_steps": 1, "num_expansions": 4, "gradient_accumulation_steps": 1, "steps_per_generation": 2,
    }  # fmt: skip

    def unlike(self, trainer):
        """The log without what is measured in seconds."""
        return [
            {k: v for k, v in entry.items() if not k.startswith("time/") and "per_second" not in k}
            for entry in trainer.state.log_history
            if "train_runtime" not in entry
        ]

    # Inside the rollout that chose; at its end; just before the second choice.
    @pytest.mark.parametrize("stop", [1, pytest.param(2, marks=pytest.mark.slow), 4])
    def test_resumed_equals_uninterrupted(self, make_trainer, adapter_of, tmp_path, stop):
        """With prices that were really measured: later choices use those of the checkpoint."""
        whole = make_trainer(output_dir=str(tmp_path / "whole"), **self.KWARGS)
        whole.train()
        resumed = make_trainer(output_dir=str(tmp_path / "resumed"), **self.KWARGS)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
        assert resumed.schedule_choices == whole.schedule_choices
        assert [choice["rollout"] for choice in whole.schedule_choices] == [0, 2]
        assert resumed.auto_schedule.memory.unit_seconds == whole.auto_schedule.memory.unit_seconds
        expected = adapter_of(whole)
        for name, weight in adapter_of(resumed).items():
            assert torch.equal(weight, expected[name]), name
        assert self.unlike(resumed) == self.unlike(whole)

    def test_the_choice_is_in_the_checkpoint_and_in_the_final_state(self, make_trainer, tmp_path, priced):
        trainer = make_trainer(output_dir=str(tmp_path), **{**self.KWARGS, "max_steps": 2})
        trainer.train()
        trainer.save_state()
        for folder in (tmp_path, tmp_path / "checkpoint-1"):
            state = json.loads((folder / "trainer_state.json").read_text(), parse_constant=pytest.fail)
            stored = state["stateful_callbacks"]["ScheduleChoices"]["args"]
            assert stored["choices"] == trainer.schedule_choices
            assert stored["unit_seconds"] == trainer.auto_schedule.memory.unit_seconds

    def test_transformers_may_restore_callbacks_too(self, make_trainer, tmp_path, priced):
        kwargs = {**self.KWARGS, "restore_callback_states_from_checkpoint": True, "output_dir": str(tmp_path)}
        make_trainer(**{**kwargs, "max_steps": 4}).train()
        again = make_trainer(**kwargs)
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
        assert [choice["rollout"] for choice in again.schedule_choices] == [0, 2]

    def test_a_fixed_run_can_go_on_with_it(self, make_trainer, tmp_path, priced):
        kwargs = {**self.KWARGS, "output_dir": str(tmp_path)}
        make_trainer(**{**kwargs, "prune_schedule": None, "max_steps": 2}).train()
        again = make_trainer(**{**kwargs, "max_steps": 4})
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert [choice["rollout"] for choice in again.schedule_choices] == [1]


class TestTold:
    CHOICES = (
        {"rollout": 0, "num_expansions": 48, "prune_steps": [5, 7], "prune_sizes": [24, 12]},
        {"rollout": 50, "num_expansions": 36, "prune_steps": [5], "prune_sizes": [24]},
    )

    def args(self, **changes):
        values = {
            "num_generations": 12, "num_expansions": 48, "prune_steps": None, "prune_sizes": None, "pruning_rule": "ovf",
            "num_inference_steps": 10, "prune_schedule": "auto", "prune_schedule_interval": 50,
        }  # fmt: skip
        return SimpleNamespace(**{**values, **changes})

    def test_sizes_of_groups(self):
        assert prune_group_sizes(self.args()) == {}
        assert prune_group_sizes(self.args(), self.CHOICES[:1]) == {5: (48, 24), 7: (24, 12)}
        # Step 5 had two sizes.
        assert prune_group_sizes(self.args(), self.CHOICES) == {7: (24, 12), 10: (24, 12)}

    def test_a_sentence(self):
        assert (
            "at most 48 trajectories per prompt, chosen by measurement before the first rollout and after every 50;"
            in (describe_schedule(self.args()))
        )
        assert "after every" not in describe_schedule(self.args(prune_schedule_interval=0))
        once = describe_schedule(self.args(), self.CHOICES[:1])
        assert once.startswith("Chosen by measurement (once): 48 → 24 → 12 trajectories per prompt, pruned by `ovf`")
        twice = describe_schedule(self.args(), self.CHOICES)
        assert "(2 times, from rollout 50 on): 36 → 24 trajectories" in twice

    def test_network_evaluations_are_compared_with_what_was_started(self):
        log = [{"sampling/nfe": 100.0, "prune_schedule/num_expansions": n} for n in (48, 36)]
        assert network_evaluations(log, self.args(), 1, groups=2)["unpruned"] == 2 * 10 * 42

    def test_in_words(self):
        assert (
            PruneSchedule(10, 12, 48, (5,), (24,)).in_words() == "48 → 24 → 12 (after step 5, on the finished images)"
        )
        assert PruneSchedule.plain(10, 12).in_words() == "12"

    FLAGS = (
        "--model_name_or_path", "shapes", "--dataset_name", "shapes", "--reward_funcs", "shapes", "--num_generations", "2",
        "--num_expansions", "6", "--prune_schedule", "auto", "--prune_schedule_groups", "2", "--num_inference_steps", "3",
        "--per_device_train_batch_size", "4", "--rollout_batch_size", "12", "--preview_decoder", "shapes", "--max_steps", "2",
        "--use_cpu", "--report_to", "none", "--save_strategy", "no", "--logging_steps", "1", "--lora_r", "2",
        "--test_split_size", "2", "--eval_samples", "2",
    )  # fmt: skip

    def test_dry_run(self, capsys, tmp_path):
        assert main(["train", *self.FLAGS, "--output_dir", str(tmp_path), "--dry_run"]) == 0
        out = capsys.readouterr().out
        told = {label.strip(): text for label, text in re.findall(r"^#   (.{22})(.*)$", out, re.M)}
        assert told["per prompt"].startswith(
            "2 to 6 trajectories, by a schedule that is chosen before the first rollout"
        )
        assert told["previews pruned by"] == "shapes"
        assert told["images started"] == "4 to 12, trained on 4"
        assert told["each choice"].startswith(
            "2 groups of 6: 36 rows of network evaluations, 12 images and 24 previews, 36"
        )
        assert told["choices of schedule"] == "1"
        assert told["network evaluations"] == "24 to 72 rows in rollouts"
        assert yaml.safe_load(out)["prune_schedule"] == "auto"

    def test_plan(self, capsys, tmp_path):
        flags = ["--output_dir", str(tmp_path), "--no_time", "--calibrate", "--noise_levels", "0.7", "--json"]
        assert main(["plan", *self.FLAGS, *flags, "--calibration_groups", "2"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert "chosen by the run itself" in plan["facts"]["group"]
        assert plan["verdict"].startswith("This run chooses its schedule before the first rollout")
        # As many as the run would record, and what is written no longer chooses.
        assert plan["calibration"]["members"] == 6
        assert "prune_schedule" not in yaml.safe_load((tmp_path / "planned.yaml").read_text())

    def test_a_run_of_the_command_line(self, capsys, tmp_path):
        out = tmp_path / "out"
        assert main(["train", *self.FLAGS, "--output_dir", str(out)]) == 0, capsys.readouterr().err
        told = capsys.readouterr()
        assert "step 0: prune schedule " in told.err
        assert "Chosen by measurement (once)" in " ".join(told.out.split())
        card = (out / "README.md").read_text()
        assert "| trajectories | Chosen by measurement (once): " in card
        assert "| schedule | " in card
        assert "Chosen by measurement (once): " in (out / "report.html").read_text()


WORKER = """
import json, sys, torch
torch.set_num_threads(1)
from datasets import Dataset
from peft import LoraConfig
from trl_progrpo import ProGRPOConfig, ProGRPOTrainer

trainer = ProGRPOTrainer(
    model="shapes", reward_funcs="shapes", peft_config=LoraConfig(r=2, lora_alpha=4),
    args=ProGRPOConfig(**json.loads(sys.argv[1])),
    train_dataset=Dataset.from_dict({"prompt": [f"a {c} circle" for c in ("red", "green", "blue", "white")]}),
)
assert trainer.accelerator.num_processes == 2
trainer.train()
rank = trainer.accelerator.process_index
told = {"choices": trainer.schedule_choices, "unit": trainer.auto_schedule.memory.unit_seconds,
        "prompts": trainer.auto_schedule._rows({}, 0)["prompt"], "nfe": trainer.last_rollout.cost.nfe}
with open(f"{trainer.args.output_dir}/rank{rank}.json", "w") as file:
    json.dump(told, file)
"""


@pytest.mark.slow
def test_two_processes_choose_the_same(tmp_path):
    kwargs = {
        "prune_schedule": "auto", "num_generations": 2, "num_expansions": 6, "per_device_train_batch_size": 2,
        "prune_schedule_groups": 3, "num_inference_steps": 3, "max_steps": 3, "prune_schedule_interval": 2, "logging_steps": 1,
        "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "preview_decoder": "shapes",
        "output_dir": str(tmp_path),
    }  # fmt: skip
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    env = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, json.dumps(kwargs)],
            env={**env, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        told = [process.communicate(timeout=300)[1][-2000:] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], told
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in "01")
    assert [choice["rollout"] for choice in first["choices"]] == [0, 2]
    for name in ("choices", "unit", "nfe"):
        assert first[name] == second[name]
    # Two groups each: three were asked for.
    assert len(first["prompts"]) == len(second["prompts"]) == 2
    assert len({*first["prompts"], *second["prompts"]}) == 4
