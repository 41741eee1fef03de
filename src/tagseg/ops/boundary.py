"""Scores near contours: boundary IoU (Cheng et al. 2021) and the confusion inside bands around true contours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8
from scipy.ndimage import distance_transform_cdt

from tagseg.ops.confusion import confusion
from tagseg.types import IGNORE

TRIMAP_WIDTHS = (1, 2, 5, 10, 20)
BOUNDARY_SHARE = 0.02  # of the image diagonal
_FAR = np.int32(2**30)


def boundary_width(height: int, width: int, share: float = BOUNDARY_SHARE) -> int:
    """Pixels counted as boundary on the inner side of a contour: 2 % of the diagonal, at least 1."""
    return max(1, round(share * math.hypot(height, width)))


def steps_to_change(labels: UInt8[np.ndarray, "h w"]) -> Int32[np.ndarray, "h w"]:
    """Steps (8-neighbour moves) from each pixel to the nearest pixel with another label; 2^30 if there is none.

    A pixel that touches another label has 1. The image frame is no change of label.
    """
    touches = _touches_another(labels)
    if not touches.any():
        return np.full(labels.shape, _FAR, np.int32)
    # The last pixel of the shortest path that still has the own label touches the other one: one transform serves all
    # labels at once.
    return distance_transform_cdt(~touches, metric="chessboard").astype(np.int32, copy=False) + np.int32(1)


def _touches_another(labels: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    touches = np.zeros(labels.shape, np.bool_)
    here, there = slice(None, -1), slice(1, None)
    everywhere = slice(None)
    for a, b in (((here, everywhere), (there, everywhere)), ((everywhere, here), (everywhere, there)),
                 ((here, here), (there, there)), ((here, there), (there, here))):
        differ = labels[a] != labels[b]
        touches[a] |= differ
        touches[b] |= differ
    return touches


def mask_boundary(labels: UInt8[np.ndarray, "h w"], distance: int) -> Bool[np.ndarray, "h w"]:
    """Pixels within `distance` steps of the outside of their own label's region, for all labels at once.

    This is "mask minus its erosion" by `distance` rounds of a 3x3 square, the image padded with zeros: the image frame
    counts as a contour, as in the reference code of Cheng et al. 2021.
    """
    near = steps_to_change(labels) <= distance
    near[:distance] = True
    near[-distance:] = True
    near[:, :distance] = True
    near[:, -distance:] = True
    return near


def boundary_counts(truth: UInt8[np.ndarray, "h w"], predicted: UInt8[np.ndarray, "h w"],
                    classes: int) -> Int64[np.ndarray, "2 labels"]:
    """Intersection and union of true and predicted boundary regions: int64 (2, C+1), summed over a set before dividing.

    Ignored pixels are ignored in the prediction too before contours are found, so a perfect prediction scores 1.
    """
    predicted = np.where(truth == IGNORE, np.uint8(IGNORE), predicted)
    d = boundary_width(*truth.shape)
    true_boundary = np.where(mask_boundary(truth, d), truth, np.uint8(IGNORE))
    predicted_boundary = np.where(mask_boundary(predicted, d), predicted, np.uint8(IGNORE))
    both = true_boundary == predicted_boundary
    shared = _per_label(true_boundary[both], classes)
    total = _per_label(true_boundary, classes) + _per_label(predicted_boundary, classes)
    return np.stack([shared, total - shared])


def _per_label(labels: UInt8[np.ndarray, "*n"], classes: int) -> Int64[np.ndarray, " labels"]:
    return np.bincount(labels.ravel(), minlength=IGNORE + 1)[: classes + 1].astype(np.int64)


def trimap_confusion(truth: UInt8[np.ndarray, "h w"], predicted: UInt8[np.ndarray, "h w"], classes: int,
                     widths: Sequence[int] = TRIMAP_WIDTHS) -> Int64[np.ndarray, "bands true_class predicted_class"]:
    """Confusion (W, C+1, C+2) of the pixels within each width (ascending, in steps) of a change of the true label.

    Bands lie on both sides of a contour and hold those of smaller width. The border of an ignored region is a contour
    (VOC marks its contours so), the image frame is none.
    """
    steps = steps_to_change(truth)
    bands = np.zeros((len(widths), classes + 1, classes + 2), np.int64)
    inner = 0
    for counts, outer in zip(bands, widths, strict=True):
        ring = (steps > inner) & (steps <= outer)
        counts += confusion(truth[ring], predicted[ring], classes)
        inner = outer
    return np.cumsum(bands, axis=0)
