# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Object detectors of transformers behind the interface of [`detectors.Detector`]."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from .detectors import Detection
from .learned import checked_batch_size, checked_dtype, resolve_device
from .learned_loading import explained, load_config, load_network, revision_of


if TYPE_CHECKING:
    from transformers import PreTrainedModel

OPEN_VOCABULARY = ("owlv2", "owlvit")
"""Model types of transformers that are told what to look for."""


class TransformersDetector:
    """
    An object detector of transformers: OWLv2 and OWL-ViT, which look for any class they are told, or one with fixed classes
    such as DETR, RT-DETR and YOLOS.

    Nothing is read or downloaded before [`load`] or the first call. Boxes of one class that overlap are merged to the best
    one, which these models leave to the caller.

    Args:
        model (`str`, *optional*, defaults to `"google/owlv2-base-patch16-ensemble"`): folder, or repository on the Hub.
        revision (`str`, *optional*): commit, branch or tag of it. Unset: the commit in `learned_loading.REVISIONS` for the
            repositories named there, else `main`.
        threshold (`float`, *optional*, defaults to 0.2): least score of a detection, in [0, 1]. OWLv2's are low: 0.1 to 0.3
            are usual, while detectors with fixed classes are used at 0.5 and above.
        max_overlap (`float`, *optional*, defaults to 0.5): of two boxes of one class whose intersection over union is larger,
            only the one with the better score is kept. 1 keeps all.
        template (`str`, *optional*, defaults to `"a photo of a {}"`): what OWLv2 and OWL-ViT are told for a class.
        rename (`dict[str, str]`, *optional*): the model's name of a class to the name in the dataset; for fixed classes.
        device (`str` or `torch.device`, *optional*): where to run; the training device of this process when unset.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"float32"`): precision of the network.
        batch_size (`int`, *optional*, defaults to 8): images per forward pass.

    Raises:
        ValueError: if `threshold`, `max_overlap`, `template`, `dtype` or `batch_size` cannot work.
    """

    # Names this class in the sentences of `load_network`.
    __name__ = "geneval"

    def __init__(
        self,
        model: str = "google/owlv2-base-patch16-ensemble",
        *,
        revision: str | None = None,
        threshold: float = 0.2,
        max_overlap: float = 0.5,
        template: str = "a photo of a {}",
        rename: dict[str, str] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        batch_size: int = 8,
    ):
        for name, value in (("threshold", threshold), ("max_overlap", max_overlap)):
            if not 0 <= value <= 1:
                raise ValueError(f"`{name}` of the detector is {value!r}; use a number from 0 to 1.")
        if "{}" not in template:
            raise ValueError(f"`template` of the detector is {template!r}; put {{}} where the class goes.")
        self.model = os.path.expanduser(model)
        self.revision = revision
        self.threshold = threshold
        self.max_overlap = max_overlap
        self.template = template
        self.rename = dict(rename or {})
        self.device = device
        self.dtype = checked_dtype(dtype, "the detector")
        self.batch_size = checked_batch_size(batch_size, "the detector")
        self.network: PreTrainedModel | None = None
        self.processor: Any = None
        # Tokenizers hold their padding as state, and rewards may be called from threads.
        self._lock = threading.RLock()

    @property
    def is_open_vocabulary(self) -> bool:
        """Whether the loaded model is told what to look for."""
        return self.network.config.model_type in OPEN_VOCABULARY

    def load(self) -> TransformersDetector:
        """
        Loads the weights, once; returns itself.

        Raises:
            ValueError: if the model cannot be found, is incomplete, is no such detector, or the device does not exist.
        """
        with self._lock:
            if self.network is None:
                device = resolve_device(self.device, self.__name__)
                self.network = self._load().requires_grad_(False).eval().to(device)
        return self

    def _load(self) -> PreTrainedModel:
        from transformers import (
            AutoImageProcessor,
            AutoModelForObjectDetection,
            AutoModelForZeroShotObjectDetection,
            AutoProcessor,
        )
        from transformers.utils import is_scipy_available, is_torchvision_available

        config = load_config(self.__name__, self.model, self.revision)
        is_open = config.model_type in OPEN_VOCABULARY
        cls = AutoModelForZeroShotObjectDetection if is_open else AutoModelForObjectDetection
        if type(config) not in cls._model_mapping:
            raise ValueError(
                f"the detector {self.model!r} is a {config.model_type}, which is neither OWLv2, OWL-ViT nor a detector with "
                "fixed classes of transformers; give a function `(images, classes) -> list[list[Detection]]` that calls it."
            )
        if config.model_type == "owlv2" and not (is_torchvision_available() or is_scipy_available()):
            raise ValueError(
                'OWLv2 resizes images with scipy, which is not installed; run `pip install "trl-progrpo[geneval]"`.'
            )
        with explained(self.__name__, self.model):
            processor = AutoProcessor if is_open else AutoImageProcessor
            self.processor = processor.from_pretrained(self.model, revision=revision_of(self.model, self.revision))
        return load_network(cls, self)

    def __call__(self, images: list[Image.Image], classes: list[list[str]]) -> list[list[Detection]]:
        """
        See [`Detector`].

        Raises:
            ValueError: if a detector with fixed classes does not know one of `classes`.
        """
        self.load()
        found: list[list[Detection]] = [[] for _ in images]
        self.check_classes({name for names in classes for name in names})
        # Images of one size that are asked the same share a forward pass, as those of a group do; others would be padded, by
        # pixels or by questions, and what pads an image must not change its reward.
        shared: dict[tuple, list[int]] = {}
        for row, (image, names) in enumerate(zip(images, classes)):
            asked = tuple(dict.fromkeys(names)) if self.is_open_vocabulary else ()
            if asked or not self.is_open_vocabulary:
                shared.setdefault((image.size, asked), []).append(row)
        for (_, asked), rows in shared.items():
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                for row, detections in zip(batch, self._detect([images[row] for row in batch], list(asked))):
                    found[row] = best_boxes(detections, self.max_overlap)
        return found

    def _detect(self, images: list[Image.Image], names: list[str]) -> list[list[Detection]]:
        texts = [[self.template.format(name) for name in names]] * len(images)
        with self._lock:
            inputs = self.processor(
                images=images, return_tensors="pt", **({"text": texts} if self.is_open_vocabulary else {})
            )
        inputs = inputs.to(self.network.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.network.dtype)
        with torch.inference_mode(), torch.autocast(self.network.device.type, enabled=False):
            outputs = self.network(**inputs)
        sizes = [(image.height, image.width) for image in images]
        options = {"threshold": self.threshold, "target_sizes": sizes}
        if self.is_open_vocabulary:
            results = self.processor.post_process_grounded_object_detection(outputs, **options)
        else:
            names = self._names()
            results = self.processor.post_process_object_detection(outputs, **options)
        return [
            [
                Detection(names[label], tuple(box), score)
                for score, label, box in zip(*(result[key].tolist() for key in ("scores", "labels", "boxes")))
            ]
            for result in results
        ]

    def _names(self) -> dict[int, str]:
        return {label: self.rename.get(name, name) for label, name in self.network.config.id2label.items()}

    @cached_property
    def _fixed_classes(self) -> frozenset[str] | None:
        """`None` for a model that is told what to look for, and for one that is not there, which `load` says better."""
        try:
            config = load_config(self.__name__, self.model, self.revision)
        except ValueError:
            return None
        names = frozenset(self.rename.get(name, name) for name in config.id2label.values())
        return None if config.model_type in OPEN_VOCABULARY else names

    def check_classes(self, classes: Iterable[str]) -> None:
        """
        Check classes against those of the model, of which no weights are read; one that is told what to look for knows all.

        Args:
            classes (`Iterable[str]`): that a dataset asks for.

        Raises:
            ValueError: if a detector with fixed classes does not know one of them.
        """
        if self._fixed_classes is None:
            return
        known = self._fixed_classes
        unknown = sorted(set(classes) - known)
        if unknown:
            raise ValueError(
                f"the detector {self.model!r} has no class {unknown[0]!r}; name the one that is meant in its `rename`, or use a "
                f"detector that is told what to look for. It knows {len(known)} classes, such as {', '.join(sorted(known)[:3])}."
            )


def best_boxes(detections: Sequence[Detection], max_overlap: float) -> list[Detection]:
    """
    Detections without those that overlap a better one of the same class, best first.

    Args:
        detections (`Sequence[Detection]`): of one image.
        max_overlap (`float`): largest intersection over union that is allowed.
    """
    kept: list[Detection] = []
    for detection in sorted(detections, key=lambda detection: -detection.score):
        same = (other for other in kept if other.label == detection.label)
        if all(_overlap(detection.box, other.box) <= max_overlap for other in same):
            kept.append(detection)
    return kept


def _overlap(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return common / max(sum(areas) - common, 1e-9)
