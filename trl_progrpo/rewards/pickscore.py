# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""PickScore: which image of a prompt people would pick, by a CLIP trained on their choices."""

from __future__ import annotations

import os

import torch

from .base import REWARDS
from .learned import LearnedReward
from .learned_images import ImageTransform
from .learned_loading import load_network, load_tokenizer


class PickScore(LearnedReward):
    """
    `exp(logit_scale) * cosine` of image and prompt features, as on the model card before its softmax.

    Kirstain et al., "Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation" (arXiv 2305.01569): CLIP
    ViT-H/14 trained on pairs of images for one prompt. Differences between images of one prompt mean something, levels of
    different prompts less. Shorter side to 224 pixels, centre cut out.

    * Range: -100 to 100 (the scale is 100); Flow-GRPO (arXiv 2505.05470) reports about 21 to 24.
    * Licence: see the model card.
    * Cost: 0.99 billion parameters, 3.7 GiB in fp32.

    Args:
        model (`str`, *optional*, defaults to `"yuvalkirstain/PickScore_v1"`): the CLIP model.
        processor (`str`, *optional*, defaults to `"laion/CLIP-ViT-H-14-laion2B-s32B-b79K"`): folder or repository with its
            tokenizer and image settings.
        processor_revision (`str`, *optional*): commit, branch or tag of `processor`.
        kwargs: `revision`, `device`, `dtype`, `batch_size` of [`~rewards.learned.LearnedReward`].
    """

    __name__ = "pickscore"

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        processor_revision: str | None = None,
        **kwargs,
    ):
        super().__init__(model, **kwargs)
        self.processor = os.path.expanduser(processor)
        self.processor_revision = processor_revision

    def _load(self):
        from transformers import CLIPModel

        self.transform = ImageTransform.from_pretrained(self.processor, self.processor_revision, self.__name__)
        self.tokenizer = load_tokenizer(self.__name__, self.processor, self.processor_revision)
        return load_network(CLIPModel, self)

    def _rate(self, prompts, images) -> torch.Tensor:
        return self.network.logit_scale.float().exp() * self._cosine(prompts, images)


REWARDS.register("pickscore")(PickScore())
