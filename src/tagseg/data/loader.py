"""Training batches: crop first, resize only the crop, bytes until the device; a batch is a function of (seed, step).

Images of one batch have about one aspect ratio, so that a crop of its shape loses little of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from tagseg.config import added
from tagseg.data.index import ImageSource, TaggedSet
from tagseg.types import I32, IGNORE, U8

FILL = (124, 116, 104)  # the mean colour that the pretrained weights were trained with
NOWHERE = -1  # the region of a pixel outside of the image
_ASPECTS = 1.4  # from one group of aspect ratios to the next


@dataclass(frozen=True)
class Augment:
    """`size`: square root of the crop's area in pixels; its shape follows the images' aspect ratio, unless `square`.

    `scale`: range of the random zoom of the whole image against the crop; `colour`: strength of brightness, contrast
    and saturation jitter.
    """

    size: int = 256
    scale: tuple[float, float] = (0.8, 1.25)
    flip: bool = True
    colour: float = 0.2
    square: bool = added(False)


class Window(NamedTuple):
    """Where the crop lies: `box` (left, top, right, bottom) in the source's pixels (may exceed it), mirrored or not."""

    box: tuple[float, float, float, float]
    flip: bool


def crop_shape(sizes: list[tuple[int, int]], size: int, multiple: int = 16) -> tuple[int, int]:
    """(h, w) of area about size² with the median aspect ratio of `sizes` [(H,W), ...], in multiples of `multiple`."""
    aspect = float(np.median([np.log(w / h) for h, w in sizes]))
    aspect = float(np.clip(np.exp(aspect), 1 / 3, 3))
    h, w = size / aspect**0.5, size * aspect**0.5
    return (max(multiple, round(h / multiple) * multiple), max(multiple, round(w / multiple) * multiple))


class Shapes(NamedTuple):
    """Crop shapes (h, w) of equal area for groups of images of about one aspect ratio, and each image's group (N,)."""

    crops: tuple[tuple[int, int], ...]
    group: np.ndarray


def crop_shapes(sizes: list[tuple[int, int]], size: int, few: int) -> Shapes:
    """A crop shape for each group of aspect ratios among `sizes` [(H,W), ...]; a group has at least `few` images.

    One shape for all would cut up to half off the images of another shape, and with it what their tags name. Images
    within about a fifth of the median aspect ratio stay one group.
    """
    aspects = np.log([w / h for h, w in sizes])
    steps = np.rint((aspects - np.median(aspects)) / np.log(_ASPECTS)).astype(np.int64)
    while len(kinds := np.unique(steps, return_counts=True)[0]) > 1:
        counts = [int((steps == kind).sum()) for kind in kinds]
        rare = int(np.argmin(counts))
        if counts[rare] >= few:
            break
        others = np.delete(kinds, rare)
        steps[steps == kinds[rare]] = others[np.argmin(np.abs(others - kinds[rare]))]
    group = np.searchsorted(kinds, steps)
    return Shapes(tuple(crop_shape([s for s, g in zip(sizes, group, strict=True) if g == kind], size)
                        for kind in range(len(kinds))), group)


def window(shape: tuple[int, int], crop: tuple[int, int], augment: Augment, rng: np.random.Generator) -> Window:
    """A random zoom and place. At zoom 1 the image has the crop's area; what lies outside the image is filled."""
    (height, width), (ch, cw) = shape, crop
    zoom = float(np.exp(rng.uniform(*np.log(augment.scale)))) * (ch * cw / (height * width)) ** 0.5
    view_h, view_w = ch / zoom, cw / zoom
    top, left = (
        rng.uniform(min(0.0, full - view), max(0.0, full - view)) for full, view in ((height, view_h), (width, view_w))
    )
    return Window((left, top, left + view_w, top + view_h), bool(augment.flip and rng.random() < 0.5))


def cut(
    image: Image.Image, view: Window, crop: tuple[int, int], *, fill: int | tuple[int, ...], nearest: bool
) -> Image.Image:
    """The window of an image at the crop's size: only the needed part is resampled, the rest is `fill`."""
    left, top, right, bottom = view.box
    sx, sy = crop[1] / (right - left), crop[0] / (bottom - top)
    inner = (max(left, 0.0), max(top, 0.0), min(right, float(image.width)), min(bottom, float(image.height)))
    x0, y0, x1, y1 = (
        round((inner[0] - left) * sx),
        round((inner[1] - top) * sy),
        round((inner[2] - left) * sx),
        round((inner[3] - top) * sy),
    )
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    method = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    part = image.resize((x1 - x0, y1 - y0), method, box=inner, reducing_gap=None if nearest else 2.0)
    if part.size != (crop[1], crop[0]):
        whole = Image.new(image.mode, (crop[1], crop[0]), fill)
        whole.paste(part, (x0, y0))
        part = whole
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else part


def jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation, each by a factor in 1 ± strength (no hue: it is dear)."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(float(rng.uniform(1 - strength, 1 + strength)))
    return image


def draw(
    image: U8, labels: U8 | I32 | None, crop: tuple[int, int], augment: Augment, rng: np.random.Generator
) -> tuple[U8, U8 | I32 | None]:
    """One augmented crop of an image (3,H,W) and, cut alike, of its labels (H,W): (3,h,w) and (h,w).

    Labels uint8 are 255 outside of the image, ids of regions (int32) are -1.
    """
    view = window((image.shape[1], image.shape[2]), crop, augment, rng)
    photo = cut(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), view, crop, fill=FILL, nearest=False)
    photo = jitter(photo, augment.colour, rng) if augment.colour else photo
    fill = IGNORE if labels is None or labels.dtype == np.uint8 else NOWHERE
    mask = None if labels is None else np.asarray(cut(Image.fromarray(labels), view, crop, fill=fill, nearest=True))
    return np.ascontiguousarray(np.asarray(photo).transpose(2, 0, 1)), mask


def lined_up(tags: np.ndarray, positives: float) -> np.ndarray:
    """Image indices of one pass: tagged images are repeated until they make up the share `positives`."""
    tagged = np.flatnonzero(tags.any(1))
    others = np.flatnonzero(~tags.any(1))
    if not len(tagged) or len(tagged) >= positives * len(tags):
        return np.arange(len(tags))
    times = round(positives / (1 - positives) * len(others) / len(tagged))
    return np.concatenate([others, np.repeat(tagged, max(times, 1))])


def turn(shares: tuple[int, ...], seed: int, step: int) -> tuple[int, int]:
    """Which of the groups a step draws from, in proportion to their `shares`, and how often it was drawn before."""
    if len(shares) == 1:
        return 0, step
    drawn, before = _turns(shares, seed, 1 << step.bit_length())
    return int(drawn[step]), int(before[step])


@lru_cache(maxsize=8)
def _turns(shares: tuple[int, ...], seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` turns; a longer sequence begins as a shorter one does."""
    ends = np.cumsum(shares)[:-1] / sum(shares)
    drawn = np.searchsorted(ends, np.random.default_rng([seed, 3]).random(count))
    before = np.empty(count, np.int64)
    for group in range(len(shares)):
        turns = np.flatnonzero(drawn == group)
        before[turns] = np.arange(len(turns))
    return drawn, before


def members(lines: Sequence[np.ndarray], batch: int, seed: int, step: int) -> tuple[int, list[tuple[int, int]]]:
    """The group of a batch, and (image index, draw number) of its members: passes over the group's line of images."""
    group, before = turn(tuple(len(line) for line in lines), seed, step)
    places, line = range(before * batch, (before + 1) * batch), lines[group]
    n = len(line)
    orders = {epoch: np.random.default_rng([seed, 1, epoch]).permutation(line) for epoch in {p // n for p in places}}
    return group, [(int(orders[p // n][p % n]), step * batch + i) for i, p in enumerate(places)]


@dataclass(frozen=True)
class Draws:
    """What a batch is drawn from: images, their tags, and labels where a segmenter is trained.

    `positives` is the least share of draws that hold a tag, where the set has images without any.
    """

    source: ImageSource
    ids: tuple[str, ...]
    tags: np.ndarray  # bool (N,C)
    shapes: Shapes
    augment: Augment
    batch: int
    seed: int
    labels: Callable[[str], U8 | I32] | None = None
    positives: float = 0.0
    told: np.ndarray | None = None  # bool (N,C)

    def __call__(self, step: int) -> dict[str, Tensor]:
        """Batch of a step: `images` uint8 (B,3,h,w), `tags` bool (B,C) and, with labels, `labels` uint8 (B,h,w),
        or int32 where they are ids of regions; `told` bool (B,C) where not all tags are known."""
        group, chosen = self._members(step)
        drawn = [self._draw(index, number, self.shapes.crops[group]) for index, number in chosen]
        batch = {
            "images": torch.from_numpy(np.stack([image for image, _ in drawn])),
            "tags": torch.from_numpy(self.tags[[index for index, _ in chosen]]),
        }
        if self.told is not None:
            batch["told"] = torch.from_numpy(self.told[[index for index, _ in chosen]])
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(np.stack([mask for _, mask in drawn if mask is not None]))
        return batch

    def names(self, step: int) -> list[str]:
        """The ids of a step's batch."""
        return [self.ids[index] for index, _ in self._members(step)[1]]

    def _members(self, step: int) -> tuple[int, list[tuple[int, int]]]:
        return members(self._lines, self.batch, self.seed, step)

    @cached_property
    def _lines(self) -> list[np.ndarray]:
        """The images of each group, in a line."""
        line = lined_up(self.tags, self.positives)
        return [line[self.shapes.group[line] == group] for group in range(len(self.shapes.crops))]

    def _draw(self, index: int, number: int, crop: tuple[int, int]) -> tuple[U8, U8 | I32 | None]:
        sample = self.ids[index]
        labels = None if self.labels is None else self.labels(sample)
        return draw(self.source.read(sample), labels, crop, self.augment, np.random.default_rng([self.seed, 2, number]))


def drawn_from(
    tagged: TaggedSet,
    augment: Augment,
    batch: int,
    seed: int,
    labels: Callable[[str], U8 | I32] | None = None,
    positives: float = 0.0,
) -> Draws:
    """What a stage trains on: batches of the images of a set, each batch of one aspect ratio."""
    if augment.square:
        shapes = Shapes(((augment.size, augment.size),), np.zeros(len(tagged.ids), np.int64))
    else:
        shapes = crop_shapes([tagged.source.size(i) for i in tagged.ids], augment.size, batch)
    return Draws(tagged.source, tagged.ids, tagged.tags, shapes, augment, batch, seed, labels, positives,
                 tagged.told)


@contextmanager
def prefetched(
    batch: Callable[[int], dict[str, Tensor]], ahead: int = 3
) -> Iterator[Callable[[int], dict[str, Tensor]]]:
    """The same batches, the next `ahead` made meanwhile in a thread; order and content do not depend on timing."""
    waiting: dict[int, Future[dict[str, Tensor]]] = {}
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:

        def fetch(step: int) -> dict[str, Tensor]:
            for late in [s for s in waiting if s < step]:
                waiting.pop(late).cancel()
            for coming in range(step, step + ahead + 1):
                waiting.setdefault(coming, pool.submit(batch, coming)) if coming not in waiting else None
            return waiting.pop(step).result()

        try:
            yield fetch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
