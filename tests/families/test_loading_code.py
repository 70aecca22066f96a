# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""The lines of a card, run as they stand, draw what the run drew."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from pipelines import STABLE_DIFFUSION, make_sd, make_sd3, make_sdxl
from pipelines_flux import tiny_flux, tiny_flux2, tiny_flux2_klein
from pipelines_qwen import draw_noise, make_qwen_image, make_sana, make_z_image, sample

from trl_progrpo.adapters import add_adapter, default_lora_config, save_adapter, trainable_parameters
from trl_progrpo.families import family_class, load_pipeline
from trl_progrpo.model_card.loading_code import loading_code


PROMPT, STEPS = "a red circle", 2


SIZE = {"height": 16, "width": 24}

# Pipeline, negative prompt, settings of the family.
CASES = {
    "sd, another solver": (make_sd, "a blue square", {"guidance_scale": 5.0}),
    "sd": (lambda: make_sd(DDIMScheduler(**STABLE_DIFFUSION)), None, {"guidance_scale": 5.0}),
    "sdxl, another solver": (make_sdxl, "a blue square", {"guidance_scale": 5.0}),
    "sd3": (make_sd3, "a blue square", {"guidance_scale": 4.0, "max_sequence_length": 12}),
    "sd3 without t5": (lambda: make_sd3(with_t5=False), None, {"guidance_scale": 4.0}),
    "flux": (tiny_flux, None, {"guidance_scale": 4.0, "max_sequence_length": 16, **SIZE}),
    "flux2 klein": (tiny_flux2_klein, "a blue square", {"guidance_scale": 4.0, "max_sequence_length": 32, **SIZE}),
    "flux2 klein, unguided": (tiny_flux2_klein, "a blue square", {"max_sequence_length": 32, **SIZE}),
    "flux2 dev": (tiny_flux2, None, {"guidance_scale": 4.0, "max_sequence_length": 32, **SIZE}),
    "qwen_image": (make_qwen_image, "two squares", {"guidance_scale": 4.0, **SIZE}),
    "z_image": (make_z_image, "two squares", {"guidance_scale": 4.0, "max_sequence_length": 32, **SIZE}),
    "sana, another solver": (make_sana, "two squares", {"guidance_scale": 4.0, "max_sequence_length": 16}),
}  # fmt: skip


def a_run(family, name, negative_prompt=None, **model_init_kwargs):
    """As much of a trainer as the lines are made of."""
    return SimpleNamespace(
        family=family, model_name=name, use_adapter=True, prompt_cache=SimpleNamespace(dropped=()), eval_dataset=None,
        train_dataset=[{"prompt": PROMPT}], accelerator=SimpleNamespace(device=torch.device("cpu")),
        args=SimpleNamespace(
            eval_num_inference_steps=None, num_inference_steps=STEPS, num_validation_prompts=1, prompt_column="prompt",
            negative_prompt=negative_prompt, model_init_kwargs=model_init_kwargs,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_draws_what_the_run_drew(case, tmp_path):
    make, negative_prompt, kwargs = CASES[case]
    base, adapter = str(tmp_path / "base"), str(tmp_path / "adapter")
    make().save_pretrained(base)
    pipeline = load_pipeline(base)
    family = family_class(pipeline)(pipeline, **kwargs)
    add_adapter(family, default_lora_config(family))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainable_parameters(family.denoiser):
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    save_adapter(family, adapter)

    code = loading_code(a_run(family, base, negative_prompt), adapter)
    noise = draw_noise(family, 1)
    names = {"latents": family.init_latents(noise)}
    exec(code.replace("image = pipeline(", "image = pipeline(latents=latents, output_type='pt',"), names)
    guided = negative_prompt is not None and family.do_classifier_free_guidance
    images = family.decode(sample(family, noise, [PROMPT], [negative_prompt] if guided else None, STEPS))
    torch.testing.assert_close(names["image"], images[0], atol=1e-5, rtol=0)
    assert ("scheduler" in code) is ("another solver" in case)
    assert ("negative_prompt" in code) is (guided or case == "qwen_image")


def test_it_names_the_weights_that_were_trained_on():
    pipeline = make_sd3(with_t5=False)
    family = family_class(pipeline)(pipeline)
    given = {"revision": "v2", "variant": "fp16", "token": "hf_secret", "cache_dir": "elsewhere", "subfolder": None}
    code = loading_code(a_run(family, "org/base", **given), "user/adapter", "main")
    assert "from_pretrained('org/base', text_encoder_3=None, tokenizer_3=None, revision='v2', variant='fp16')" in code
    assert "load_lora_weights('user/adapter', weight_name='pytorch_lora_weights.safetensors', revision='main')" in code
    assert "secret" not in code
