# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from pipelines_qwen import DYNAMIC_SHIFTING, PROMPTS, difference, draw_noise, make_z_image, sample

from trl_progrpo.families import ZImageFamily, family_class
from trl_progrpo.policies import DDIM
from trl_progrpo.testing import check_family
from trl_progrpo.types import Conditioning


SIZE = {"height": 16, "width": 24, "max_sequence_length": 32}


@pytest.fixture(scope="module")
def pipeline():
    return make_z_image()


def test_contract():
    report = check_family(
        make_z_image,
        heights_widths=[(16, 24), (16, 16)],
        num_inference_steps=(2, 3),
        prompts=PROMPTS,
        max_sequence_length=32,
    )
    assert report.family == "ZImageFamily"
    assert report.latents_difference < 1e-4


def test_family_is_found_by_pipeline_class(pipeline):
    assert family_class(pipeline) is ZImageFamily


@pytest.mark.parametrize("guidance_scale, stock_scale", [(1.0, 0.0), (4.0, 4.0)])
def test_guidance_above_one_is_the_pipelines_number(pipeline, guidance_scale, stock_scale):
    family = ZImageFamily(pipeline, guidance_scale=guidance_scale, **SIZE)
    assert family.pipeline_call_kwargs == {**SIZE, "guidance_scale": stock_scale}
    assert (family.encode_prompts(PROMPTS).negative is None) == (guidance_scale == 1)


def test_negative_prompts_are_the_pipelines(pipeline):
    family = ZImageFamily(pipeline, guidance_scale=4.0, **SIZE)
    noise, negative = draw_noise(family), ("two blue squares above a red circle", "red")
    call = {**family.pipeline_call_kwargs, "negative_prompt": list(negative), "num_inference_steps": 2}
    expected = pipeline(list(PROMPTS), latents=noise, output_type="latent", **call).images
    latents = sample(family, noise, negative_prompts=negative)
    assert difference(latents, expected) < 1e-4
    assert difference(latents, sample(family, noise)) > 1e-3


def test_lists_of_prompts_stay_as_they_are(pipeline):
    prompts, negative = list(PROMPTS), ["", "red"]
    ZImageFamily(pipeline, guidance_scale=4.0, **SIZE).encode_prompts(prompts, negative)
    assert (prompts, negative) == (list(PROMPTS), ["", "red"])


def test_dynamic_shifting_is_that_of_the_call():
    pipeline = make_z_image(**DYNAMIC_SHIFTING)
    family = ZImageFamily(pipeline, **SIZE)
    pipeline(list(PROMPTS), num_inference_steps=3, output_type="latent", **family.pipeline_call_kwargs)
    expected = pipeline.scheduler.sigmas.double()
    assert torch.equal(family.make_schedule(3).sigmas, expected)
    assert not torch.allclose(ZImageFamily(pipeline, height=64, width=64).make_schedule(3).sigmas, expected)


def test_padding_of_embeddings_is_not_read(pipeline):
    family = ZImageFamily(pipeline, **SIZE)
    conditioning, noise = family.encode_prompts(PROMPTS), draw_noise(family)
    embeds, lengths = conditioning.positive["prompt_embeds"], conditioning.positive["prompt_lengths"]
    assert lengths.tolist() == [11, 15]
    padding = torch.arange(embeds.shape[1]) >= lengths[:, None]
    other = Conditioning({"prompt_embeds": embeds + 1e3 * padding[..., None], "prompt_lengths": lengths})
    with torch.no_grad():
        outputs = [family.predict(family.denoiser, noise, torch.tensor(500.0), told) for told in (conditioning, other)]
    assert torch.equal(*outputs)


def test_prompts_in_one_batch_are_as_alone(pipeline):
    family = ZImageFamily(pipeline, guidance_scale=4.0, **SIZE)
    prompts = (PROMPTS[0], " ".join(PROMPTS) * 3)
    family.max_sequence_length = 64
    # Beyond 32 tokens the transformer pads and masks.
    assert family.encode_prompts(prompts).positive["prompt_lengths"].tolist()[1] > 32
    noise = draw_noise(family)
    together = sample(family, noise, prompts)
    for row, prompt in enumerate(prompts):
        assert difference(together[row : row + 1], sample(family, noise[row : row + 1], [prompt])) < 1e-4


def test_half_precision_transformer_takes_prompts_of_a_full_precision_encoder():
    pipeline = make_z_image()
    pipeline.transformer.to(torch.bfloat16)
    family = ZImageFamily(pipeline, guidance_scale=4.0, **SIZE)
    assert sample(family, draw_noise(family)).isfinite().all()


def test_wrong_policy_is_refused(pipeline):
    family = ZImageFamily(pipeline, **SIZE)
    with pytest.raises(ValueError, match="DDIM"):
        DDIM().step(draw_noise(family), draw_noise(family), family.make_schedule(2), 0)
