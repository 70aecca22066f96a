# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Whether the objects a prompt asks for are there: their number, colour and place, as GenEval checks them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

from PIL import Image

from .base import REWARDS
from .compositional_rules import Specification, judge, read_specification
from .detectors import PIXEL_COLORS, Detector, color_name
from .learned_images import to_rgb
from .transformers_detector import TransformersDetector


class GenEvalReward:
    """
    The part of a prompt's requirements that an image meets: counts, colours and positions of objects.

    Ghosh et al., "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment" (arXiv 2310.11513). The dataset
    columns are GenEval's: `include`, a list of `{"class", "count"}` with `"color"` and `"position"` where they matter;
    `exclude`, a list of `{"class", "count"}`, satisfied by fewer objects; and `tag`.
    `"position": ["left of", 0]` means left of the objects of the first entry of `include`. A column may hold the lists as JSON
    text, and a row without any requirement is skipped.

    Graded, every entry of `include` gives a part for the number of objects found, one for those of the right colour, and one
    for the pairs in the right place; every entry of `exclude` gives a part that counts as far as what is included was found, so
    that an empty picture earns nothing. The reward is the mean of the parts. Strict, it is 1 where all of them hold, else 0.

    Departures from GenEval: it uses Mask2Former and names colours with CLIP, see [`detectors.color_name`]; and it looks at the
    colour of only as many objects as are wanted, the surest, while here any objects of the class may have it. So numbers do
    not compare with GenEval's leader board.

    * Range: 0 to 1.
    * Licence: of the detector; OWLv2 is Apache-2.0.
    * Cost: of the detector. The default, OWLv2 base, has 0.15 billion parameters and reads images at 960x960 pixels.

    Args:
        detector ([`detectors.Detector`], *optional*): what finds objects; OWLv2 of transformers when unset. It may have a method
            `load`, which [`load`] calls, and `check_classes`, which raises a `ValueError` for a class that it never finds.
        strict (`bool`, *optional*, defaults to `False`): 1 or 0 instead of parts.
        min_score (`float`, *optional*, defaults to 0.0): detections with a lower score do not count; GenEval's is 0.3.
        counting_min_score (`float`, *optional*): likewise for rows with the tag `"counting"`; `min_score` when unset, GenEval's
            is 0.9.
        name_color (`Callable`, *optional*): `(image, box) -> str`, for detections without a colour.
    """

    image_type = "pil"
    dataset_columns = ("include", "exclude", "tag")

    def __init__(
        self,
        detector: Detector | None = None,
        *,
        strict: bool = False,
        min_score: float = 0.0,
        counting_min_score: float | None = None,
        name_color: Callable[[Image.Image, tuple[float, float, float, float]], str] = color_name,
    ):
        self.__name__ = "geneval_strict" if strict else "geneval"
        self.detector = default_detector() if detector is None else detector
        self.strict = strict
        self.min_score = min_score
        self.counting_min_score = min_score if counting_min_score is None else counting_min_score
        self.name_color = name_color

    def load(self) -> GenEvalReward:
        """Loads the detector, where it has something to load; returns itself."""
        getattr(self.detector, "load", lambda: None)()
        return self

    def __call__(
        self,
        prompts: Sequence[str],
        images: Sequence[Image.Image],
        include: Sequence[Any] | None = None,
        exclude: Sequence[Any] | None = None,
        tag: Sequence[str | None] | None = None,
        **columns,
    ) -> list[float | None]:
        """
        One score per image.

        Args:
            prompts (`Sequence[str]` of length `B`): named in error messages.
            images (`Sequence[PIL.Image.Image]` of length `B`): of any mode; transparency is put on white.
            include (`Sequence[list[dict]]` of length `B`): what must be seen.
            exclude (`Sequence[list[dict]]` of length `B`, *optional*): what must not.
            tag (`Sequence[str]` of length `B`, *optional*): kind of the prompt.
            columns: further dataset columns and `preview`; not used.

        Raises:
            ValueError: if the column `include` is missing, a requirement makes no sense, an entry is not a PIL image, or the
                detector fails to give one list per image.
        """
        if include is None:
            raise self._no_include()
        nothing = [None] * len(prompts)
        rows = zip(prompts, include, nothing if exclude is None else exclude)
        specifications = [read_specification(prompt, *lists) for prompt, *lists in rows]
        self._check_colors(specifications)
        tags = nothing if tag is None else tag
        applies = [row for row, specification in enumerate(specifications) if specification is not None]
        pictures = [to_rgb(images[row]) for row in applies]
        found = self.detector(pictures, [specifications[row].classes for row in applies])
        if not isinstance(found, Sequence) or len(found) != len(applies):
            raise ValueError(
                f"the detector of reward `{self.__name__}` must return one list of detections for each of {len(applies)} "
                f"images, not {found!r:.80}."
            )
        rewards: list[float | None] = list(nothing)
        for row, picture, detections in zip(applies, pictures, found):
            least = self.counting_min_score if tags[row] == "counting" else self.min_score
            sure = [detection for detection in detections if detection.score >= least]
            parts = judge(specifications[row], sure, lambda box, picture=picture: self.name_color(picture, box))
            rewards[row] = float(parts.strict) if self.strict else parts.graded
        return rewards

    def check_row(self, prompt: str, **columns) -> None:
        """
        Check that the requirements of a row make sense, and that the detector can meet them.

        Args:
            prompt (`str`): named in error messages.
            columns: of which `include` and `exclude` are looked at.

        Raises:
            ValueError: if there is no column `include`, or an entry makes no sense or asks for what is never found.
        """
        specification = self.check_row_of_server(prompt, **columns)
        if specification is not None:
            self._check_colors([specification])
            getattr(self.detector, "check_classes", lambda classes: None)(specification.classes)

    def check_row_of_server(self, prompt: str, **columns) -> Specification | None:
        """Check that the requirements make sense, and return them; a server may have a detector of its own."""
        if "include" not in columns:
            raise self._no_include()
        return read_specification(prompt, columns["include"], columns.get("exclude"))

    def _no_include(self) -> ValueError:
        return ValueError(
            f"reward `{self.__name__}` needs the dataset column `include`, a list of {{'class', 'count'}} per prompt as in "
            "GenEval's metadata; add it to the dataset."
        )

    def _check_colors(self, specifications: Sequence[Specification | None]) -> None:
        """Refuses colours that would never be seen; a detector or `name_color` of the user's may name any."""
        if self.name_color is not color_name or not isinstance(self.detector, TransformersDetector):
            return
        wanted = {entry.color for one in specifications if one is not None for entry in one.include}
        for color in sorted(wanted - {None, *PIXEL_COLORS}):
            nearest = get_close_matches(color, PIXEL_COLORS, n=1)
            raise ValueError(
                f"reward `{self.__name__}`: the dataset asks for the color {color!r}, which `color_name` does not know; "
                f"{f'did you mean {nearest[0]!r}? ' if nearest else ''}it knows {', '.join(PIXEL_COLORS)}; or give the reward a "
                "`name_color` of your own."
            )


@cache
def default_detector() -> TransformersDetector:
    """OWLv2, not loaded; the rewards that use it share one."""
    return TransformersDetector()


REWARDS.register("geneval")(GenEvalReward())
REWARDS.register("geneval_strict")(GenEvalReward(strict=True))
