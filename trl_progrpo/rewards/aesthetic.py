# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Aesthetic score: how much people would like an image whatever it shows, by a small head on CLIP."""

from __future__ import annotations

import os

import torch
from torch.nn import Dropout, Linear

from .base import REWARDS
from .learned import LearnedReward
from .learned_images import ImageTransform
from .learned_loading import fill, load_network, load_weights_file


class Aesthetic(LearnedReward):
    """
    LAION's aesthetic predictor (improved-aesthetic-predictor, `sac+logos+ava1-l14-linearMSE`): a stack of linear layers on
    the normalised image features of CLIP ViT-L/14, the reward of DDPO (arXiv 2305.13301).

    Prompts are not read: as the only reward it pulls every picture to the same taste. Shorter side to 224 pixels, centre cut
    out.

    * Range: unbounded; trained on human ratings of 1 to 10.
    * Licence: OpenAI's CLIP code is MIT; for both weights see the model cards.
    * Cost: 0.30 billion parameters, 1.1 GiB in fp32; the text tower of CLIP is dropped after loading.

    Args:
        model (`str`, *optional*, defaults to `"openai/clip-vit-large-patch14"`): the CLIP model.
        head (`str`, *optional*, defaults to `"trl-lib/ddpo-aesthetic-predictor"`): folder or repository of the head.
        head_file (`str`, *optional*, defaults to `"aesthetic-model.pth"`): its file.
        head_revision (`str`, *optional*): commit, branch or tag of `head`.
        kwargs: `revision`, `device`, `dtype`, `batch_size` of [`~rewards.learned.LearnedReward`].
    """

    __name__ = "aesthetic"
    reads_prompts = False

    def __init__(
        self,
        model: str = "openai/clip-vit-large-patch14",
        head: str = "trl-lib/ddpo-aesthetic-predictor",
        head_file: str = "aesthetic-model.pth",
        head_revision: str | None = None,
        **kwargs,
    ):
        super().__init__(model, **kwargs)
        self.head = os.path.expanduser(head)
        self.head_file = head_file
        self.head_revision = head_revision

    def _load(self):
        from transformers import CLIPModel

        # The small file first: a wrong name is told before gigabytes are read.
        path, weights = load_weights_file(self.__name__, self.head, self.head_file, self.head_revision)
        self.transform = ImageTransform.from_pretrained(self.model, self.revision, self.__name__)
        network = load_network(CLIPModel, self)
        network.text_model = network.text_projection = None
        network.aesthetic_head = aesthetic_head(network.config.projection_dim)
        named = {name.removeprefix("layers."): weight for name, weight in weights.items()}
        fill(network.aesthetic_head, named, self.__name__, path)
        return network

    def _rate(self, prompts, images) -> torch.Tensor:
        return self.network.aesthetic_head(self._image_features(images)).squeeze(-1)


def aesthetic_head(dim: int) -> torch.nn.Sequential:
    """The head on features of `dim` values, in fp32. Dropout does nothing here and keeps the places of the checkpoint."""
    return torch.nn.Sequential(
        *(Linear(dim, 1024), Dropout(0.2), Linear(1024, 128), Dropout(0.2), Linear(128, 64), Dropout(0.1)),
        *(Linear(64, 16), Linear(16, 1)),
    )


REWARDS.register("aesthetic")(Aesthetic())
