# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The report is read as a browser reads it: parsed, and opened in one where there is one."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trl_progrpo import ProGRPOConfig, ProGRPOTrainer
from trl_progrpo.cli.main import main
from trl_progrpo.report import read_run, write_report
from trl_progrpo.report.record import record_run
from trl_progrpo.report.sheets import data_uri, read_sheet, write_sheet


EVIL = '<script>alert(1)</script>"><img src="http://example.org/x.png" onerror="alert(2)"> & [b]'
VOID = {"meta", "link", "img", "br", "input", "hr"}
TOKEN = "hf_" + "Ab1" * 12


class Page(HTMLParser):
    """Elements with their attributes and all text; fails where tags do not nest."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []
        # Spaces that do not break included.
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += f"{data} "

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def evaluation(step, reward, strict, prompts=64):
    return {
        "step": step, "eval_num_prompts": prompts, "eval_reward": reward, "eval_reward_stderr": 0.01,
        "eval_rewards/shapes/mean": reward, "eval_rewards/shapes/stderr": 0.01,
        "eval_rewards/strict/mean": strict, "eval_rewards/strict/stderr": 0.02,
    }  # fmt: skip


def training(step):
    return {
        "step": step, "loss": 0.0, "reward": 0.5 + 0.01 * step, "reward_std": 0.2, "sampling/nfe": 5760.0,
        "sampling/decodes": 192.0, "prune/step_5/reward_std_before": 0.2, "prune/step_5/reward_std_random": 0.19,
        "prune/step_5/reward_std_after": 0.3, "prune/step_5/rank_corr": 0.7, "time/denoise": 3.0, "time/update": 1.0,
    }  # fmt: skip


ARGS = {
    "num_generations": 12, "num_expansions": 48, "prune_steps": [5, 7], "prune_sizes": [24, 12], "pruning_rule": "ovf",
    "num_inference_steps": 10, "per_device_train_batch_size": 48, "steps_per_generation": 4, "guidance_scale": 1.0,
    "learning_rate": 0.003, "hub_token": "<HUB_TOKEN>", "model_init_kwargs": {"token": TOKEN, "variant": "fp16"},
}  # fmt: skip


@pytest.fixture
def make_folder(tmp_path):
    """A function that returns an output folder as a run leaves it, but for pictures."""

    def make(history=None, args=ARGS, recorded=None, name="my-run"):
        folder = tmp_path / name
        folder.mkdir()
        if history is None:
            history = [evaluation(0, 0.5, 0.25), *map(training, range(1, 5)), {"step": 4, "train_runtime": 20.0}]
            history.append(evaluation(4, 0.6, 0.125))
        state = {"global_step": 4, "max_steps": 4, "log_history": history}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        if args is not None:
            (folder / "training_args.json").write_text(json.dumps(args))
        if recorded is not None:
            (folder / "report").mkdir()
            (folder / "report" / "run.json").write_text(json.dumps(recorded))
        return folder

    return make


class TestReport:
    def test_it_says_what_the_run_did(self, make_folder):
        folder = make_folder()
        path = write_report(folder)
        assert path == folder / "report.html"
        text = Page(path).text
        assert "my-run" in text
        assert "4 optimiser steps with Pro-GRPO" in text
        assert "48 → 24 → 12 trajectories per prompt" in text
        assert re.search(r"shapes 64 0\.500 ±\s0\.010 0\.600 ±\s0\.010 \+0\.100 ±\s0\.014", text)
        # 16 prompts of 48 trajectories and 10 steps would be 7680 evaluations.
        # What was saved is said beside what was spent, and after it.
        assert "Network evaluations 3.0 × plain GRPO 4.0 × without pruning, which saved 25%" in text
        assert "plain GRPO 1,920 (1.0 ×) as it ran 5,760 (3.0 ×) had all been finished 7,680 (4.0 ×)" in text
        assert re.search(r"denoise 12\.0 60%", text)
        assert re.search(r"step\s5 48\s→\s24 0\.200 0\.190 0\.300 0\.70", text)
        assert "learning_rate 0.003" in text

    def test_it_names_what_it_was_made_of(self, make_folder):
        recorded = {
            "model": "org/model", "adapter": True, "weights": "LoRA of rank 16 and alpha 32", "data": "prompts.jsonl",
            "num_prompts": 1267, "num_held_out": 64, "policy": "flow_sde", "noise_option": "noise_level",
            "date": "2026-03-04T05:06+00:00", "config_name": "run.yaml", "config": "seed: 007\nsave_strategy: no",
        }  # fmt: skip
        text = Page(write_report(make_folder(recorded=recorded))).text
        for fact in (
            "base model org/model", "trained weights LoRA of rank 16 and alpha 32", "training prompts 1,267 of prompts.jsonl",
            "held-out prompts 64", "date 2026-03-04 05:06 UTC", "with run.yaml: seed: 007 save_strategy: no",
        ):  # fmt: skip
            assert fact in text, fact

    @pytest.mark.parametrize(
        ("args", "recorded", "absent", "present"),
        [
            ({}, {"noise_option": "noise_level"}, {"eta"}, {"noise_level", "pruning_rule"}),
            ({"policy": "flow_sde"}, None, {"eta"}, {"noise_level"}),
            ({"policy": "ddim"}, None, {"noise_level"}, {"eta"}),
            ({"num_expansions": 12, "prune_steps": None}, None, {"pruning_rule", "preview_downscale"}, {"beta"}),
            ({"sde_window": "fixed"}, None, {"sde_window_interval", "eval_use_ema"}, {"sde_window_start"}),
            ({"prune_schedule": "auto"}, None, {"negative_prompt"}, {"prune_schedule_interval", "preview_downscale"}),
        ],
    )  # fmt: skip
    def test_no_setting_that_does_nothing(self, make_folder, args, recorded, absent, present):
        written = {
            "eta": 1.0, "noise_level": 0.7, "sde_window": None, "sde_window_start": 0, "sde_window_interval": 1, "beta": 0.0,
            "ema_decay": None, "eval_use_ema": True, "prune_schedule_interval": 50, "preview_downscale": 1,
            "negative_prompt": "x",
        }  # fmt: skip
        page = write_report(make_folder(args={**ARGS, **written, **args}, recorded=recorded)).read_text()
        shown = set(re.findall(r"<dt>(\w+)</dt>", page))
        assert not absent & shown
        assert present <= shown

    def test_a_held_out_reward_that_fell_is_said_at_the_top(self, make_folder):
        assert "strict fell during training" in Page(write_report(make_folder())).text
        history = [evaluation(0, 0.5, 0.25), evaluation(4, 0.6, 0.24)]
        assert "fell during training" not in Page(write_report(make_folder(history, name="b"))).text

    def test_the_weighted_sum_is_shown_where_it_is_none_of_the_rewards(self, make_folder):
        history = [evaluation(0, 0.5, 0.25), {**evaluation(4, 0.6, 0.24), "eval_reward": 1.5}]
        assert "weighted total" in Page(write_report(make_folder(history))).text
        assert "weighted total" not in Page(write_report(make_folder(name="b"))).text

    def test_it_holds_all_it_shows_and_no_script(self, make_folder):
        page = Page(write_report(make_folder()))
        assert page.all("script") == []
        for _, attributes in page.elements:
            assert not [name for name in attributes if name.startswith("on")]
            for name in ("src", "href"):
                assert attributes.get(name, "data:").startswith("data:")
        [policy] = [
            meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"
        ]
        assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        assert page.all("html")[0]["lang"] == "en"
        style = write_report(make_folder(name="b")).read_text()
        assert "@import" not in style
        assert "url(" not in style

    def test_pictures_have_words(self, make_folder):
        page = Page(write_report(make_folder()))
        drawings = page.all("svg")
        assert len(drawings) == 2 * 3, "rewards, trajectories alive and spread, each for two widths"
        assert all(len(drawing["aria-label"]) > 20 and drawing["role"] == "img" for drawing in drawings)
        assert "0.500 at step 0, 0.600 at step 4" in drawings[0]["aria-label"]
        assert all(image["alt"] for image in page.all("img"))

    def test_what_users_wrote_is_text(self, make_folder, make_trainer, tmp_path):
        trainer = make_trainer(prompts=[EVIL, *"abcd"], train_sampling_strategy="sequential", max_steps=1)
        trainer.train()
        folder = make_folder(
            [{**evaluation(0, 0.5, 0.25), f"eval_rewards/{EVIL}/mean": 0.5, f"eval_rewards/{EVIL}/stderr": 0.1}],
            {**ARGS, "run_name": EVIL, "negative_prompt": EVIL},
            name="<b>run & co",
        )
        trainer.args.output_dir, trainer.model_name = str(folder), EVIL
        record_run(trainer, [EVIL], [torch.rand(1, 3, 8, 8)], ["before"], [[0.5]])
        page = Page(write_report(folder))
        assert page.all("script") == page.all("b")[1:] == []
        assert {image["src"][:11] for image in page.all("img")} == {"data:image/"}
        assert page.text.count("<script>alert(1)</script>") >= 5
        assert "<b>run & co" in page.text
        assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]

    def test_no_token_gets_in(self, make_folder):
        recorded = {"command": f"trl-progrpo train --x {TOKEN}", "versions": {}}
        text = write_report(make_folder(recorded=recorded)).read_text()
        assert TOKEN not in text
        assert "hub_token" not in text
        assert "fp16" in text

    @pytest.mark.parametrize(
        "history",
        [
            [],
            [{"step": 1, "loss": 0.1}],
            [{"step": 1, "reward": 3.0}],
            [{"step": 1, "reward": math.nan, "reward_std": math.nan}, {"step": 2, "reward": -1e6, "reward_std": 0.0}],
            [evaluation(0, 0.5, 0.25)],
            [{**evaluation(0, 21.5, 0.25), "eval_rewards/strict/stderr": math.nan}, evaluation(3, 22.5, 0.5)],
            [{"step": 1, "prune/step_5/reward_std_before": 0.0, "prune/step_5/reward_std_after": 0.0}],
        ],
    )
    @pytest.mark.parametrize("args", [ARGS, None])
    def test_whatever_a_run_has_logged(self, make_folder, history, args):
        page = Page(write_report(make_folder(history, args)))
        for name, attributes in page.elements:
            drawn = [value for value in attributes.values() if value is not None]
            assert name not in ("circle", "rect", "polyline", "path") or not re.search("nan|inf", " ".join(drawn))

    def test_a_reward_on_another_scale_gets_axes_of_its_own(self, make_folder):
        history = [evaluation(0, 21.5, 0.25), evaluation(4, 22.5, 0.5)]
        shared = Page(write_report(make_folder([evaluation(0, 0.5, 0.25), evaluation(4, 0.6, 0.5)])))
        apart = Page(write_report(make_folder(history, name="b")))
        heights = [float(page.all("svg")[0]["viewbox"].split()[3]) for page in (shared, apart)]
        assert heights[1] > heights[0] + 100

    def test_an_older_run_shows_its_grid(self, make_folder):
        folder = make_folder()
        Image.new("RGB", (4, 4), "red").save(folder / "before_after.png")
        images = Page(write_report(folder)).all("img")
        assert [image["src"][:22] for image in images] == ["data:image/png;base64,"]


class TestRecordedRun:
    @pytest.fixture(scope="class")
    def folder(self, make_pipeline, redness, tmp_path_factory):
        args = ProGRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("run")), per_device_train_batch_size=4, num_generations=4, max_steps=2,
            num_expansions=6, prune_steps=[1], prune_sizes=[4], num_inference_steps=4, logging_steps=1, use_cpu=True,
            save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer = ProGRPOTrainer(make_pipeline(), redness, args, ["a red circle", "two blue squares"])
        trainer.train()
        trainer.save_model()
        trainer.save_state()
        images = [torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)]
        record_run(trainer, ["one", "two"], images, ["before", "after"], [[0.1, math.nan], [0.3, 0.4]])
        return trainer, trainer.args.output_dir

    def test_pictures_rewards_and_the_group_are_there(self, folder):
        trainer, path = folder
        page = Page(write_report(path))
        group = trainer.group_watch.group
        alts = [image["alt"] for image in page.all("img")]
        assert alts[:4] == [
            "one, before training",
            "one, after training",
            "two, before training",
            "two, after training",
        ]
        assert page.all("svg")[-1]["aria-label"] == "Histogram of the rewards of a group: 6 before, 4 after pruning."
        kept, pruned = sum(alt.startswith("kept") for alt in alts), sum(alt.startswith("pruned") for alt in alts)
        assert (kept, pruned) == (4, 2)
        assert sum(alt.startswith("finished") for alt in alts) == 4
        assert "before 0.10 after 0.30" in page.text
        assert "before – after 0.40" in page.text
        assert group.prompt in page.text
        assert "redness for 2 optimiser steps" in page.text
        assert "torch" in page.text

    def test_a_folder_that_lost_its_pictures(self, folder, tmp_path):
        path = shutil.copytree(folder[1], tmp_path / "copy")
        run = read_run(path)
        for file in run.pictures_folder.glob("*.png"):
            file.unlink()
        page = Page(write_report(path))
        assert page.all("img") == []
        assert "optimiser steps" in page.text

    def test_a_run_that_is_going_on_shows_its_newest_checkpoint(self, make_folder, tmp_path):
        folder = make_folder(recorded={"device": "another machine"})
        for step in (9, 10):
            checkpoint = folder / f"checkpoint-{step}"
            checkpoint.mkdir()
            state = {"global_step": step, "max_steps": 20, "log_history": [{"step": step, "reward": 0.5}]}
            (checkpoint / "trainer_state.json").write_text(json.dumps(state))
        # Beside what an earlier run has left, whose pictures are not this one's.
        for path in (folder / "trainer_state.json", folder / "report" / "run.json"):
            os.utime(path, (1e9, 1e9))
        text = Page(write_report(folder)).text
        assert "10 of 20 optimiser steps" in text
        assert "another machine" not in text
        for path in (folder / "trainer_state.json", folder / "report" / "run.json"):
            path.touch()
        assert "4 optimiser steps" in Page(write_report(folder)).text
        (folder / "trainer_state.json").unlink()
        assert "10 of 20 optimiser steps" in Page(write_report(folder)).text

    def test_the_weights_that_are_kept_are_the_ones_that_are_told(self, make_folder):
        history = [evaluation(0, 0.5, 0.25), *map(training, range(1, 5)), {"step": 4, "train_runtime": 20.0}]
        history[3:3] = [evaluation(2, 0.75, 0.25)]
        history.append(evaluation(4, 0.6, 0.125))
        folder = make_folder(history, {**ARGS, "load_best_model_at_end": True})
        state = json.loads((folder / "trainer_state.json").read_text())
        (folder / "trainer_state.json").write_text(json.dumps({**state, "best_global_step": 2}))
        text = Page(write_report(folder)).text
        assert re.search(r"shapes 64 0\.500 ±\s0\.010 0\.750 ±\s0\.010 \+0\.250", text)
        assert "After is step 2, whose weights are kept." in text

    def test_a_run_in_several_parts_took_as_long_as_all_of_them(self, make_folder):
        # 4 seconds of phases a step: 20 s with 4 of something else, then 10 s with 2.
        history = [training(1), training(2), training(3), training(4), {"step": 4, "train_runtime": 20.0}]
        phases = sum(value for key, value in training(1).items() if key.startswith("time/"))
        history += [training(5), training(6), {"step": 6, "train_runtime": 2 * phases + 3}]
        text = Page(write_report(make_folder(history))).text
        assert f"Training time {20 + 2 * phases + 3:.0f} s" in text


class TestSheets:
    def test_small_images_come_back_exactly(self, tmp_path):
        generator = np.random.default_rng(0)
        images = [Image.fromarray(generator.integers(0, 255, (6, 4, 3), np.uint8)) for _ in range(11)]
        again = read_sheet(write_sheet(images, tmp_path, "x"), tmp_path)
        assert [np.asarray(image).tolist() for image in again] == [np.asarray(image).tolist() for image in images]
        assert data_uri(images[0]).startswith("data:image/png;base64,")

    def test_large_images_are_packed(self, tmp_path):
        image = Image.effect_noise((400, 300), 20).convert("RGB")
        sheet = write_sheet([image] * 2, tmp_path, "x")
        assert sheet["file"] == "x.webp"
        assert [copy.size for copy in read_sheet(sheet, tmp_path)] == [(400, 300)] * 2
        assert len(data_uri(image)) < 400 * 300

    def test_nothing_outside_the_folder_is_read(self, tmp_path):
        (tmp_path / "in").mkdir()
        sheet = write_sheet([Image.new("RGB", (2, 2))], tmp_path, "secret")
        with pytest.raises(FileNotFoundError):
            read_sheet({**sheet, "file": "../secret.png"}, tmp_path / "in")


class TestCharts:
    def drawings(self, path):
        return re.findall(r"<svg.*?</svg>", path.read_text(), re.DOTALL)

    def test_words_stay_words_and_colours_are_the_pages(self, make_folder):
        for drawing in self.drawings(write_report(make_folder())):
            assert len(re.findall(r"<text ", drawing)) > 5
            assert set(re.findall(r"#[0-9a-f]{6}\b", drawing)) == set()
            assert "var(--ink)" in drawing

    def test_markers_of_one_drawing_are_not_those_of_another(self, make_folder):
        named = [re.findall(r' id="([^"]+)"', drawing) for drawing in self.drawings(write_report(make_folder()))]
        every = [name for names in named for name in names]
        assert len(every) == len(set(every)) > 0

    def test_formulas_and_markup_in_names_are_text(self, make_folder):
        name = "a$x_1^$b <i>"
        history = [{**evaluation(0, 0.5, 0.25), f"eval_rewards/{name}/mean": 0.3}]
        page = Page(write_report(make_folder(history)))
        assert f"held-out, {name} ± standard error" in page.text


class TestCommand:
    def test_prints_where_the_report_lies(self, make_folder, tmp_path, capsys):
        folder = make_folder()
        assert main(["report", str(folder)]) == 0
        assert capsys.readouterr().out.strip() == str(folder / "report.html")
        output = tmp_path / "new" / "page.html"
        assert main(["report", str(folder), "--output", str(output)]) == 0
        assert output.read_bytes() == (folder / "report.html").read_bytes()

    @pytest.mark.parametrize(
        ("prepare", "part"),
        [
            (lambda folder: shutil.rmtree(folder), "is no folder"),
            (lambda folder: (folder / "trainer_state.json").unlink(), "holds no trainer_state.json"),
            (lambda folder: (folder / "trainer_state.json").write_text("{"), "cannot be read"),
            (lambda folder: (folder / "trainer_state.json").write_text("[]"), "holds no JSON object"),
            (lambda folder: (folder / "trainer_state.json").write_text("{}"), "no `log_history`"),
            (lambda folder: (folder / "training_args.json").write_bytes(b"\xff"), "cannot be read"),
            (lambda folder: (folder / "report.html").mkdir(), "cannot be written"),
        ],
    )
    def test_a_bad_folder_is_one_sentence(self, make_folder, prepare, part, capsys):
        folder = make_folder()
        prepare(folder)
        assert main(["report", str(folder)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("trl-progrpo report: error: ")
        assert err.count("\n") == 1
        assert part in err

    @pytest.mark.slow
    def test_training_writes_it(self, tmp_path):
        argv = [
            "train", "--model_name_or_path", "shapes", "--dataset_name", "shapes", "--reward_funcs", "shapes",
            "--num_generations", "2", "--num_expansions", "6", "--prune_steps", "1", "--prune_sizes", "2",
            "--num_inference_steps", "3", "--per_device_train_batch_size", "4", "--max_steps", "1", "--eval_samples", "2",
            "--use_cpu", "--report_to", "none", "--output_dir", str(tmp_path / "run"),
        ]  # fmt: skip
        assert main(argv) == 0
        page = Page(tmp_path / "run" / "report.html")
        alts = [image["alt"] for image in page.all("img")]
        assert sum(alt.endswith("before training") for alt in alts) == 2
        assert sum(alt.startswith("pruned") for alt in alts) == 4
        assert "A LoRA adapter for shapes, trained on shapes for 1 optimiser step with" in page.text


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
class TestInABrowser:
    def opened(self, url, tmp_path, *flags, width=1280):
        """What the page said on the console, which addresses it asked for, and its final text."""
        log = tmp_path / "net.json"
        # Names are not resolved: nothing but this machine can be asked at all.
        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr", f"--log-net-log={log}", f"--window-size={width},900", "--dump-dom", *flags, url,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        events = json.loads(log.read_text())["events"]
        asked = [event.get("params") or {} for event in events]
        # The browser's own requests have no page as their initiator.
        asked = {p["url"] for p in asked if "url" in p and p.get("initiator", "not an origin") != "not an origin"}
        return console, asked, done.stdout

    def test_it_would_be_noticed(self, tmp_path):
        page = tmp_path / "page.html"
        page.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("boom")</script>')
        console, asked, _ = self.opened(page.as_uri(), tmp_path)
        assert any("boom" in line for line in console)
        assert asked == {"http://127.0.0.1:9/x.png"}

    def test_no_errors_and_no_request(self, make_folder, make_trainer, tmp_path):
        trainer = make_trainer(max_steps=1)
        trainer.train()
        folder = make_folder()
        trainer.args.output_dir = str(folder)
        record_run(trainer, [EVIL], [torch.rand(1, 3, 8, 8)] * 2, ["before", "after"], [[0.5], [0.6]])
        console, asked, text = self.opened(write_report(folder).as_uri(), tmp_path)
        assert console == []
        assert asked == set()
        assert "Images before and after" in text

    @pytest.mark.parametrize(
        "width", [390, pytest.param(320, marks=pytest.mark.slow), pytest.param(1280, marks=pytest.mark.slow)]
    )
    def test_nothing_sticks_out(self, make_folder, tmp_path, width):
        """Nor is a column of a table cut off, whatever the rewards are called."""
        names = ("jpeg_incompressibility", "a_reward_of_somebody (a_second_evaluation_set)")
        history = [evaluation(0, 123.5, 0.25), *map(training, range(1, 5)), evaluation(4, 122.5, 0.125)]
        history = [
            {
                **entry,
                **{
                    f"eval_rewards/{name}/{key}": v
                    for name in names
                    for key, v in (("mean", -110.5), ("stderr", 10.25))
                },
            }
            if "eval_reward" in entry
            else {**entry, "audit/step_5/rank_corr": 0.5}
            for entry in history
        ]
        report = write_report(make_folder(history))
        # Windows cannot be as narrow as a phone; frames can.
        frame = tmp_path / "frame.html"
        frame.write_text(
            f'<iframe src="{report.as_uri()}" style="width:{width}px;height:800px;border:0"></iframe><p id="wide"></p>'
            "<script>onload = () => { const page = document.querySelector('iframe').contentDocument.documentElement;"
            " const cut = [...page.querySelectorAll('.scroll, .tile *, .compare *, dd')]"
            " .filter(e => e.scrollWidth > e.clientWidth + 1);"
            " document.getElementById('wide').textContent = page.scrollWidth + ' of ' + page.clientWidth + ', cut:' +"
            " cut.map(e => ' ' + e.textContent.trim().slice(0, 40)).join(); }</script>"
        )
        _, _, text = self.opened(frame.as_uri(), tmp_path, "--allow-file-access-from-files", width=1400)
        found = re.search(r'id="wide">(\d+) of (\d+), cut:([^<]*)<', text)
        assert found, text[-500:]
        assert not found[3]
        scroll, client = int(found[1]), int(found[2])
        assert scroll <= client
        assert width - 20 <= client <= width

    @pytest.mark.slow
    def test_screenshots_for_the_documentation(self, make_folder, tmp_path):
        script = Path(__file__).parents[1] / "docs" / "take_screenshots.py"
        command = [sys.executable, str(script), str(write_report(make_folder())), "--folder", str(tmp_path)]
        subprocess.run([*command, "--browser", CHROMIUM], check=True, timeout=600)
        for name, width in (("report_desktop.png", 1100), ("report_phone.png", 2 * 390)):
            with Image.open(tmp_path / name) as picture:
                assert picture.width == width
                colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
            # The page, to its edges and not beyond: its ground, cards and ink.
            assert (colours[:width] == [0xF7, 0xF7, 0xF5]).all()
            assert len(np.unique(colours, axis=0)) > 50
            assert (tmp_path / name).stat().st_size < 400 * 1024
