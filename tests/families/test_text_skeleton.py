# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""FLOPs of every family without weights: prompts are encoded to the right shapes, and counts are those of the real networks."""

import pytest
import torch
from pipelines import make_sd, make_sd3, make_sdxl
from pipelines_flux import tiny_flux, tiny_flux2, tiny_flux2_klein
from pipelines_qwen import make_qwen_image, make_sana, make_z_image

from trl_progrpo.families import family_class
from trl_progrpo.families.skeleton import skeleton
from trl_progrpo.families.text_skeleton import encode
from trl_progrpo.flops import unit_flops


SMALL = {"height": 16, "width": 16}
PROMPT = "a red circle"


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (make_sd, {"guidance_scale": 3.0}),
        (make_sdxl, {}),
        (make_sd3, {}),
        (tiny_flux, {"max_sequence_length": 16, **SMALL}),
        (tiny_flux2, {"max_sequence_length": 32, **SMALL}),
        (tiny_flux2_klein, {"max_sequence_length": 32, **SMALL}),
        (make_qwen_image, {"guidance_scale": 3.0, **SMALL}),
        (make_z_image, SMALL),
        (make_sana, {"height": 32, "width": 32}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_flops_without_weights(make, options, tmp_path):
    pipeline = make()
    pipeline.save_pretrained(tmp_path)
    family = family_class(pipeline)
    real, bare = family(pipeline, **options), family(skeleton(str(tmp_path), text_encoders=True), **options)
    for part in (real.denoiser, real.pipeline.vae):
        part.requires_grad_(part is real.denoiser)
    with torch.no_grad():
        expected = real.encode_prompts([PROMPT])
    encoded = encode(bare, [PROMPT])
    for side, expected_side in ((encoded.positive, expected.positive), (encoded.negative, expected.negative)):
        assert (side is None) == (expected_side is None)
        for name, tensor in (side or {}).items():
            assert (name, tensor.shape) == (name, expected_side[name].shape)
    assert next(bare.denoiser.parameters()).is_meta
    assert unit_flops(bare, encoded) == unit_flops(real, expected)
