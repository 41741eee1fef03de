"""Class maps or labels made by another program, read from their files as they are needed, with a key by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32

from tagseg.data.folder import Reading
from tagseg.data.map_files import BadMap, Stored, read_labels, read_map
from tagseg.types import BACKGROUND, IGNORE, ClassMaps

Size = tuple[int, int]
Files = Mapping[str, tuple[tuple[str, Path], ...]]  # id -> (class folder or "", file)


@dataclass(frozen=True)
class MapReading:
    """How to read a folder of maps.

    `classes`: a file of names (else MAPS/classes.txt); `background`: whether the first map of several is that of the
    background ("auto": told by the number of classes); `labels`: files hold class indices, each right with `gt_prob`;
    `floor`: classes under it at every pixel are left out of that image; `images`: limit, max_bad, links, workers.
    """

    classes: Path | None = None
    background: Literal["auto", "first", "none"] = "auto"
    labels: bool = False
    gt_prob: float = 0.7
    floor: float = 0.0
    images: Reading = field(default_factory=Reading)


class ForeignMap(NamedTuple):
    """The classes' maps of one image, and the `background`'s (h,w) where it has one of its own."""

    maps: ClassMaps
    background: Float32[np.ndarray, "h w"] | None


class Fact(NamedTuple):
    """What one full read told of an image's maps.

    `values`: mask values of the channels where files or folders say them; for each channel its highest `score` and its
    highest `share` of the sum over channels; `sums`: whether that sum is 1 everywhere.
    """

    values: tuple[int, ...] | None
    scores: tuple[float, ...]
    shares: tuple[float, ...]
    sums: bool
    sha256: str


@dataclass(frozen=True, eq=False)
class ForeignMaps:
    """Maps by image id, read from their files each time: a value that stages take, with a key made of content."""

    classes: tuple[str, ...]
    first_is_background: bool
    files: Files
    sizes: Mapping[str, Size]
    facts: Mapping[str, Fact]
    how: MapReading

    @cached_property
    def key(self) -> str:
        """sha256 over classes, reading, ids, the sizes of the images and the bytes of every file."""
        reading = [self.first_is_background, self.how.labels, self.how.gt_prob, self.how.floor]
        content = [[id, self.sizes[id], self.facts[id].values, self.facts[id].sha256] for id in self.ids]
        return hashlib.sha256(json.dumps(["foreign", self.classes, reading, content]).encode()).hexdigest()

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self.files)

    @property
    def has_background(self) -> bool:
        """Whether the background has a map of its own; then every image has one (`open_maps` sees to it)."""
        return BACKGROUND in self.values(self.ids[0])

    def __iter__(self) -> Iterator[ForeignMap]:
        return map(self.get, self.ids)

    def get(self, id: str) -> ForeignMap:
        """The maps of one image on their own grid, classes that are left out excepted. Errors: `BadMap`."""
        channels = read(self.files[id], self.how).values
        values, kept = self.values(id), self.kept(id)
        order = sorted((v, channel) for channel, v in enumerate(values) if v in kept)
        scores = channels[[channel for _, channel in order]]
        maps = ClassMaps(id, np.array([v for v, _ in order], np.int64), scores, self.sizes[id])
        return ForeignMap(maps, channels[values.index(BACKGROUND)] if BACKGROUND in values else None)

    def kept(self, id: str) -> tuple[int, ...]:
        """The classes of an image: all that reach the floor somewhere (without one: that are anywhere above 0)."""
        fact, values = self.facts[id], self.values(id)
        peaks = fact.shares if BACKGROUND in values else fact.scores
        return tuple(sorted(v for v, p in zip(values, peaks, strict=True) if v != BACKGROUND and p > 0
                            and p >= self.how.floor))

    def dropped(self) -> int:
        """How many pairs of image and class the floor leaves out."""
        return sum(s > 0 and v != BACKGROUND and v not in self.kept(id)
                   for id in self.ids for v, s in zip(self.values(id), self.facts[id].scores, strict=True))

    def tags(self) -> np.ndarray:
        """Which classes each image has, bool (N,C)."""
        kept = [self.kept(id) for id in self.ids]
        return np.array([[c in one for c in range(1, len(self.classes) + 1)] for one in kept], np.bool_)

    def values(self, id: str) -> tuple[int, ...]:
        """Mask values of the channels of an image."""
        fact = self.facts[id]
        return fact.values or plain_values(len(fact.scores), self.first_is_background)


def read(files: tuple[tuple[str, Path], ...], how: MapReading) -> Stored:
    """All channels of one image as they are stored, in the order of its files. Errors: `BadMap`."""
    if how.labels:
        values, shares = label_probabilities(read_labels(files[0][1]), how.gt_prob)
        return Stored(shares, values)
    parts = [read_map(path) for _, path in files]
    if not files[0][0]:
        return parts[0]
    first = parts[0].values.shape[1:]
    for part, (name, path) in zip(parts, files, strict=True):
        if len(part.values) > 1:
            raise BadMap(path, "channels", f"found {len(part.values)} maps, expected one in a folder of one class")
        if part.values.shape[1:] != first:
            raise BadMap(path, "size", f"{by(part.values.shape[1:])} in {name!r}, but {by(first)} in {files[0][0]!r}; "
                         "expected one size for all classes of an image")
    return Stored(np.concatenate([part.values for part in parts]))


def label_probabilities(labels: np.ndarray, gt_prob: float) -> tuple[tuple[int, ...], Float32[np.ndarray, "k h w"]]:
    """Mask values of background and the classes in labels (h,w), and what pydensecrf's `unary_from_labels` takes them
    for: right with probability `gt_prob`, the rest shared evenly by the others; 255 may be anything.
    """
    values = (BACKGROUND, *(int(v) for v in np.unique(labels) if v not in (BACKGROUND, IGNORE)))
    same = np.array(values)[:, None, None] == labels
    share = np.where(same, gt_prob, (1 - gt_prob) / max(len(values) - 1, 1))
    return values, np.where(labels == IGNORE, 1 / len(values), share).astype(np.float32)


def plain_values(channels: int, first_is_background: bool) -> tuple[int, ...]:
    """Mask values of channels that nothing names: 0, 1, ... with a background, else 1, 2, ..."""
    start = BACKGROUND if first_is_background else BACKGROUND + 1
    return tuple(range(start, start + channels))


def by(size: tuple[int, ...]) -> str:
    """Height and width as people write them."""
    return f"{size[0]}x{size[1]}"
