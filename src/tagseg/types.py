"""The values that flow between rooms: images with tags, masks, class maps, labels; all checked at construction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tagseg.errors import DataError as DataError
from tagseg.errors import EnvironmentFault as EnvironmentFault
from tagseg.errors import IntegrityError as IntegrityError
from tagseg.errors import Interrupted as Interrupted
from tagseg.errors import TagsegError as TagsegError
from tagseg.errors import UsageError as UsageError

BACKGROUND = 0
IGNORE = 255
MAX_CLASSES = 254

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


def _require(ok: bool, what: str, found: object, expected: str) -> None:
    if not ok:
        raise DataError(f"{what}: found {found}, expected {expected}")


def _check_image(sample: str, image: U8, tags: Bool) -> None:
    _require(
        image.dtype == np.uint8 and image.ndim == 3 and image.shape[0] == 3,
        f"image of {sample!r}",
        f"{image.dtype} {image.shape}",
        "uint8 (3, H, W) RGB",
    )
    _require(min(image.shape[1:]) > 0, f"image of {sample!r}", image.shape, "at least one pixel")
    _require(
        tags.dtype == np.bool_ and tags.ndim == 1 and len(tags) <= MAX_CLASSES,
        f"tags of {sample!r}",
        f"{tags.dtype} {tags.shape}",
        f"bool (C,) with C <= {MAX_CLASSES}",
    )


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and what is known to be in it. `image` uint8 (3,H,W) RGB; `tags` bool (C,), background has no tag."""

    id: str
    image: U8
    tags: Bool

    def __post_init__(self) -> None:
        _check_image(self.id, self.image, self.tags)


@dataclass(frozen=True, eq=False)
class MaskedSample:
    """One image with pixel truth. A sibling of `Sample`, not a subclass: a tags-only stage cannot take it.

    `mask` uint8 (H,W): 0 background, 1..C classes, 255 ignore.
    """

    id: str
    image: U8
    tags: Bool
    mask: U8

    def __post_init__(self) -> None:
        _check_image(self.id, self.image, self.tags)
        check_mask(self.mask, len(self.tags), f"mask of {self.id!r}")
        _require(
            self.mask.shape == self.image.shape[1:],
            f"mask of {self.id!r}",
            f"size {self.mask.shape}",
            f"the image's size {self.image.shape[1:]}",
        )


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """Scores of the K present classes: `classes` int64 (K,) in 1..C ascending, `scores` float32 (K,h,w) in [0,1].

    `size` is (H,W) of the original image; the maps may be coarser. `image` float32 (K,) in [0,1], where it is known: to
    which share the whole image holds each class.
    """

    id: str
    classes: I64
    scores: F32
    size: tuple[int, int]
    image: F32 | None = None

    def __post_init__(self) -> None:
        what = f"maps of {self.id!r}"
        _require(
            self.classes.dtype == np.int64 and self.classes.ndim == 1,
            f"classes of {what}",
            f"{self.classes.dtype} {self.classes.shape}",
            "int64 (K,)",
        )
        _require(
            bool(
                np.all(self.classes >= 1) and np.all(self.classes <= MAX_CLASSES) and np.all(np.diff(self.classes) > 0)
            ),
            f"classes of {what}",
            self.classes.tolist(),
            f"ascending ids in 1..{MAX_CLASSES}",
        )
        _require(
            self.scores.dtype == np.float32 and self.scores.ndim == 3 and len(self.scores) == len(self.classes),
            what,
            f"{self.scores.dtype} {self.scores.shape}",
            f"float32 ({len(self.classes)}, h, w)",
        )
        _require(len(self.size) == 2 and min(self.size) > 0, f"size of {what}", self.size, "(H, W) of the image")
        if self.scores.size:
            low, high = float(self.scores.min()), float(self.scores.max())  # NaN fails both comparisons
            _require(low >= 0.0 and high <= 1.0, what, f"values in [{low}, {high}]", "values in [0, 1]")
        if self.image is not None:
            fits = self.image.shape == self.classes.shape and bool(np.all((self.image >= 0) & (self.image <= 1)))
            _require(fits, f"image scores of {what}", self.image.tolist(), f"{len(self.classes)} numbers in [0, 1]")


@dataclass(frozen=True, eq=False)
class Labels:
    """A hypothesis about every pixel, coded as a mask but never truth. `confidence` uint8 (H,W), 255 = sure."""

    id: str
    pixels: U8
    confidence: U8 | None = None

    def __post_init__(self) -> None:
        check_mask(self.pixels, MAX_CLASSES, f"labels of {self.id!r}")
        if self.confidence is not None:
            _require(
                self.confidence.dtype == np.uint8 and self.confidence.shape == self.pixels.shape,
                f"confidence of {self.id!r}",
                f"{self.confidence.dtype} {self.confidence.shape}",
                f"uint8 {self.pixels.shape}",
            )


def check_mask(mask: U8, classes: int, what: str) -> None:
    """Raise `DataError` with the offending values unless `mask` is uint8 (H,W) with values 0..classes or 255."""
    _require(mask.dtype == np.uint8 and mask.ndim == 2, what, f"{mask.dtype} {mask.shape}", "uint8 (H, W)")
    counts = np.bincount(mask.ravel(), minlength=256)
    bad = np.flatnonzero(counts[classes + 1 : IGNORE]) + classes + 1
    if len(bad):
        listed = ", ".join(f"{v} ({counts[v]} px)" for v in bad[:5])
        raise DataError(
            f"{what}: found values {listed}, expected 0..{classes} or {IGNORE} "
            "(coloured or 0/255 masks must be converted to class indices first)"
        )
