# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Learned rewards against CLIP written a second time, on tiny random checkpoints that are saved to disk."""

import threading

import clip_reference as ref
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import gelu

from trl_progrpo.rewards import (
    REWARDS,
    Aesthetic,
    ClipScore,
    HPSv2,
    PickScore,
    RewardRunner,
    SiglipScore,
    reward_name,
)
from trl_progrpo.testing import check_reward_func


IMAGES = ref.pictures()
NAMES = ["aesthetic", "clip_score", "hpsv2", "pickscore", "siglip"]


def randomise(model):
    """Weights so large that different inputs have different outputs."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data.normal_(mean, 0.3, generator=generator)


def save_clip(folder, activation):
    from transformers import CLIPModel

    model = CLIPModel(ref.clip_config(activation))
    randomise(model)
    model.logit_scale.data.fill_(2.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_l(tmp_path_factory):
    """A folder like that of OpenAI's CLIP: model, tokenizer and image settings."""
    folder = save_clip(tmp_path_factory.mktemp("clip_l"), "quick_gelu")
    ref.save_processor(folder)
    return folder


@pytest.fixture(scope="session")
def clip_h(tmp_path_factory):
    """A folder with nothing but a model, as that of PickScore."""
    return save_clip(tmp_path_factory.mktemp("clip_h"), "gelu")


@pytest.fixture(scope="session")
def laion(tmp_path_factory):
    """A folder with configuration, tokenizer and image settings; texts are filled up with another token than the end."""
    folder = tmp_path_factory.mktemp("laion")
    # 2 is what the configurations of that time say; the end token is then the one with the largest id.
    ref.clip_config("gelu", eos_token_id=2).save_pretrained(folder)
    ref.save_processor(folder, pad_token="!")
    return folder


@pytest.fixture(scope="session")
def head(tmp_path_factory):
    """A folder with the head of the aesthetic predictor, in the names of its checkpoint."""
    folder = tmp_path_factory.mktemp("head")
    generator = torch.Generator().manual_seed(1)
    weights, into = {}, ref.DIM
    for layer, width in {0: 1024, 2: 128, 4: 64, 6: 16, 7: 1}.items():
        weights[f"layers.{layer}.weight"] = torch.randn(width, into, generator=generator) * 2 / into**0.5
        weights[f"layers.{layer}.bias"] = torch.randn(width, generator=generator)
        into = width
    torch.save(weights, folder / "aesthetic-model.pth")
    return folder


@pytest.fixture(scope="session")
def hps(tmp_path_factory):
    """A folder with an open_clip checkpoint as it is saved in training, in half precision."""
    folder = tmp_path_factory.mktemp("hps")
    weights = {name: weight.half() for name, weight in ref.open_clip_weights().items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": weights}, folder / "HPS_v2.1_compressed.pt")
    return folder


@pytest.fixture(scope="session")
def siglip(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessor, SiglipModel

    folder = tmp_path_factory.mktemp("siglip")
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {
        "vocab_size": 30,
        "max_position_embeddings": 12,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    config = SiglipConfig(text_config={**shared, **text}, vision_config={**shared, "image_size": 32, "patch_size": 8})
    model = SiglipModel(config)
    randomise(model)
    model.logit_scale.data.fill_(2.5)
    model.logit_bias.data.fill_(-2.0)
    model.save_pretrained(folder)
    letters = {token: index for index, token in enumerate(["<pad>", "<eos>", "<unk>", *ref.LETTERS, " "])}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=12
    ).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}, resample=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rewards(clip_l, clip_h, laion, head, hps, siglip):
    """All learned rewards on tiny models, on the CPU."""
    return {
        "aesthetic": Aesthetic(clip_l, head=head, device="cpu", batch_size=3),
        "clip_score": ClipScore(clip_l, device="cpu", batch_size=3),
        "hpsv2": HPSv2(hps, processor=laion, device="cpu", batch_size=3),
        "pickscore": PickScore(clip_h, processor=laion, device="cpu", batch_size=3),
        "siglip": SiglipScore(siglip, device="cpu", batch_size=3),
    }


def assert_equal(scores, expected, spread):
    """Equal to 1e-4, and so different from each other that this means something."""
    expected = torch.stack(expected).flatten()
    assert scores == pytest.approx(expected.tolist(), abs=1e-4)
    assert expected.std() > spread


class TestEqualToAnIndependentPath:
    def test_clip_score(self, rewards, clip_l):
        w = load_file(clip_l / "model.safetensors")
        cosines = [
            ref.transformers_image(w, ref.cropped(image), ref.quick_gelu)
            @ ref.transformers_text(w, ref.tokens(prompt), ref.quick_gelu)
            for image, prompt in zip(IMAGES, ref.PROMPTS)
        ]
        assert min(cosines) < 0 < max(cosines)
        assert_equal(rewards["clip_score"](ref.PROMPTS, IMAGES), [100 * max(c, 0 * c) for c in cosines], spread=1)

    def test_pickscore(self, rewards, clip_h):
        w = load_file(clip_h / "model.safetensors")
        expected = [
            torch.tensor(2.5).exp()
            * ref.transformers_image(w, ref.cropped(image), gelu)
            @ ref.transformers_text(w, ref.tokens(prompt), gelu)
            for image, prompt in zip(IMAGES, ref.PROMPTS)
        ]
        assert_equal(rewards["pickscore"](ref.PROMPTS, IMAGES), expected, spread=0.5)

    def test_aesthetic(self, rewards, clip_l, head):
        w = load_file(clip_l / "model.safetensors")
        layers = torch.load(head / "aesthetic-model.pth", weights_only=True)
        expected = []
        for image in IMAGES:
            x = ref.transformers_image(w, ref.cropped(image), ref.quick_gelu)
            for layer in (0, 2, 4, 6, 7):
                x = layers[f"layers.{layer}.weight"] @ x + layers[f"layers.{layer}.bias"]
            expected.append(x)
        assert_equal(rewards["aesthetic"](ref.PROMPTS, IMAGES), expected, spread=0.1)

    def test_hpsv2(self, rewards):
        w = {name: weight.half().float() for name, weight in ref.open_clip_weights().items()}
        expected = [
            ref.open_clip_image(w, ref.padded(image)) @ ref.open_clip_text(w, ref.tokens(prompt))
            for image, prompt in zip(IMAGES, ref.PROMPTS)
        ]
        assert_equal(rewards["hpsv2"](ref.PROMPTS, IMAGES), expected, spread=0.05)
        assert rewards["hpsv2"].network.dtype == torch.float32

    def test_hpsv2_by_open_clip_itself(self, hps, laion):
        """Where open_clip can be imported, which needs torchvision."""
        open_clip = pytest.importorskip("open_clip", exc_type=ImportError)
        towers = {"layers": ref.LAYERS, "patch_size": ref.PATCH, "head_width": ref.VISION // ref.HEADS}
        vision = {"image_size": ref.SIDE, "width": ref.VISION, **towers}
        text = {"context_length": ref.CONTEXT, "vocab_size": len(ref.VOCAB), "width": ref.TEXT}
        model = open_clip.CLIP(ref.DIM, vision, {**text, "heads": ref.HEADS, "layers": ref.LAYERS}).eval()
        model.load_state_dict(torch.load(hps / "HPS_v2.1_compressed.pt", weights_only=True)["state_dict"])
        transform = open_clip.image_transform(ref.SIDE, is_train=False, resize_mode="longest")
        expected = []
        for image, prompt in zip(IMAGES, ref.PROMPTS):
            ids = torch.zeros(1, ref.CONTEXT, dtype=torch.long)
            ids[0, : len(ref.tokens(prompt))] = ref.tokens(prompt)
            with torch.no_grad():
                image_features = model.encode_image(transform(image)[None], normalize=True)
                expected.append((image_features * model.encode_text(ids, normalize=True)).sum())
        assert_equal(HPSv2(hps, processor=laion, device="cpu")(ref.PROMPTS, IMAGES), expected, spread=0.05)

    def test_siglip(self, rewards, siglip):
        """Transformers' own logit, one pair at a time."""
        from transformers import SiglipModel

        model = SiglipModel.from_pretrained(siglip, dtype=torch.float32).eval()
        expected = []
        for image, prompt in zip(IMAGES, ref.PROMPTS):
            pixels = (
                torch.tensor(bytearray(image.resize((32, 32), 2).tobytes())).view(1, 32, 32, 3).permute(0, 3, 1, 2)
            )
            ids = [1 + 2 + ref.LETTERS.index(letter) if letter != " " else 29 for letter in prompt[:12]]
            ids = torch.tensor([ids + [0] * (12 - len(ids))])
            with torch.no_grad():
                logits = model(input_ids=ids, pixel_values=pixels / 127.5 - 1).logits_per_image
            expected.append(logits[0, 0])
        assert_equal(rewards["siglip"](ref.PROMPTS, IMAGES), expected, spread=0.05)
        assert rewards["siglip"]([prompt.upper() for prompt in ref.PROMPTS], IMAGES) == pytest.approx(
            [float(value) for value in expected], abs=1e-4
        )


class TestWhatAllOfThemKeep:
    @pytest.mark.parametrize("name", NAMES)
    def test_the_contract_of_a_reward(self, rewards, name):
        report = check_reward_func(rewards[name], image_size=48)
        assert reward_name(rewards[name]) == name
        assert report is not None

    @pytest.mark.parametrize("name", NAMES)
    def test_pictures_of_other_modes(self, rewards, name):
        opaque, grey = IMAGES[0].copy(), IMAGES[1].convert("L")
        opaque.putalpha(255)
        clear = IMAGES[2].copy()
        clear.putalpha(0)
        palette = IMAGES[3].quantize(8)
        same = [IMAGES[0], grey.convert("RGB"), IMAGES[2].point(lambda value: 255), palette.convert("RGB")]
        scores = rewards[name](ref.PROMPTS, [opaque, grey, clear, palette])
        assert scores == rewards[name](ref.PROMPTS, same)

    def test_each_prompt_is_encoded_once_and_images_in_batches(self, rewards):
        reward = rewards["pickscore"]
        texts, pixels = [], []
        handles = [
            reward.network.text_model.register_forward_hook(
                lambda module, args, kwargs, out: texts.append(len(kwargs["input_ids"])), with_kwargs=True
            ),
            reward.network.vision_model.register_forward_hook(
                lambda module, args, kwargs, out: pixels.append(len(kwargs["pixel_values"])), with_kwargs=True
            ),
        ]
        try:
            scores = reward(["a red circle"] * 5 + ["ox"] * 2, [*IMAGES, *IMAGES[:3]])
        finally:
            for handle in handles:
                handle.remove()
        assert (texts, pixels) == ([2], [3, 3, 1])
        assert len(scores) == 7

    def test_autocast_does_not_reach_them(self, rewards):
        expected = rewards["hpsv2"](ref.PROMPTS, IMAGES)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert rewards["hpsv2"](ref.PROMPTS, IMAGES) == expected

    def test_half_precision(self, rewards, hps, laion):
        half = HPSv2(hps, processor=laion, device="cpu", dtype="bfloat16")
        scores = half(ref.PROMPTS, IMAGES)
        assert half.network.visual_projection.weight.dtype == torch.bfloat16
        assert scores != rewards["hpsv2"](ref.PROMPTS, IMAGES)
        assert scores == pytest.approx(rewards["hpsv2"](ref.PROMPTS, IMAGES), abs=0.05)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_the_scale_of_logits_is_not_rounded(self, clip_h, laion, siglip, dtype):
        for make in (
            lambda **kwargs: PickScore(clip_h, processor=laion, device="cpu", **kwargs),
            lambda **kwargs: SiglipScore(siglip, device="cpu", **kwargs),
        ):
            whole, half = make().load().network, make(dtype=dtype)
            half(ref.PROMPTS, IMAGES)
            for name, value in half.network.named_parameters():
                if name.startswith("logit_"):
                    assert torch.equal(value, whole.get_parameter(name))
                else:
                    assert value.dtype == half.dtype

    def test_nothing_is_trained(self, rewards):
        assert not any(p.requires_grad for p in rewards["aesthetic"].load().network.parameters())
        assert not rewards["aesthetic"].network.training

    def test_threads_share_one_model(self, clip_h, laion):
        reward = PickScore(clip_h, processor=laion, device="cpu")
        prompts = [f"{prompt} {letter}" for letter in "abcdefgh" for prompt in ("a", "long prompt")]
        expected = [PickScore(clip_h, processor=laion, device="cpu")([p], IMAGES[:1])[0] for p in prompts]
        networks, scores = [], {}

        def score(index):
            scores[index] = reward([prompts[index]], IMAGES[:1])[0]
            networks.append(id(reward.network))

        threads = [threading.Thread(target=score, args=(index,)) for index in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(networks)) == 1
        assert [scores[index] for index in range(len(prompts))] == pytest.approx(expected, abs=1e-5)

    def test_no_images(self, clip_l):
        reward = ClipScore(clip_l)
        assert reward([], []) == []
        assert reward.network is None


class TestByName:
    def test_a_name_loads_nothing(self):
        for name in NAMES:
            reward = REWARDS.get(name)
            assert reward.network is None
            assert reward_name(reward) == name
        runner = RewardRunner(NAMES)
        assert runner.names == NAMES

    def test_in_the_runner(self, rewards):
        tensor = torch.rand(4, 3, 40, 24, generator=torch.Generator().manual_seed(0))
        scores = RewardRunner([rewards["hpsv2"], rewards["aesthetic"]])(ref.PROMPTS, tensor, {"seed": [1, 2, 3, 4]})
        assert scores.shape == (4, 2)
        assert scores.isfinite().all()
