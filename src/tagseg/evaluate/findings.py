"""What is found in images of which nothing is known, where many hold nothing: the scores of screening.

All classes count as one. Pixels: how well they are ranked over the whole set, not image by image. Objects: connected
parts of the truth; a point of the map finds one where it lies on it or within 2 % of the image's diagonal (FROC).
Images: whether those with an object score higher than those without.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage

from tagseg.artifacts import MapSet, Scores, write_scores
from tagseg.data.index import MaskedSet
from tagseg.ops.boundary import BOUNDARY_SHARE
from tagseg.ops.geometry import enlarge
from tagseg.ops.ranking import area_of, average_precision, found_at, froc, peaks, roc_area, roc_curve
from tagseg.store import Work, stage
from tagseg.types import F32, F64, I64, IGNORE, U8, DataError

BINS = 65536  # fine enough for maps whose scores lie close together: AP within .01 of the exact one
ODDS = 16.0  # log-odds beyond which shares count as equal
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false points an image
POINTS = 200  # of a drawn curve


@dataclass(frozen=True)
class Findings:
    """Nothing to set."""


@stage(Scores, version=2)
def scores(work: Work, found: MapSet, truth: MaskedSet, cfg: Findings) -> None:
    """ROC and AP of pixels, best IoU and Dice over all cuts, FROC, and the area under the ROC curve of images."""
    ids = [i for i in truth.ids if i in found]
    tally = FindingTally()

    def item(sample: str) -> tuple[U8, F32, float]:
        one = found.get(sample)
        if one.image is None:
            raise DataError(f"{found.path.name}: maps of {sample!r} have no score of the whole image; expected one")
        return truth.mask(sample), enlarge(one.scores, one.size)[0].clip(0, 1), float(one.image[0])

    for done, one in enumerate(work.map(item, ids)):
        tally.add(*one)
        work.tick(done + 1, len(ids))
    write_scores(work, tally.scores())


@dataclass
class FindingTally:
    """Counts over the images seen so far; memory grows only with the number of points and images."""

    pixels: I64 = field(default_factory=lambda: np.zeros((2, BINS), np.int64))  # of nothing, of an object, by score
    points: list[tuple[float, int]] = field(default_factory=list)  # score, number of the object or -1
    images: list[tuple[float, bool]] = field(default_factory=list)  # score, whether there is an object
    objects: int = 0

    def add(self, truth: U8, shares: F32, image: float) -> None:
        """Count one image: its mask (H,W), the share 0..1 (H,W) to which each pixel is some object, its own score."""
        if shares.shape != truth.shape:
            raise DataError(f"a map of {shares.shape} pixels for a mask of {truth.shape}: expected the same size")
        known, inside = truth != IGNORE, (truth != 0) & (truth != IGNORE)
        index = bins(shares[known]) + BINS * inside[known]
        self.pixels += np.bincount(index, minlength=2 * BINS).reshape(2, BINS)
        self.images.append((image, bool(inside.any())))
        reach = max(1, round(BOUNDARY_SHARE * float(np.hypot(*truth.shape))))
        self._add_points(truth, inside, shares, reach)

    def _add_points(self, truth: U8, inside: np.ndarray, shares: F32, reach: int) -> None:
        parts, count = ndimage.label(inside, structure=np.ones((3, 3)))
        where, values = peaks(shares, reach)
        counted = truth[where[:, 0], where[:, 1]] != IGNORE
        where, values = where[counted], values[counted]
        hits = np.full(len(where), -1)
        if count:
            away, nearest = ndimage.distance_transform_edt(~inside, return_indices=True)
            row, column = where.T
            part = parts[nearest[0, row, column], nearest[1, row, column]]
            hits = np.where(away[row, column] <= reach, self.objects + part - 1, -1)
        self.points += zip(values.tolist(), hits.tolist(), strict=True)
        self.objects += count

    def scores(self) -> dict[str, Any]:
        """Everything, JSON-ready; None where one of two kinds is missing."""
        negative, positive = self.pixels
        points = np.array(self.points, np.float64).reshape(-1, 2)
        curve = froc(points[:, 0], points[:, 1].astype(np.int64), self.objects, len(self.images))
        shares = found_at(curve, RATES)
        images = np.array(self.images, np.float64).reshape(-1, 2)
        hit, said = np.cumsum(positive[::-1])[::-1], np.cumsum((positive + negative)[::-1])[::-1]
        known = bool(positive.sum())
        iou, dice = hit / np.maximum(said + positive.sum() - hit, 1), 2 * hit / np.maximum(said + positive.sum(), 1)
        return {
            "images": len(self.images), "with_object": int(images[:, 1].sum()), "objects": self.objects,
            "pixel_auc": roc_area(positive, negative), "pixel_ap": average_precision(positive, negative),
            "pixel_share": float(positive.sum() / max(self.pixels.sum(), 1)),
            "image_auc": area_of(images[:, 0], images[:, 1] > 0),
            "best_iou": float(iou.max()) if known else None, "best_dice": float(dice.max()) if known else None,
            "best_at": float(centres()[iou.argmax()]) if known else None,
            "froc": dict(zip(map(str, RATES), shares, strict=True)) if self.objects else None,
            "froc_mean": float(np.mean(shares)) if self.objects else None,
            "froc_curve": thinned(curve[curve[:, 0] <= 2 * RATES[-1]]),
            "roc_curve": thinned(roc_curve(positive, negative)),
        }  # fmt: skip


def bins(shares: F32) -> I64:
    """The bin of each share 0..1: equal steps of log-odds, since objects are rare and most shares next to 0."""
    held = shares.astype(np.float64).clip(1e-12, 1 - 1e-12)
    odds = np.log(held / (1 - held)).clip(-ODDS, ODDS)
    found: I64 = ((odds + ODDS) * ((BINS - 1) / (2 * ODDS))).round().astype(np.int64)
    return found


def centres() -> F64:
    """The share that each bin stands for."""
    odds = np.linspace(-ODDS, ODDS, BINS)
    shares: F64 = 1 / (1 + np.exp(-odds))
    return shares


def thinned(curve: F64) -> list[list[float]]:
    """At most `POINTS` points, the ends among them."""
    if not len(curve):
        return []
    kept = np.unique(np.linspace(0, len(curve) - 1, POINTS).round().astype(int))
    return [[round(float(x), 6), round(float(y), 6)] for x, y in curve[kept]]


def of_labels(confusion: list[list[int]]) -> dict[str, float | None]:
    """IoU and Dice of all classes as one, of labels' confusion (C+1,C+2) over a whole set; None without an object."""
    counts = np.array(confusion)
    hit, true, said = counts[1:, 1:-1].sum(), counts[1:].sum(), counts[:, 1:-1].sum()
    union = true + said - hit
    return {"iou": float(hit / union) if true else None, "dice": float(2 * hit / (true + said)) if true else None}
