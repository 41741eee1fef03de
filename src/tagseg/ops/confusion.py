"""One confusion matrix for a whole set, and the numbers that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray

from tagseg.ops.pair_counts import count_pairs
from tagseg.types import IGNORE, MAX_CLASSES, DataError

BACKGROUND_NAME = "background"


def confusion(truth: UInt8[np.ndarray, " ..."], predicted: UInt8[np.ndarray, " ..."],
              classes: int) -> Int64[np.ndarray, "true_class predicted_class"]:
    """Count how often truth t met prediction p: int64 (C+1, C+2), row t, column p; the last column is "unsure" (255).

    Ignored pixels (truth 255) are in no cell. Matrices of several images add up. Any equal shapes are taken, so a
    selection of pixels can be counted too. Raises `DataError` with the values that are neither 0..classes nor 255.
    """
    if truth.shape != predicted.shape:
        raise DataError(f"prediction has size {predicted.shape}, expected the truth's size {truth.shape}: "
                        "resize the prediction (nearest neighbour) to its image")
    if not 1 <= classes <= MAX_CLASSES:
        raise DataError(f"{classes} classes: expected 1..{MAX_CLASSES}")
    t, p = (np.ascontiguousarray(a).reshape(-1) for a in (truth, predicted))
    counts = np.zeros((classes + 2, classes + 2), np.int64)
    whole = len(t) // 8 * 8
    if not count_pairs(t, p, t[:whole].view(np.uint64), p[:whole].view(np.uint64), counts):
        _refuse(t, classes, "truth")
        _refuse(p, classes, "prediction")
    return np.roll(counts, -1, axis=1)[1:]


def _refuse(found: NDArray[np.uint8], classes: int, what: str) -> None:
    bad = np.unique(found[(found > classes) & (found != IGNORE)])
    if len(bad):
        listed = ", ".join(str(v) for v in bad[:5]) + (", ..." if len(bad) > 5 else "")
        raise DataError(f"{what} holds the values {listed}; expected 0..{classes} or {IGNORE}: "
                        "check the class list, or convert coloured masks to class indices")


@dataclass(frozen=True)
class Summary:
    """What one confusion matrix says. Ratios lie in 0..1; dicts are keyed by class name.

    A class that is in neither truth nor prediction has None everywhere and is left out of every mean. A class in the
    truth that is never predicted has precision 0; one predicted but never true has recall 0. `fp_over_tp` and
    `fn_over_tp` are None also where TP is 0. A set without any counted pixel scores 0.
    """

    miou: float
    precision: float
    recall: float
    pixel_accuracy: float
    per_class: dict[str, float | None]
    per_class_precision: dict[str, float | None]
    per_class_recall: dict[str, float | None]
    fp_over_tp: dict[str, float | None]
    fn_over_tp: dict[str, float | None]


def summary(counts: Int64[np.ndarray, "true_class predicted_class"], names: Sequence[str],
            has_background: bool = True) -> Summary:
    """Mean IoU, precision, recall and kinds of error of a (C+1, C+2) matrix; `names` are the C foreground classes.

    With a background it is one of the classes averaged; without one, pixels whose truth is 0 are not scored and a
    prediction of 0 is wrong. An unsure pixel (255) is wrong for its true class and a false positive of none.
    """
    labels = class_labels(names, has_background)
    if counts.shape != (len(names) + 1, len(names) + 2):
        raise DataError(f"confusion matrix {counts.shape} for {len(names)} class names: "
                        f"expected {(len(names) + 1, len(names) + 2)}")
    first = 0 if has_background else 1
    scored = counts[first:]
    true_positive = np.diagonal(counts)[first:]
    truth = scored.sum(axis=1)
    predicted = scored[:, first:-1].sum(axis=0)
    seen = truth + predicted > 0
    iou = _ratio(true_positive, truth + predicted - true_positive)
    precision, recall = _ratio(true_positive, predicted), _ratio(true_positive, truth)
    hit = true_positive > 0
    return Summary(
        miou=_mean(iou, seen), precision=_mean(precision, seen), recall=_mean(recall, seen),
        pixel_accuracy=float(true_positive.sum() / max(int(scored.sum()), 1)),
        per_class=_named(labels, iou, seen), per_class_precision=_named(labels, precision, seen),
        per_class_recall=_named(labels, recall, seen),
        fp_over_tp=_named(labels, _ratio(predicted - true_positive, true_positive), hit),
        fn_over_tp=_named(labels, _ratio(truth - true_positive, true_positive), hit),
    )


def class_labels(names: Sequence[str], has_background: bool) -> list[str]:
    """The names of the classes that are averaged: background first where the set has one. They must be distinct."""
    labels = [BACKGROUND_NAME, *names] if has_background else list(names)
    twice = sorted({n for n in labels if labels.count(n) > 1})
    if twice:
        raise DataError(f"class names {twice} appear more than once (the background counts as {BACKGROUND_NAME!r}): "
                        "list each foreground class once and leave the background out")
    return labels


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return part / np.maximum(whole, 1)


def _mean(values: NDArray[np.float64], seen: NDArray[np.bool_]) -> float:
    return float(values[seen].mean()) if seen.any() else 0.0


def _named(labels: list[str], values: NDArray[np.float64], seen: NDArray[np.bool_]) -> dict[str, float | None]:
    return {label: float(v) if ok else None for label, v, ok in zip(labels, values, seen, strict=True)}
