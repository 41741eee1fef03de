"""Pixel masks of *other* classes than those that are asked for: what a method may learn outlines from, and says so."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import UInt8

from tagseg.data.images import reading_others
from tagseg.data.index import ImageSource, MaskedSet, TaggedSet
from tagseg.types import UsageError

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class OtherMasks:
    """Images, tags and masks of classes of which none is a class of the target. Build it with `of_other_classes`.

    Its masks are read under their own count, so that no mask of the target can hide among them.
    """

    masked: MaskedSet

    @property
    def tagged(self) -> TaggedSet:
        """The images with tags alone."""
        return self.masked.without_masks()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.masked.classes

    @property
    def key(self) -> str:
        """Identity: content of images, tags and masks, which are opened for it, as others."""
        with reading_others():
            return self.masked.key

    def mask(self, id: str) -> UInt8[np.ndarray, "h w"]:
        """One mask, 0 background, 1.. its classes, 255 ignored."""
        with reading_others():
            return self.masked.mask(id)


def of_other_classes(masked: MaskedSet, target: tuple[str, ...]) -> OtherMasks:
    """Masks as `OtherMasks`. Errors: `UsageError` naming the classes that both sets have."""
    shared = [name for name in masked.classes if name in set(target)]
    if shared:
        more = f" and {len(shared) - _SHOWN} more" if len(shared) > _SHOWN else ""
        raise UsageError(f"--aux: the classes {', '.join(shared[:_SHOWN])}{more} are among those that are asked for; "
                         "expected masks of other classes alone: leave these out of its classes.txt and masks, or of "
                         "the target's tags")
    if not masked.tagged.tags.any():
        raise UsageError(f"--aux: no image of {masked.name!r} has a tag, expected masks of tagged objects")
    return OtherMasks(masked)


@dataclass(frozen=True)
class JoinedImages:
    """Images of several sources by PART/ID."""

    parts: dict[str, ImageSource]

    def read(self, id: str) -> UInt8[np.ndarray, "3 h w"]:
        part, _, own = id.partition("/")
        return self.parts[part].read(own)

    def size(self, id: str) -> tuple[int, int]:
        part, _, own = id.partition("/")
        return self.parts[part].size(own)

    def digest(self, id: str) -> str:
        part, _, own = id.partition("/")
        return self.parts[part].digest(own)


@dataclass(frozen=True, eq=False)
class Joined:
    """Target and source as one set of tags: classes of the target first, images by target/ID and source/ID."""

    target: TaggedSet
    source: TaggedSet

    @cached_property
    def tagged(self) -> TaggedSet:
        many, few = len(self.target.classes), len(self.source.classes)
        ids = [*(f"source/{i}" for i in self.source.ids), *(f"target/{i}" for i in self.target.ids)]
        tags = np.zeros((len(ids), many + few), np.bool_)
        tags[: len(self.source), many:], tags[len(self.source) :, :many] = self.source.tags, self.target.tags
        tagged = np.concatenate([self.source.tagged, self.target.tagged])
        images = JoinedImages({"target": self.target.source, "source": self.source.source})
        classes = (*self.target.classes, *self.source.classes)
        return TaggedSet(f"{self.target.name} and {self.source.name}", classes, tuple(ids), tags, tagged, images,
                         self.target.has_background)  # fmt: skip
