"""The shapes world: 32x32 scenes of coloured shapes, their captions, and the compositional split.

Everything here is numpy and the standard library. A [`Caption`] says what must be seen, a [`Scene`] says where it is
drawn, [`render`] draws whole batches, and [`split_of`] decides from the caption alone whether a composition is seen in
training.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass

import numpy as np


IMAGE_SIZE = 32
#: Black keeps the dark anti-aliased edge of an object on the object's own colour direction.
BACKGROUND = 0.06

PALETTE = {
    "red": (0.95, 0.15, 0.15),
    "green": (0.15, 0.85, 0.20),
    "blue": (0.20, 0.35, 1.00),
    "yellow": (1.00, 0.90, 0.10),
    "purple": (0.75, 0.15, 0.95),
    "white": (1.00, 1.00, 1.00),
}
COLORS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle")
COUNTS = {"two": 2, "three": 3, "four": 4}
#: Relation -> (axis, sign): the first object lies at a smaller or larger x (axis 0) or y (axis 1, downwards).
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
KINDS = ("single", "count", "pair", "relation")

#: Circles below 4 px radius cannot be told from squares.
RADIUS = {1: (5.0, 9.0), 2: (4.2, 5.8), 3: (4.0, 5.0), 4: (4.0, 4.4)}
MIN_GAP = 2.0
BORDER = 0.5
#: Drawn relations are this clear (px between centres); the verifier asks for less, see `verifier.RELATION_MARGIN`.
DRAWN_RELATION_MARGIN = 6.0
HELD_OUT_ONE_IN = 5


@dataclass(frozen=True, order=True)
class Object:
    """A coloured shape, for instance `Object("blue", "square")`."""

    color: str
    shape: str

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"


ALL_OBJECTS = tuple(Object(color, shape) for color in COLORS for shape in SHAPES)


@dataclass(frozen=True)
class Caption:
    """
    The meaning of a caption. `str(caption)` is its text and `parse_caption` its inverse.

    Args:
        kind (`str`):
            One of `"single"`, `"count"`, `"pair"`, `"relation"`.
        objects (`tuple[Object, ...]`):
            What must be seen, in the order of the text; a count repeats its object.
        relation (`str`, *optional*):
            A key of `RELATIONS`, for the kind `"relation"` only: the first object lies there as seen from the second.
    """

    kind: str
    objects: tuple[Object, ...]
    relation: str | None = None

    def __str__(self) -> str:
        first, last = self.objects[0], self.objects[-1]
        if self.kind == "single":
            return f"a {first}"
        if self.kind == "count":
            word = next(word for word, count in COUNTS.items() if count == len(self.objects))
            return f"{word} {first}s"
        if self.kind == "pair":
            return f"a {first} and a {last}"
        return f"a {first} {self.relation} a {last}"


@dataclass(frozen=True)
class PlacedObject:
    """An [`Object`] with its centre `(x, y)` and `radius`, in pixels; y grows downwards."""

    object: Object
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """A caption and where its objects are drawn, in the order of `caption.objects`."""

    caption: Caption
    placed: tuple[PlacedObject, ...]


def all_captions(kind: str) -> list[Caption]:
    """Every caption of one kind, always in the same order. Raises `ValueError` for an unknown kind."""
    ordered_pairs = list(itertools.permutations(ALL_OBJECTS, 2))
    if kind == "single":
        return [Caption(kind, (object,)) for object in ALL_OBJECTS]
    if kind == "count":
        return [Caption(kind, (object,) * count) for object in ALL_OBJECTS for count in COUNTS.values()]
    if kind == "pair":
        return [Caption(kind, pair) for pair in ordered_pairs]
    if kind == "relation":
        return [Caption(kind, pair, relation) for pair in ordered_pairs for relation in RELATIONS]
    raise ValueError(f"`kind` is {kind!r}; choose one of {', '.join(KINDS)}.")


_CAPTIONS_BY_TEXT = {str(caption): caption for kind in KINDS for caption in all_captions(kind)}
#: Every word of the grammar, sorted: the vocabulary of the tiny text encoders.
WORDS = tuple(sorted({word for text in _CAPTIONS_BY_TEXT for word in text.split()}))


def parse_caption(text: str) -> Caption:
    """
    Read a caption such as `"two blue squares"` or `"a green triangle left of a yellow circle"`.

    Case, surrounding white space and a final full stop do not matter. Raises `ValueError` for any other text.
    """
    caption = _CAPTIONS_BY_TEXT.get(" ".join(text.lower().rstrip(" .").split()))
    if caption is None:
        raise ValueError(
            f"The caption {text!r} is not of the shapes world; write for instance 'a red circle', 'two blue squares', "
            "'a red circle and a blue square' or 'a red circle left of a blue square'."
        )
    return caption


def split_of(caption: Caption) -> str:
    """
    `"train"` or `"test"`, from a stable hash of what is composed.

    Pairs and relations share one key, the unordered pair of objects, so a held-out pair is never seen in either form or
    order. Counts are keyed by number and object. Single objects are always in `"train"`: the test split asks for new
    compositions of known parts.
    """
    if caption.kind == "single":
        return "train"
    key = "|".join(sorted(str(object) for object in caption.objects))
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0 else "train"


def captions_of(split: str) -> list[Caption]:
    """Every caption of `"train"` or `"test"`, ordered by kind. Raises `ValueError` for any other split."""
    if split not in ("train", "test"):
        raise ValueError(f"`split` is {split!r}; choose 'train' or 'test'.")
    return [caption for kind in KINDS for caption in all_captions(kind) if split_of(caption) == split]


def sample_scene(caption: Caption, rng: np.random.Generator) -> Scene:
    """Draw sizes and places that make `caption` true, without overlap and at least `MIN_GAP` px apart."""
    low, high = RADIUS[len(caption.objects)]
    while True:
        radii = rng.uniform(low, high, size=len(caption.objects))
        reach = radii + BORDER
        centres = rng.uniform(reach[:, None], IMAGE_SIZE - reach[:, None], size=(len(radii), 2))
        if _far_apart(centres, radii) and _relation_is_clear(caption.relation, centres):
            placed = tuple(
                PlacedObject(object, float(x), float(y), float(radius))
                for object, (x, y), radius in zip(caption.objects, centres, radii, strict=True)
            )
            return Scene(caption, placed)


def _far_apart(centres: np.ndarray, radii: np.ndarray) -> bool:
    # Every shape fills its bounding box of half-width `radius`, so boxes that are apart are shapes that are apart.
    for i in range(len(radii)):
        for j in range(i):
            gap = np.abs(centres[i] - centres[j]).max() - radii[i] - radii[j]
            if gap < MIN_GAP:
                return False
    return True


def _relation_is_clear(relation: str | None, centres: np.ndarray) -> bool:
    if relation is None:
        return True
    axis, sign = RELATIONS[relation]
    offset = centres[0] - centres[1]
    return bool(sign * offset[axis] >= max(DRAWN_RELATION_MARGIN, abs(offset[1 - axis])))


def sample_scenes(captions: list[Caption], seed: int) -> list[Scene]:
    """One scene for each caption, reproducible from `seed`."""
    rng = np.random.default_rng(seed)
    return [sample_scene(caption, rng) for caption in captions]


def render(scenes: list[Scene]) -> np.ndarray:
    """Draw scenes with anti-aliased edges: `uint8` images of shape `(len(scenes), 32, 32, 3)`."""
    image = np.full((len(scenes), IMAGE_SIZE, IMAGE_SIZE, 3), BACKGROUND, dtype=np.float32)
    for slot in range(max((len(scene.placed) for scene in scenes), default=0)):
        rows = [row for row, scene in enumerate(scenes) if slot < len(scene.placed)]
        placed = [scenes[row].placed[slot] for row in rows]
        alpha = _coverage(placed)[..., None]
        color = np.array([PALETTE[p.object.color] for p in placed], dtype=np.float32)[:, None, None, :]
        image[rows] += alpha * (color - image[rows])
    return np.round(image * 255).astype(np.uint8)


def _coverage(placed: list[PlacedObject]) -> np.ndarray:
    """How much of each pixel an object covers, `(len(placed), 32, 32)` in [0, 1], from signed distances."""
    pixel = np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5
    x, y, radius = np.array([(p.x, p.y, p.radius) for p in placed], dtype=np.float32).T[:, :, None, None]
    dx, dy = pixel[None, None, :] - x, pixel[None, :, None] - y
    shape = np.array([SHAPES.index(p.object.shape) for p in placed])[:, None, None]
    distances = [f(dx, dy, radius) for f in (circle_distance, square_distance, triangle_distance)]
    distance = np.choose(shape, distances)
    return np.clip(0.5 - distance, 0, 1)


def circle_distance(dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Signed distance to a circle; negative inside."""
    return np.hypot(dx, dy) - radius


def square_distance(dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Signed (Chebyshev) distance to a square of half-width `radius`; negative inside."""
    return np.maximum(np.abs(dx), np.abs(dy)) - radius


def triangle_distance(dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Signed distance to the three edges of an upward triangle that fills the box of half-width `radius`."""
    slope = (2 * np.abs(dx) - dy - radius) / np.sqrt(5.0)
    return np.maximum(slope, dy - radius)
