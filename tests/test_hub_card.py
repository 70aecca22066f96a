# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What a model card says, and that it is what was measured."""

import json
import math
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from datasets import Dataset
from hub_store import card_errors, header_of
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from test_heldout import evaluation

from trl_progrpo.hub import NEVER_PUSHED, push_command, redact
from trl_progrpo.model_card import Command, facts, name_on_hub, portable_text, started_with
from trl_progrpo.model_card.header import inherited_license
from trl_progrpo.validation import gain_cases


class TestFacts:
    def test_network_evaluations(self):
        args = SimpleNamespace(num_inference_steps=10, num_expansions=8, num_generations=4)
        history = [{"sampling/nfe": 200.0}, {"loss": 0.0}, {"sampling/nfe": 240.0}]
        nfe = facts.network_evaluations(history, args, nfe_per_row=2, groups=2)
        assert nfe == {"measured": 220.0, "unpruned": 320, "plain": 160}
        assert facts.network_evaluations([{"loss": 0.0}], args, 2, 2) is None

    def test_audited_groups(self):
        history = [
            {"audit/step_5/rank_corr": 0.2, "audit/step_5/reward_std_kept": 1.0, "audit/step_12/rank_corr": 0.9},
            {"audit/step_5/rank_corr": math.nan, "audit/step_5/reward_std_kept": 3.0, "audit/step_5/other": 7.0},
        ]
        five, twelve = facts.audit_table(history)
        assert (five["step"], five["rank_corr"], five["reward_std_kept"]) == (5, 0.2, 2.0)
        assert (twelve["step"], twelve["rank_corr"]) == (12, 0.9)
        assert math.isnan(twelve["reward_std_random"])

    def test_compute(self):
        rows = facts.compute_table([{"time/update": 1.0}, {"time/denoise": 2.0}, {"train_runtime": 4.0}])
        assert [(row["name"], row["seconds"]) for row in rows] == [
            ("denoise", 2.0), ("update", 1.0), ("other", 1.0), ("total", 4.0),
        ]  # fmt: skip
        assert [row["share"] for row in rows] == [0.5, 0.25, 0.25, 1.0]
        assert facts.compute_table([{"loss": 0.0}]) == []


class TestCommand:
    @pytest.mark.parametrize(
        ("argv", "command"),
        [
            (["/somewhere/bin/trl-progrpo", "train", "--seed", "1"], "trl-progrpo train --seed 1"),
            (["/x/trl_progrpo/cli/__main__.py", "train"], "trl-progrpo train"),
            (["run.py", "--hub_token", "abc", "--seed", "1"], "python run.py --seed 1"),
            (["run.py", "--hub-token=abc", "--prompt", "a b"], "python run.py --prompt 'a b'"),
            (["run.py", "--api_key", "abc"], "python run.py"),
            (["/opt/jobs/run.py", str(Path.home() / "data.json")], "python run.py data.json"),
            (["run.py", "--output_dir=~/runs/x", "--max_tokens", "5"], "python run.py --output_dir=x --max_tokens 5"),
        ],
    )
    def test_line(self, argv, command, monkeypatch):
        monkeypatch.setattr(sys, "argv", argv)
        assert started_with() == Command(command)

    def test_interactive_sessions_have_none(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", [""])
        assert started_with() is None

    @pytest.mark.parametrize("flag", ["--config {}", "--config={}"])
    def test_config(self, flag, tmp_path, monkeypatch):
        path = tmp_path / "my.yaml"
        path.write_text(
            "# a comment\noutput_dir: /scratch/jane/out\nhub_token: hf_x\nprune_steps: [5, 7]\n"
            "env: {WANDB_API_KEY: k, HF_HOME: /scratch/jane/hf}\nmodel_init_kwargs: {token: t, cache_dir: /scratch/c}\n"
            "max_tokens: 3\ndataset_name: user/data\n"
        )
        monkeypatch.setattr(sys, "argv", ["trl-progrpo", "train", *flag.format(path).split()])
        command = started_with()
        assert command.line == "trl-progrpo train " + flag.format("my.yaml")
        assert command.config_name == "my.yaml"
        assert yaml.safe_load(command.config) == {
            "output_dir": "out", "prune_steps": [5, 7], "env": {"HF_HOME": "hf"}, "model_init_kwargs": {"cache_dir": "c"},
            "max_tokens": 3, "dataset_name": "user/data",
        }  # fmt: skip
        assert "prune_steps: [5, 7]\n" in command.config

    def test_values_of_a_config_stand_as_they_were_written(self, tmp_path, monkeypatch):
        text = (
            "save_strategy: no\nlearning_rate: 1e-4\nrun_name: 1.10\nhub_model_id: 12:30:45\nseed: 007\nbf16: yes\n"
            "eval_strategy: 'no'\ndatasets:\n- path: a.csv\n  weight: 5e-1\nprune_steps:\n- 5\n- 7\ntrackers: [off, on]"
        )
        path = tmp_path / "run.yaml"
        path.write_text(f"\N{BYTE ORDER MARK}{text}\n", encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["trl-progrpo", "train", "--config", str(path)])
        assert started_with().config == text

    def test_a_config_that_holds_itself_is_left_alone(self, tmp_path, monkeypatch):
        path = tmp_path / "run.yaml"
        path.write_text("a: &a [*a]\n")
        monkeypatch.setattr(sys, "argv", ["run.py", "--config", str(path)])
        assert started_with() == Command("python run.py --config run.yaml")

    def test_a_config_of_another_program_is_left_alone(self, tmp_path, monkeypatch):
        for content in (b"\xff\xfe", b"[1, 2]", b"a: [", b""):
            (tmp_path / "c").write_bytes(content)
            monkeypatch.setattr(sys, "argv", ["run.py", "--config", str(tmp_path / "c")])
            assert started_with() == Command("python run.py --config c")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("user/model", "user/model"),
            ("http://host:80/a/b", "http://host:80/a/b"),
            ("a red/blue circle", "a red/blue circle"),
            ("1 / 2", "1 / 2"),
            ("./here/x", "./here/x"),
            ("../there/x", "../there/x"),
            ("/mnt/data/x y/prompts.jsonl", "prompts.jsonl"),
            ("~/runs/x/", "x"),
            ("HERE/runs/x", "runs/x"),
            ('{"cache_dir": "/mnt/c", "b": "~/d/e"}', '{"cache_dir": "c", "b": "e"}'),
            ("--a=/mnt/c", "--a=c"),
            ('["/mnt/a","/mnt/b"]', '["a","b"]'),
            ("PATH:/usr/bin:/usr/lib", "PATH:bin:lib"),
        ],
    )
    def test_paths(self, text, expected, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert portable_text(text.replace("HERE", str(tmp_path))) == expected


def test_redact():
    text = "hf_abcdefghijklmnopqrstuv http://me:secret@host/x hf_hub_download sesame"
    assert redact(text, ["sesame", None]) == "*** http://***@host/x hf_hub_download ***"


def test_names_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert name_on_hub("user/model-1.5") == "user/model-1.5"
    for name in (None, "", "shapes", "here", "/no/such/folder", "a b", "./x", "user/model/x"):
        assert name_on_hub(name) is None


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("license: mit\ntags: [a]", {"license": "mit"}),
        ("license: other\nlicense_name: own\nlicense_link: LICENSE", None),
        ("tags: [a]", {}),
        ("license: [broken", {}),
    ],
)
def test_licence_of_a_local_base(header, expected, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\ntext\n")
    if expected is None:
        expected = {"license": "other", "license_name": "own", "license_link": "LICENSE"}
    assert inherited_license(str(tmp_path)) == expected


def test_the_command_names_what_must_be_left_out(tmp_path):
    for name in ("checkpoint-3/optimizer.pt", "README.md", "images/a.png", "_draft.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    command = push_command("user/x", str(tmp_path), revision="exp/1", private=True)
    assert command == (
        f"hf upload user/x {tmp_path} . --exclude 'checkpoint-*' --exclude '_*' --exclude '*.pt' --revision exp/1 --private"
    )
    assert "*.bin" in NEVER_PUSHED


class TestCard:
    def card(self, trainer):
        text = Path(trainer.args.output_dir, "README.md").read_text()
        assert card_errors(text) == []
        return text, ModelCard(text).data.to_dict()

    def test_a_held_out_reward_that_fell_is_a_warning(self, make_trainer):
        trainer = make_trainer(max_steps=1)
        trainer.train()
        trainer.state.log_history = [
            evaluation(0, 0.5, 0.01) | evaluation(0, 0.5, 0.01, name="other") | evaluation(0, 3, 0.1, name="redness"),
            *trainer.state.log_history,
            evaluation(1, 0.1, 0.01) | evaluation(1, 0.6, 0.01, name="other") | evaluation(1, 1, 0.1, name="redness"),
        ]
        trainer.create_model_card()
        text, _ = self.card(trainer)
        assert "| clip | no | 8 | 0.500 ± 0.010 | 0.100 ± 0.010 | -0.400 ± 0.014 |" in text
        assert "| other | no | 8 | 0.500 ± 0.010 | 0.600 ± 0.010 | +0.100 ± 0.014 |" in text
        assert "| redness | yes | 8 | 3.000 ± 0.100 | 1.000 ± 0.100 | -2.000 ± 0.141 |" in text
        warned = re.findall(r"^> \*\*Warning\.\*\* (\w+) \*\*fell during training\*\*, (.*)$", text, re.M)
        assert [name for name, _ in warned] == ["redness", "clip"]
        assert "this run made it worse" in warned[0][1]
        assert "hacking" not in warned[0][1]
        assert "not trained on: a sign that" in warned[1][1]
        assert "(reward hacking)" in warned[1][1]

    def test_settings(self, make_trainer):
        trainer = make_trainer(max_steps=1, ema_decay=0.9, sde_window="fixed", sde_window_size=2, noise_level=0.5)
        trainer.create_model_card()
        text, _ = self.card(trainer)
        for row in (
            "| training prompts | 5 |",
            "| trajectories | 6 → 4 trajectories per prompt, pruned by `ovf` after step 1 of 4 (counted from 0); 4 were trained",
            "| policy | `flow_sde`, noise level 0.5 |",
            "| trained steps | a fixed window, `sde_window_size` 2 |",
            "| weights | LoRA of rank 4 and alpha 8, averaged with decay 0.9 |",
        ):
            assert row in text, text

    def test_pictures_are_what_the_trainer_makes(self, make_trainer):
        prompts = ['a "quoted" | piped: prompt', "two\nlines", "- a dash", "<b>bold</b>"]
        trainer = make_trainer(prompts=prompts, max_steps=1, num_validation_prompts=4, learning_rate=0.05)
        trainer.train()
        trainer.save_model()
        text, header = self.card(trainer)
        folder = Path(trainer.args.output_dir)
        for name, adapter in (("after", True), ("before", False)):
            for index, expected in enumerate(trainer.generate(prompts, adapter=adapter)):
                with Image.open(folder / f"images/{name}_{index}.png") as image:
                    shown = torch.tensor(list(image.convert("RGB").getdata())).T.reshape(3, 256, 256)
                # 8 pixels could not be seen on a page.
                expected = (expected * 255).round().long()
                assert torch.equal(shown, expected.repeat_interleave(32, 1).repeat_interleave(32, 2))
        assert [widget["text"] for widget in header["widget"]] == prompts
        assert '| a "quoted" \\| piped: prompt | ![before]' in text
        assert "| two lines |" in text
        assert "&lt;b>bold" in text

    def test_pictures_follow_the_weights(self, make_trainer):
        trainer = make_trainer(max_steps=1, num_validation_prompts=1, learning_rate=0.05)
        trainer.train()
        sampled = []
        generate = trainer.generate
        trainer.generate = lambda *args, **kwargs: sampled.append(kwargs) or generate(*args, **kwargs)
        trainer.save_model()
        first = Path(trainer.args.output_dir, "images/after_0.png").read_bytes()
        trainer.save_model()
        assert len(sampled) == 2, "before and after, once"
        with torch.no_grad():
            for parameter in trainer.family.denoiser.parameters():
                parameter.add_(0.05 * parameter.requires_grad)
        trainer.save_model()
        assert len(sampled) == 3
        assert Path(trainer.args.output_dir, "images/after_0.png").read_bytes() != first

    @pytest.mark.parametrize("trained", [True, False])
    def test_no_pictures(self, make_trainer, trained):
        trainer = make_trainer(max_steps=1, **({"num_validation_prompts": 0} if trained else {}))
        if trained:
            trainer.train()
        trainer.save_model()
        text, header = self.card(trainer)
        assert "widget" not in header
        assert "Gallery" not in text
        assert not Path(trainer.args.output_dir, "images").exists()

    def test_out_of_memory_costs_the_pictures_and_no_more(self, make_trainer):
        trainer = make_trainer(max_steps=1)
        trainer.train()

        def generate(*args, **kwargs):
            raise torch.OutOfMemoryError("out of memory")

        trainer.generate = generate
        with pytest.warns(UserWarning, match=r"no pictures, as sampling them failed \(out of memory\)"):
            trainer.save_model()
        assert "widget" not in self.card(trainer)[1]
        assert Path(trainer.args.output_dir, "pytorch_lora_weights.safetensors").is_file()

    def test_checkpoints_have_a_card_without_pictures(self, make_trainer):
        trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1)
        trainer.train()
        folder = Path(trainer.args.output_dir, "checkpoint-1")
        assert header_of((folder / "README.md").read_text())["library_name"] == "diffusers"
        assert not (folder / "images").exists()

    def test_what_is_given_once_stays(self, make_trainer):
        trainer = make_trainer(max_steps=1)
        trainer.train()
        trainer.create_model_card(model_name="A name", dataset_name=["a/b", "c/d"], tags="extra")
        trainer.save_model()
        text, header = self.card(trainer)
        assert "\n# A name\n" in text
        assert header["datasets"] == ["a/b", "c/d"]
        assert "extra" in header["tags"]


class TestGainsAndLosses:
    """Which picture got better and which worse, and the best and the worst of all beside those that are always shown."""

    prompts = ("a bird", "a cat", "a dog", "a fox", "an owl", "a rat")

    @pytest.fixture
    def trained(self, make_trainer):
        def train(gains, num_validation_prompts=2, **options):
            after = []

            def scripted(prompts, images):
                return [0.5 + (gains[prompt] if after else 0.0) for prompt in prompts]

            trainer = make_trainer(
                reward_funcs=scripted, eval_dataset=list(self.prompts), max_steps=1, learning_rate=0.05,
                num_validation_prompts=num_validation_prompts, **options,
            )  # fmt: skip
            trainer.evaluate()
            trainer.train()
            after.append(True)
            trainer.evaluate()
            return trainer

        return train

    @pytest.mark.parametrize(
        ("gains", "cases"),
        [
            ([0.1, -0.1, 0.2, 0.3, -0.3, 0.0], {"largest gain of 6": 3, "largest loss of 6": 4}),
            ([0.4, -0.1, 0.2, 0.3, 0.0, 0.0], {"largest gain of 6": 0, "largest loss of 6": 1}),
            ([0.4, 0.1, 0.2, 0.3, 0.05, math.nan], {"largest gain of 5": 0, "smallest gain of 5": 4}),
            ([-0.4, -0.1, -0.2, -0.3, -0.05, -0.6], {"smallest loss of 6": 4, "largest loss of 6": 5}),
            ([0.0] * 6, {}),
        ],
    )
    def test_the_best_and_the_worst(self, make_trainer, gains, cases):
        trainer = make_trainer(eval_dataset=list(self.prompts))
        args = (list(self.prompts), ["one"])
        trainer.paired_gains.update(0, *args, torch.zeros(6, 1, dtype=torch.float64), torch.ones(1))
        trainer.paired_gains.update(3, *args, torch.tensor(gains, dtype=torch.float64)[:, None], torch.ones(1))
        assert gain_cases(trainer, 3) == cases
        assert gain_cases(trainer, 2) == {}

    def test_card(self, trained):
        gains = dict(zip(self.prompts, [0.1, -0.1, 0.2, 0.3, -0.3, 0.0]))
        trainer = trained(gains)
        trainer.save_model()
        folder = Path(trainer.args.output_dir)
        text = (folder / "README.md").read_text()
        assert (
            "| prompt | before | after | reward |\n|---|---|---|---|\n| a bird | ![before](images/before_0.png)"
            in text
        )
        assert (
            "| **largest gain of 6:** a fox | ![before](images/before_2.png) | ![after](images/after_2.png) | 0.80 →"
            in text
        )
        assert "| **largest loss of 6:** an owl | ![before](images/before_3.png)" in text
        assert "The first 2: mean reward 0.50 → 0.50" in text
        assert [widget["text"] for widget in header_of(text)["widget"]] == ["a bird", "a cat", "a fox", "an owl"]
        # From the noise that the evaluation drew it from.
        expected = trainer.generate(["an owl"], first_slot=4)[0]
        with Image.open(folder / "images/after_3.png") as image:
            shown = torch.tensor(list(image.convert("RGB").getdata())).T.reshape(3, 256, 256)
        assert torch.equal(shown[:, ::32, ::32], (expected * 255).round().long())

    def test_a_reward_that_fails_costs_the_scores_alone(self, make_trainer):
        trainer = make_trainer(max_steps=1, num_validation_prompts=1)
        trainer.train()

        def runner(*args):
            raise OSError("the server is gone")

        runner.names, runner.weights = trainer.reward_runner.names, trainer.reward_runner.weights
        trainer.reward_runner = runner
        with pytest.warns(UserWarning, match=r"no rewards, as scoring them failed \(the server is gone\)"):
            trainer.create_model_card()
        assert "| prompt | before | after |\n" in Path(trainer.args.output_dir, "README.md").read_text()

    def test_full_fine_tunes_call_only_what_is_shown_anyway(self, trained):
        gains = dict(zip(self.prompts, [0.4, -0.1, 0.2, 0.3, -0.3, 0.0]))
        trainer = trained(gains, peft_config=None)
        trainer.save_model()
        text = Path(trainer.args.output_dir, "README.md").read_text()
        assert "| **largest gain of 6:** a bird |" in text
        assert "an owl" not in text


class TestWhatItSaysOfEvaluations:
    def card(self, trainer):
        trainer.save_model()
        return (Path(trainer.args.output_dir) / "README.md").read_text()

    def test_none_was_made(self, make_trainer):
        assert "Not measured: the run was not evaluated." in self.card(make_trainer(eval_dataset=["a bird"]))
        assert "Not measured: the run had no evaluation dataset." in self.card(make_trainer())

    def test_the_best_weights_are_the_ones_it_tells_of(self, make_trainer, tmp_path):
        rewards = iter([0.0, 0.9, 0.1])

        def scripted(prompts, images):
            return [next(rewards)] * len(prompts)

        trainer = make_trainer(
            eval_dataset=["a bird"], eval_reward_funcs=scripted, max_steps=2, eval_strategy="steps", eval_steps=1,
            save_strategy="steps", save_steps=1, load_best_model_at_end=True, output_dir=str(tmp_path / "out"),
            metric_for_best_model="rewards/scripted/mean",
        )  # fmt: skip
        trainer.evaluate()
        trainer.train()
        text = self.card(trainer)
        assert "The weights are those of step 1, the best by `rewards/scripted/mean`." in text
        assert "before training and after step 1;" in text
        assert re.search(r"\| scripted \| no \| 1 \| 0\.000.* \| 0\.900.* \| \+0\.900", text)
        # A checkpoint has its own weights.
        own = (tmp_path / "out" / "checkpoint-2" / "README.md").read_text()
        assert "those of step" not in own

    def test_prompts_are_no_markdown(self):
        from trl_progrpo.model_card import _plain

        assert _plain("![x](http://a/b.png) `c` *d* e_f") == r"!\[x\](http://a/b.png) \`c\` \*d\* e_f"


def test_tokens_and_paths_are_not_written(make_trainer, monkeypatch, tmp_path):
    secret, base, key = "hf_secretSecretSecretSecret", "an-unusual-token-for-the-base", "key-of-a-tracker"
    home = tmp_path / "home" / "jane"
    home.mkdir(parents=True)
    (home / "run.yaml").write_text(
        f"hub_token: {secret}\nenv: {{WANDB_API_KEY: {key}, HF_HOME: {home}/hf, AWS_ACCESS_KEY_ID: {key}, MY_LOGIN: {key}, "
        f"OMP_NUM_THREADS: 1}}\ndataset_name: {home}/prompts.jsonl\nmodel_init_kwargs: {{OPENAI_KEY: {key}, "
        f"aws_secret_access_key: {key}}}\n"
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    argv = [
        "--config",
        f"{home}/run.yaml",
        "--hub_token",
        secret,
        f'--model_init_kwargs={{"token": "{base}"}}',
        secret,
    ]
    monkeypatch.setattr(sys, "argv", [f"{home}/run.py", *argv, f"--output_dir={home}/out"])
    trainer = make_trainer(
        max_steps=1, hub_token=secret, model_init_kwargs={"token": base}, report_to="tensorboard",
        output_dir=str(home / "out"),
    )  # fmt: skip
    trainer.model_name = str(tmp_path / "models" / "base")
    # By the time that a card is written somebody has prepared the next run.
    (home / "run.yaml").write_text("seed: 99\n")
    trainer.train()
    trainer.save_model()
    folder = Path(trainer.args.output_dir)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        for word in (secret, base, key):
            assert word.encode() not in content, path
    for path in ("README.md", "training_args.json", "pytorch_lora_weights.safetensors"):
        content = (folder / path).read_text(errors="replace")
        assert str(tmp_path) not in content, path
        assert "jane" not in content, path
    text = (folder / "README.md").read_text()
    assert 'python run.py --config run.yaml \'--model_init_kwargs={"token": "***"}\' *** --output_dir=out\n' in text
    assert (
        "```yaml\nenv: {HF_HOME: hf, OMP_NUM_THREADS: 1}\ndataset_name: prompts.jsonl\nmodel_init_kwargs: {}\n```"
        in text
    )
    assert "from_pretrained('path/to/base'" in text
    assert "load_lora_weights('out')" in text
    settings = json.loads((folder / "training_args.json").read_text())
    assert settings["model_init_kwargs"] == {"token": "<TOKEN>"}
    assert settings["output_dir"] == "out"
    assert trainer.args.model_init_kwargs == {"token": base}


class TestFullFineTune:
    def test_the_whole_pipeline_is_saved_and_checkpoints_hold_the_denoiser(self, make_trainer):
        trainer = make_trainer(peft_config=None, max_steps=1, save_strategy="steps", save_steps=1)
        trainer.train()
        trainer.save_model()
        out = Path(trainer.args.output_dir)
        assert (out / "model_index.json").is_file()
        assert (out / "text_encoder" / "model.safetensors").is_file()
        assert not (out / "checkpoint-1" / "model_index.json").exists()
        assert (out / "checkpoint-1" / "transformer" / "config.json").is_file()

    def test_dropped_text_encoders_are_loaded_once_more(self, make_trainer, pipeline_path):
        trainer = make_trainer(model=pipeline_path, peft_config=None, max_steps=1, drop_text_encoders=True)
        trainer.train()
        trainer.save_model()
        index = json.loads(Path(trainer.args.output_dir, "model_index.json").read_text())
        assert index["text_encoder"] == ["transformers", "CLIPTextModelWithProjection"]
        saved, base = (
            load_file(Path(folder, "text_encoder", "model.safetensors"))
            for folder in (trainer.args.output_dir, pipeline_path)
        )
        assert saved.keys() == base.keys()
        assert all(torch.equal(saved[name], base[name]) for name in base)
        assert trainer.pipeline.text_encoder is None, "and let go again"

    def test_a_pipeline_made_in_memory_cannot_load_them_again(self, make_trainer):
        trainer = make_trainer(peft_config=None, max_steps=1, drop_text_encoders=True)
        trainer.train()
        with pytest.warns(UserWarning, match=r"lacks text_encoder, text_encoder_2: `drop_text_encoders` removed them"):
            trainer.save_model()
        assert Path(trainer.args.output_dir, "transformer", "config.json").is_file()


def test_a_run_without_pushing_warns_of_nothing(make_trainer):
    trainer = make_trainer(max_steps=1, eval_dataset=Dataset.from_dict({"prompt": ["a bird"]}))
    trainer.train()
    trainer.evaluate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.save_model()
    assert "nan" not in Path(trainer.args.output_dir, "README.md").read_text().lower()
