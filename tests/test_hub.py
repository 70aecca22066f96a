# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Runs that push, the Hub they push to, and fresh processes that read back what arrived."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, HubServer
from hub_store import card_errors
from hub_world import HUB_TOKEN, MODEL_TOKEN, TRAIN, run, train
from PIL import Image
from safetensors.torch import load_file

from trl_progrpo.adapters import ADAPTER_FILE, RAW_ADAPTER_FILE
from trl_progrpo.cli.main import main


def levels(png):
    """A picture's pixel values `(3, height, width)`, 0 to 255."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return torch.tensor(list(image.getdata())).view(image.height, image.width, 3).permute(2, 0, 1)


class TestCommandLine:
    def test_what_arrives(self, hub_world):
        assert hub_world.results["command_line"]["status"] == 0
        files = hub_world.hub.files("user/shapes-lora")
        assert {
            ADAPTER_FILE,
            RAW_ADAPTER_FILE,
            "README.md",
            "training_args.json",
            "eval_results.json",
            "before_after.png",
        } <= files.keys()
        assert not [name for name in files if name.startswith("checkpoint") or name.endswith((".pt", ".pth", ".bin"))]
        assert files[ADAPTER_FILE] == (hub_world.out / ADAPTER_FILE).read_bytes()
        # The checkpoints themselves stay, with what is needed to go on.
        assert (hub_world.out / "checkpoint-2" / "optimizer.pt").is_file()

    def test_every_save_and_the_end_are_pushed_into_a_private_repository(self, hub_world):
        messages = hub_world.hub.messages("user/shapes-lora")
        assert messages[0] == "Training in progress, step 1"
        assert messages[-1] == "End of training"
        assert hub_world.hub.repos["model", "user/shapes-lora"].private
        printed = hub_world.results["command_line"]["printed"]
        assert "Pushed to " in printed
        assert "Upload" not in printed, "progress bars where there is no terminal"

    def test_stock_diffusers_makes_the_pictures_of_the_card(self, hub_world):
        """By the repository's name alone, though the weights before averaging lie beside those that are meant."""
        files, read = hub_world.hub.files("user/shapes-lora"), hub_world.read["shapes"]
        assert read["lora"] == [(32, 32, None)]
        for index, image in enumerate(read["images"]):
            shown = levels(files[f"images/after_{index}.png"])[:, ::8, ::8]
            assert ((image * 255).round() - shown).abs().max() <= 1
        before, after = (levels(files[f"images/{name}_0.png"]) for name in ("before", "after"))
        assert (before - after).abs().max() > 1

    def test_card(self, hub_world):
        text = hub_world.hub.files("user/shapes-lora")["README.md"].decode()
        header = hub_world.read["shapes"]["card"]
        assert (header["library_name"], header["pipeline_tag"]) == ("diffusers", "text-to-image")
        assert {"lora", "progrpo", "trl", "diffusers", "text-to-image"} <= set(header["tags"])
        # The embedded model is not on the Hub.
        assert "base_model" not in header
        assert "template:sd-lora" not in header["tags"]
        assert [widget["output"]["url"] for widget in header["widget"]] == [
            "images/after_0.png", "images/after_1.png",
        ]  # fmt: skip
        assert re.search(r"^\| shapes \| yes \| 4 \| -?\d\.\d+ ± \d\.\d+ \| -?\d\.\d+ ± \d\.\d+ \| ", text, re.M)
        assert re.search(r"^\| step 0 \| 3 → 2 \| ", text, re.M)
        assert re.search(r"^\| total \| \d+\.\d \| 100 % \|$", text, re.M)
        assert "10 network evaluations per rollout" in text
        assert (
            "That is 1.2 times plain\nGRPO, which starts only as many trajectories as are trained on: 8 evaluations."
            in text
        )
        assert "Without pruning the same expansion would\ntake 12, of which pruning saved 17 %." in text
        command = re.search(r"^```shell\n(.*)\n```", text, re.M)[1]
        assert (
            command
            == f"trl-progrpo {' '.join(TRAIN)} --config private.yaml --output_dir shapes-out --hub_model_id shapes-lora"
        )
        assert re.search(r"^```yaml\n(.*?)```", text, re.M | re.S)[1] == "hub_private_repo: true\nlogging_steps: 1\n"
        assert f"torch {torch.__version__}" in text
        for name in ("README.md", "training_args.json", "report/run.json", "report.html"):
            content = hub_world.hub.files("user/shapes-lora")[name].decode()
            assert str(hub_world.root) not in content, f"a path of this machine in {name}"

    def test_the_hub_found_nothing_wrong_with_the_cards(self, hub_world):
        # The client asks before every commit, and the reader once for each of three cards.
        answers = [status for request, status in hub_world.hub.requests if request == "POST /api/validate-yaml"]
        assert len(answers) > 3
        assert set(answers) == {200}

    def test_links_of_the_card_lead_to_files(self, hub_world):
        for name in ("user/shapes-lora", "user/full"):
            files = hub_world.hub.files(name)
            text = files["README.md"].decode()
            links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text) + re.findall(r"url: (\S+)", text)
            assert len(links) >= 4
            for link in links:
                assert files[link].startswith(b"\x89PNG"), link


def test_no_token_is_written_or_said(hub_world):
    tokens = [token.encode() for token in (TOKEN, HUB_TOKEN, MODEL_TOKEN)]
    written = [
        path for path in hub_world.root.rglob("*") if path.is_file() and path.name not in ("job.json", "private.yaml")
    ]
    assert len(written) > 100
    places = {path: path.read_bytes() for path in written} | {"printed": hub_world.printed.encode()}
    for (_, repo_id), repo in hub_world.hub.repos.items():
        for commit in repo.commits.values():
            places |= {(repo_id, path): file.content for path, file in commit.files.items()}
    for place, content in places.items():
        assert not any(token in content for token in tokens), place


class TestInterface:
    def test_a_repository_of_somebody_else_is_refused_before_weights_are_read(self, hub_world):
        assert re.fullmatch(
            r"`push_to_hub` cannot write to 'maker/base' on http://\S+ \(403 Forbidden: .*\); choose a `hub_model_id` of your "
            r"own .*",
            hub_world.results["refused"],
        )
        asked = [request for request, _ in hub_world.hub.requests]
        refusal = asked.index("POST /api/models/maker/base/preupload/main")
        assert not [request for request in asked[:refusal] if "base/resolve" in request and "safetensors" in request]

    def test_strategy_checkpoint_pushes_onto_the_branch(self, hub_world):
        repo = hub_world.hub.repos["model", "team/checkpoints"]
        assert set(repo.branches) == {"main", "exp/1"}
        assert hub_world.hub.files("team/checkpoints") == {}
        files = hub_world.hub.files("team/checkpoints", "exp/1")
        assert {"last-checkpoint/optimizer.pt", "last-checkpoint/trainer_state.json"} <= files.keys()
        assert {ADAPTER_FILE, RAW_ADAPTER_FILE, "README.md"} <= files.keys()
        assert files[ADAPTER_FILE] != files[RAW_ADAPTER_FILE]
        assert hub_world.hub.messages("team/checkpoints", "exp/1") == [
            "Training in progress, step 3", "Training in progress, step 3, checkpoint",
        ]  # fmt: skip
        # The rollout lies in the checkpoint, and stays here.
        assert "rollout_0.safetensors" in hub_world.results["checkpoints"]
        assert not [name for name in files if "rollout" in name]
        assert not [name for name in files if "/" not in name and name.endswith(".pt")]

    def test_the_base_models_card_is_inherited(self, hub_world):
        header = hub_world.read["checkpoints"]["card"]
        assert (header["base_model"], header["base_model_relation"]) == ("maker/base", "adapter")
        assert (header["license"], header["license_name"]) == ("other", "makers-licence")
        assert header["license_link"] == "https://huggingface.co/maker/base/blob/main/LICENSE.md"
        assert "template:sd-lora" in header["tags"]
        assert hub_world.read["checkpoints"]["lora"] == [(4, 4, "maker/base")]

    def test_a_run_goes_on_from_a_checkpoint_on_the_hub(
        self, hub_world, make_trainer, pipeline_path, adapter_of, tmp_path
    ):
        files = hub_world.hub.files("team/checkpoints", "exp/1")
        for name in [name for name in files if name.startswith("last-checkpoint/")]:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(files[name])
        (tmp_path / "raw.safetensors").write_bytes(files[f"last-checkpoint/{RAW_ADAPTER_FILE}"])
        pushed = load_file(tmp_path / "raw.safetensors")
        trainer = make_trainer(
            model=pipeline_path, gradient_accumulation_steps=1, steps_per_generation=2, max_steps=4, ema_decay=0.5, seed=42,
            num_expansions=None, prune_steps=None, prune_sizes=None,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=str(tmp_path / "last-checkpoint"))
        assert trainer.state.global_step == trainer.ema.optimization_step == 4
        # The optimiser has its own learning rate in the checkpoint; only that the weights come from there is asked here.
        names = {f"transformer.{name}".replace(".default", ""): tensor for name, tensor in adapter_of(trainer).items()}
        assert names.keys() == pushed.keys()
        assert all((tensor - pushed[name]).abs().max() < 0.2 for name, tensor in names.items())

    def test_a_full_fine_tune_is_a_pipeline(self, hub_world):
        files, read = hub_world.hub.files("user/full"), hub_world.read["full"]
        folders = {path.split("/")[0] for path in files if "/" in path} - {"images"}
        assert folders == {
            "scheduler",
            "text_encoder",
            "text_encoder_2",
            "tokenizer",
            "tokenizer_2",
            "transformer",
            "vae",
        }
        ours = torch.load(hub_world.root / "full.pt")
        assert (ours - read["images"]).abs().max() < 1e-4
        # With strategy "end" the save at step 1 stays here.
        assert hub_world.results["full"] == ["checkpoint-1"]
        assert hub_world.hub.messages("user/full") == ["End of training"]
        header = read["card"]
        assert (header["base_model"], header["base_model_relation"]) == ("maker/base", "finetune")
        assert header["datasets"] == ["maker/prompts"]
        assert "extra" in header["tags"]
        assert not {"lora", "template:sd-lora"} & set(header["tags"])
        before, after = (levels(files[f"images/{name}_0.png"]) for name in ("before", "after"))
        assert (before != after).any(), "the picture before is of the base model"
        assert ((read["images"][0] * 255).round() - after[:, ::32, ::32]).abs().max() <= 1


class TestFailures:
    @pytest.mark.parametrize(
        ("repo_id", "reason", "cure"),
        [
            ("user/down", "500", "Check your connection"),
            ("user/cut", "disconnected", "Check your connection"),
            ("user/revoked", "401", "Log in again with `hf auth login`"),
        ],
    )
    def test_a_push_that_fails_says_how_to_push_again(self, hub_world, repo_id, reason, cure):
        result = hub_world.results["failures"][repo_id]
        assert result["returned"] is None
        [said] = result["said"]
        assert re.match(rf"The push to {repo_id} failed \(.*{reason}.*\)\. Nothing is lost: the files are in '", said)
        assert cure in said
        assert hub_world.hub.messages(repo_id) == []
        assert (hub_world.root / "failures" / ADAPTER_FILE).is_file()
        assert f"\n\n    hf upload {repo_id} {hub_world.root / 'failures'} .\n" in said

    def test_that_command_works(self, hub_world):
        said = hub_world.results["failures"]["user/cut"]["said"][0]
        command = shlex.split(re.search(r"^    (hf .*)$", said, re.M)[1])
        hub_world.hub.faults.clear()
        run(
            [Path(sys.executable).with_name("hf"), *command[1:]],
            hub_world.hub,
            hub_world.root / "home",
            hub_world.root,
        )
        files = hub_world.hub.files("user/cut")
        assert files[ADAPTER_FILE] == (hub_world.root / "failures" / ADAPTER_FILE).read_bytes()
        assert {"README.md", "images/after_0.png"} <= files.keys()


REFUSALS = """
import json, os, sys
from types import SimpleNamespace
from trl_progrpo.hub import check_push, open_repo

results = {}
for name, case in json.load(sys.stdin).items():
    args = SimpleNamespace(**{"hub_token": None, "hub_private_repo": None, "hub_revision": None, "output_dir": "out", **case})
    try:
        check_push(args)
        results[name] = ["opened", open_repo(args)]
    except ValueError as error:
        results[name] = ["refused", str(error)]
assert "torch" not in sys.modules
print(json.dumps(results))
"""


def test_what_is_refused_at_the_start(tmp_path):
    cases = {
        "own": {"hub_model_id": None},
        "again": {"hub_model_id": "user/out"},
        "team": {"hub_model_id": "team/run", "hub_private_repo": True, "hub_revision": "a/b"},
        "name": {"hub_model_id": "user/what is this"},
        "folder": {"hub_model_id": None, "output_dir": "my run (3)"},
        "theirs": {"hub_model_id": "maker/new"},
        "theirs public": {"hub_model_id": "maker/public"},
        "theirs private": {"hub_model_id": "maker/private"},
        "public": {"hub_model_id": "user/public", "hub_private_repo": True},
        "read token": {"hub_model_id": "user/out", "hub_token": MODEL_TOKEN},
        "wrong token": {"hub_model_id": "user/out", "hub_token": "hf_wrongwrongwrongwrongwrong"},
    }
    with HubServer() as hub:
        hub.add_token(MODEL_TOKEN, "user", role="read")
        for name in ("maker/public", "user/public"):
            hub.add_repo(name)
        hub.add_repo("maker/private", private=True)

        def ask(cases, **environment):
            command = [sys.executable, "-c", REFUSALS]
            known = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
            done = subprocess.run(
                command, input=json.dumps(cases), capture_output=True, text=True, cwd=tmp_path, timeout=600,
                env={**known, **hub.environment(tmp_path / "home"), **environment},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        answers = ask(cases)
        nobody = ask({"nobody": {"hub_model_id": None}}, HF_TOKEN="")["nobody"]
        offline = ask({"offline": {"hub_model_id": None}}, HF_HUB_OFFLINE="1")["offline"]
        assert hub.repos["model", "team/run"].private
        assert "a/b" in hub.repos["model", "team/run"].branches
        assert {repo_id for _, repo_id in hub.repos} == {
            "user/out", "team/run", "maker/public", "user/public", "maker/private",
        }  # fmt: skip
    assert answers["own"] == answers["again"] == ["opened", "user/out"]
    assert answers["team"] == ["opened", "team/run"]
    expected = {
        "name": r"`hub_model_id` is 'user/what is this', which is no name for a repository .*; use `user/name`\.",
        "folder": r"`hub_model_id` is 'my run \(3\)', which is no name .*",
        "theirs": r"`push_to_hub` cannot write to 'maker/new' .*403 .*; choose a `hub_model_id` of your own .*",
        "theirs public": r"`push_to_hub` cannot write to 'maker/public' .*403 .*",
        "theirs private": r"`push_to_hub` cannot write to 'maker/private' .*403 .*",
        "public": r"`hub_private_repo` is True, but 'user/public' exists and is public; .*",
        "read token": r"`push_to_hub` cannot write to 'user/out' .*a token with the right to write\.",
        "wrong token": r"`push_to_hub` cannot write to 'user/out' .*log in again .*",
    }
    for name, pattern in expected.items():
        assert answers[name][0] == "refused", (name, answers[name])
        assert re.fullmatch(pattern, answers[name][1]), answers[name][1]
        assert "wrongwrong" not in answers[name][1]
    assert re.fullmatch(r"`push_to_hub` is set, but there is no Hub token; run `hf auth login`.*", nobody[1])
    assert re.fullmatch(r"`push_to_hub` is set, but so is HF_HUB_OFFLINE; .*", offline[1])


def test_the_command_line_refuses_with_one_sentence(tmp_path, capsys):
    # This process is offline, and no model is looked for before that is said.
    flags = [flag if flag != "shapes" else "no/such-model" for flag in TRAIN[:3]] + TRAIN[3:]
    assert main([*flags, "--output_dir", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "trl-progrpo train: error: `push_to_hub` is set, but so is HF_HUB_OFFLINE" in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["down", "cut", "revoked", "cut in an upload"])
def test_the_command_finishes_when_a_push_fails(fault, tmp_path):
    with HubServer() as hub:
        # What opens the repository passes.
        if fault == "down":
            hub.fail("POST .*/commit/", status=500)
        elif fault == "cut":
            hub.fail("POST .*/commit/", status=None)
        elif fault == "revoked":
            # Once the large files are there; their own requests carry no token.
            hub.revoke_at("POST .*/commit/")
        else:
            hub.fail("PUT /lfs", status=None, after=2)
        printed = train(hub, tmp_path, "--output_dir", "out", "--hub_strategy", "end", "--hub_model_id", "run")
        assert "The push to user/run failed" in printed
        assert printed.rindex("hf upload user/run out . --exclude 'checkpoint-*'") > printed.rindex(
            "Use it with stock"
        )
        assert TOKEN not in printed
        assert hub.messages("user/run") == []
        for name in (ADAPTER_FILE, "README.md", "before_after.png", "eval_results.json"):
            assert (tmp_path / "out" / name).stat().st_size > 100
        hub.faults.clear()
        hub.add_token(TOKEN, "user")
        command = shlex.split(re.search(r"^    (hf .*)$", printed, re.M)[1])
        run([Path(sys.executable).with_name("hf"), *command[1:]], hub, tmp_path / "home", tmp_path)
        files = hub.files("user/run")
        assert files[ADAPTER_FILE] == (tmp_path / "out" / ADAPTER_FILE).read_bytes()
        assert not [name for name in files if name.startswith("checkpoint")]


@pytest.mark.slow
def test_training_goes_on_when_a_save_cannot_be_pushed(tmp_path):
    with HubServer() as hub:
        hub.fail("POST .*/commit/", status=500, times=1)
        printed = train(hub, tmp_path, "--output_dir", "out", "--hub_model_id", "run")
        assert printed.count("The push to user/run failed") == 1
        assert hub.messages("user/run")[-1] == "End of training"
        assert hub.files("user/run")[ADAPTER_FILE] == (tmp_path / "out" / ADAPTER_FILE).read_bytes()


def test_the_server_refuses_bad_headers():
    good = "---\nlicense: mit\ntags: [a]\nwidget:\n- text: a\n  output: {url: a.png}\n---\ntext\n"
    assert card_errors(good) == []
    assert card_errors("no header") == []
    for old, new in (("mit", "nonsense"), ("[a]", "a"), ("mit", "other"), ("{url: a.png}", "a.png"), ("[a]", "[a")):
        assert card_errors(good.replace(old, new)), new
