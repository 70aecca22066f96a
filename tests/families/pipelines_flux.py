# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Tiny FLUX pipelines with random weights, of the stock classes. The same call gives the same weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
)
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from trl_progrpo.tiny import model_path


WORDS = ("a", "red", "green", "blue", "circle", "square", "above", "and", "two")
# FLUX.1-dev's and FLUX.2's; schnell's has no dynamic shifting.
DYNAMIC_SHIFTING = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}


def tiny_flux(guidance_embeds: bool = True) -> FluxPipeline:
    """FLUX.1-dev in small; schnell with `guidance_embeds=False`."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(model_path() / "tokenizer")
    pieces = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>", "▁")]
    tokenizer_2 = T5TokenizerFast(vocab=pieces + [(f"▁{word}", -1.0) for word in WORDS], extra_ids=0)
    clip = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**(DYNAMIC_SHIFTING if guidance_embeds else {"shift": 1.0})),
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=2,
            norm_num_groups=2,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, **clip)
        ),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=len(tokenizer_2), d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        ),
        tokenizer_2=tokenizer_2,
        transformer=FluxTransformer2DModel(
            in_channels=8,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=8,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 4, 8),
        ),
    )
    return finished(pipeline)


def tiny_flux2_klein(is_distilled: bool = False) -> Flux2KleinPipeline:
    """FLUX.2-klein-base in small; the step-distilled klein with `is_distilled=True`."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(("<|im_start|>", "<|im_end|>", "<think>", "</think>"))
    # The start of a turn and the empty thinking block are what the pipeline's call asks the template for.
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    )
    text_encoder = Qwen3ForCausalLM(
        # The pipeline reads the hidden states after layers 9, 18 and 27.
        Qwen3Config(vocab_size=len(tokenizer), num_hidden_layers=27, pad_token_id=tokenizer.pad_token_id, **DECODER)
    )
    pipeline = Flux2KleinPipeline(
        text_encoder=text_encoder, tokenizer=tokenizer, is_distilled=is_distilled, **flux2_components(False)
    )
    return finished(pipeline)


def tiny_flux2(guidance_embeds: bool = True) -> Flux2Pipeline:
    """FLUX.2-dev in small."""
    torch.manual_seed(0)
    # The text half of a PixtralProcessor, which itself cannot be built without torchvision.
    tokenizer = byte_tokenizer(("[INST]", "[/INST]", "[IMG]"))
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST]{% endif %}{{ m.content[0].text }}"
        "{% if m.role == 'user' %}[/INST]{% endif %}{% endfor %}"
    )
    text_encoder = Mistral3ForConditionalGeneration(
        Mistral3Config(
            # The pipeline reads the hidden states after layers 10, 20 and 30.
            text_config={"model_type": "mistral", "vocab_size": len(tokenizer), "num_hidden_layers": 30, **DECODER},
            vision_config={
                "model_type": "pixtral",
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "head_dim": 4,
                "image_size": 28,
                "patch_size": 14,
            },
            image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        )
    )
    pipeline = Flux2Pipeline(text_encoder=text_encoder, tokenizer=tokenizer, **flux2_components(guidance_embeds))
    # The stock message of 200 characters would be all that is left of a prompt of 24 tokens.
    pipeline.system_message = "Paint."
    return finished(pipeline)


DECODER = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
}


def flux2_components(guidance_embeds: bool) -> dict[str, Any]:
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=2,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    transformer = Flux2Transformer2DModel(
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    # Larger than by default, so that what changes the network shows in the images.
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.5)
    return {"vae": vae, "transformer": transformer, "scheduler": FlowMatchEulerDiscreteScheduler(**DYNAMIC_SHIFTING)}


def byte_tokenizer(special_tokens: tuple[str, ...]) -> Qwen2TokenizerFast:
    """A Qwen2 tokenizer whose words are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(("<|endoftext|>", *alphabet))}
    return Qwen2TokenizerFast(vocab=vocab, merges=[], additional_special_tokens=list(special_tokens))


def finished(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    pipeline.set_progress_bar_config(disable=True)
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval().requires_grad_(False)
    return pipeline
