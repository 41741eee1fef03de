"""Superpixels of a set of images, made once for all methods, and maps that are flat inside each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tagseg.artifacts import MapSet, SuperpixelSet, write_maps, write_superpixels
from tagseg.data.index import Images, TaggedSet
from tagseg.ops import superpixels
from tagseg.ops.geometry import enlarge
from tagseg.store import Run, Work, stage
from tagseg.training.memory import keep_freed
from tagseg.types import F32, I32, U8, ClassMaps, DataError

REFERENCE = 300 * 300  # pixels; `Superpixels.min_size` is meant for a photo of this area


@dataclass(frozen=True)
class Superpixels:
    """How images are cut. Regions are a share of the image: a larger copy of a photo gives about as many.

    `regions` (slic, grid) is their number at any size. `min_size` (felzenszwalb) is for a photo of 300x300 pixels and
    grows with the area; `scale` and `sigma` do not, because grey steps between pixels fade as a copy grows: so counts
    stayed within a fifth from 200 to 450 pixels on the photos tried, and halved at 100. The defaults give 50-400
    regions, mostly about 200.
    """

    kind: Literal["felzenszwalb", "slic", "grid"] = "felzenszwalb"
    scale: float = 100.0
    sigma: float = 0.8
    min_size: int = 50
    regions: int = 250
    compactness: float = 10.0


@dataclass(frozen=True)
class Smooth:
    """`strength`: 1 replaces a pixel's score by its superpixel's mean, 0 leaves it, between is a mixture.

    `keep_peaks` scales each map so that its largest value stays what it was: means are flatter, and without it a
    threshold would cut away the small objects first.
    """

    strength: float = 1.0
    keep_peaks: bool = True


def segments(run: Run, tagged: TaggedSet, cfg: Superpixels) -> SuperpixelSet:
    """The superpixels of every image, from the cache where any method, with any tags, has asked for them before."""
    return cut(run, tagged.images(), cfg)


@stage(SuperpixelSet, version=1)
def cut(work: Work, images: Images, cfg: Superpixels) -> None:
    """Superpixels of every image; the identity is made of the images and the config alone."""
    keep_freed()  # felzenszwalb else waits a twentieth of its time for memory that it has just given back

    def one(sample: str) -> tuple[str, I32]:
        return sample, segment(images.source.read(sample), cfg)

    def produce(ids: list[str]) -> Iterator[tuple[str, I32]]:
        yield from work.map(one, ids)

    write_superpixels(work, images.ids, produce, {"kind": cfg.kind})


def segment(image: U8, cfg: Superpixels) -> I32:
    """Superpixel ids (H,W) of one image (3,H,W)."""
    if cfg.kind == "grid":
        return superpixels.grid((image.shape[1], image.shape[2]), regions=cfg.regions)
    if cfg.kind == "slic":
        return superpixels.slic(image, regions=cfg.regions, compactness=cfg.compactness)
    min_size = max(1, round(cfg.min_size * image.shape[1] * image.shape[2] / REFERENCE))
    return superpixels.felzenszwalb(image, scale=cfg.scale, sigma=cfg.sigma, min_size=min_size)


@stage(MapSet, version=1)
def smoothed(work: Work, tagged: TaggedSet, maps: MapSet, segments: SuperpixelSet, cfg: Smooth) -> None:
    """Maps with one score for each superpixel, at the image's own size.

    They are not stored on the coarser grid they came from: read back from there, every border would be blurred over
    several pixels, and sharp borders are the point. It costs 2 bytes a pixel and class, 16 times a quarter grid.
    """

    def one(sample: str) -> ClassMaps:
        return flatten(maps.get(sample), segments.get(sample), cfg)

    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        yield from work.map(one, ids)

    write_maps(work, tagged.ids, produce, {"classes": list(tagged.classes), "grid": 1})


def flatten(maps: ClassMaps, ids: I32, cfg: Smooth) -> ClassMaps:
    """The maps of one image at its full size, smoothed by its superpixels (H,W)."""
    if ids.shape != maps.size:
        raise DataError(f"superpixels of {maps.id!r}: found {ids.shape} (H, W), expected the image's {maps.size}; "
                        "they and the maps were made from different images, so make both again")
    scores = enlarge(maps.scores, maps.size)
    flat = scores + np.float32(cfg.strength) * (superpixels.smooth(scores, ids) - scores)
    return ClassMaps(maps.id, maps.classes, (_with_peaks_of(scores, flat) if cfg.keep_peaks else flat).clip(0, 1),
                     maps.size)


def _with_peaks_of(before: F32, after: F32) -> F32:
    """`after` (k,h,w), each map scaled to the largest value it has in `before`; a map of zeros stays."""
    wanted, found = (maps.max(axis=(1, 2), keepdims=True, initial=0) for maps in (before, after))
    return after * np.divide(wanted, found, out=np.ones_like(found), where=found > 0)
