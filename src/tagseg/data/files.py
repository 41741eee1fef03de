"""Images and masks that are loose files: read by id, checked to the last pixel, hashed in the same read."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from tagseg.data.dicom import Spacing, Window
from tagseg.data.images import (
    MAX_PIXELS,
    BadImage,
    decode,
    decode_mask,
    examine,
    read_bytes,
    read_size,
    record_mask_read,
)


class BadFile(NamedTuple):
    """A row of bad_files.csv: a path relative to the data folder, a reason code, and the detail for people."""

    path: str
    reason: str
    detail: str


class Fact(NamedTuple):
    """What a full read of an image file told: its (H, W), the sha256 of its bytes, notes on what was converted, the
    millimetres between its rows and between its columns where it tells them.
    """

    size: tuple[int, int]
    sha256: str
    notes: tuple[str, ...]
    spacing: Spacing | None = None


@dataclass(frozen=True, eq=False)
class FileImages:
    """Image files by id. What `scan` learned (size, digest) is kept, so that no file is read twice for it.

    `window`: centre and width that DICOM files are seen through, instead of their own.
    """

    paths: Mapping[str, Path]
    max_pixels: int = MAX_PIXELS
    window: Window | None = None
    facts: dict[str, Fact] = field(default_factory=dict, repr=False)

    def read(self, id: str) -> UInt8[np.ndarray, "3 h w"]:
        """The image as uint8 (3,H,W) RGB, upright. Errors: `BadImage`."""
        return decode(self.paths[id], max_pixels=self.max_pixels, window=self.window)

    def size(self, id: str) -> tuple[int, int]:
        """(H, W) of the upright image, from the header where the file was not scanned."""
        return self.facts[id].size if id in self.facts else read_size(self.paths[id], max_pixels=self.max_pixels)

    def digest(self, id: str) -> str:
        """sha256 of the file's bytes."""
        return self.fact(id).sha256

    def fact(self, id: str) -> Fact:
        """Size, digest and notes from one full read of the file. Errors: `BadImage`."""
        if id not in self.facts:
            found = examine(self.paths[id], max_pixels=self.max_pixels, window=self.window)
            shape = (found.pixels.shape[1], found.pixels.shape[2])
            self.facts[id] = Fact(shape, found.sha256, found.notes, found.spacing)
        return self.facts[id]

    def spacing(self, id: str) -> Spacing | None:
        """Millimetres between rows and between columns, where the file tells them."""
        return self.fact(id).spacing


def spacing_of(source: object, id: str) -> Spacing | None:
    """Millimetres between rows and between columns of an image, where it is a file that tells them."""
    return source.spacing(id) if isinstance(source, FileImages) else None


@dataclass(frozen=True, eq=False)
class FileMasks:
    """Mask files by id: palette or grey PNG of class indices. Every opening is recorded."""

    paths: Mapping[str, Path]

    @property
    def ids(self) -> Collection[str]:
        return self.paths.keys()

    def read(self, id: str) -> UInt8[np.ndarray, "h w"]:
        """The mask as uint8 (H,W) of raw indices. Errors: `BadImage`."""
        return decode_mask(self.paths[id])

    def digest(self, id: str) -> str:
        """sha256 of the file's bytes; an opening like any other."""
        record_mask_read(str(self.paths[id]))
        return hashlib.sha256(read_bytes(self.paths[id])).hexdigest()


def scan(images: FileImages, ids: Iterable[str], root: Path, *, workers: int = 2) -> list[BadFile]:
    """Decode every image once and list those that cannot be used; size and digest of the others are kept.

    Only a full decode finds a cut file. Paths are given relative to `root`. Errors: `EnvironmentFault` on disk faults.
    """
    def check(id: str) -> BadFile | None:
        try:
            images.fact(id)
        except BadImage as bad:
            return BadFile(relative(images.paths[id], root), bad.reason, bad.detail)
        return None

    with ThreadPoolExecutor(workers) as pool:
        return [bad for bad in pool.map(check, ids) if bad is not None]


def relative(path: Path, root: Path) -> str:
    """The path as people know it: from the data folder, with forward slashes; printable even where it is not text."""
    inside = path.relative_to(root) if path.is_relative_to(root) else path
    return inside.as_posix().encode("utf-8", "backslashreplace").decode()
