# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""CLIP written a second time with torch alone, tiny random checkpoints of it, and the pictures and prompts to score."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import conv2d, gelu, layer_norm, linear, multi_head_attention_forward, normalize


HEADS, CONTEXT, SIDE, PATCH, DIM, TEXT, VISION, LAYERS = 4, 16, 32, 8, 24, 32, 48, 2
PROMPTS = ["a red circle", "two blue squares and more than fits", "a red circle", "ox"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCAB = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "!", "<|startoftext|>", "<|endoftext|>"]


def pictures() -> list[Image.Image]:
    """Smooth colour pictures: wide, tall, square, smaller than the model's input."""
    images = []
    for seed, size in enumerate([(90, 40), (33, 71), (64, 64), (20, 13)]):
        small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        images.append(Image.fromarray(small).resize(size, Image.Resampling.BILINEAR))
    return images


def tokens(prompt: str) -> torch.Tensor:
    """Ids of one prompt, without padding: one letter a token, the last of a word marked, cut to the limit."""
    letters = [letter for word in prompt.lower().split() for letter in [*word[:-1], f"{word[-1]}</w>"]]
    start, end = VOCAB.index("<|startoftext|>"), VOCAB.index("<|endoftext|>")
    return torch.tensor([start, *(VOCAB.index(letter) for letter in letters[: CONTEXT - 2]), end])


def save_processor(folder, pad_token="<|endoftext|>") -> None:
    """The tokenizer, and image settings in the old format that CLIP repositories still have."""
    import json

    from transformers import CLIPTokenizer

    vocab = {token: index for index, token in enumerate(VOCAB)}
    CLIPTokenizer(vocab=vocab, merges=[], pad_token=pad_token, model_max_length=CONTEXT).save_pretrained(folder)
    settings = {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "do_resize": True,
        "size": SIDE,
        "do_center_crop": True,
        "crop_size": SIDE,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def clip_config(activation: str, eos_token_id: int | None = None):
    """Configuration of the tiny CLIP for transformers."""
    from transformers import CLIPConfig

    shared = {
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "projection_dim": DIM,
        "hidden_act": activation,
    }
    text = {"vocab_size": len(VOCAB), "hidden_size": TEXT, "intermediate_size": 4 * TEXT}
    text |= {"max_position_embeddings": CONTEXT, "eos_token_id": eos_token_id or VOCAB.index("<|endoftext|>")}
    text |= {"bos_token_id": VOCAB.index("<|startoftext|>"), "pad_token_id": None}
    vision = {"hidden_size": VISION, "intermediate_size": 4 * VISION, "image_size": SIDE, "patch_size": PATCH}
    return CLIPConfig(text_config={**shared, **text}, vision_config={**shared, **vision}, projection_dim=DIM)


def open_clip_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under open_clip's names and in its shapes."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return 0.3 * torch.randn(*shape, generator=generator)

    weights = {
        "positional_embedding": random(CONTEXT, TEXT),
        "text_projection": random(TEXT, DIM),
        "logit_scale": torch.tensor(3.1),
        "token_embedding.weight": random(len(VOCAB), TEXT),
        "visual.class_embedding": random(VISION),
        "visual.positional_embedding": random((SIDE // PATCH) ** 2 + 1, VISION),
        "visual.proj": random(VISION, DIM),
        "visual.conv1.weight": random(VISION, 3, PATCH, PATCH),
    }
    norms = {"ln_final": TEXT, "visual.ln_pre": VISION, "visual.ln_post": VISION}
    for tower, width in {"": TEXT, "visual.": VISION}.items():
        for layer in range(LAYERS):
            name = f"{tower}transformer.resblocks.{layer}"
            norms |= {f"{name}.ln_1": width, f"{name}.ln_2": width}
            weights |= {f"{name}.attn.in_proj_weight": random(3 * width, width)}
            weights |= {f"{name}.attn.in_proj_bias": random(3 * width)}
            for part, (out, into) in {"attn.out_proj": (1, 1), "mlp.c_fc": (4, 1), "mlp.c_proj": (1, 4)}.items():
                weights |= {f"{name}.{part}.weight": random(out * width, into * width)}
                weights |= {f"{name}.{part}.bias": random(out * width)}
    for name, width in norms.items():
        weights |= {f"{name}.weight": 1 + random(width), f"{name}.bias": random(width)}
    return weights


def open_clip_layer(x: torch.Tensor, w: dict, name: str, activation, mask=None) -> torch.Tensor:
    """One layer on `(length, width)`, with query, key and value in one matrix as in `torch.nn.MultiheadAttention`."""
    y = norm(x, w, f"{name}.ln_1")[:, None]
    y, _ = multi_head_attention_forward(
        y,
        y,
        y,
        x.shape[-1],
        HEADS,
        w[f"{name}.attn.in_proj_weight"],
        w[f"{name}.attn.in_proj_bias"],
        None,
        None,
        False,
        0.0,
        w[f"{name}.attn.out_proj.weight"],
        w[f"{name}.attn.out_proj.bias"],
        attn_mask=mask,
        need_weights=False,
    )
    x = x + y[:, 0]
    y = activation(dense(norm(x, w, f"{name}.ln_2"), w, f"{name}.mlp.c_fc"))
    return x + dense(y, w, f"{name}.mlp.c_proj")


def open_clip_image(w: dict, pixels: torch.Tensor, activation=gelu) -> torch.Tensor:
    """Unit features `(dim,)` of pixels `(3, side, side)`."""
    x = conv2d(pixels, w["visual.conv1.weight"], stride=PATCH).flatten(1).T
    x = torch.cat([w["visual.class_embedding"][None], x]) + w["visual.positional_embedding"]
    x = norm(x, w, "visual.ln_pre")
    for layer in range(LAYERS):
        x = open_clip_layer(x, w, f"visual.transformer.resblocks.{layer}", activation)
    return normalize(norm(x[0], w, "visual.ln_post") @ w["visual.proj"], dim=0)


def open_clip_text(w: dict, ids: torch.Tensor, activation=gelu) -> torch.Tensor:
    """Unit features `(dim,)` of the ids of one prompt, which end with the end token."""
    x = w["token_embedding.weight"][ids] + w["positional_embedding"][: len(ids)]
    mask = torch.full((len(ids), len(ids)), -math.inf).triu(1)
    for layer in range(LAYERS):
        x = open_clip_layer(x, w, f"transformer.resblocks.{layer}", activation, mask)
    return normalize(norm(x[-1], w, "ln_final") @ w["text_projection"], dim=0)


def transformers_layer(x: torch.Tensor, w: dict, name: str, activation, causal: bool) -> torch.Tensor:
    """One layer on `(length, width)`, with separate matrices, softmax written out."""
    y = norm(x, w, f"{name}.layer_norm1")
    q, k, v = (dense(y, w, f"{name}.self_attn.{p}_proj").unflatten(-1, (HEADS, -1)).transpose(0, 1) for p in "qkv")
    weights = q @ k.mT / math.sqrt(q.shape[-1])
    if causal:
        weights = weights.masked_fill(torch.ones_like(weights, dtype=torch.bool).triu(1), -math.inf)
    x = x + dense((weights.softmax(-1) @ v).transpose(0, 1).flatten(1), w, f"{name}.self_attn.out_proj")
    y = activation(dense(norm(x, w, f"{name}.layer_norm2"), w, f"{name}.mlp.fc1"))
    return x + dense(y, w, f"{name}.mlp.fc2")


def transformers_image(w: dict, pixels: torch.Tensor, activation) -> torch.Tensor:
    """As [`open_clip_image`], from weights under transformers' names."""
    x = conv2d(pixels, w["vision_model.embeddings.patch_embedding.weight"], stride=PATCH).flatten(1).T
    x = torch.cat([w["vision_model.embeddings.class_embedding"][None], x])
    x = norm(x + w["vision_model.embeddings.position_embedding.weight"], w, "vision_model.pre_layrnorm")
    for layer in range(LAYERS):
        x = transformers_layer(x, w, f"vision_model.encoder.layers.{layer}", activation, causal=False)
    return normalize(linear(norm(x[0], w, "vision_model.post_layernorm"), w["visual_projection.weight"]), dim=0)


def transformers_text(w: dict, ids: torch.Tensor, activation) -> torch.Tensor:
    """As [`open_clip_text`], from weights under transformers' names."""
    embeddings = "text_model.embeddings"
    x = w[f"{embeddings}.token_embedding.weight"][ids] + w[f"{embeddings}.position_embedding.weight"][: len(ids)]
    for layer in range(LAYERS):
        x = transformers_layer(x, w, f"text_model.encoder.layers.{layer}", activation, causal=True)
    return normalize(linear(norm(x[-1], w, "text_model.final_layer_norm"), w["text_projection.weight"]), dim=0)


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def norm(x: torch.Tensor, w: dict, name: str) -> torch.Tensor:
    return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def dense(x: torch.Tensor, w: dict, name: str) -> torch.Tensor:
    return linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def normalised(array: np.ndarray) -> torch.Tensor:
    """`(3, height, width)` of a uint8 picture, with CLIP's mean and standard deviation."""
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    return torch.tensor((array / 255 - mean) / std, dtype=torch.float32).permute(2, 0, 1)


def cropped(image: Image.Image) -> torch.Tensor:
    """CLIP's preprocessing: shorter side resized, centre cut out."""
    width, height = image.size
    size = (SIDE, int(SIDE * height / width)) if width < height else (int(SIDE * width / height), SIDE)
    array = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    top, left = (array.shape[0] - SIDE) // 2, (array.shape[1] - SIDE) // 2
    return normalised(array[top : top + SIDE, left : left + SIDE])


def padded(image: Image.Image) -> torch.Tensor:
    """HPSv2's preprocessing: longer side resized, the other one filled with black on both sides."""
    width, height = image.size
    scale = SIDE / max(width, height)
    array = np.asarray(image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC))
    below, right = SIDE - array.shape[0], SIDE - array.shape[1]
    edges = ((below // 2, below - below // 2), (right // 2, right - right // 2), (0, 0))
    return normalised(np.pad(array, edges))
