# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Tiny Qwen-Image, Z-Image and Sana pipelines with random weights, of the stock classes."""

from __future__ import annotations

import re
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from pipelines import seeded, vae
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
)

from trl_progrpo.policies import POLICIES


PROMPTS = ("a red circle", "two blue squares above a white triangle")

DECODER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As on the Hub, but for `shift_terminal`, which Qwen-Image has besides.
DYNAMIC_SHIFTING = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
}


def word_tokenizer(text: str, special: tuple[str, ...], bos: str | None = None, **kwargs: Any):
    """
    A tokenizer whose tokens are the words, punctuation marks and line breaks of `text`; the first of `special` pads,
    and stands for all other words. Qwen-Image's template has as many tokens as with Qwen's own tokenizer.
    """
    words = re.findall(r"\w+|[^\w ]", text)
    vocab = {word: index for index, word in enumerate(dict.fromkeys((*special, *words)))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=special[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split(Regex(r"\w+|[^\w ]"), "isolated")]
    )
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, vocab[bos])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=special[0],
        unk_token=special[0],
        additional_special_tokens=list(special[1:]),
        **kwargs,
    )


@seeded
def make_qwen_image(**transformer: Any) -> QwenImagePipeline:
    """Qwen-Image: a patch is 8x8 pixels."""
    template = QwenImagePipeline.__init__.__code__.co_consts
    template = next(text for text in template if isinstance(text, str) and text.startswith("<|im_start|>system"))
    text = template + " ".join(PROMPTS)
    tokenizer = word_tokenizer(re.sub(r"<.*?>|{}", " ", text), QWEN_SPECIAL, padding_side="left")
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text_config = {"vocab_size": len(tokenizer), "rope_parameters": rope, **DECODER}
    del text_config["head_dim"]
    text_encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=text_config,
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 16,
            },
        )
    )
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC_SHIFTING, shift_terminal=0.02),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[-0.5, 0.25, 0.0, 1.0],
            latents_std=[2.0, 1.5, 0.5, 1.0],
        ),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
            **transformer,
        ),
    )


@seeded
def make_z_image(**scheduler: Any) -> ZImagePipeline:
    """Z-Image: a patch is 4x4 pixels. Shifted as on the Hub when nothing else is said."""
    text = "user assistant \n" + " ".join(PROMPTS)
    tokenizer = word_tokenizer(text, QWEN_SPECIAL, chat_template=QWEN_CHAT, padding_side="right")
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**(scheduler or {"shift": 3.0})),
        vae=vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=Qwen3Model(Qwen3Config(vocab_size=len(tokenizer), **DECODER)),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def sana_scheduler(**kwargs: Any) -> DPMSolverMultistepScheduler:
    """As on the Hub."""
    return DPMSolverMultistepScheduler(
        **{"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0, **kwargs}
    )


@seeded
def make_sana(scheduler: Any = None, **transformer: Any) -> SanaPipeline:
    """Sana: images of multiples of 32 pixels, 4 pixels per latent."""
    tokenizer = word_tokenizer(" ".join(PROMPTS), ("<pad>", "<bos>"), bos="<bos>")
    gemma = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, **DECODER}
    blocks = ("ResBlock", "ResBlock", "EfficientViTBlock")
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(Gemma2Config(**gemma)),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=blocks,
            decoder_block_types=blocks,
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            encoder_qkv_multiscales=((), (), (5,)),
            decoder_qkv_multiscales=((), (), (5,)),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            upsample_block_type="interpolate",
            downsample_block_type="conv",
            scaling_factor=0.41407,
        ),
        transformer=SanaTransformer2DModel(
            **{
                "in_channels": 4,
                "out_channels": 4,
                "num_layers": 2,
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "num_cross_attention_heads": 2,
                "cross_attention_head_dim": 8,
                "cross_attention_dim": 16,
                "caption_channels": 16,
                "sample_size": 8,
                **transformer,
            }
        ),
        scheduler=scheduler or sana_scheduler(),
    )


@torch.no_grad()
def sample(family, noise: torch.Tensor, prompts=PROMPTS, negative_prompts=None, steps: int = 2) -> torch.Tensor:
    """Final latents of the noise-free chain."""
    conditioning, schedule = family.encode_prompts(prompts, negative_prompts), family.make_schedule(steps)
    latents, policy = family.init_latents(noise), POLICIES.get(family.policies[0])().ode()
    for i in range(steps):
        output = family.predict(family.denoiser, latents, schedule.timesteps[i], conditioning)
        latents = policy.step(output, latents, schedule, i).mean
    return latents


def draw_noise(family, rows: int = len(PROMPTS)) -> torch.Tensor:
    return torch.randn(rows, *family.latent_shape, generator=torch.Generator().manual_seed(1))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()
