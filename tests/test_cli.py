# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from trl_progrpo import ProGRPOTrainer
from trl_progrpo.cli.base import CommandError, user_errors
from trl_progrpo.cli.main import COMMANDS, main
from trl_progrpo.ranks import RankWatch


DEMO = Path(__file__).parents[1] / "examples" / "configs" / "shapes_demo.yaml"
SHAPES = ["--model_name_or_path", "shapes", "--dataset_name", "shapes", "--reward_funcs", "shapes"]
BATCH = ["--num_generations", "4", "--per_device_train_batch_size", "4", "--use_cpu", "--report_to", "none"]


def assert_one_sentence(capsys, *parts, status=None):
    """Standard error is one line that names the problem; standard output is empty."""
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.strip()]
    assert out == ""
    assert len(lines) == 1, err
    assert "Traceback" not in err
    for part in parts:
        assert part in err
    assert status in (None, 2)


@pytest.fixture(scope="module")
def parse():
    from trl_progrpo.cli.arguments import TrainParser

    def parse(flags=(), **config):
        return TrainParser().parse([*SHAPES, *BATCH, *flags], config, "file.yaml")

    return parse


@pytest.fixture
def config_file(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write


class TestMain:
    @pytest.mark.parametrize("argv", [[], ["-h"], ["--help"], ["help"]])
    def test_help_lists_the_commands(self, argv, capsys):
        assert main(argv) == 0
        out, err = capsys.readouterr()
        assert err == ""
        for name, text in COMMANDS.items():
            assert re.search(rf"^  {name} +{re.escape(text)}$", out, re.MULTILINE)
        assert max(map(len, out.splitlines())) <= 80

    def test_version(self, capsys):
        from trl_progrpo import __version__

        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"trl-progrpo {__version__}\n"

    def test_unknown_command(self, capsys):
        assert main(["trian"]) == 2
        assert_one_sentence(capsys, "'trian'", "did you mean 'train'?")

    @pytest.mark.parametrize("command", COMMANDS)
    def test_help_of_a_command_fits_a_terminal(self, command, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as info:
            main([command, "--help"])
        assert info.value.code == 0
        out = capsys.readouterr().out
        assert out.startswith(f"usage: trl-progrpo {command}")
        assert max(map(len, out.splitlines())) <= 80
        assert not re.search(r"^\S.*:\n {3,}\S", out, re.MULTILINE), "something is described that has no name"
        # What a value is called says what it is.
        assert not re.search(
            r"--(\w+_)?(funcs|to|repo|checkpointing|fp16|bf16) (FUNCS|TO|REPO|CHECKPOINTING|BF16)", out
        )

    def test_help_needs_no_torch(self):
        code = """if True:
            import contextlib, io, sys
            from trl_progrpo.cli.main import main
            with contextlib.redirect_stdout(io.StringIO()):
                main(["--help"])
                for command in ("env", "sample"):
                    try:
                        main([command, "--help"])
                    except SystemExit:
                        pass
            heavy = {"torch", "transformers", "diffusers", "datasets", "trl", "matplotlib", "rich"} & set(sys.modules)
            assert not heavy, heavy
        """
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr


class TestEnv:
    def test_prints_versions_and_no_paths(self, capsys):
        assert main(["env"]) == 0
        out = capsys.readouterr().out
        for name in ("Platform", "Python", "trl_progrpo", "PyTorch", "Diffusers", "Transformers", "TRL", "PEFT",
                     "Accelerate", "Datasets", "HF Hub", "accelerator(s)"):  # fmt: skip
            assert re.search(rf"^- {re.escape(name)}.*: \S", out, re.MULTILINE), name
        assert torch.__version__ in out
        assert str(Path.home()) not in out
        assert "token" not in out.lower()

    def test_a_missing_package_is_said(self, monkeypatch):
        from trl_progrpo.cli import env

        monkeypatch.setitem(env.PACKAGES, "Nothing", "no-such-distribution")
        assert env.environment()["Nothing version"] == "not installed"

    def test_refuses_flags(self, capsys):
        assert main(["env", "--verbose"]) == 2
        assert_one_sentence(capsys, "--verbose")


class TestTrainArguments:
    def test_defaults(self, parse, tmp_path):
        script, model, config = parse(["--output_dir", str(tmp_path)])
        assert script.reward_funcs == ["shapes"]
        assert (script.dataset_train_split, script.dataset_test_split) == ("train", "test")
        assert (model.use_peft, model.lora_r, model.lora_alpha, model.lora_dropout) == (True, 32, 64, 0.0)
        assert model.lora_target_modules is None
        assert config.num_expansions == 4

    def test_yaml_and_flags_that_win(self, config_file, tmp_path):
        from trl_progrpo.cli.arguments import TrainParser
        from trl_progrpo.cli.train import read_config

        path = config_file("learning_rate: 7e-4\nprune-steps: [5, 7]\nseed: 3\nsave_strategy: no\n")
        flags, keys, name = read_config([*SHAPES, f"--config={path}", "--seed", "4"])
        assert name == path
        flags += [*BATCH, "--output_dir", str(tmp_path), "--num_expansions", "16", "--prune_sizes", "8", "4"]
        _, _, config = TrainParser().parse(flags, keys, name)
        # YAML 1.1 reads 7e-4 as a string and a bare `no` as False.
        assert config.learning_rate == 7e-4
        assert config.save_strategy == "no"
        assert config.prune_steps == [5, 7]
        assert config.seed == 4

    @pytest.mark.parametrize(
        ("key", "value", "wanted"),
        [
            ("prune_steps", "5 7", "give a value of type int, or a list of ints such as [5, 7]."),
            ("reward_weights", "1 2", "give a value of type float, or a list of floats such as [0.5, 1.0]."),
            ("max_steps", "5 7", "give a value of type int."),
        ],
    )
    def test_a_list_that_is_a_text(self, parse, key, value, wanted):
        with pytest.raises(CommandError) as error:
            parse(**{key: value})
        assert str(error.value) == f"`{key}` is {value!r} in file.yaml; {wanted}"

    def test_the_demo_is_valid(self, tmp_path):
        from trl_progrpo.cli.arguments import TrainParser
        from trl_progrpo.cli.train import read_config

        flags, keys, name = read_config(["--config", str(DEMO), "--output_dir", str(tmp_path)])
        script, model, config = TrainParser().parse(flags, keys, name)
        assert script.eval_reward_funcs == ["shapes_strict"]
        assert model.lora_r == 16
        assert (config.num_expansions, config.prune_steps, config.prune_sizes) == (48, [5, 7], [24, 12])
        assert config.save_strategy == "no"

    def test_none_switches_pruning_off(self, tmp_path):
        from trl_progrpo.cli.arguments import TrainParser
        from trl_progrpo.cli.train import read_config

        off = [f"--{name}" for name in ("num_expansions", "prune_steps", "prune_sizes", "preview_decoder")]
        off = [token for flag in off for token in (flag, "none")]
        flags, keys, name = read_config(["--config", str(DEMO), "--output_dir", str(tmp_path), *off])
        config = TrainParser().parse(flags, keys, name)[2]
        assert (config.num_expansions, config.prune_steps, config.preview_decoder) == (12, None, None)
        assert config.report_to == []

    @pytest.mark.parametrize("value", ["attn.to_q", ["attn.to_q"]])
    def test_one_lora_target_stays_a_list(self, parse, tmp_path, value):
        # A string would be a regular expression to PEFT.
        from trl_progrpo.cli.train import lora_config

        _, model, _ = parse(["--output_dir", str(tmp_path)], lora_target_modules=value)
        assert model.lora_target_modules == ["attn.to_q"]
        config = lora_config(model)
        assert config.target_modules == {"attn.to_q"}
        assert (config.r, config.lora_alpha, config.lora_dropout) == (32, 64, 0.0)

    def test_no_peft(self, parse, tmp_path):
        from trl_progrpo.cli.train import lora_config

        assert lora_config(parse(["--output_dir", str(tmp_path), "--no_use_peft"])[1]) is None

    def test_dict_fields_as_yaml_and_as_json(self, parse, tmp_path):
        expected = {"variant": "fp16"}
        flags = ["--output_dir", str(tmp_path)]
        assert parse(flags, model_init_kwargs=expected)[2].model_init_kwargs == expected
        assert parse([*flags, "--model_init_kwargs", json.dumps(expected)])[2].model_init_kwargs == expected

    def test_help_is_grouped_and_help_all_complete(self, capsys):
        texts = {}
        for flag in ("--help", "--help_all"):
            with pytest.raises(SystemExit) as info:
                main(["train", flag])
            assert info.value.code == 0
            texts[flag] = capsys.readouterr().out
        titles = ["model and adapter:", "prompts:", "rewards:", "rollout: expand, preview, prune:", "update:"]
        titles += ["training (transformers.TrainingArguments):", "more of Pro-GRPO:"]
        positions = [texts["--help"].index(f"\n{title}\n") for title in titles]
        assert positions == sorted(positions)
        for text in texts.values():
            flags = re.findall(r"^  (--\w+)", text, re.MULTILINE)
            assert len(flags) == len(set(flags))
        assert "--num_processes 8" in texts["--help"]
        assert "--adam_beta1" not in texts["--help"]
        assert "--adam_beta1" in texts["--help_all"]
        assert "train[:90%]" in texts["--help"]
        assert "--load_in_4bit" not in texts["--help_all"]


class TestTrainMistakes:
    def test_env_of_the_yaml_is_set_before_heavy_imports(self, config_file, monkeypatch, capsys):
        monkeypatch.setenv("TRL_PROGRPO_TEST", "old")
        assert main(["train", "--config", config_file("env: {TRL_PROGRPO_TEST: 1}\nzzz: 1\n")]) == 2
        import os

        assert os.environ["TRL_PROGRPO_TEST"] == "1"
        assert_one_sentence(capsys, "'zzz'")


class TestUserErrors:
    def test_only_ours(self):
        from trl_progrpo.rewards import RewardRunner

        with pytest.raises(CommandError, match="`reward_funcs` is empty"), user_errors(ours_only=True):
            RewardRunner([])
        with pytest.raises(ValueError, match="theirs"), user_errors(ours_only=True):
            raise ValueError("theirs")
        with pytest.raises(CommandError, match="theirs, in one line"), user_errors():
            raise ValueError("theirs,\nin one line")


def test_our_warnings_are_one_line_without_a_file():
    """Also where `stacklevel` puts them into a file of another package; those of others stay as they are."""
    code = """if True:
        import warnings
        from trl_progrpo.cli.base import short_warnings
        ours = {"__name__": "trl_progrpo.config"}
        exec("import warnings\\ndef check(): warnings.warn('`a` is 1,\\\\nso `b` is idle.', stacklevel=2)", ours)
        with short_warnings():
            ours["check"]()
            warnings.warn("of another")
        ours["check"]()
    """
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, timeout=60)
    ours, other, _, later, *_ = [*done.stderr.splitlines(), ""]
    assert ours == "warning: `a` is 1, so `b` is idle."
    assert other.endswith("UserWarning: of another")
    assert "UserWarning: `a` is 1" in done.stderr.split("of another")[1], later


class FakeTrainer:
    """Stands in for the trainer: records what the command asks of it."""

    use_adapter = True
    stopped_by_signal, schedule_choices, kept_step = False, [], None
    _make_policy = staticmethod(ProGRPOTrainer._make_policy)

    def __init__(self, model, reward_funcs, args, train_dataset, eval_dataset, peft_config, **more):
        from trl_progrpo.evaluation import PairedGains
        from trl_progrpo.rewards import RewardRunner

        self.train_dataset, self.eval_dataset, self.paired_gains = train_dataset, eval_dataset, PairedGains()
        self.args, self.calls, self.peft_config = args, [], peft_config
        self.reward_runner, self.rank_watch = RewardRunner(reward_funcs), RankWatch()
        self.state = SimpleNamespace(log_history=[], global_step=0)

    def is_world_process_zero(self):
        return True

    def evaluate(self):
        self.calls.append("evaluate")
        reward = 0.25 if self.state.global_step == 0 else 0.75
        metrics = {
            "eval_num_prompts": 4, "eval_reward": reward, "eval_reward_stderr": 0.01,
            "eval_rewards/shapes/mean": reward, "eval_rewards/shapes/stderr": 0.01,
            "eval_rewards/shapes_strict/mean": 0.5, "eval_rewards/shapes_strict/stderr": math.nan,
        }  # fmt: skip
        self.state.log_history.append({"step": self.state.global_step, **metrics})
        return metrics

    def generate(self, prompts):
        self.calls.append("generate")
        return torch.rand(len(prompts), 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def train(self, resume_from_checkpoint=None):
        self.calls.append("train")
        self.state.global_step = 2
        self.state.log_history += [
            {"step": 1, "loss": 0.0, "reward": 0.5, "prune/step_5/reward_std_before": 0.1, "time/denoise": 1.0},
            {"step": 2, "loss": 0.0, "reward": 0.6, "prune/step_5/reward_std_before": 0.2, "time/denoise": 2.0},
            {"step": 2, "train_runtime": 4.0},
        ]

    def save_model(self, output_dir=None, _internal_call=False):
        self.calls.append("save_model")
        # The card is written from the log, so the first evaluation must be in it by now.
        assert [e["step"] for e in self.state.log_history if "eval_reward" in e][:1] in ([], [0])

    def save_state(self):
        self.calls.append("save_state")

    def create_model_card(self, dataset_name=None):
        assert dataset_name is None
        self.calls.append("card")


@pytest.fixture
def fake_trainer(monkeypatch):
    import trl_progrpo.model_card
    import trl_progrpo.progrpo_trainer

    monkeypatch.setattr(trl_progrpo.progrpo_trainer, "ProGRPOTrainer", FakeTrainer)
    monkeypatch.setattr(trl_progrpo.model_card, "loading_code", lambda trainer, folder: "the code that loads it")
    return FakeTrainer


class TestTrain:
    argv = ["train", *SHAPES, *BATCH, "--eval_samples", "4"]

    def test_measures_before_and_after_and_writes_results(self, fake_trainer, tmp_path, capsys, monkeypatch):
        made = []
        monkeypatch.setattr(fake_trainer, "save_state", lambda self: made.append(self))
        assert main([*self.argv, "--output_dir", str(tmp_path)]) == 0
        trainer = made[0]
        assert trainer.calls == ["evaluate", "generate", "train", "evaluate", "generate", "save_model", "card"]
        assert trainer.peft_config.r == 32
        results = json.loads((tmp_path / "eval_results.json").read_text())
        assert (results["before"]["eval_reward"], results["after"]["eval_reward"], results["step"]) == (0.25, 0.75, 2)
        assert results["after"]["eval_rewards/shapes_strict/stderr"] is None
        for name in ("before_after.png", "reward_curve.png", "prune_funnel.png"):
            assert (tmp_path / name).stat().st_size > 2000
        out = capsys.readouterr().out
        assert re.search(r"shapes +0\.250 ± 0\.010 +0\.750 ± 0\.010 +\+0\.500 ± 0\.014", out)
        assert "the code that loads it" in out

    def test_without_held_out_prompts_and_plots(self, fake_trainer, tmp_path, capsys):
        assert main([*self.argv, "--dataset_test_split", "none", "--no_plot", "--output_dir", str(tmp_path)]) == 0
        out, err = capsys.readouterr()
        assert "No held-out prompts" in err
        assert "Held-out reward" not in out
        assert not list(tmp_path.glob("*.png"))
        assert not (tmp_path / "eval_results.json").exists()

    def test_an_evaluation_at_the_last_step_is_not_repeated(self, fake_trainer, tmp_path, monkeypatch):
        from trl_progrpo.cli.train import _evaluate_after

        trainer = SimpleNamespace(
            state=SimpleNamespace(global_step=2, log_history=[{"step": 2, "eval_reward": 0.5}]),
            kept_step=None,
            evaluate=lambda: {"eval_reward": 0.9},
        )
        assert _evaluate_after(trainer) == {"eval_reward": 0.5}
        # The weights are not those of the last step.
        trainer.kept_step = 1
        assert _evaluate_after(trainer) == {"eval_reward": 0.9}
        trainer.state.log_history.insert(0, {"step": 1, "eval_reward": 0.7})
        assert _evaluate_after(trainer) == {"eval_reward": 0.7}

    def test_a_refusing_trainer_is_one_sentence(self, fake_trainer, tmp_path, capsys, monkeypatch):
        def refuse(self, **kwargs):
            raise ValueError("`policy` is 'x';\n use another.")

        monkeypatch.setattr(fake_trainer, "__init__", refuse)
        assert main([*self.argv, "--output_dir", str(tmp_path)]) == 2
        assert_one_sentence(capsys, "`policy` is 'x'; use another.")

    def test_a_defect_in_training_keeps_its_traceback(self, fake_trainer, tmp_path, monkeypatch):
        def fail(self, **kwargs):
            raise ValueError("a bug in the user's reward")

        monkeypatch.setattr(fake_trainer, "train", fail)
        with pytest.raises(ValueError, match="a bug"):
            main([*self.argv, "--output_dir", str(tmp_path)])

    def test_nobody_is_logged_in_to_the_tracker(self, fake_trainer, tmp_path, capsys, monkeypatch):
        def refuse(self):
            raise type("UsageError", (Exception,), {"__module__": "wandb.errors.errors"})(
                "No API key configured. Use it."
            )

        monkeypatch.setattr(fake_trainer, "evaluate", refuse)
        assert main([*self.argv, "--output_dir", str(tmp_path)]) == 2
        assert_one_sentence(
            capsys, "`report_to` has wandb, which refuses (No API key configured. Use it); run `wandb login`"
        )


class TestSummary:
    def printed(self, history, **kwargs):
        from trl_progrpo.cli.summary import summary

        stream = io.StringIO()
        console = Console(file=stream, width=80, highlight=False)
        arguments = {"files": {"adapter": "out/a.safetensors"}, "code": "x" * 120, "console": console}
        summary(history, **{**arguments, **kwargs})
        return stream.getvalue()

    def test_names_are_no_markup(self):
        metrics = {"eval_num_prompts": 4, "eval_reward": 0.5, "eval_rewards/bold[red]x/mean": 0.5}
        assert "bold[red]x" in self.printed([{**metrics, "step": 1}])

    def test_the_weights_that_are_kept(self):
        metrics = {"eval_num_prompts": 4, "eval_rewards/a/mean": 0.5, "eval_reward": 0.5}
        history = [{**metrics, "step": 1}, {**metrics, "eval_rewards/a/mean": 0.1, "eval_reward": 0.1, "step": 2}]
        said = self.printed(history, kept_step=1)
        assert "0.500" in said
        assert "after: step 1, whose weights are kept" in " ".join(said.split())

    def test_everything_is_there_in_80_columns(self):
        row = {
            "prune/step_5/reward_std_before": 0.2, "prune/step_5/reward_std_random": 0.19,
            "prune/step_5/reward_std_after": 0.3, "prune/step_5/rank_corr": 0.7, "time/denoise": 2.0, "time/update": 1.0,
        }  # fmt: skip
        history = [{**row, "step": 1}, {**row, "step": 2}, {"step": 2, "train_runtime": 8.0}]
        metrics = {"eval_reward": 0.9, "eval_reward_stderr": 0.01, "eval_num_prompts": 64}
        metrics |= {"eval_rewards/a/mean": 0.4, "eval_rewards/a/stderr": 0.03}
        gain = {"eval_reward_gain": 0.0, "eval_reward_gain_stderr": 0.004}
        history = [{"step": 0, **metrics}, *history, {"step": 2, **metrics, **gain}]
        text = self.printed(history, group_sizes={5: (48, 24)}, num_inference_steps=10)
        assert "over 64 images" in text
        assert re.search(r"weighted total +0\.900 ± 0\.010 +0\.900 ± 0\.010 +\+0\.000 ± 0\.004", text)
        assert re.search(r"a +0\.400 ± 0\.030", text)
        assert re.search(r"step 5 +48 → 24 +0\.200 +0\.190 +0\.300 +0\.70", text)
        assert re.search(r"denoise +4\.0 +50%", text)
        assert re.search(r"other +2\.0 +25%", text)
        assert "adapter  out/a.safetensors" in text
        assert "\n" + "x" * 120 + "\n" in text, "code must not be wrapped"
        assert all(len(line) <= 80 for line in text.splitlines() if "xxx" not in line)

    @pytest.mark.parametrize("width", [40, 60, 80])
    def test_no_number_is_cut_off_by_a_long_name(self, width):
        name = "jpeg_incompressibility (a_second_evaluation_set)"
        metrics = {"eval_num_prompts": 4, f"eval_rewards/{name}/mean": -110.5, f"eval_rewards/{name}/stderr": 10.25}
        history = [{"step": 0, **metrics}, {"step": 1, **metrics}]
        stream = io.StringIO()
        self.printed(history, console=Console(file=stream, width=width, highlight=False))
        text = stream.getvalue()
        assert "…" not in text
        assert text.count("-110.5") == 2
        table = text[text.index("reward ") : text.index("Files")]
        assert re.sub(r"\W", "", "".join(line[:12] for line in table.splitlines())).count("jpeg") == 1

    def test_without_a_measurement_before(self):
        text = self.printed([{"step": 4, "eval_reward": 0.9, "eval_rewards/a/mean": 0.9, "eval_num_prompts": 1}])
        assert "over 1 image," in text
        assert re.search(r"a +– +0\.900 +–", text)
        assert "Prune funnel" not in text
        assert "Time" not in text

    def test_brackets_are_no_markup(self):
        text = self.printed([], files={"a": "out[bold]"}, code="images[0]")
        assert "out[bold]" in text
        assert "images[0]" in text


class TestSample:
    def test_draws_the_base_model(self, tmp_path, capsys):
        path = tmp_path / "grid.png"
        prompts = ["a red circle", "a blue square above a red circle"]
        argv = ["--model_name_or_path", "shapes", "--num_inference_steps", "2", "--output", str(path)]
        assert main(["sample", *argv, "--prompts", *prompts, "--batch_size", "1"]) == 0
        assert capsys.readouterr().out == f"{path}\n"
        first = np.asarray(Image.open(path)).astype(int)
        assert main(["sample", *argv, "--prompts", *prompts]) == 0
        # Other batches are rounded otherwise; other noise would be seen at once.
        assert abs(np.asarray(Image.open(path)).astype(int) - first).max() <= 1
