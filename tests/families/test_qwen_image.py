# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from diffusers import AutoencoderTiny
from pipelines_qwen import PROMPTS, difference, draw_noise, make_qwen_image, sample

from trl_progrpo.families import QwenImageFamily, family_class
from trl_progrpo.policies import DDIM
from trl_progrpo.testing import check_family


SIZE = {"height": 16, "width": 24}


@pytest.fixture(scope="module")
def pipeline():
    return make_qwen_image()


def test_contract():
    report = check_family(
        make_qwen_image, heights_widths=[(16, 24), (16, 16)], num_inference_steps=(2, 3), prompts=PROMPTS
    )
    assert report.family == "QwenImageFamily"
    assert report.latents_difference < 1e-4


def test_family_is_found_by_pipeline_class(pipeline):
    assert family_class(pipeline) is QwenImageFamily


def test_template_of_tiny_tokenizer_is_as_long_as_the_real_one(pipeline):
    template = pipeline.prompt_template_encode
    prefix = pipeline.tokenizer(template[: template.index("{}")]).input_ids
    assert len(prefix) == pipeline.prompt_template_encode_start_idx
    assert 0 not in prefix


def test_call_kwargs_ask_for_true_guidance(pipeline):
    plain, guided = (QwenImageFamily(pipeline, guidance_scale=scale, **SIZE) for scale in (1.0, 4.0))
    assert plain.pipeline_call_kwargs == {**SIZE, "true_cfg_scale": 1.0, "max_sequence_length": 512}
    assert guided.pipeline_call_kwargs == {
        **plain.pipeline_call_kwargs,
        "true_cfg_scale": 4.0,
        "negative_prompt": " ",
    }
    assert (plain.nfe_per_row, guided.nfe_per_row) == (1, 2)


def test_negative_prompts_are_the_pipelines(pipeline):
    family = QwenImageFamily(pipeline, guidance_scale=4.0, **SIZE)
    noise, negative = draw_noise(family), ["two blue squares above a red circle", "red"]
    call = {**family.pipeline_call_kwargs, "negative_prompt": negative}
    expected = pipeline(list(PROMPTS), latents=noise, num_inference_steps=2, output_type="latent", **call).images
    latents = sample(family, noise, negative_prompts=negative)
    assert difference(latents, expected) < 1e-4
    assert difference(latents, sample(family, noise)) > 1e-3


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_padding_leaves_a_prompt_as_it_is_alone(pipeline, guidance_scale):
    family = QwenImageFamily(pipeline, guidance_scale=guidance_scale, **SIZE)
    noise = draw_noise(family)
    together = sample(family, noise)
    for row, prompt in enumerate(PROMPTS):
        assert difference(together[row : row + 1], sample(family, noise[row : row + 1], [prompt])) < 1e-4


def test_mask_only_where_lengths_differ(pipeline):
    family = QwenImageFamily(pipeline, **SIZE)
    assert set(family.encode_prompts(PROMPTS[:1] * 2).positive) == {"prompt_embeds"}
    mask = family.encode_prompts(PROMPTS).positive["prompt_embeds_mask"]
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [8, 12]
    guided = QwenImageFamily(pipeline, guidance_scale=4.0, **SIZE).encode_prompts(PROMPTS[:1])
    assert guided.positive["prompt_embeds_mask"].sum() > guided.negative["prompt_embeds_mask"].sum()


def test_max_sequence_length_cuts_prompts(pipeline):
    family = QwenImageFamily(pipeline, max_sequence_length=6, **SIZE)
    assert family.encode_prompts(PROMPTS).positive["prompt_embeds"].shape[1] == 6
    with pytest.raises(ValueError, match="at most 1024"):
        QwenImageFamily(pipeline, max_sequence_length=1025, **SIZE)


def test_guidance_keeps_the_length_of_the_conditional_side(pipeline):
    family = QwenImageFamily(pipeline, guidance_scale=7.0, **SIZE)
    unconditional, conditional = draw_noise(family), draw_noise(family).flip(1)
    combined = family.combine_guidance(unconditional, conditional)
    torch.testing.assert_close(combined.norm(dim=-1), conditional.norm(dim=-1))
    direction = unconditional + 7 * (conditional - unconditional)
    torch.testing.assert_close(torch.cosine_similarity(combined, direction, dim=-1), torch.ones(combined.shape[:2]))


def test_decoders_take_unpacked_latents(pipeline):
    family = QwenImageFamily(pipeline, **SIZE)
    latents = draw_noise(family)
    assert family.spatial_latents(latents).shape == (2, 4, 4, 6)
    decoder = AutoencoderTiny(
        latent_channels=4, encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1),
    )  # fmt: skip
    assert family.decode_preview(latents, decoder).shape == (2, 3, 16, 24)


def test_half_precision_transformer_takes_prompts_of_a_full_precision_encoder():
    pipeline = make_qwen_image()
    pipeline.transformer.to(torch.bfloat16)
    family = QwenImageFamily(pipeline, guidance_scale=4.0, **SIZE)
    assert sample(family, draw_noise(family)).isfinite().all()


def test_guidance_distilled_transformer_is_refused():
    with pytest.raises(ValueError, match="guidance-distilled"):
        QwenImageFamily(make_qwen_image(guidance_embeds=True), **SIZE)


def test_wrong_policy_is_refused(pipeline):
    family = QwenImageFamily(pipeline, **SIZE)
    with pytest.raises(ValueError, match="DDIM"):
        DDIM().step(draw_noise(family), draw_noise(family), family.make_schedule(2), 0)
