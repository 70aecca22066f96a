"""The programmatic verifier of the shapes world: images and captions in, a graded reward and a strict verdict out.

It works on whole batches with numpy alone, in four steps: separate objects from the background, label connected
components, describe each component (colour, shape, place, size), and match the components with the caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from .world import (
    BACKGROUND,
    COLORS,
    IMAGE_SIZE,
    PALETTE,
    RELATIONS,
    SHAPES,
    Caption,
    Object,
    circle_distance,
    parse_caption,
    square_distance,
    triangle_distance,
)


FOREGROUND = 0.45
#: Components below this many pixels are fragments: they cost reward, but they are not objects.
MIN_AREA = 10
#: Objects beyond this many (largest first) only add to the count of surplus objects.
MAX_OBJECTS = 8
#: The first object's centre must lie this many pixels beyond the second's.
RELATION_MARGIN = 3.0

#: Objects wider or higher than this many pixels are too large: a picture filled with white is not a white square.
MAX_EXTENT = 22

# An object that could be anything is not strictly right.
STRICT_SHAPE_IOU = 0.68
STRICT_COLOR_COSINE = 0.93
STRICT_FRAGMENT_PIXELS = 12

# How soft the graded reward is: differences of IoU, of cosine, pixels of area, pixels of margin.
SHAPE_TEMPERATURE = 0.03
COLOR_TEMPERATURE = 0.03
FULL_AREA = 25.0
RELATION_TEMPERATURE = 2.0
SURPLUS_PENALTY = 0.35
FRAGMENT_SCALE = 60.0

_PATCH = 12


@dataclass(frozen=True)
class Verdict:
    """
    What the verifier says of N images.

    Args:
        graded (`np.ndarray` of shape `(N,)`, float64):
            Reward in [0, 1]; 1 is a perfect image, and parts of a caption give parts of the reward.
        strict (`np.ndarray` of shape `(N,)`, bool):
            Whether exactly the objects of the caption are there, in the relation it asks for.
    """

    graded: np.ndarray
    strict: np.ndarray


@dataclass(frozen=True)
class Detections:
    """
    The objects found in N images, largest first, in M = `MAX_OBJECTS` slots; empty slots have `area` 0.

    Args:
        area (`np.ndarray` of shape `(N, M)`): size in pixels.
        centre (`np.ndarray` of shape `(N, M, 2)`): centre of the bounding box, (x, y) in pixels.
        extent (`np.ndarray` of shape `(N, M)`): longer side of the bounding box in pixels.
        color_cosine (`np.ndarray` of shape `(N, M, 6)`): cosine to each colour of `COLORS`, averaged over the object's
            pixels, so that a mixture of colours is far from all of them.
        shape_iou (`np.ndarray` of shape `(N, M, 3)`): overlap with each shape of `SHAPES`.
        count (`np.ndarray` of shape `(N,)`): number of objects, those without a slot included.
        fragment_pixels (`np.ndarray` of shape `(N,)`): pixels in components too small to be objects.
    """

    area: np.ndarray
    centre: np.ndarray
    extent: np.ndarray
    color_cosine: np.ndarray
    shape_iou: np.ndarray
    count: np.ndarray
    fragment_pixels: np.ndarray


def verify(images: np.ndarray, captions: Sequence[str]) -> Verdict:
    """
    Judge images against captions.

    Args:
        images (`np.ndarray` of shape `(N, 32, 32, 3)`):
            `uint8` in [0, 255] or floating point in [0, 1].
        captions (`Sequence[str]`):
            N captions of the shapes world; each is parsed, see `parse_caption`.

    Returns:
        [`Verdict`]

    Raises:
        `ValueError`: if a caption is not of the grammar, or if the shapes or the lengths do not fit.
    """
    images = _as_float(images)
    if len(images) != len(captions):
        raise ValueError(
            f"`images` has {len(images)} rows and `captions` {len(captions)}; give one caption per image."
        )
    parsed = [parse_caption(caption) for caption in captions]
    found = detect(images)
    graded, strict = np.zeros(len(images)), np.zeros(len(images), dtype=bool)
    rows_by_form: dict[tuple[int, bool], list[int]] = {}
    for row, caption in enumerate(parsed):
        rows_by_form.setdefault((len(caption.objects), len(set(caption.objects)) == 1), []).append(row)
    for (_, repeated), rows in rows_by_form.items():
        judge = _judge_repeated if repeated else _judge_two
        graded[rows], strict[rows] = judge(_select(found, rows), [parsed[row] for row in rows])
    return Verdict(graded=np.clip(graded, 0.0, 1.0), strict=strict)


def detect(images: np.ndarray) -> Detections:
    """Find the objects of floating point images `(N, 32, 32, 3)` in [0, 1], whatever the captions say."""
    value = images.max(axis=-1)
    labels = _label(value > FOREGROUND)
    n = len(images)

    flat = labels.ravel().astype(np.int64)
    pixels = np.flatnonzero(flat)
    # Components of different images get different keys; sorting by key puts each component in one run.
    keys = flat[pixels] + (pixels // IMAGE_SIZE**2) * (IMAGE_SIZE**2 + 1)
    order = np.argsort(keys, kind="stable")
    pixels, keys = pixels[order], keys[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, np.int64)
    area = np.diff(np.r_[starts, len(keys)])
    image = pixels[starts] // IMAGE_SIZE**2

    fragment = area < MIN_AREA
    fragment_pixels = np.bincount(image[fragment], weights=area[fragment], minlength=n)
    count = np.bincount(image[~fragment], minlength=n)

    found = Detections(
        area=np.zeros((n, MAX_OBJECTS)),
        centre=np.zeros((n, MAX_OBJECTS, 2)),
        extent=np.zeros((n, MAX_OBJECTS)),
        color_cosine=np.zeros((n, MAX_OBJECTS, len(COLORS))),
        shape_iou=np.zeros((n, MAX_OBJECTS, len(SHAPES))),
        count=count,
        fragment_pixels=fragment_pixels,
    )
    if not (~fragment).any():
        return found

    y, x = pixels // IMAGE_SIZE % IMAGE_SIZE, pixels % IMAGE_SIZE
    x_low, x_high = np.minimum.reduceat(x, starts), np.maximum.reduceat(x, starts) + 1
    y_low, y_high = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts) + 1
    color_cosine = np.add.reduceat(_color_cosine(images.reshape(-1, 3)[pixels]), starts, axis=0) / area[:, None]

    # Largest first within each image; the rank is the slot.
    kept = np.flatnonzero(~fragment)
    kept = kept[np.lexsort((-area[kept], image[kept]))]
    slot = np.arange(len(kept)) - np.searchsorted(image[kept], image[kept])
    kept, slot = kept[slot < MAX_OBJECTS], slot[slot < MAX_OBJECTS]
    at = (image[kept], slot)

    found.area[at] = area[kept]
    found.centre[at] = np.stack([(x_low + x_high)[kept], (y_low + y_high)[kept]], axis=-1) / 2
    found.extent[at] = np.maximum(x_high - x_low, y_high - y_low)[kept]
    found.color_cosine[at] = color_cosine[kept]
    box = (x_low[kept], x_high[kept], y_low[kept], y_high[kept])
    found.shape_iou[at] = _shape_iou(value, labels, image[kept], keys[starts][kept] % (IMAGE_SIZE**2 + 1), box)
    return found


def _as_float(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(f"`images` has shape {images.shape}; give (N, {IMAGE_SIZE}, {IMAGE_SIZE}, 3).")
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 255
    if np.issubdtype(images.dtype, np.floating):
        return images.astype(np.float32)
    raise ValueError(f"`images` has dtype {images.dtype}; give uint8 in [0, 255] or floating point in [0, 1].")


def _label(mask: np.ndarray) -> np.ndarray:
    """4-connected components of `(N, H, W)` masks: 0 is background, equal numbers are one component of that image."""
    n, height, width = mask.shape
    # The frame of zeros lets every pixel look at four neighbours without a special case.
    frame = np.zeros((n, height + 2, width + 2), dtype=np.int16)
    inner = frame[:, 1:-1, 1:-1]
    inner[:] = np.arange(1, height * width + 1, dtype=np.int16).reshape(height, width) * mask
    keep = np.where(mask, np.int16(-1), np.int16(0))
    active = np.arange(n)
    while len(active):
        part = frame[active]
        before = part[:, 1:-1, 1:-1].copy()
        for _ in range(4):
            center = part[:, 1:-1, 1:-1]
            best = np.maximum(part[:, :-2, 1:-1], part[:, 2:, 1:-1])
            np.maximum(best, part[:, 1:-1, :-2], out=best)
            np.maximum(best, part[:, 1:-1, 2:], out=best)
            np.maximum(best, center, out=best)
            np.bitwise_and(best, keep[active], out=center)
        frame[active] = part
        active = active[(part[:, 1:-1, 1:-1] != before).any(axis=(1, 2))]
    return frame[:, 1:-1, 1:-1]


@cache
def _palette_directions() -> np.ndarray:
    palette = np.array(list(PALETTE.values())) - BACKGROUND
    return (palette / np.linalg.norm(palette, axis=1, keepdims=True)).astype(np.float32)


def _color_cosine(pixels: np.ndarray) -> np.ndarray:
    above_background = np.clip(pixels - BACKGROUND, 0.0, None)
    norm = np.sqrt(np.einsum("ij,ij->i", above_background, above_background))[:, None]
    return (above_background / np.maximum(norm, 1e-6)) @ _palette_directions().T


@cache
def _shape_templates() -> np.ndarray:
    """The three shapes filling a box of `_PATCH` x `_PATCH` samples, `(3, _PATCH**2)`."""
    at = (np.arange(_PATCH) + 0.5) * 2 / _PATCH - 1
    dx, dy = at[None, :], at[:, None]
    softness = 1.0 / 5.0  # one pixel, for a typical radius of five
    distances = [f(dx, dy, 1.0) for f in (circle_distance, square_distance, triangle_distance)]
    return np.stack([np.clip(0.5 - d / softness, 0, 1).ravel() for d in distances])


def _shape_iou(value: np.ndarray, labels: np.ndarray, image: np.ndarray, label: np.ndarray, box: tuple) -> np.ndarray:
    x_low, x_high, y_low, y_high = box
    at = (np.arange(_PATCH) + 0.5) / _PATCH
    xs = x_low[:, None] + at * (x_high - x_low)[:, None] - 0.5
    ys = y_low[:, None] + at * (y_high - y_low)[:, None] - 0.5

    x0 = np.clip(np.floor(xs).astype(np.int64), 0, IMAGE_SIZE - 2)
    y0 = np.clip(np.floor(ys).astype(np.int64), 0, IMAGE_SIZE - 2)
    fx, fy = (xs - x0)[:, None, :], (ys - y0)[:, :, None]
    rows = image[:, None, None]

    def corner(dy: int, dx: int) -> np.ndarray:
        index = (rows, (y0 + dy)[:, :, None], (x0 + dx)[:, None, :])
        # Dim edge pixels belong to no component, bright ones of a neighbour do not count.
        mine = (labels[index] == label[:, None, None]) | (labels[index] == 0)
        return np.clip((value[index] - BACKGROUND) / (0.8 - BACKGROUND), 0, 1) * mine

    top = corner(0, 0) * (1 - fx) + corner(0, 1) * fx
    bottom = corner(1, 0) * (1 - fx) + corner(1, 1) * fx
    patch = (top * (1 - fy) + bottom * fy).reshape(len(image), 1, -1)
    template = _shape_templates()[None]
    return np.minimum(patch, template).sum(-1) / np.maximum(patch, template).sum(-1)


def _select(found: Detections, rows: list[int]) -> Detections:
    return Detections(**{name: value[rows] for name, value in vars(found).items()})


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _match(found: Detections, wanted: list[Object]) -> tuple[np.ndarray, np.ndarray]:
    """How well each slot fits one wanted object a row: a score `(N, M)` in [0, 1] and a strict verdict `(N, M)`."""
    color = np.array([COLORS.index(object.color) for object in wanted])[:, None, None]
    shape = np.array([SHAPES.index(object.shape) for object in wanted])[:, None, None]

    def take(values: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, np.broadcast_to(index, (*values.shape[:2], 1)), axis=2)[..., 0]

    p_color = take(_softmax(found.color_cosine / COLOR_TEMPERATURE), color)
    p_shape = take(_softmax(found.shape_iou / SHAPE_TEMPERATURE), shape)
    score = 0.25 * p_color + 0.25 * p_shape + 0.5 * p_color * p_shape
    score = score * np.clip(found.area / FULL_AREA, 0, 1) * np.clip(MAX_EXTENT / found.extent.clip(1), 0, 1) ** 2

    strict = (found.area > 0) & (found.extent <= MAX_EXTENT)
    strict &= found.color_cosine.argmax(-1) == color[..., 0]
    strict &= found.shape_iou.argmax(-1) == shape[..., 0]
    strict &= take(found.shape_iou, shape) >= STRICT_SHAPE_IOU
    strict &= take(found.color_cosine, color) >= STRICT_COLOR_COSINE
    return score, strict


def _tidiness(found: Detections, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """The factor for what should not be there, and whether the number of objects is exactly right."""
    surplus = np.maximum(found.count - wanted, 0)
    factor = np.exp(-SURPLUS_PENALTY * surplus) * np.exp(-found.fragment_pixels / FRAGMENT_SCALE)
    return factor, (found.count == wanted) & (found.fragment_pixels <= STRICT_FRAGMENT_PIXELS)


def _judge_repeated(found: Detections, captions: list[Caption]) -> tuple[np.ndarray, np.ndarray]:
    """`n` times the same object: the best `n` slots are the best assignment."""
    wanted = len(captions[0].objects)
    score, strict = _match(found, [caption.objects[0] for caption in captions])
    factor, exact = _tidiness(found, wanted)
    best = np.sort(score, axis=1)[:, -wanted:].mean(axis=1)
    return best * factor, exact & (strict.sum(axis=1) == wanted)


def _judge_two(found: Detections, captions: list[Caption]) -> tuple[np.ndarray, np.ndarray]:
    """Two different objects: the best ordered pair of different slots, the relation included."""
    first_score, first_strict = _match(found, [caption.objects[0] for caption in captions])
    second_score, second_strict = _match(found, [caption.objects[1] for caption in captions])
    relation_factor, relation_holds = _relation(found, captions)
    same_slot = np.eye(MAX_OBJECTS, dtype=bool)

    pair_score = (first_score[:, :, None] + second_score[:, None, :]) / 2 * relation_factor
    pair_score[:, same_slot] = 0
    pair_strict = first_strict[:, :, None] & second_strict[:, None, :] & relation_holds & ~same_slot

    factor, exact = _tidiness(found, 2)
    return pair_score.max(axis=(1, 2)) * factor, exact & pair_strict.any(axis=(1, 2))


def _relation(found: Detections, captions: list[Caption]) -> tuple[np.ndarray, np.ndarray]:
    """For each ordered pair of slots `(N, M, M)`: a factor in (0, 1], and whether the relation holds."""
    shape = (len(captions), MAX_OBJECTS, MAX_OBJECTS)
    factor, holds = np.ones(shape), np.ones(shape, dtype=bool)
    rows = [row for row, caption in enumerate(captions) if caption.relation is not None]
    if not rows:
        return factor, holds
    axis, sign = np.array([RELATIONS[captions[row].relation] for row in rows]).T
    along = found.centre[rows, :, axis]
    margin = sign[:, None, None] * (along[:, :, None] - along[:, None, :]) - RELATION_MARGIN
    factor[rows] = 0.5 + 0.5 / (1 + np.exp(-margin / RELATION_TEMPERATURE))
    holds[rows] = margin >= 0
    # A slot that holds nothing is nowhere: no credit for its place.
    missing = found.area[rows] == 0
    factor[rows] = np.where(missing[:, :, None] | missing[:, None, :], 0.5, factor[rows])
    return factor, holds
