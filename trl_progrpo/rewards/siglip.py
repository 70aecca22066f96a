# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""SigLIP score: how well an image fits its prompt, by SigLIP."""

from __future__ import annotations

import torch

from .base import REWARDS
from .learned import LearnedReward
from .learned_images import ImageTransform
from .learned_loading import load_network, load_tokenizer


class SiglipScore(LearnedReward):
    """
    `exp(logit_scale) * cosine + logit_bias` of image and prompt features: the logit that image and prompt belong together.

    Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (arXiv 2303.15343), and Tschannen et al., "SigLIP 2" (arXiv
    2502.14786). The sigmoid of the score is the model's probability. It is left out because it is flat where most
    generated images lie, and a group of equal rewards teaches nothing. The whole image is squeezed to a square of 384
    pixels. The models were trained on lower-case text, so prompts are lower-cased.

    * Range: unbounded; 0 is a probability of one half.
    * Licence: Apache-2.0.
    * Cost: 1.14 billion parameters, 4.2 GiB in fp32, of which 0.29 billion are the table of tokens.

    Args:
        model (`str`, *optional*, defaults to `"google/siglip2-so400m-patch14-384"`): a SigLIP, or a SigLIP 2 of fixed
            resolution. The tokenizer of the first SigLIP needs the package sentencepiece.
        kwargs: `revision`, `device`, `dtype`, `batch_size` of [`~rewards.learned.LearnedReward`].
    """

    __name__ = "siglip"

    def __init__(self, model: str = "google/siglip2-so400m-patch14-384", **kwargs):
        super().__init__(model, **kwargs)

    def _load(self):
        from transformers import SiglipModel

        self.transform = ImageTransform.from_pretrained(self.model, self.revision, self.__name__)
        self.tokenizer = load_tokenizer(self.__name__, self.model, self.revision)
        return load_network(SiglipModel, self)

    def _tokens(self, prompts: list[str]) -> torch.Tensor:
        # Trained without a mask on texts padded to full length, and the result is read at the last position.
        limit = self.network.config.text_config.max_position_embeddings
        prompts = [prompt.lower() for prompt in prompts]
        return self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=limit, return_tensors="pt"
        ).input_ids

    def _rate(self, prompts, images) -> torch.Tensor:
        scale, bias = self.network.logit_scale.float().exp(), self.network.logit_bias.float()
        return scale * self._cosine(prompts, images) + bias


REWARDS.register("siglip")(SiglipScore())
