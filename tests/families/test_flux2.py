# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
import diffusers
import pytest
import torch
from pipelines_flux import tiny_flux2, tiny_flux2_klein

from trl_progrpo.families import Flux2Family, Flux2KleinFamily, family_class, load_pipeline
from trl_progrpo.policies import DDIM
from trl_progrpo.testing import check_family


PROMPTS = ["a red circle", "two blue squares"]
SIZE = {"height": 16, "width": 24, "max_sequence_length": 32}


@pytest.mark.parametrize(
    "make, guidance_scales",
    [
        (tiny_flux2_klein, (1.0, 4.0)),
        (lambda: tiny_flux2_klein(is_distilled=True), (1.0,)),
        (tiny_flux2, (1.0, 4.0)),
    ],
    ids=["klein-base", "klein", "dev"],
)
def test_contract(make, guidance_scales):
    check_family(
        make,
        heights_widths=[(16, 16), (16, 24)],
        guidance_scales=guidance_scales,
        max_sequence_length=32,
    )


def test_klein_guides_with_the_empty_prompt():
    family = Flux2KleinFamily(tiny_flux2_klein(), guidance_scale=4.0, **SIZE)
    assert family.nfe_per_row == 2
    default, empty = family.encode_prompts(PROMPTS), family.encode_prompts(PROMPTS, ["", ""])
    torch.testing.assert_close(default.negative, empty.negative, rtol=0, atol=0)
    assert default.negative["prompt_embeds"].shape == default.positive["prompt_embeds"].shape


@torch.no_grad()
def test_klein_takes_other_negative_prompts():
    family = Flux2KleinFamily(tiny_flux2_klein(), guidance_scale=4.0, **SIZE)
    conditioning = family.encode_prompts(PROMPTS, ["blurry", "a square"])
    latents = torch.randn(2, *family.latent_shape)
    stock = family.pipeline(
        prompt=PROMPTS,
        negative_prompt_embeds=conditioning.negative["prompt_embeds"],
        latents=latents,
        num_inference_steps=1,
        output_type="pt",
        **family.pipeline_call_kwargs,
    ).images
    # One step from sigma 1 to 0.
    timestep = family.make_schedule(1).timesteps[0]
    images = family.decode(latents - family.predict(family.denoiser, latents, timestep, conditioning))
    torch.testing.assert_close(images, stock, rtol=0, atol=1e-4)


def test_dev_is_told_the_guidance_in_one_pass():
    pipeline = tiny_flux2()
    calls = []
    pipeline.transformer.register_forward_pre_hook(lambda m, args, kwargs: calls.append(kwargs), with_kwargs=True)
    outputs = []
    for guidance_scale in (1.0, 4.0):
        family = Flux2Family(pipeline, guidance_scale=guidance_scale, **SIZE)
        assert family.nfe_per_row == 1
        latents = torch.ones(2, *family.latent_shape)
        outputs.append(family.predict(family.denoiser, latents, torch.tensor(500.0), family.encode_prompts(PROMPTS)))
    assert [call["guidance"].tolist() for call in calls] == [[1.0, 1.0], [4.0, 4.0]]
    assert not torch.allclose(*outputs)


def test_what_the_pipeline_would_ignore_is_refused():
    klein = tiny_flux2_klein(is_distilled=True)
    with pytest.raises(ValueError, match=r"guidance_scale.* step-distilled"):
        Flux2KleinFamily(klein, guidance_scale=4.0, **SIZE)
    with pytest.raises(ValueError, match=r"negative_prompts.* step-distilled"):
        Flux2KleinFamily(klein, **SIZE).encode_prompts(PROMPTS, ["blurry"] * 2)
    with pytest.raises(ValueError, match=r"negative_prompts.* distilled"):
        Flux2Family(tiny_flux2(), **SIZE).encode_prompts(PROMPTS, ["blurry"] * 2)
    with pytest.raises(ValueError, match=r"guidance_scale.* no guidance embedding"):
        Flux2Family(tiny_flux2(guidance_embeds=False), guidance_scale=4.0, **SIZE)


def test_policies_for_other_predictions_are_refused():
    family = Flux2KleinFamily(tiny_flux2_klein(), **SIZE)
    assert "ddim" not in family.policies
    latents = torch.randn(1, *family.latent_shape)
    with pytest.raises(ValueError, match="DDIM"):
        DDIM().step(latents, latents, family.make_schedule(2), 0)


def test_latents_are_normalised_and_in_patches():
    family = Flux2KleinFamily(tiny_flux2_klein(), **SIZE)
    vae = family.pipeline.vae
    encoded = torch.randn(2, 2, 8, 12)
    patches = family.pipeline._patchify_latents(encoded)
    assert patches.shape == (2, *family.latent_shape)
    torch.testing.assert_close(family.spatial_latents(patches), encoded, rtol=0, atol=0)
    # In evaluation mode the layer is the normalisation itself.
    images = family.decode(vae.bn(patches))
    torch.testing.assert_close(images, (vae.decode(encoded).sample / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("downscale", [2, 3])
def test_previews_are_made_smaller_where_statistics_no_longer_count(downscale):
    family = Flux2KleinFamily(tiny_flux2_klein(), height=12, width=24, max_sequence_length=32)
    vae, encoded = family.pipeline.vae, torch.randn(2, 2, 6, 12)
    smaller = torch.nn.functional.avg_pool2d(encoded, downscale)
    images = family.decode_preview(vae.bn(family.pipeline._patchify_latents(encoded)), downscale=downscale)
    torch.testing.assert_close(images, (vae.decode(smaller).sample / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("make, cls", [(tiny_flux2_klein, Flux2KleinFamily), (tiny_flux2, Flux2Family)])
def test_half_precision_rounds_time_like_the_pipeline(make, cls):
    pipeline = make()
    for module in (pipeline.transformer, pipeline.text_encoder):
        module.to(torch.bfloat16)
    family = cls(pipeline, **SIZE)
    calls = []
    family.denoiser.register_forward_pre_hook(lambda m, args, kwargs: calls.append(kwargs), with_kwargs=True)
    noise = torch.randn(2, *family.latent_shape)
    pipeline(prompt=PROMPTS, latents=noise, num_inference_steps=5, output_type="latent", **family.pipeline_call_kwargs)
    conditioning = family.encode_prompts(PROMPTS)
    for timestep in family.make_schedule(5).timesteps:
        family.predict(family.denoiser, noise, timestep, conditioning)
    for stock, ours in zip(calls[:5], calls[5:], strict=True):
        for name in ("timestep", "guidance", "encoder_hidden_states"):
            torch.testing.assert_close(ours[name], stock[name], rtol=0, atol=0)
        for name in ("txt_ids", "img_ids"):
            torch.testing.assert_close(ours[name], stock[name][0], rtol=0, atol=0)


def test_loads_from_a_folder(tmp_path):
    tiny_flux2_klein(is_distilled=True).save_pretrained(tmp_path)
    assert family_class(str(tmp_path)) is Flux2KleinFamily
    pipeline = load_pipeline(str(tmp_path))
    assert isinstance(pipeline, diffusers.Flux2KleinPipeline)
    assert pipeline.config.is_distilled


def test_half_precision_leaves_the_vae_as_it_is(tmp_path):
    tiny_flux2_klein().save_pretrained(tmp_path)
    whole, half = load_pipeline(str(tmp_path)), load_pipeline(str(tmp_path), torch.bfloat16)
    assert (half.transformer.dtype, half.text_encoder.dtype) == (torch.bfloat16, torch.bfloat16)
    for name, tensor in whole.vae.state_dict().items():
        torch.testing.assert_close(half.vae.state_dict()[name], tensor, rtol=0, atol=0)
