# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""CLIPScore: how well an image fits its prompt, by CLIP."""

from __future__ import annotations

import torch

from .base import REWARDS
from .learned import LearnedReward
from .learned_images import ImageTransform
from .learned_loading import load_network, load_tokenizer


class ClipScore(LearnedReward):
    """
    `100 * max(cosine, 0)` of CLIP's image and prompt features.

    Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning" (arXiv 2104.08718); the paper scales
    by 2.5 and puts "A photo depicts" before the text, papers on image generation scale by 100 and use the bare prompt, and
    so does this. Shorter side to 224 pixels, centre cut out: what lies outside a central square is not seen.

    * Range: 0 to 100.
    * Licence: OpenAI's code is MIT; for the weights see the model card.
    * Cost: 0.43 billion parameters, 1.6 GiB in fp32.

    Args:
        model (`str`, *optional*, defaults to `"openai/clip-vit-large-patch14"`): any CLIP model of transformers.
        kwargs: `revision`, `device`, `dtype`, `batch_size` of [`~rewards.learned.LearnedReward`].
    """

    __name__ = "clip_score"

    def __init__(self, model: str = "openai/clip-vit-large-patch14", **kwargs):
        super().__init__(model, **kwargs)

    def _load(self):
        from transformers import CLIPModel

        self.transform = ImageTransform.from_pretrained(self.model, self.revision, self.__name__)
        self.tokenizer = load_tokenizer(self.__name__, self.model, self.revision)
        return load_network(CLIPModel, self)

    def _rate(self, prompts, images) -> torch.Tensor:
        return 100 * self._cosine(prompts, images).clamp(min=0)


REWARDS.register("clip_score")(ClipScore())
