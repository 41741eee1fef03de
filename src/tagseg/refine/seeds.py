"""Confident labels from class maps: sure foreground, sure background, 255 between; what affinities are learned from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tagseg.artifacts import LabelSet, MapSet, Scores, write_labels
from tagseg.data.index import TaggedSet
from tagseg.ops import crf
from tagseg.ops.geometry import enlarge
from tagseg.ops.scores import to_labels
from tagseg.refine.crf import Crf
from tagseg.store import Work, stage
from tagseg.types import BACKGROUND, F32, I64, IGNORE, U8, ClassMaps, Labels, UsageError


@dataclass(frozen=True)
class Seeds:
    """IRN's cuts `fg` and `bg`, good for maps whose operating point is `at`; both move with the point (`cuts`).

    `gt_prob`: how far the CRF trusts the cut labels. Of `crf`, `unsure_below` and `device` are not used.
    """

    fg: float = 0.30
    bg: float = 0.05
    at: float = 0.15
    gt_prob: float = 0.7
    crf: Crf = field(default_factory=Crf)


@stage(LabelSet, version=1)
def confident(work: Work, tagged: TaggedSet, maps: MapSet, point: Scores, cfg: Seeds) -> None:
    """Labels where maps are surely above or surely below the operating point, drawn to edges; 255 elsewhere."""
    fg, bg = cuts(float(point.read()["threshold"]), cfg)

    def one(sample: str) -> Labels:
        found = maps.get(sample)
        if not len(found.classes):  # a negative: background is certain
            return Labels(sample, np.full(found.size, BACKGROUND if tagged.has_background else IGNORE, np.uint8))
        return Labels(sample, seeds(tagged.source.read(sample), found, fg, bg, tagged.has_background, cfg))

    def produce(ids: list[str]) -> Iterator[Labels]:
        yield from work.map(one, ids)

    write_labels(work, tagged.ids, produce, {"classes": list(tagged.classes), "fg": fg, "bg": bg})


def cuts(threshold: float, cfg: Seeds) -> tuple[float, float]:
    """The foreground and background cut at an operating point (held to .01 to .99): IRN's odds ratios to its own point.

    odds(cut) / odds(threshold) stays what it is at `cfg.at`, so .15 gives .30 and .05, and .6 gives .78 and .31: cuts
    keep their order and stay inside (0,1) at any point, which multiples of it would not.
    """
    if not 0 < cfg.bg <= cfg.at <= cfg.fg < 1:
        raise UsageError(f"seeds: found bg {cfg.bg}, at {cfg.at}, fg {cfg.fg}; expected 0 < bg <= at <= fg < 1")
    shift = _odds(min(max(threshold, 0.01), 0.99)) / _odds(cfg.at)
    fg, bg = (shift * _odds(cut) for cut in (cfg.fg, cfg.bg))
    return fg / (1 + fg), bg / (1 + bg)


def _odds(share: float) -> float:
    return share / (1 - share)


def seeds(image: U8, maps: ClassMaps, fg: float, bg: float, has_background: bool, cfg: Seeds) -> U8:
    """Confident labels (H,W) of one image (3,H,W) from its maps; one lattice serves both solves."""
    scores = enlarge(maps.scores, maps.size)
    kernels = crf.kernels(
        np.ascontiguousarray(image.transpose(1, 2, 0)),
        sxy_gaussian=cfg.crf.sxy_gaussian,
        sxy_bilateral=cfg.crf.sxy_bilateral,
        srgb=cfg.crf.srgb,
    )
    if not has_background:
        return _without_background(kernels, scores, maps.classes, fg, cfg)
    ids = np.concatenate([[BACKGROUND], maps.classes]).astype(np.uint8)
    ranks = np.arange(1, len(ids), dtype=np.int64)
    sure, possible = (_drawn(kernels, to_labels(scores, ranks, cut), len(ids), cfg) for cut in (fg, bg))
    labels = ids[sure]
    labels[(sure == BACKGROUND) & (possible != BACKGROUND)] = IGNORE
    return labels


def _without_background(kernels: crf.Kernels, scores: F32, classes: I64, fg: float, cfg: Seeds) -> U8:
    """Every pixel is of some class: the CRF spreads the sure ones, what was not sure stays open."""
    best = to_labels(scores, np.arange(len(classes), dtype=np.int64), 0.0, has_background=False)
    unsure = scores.max(0) < np.float32(fg)
    drawn = _drawn(kernels, np.where(unsure, IGNORE, best), len(classes), cfg)
    labels: U8 = classes.astype(np.uint8)[drawn]
    labels[unsure] = IGNORE
    return labels


def _drawn(kernels: crf.Kernels, labels: U8, n: int, cfg: Seeds) -> I64:
    """Labels 0..n-1 (H,W), each right with probability `gt_prob`, after the CRF."""
    probability = crf.mean_field(
        kernels,
        crf.unary_from_labels(labels, n, gt_prob=cfg.gt_prob),
        compat_gaussian=cfg.crf.compat_gaussian,
        compat_bilateral=cfg.crf.compat_bilateral,
        iterations=cfg.crf.iterations,
    )
    return probability.argmax(0)
