# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Learned rewards from a Hub on loopback, in a fresh process, by the code that reads the real one."""

import json
import os
import subprocess
import sys

import clip_reference as ref
import pytest
import torch
from hub_server import TOKEN, HubServer
from torch.nn.functional import gelu

from trl_progrpo.rewards import HPSv2, PickScore
from trl_progrpo.rewards.learned_loading import REVISIONS


SCRIPT = """
import json, sys
sys.path.insert(0, {tests!r})
import clip_reference as ref
from trl_progrpo.rewards import REWARDS, HPSv2, PickScore, RewardRunner

found = {{}}
hps = HPSv2("user/hps", processor="team/processor", device="cpu")
old = HPSv2("user/hps", processor="team/processor", revision={first!r}, device="cpu")
pick = PickScore("user/pick", processor="team/processor", device="cpu")
for name, reward in {{"hps": hps, "old": old, "pick": pick}}.items():
    found[name] = reward(ref.PROMPTS, ref.pictures())
for name in ("aesthetic", "clip_score", "hpsv2", "pickscore", "siglip"):
    try:
        RewardRunner(name).functions[0].load()
    except ValueError as error:
        found[name] = str(error)
try:
    HPSv2("else/gated", processor="team/processor", device="cpu").load()
except ValueError as error:
    found["gated"] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    from transformers import CLIPModel

    root = tmp_path_factory.mktemp("hub")
    for name in ("processor", "pick", "hps", "old"):
        (root / name).mkdir()
    ref.save_processor(root / "processor")
    ref.clip_config("gelu").save_pretrained(root / "processor")
    torch.manual_seed(0)
    CLIPModel(ref.clip_config("gelu")).save_pretrained(root / "pick")
    for seed, name in enumerate(("old", "hps")):
        torch.save({"state_dict": ref.open_clip_weights(seed)}, root / name / "HPS_v2.1_compressed.pt")
    return root


@pytest.fixture(scope="module")
def hub_run(folders, tmp_path_factory):
    """What a fresh process finds on the Hub, and the requests it made."""
    with HubServer() as hub:
        hub.add_folder("user/pick", folders / "pick")
        hub.add_folder("else/gated", folders / "hps", gated=True)
        hub.add_folder("team/processor", folders / "processor", private=True)
        repo = hub.add_folder("user/hps", folders / "old")
        first = repo.at("main").oid
        newer = (folders / "hps" / "HPS_v2.1_compressed.pt").read_bytes()
        file = repo.at("main").files["HPS_v2.1_compressed.pt"]
        repo.commit("main", "newer", {**repo.at("main").files, "HPS_v2.1_compressed.pt": type(file)(newer, file.lfs)})
        script = SCRIPT.format(tests=os.path.dirname(__file__), first=first)
        environment = {**os.environ, **hub.environment(tmp_path_factory.mktemp("home"))}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), [request for request, _ in hub.requests], done.stderr


def test_rewards_from_the_hub_are_those_of_the_folders(hub_run, folders):
    found, _, _ = hub_run
    processor = str(folders / "processor")
    for name, cls in {"hps": HPSv2, "old": HPSv2, "pick": PickScore}.items():
        local = cls(str(folders / name), processor=processor, device="cpu")
        assert found[name] == pytest.approx(local(ref.PROMPTS, ref.pictures()), abs=1e-5)


def test_a_revision_is_that_commit(hub_run):
    found, _, _ = hub_run
    for seed, name in enumerate(("old", "hps")):
        w = ref.open_clip_weights(seed)
        expected = [
            float(ref.open_clip_image(w, ref.padded(image), gelu) @ ref.open_clip_text(w, ref.tokens(prompt), gelu))
            for image, prompt in zip(ref.pictures(), ref.PROMPTS)
        ]
        assert found[name] == pytest.approx(expected, abs=1e-4)
    assert found["old"] != found["hps"]


def test_the_built_in_rewards_ask_for_the_pinned_commits(hub_run):
    """This Hub does not have them; what they ask for is what matters."""
    found, requests, _ = hub_run
    first = {
        "aesthetic": "trl-lib/ddpo-aesthetic-predictor",
        "clip_score": "openai/clip-vit-large-patch14",
        "hpsv2": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "pickscore": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "siglip": "google/siglip2-so400m-patch14-384",
    }
    for name, repository in first.items():
        assert found[name].startswith(f"reward `{name}` cannot load '{repository}"), found[name]
        assert "\n" not in found[name]
    assert "(Repository Not Found for url" in found["aesthetic"]
    asked = [request for request in requests if any(repository in request for repository in REVISIONS)]
    assert asked
    for request in asked:
        repository = next(repository for repository in REVISIONS if repository in request)
        assert REVISIONS[repository] in request, request


def test_a_repository_that_is_not_open_to_everyone(hub_run):
    message = hub_run[0]["gated"]
    assert message.startswith("reward `hpsv2` cannot load 'else/gated/HPS_v2.1_compressed.pt' (Cannot access gated")
    assert message.endswith("give a complete folder, or the name of a Hub repository that this machine can reach.")
    assert "\n" not in message


def test_the_token_is_not_told(hub_run):
    found, requests, stderr = hub_run
    assert TOKEN not in json.dumps(found) + stderr + " ".join(requests)


def test_pinned_commits_are_commits():
    for repository, commit in REVISIONS.items():
        assert repository.count("/") == 1
        assert len(commit) == 40
        int(commit, 16)
