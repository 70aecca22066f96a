# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Mistakes with learned rewards end in one sentence that says what to change."""

import json
import os
import re
import shutil

import clip_reference as ref
import pytest
import torch
from safetensors.torch import load_file, save_file

from trl_progrpo.rewards import Aesthetic, ClipScore, HPSv2, PickScore, SiglipScore


IMAGES = ref.pictures()[:1]


@pytest.fixture
def clip(tmp_path):
    """A complete folder, to be broken."""
    from transformers import CLIPModel

    torch.manual_seed(0)
    CLIPModel(ref.clip_config("quick_gelu")).save_pretrained(tmp_path / "clip")
    ref.save_processor(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.fixture
def hps(tmp_path):
    """Like [`clip`], for HPSv2."""
    folder = tmp_path / "hps"
    folder.mkdir()
    torch.save({"state_dict": ref.open_clip_weights()}, folder / "HPS_v2.1_compressed.pt")
    return folder


def refused(reward, match):
    with pytest.raises(ValueError, match=match) as error:
        reward(["a"], IMAGES)
    assert "\n" not in str(error.value)
    # A failure is not remembered as success.
    assert reward.network is None
    return str(error.value)


def change(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


class TestArguments:
    def test_precision(self):
        with pytest.raises(ValueError, match="`dtype` of reward `pickscore` is 'fp16'; use one of float32, bfloat16"):
            PickScore(dtype="fp16")

    @pytest.mark.parametrize("size", [0, -1, 2.5, "8"])
    def test_batch_size(self, size):
        with pytest.raises(ValueError, match=rf"`batch_size` of reward `siglip` is {re.escape(repr(size))}; use 1"):
            SiglipScore(batch_size=size)

    @pytest.mark.parametrize("device", ["cuda:99", "gpu", "cuda:-3"])
    def test_a_device_that_does_not_exist(self, clip, device):
        reward = ClipScore(clip, device=device)
        refused(
            reward,
            rf"`device` of reward `clip_score` is '{device}', which this machine does not offer .*leave it unset",
        )

    def test_lengths(self, clip):
        with pytest.raises(
            ValueError, match="reward `clip_score` got 1 prompts for 2 images; give one prompt per image"
        ):
            ClipScore(clip)(["a"], IMAGES * 2)

    def test_no_pil_images(self, clip):
        with pytest.raises(ValueError, match="an image is a Tensor; learned rewards score PIL images"):
            ClipScore(clip, device="cpu")(["a"], torch.zeros(1, 3, 32, 32))


class TestModels:
    def test_a_folder_that_is_not_there(self, tmp_path):
        missing = str(tmp_path / "nowhere")
        for reward in (ClipScore(missing), SiglipScore(missing), PickScore(missing, processor=missing)):
            message = refused(
                reward, rf"reward `{reward.__name__}` cannot load '{missing}' \(.+\); give a complete folder"
            )
            assert len(message) < 600

    def test_a_name_that_cannot_be_reached(self):
        refused(
            ClipScore("nobody/nothing"), r"reward `clip_score` cannot load 'nobody/nothing' \(.+\); give a complete"
        )

    def test_a_folder_without_weights(self, clip):
        os.remove(clip / "model.safetensors")
        refused(ClipScore(clip), rf"cannot load '{clip}' \(.*model.safetensors.*\); give a complete folder")

    def test_a_folder_without_a_tokenizer(self, clip):
        for file in ("tokenizer.json", "tokenizer_config.json"):
            os.remove(clip / file)
        refused(
            ClipScore(clip),
            rf"the tokenizer of '{clip}' knows \d tokens and the model 55; give a folder .*tokenizer.json",
        )

    def test_a_folder_without_image_settings(self, clip):
        os.remove(clip / "preprocessor_config.json")
        refused(ClipScore(clip), rf"cannot load '{clip}' \(.+\); give a complete folder")

    def test_a_broken_file(self, clip):
        (clip / "model.safetensors").write_bytes(b"no weights at all")
        refused(ClipScore(clip), rf"cannot load '{clip}' \(.+\); give a complete folder")

    def test_weights_that_are_missing(self, clip):
        change(clip, lambda weights: weights.pop("visual_projection.weight"))
        refused(
            ClipScore(clip), rf"checkpoint '{clip}' lacks 1 weights, such as 'visual_projection.weight'; it is damaged"
        )

    def test_weights_of_another_size(self, clip):
        config = json.loads((clip / "config.json").read_text())
        config["vision_config"]["patch_size"] = 16
        (clip / "config.json").write_text(json.dumps(config))
        refused(ClipScore(clip), rf"checkpoint '{clip}' has another shape for 2 weights, such as 'vision_model")

    def test_weights_of_a_deeper_model(self, clip):
        config = json.loads((clip / "config.json").read_text())
        config["text_config"]["num_hidden_layers"] = 1
        (clip / "config.json").write_text(json.dumps(config))
        refused(ClipScore(clip), rf"checkpoint '{clip}' has unknown layers in 16 weights, such as 'text_model.encoder")

    def test_another_architecture(self, clip):
        refused(SiglipScore(clip), rf"reward `siglip`.*'{clip}'")


class TestHeadOfTheAestheticPredictor:
    def test_no_file(self, clip, tmp_path):
        refused(
            Aesthetic(clip, head=str(tmp_path)), rf"reward `aesthetic` cannot load '{tmp_path}/aesthetic-model.pth' \("
        )

    def test_no_repository(self, clip):
        refused(Aesthetic(clip, head="no/head"), r"reward `aesthetic` cannot load 'no/head/aesthetic-model.pth' \(")

    @pytest.mark.parametrize(
        ("weights", "what"),
        [
            ({}, "lacks 10 weights, such as '0.bias'"),
            ({"layers.0.weight": torch.zeros(1024, 768)}, "lacks 9 weights, such as '0.bias'"),
        ],
    )
    def test_missing_weights(self, clip, tmp_path, weights, what):
        torch.save(weights, tmp_path / "head.pth")
        reward = Aesthetic(clip, head=str(tmp_path), head_file="head.pth")
        refused(
            reward, rf"reward `aesthetic`: the checkpoint '{tmp_path}/head.pth' {what}; it is damaged or belongs to"
        )

    def test_a_head_for_a_larger_clip(self, clip, tmp_path):
        from trl_progrpo.rewards.aesthetic import aesthetic_head

        weights = {f"layers.{name}": weight for name, weight in aesthetic_head(768).state_dict().items()}
        torch.save(weights, tmp_path / "head.pth")
        reward = Aesthetic(clip, head=str(tmp_path), head_file="head.pth")
        refused(reward, rf"the checkpoint '{tmp_path}/head.pth' has another shape for 1 weights, such as '0.weight'")

    def test_weights_without_names(self, clip, tmp_path):
        torch.save(torch.zeros(3), tmp_path / "head.pth")
        refused(
            Aesthetic(clip, head=str(tmp_path), head_file="head.pth"),
            r"head.pth' \(it holds a Tensor and no named weights",
        )


class Intruder:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


class TestCheckpointOfHPS:
    def test_no_file(self, clip, tmp_path):
        reward = HPSv2(str(tmp_path), processor=str(clip))
        refused(reward, rf"reward `hpsv2` cannot load '{tmp_path}/HPS_v2.1_compressed.pt' \(")

    @pytest.mark.parametrize("names", [["visual.proj"], ["transformer.resblocks.1.attn.in_proj_weight"]])
    def test_missing_weights(self, clip, hps, names):
        weights = ref.open_clip_weights()
        for name in names:
            del weights[name]
        torch.save({"state_dict": weights}, hps / "HPS_v2.1_compressed.pt")
        refused(
            HPSv2(str(hps), processor=str(clip)),
            rf"the checkpoint '{hps}/HPS_v2.1_compressed.pt' lacks \d weights, such as '\w+",
        )

    def test_a_file_cut_short(self, clip, hps):
        path = hps / "HPS_v2.1_compressed.pt"
        path.write_bytes(path.read_bytes()[:5000])
        refused(HPSv2(str(hps), processor=str(clip)), rf"reward `hpsv2` cannot load '{path}' \(")
        path.write_bytes(b"")
        refused(HPSv2(str(hps), processor=str(clip)), rf"reward `hpsv2` cannot load '{path}' \(")

    def test_code_in_a_file_is_not_run(self, clip, hps, tmp_path):
        path = hps / "HPS_v2.1_compressed.pt"
        torch.save({"state_dict": Intruder(str(tmp_path / "intruder"))}, path)
        refused(
            HPSv2(str(hps), processor=str(clip)), rf"reward `hpsv2` cannot load '{path}' \(Weights only load failed"
        )
        assert not (tmp_path / "intruder").exists()
        # The test can fail: pickle alone would have run it.
        torch.load(path, weights_only=False)
        assert (tmp_path / "intruder").exists()

    def test_it_loads_after_the_mistake_is_mended(self, clip, hps):
        path = hps / "HPS_v2.1_compressed.pt"
        shutil.move(path, hps / "elsewhere.pt")
        reward = HPSv2(str(hps), processor=str(clip), device="cpu")
        refused(reward, "cannot load")
        shutil.move(hps / "elsewhere.pt", path)
        assert len(reward(["a"], IMAGES)) == 1
