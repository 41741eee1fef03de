"""Score class maps against true masks at many thresholds in one pass, and without any threshold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tagseg.ops import ranking
from tagseg.ops.confusion import Summary, class_labels, confusion, summary
from tagseg.ops.scores import to_labels, winners
from tagseg.types import F32, I64, IGNORE, U8, Bool, DataError, check_mask

AP_BINS = 1024
MapItem = tuple[str, U8, I64, F32]


def sweep(items: Iterable[MapItem], names: Sequence[str], thresholds: Sequence[float],
          has_background: bool = True) -> list[Summary]:
    """The `Summary` at each threshold, in the order given: exactly what `to_labels` at that threshold would score.

    Items are (id, truth uint8 (H, W), classes int64 (K,), scores float32 (K, H, W) in [0, 1] at the mask's size).
    One pass; an image costs about the same for 5 or 100 thresholds. `names` are the C foreground classes.
    """
    tally = MapTally.empty(names, thresholds, has_background)
    for item in items:
        tally.add(*item)
    return tally.summaries()


def average_precision(items: Iterable[MapItem], names: Sequence[str]) -> dict[str, float | None]:
    """Average precision of the maps for each class, without a threshold; see `MapTally.average_precision`."""
    tally = MapTally.empty(names, (), True)
    for item in items:
        tally.add(*item)
    return tally.average_precision()


def flat_within(thresholds: Sequence[float], curve: Sequence[float], points: float = 1.0) -> tuple[float, float]:
    """The range of thresholds around the best one whose mIoU (0..1) stays within `points` percent points of it.

    Thresholds ascend. The range is the unbroken stretch that holds the (first) best threshold.
    """
    if not len(curve) or len(curve) != len(thresholds) or np.any(np.diff(thresholds) < 0):
        raise DataError(f"{len(curve)} scores for {len(thresholds)} thresholds: "
                        "expected at least one, a score for each, and ascending thresholds")
    best = low = high = int(np.argmax(curve))
    floor = curve[best] - points / 100 - 1e-9  # a difference of exactly `points` counts as within
    while low > 0 and curve[low - 1] >= floor:
        low -= 1
    while high + 1 < len(curve) and curve[high + 1] >= floor:
        high += 1
    return float(thresholds[low]), float(thresholds[high])


@dataclass(frozen=True, eq=False)
class MapTally:
    """Counts of maps against truth. Tallies of disjoint parts of a set merge into that of the whole.

    Memory is (C+1) (C+2) (T+1) numbers: constant in the number and size of images.
    """

    names: tuple[str, ...]
    has_background: bool
    thresholds: F32     # (T,) as given
    joint: I64          # (T+1, C+1, C+2): pixels whose best score reaches exactly j of the sorted thresholds
    scored: I64         # (2, C, bins): pixels of other classes, pixels of the class, by score, where it is tagged

    @staticmethod
    def empty(names: Sequence[str], thresholds: Sequence[float], has_background: bool = True) -> MapTally:
        """A tally of no images."""
        class_labels(names, has_background)
        classes = len(names)
        values = np.asarray(thresholds, np.float32).reshape(-1)
        if np.isnan(values).any():
            raise DataError("thresholds hold NaN; expected numbers")
        return MapTally(tuple(names), has_background, values,
                        np.zeros((len(values) + 1, classes + 1, classes + 2), np.int64),
                        np.zeros((2, classes, AP_BINS), np.int64))

    def add(self, sample: str, truth: U8, classes: I64, scores: F32) -> None:
        """Count one image; raises `DataError` naming it when maps and truth do not fit."""
        _check_item(sample, truth, classes, scores, len(self.names))
        if len(classes) == 0:
            self.joint[0] += confusion(truth, to_labels(scores, classes, 0.0, self.has_background), len(self.names))
            return
        if len(self.thresholds):
            self._add_joint(truth, classes, scores)
        self._add_scored(truth, classes, scores)

    def _add_joint(self, truth: U8, classes: I64, scores: F32) -> None:
        labels, best = winners(scores, classes)
        reached = np.searchsorted(np.sort(self.thresholds), best.ravel(), side="right")
        present = np.sort(classes)
        rank = np.zeros(IGNORE + 1, np.intp)
        rank[present] = np.arange(len(present))
        valid = truth.ravel() != IGNORE
        cells = (len(self.names) + 1, len(present), len(self.joint))
        index = np.ravel_multi_index(
            (truth.ravel()[valid], rank[labels.ravel()[valid]], reached[valid]), cells)
        counts = np.bincount(index, minlength=int(np.prod(cells))).reshape(cells)
        self.joint[:, :, present] += counts.transpose(2, 0, 1)

    def _add_scored(self, truth: U8, classes: I64, scores: F32) -> None:
        valid = truth != IGNORE
        labels = truth[valid]
        for c, score in zip(classes, scores, strict=True):
            index = np.minimum((score[valid] * AP_BINS).astype(np.intp), AP_BINS - 1)
            index += AP_BINS * (labels == c)
            self.scored[:, c - 1] += np.bincount(index, minlength=2 * AP_BINS).reshape(2, AP_BINS)

    def merged(self, other: MapTally) -> MapTally:
        """The tally of both parts; neither is changed."""
        if (self.names, self.has_background) != (other.names, other.has_background) \
                or not np.array_equal(self.thresholds, other.thresholds):
            raise DataError("tallies with different classes or thresholds: expected the same for every part of a set")
        return MapTally(self.names, self.has_background, self.thresholds, self.joint + other.joint,
                        self.scored + other.scored)

    def confusions(self) -> I64:
        """The confusion matrix at each threshold: (T, C+1, C+2), in the order the thresholds were given."""
        total = self.joint.sum(axis=0)
        if not self.has_background:
            return np.repeat(total[None], len(self.thresholds), axis=0)
        below = np.cumsum(self.joint[:-1], axis=0)  # pixels that do not reach the j-th sorted threshold
        at = total - below
        at[:, :, 0] += below.sum(axis=2)
        return at[np.argsort(np.argsort(self.thresholds, kind="stable"), kind="stable")]

    def summaries(self) -> list[Summary]:
        """The scores at each threshold, in the order the thresholds were given."""
        return [summary(c, self.names, self.has_background) for c in self.confusions()]

    def average_precision(self) -> dict[str, float | None]:
        """Pixel-level average precision of each class over the images tagged with it; None without a true pixel there.

        Sum over scores, highest first, of precision times the gain in recall, with scores rounded down to 1/1024:
        pixels of one such step rank equal.
        """
        return {name: ranking.average_precision(*self.scored[::-1, c]) for c, name in enumerate(self.names)}


def _check_item(sample: str, truth: U8, classes: I64, scores: F32, count: int) -> None:
    check_mask(truth, count, f"truth of {sample!r}")
    ids: Bool = (classes < 1) | (classes > count)
    if ids.any() or len(np.unique(classes)) != len(classes):
        raise DataError(f"maps of {sample!r} have classes {classes.tolist()}; expected distinct ids in 1..{count}")
    if scores.shape != (len(classes), *truth.shape):
        raise DataError(f"maps of {sample!r} have shape {scores.shape}, expected {(len(classes), *truth.shape)}: "
                        "resize the maps to the size of the mask first")
    low, high = float(scores.min(initial=0)), float(scores.max(initial=0))
    if not (low >= 0 and high <= 1):
        raise DataError(f"maps of {sample!r} hold values in [{low}, {high}]; expected [0, 1]: normalise them first")
