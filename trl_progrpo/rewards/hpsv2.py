# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""HPSv2.1: which image of a prompt people would prefer; an open_clip checkpoint in transformers' CLIP."""

from __future__ import annotations

import os
import re
from dataclasses import replace

import torch

from .base import REWARDS
from .learned import LearnedReward
from .learned_images import ImageTransform
from .learned_loading import load_config, load_network, load_tokenizer, load_weights_file


class HPSv2(LearnedReward):
    """
    Cosine of image and prompt features of the Human Preference Score, version 2.1.

    Wu et al., "Human Preference Score v2" (arXiv 2306.09341): CLIP ViT-H/14 trained on rankings of images for one prompt;
    only images of one prompt should be compared. Longer side to 224 pixels, the rest filled with black: the whole image is
    seen, unlike by the other rewards here.

    * Range: -1 to 1; the authors report means of 0.15 (GLIDE) to 0.31 (SDXL Refiner 0.9) on their prompts, times 100.
    * Licence: Apache-2.0.
    * Cost: 0.99 billion parameters, 3.7 GiB in fp32.

    Args:
        model (`str`, *optional*, defaults to `"xswu/HPSv2"`): folder or repository of the open_clip checkpoint.
        model_file (`str`, *optional*, defaults to `"HPS_v2.1_compressed.pt"`): its file; `"HPS_v2_compressed.pt"` is
            version 2.0.
        processor (`str`, *optional*, defaults to `"laion/CLIP-ViT-H-14-laion2B-s32B-b79K"`): folder or repository with the
            configuration, tokenizer and image settings.
        processor_revision (`str`, *optional*): commit, branch or tag of `processor`.
        kwargs: `revision`, `device`, `dtype`, `batch_size` of [`~rewards.learned.LearnedReward`].
    """

    __name__ = "hpsv2"

    def __init__(
        self,
        model: str = "xswu/HPSv2",
        model_file: str = "HPS_v2.1_compressed.pt",
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        processor_revision: str | None = None,
        **kwargs,
    ):
        super().__init__(model, **kwargs)
        self.model_file = model_file
        self.processor = os.path.expanduser(processor)
        self.processor_revision = processor_revision

    def _load(self):
        from transformers import CLIPModel

        transform = ImageTransform.from_pretrained(self.processor, self.processor_revision, self.__name__)
        self.transform = replace(transform, pad=True)
        self.tokenizer = load_tokenizer(self.__name__, self.processor, self.processor_revision)
        config = load_config(self.__name__, self.processor, self.processor_revision)
        path, weights = load_weights_file(self.__name__, self.model, self.model_file, self.revision)
        weights = from_open_clip(weights.get("state_dict", weights))
        return load_network(CLIPModel, self, source=path, config=config, state_dict=weights)

    def _rate(self, prompts, images) -> torch.Tensor:
        return self._cosine(prompts, images)


# Names of open_clip on the left; the first that matches the start of a name, or a part of a layer's name, is replaced.
TOWERS = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "text_projection": "text_projection.weight",
}
LAYERS = {
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}


def from_open_clip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The weights of an open_clip `CLIP` with a vision transformer under the names of transformers' `CLIPModel`.

    open_clip holds query, key and value in one matrix, and its projections transposed.
    """
    renamed = {}
    for name, weight in weights.items():
        start = next((start for start in TOWERS if name.startswith(start)), "")
        name = TOWERS.get(start, "") + name.removeprefix(start)
        for old, new in LAYERS.items():
            name = name.replace(old, new)
        if start in ("visual.proj", "text_projection"):
            weight = weight.T
        fused = re.fullmatch(r"(.+)\.attn\.in_proj_(weight|bias)", name)
        if fused is None:
            renamed[name] = weight
            continue
        for part, third in zip("qkv", weight.chunk(3)):
            renamed[f"{fused[1]}.self_attn.{part}_proj.{fused[2]}"] = third
    return renamed


REWARDS.register("hpsv2")(HPSv2())
