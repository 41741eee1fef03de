"""Tagged and masked sets: which images there are, what is known of each, and an identity made of their content."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from jaxtyping import Bool, UInt8

from tagseg.types import MAX_CLASSES, DataError, MaskedSample, Sample, UsageError, check_mask


class ImageSource(Protocol):
    """Where images come from, by id: files, archives or a generator."""

    def read(self, id: str) -> UInt8[np.ndarray, "3 h w"]:
        """The image as uint8 (3,H,W) RGB."""

    def size(self, id: str) -> tuple[int, int]:
        """(H, W) in pixels of what `read` gives."""

    def digest(self, id: str) -> str:
        """sha256 of the content, in hex."""


class MaskSource(Protocol):
    """Where pixel truth comes from, by id. Every opening is recorded with `tagseg.data.images.record_mask_read`."""

    @property
    def ids(self) -> Collection[str]:
        """The images that have a mask."""

    def read(self, id: str) -> UInt8[np.ndarray, "h w"]:
        """The mask as uint8 (H,W): 0 background, 1..C, 255 ignore."""

    def digest(self, id: str) -> str:
        """sha256 of the content, in hex."""


@dataclass(frozen=True, eq=False)
class TaggedSet:
    """Images with tags and without pixel truth: all that a stage which learns from tags can be given.

    `ids` sorted, N; `tags` bool (N,C); `tagged` bool (N,): False where nothing is known of an image, which is not the
    same as a negative (tagged, no tag): such images are predicted but never learned from, see `training`. `told` bool
    (N,C): which tags of an image are known, where it is not all of them; those that are not known are False in `tags`.
    Errors: `DataError` where these do not fit together.
    """

    name: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    tags: Bool[np.ndarray, "n c"]
    tagged: Bool[np.ndarray, " n"]
    source: ImageSource
    has_background: bool = True
    told: Bool[np.ndarray, "n c"] | None = None

    def __post_init__(self) -> None:
        _check_classes(self.name, self.classes)
        _check_ids(self.name, self.ids)
        shape = (len(self.ids), len(self.classes))
        if self.tags.dtype != np.bool_ or self.tags.shape != shape:
            raise DataError(f"set {self.name!r}: tags are {self.tags.dtype} {self.tags.shape}, expected bool {shape}")
        if self.tagged.dtype != np.bool_ or self.tagged.shape != shape[:1]:
            raise DataError(f"set {self.name!r}: tagged is {self.tagged.dtype} {self.tagged.shape}, "
                            f"expected bool {shape[:1]}")
        if self.tags[~self.tagged].any():
            raise DataError(f"set {self.name!r}: images marked as untagged have tags")
        if self.told is not None and (self.told.shape != shape or self.tags[~self.told].any()):
            raise DataError(f"set {self.name!r}: found {self.told.shape} told tags, or tags among those that are not "
                            f"told; expected {shape}, and every tag told")

    def __len__(self) -> int:
        return len(self.ids)

    def sample(self, id: str) -> Sample:
        """One image with its tags. An unknown id raises `UsageError` with the nearest."""
        tags = self.tags_of(id)
        return Sample(id, self.source.read(id), tags)

    def tags_of(self, id: str) -> Bool[np.ndarray, " c"]:
        """The tags of one image as bool (C,), without reading the image."""
        return self.tags[self._row(id)]

    def select(self, ids: Iterable[str]) -> TaggedSet:
        """The images named, in the set's own order."""
        rows = sorted({self._row(id) for id in ids})
        return self._rows(np.array(rows, dtype=np.int64))

    def limit(self, n: int) -> TaggedSet:
        """At most `n` images, spread over the set, the same ones each time; a smaller limit is part of a larger."""
        return self.select(spread(self.ids, n))

    def images(self) -> Images:
        """The images without what is known of them."""
        return Images(self.ids, self.source)

    def training(self) -> TaggedSet:
        """The images of which tags are known, negatives included."""
        return self._rows(np.flatnonzero(self.tagged))

    def without_tags(self) -> TaggedSet:
        """The same images of which nothing is known: what a segmenter that needs no tags is given."""
        return replace(self, tags=np.zeros_like(self.tags), tagged=np.zeros_like(self.tagged), told=None)

    @cached_property
    def key(self) -> str:
        """Identity: sha256 over classes, ids, tags and image content. Not the name, the place, or any mask."""
        head = [self.classes, self.has_background, self.ids, self.tags.astype(int).tolist(), self.tagged.tolist()]
        head += [] if self.told is None else [self.told.astype(int).tolist()]
        content = [self.source.digest(id) for id in self.ids]
        return _sha256("tagged", [*head, content])

    @property
    def fingerprint(self) -> str:
        return self.key

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {id: row for row, id in enumerate(self.ids)}

    def _row(self, id: str) -> int:
        if id not in self._positions:
            near = difflib.get_close_matches(id, self.ids, n=1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise UsageError(f"set {self.name!r} has no image {id!r}{hint}")
        return self._positions[id]

    def _rows(self, rows: np.ndarray) -> TaggedSet:
        ids = tuple(self.ids[row] for row in rows)
        told = None if self.told is None else self.told[rows]
        return replace(self, ids=ids, tags=self.tags[rows], tagged=self.tagged[rows], told=told)


@dataclass(frozen=True, eq=False)
class Images:
    """The images of a set without what is known of them: superpixels and saliency are the same whatever the tags say.

    `ids` sorted.
    """

    ids: tuple[str, ...]
    source: ImageSource

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def key(self) -> str:
        """Identity: ids and image content."""
        return hashlib.sha256(json.dumps(["images", self.ids, [self.source.digest(id) for id in self.ids]]).encode()
                              ).hexdigest()


@dataclass(frozen=True, eq=False)
class MaskedSet:
    """Images with tags and pixel truth, for evaluation and for methods that say they need masks; every id has a mask.

    Build it with `with_masks`. Errors: `DataError` where an image has no mask.
    """

    tagged: TaggedSet
    masks: MaskSource

    def __post_init__(self) -> None:
        known = frozenset(self.masks.ids)
        bare = [id for id in self.ids if id not in known]
        if bare:
            raise DataError(f"set {self.name!r}: {len(bare)} images have no mask, the first is {bare[0]!r}; "
                            "build the set with tagseg.data.index.with_masks, which leaves them out")

    @property
    def name(self) -> str:
        return self.tagged.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.tagged.classes

    @property
    def ids(self) -> tuple[str, ...]:
        return self.tagged.ids

    @property
    def has_background(self) -> bool:
        return self.tagged.has_background

    def __len__(self) -> int:
        return len(self.tagged)

    def sample(self, id: str) -> MaskedSample:
        """One image with tags and mask. Errors: `DataError` that names both sizes, or the values out of range."""
        plain, mask = self.tagged.sample(id), self.mask(id)
        check_size(id, mask.shape, plain.image.shape[1:])
        return MaskedSample(id, plain.image, plain.tags, mask)

    def mask(self, id: str) -> UInt8[np.ndarray, "h w"]:
        """The mask alone, its values checked against the classes."""
        self.tagged._row(id)
        mask = self.masks.read(id)
        check_mask(mask, len(self.classes), f"mask of {id!r}")
        return mask

    def select(self, ids: Iterable[str]) -> MaskedSet:
        """The images named, in the set's own order."""
        return MaskedSet(self.tagged.select(ids), self.masks)

    def limit(self, n: int) -> MaskedSet:
        """At most `n` images, as `TaggedSet.limit`."""
        return MaskedSet(self.tagged.limit(n), self.masks)

    def without_masks(self) -> TaggedSet:
        """The same images with tags only: the one explicit way down."""
        return self.tagged

    @cached_property
    def key(self) -> str:
        """Identity: that of the tagged set and the content of every mask."""
        return _sha256("masked", [self.tagged.key, [self.masks.digest(id) for id in self.ids]])

    @property
    def fingerprint(self) -> str:
        return self.key


def with_masks(images: TaggedSet, masks: MaskSource) -> MaskedSet | None:
    """The part of a set that has masks; None where no image has one."""
    known = frozenset(masks.ids)
    ids = [id for id in images.ids if id in known]
    return MaskedSet(images.select(ids), masks) if ids else None


def spread(ids: Iterable[str], n: int) -> tuple[str, ...]:
    """At most `n` of the ids, chosen by the hash of each id: independent of order, nested in `n`; sorted."""
    if n < 1:
        raise UsageError(f"limit is {n}, expected 1 or more")
    by_hash = sorted(ids, key=lambda id: hashlib.sha256(id.encode()).digest())
    return tuple(sorted(by_hash[:n]))


def _sha256(kind: str, content: object) -> str:
    return hashlib.sha256(json.dumps([kind, content], separators=(",", ":")).encode()).hexdigest()


def _check_classes(name: str, classes: tuple[str, ...]) -> None:
    if not 1 <= len(classes) <= MAX_CLASSES:
        raise DataError(f"set {name!r}: found {len(classes)} classes, expected 1..{MAX_CLASSES} "
                        "(0 is background and 255 ignore in a mask of bytes)")
    if len(set(classes)) < len(classes) or not all(classes):
        raise DataError(f"set {name!r}: class names must differ and not be empty, found {list(classes)}")


def _check_ids(name: str, ids: tuple[str, ...]) -> None:
    for before, after in itertools.pairwise(ids):
        if before >= after:
            what = "twice" if before == after else f"after {before!r}"
            raise DataError(f"set {name!r}: found id {after!r} {what}, expected different ids in sorted order")


def check_size(id: str, mask: tuple[int, ...], image: tuple[int, ...]) -> None:
    """Raise `DataError` that names both sizes where a mask (H,W) does not fit its image (H,W)."""
    if mask == image:
        return
    turned = mask == image[::-1]
    hint = ("; it fits the photo before its EXIF rotation, so turn the mask as the photo is shown" if turned
            else "; masks must have their image's size, resized with nearest neighbour")
    raise DataError(f"mask of {id!r}: found {mask[0]}x{mask[1]} (HxW), "
                    f"expected the image's {image[0]}x{image[1]}{hint}")
