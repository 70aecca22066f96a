import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from trl_progrpo.metrics import rank_correlation
from trl_progrpo.tiny import (
    load_pipeline,
    load_preview_decoder,
    load_shapes,
    model_path,
    preview_decoder_path,
    verify,
)


sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

import build_tiny_model as build


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.fixture(scope="module")
def preview():
    return load_preview_decoder()


def test_size_and_format():
    files = [path for path in model_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.suffix == ".safetensors") <= 8_000_000
    assert not [path for path in files if path.suffix not in (".safetensors", ".json", ".txt")]
    assert preview_decoder_path().parent == model_path()


def test_stock_pipeline_call(pipe):
    prompts = load_shapes("test")["prompt"][:2]
    for kwargs in (
        {"guidance_scale": 1.0, "max_sequence_length": 0},
        {"guidance_scale": 2.0},
        {"guidance_scale": 1.0},
    ):
        images = pipe(prompts, height=32, width=32, num_inference_steps=3, **kwargs).images
        assert [image.size for image in images] == [(32, 32)] * 2


def test_default_size_is_the_trained_one(pipe):
    assert pipe.transformer.config.sample_size * pipe.vae_scale_factor == 32


def test_weights_are_float32(pipe):
    for module in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_every_word_is_one_token(pipe):
    for prompt in load_shapes("test")["prompt"]:
        for tokenizer in (pipe.tokenizer, pipe.tokenizer_2):
            ids = tokenizer(prompt).input_ids
            assert len(ids) == len(prompt.split()) + 2 <= tokenizer.model_max_length
            assert tokenizer.decode(ids, skip_special_tokens=True).strip() == prompt


def test_training_encodes_as_the_stock_pipeline_does(pipe):
    prompts = ["two blue squares", "a red circle above a white triangle", ""]
    sequence, _, pooled, _ = pipe.encode_prompt(
        prompts, prompts, prompts, do_classifier_free_guidance=False, max_sequence_length=0
    )
    ours = build.encode_ids(pipe, build.token_ids(pipe.tokenizer, prompts))
    torch.testing.assert_close(ours[0], sequence)
    torch.testing.assert_close(ours[1], pooled)


def test_both_encoders_are_given_the_ids_they_were_trained_on(pipe):
    captions = ["a red circle above a white triangle", "four yellow squares"]
    assert pipe.tokenizer(captions).input_ids == pipe.tokenizer_2(captions).input_ids
    assert build.make_tokenizer().get_vocab() == build.make_tokenizer().get_vocab()


def test_last_of_ten_steps_counts(pipe):
    pipe.scheduler.set_timesteps(10)
    torch.testing.assert_close(pipe.scheduler.sigmas, torch.linspace(1, 0, 11))


def test_sampling_is_reproducible(pipe):
    a, b = (build.sample_images(pipe, ["a green circle"] * 2, num_inference_steps=3, seed=5) for _ in range(2))
    np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def reconstruction(pipe):
    pool = build.build_pool(512, seed=77)
    latents = build.scale_latents(pipe.vae, build.encode_images(pipe.vae, pool.images))
    return pool, latents


def test_autoencoder_keeps_scenes_right(pipe, reconstruction):
    pool, latents = reconstruction
    strict = verify(build.to_verifier_range(build.decode_latents(pipe.vae, latents)), pool.captions).strict
    assert strict.mean() >= 0.95
    assert strict[np.array(pool.kinds) == "count"].mean() >= 0.93


def test_latents_are_standardised(reconstruction):
    _, latents = reconstruction
    assert abs(latents.mean()) < 0.05
    assert abs(latents.std() - 1) < 0.05


def test_base_model_leaves_headroom(pipe):
    captions = build.evaluation_captions("train", 192)
    verdict = verify(build.sample_images(pipe, captions, seed=11), captions)
    assert 0.15 <= verdict.strict.mean() <= 0.60
    assert 0.42 <= verdict.graded.mean() <= 0.75


def test_preview_agrees_with_the_full_decode(pipe, preview):
    captions = build.evaluation_captions("test", 160)
    latents = build.sample_images(pipe, captions, seed=12, output_type="latent")
    with torch.no_grad():
        quick = preview.decode(latents).sample
    assert quick.shape == (160, 3, 32, 32)
    assert preview.config.scaling_factor == 1.0
    full = verify(build.to_verifier_range(build.decode_latents(pipe.vae, latents)), captions).graded
    seen = verify(build.to_verifier_range(quick), captions).graded
    assert rank_correlation(torch.from_numpy(seen), torch.from_numpy(full)) >= 0.8


def test_build_from_nothing(tmp_path, capsys):
    sizes = {
        "pool_size": 96,
        "vae_steps": 2,
        "flow_steps": 2,
        "preview_steps": 2,
        "flow_batch_size": 8,
        "eval_size": 16,
    }
    argv = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    build.main(["--output_dir", str(tmp_path), "--threads", str(torch.get_num_threads()), *argv])
    assert "safetensors" in capsys.readouterr().out
    image = load_pipeline(tmp_path)("two red squares", height=32, width=32, num_inference_steps=2).images[0]
    assert image.size == (32, 32)
    assert load_preview_decoder(tmp_path / "preview_decoder").decode(torch.zeros(1, 4, 8, 8)).sample.shape[1] == 3


def test_training_is_reproducible():
    pool = build.build_pool(32, seed=0)
    first, second = (build.train_vae(pool, steps=2, batch_size=4, lr=1e-3, seed=0) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b)
