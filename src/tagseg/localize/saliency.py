"""How salient each pixel is, whatever the tags say: measured from colours, or brought from elsewhere.

The maps have one class, 1, "object". Nothing is learned here; where to cut them is up to whoever uses them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tagseg.artifacts import MapSet, SuperpixelSet, write_maps
from tagseg.data.foreign_folders import check_fit
from tagseg.data.index import Images
from tagseg.data.saliency_folder import SaliencyFolder
from tagseg.ops.background_saliency import rbd
from tagseg.ops.saliency import ft, mbd
from tagseg.store import Run, Work, stage
from tagseg.types import F32, I32, U8, ClassMaps, DataError, UsageError

OBJECT = np.array([1], np.int64)
CLASSES = ["object"]


@dataclass(frozen=True)
class Saliency:
    """What counts as salient, by `kind`: "rbd", what differs from the background that hangs together with the border
    (the best, on superpixels); "mbd", what is enclosed by edges; "ft", what is far from the mean colour (weak).

    rbd, as in its paper: `geodesic` and `colour`, how many Lab units apart colours may be and still belong together
    (along a way; side by side), `spatial`, how far contrast looks, as a share of the image's sides. mbd: `passes` over
    the image. The mechanism is in `ops/background_saliency.py` and `ops/saliency.py`.
    """

    kind: Literal["rbd", "mbd", "ft"] = "rbd"
    geodesic: float = 10.0
    spatial: float = 0.25
    colour: float = 10.0
    passes: int = 3


@dataclass(frozen=True)
class Import:
    """Nothing to set: the maps are taken as they are."""


@stage(MapSet, version=1)
def maps(work: Work, images: Images, segments: tuple[SuperpixelSet, ...], cfg: Saliency) -> None:
    """Saliency at the image's own size. `segments`: for rbd its superpixels, one set; for the others none."""
    check_segments(len(segments), cfg)

    def one(sample: str) -> ClassMaps:
        image = images.source.read(sample)
        found = measure(sample, image, segments[0].get(sample) if segments else None, cfg)
        return ClassMaps(sample, OBJECT, found[None], (image.shape[1], image.shape[2]))

    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        yield from work.map(one, ids)

    write_maps(work, images.ids, produce, {"classes": CLASSES, "grid": 1, "kind": cfg.kind})


def check_segments(found: int, cfg: Saliency) -> None:
    """Raise `UsageError` unless there are the sets of superpixels that a kind works on."""
    expected = int(cfg.kind == "rbd")
    if found != expected:
        raise UsageError(f"saliency {cfg.kind!r}: found {found} sets of superpixels, expected {expected}: rbd works on "
                         "superpixels (tagseg.refine.superpixels), mbd and ft on pixels alone")


def measure(sample: str, image: U8, ids: I32 | None, cfg: Saliency) -> F32:
    """The map (H,W) of one image (3,H,W), for rbd on the superpixels `ids` (H,W)."""
    if cfg.kind == "ft":
        return ft(image)
    if cfg.kind == "mbd":
        return mbd(image, cfg.passes)
    if ids is None or ids.shape != image.shape[1:]:
        raise DataError(f"superpixels of {sample!r}: found {None if ids is None else ids.shape}, expected the image's "
                        f"{image.shape[1:]} (H, W); they were made from another image, so make them again")
    return rbd(image, ids, geodesic=cfg.geodesic, spatial=cfg.spatial, colour=cfg.colour)


def imported(run: Run, images: Images, given: SaliencyFolder, cfg: Import) -> MapSet:
    """Maps from elsewhere as an artifact whose identity is made of these images and their maps alone.

    Errors: `DataError` where an image has no map (while planning, too), or one that cannot be its map.
    """
    return taken(run, images, given.select(images.ids), cfg)


@stage(MapSet, version=1)
def taken(work: Work, images: Images, given: SaliencyFolder, cfg: Import) -> None:
    """The maps, on their own grid where they are smaller copies of the image; readers enlarge them
    (`ops/geometry.enlarge`).
    """

    def one(sample: str) -> ClassMaps:
        found, size = given.get(sample), images.source.size(sample)
        check_fit(given.files[sample], (found.shape[0], found.shape[1]), size)
        return ClassMaps(sample, OBJECT, found[None], size)

    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        yield from work.map(one, ids)

    write_maps(work, images.ids, produce, {"classes": CLASSES, "origin": given.origin})
