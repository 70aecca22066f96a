# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from diffusers import AutoencoderTiny, FluxPipeline
from pipelines_flux import tiny_flux

from trl_progrpo.families import FluxFamily, family_class, load_pipeline
from trl_progrpo.policies import DDIM
from trl_progrpo.testing import check_family


PROMPTS = ["a red circle", "two blue squares"]
SIZE = {"height": 16, "width": 24, "max_sequence_length": 16}


@pytest.mark.parametrize("guidance_embeds, guidance_scales", [(True, (0.0, 3.5)), (False, (1.0,))])
def test_contract(guidance_embeds, guidance_scales):
    report = check_family(
        tiny_flux(guidance_embeds),
        heights_widths=[(16, 16), (16, 24)],
        guidance_scales=guidance_scales,
        max_sequence_length=16,
    )
    assert report.family == "FluxFamily"


@pytest.mark.parametrize("guidance_scale", [1.0, 3.5])
def test_distilled_guidance_is_an_input_of_the_one_pass(guidance_scale):
    family = FluxFamily(tiny_flux(), guidance_scale=guidance_scale, **SIZE)
    assert family.nfe_per_row == 1
    assert family.encode_prompts(PROMPTS).negative is None
    calls = record_calls(family)
    latents, timestep = torch.randn(2, *family.latent_shape), torch.tensor(500.0)
    output = family.predict(family.denoiser, latents, timestep, family.encode_prompts(PROMPTS))
    assert len(calls) == 1
    assert calls[0]["hidden_states"].shape == latents.shape
    assert calls[0]["guidance"].tolist() == [guidance_scale] * 2
    other = FluxFamily(family.pipeline, guidance_scale=7.0, **SIZE)
    assert not torch.allclose(
        output, other.predict(family.denoiser, latents, timestep, family.encode_prompts(PROMPTS))
    )


def test_what_the_pipeline_would_ignore_is_refused():
    with pytest.raises(ValueError, match=r"guidance_scale.* no guidance embedding"):
        FluxFamily(tiny_flux(guidance_embeds=False), guidance_scale=3.5, **SIZE)
    with pytest.raises(ValueError, match=r"negative_prompts.* distilled"):
        FluxFamily(tiny_flux(), guidance_scale=3.5, **SIZE).encode_prompts(PROMPTS, ["blurry"] * 2)
    with pytest.raises(ValueError, match="guidance_scale"):
        FluxFamily(tiny_flux(), guidance_scale=-1.0, **SIZE)
    with pytest.raises(ValueError, match=r"max_sequence_length.* at most 512"):
        FluxFamily(tiny_flux(), height=16, width=16, max_sequence_length=513)


def test_schedule_is_shifted_by_resolution():
    pipeline = tiny_flux()
    small, large = (FluxFamily(pipeline, height=side, width=side).make_schedule(4) for side in (16, 256))
    assert small.prediction_type == "flow"
    assert (large.sigmas[1:4] > small.sigmas[1:4]).all()
    schnell = tiny_flux(guidance_embeds=False)
    assert FluxFamily(schnell, height=16, width=16).make_schedule(4).sigmas.tolist() == [1, 0.75, 0.5, 0.25, 0]


def test_policies_for_other_predictions_are_refused():
    family = FluxFamily(tiny_flux(), **SIZE)
    assert "ddim" not in family.policies
    latents = torch.randn(1, *family.latent_shape)
    with pytest.raises(ValueError, match="DDIM"):
        DDIM().step(latents, latents, family.make_schedule(2), 0)


def test_preview_decoder_sees_unpacked_latents():
    family = FluxFamily(tiny_flux(), **SIZE)
    spatial = torch.randn(2, 2, 8, 12)
    packed = family.pipeline._pack_latents(spatial, *spatial.shape)
    assert packed.shape == (2, *family.latent_shape)
    torch.testing.assert_close(family.spatial_latents(packed), spatial, rtol=0, atol=0)
    decoder = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=2,
    )
    assert family.decode_preview(packed, decoder).shape == (2, 3, 16, 24)


def test_half_precision_rounds_time_like_the_pipeline():
    pipeline = tiny_flux()
    for module in (pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.vae):
        module.to(torch.bfloat16)
    family = FluxFamily(pipeline, guidance_scale=3.5, **SIZE)
    calls = record_calls(family)
    noise = torch.randn(2, *family.latent_shape)
    pipeline(prompt=PROMPTS, latents=noise, num_inference_steps=5, output_type="latent", **family.pipeline_call_kwargs)
    conditioning = family.encode_prompts(PROMPTS)
    for timestep in family.make_schedule(5).timesteps:
        family.predict(family.denoiser, noise, timestep, conditioning)
    for stock, ours in zip(calls[:5], calls[5:], strict=True):
        for name in ("timestep", "guidance", "img_ids", "txt_ids", "encoder_hidden_states", "pooled_projections"):
            torch.testing.assert_close(ours[name], stock[name], rtol=0, atol=0)


def test_loads_from_a_folder(tmp_path):
    tiny_flux().save_pretrained(tmp_path)
    assert family_class(str(tmp_path)) is FluxFamily
    pipeline = load_pipeline(str(tmp_path))
    assert isinstance(pipeline, FluxPipeline)
    assert FluxFamily(pipeline).height == 256


def record_calls(family):
    """A list that grows by the keyword arguments of every call of the denoiser."""
    calls = []
    family.denoiser.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    return calls
