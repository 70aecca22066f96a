# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Every family's prompts are encoded one by one, kept, put together, and counted."""

import pytest
import torch
from pipelines import make_sd, make_sd3, make_sdxl
from pipelines_flux import tiny_flux, tiny_flux2, tiny_flux2_klein
from pipelines_qwen import PROMPTS, make_qwen_image, make_sana, make_z_image

from trl_progrpo.families import QwenImageFamily, family_class
from trl_progrpo.prompt_cache import PromptCache


# Pipeline, guidance, token limit given, that of the family, and tokens of the first prompt with template and special tokens.
FAMILIES = {
    "sd": (make_sd, 5.0, None, 10, 5),
    "sdxl": (make_sdxl, 5.0, None, 10, 5),
    "sd3": (make_sd3, 5.0, 12, 12, 5),
    "sd3 without t5": (lambda: make_sd3(with_t5=False), 5.0, None, 10, 5),
    "flux": (tiny_flux, 3.5, 16, 16, 4),
    "flux2 klein": (tiny_flux2_klein, 4.0, 48, 48, None),
    "flux2 dev": (tiny_flux2, 4.0, 32, 32, None),
    "qwen_image": (make_qwen_image, 4.0, 32, 32, 8),
    "z_image": (make_z_image, 4.0, 32, 32, 11),
    "sana": (make_sana, 4.5, 16, 16, 5),
}
NEGATIVE = "a white triangle"


@pytest.fixture(scope="module")
def families():
    made = {}

    def make(name):
        if name not in made:
            maker, scale, length, _, _ = FAMILIES[name]
            pipeline = maker()
            made[name] = family_class(pipeline)(pipeline, guidance_scale=scale, max_sequence_length=length)
        return made[name]

    return make


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_from_the_cache_are_those_of_one_batch(families, name, tmp_path):
    family = families(name)
    negative = NEGATIVE if family.do_classifier_free_guidance and not name.startswith("flux") else None
    expected = family.encode_prompts(PROMPTS, negative and [negative] * 2)
    for directory in (None, str(tmp_path)):
        cache = PromptCache(family, directory)
        got = cache([*PROMPTS, PROMPTS[0]], negative)
        again = cache(PROMPTS, negative)
        assert cache.encoded == 2
        assert len(got) == 3
        for side, ours, once in zip(
            (expected.positive, expected.negative or {}),
            (got.positive, got.negative or {}),
            (again.positive, again.negative or {}),
            strict=True,
        ):
            assert side.keys() == ours.keys() == once.keys()
            for key, tensor in side.items():
                assert ours[key].dtype == tensor.dtype
                assert torch.equal(ours[key][:2], once[key])
                torch.testing.assert_close(once[key], tensor, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_counted_as_the_encoder_reads_them(families, name):
    family, (_, _, _, limit, tokens) = families(name), FAMILIES[name]
    assert family.prompt_token_limit == limit
    if tokens is not None:
        assert family.count_tokens(PROMPTS[0]) == tokens
    assert family.count_tokens(PROMPTS[1]) > family.count_tokens(PROMPTS[0])


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_word_beyond_the_limit_has_no_effect_and_one_within_has(families, name):
    family = families(name)
    prompt = "a"
    while family.count_tokens(prompt + " red") <= family.prompt_token_limit:
        prompt += " red"
    longest, other = prompt + " red" * 24, prompt.removesuffix("red") + "two"
    beyond = [family.encode_prompts([longest + end]).positive for end in ("", " two")]
    within = [family.encode_prompts([text]).positive for text in (prompt, other)]
    assert not all(torch.equal(*values) for values in zip(*(side.values() for side in within)))
    # Many words, for what is cut off first may be the end of a template.
    assert all(torch.equal(*values) for values in zip(*(side.values() for side in beyond)))


def test_text_encoders_are_found_by_name(families):
    assert list(families("sd3").text_encoders) == ["text_encoder", "text_encoder_2", "text_encoder_3"]
    assert list(families("sd3 without t5").text_encoders) == ["text_encoder", "text_encoder_2"]


def test_masks_come_and_go_with_the_lengths(families):
    plain = QwenImageFamily(families("qwen_image").pipeline, height=16, width=16)
    one, two = (plain.encode_prompts([prompt]) for prompt in PROMPTS)
    assert "prompt_embeds_mask" not in one.positive
    assert "prompt_embeds_mask" not in plain.stack([one, one]).positive
    mask = plain.stack([two, one, two]).positive["prompt_embeds_mask"]
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [12, 8, 12]


def test_a_family_that_must_pad_is_told_so(families):
    from trl_progrpo.families import Family

    family = families("z_image")
    singles = [family.encode_prompts([prompt], [prompt]) for prompt in PROMPTS]
    with pytest.raises(ValueError, match=r"ZImageFamily encodes prompts of different lengths.* override `stack`"):
        Family.stack(family, singles)


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [("flux2 dev", "system_message", "You draw."), ("qwen_image", "prompt_template_encode", "Draw {}!"),
     ("sd", "tokenizer.model_max_length", 7)],
)  # fmt: skip
def test_another_template_or_limit_is_another_entry(name, attribute, value):
    maker, scale, length, _, _ = FAMILIES[name]
    pipeline = maker()
    family = family_class(pipeline)(pipeline, guidance_scale=scale, max_sequence_length=length)
    before = PromptCache(family)._key("a", None)
    assert before == PromptCache(family)._key("a", None)
    owner, _, field = attribute.rpartition(".")
    setattr(getattr(pipeline, owner) if owner else pipeline, field, value)
    assert before != PromptCache(family)._key("a", None)
