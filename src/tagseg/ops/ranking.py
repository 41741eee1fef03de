"""How well scores rank what is true over what is not, without a threshold; and points that a map finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from tagseg.types import F32, F64, I64, Bool


def roc_area(positive: I64, negative: I64) -> float | None:
    """Area under the ROC curve from counts (B,) by ascending score: the chance that a true one ranks over a false one.

    Equal scores count one half. None where one of the two kinds is missing.
    """
    if not positive.sum() or not negative.sum():
        return None
    below = np.cumsum(negative) - negative
    pairs = float((positive * (below + negative / 2)).sum())
    return pairs / (float(positive.sum()) * float(negative.sum()))


def roc_curve(positive: I64, negative: I64) -> F64:
    """(B+1, 2): share of false ones and share of true ones at or over each score, from the highest score down."""
    columns = [np.concatenate([[0.0], np.cumsum(c[::-1]) / max(float(c.sum()), 1.0)]) for c in (negative, positive)]
    return np.stack(columns, 1)


def average_precision(positive: I64, negative: I64) -> float | None:
    """Sum over scores, highest first, of precision times the gain in recall; equal scores rank equal.

    Counts (B,) by ascending score. None without a true one.
    """
    if positive.sum() == 0:
        return None
    found, wrong = np.cumsum(positive[::-1]), np.cumsum(negative[::-1])
    precision = found / np.maximum(found + wrong, 1)
    return float(np.sum(precision * positive[::-1]) / found[-1])


def area_of(scores: F64, true: Bool) -> float | None:
    """`roc_area` of single scores (N,)."""
    values, at = np.unique(scores, return_inverse=True)
    counts = [np.bincount(at[kind], minlength=len(values)) for kind in (true, ~true)]
    return roc_area(counts[0], counts[1])


def peaks(values: F32, reach: int) -> tuple[I64, F32]:
    """Places (K,2), row and column, that no place within `reach` pixels (a square) exceeds, and the scores there.

    A level top counts once, at its first pixel.
    """
    top = ndimage.maximum_filter(values, size=2 * reach + 1, mode="nearest") == values
    marked, count = ndimage.label(top, structure=np.ones((3, 3)))
    places = np.flatnonzero(marked)[::-1]
    first = np.zeros(count, np.int64)
    first[marked.ravel()[places] - 1] = places  # of several the last one written stays: the first pixel
    where = np.stack(np.unravel_index(first, values.shape), 1).astype(np.int64)
    return where, values[where[:, 0], where[:, 1]]


def froc(scores: F64, hits: I64, objects: int, images: int) -> F64:
    """(T,2): false points an image, and the share of objects found, at each score from the highest down.

    `scores` (K,) of points, `hits` (K,) the number of the object that a point lies on, -1 where it lies on none. An
    object is found once; further points on it are neither found nor false.
    """
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], hits[order]
    first = np.zeros(len(hits), np.bool_)
    _, at = np.unique(hits, return_index=True)
    first[at] = True
    found, wrong = np.cumsum(first & (hits >= 0)), np.cumsum(hits < 0)
    last = np.concatenate([scores[1:] != scores[:-1], [True]])[: len(scores)]
    return np.stack([wrong[last] / max(images, 1), found[last] / max(objects, 1)], 1).astype(np.float64)


def found_at(curve: F64, rates: Sequence[float]) -> list[float]:
    """The share of objects found at no more than so many false points an image; 0 before the first point."""
    return [float(curve[curve[:, 0] <= rate, 1].max(initial=0.0)) for rate in rates]
