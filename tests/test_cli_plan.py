# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""`trl-progrpo plan`: its numbers, its page, and what it says when it cannot know."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from rich.console import Console

from trl_progrpo import ProGRPOConfig
from trl_progrpo.cli.arguments import TrainParser
from trl_progrpo.cli.main import main
from trl_progrpo.cli.plan import Method, Plan, _verdict, alternatives
from trl_progrpo.cli.plan_arguments import PlanParser
from trl_progrpo.cli.plan_page import format_flops, format_seconds, print_plan
from trl_progrpo.cli.plan_schedule import calibrate, noise_levels
from trl_progrpo.cost import PruneSchedule, UnitCost, WorkCount
from trl_progrpo.planning import Option, RecordedGroups, expected_gain, verdict
from trl_progrpo.types import Schedule


DEMO = Path(__file__).parents[1] / "examples" / "configs" / "shapes_demo.yaml"
BATCH = ["--num_generations", "4", "--per_device_train_batch_size", "4", "--use_cpu", "--report_to", "none"]


@pytest.fixture
def prompts_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"prompt {i}" for i in range(8)))
    return str(path)


def planned(capsys, *argv):
    assert main(["plan", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_of_the_demo(capsys, tmp_path):
    plan = planned(capsys, "--config", str(DEMO), "--no_time", "--output_dir", str(tmp_path / "out"))
    run, plain_g, plain_k, post_hoc, smaller = plan["methods"]
    assert run["work"]["nfe"] == 16 * 360
    assert (run["work"]["preview_decodes"], run["work"]["decodes"], run["reward_calls"]) == (16 * 72, 192, 16 * 84)
    assert run["work"]["training_passes"] == 192 * 6
    assert plain_g["work"]["nfe"] == post_hoc["work"]["nfe"] == 16 * 480
    assert plain_g["work"]["training_passes"] == 4 * plain_k["work"]["training_passes"]
    assert (smaller["name"], smaller["schedule"]["num_expansions"]) == ("post-hoc OVF 24 → 12", 24)
    assert run["flops"]["denoise"] == run["work"]["nfe"] * plan["unit_flops"]["network"]
    assert run["total_flops"] == sum(run["flops"].values())
    assert plan["unit_flops"]["preview"] < plan["unit_flops"]["decode"]
    assert plan["unit_seconds"] is run["seconds"] is None
    assert plan["updates"] == 4
    assert "for the same FLOPs" in plan["verdict"]
    assert plan["memory"]["unknown"] == ["reward models"]
    assert plan["memory"]["total"]["update"] > plan["memory"]["parts"]["network calls"]["update"] > 0
    assert list((tmp_path / "out").iterdir()) == []


def test_flags_win_over_the_file(capsys, tmp_path):
    flags = ["--config", str(DEMO), "--no_time", "--output_dir", str(tmp_path), "--prune_steps", "none"]
    plan = planned(capsys, *flags, "--prune_sizes", "none", "--num_expansions", "none", "--guidance_scale", "2")
    run, other = plan["methods"]
    assert run["work"]["nfe"] == 16 * 12 * 10 * 2
    assert run["work"]["training_passes"] == 192 * 6 * 2
    assert other["name"] == "post-hoc OVF 24 → 12"


def test_measured(capsys, pipeline_path, prompts_file, tmp_path):
    flags = ["--model_name_or_path", pipeline_path, "--dataset_name", prompts_file, *BATCH]
    flags += [
        "--reward_funcs",
        "jpeg_compressibility",
        "--num_expansions",
        "8",
        "--prune_steps",
        "1",
        "--prune_sizes",
        "4",
    ]
    flags += ["--num_inference_steps", "4", "--calibration_seconds", "0.1", "--output_dir", str(tmp_path / "out")]
    plan = planned(capsys, *flags)
    run, unit = plan["methods"][0], plan["unit_seconds"]
    assert all(unit[part] > 0 for part in ("network", "training", "decode", "preview", "reward", "preview_reward"))
    assert run["seconds"]["denoise"] == pytest.approx((8 * 2 + 4 * 2) * unit["network"])
    assert "time" in plan["verdict"]
    assert plan["memory"]["measured"]
    assert plan["memory"]["unknown"] == []
    assert any(note.startswith("Audits (audit_fraction 0.05) add") for note in plan["notes"])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_proposal_is_a_configuration(capsys, pipeline_path, prompts_file, tmp_path):
    flags = ["--model_name_or_path", pipeline_path, "--dataset_name", prompts_file, *BATCH]
    flags += [
        "--reward_funcs",
        "jpeg_compressibility",
        "--num_inference_steps",
        "4",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    flags += ["--prune_steps", "1", "--prune_sizes", "4", "--num_expansions", "8", "--max_steps", "1"]
    calibration = ["--calibrate", "--calibration_groups", "3", "--noise_levels", "0.5", "--no_time"]
    plan = planned(capsys, *flags, *calibration, "--output", str(tmp_path / "new" / "run.yaml"))["calibration"]
    assert [level["level"] for level in plan["levels"]] == [0.7, 0.5]
    assert (plan["groups"], plan["members"]) == (3, 16)
    assert list(plan["levels"][0]["rank_corr"]) == ["0", "1", "2"]
    assert list(plan["methods"])[:3] == ["proposed", "this run", "plain GRPO with 8"]
    proposed = plan["methods"]["proposed"]
    assert len(proposed["per_group"]) == 3
    text = (tmp_path / "new" / "run.yaml").read_text()
    assert text.startswith("# Chosen by")
    said = yaml.safe_load(text)
    *_, config = TrainParser().parse([], said, "run.yaml")
    assert config.num_expansions == proposed["schedule"]["num_expansions"]
    assert (config.prune_steps or []) == proposed["schedule"]["prune_steps"]
    assert config.noise_level == proposed["level"]
    # What had nothing to do with it is as it was.
    assert (config.max_steps, said["reward_funcs"]) == (1, ["jpeg_compressibility"])


def test_what_does_not_concern_the_small_run_may_be_set(capsys, pipeline_path, prompts_file, tmp_path):
    """And no more trajectories are in memory at a time than in a rollout, which changes nothing about them."""
    flags = ["--model_name_or_path", pipeline_path, "--dataset_name", prompts_file, *BATCH, "--no_time"]
    flags += [
        "--reward_funcs",
        "jpeg_compressibility",
        "--num_inference_steps",
        "3",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    flags += ["--calibrate", "--calibration_groups", "3", "--noise_levels", "0.5", "--num_expansions", "8"]
    # 4 prompts of 8 trajectories have room for 2 groups of 16; 1 prompt for none.
    several = ["--prompts_per_rollout", "4", "--gradient_accumulation_steps", "4", "--eval_on_start", "true"]
    found = [planned(capsys, *flags, *more)["calibration"]["levels"] for more in (several, [])]
    for apart, together in zip(*found, strict=True):
        assert apart["spread"] == pytest.approx(together["spread"], rel=1e-3)
        assert apart["rank_corr"] == pytest.approx(together["rank_corr"], abs=1e-3)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--pruning_rule", "random"], "`pruning_rule` is 'random', but `--calibrate` chooses for 'ovf'"),
        (["--noise_levels", "inf"], "`--noise_levels` is [inf]; give values of `noise_level`, above 0."),
        (
            ["--policy", "flow_cps", "--noise_levels", "1.2"],
            "`--noise_levels` is [1.2]; give values of `noise_level`, above 0 up to 1.",
        ),
    ],
)
def test_what_cannot_be_calibrated(capsys, tmp_path, flags, part):
    assert (
        main(["plan", "--config", str(DEMO), "--no_time", "--calibrate", "--output_dir", str(tmp_path), *flags]) == 2
    )
    assert part in capsys.readouterr().err


def test_levels_stay_legal_and_small_ones_are_not_rounded_away():
    class OneFamily:
        policies = ("flow_cps",)
        make_schedule = staticmethod(
            lambda steps: Schedule.flow(torch.arange(steps).flip(0), torch.linspace(1, 0, steps + 1))
        )

    for configured, expected in ((0.8, [0.8, 0.56, 1.0]), (0.0004, [0.0004, 0.00028, 0.00056])):
        args = ProGRPOConfig(output_dir="out", use_cpu=True, noise_level=configured, policy="flow_cps")
        assert [level for level, *_ in noise_levels(args, OneFamily(), None)] == expected


def test_another_rule_is_said(capsys, tmp_path):
    flags = ["--config", str(DEMO), "--no_time", "--output_dir", str(tmp_path), "--pruning_rule", "random"]
    assert any(note.startswith("Spread and signal are those of ovf") for note in planned(capsys, *flags)["notes"])


def test_without_a_tokenizer_only_flops_are_missing(capsys, pipeline_path, prompts_file, tmp_path):
    folder = tmp_path / "configs"
    shutil.copytree(pipeline_path, folder, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"))
    flags = ["--model_name_or_path", str(folder), "--dataset_name", prompts_file, *BATCH, "--reward_funcs", "shapes"]
    plan = planned(capsys, *flags, "--no_time", "--output_dir", str(tmp_path / "out"))
    assert plan["unit_flops"] is None
    assert plan["methods"][0]["work"]["nfe"] == 40
    assert any(note.startswith("FLOPs are not counted: the tokenizer") for note in plan["notes"])
    assert "is not said" in plan["verdict"]
    assert {"text encoders", "encoded prompts", "network calls"} <= set(plan["memory"]["unknown"])
    assert plan["memory"]["parts"]["denoiser"]["update"] > 0


def test_help_comes_first_with_its_own_options():
    text = PlanParser().format_help()
    assert text.index("\n  --no_time") < text.index("\n  --model_name_or_path")
    assert "trl-progrpo plan [--config FILE]" in text


def make_plan(steps=(5, 7), sizes=(24, 12), with_time=True):
    schedule = PruneSchedule(10, 12, 48, steps, sizes)
    flops = UnitCost(network=1.94e12, training=7.76e12, decode=2.8e12, preview=2.8e12)
    seconds = UnitCost(0.05, 0.15, 0.04, 0.04, 0.01, 0.01) if with_time else None

    def method(name, schedule):
        work = WorkCount.of(schedule, num_prompts=96, nfe_per_row=2)
        return Method(name, schedule, work, work.cost(flops), seconds and work.cost(seconds), expected_gain(schedule))

    methods = [method("this run", schedule), *(method(*other) for other in alternatives(schedule))]
    facts = {"model": "some/model"}
    return Plan(facts, methods, _verdict(methods, Option, verdict), ["A note."], 4, flops, seconds)


def calibrated(plan, file):
    draw = torch.Generator().manual_seed(0)
    groups = [
        RecordedGroups(
            level, {s: torch.rand(4, 48, generator=draw) for s in range(9)}, torch.rand(4, 48, generator=draw)
        )
        for level in (0.7, 0.49)
    ]
    schedules = {method.name: method.schedule for method in plan.methods}
    calibration = calibrate(
        "noise_level", groups, lambda s: float(s.trajectory_steps), schedules, "signal", {}, str(file)
    )
    return replace(plan, calibration=calibration)


def test_the_page_says_which_schedule_it_is_about(tmp_path):
    """The verdict is one of the configured run, and the proposal comes after it."""
    plan, file = calibrated(make_plan(), tmp_path / "run.yaml"), io.StringIO()
    print_plan(plan, Console(file=file, width=120, highlight=False))
    text = " ".join(file.getvalue().split())
    configured = f"As configured (48 → 24 → 12): {plan.verdict} Here it is "
    assert configured in text
    assert text.index(configured) < text.index("Proposed: ")


def test_what_is_one_is_not_many(capsys, tmp_path):
    flags = ["--config", str(DEMO), "--no_time", "--output_dir", str(tmp_path), "--per_device_train_batch_size", "12"]
    facts = planned(capsys, *flags, "--steps_per_generation", "1", "--gradient_accumulation_steps", "1")["facts"]
    assert facts["rollout"].startswith("1 prompt, 10 steps, ")
    assert facts["rollout"].endswith("; 1 update")


def test_the_page_of_a_proposal_fits(tmp_path):
    plan = calibrated(make_plan(), tmp_path / "run.yaml")
    for width in (80, 120):
        file = io.StringIO()
        print_plan(plan, Console(file=file, width=width, highlight=False))
        text = file.getvalue()
        assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= width
        assert "…" not in text
        for part in ("noise_level 0.49", "reward spread", "proposed", "Proposed: ", "Here it is", "after step 7"):
            assert part in text


def test_nothing_is_told_in_units_of_no_spread(tmp_path):
    plan = calibrated(make_plan(), tmp_path / "run.yaml")
    run = plan.calibration.methods["this run"]
    plan.calibration.methods["this run"] = replace(run, spread=0.0, signal=0.0)
    file = io.StringIO()
    print_plan(plan, Console(file=file, width=100, highlight=False))
    assert "–" in file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("with_time", [True, False])
def test_the_page_fits(width, with_time):
    file = io.StringIO()
    print_plan(make_plan(with_time=with_time), Console(file=file, width=width, highlight=False))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for part in (
        "69,120",
        "335 P",
        "post-hoc OVF 48 → 12",
        "post-hoc OVF 24 → 12",
        "A note.",
        "This",
        "signal per FLOP",
    ):
        assert part in text
    assert ("signal per second" in text) is with_time


def test_other_uses_of_the_trajectories():
    def names(schedule):
        return [name for name, _ in alternatives(schedule)]

    plain_g, plain_k = "plain GRPO with 8", "plain GRPO with 4"
    assert names(PruneSchedule(4, 4, 8, (1,), (4,))) == [plain_g, plain_k, "post-hoc OVF 8 → 4"]
    assert names(PruneSchedule(4, 4, 8)) == [plain_g, plain_k]
    assert names(PruneSchedule(4, 4, 16)) == ["plain GRPO with 16", plain_k, "post-hoc OVF 8 → 4"]
    assert names(PruneSchedule.plain(4, 4)) == ["post-hoc OVF 8 → 4"]


def test_without_any_price_nothing_is_claimed():
    bare = SimpleNamespace(seconds=None, flops=None)
    assert "is not said" in _verdict([bare], Option, verdict)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (999.9, "1 k"), (4.72e15, "4.72 P"), (2.5e22, "2.5e+04 E"), (96 * 3.88e12, "372 T")],
)
def test_flops_have_a_prefix(value, text):
    assert format_flops(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "12.3 ms"), (0.9999, "1 s"), (99.9, "99.9 s"), (100, "1.67 min"), (7200, "2 h")]
)
def test_seconds_have_a_unit(value, text):
    assert format_seconds(value) == text
