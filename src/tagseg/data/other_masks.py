"""Pixel masks of *other* classes than those that are asked for: what a method may learn outlines from, and says so."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from jaxtyping import UInt8

from tagseg.data.chosen import chosen
from tagseg.data.images import reading_others
from tagseg.data.index import ImageSource, MaskedSet, TaggedSet
from tagseg.types import UsageError

_SHOWN = 5
Rest = Literal["background", "drop", "ignore"]
RESTS: tuple[Rest, ...] = get_args(Rest)
SAID = {"background": "; the target's own classes count as background there",
        "drop": "; images with classes of the target left out",
        "ignore": "; where the target's own classes lie in them was looked at and left out"}  # fmt: skip


@dataclass(frozen=True, eq=False)
class OtherMasks:
    """Images, tags and masks of classes of which none is a class of the target. Build it with `of_other_classes`.

    Its masks are read under their own count, so that no mask of the target can hide among them. `rest`: what pixels of
    the target's classes are taken for, as `of_other_classes` says.
    """

    masked: MaskedSet
    rest: Rest = "background"
    overlap: bool = False  # whether the folder has classes of the target at all

    @property
    def said(self) -> str:
        """What the ledger says of the target's classes in these images."""
        return SAID[self.rest] if self.overlap else ""

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


def of_other_classes(masked: MaskedSet, target: tuple[str, ...], only: tuple[str, ...] = (),
                     rest: Rest = "background") -> OtherMasks:
    """Masks as `OtherMasks`; `only`: of these classes, all others are background.

    `rest` is about the target's classes in these images: "background" teaches the decoder to leave them out; "drop"
    leaves out images that have them as tags; "ignore" says nothing of their pixels, and so knows where they lie.
    Errors: `UsageError` naming the classes that both sets have.
    """
    asked = {name.casefold() for name in target}
    shared = [name for name in only or masked.classes if name.casefold() in asked]
    if shared:
        more = f" and {len(shared) - _SHOWN} more" if len(shared) > _SHOWN else ""
        raise UsageError(f"--aux: the classes {', '.join(shared[:_SHOWN])}{more} are among those that are asked for; "
                         "expected masks of other classes alone: name them with --aux-only, or those that are asked "
                         "for with --only")
    if rest != "background" and not only:
        raise UsageError(f"--aux-rest {rest}: found no --aux-only, expected the classes of --aux that are learned from "
                         "where it has the target's, too")
    both = [name for name in masked.classes if name.casefold() in asked]
    if only:
        if rest == "drop":
            theirs = masked.tagged.tags[:, [masked.classes.index(name) for name in both]].any(1)
            masked = masked.select(np.array(masked.ids)[~theirs].tolist())
        masked = chosen(masked, only, "--aux-only", unknown=both if rest == "ignore" else ())
    if not masked.tagged.tags.any():
        raise UsageError(f"--aux: no image of {masked.name!r} has a tag, expected masks of tagged objects")
    return OtherMasks(masked, rest if both else "background", bool(both))


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
    """Target and source as one set of tags: classes of the target first, images by target/ID and source/ID.

    An image that both have, known by its content, is there once, as the target's, with the tags of both. Of an image of
    one side nothing is told about the classes of the other: that it has no such tag does not say that it has none.
    """

    target: TaggedSet
    source: TaggedSet

    @cached_property
    def tagged(self) -> TaggedSet:
        many, few = len(self.target.classes), len(self.source.classes)
        mine = {self.target.source.digest(i): place for place, i in enumerate(self.target.ids)}
        same = np.array([mine.get(self.source.source.digest(i), -1) for i in self.source.ids], np.int64)
        alone = np.flatnonzero(same < 0)
        ids = [*(f"source/{self.source.ids[k]}" for k in alone), *(f"target/{i}" for i in self.target.ids)]
        tags = np.zeros((len(ids), many + few), np.bool_)
        tags[: len(alone), many:], tags[len(alone) :, :many] = self.source.tags[alone], self.target.tags
        tagged = np.concatenate([self.source.tagged[alone], self.target.tagged])
        told = np.zeros_like(tags)
        told[: len(alone), many:] = self.source.tagged[alone, None]
        told[len(alone) :, :many] = self.target.tagged[:, None]
        for k in np.flatnonzero(same >= 0):
            tags[len(alone) + same[k], many:] |= self.source.tags[k]
            tagged[len(alone) + same[k]] |= self.source.tagged[k]
            told[len(alone) + same[k], many:] = self.source.tagged[k]
        images = JoinedImages({"target": self.target.source, "source": self.source.source})
        classes = (*self.target.classes, *self.source.classes)
        return TaggedSet(f"{self.target.name} and {self.source.name}", classes, tuple(ids), tags, tagged, images,
                         self.target.has_background, None if told.all() else told)  # fmt: skip
