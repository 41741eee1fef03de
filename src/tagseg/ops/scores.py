"""Scores to labels: the one rule, and the one way to bring raw maps into [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8

from tagseg.types import BACKGROUND, IGNORE, DataError

EPS = 1e-5


def normalise(raw: Float[np.ndarray, "k h w"], eps: float = EPS) -> Float32[np.ndarray, "k h w"]:
    """Bring raw maps into [0, 1]: negative values become 0, then each map is divided by its maximum (plus `eps`).

    A map without a positive value stays 0. Raises `DataError` on NaN or infinite values.
    """
    maps = np.maximum(raw, 0, dtype=np.float32)
    peaks = maps.max(axis=(1, 2), keepdims=True, initial=0)
    _check_finite(peaks, "raw maps")
    return np.divide(maps, peaks + np.float32(eps), out=maps)  # cam Eq. 6


def merge(raw: Sequence[Float[np.ndarray, "k h w"]], eps: float = EPS) -> Float32[np.ndarray, "k h w"]:
    """One set of maps in [0, 1] from several scales and flips: positive parts are summed, then divided by the maximum.

    Summing comes first: a scale that sees little must not be blown up to 1 before it is averaged. All maps must have
    been resized (and flipped back) to one size.
    """
    if not raw or any(m.shape != raw[0].shape for m in raw):
        raise DataError(f"maps of shapes {[m.shape for m in raw]}: expected one or more of one shape (K, h, w)")
    total = np.maximum(raw[0], 0, dtype=np.float32)
    for one in raw[1:]:
        total += np.maximum(one, 0, dtype=np.float32)
    return normalise(total, eps)


def or_best(found: Bool[np.ndarray, " c"], scores: Float[np.ndarray, " c"], forced: bool) -> Bool[np.ndarray, " c"]:
    """The classes `found` in an image; the one of the best score where there is none and one is `forced`."""
    return np.arange(len(scores)) == scores.argmax() if forced and not found.any() else found


def winners(scores: Float[np.ndarray, "k h w"], classes: Int64[np.ndarray, " k"],
            ) -> tuple[UInt8[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
    """The best class of each pixel and its score, before any threshold; ties go to the lowest class id. K must be > 0.

    Raises `DataError` on NaN or infinite scores.
    """
    if len(classes) != len(scores) or len(classes) == 0:
        raise DataError(f"{len(scores)} score maps for {len(classes)} classes: expected one map for each class")
    scores = scores.astype(np.float32, copy=False)
    order = np.argsort(classes, kind="stable")
    if np.any(order[1:] < order[:-1]):
        classes, scores = classes[order], scores[order]
    best = scores[0].copy()
    labels = np.full(best.shape, classes[0], np.uint8)
    for label, score in zip(classes[1:], scores[1:], strict=True):
        better = score > best  # strictly: an earlier, lower id keeps a tie
        labels[better] = label
        np.maximum(best, score, out=best)  # unlike `better`, this carries NaN on
    _check_finite(best, "scores")
    return labels, best


def to_labels(scores: Float[np.ndarray, "k h w"], classes: Int64[np.ndarray, " k"], threshold: float,
              has_background: bool = True) -> UInt8[np.ndarray, "h w"]:
    """Labels from scores: the best class where its score reaches the threshold (compared in float32), else background.

    Without a background the best class always. No classes at all: background, or 255 where the set has none.
    """
    if len(classes) == 0:
        return np.full(scores.shape[1:], BACKGROUND if has_background else IGNORE, np.uint8)
    labels, best = winners(scores, classes)
    if has_background:
        labels[best < np.float32(threshold)] = BACKGROUND  # cam Eq. 7
    return labels


def to_probabilities(scores: Float[np.ndarray, "c h w"]) -> Float32[np.ndarray, "c h w"]:
    """Non-negative scores divided by their sum over channels; where all are 0, every channel gets the same share."""
    total = scores.sum(axis=0, dtype=np.float32)
    empty = total == 0
    shares = np.divide(scores, np.where(empty, np.float32(1), total), dtype=np.float32)
    shares[:, empty] = 1 / max(len(scores), 1)
    return shares


def with_background(scores: Float[np.ndarray, "k h w"], threshold: float) -> Float32[np.ndarray, "k_and_1 h w"]:
    """Probabilities (K+1, H, W) for the CRF: background (channel 0) scores `threshold`, then shares of the sum.

    With maps in ascending class order, the arg-max is what `to_labels` decides, ties included.
    """
    background = np.full((1, *scores.shape[1:]), threshold, np.float32)
    shares = to_probabilities(np.concatenate([background, scores.astype(np.float32, copy=False)]))
    ranks = np.arange(1, len(scores) + 1, dtype=np.int64)
    decided = to_labels(scores, ranks, threshold)
    # A score equal to the threshold wins, and division can round two scores to one: lift the winner by one float step.
    wrong = np.nonzero(np.argmax(shares, axis=0) != decided)
    top = shares[:, wrong[0], wrong[1]].max(axis=0, initial=0)
    shares[decided[wrong], wrong[0], wrong[1]] = np.nextafter(top, np.float32(2))
    return shares


def _check_finite(values: Float32[np.ndarray, " ..."], what: str) -> None:
    if not np.isfinite(values).all():
        raise DataError(f"{what} hold NaN or infinite values; expected finite numbers: "
                        "the network that made them has diverged, or a file is damaged")
