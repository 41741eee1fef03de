"""Labels from maps that each speak for one class alone: a CRF of two labels for each, then the surest class."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tagseg.artifacts import LabelSet, MapSet, write_labels
from tagseg.data.index import TaggedSet
from tagseg.ops.geometry import enlarge
from tagseg.refine.crf import TOGETHER, Crf, solve_together, solver
from tagseg.store import Work, stage
from tagseg.types import BACKGROUND, F32, I64, U8, Bool, Labels


@stage(LabelSet, version=1)
def labels(work: Work, images: TaggedSet, maps: MapSet, cfg: Crf) -> None:
    """Of every pixel the class that is likeliest among those whose own CRF calls it foreground, else background.

    With 0 iterations the maps are cut at one half. `unsure_below`: surer classes only, the others are 255.
    """

    def one(sample: str) -> Labels:
        found = maps.get(sample)
        if not len(found.classes):
            return Labels(sample, np.full(found.size, BACKGROUND, np.uint8))
        return decided(sample, images.source.read(sample), enlarge(found.scores, found.size), found.classes, cfg)

    def produce(ids: list[str]) -> Iterator[Labels]:
        yield from work.map(one, ids)

    write_labels(work, images.ids, produce, {"classes": list(images.classes)})


def decided(sample: str, image: U8, shares: F32, classes: I64, cfg: Crf) -> Labels:
    """The labels of one image (3,H,W) from the foreground (K,H,W) of each of its classes."""
    kept = own_foregrounds(image, shares, cfg) * shares
    best, sure = kept.argmax(0), kept.max(0)
    pixels = np.where(sure > 0, classes[best], BACKGROUND).astype(np.uint8)
    pixels[(sure > 0) & (sure < cfg.unsure_below)] = 255
    confidence = np.where(sure > 0, sure, 1 - shares.max(0))
    return Labels(sample, pixels, np.round(255 * confidence).astype(np.uint8))


def own_foregrounds(image: U8, shares: F32, cfg: Crf) -> Bool:
    """Where the CRF of background and one class alone calls a pixel the class, for each class (K,H,W)."""
    if not cfg.iterations:
        return shares > 0.5
    alone = solver(image, cfg) if cfg.device == "cpu" else None
    most = 1 if alone else max(1, TOGETHER // shares[0].size)  # large images have large planes
    found = np.zeros(shares.shape, bool)
    for start in range(0, len(shares), most):
        pairs = [np.stack([1 - share, share]) for share in shares[start : start + most]]
        solved = [alone(pair) for pair in pairs] if alone else solve_together([image] * len(pairs), pairs, cfg)
        found[start : start + most] = [background < foreground for background, foreground in solved]
    return found
