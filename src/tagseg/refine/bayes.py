"""Saliency and mined regions under Bayes' rule: what else of an image looks like its object (MCOF, Sec. 2, Eq. 6-8)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from tagseg.artifacts import LabelSet, MapSet, RegionSet, SuperpixelSet, write_labels, write_maps
from tagseg.data.index import TaggedSet
from tagseg.ops import bayes, regions
from tagseg.ops.colour import lab
from tagseg.ops.geometry import enlarge
from tagseg.ops.operating_points import otsu
from tagseg.store import Work, stage
from tagseg.types import BACKGROUND, F32, I32, I64, IGNORE, U8, ClassMaps, DataError, Labels

BINS = 100  # of Otsu's rule


@dataclass(frozen=True)
class Posterior:
    """Histograms of `colour`: three channels, `bins` each over its own range in the image, smoothed over `smooth` bins.

    `prior`: what p(object) is, the saliency with its log-odds moved so that each image's "otsu" cut is .5, or "raw".
    `floor`: every bin gets this share of the pixels. Below `least` mined pixels the posterior is the prior.
    """

    prior: Literal["otsu", "raw"] = "otsu"
    colour: Literal["lab", "rgb"] = "lab"
    bins: int = 60
    smooth: float = 1.0
    floor: float = 1e-3
    least: int = 50


@dataclass(frozen=True)
class Merge:
    """`threshold` of the posterior: a number, or "otsu" for each image.

    `disputed`: what becomes of mined background whose posterior is high.
    """

    threshold: float | Literal["otsu"] = 0.5
    disputed: Literal["ignore", "object", "background"] = "ignore"


@stage(MapSet, version=2)
def posterior(work: Work, tagged: TaggedSet, mined: LabelSet, saliency: MapSet, cfg: Posterior) -> None:
    """p(object | colour) of every pixel at the image's size, saliency as prior; an image without tags has no map."""

    def one(sample: str) -> ClassMaps:
        pixels, size = mined.get(sample).pixels, tagged.source.size(sample)
        if not tagged.tags_of(sample).any():
            return ClassMaps(sample, np.zeros(0, np.int64), np.zeros((0, *size), np.float32), size)
        image = tagged.source.read(sample)
        prior = enlarge(saliency.get(sample).scores, size)[0]
        if cfg.prior == "otsu":
            prior = bayes.calibrated(prior, cut_of(prior))
        found = bayes.object_share(_channels(image, cfg), prior, (pixels != BACKGROUND) & (pixels != IGNORE),
                                   bins=cfg.bins, sigma=cfg.smooth, floor=cfg.floor, least=cfg.least)  # fmt: skip
        return ClassMaps(sample, np.ones(1, np.int64), found[None].clip(0, 1), size)

    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        yield from work.map(one, ids)

    write_maps(work, tagged.ids, produce, {"classes": ["object"], "grid": 1})


def _channels(image: U8, cfg: Posterior) -> F32:
    """The image (3,H,W) in the colours that are counted."""
    return image.astype(np.float32) if cfg.colour == "rgb" else lab(image)


@stage(LabelSet, version=1)
def merged(
    work: Work,
    tagged: TaggedSet,
    mined: LabelSet,
    likely: RegionSet,
    segments: SuperpixelSet,
    found: MapSet,
    cfg: Merge,
) -> None:
    """Mined labels and posterior put together, pixel by pixel."""

    def one(sample: str) -> Labels:
        labels, shares = mined.get(sample).pixels, found.get(sample)
        if not len(shares.classes) or not tagged.has_background:
            return Labels(sample, labels)
        held = regions.restricted(likely.get(sample), regions.allowance(tagged.tags_of(sample)))
        best = best_class(held, segments.get(sample))
        return Labels(sample, merge(labels, above(shares.scores[0], cfg), best, cfg.disputed))

    def produce(ids: list[str]) -> Iterator[Labels]:
        yield from work.map(one, ids)

    write_labels(work, tagged.ids, produce, {"classes": list(tagged.classes)})


def above(share: Float32[np.ndarray, "h w"], cfg: Merge) -> Bool[np.ndarray, "h w"]:
    """Where the posterior says object."""
    if cfg.threshold == "otsu":
        return share >= np.float32(cut_of(share))
    return share >= np.float32(cfg.threshold)


def cut_of(scores: Float32[np.ndarray, "h w"]) -> float:
    """Otsu's cut of the scores in [0,1] of an image."""
    return otsu(np.histogram(scores, BINS, (0.0, 1.0))[0].astype(np.float64))


def best_class(held: Float32[np.ndarray, "j c1"], ids: I32) -> UInt8[np.ndarray, "h w"]:
    """For every pixel the class that its superpixel is likeliest of, background left out; 255 where none is possible.

    With one tag that is this tag.
    """
    if held.shape[0] <= int(ids.max()):
        raise DataError(f"found probabilities of {held.shape[0]} regions for superpixels up to {int(ids.max())}; "
                        "they were made from different superpixels, so make both again")
    objects = held[:, 1:]
    best: I64 = np.where(objects.max(1) > 0, objects.argmax(1) + 1, IGNORE)
    return best.astype(np.uint8)[ids]


def merge(mined: UInt8[np.ndarray, "h w"], high: Bool[np.ndarray, "h w"], best: UInt8[np.ndarray, "h w"],
          disputed: str = "ignore") -> UInt8[np.ndarray, "h w"]:
    """Mined objects stay where the posterior agrees; what was open becomes its region's class, or else 0.

    mined class: the class where high, 255 where low. Open: `best` where high, 0 where low. Mined background: 0 where
    low; where high `disputed` decides (the specification does not): "ignore" 255, "object" `best`, "background" 0.
    """
    is_object, is_open = (mined != BACKGROUND) & (mined != IGNORE), mined == IGNORE
    against = best if disputed == "object" else np.full_like(mined, IGNORE if disputed == "ignore" else BACKGROUND)
    if_high = np.where(is_object, mined, np.where(is_open, best, against))
    return np.where(high, if_high, np.where(is_object, IGNORE, BACKGROUND)).astype(np.uint8)  # mcof Eq. 8
