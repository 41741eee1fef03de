"""Where to cut class maps, from how their scores are distributed: no pixel truth, only where a tag is and is not."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def expected_iou(present: Float[np.ndarray, "c b"], absent: Float[np.ndarray, "c b"]) -> Float[np.ndarray, "c b"]:
    """Expected IoU of "score >= left edge of bin" for each class, by a two-groups model of its pixel scores.

    Rows are histograms over b equal bins of [0, 1]: of pixels in images with the tag (a mixture of object and
    background) and of pixels in images without it (background alone). The background's share of the mixture is the
    largest that leaves no bin's cumulative count negative from below; what exceeds it is object.
    """
    mixture, null = _shares(present), _shares(absent)
    share = background_share(mixture, null)[:, None]
    objects = np.maximum(mixture - share * null, 0)
    found = np.cumsum(objects[:, ::-1], axis=1)[:, ::-1]
    claimed = np.cumsum(mixture[:, ::-1], axis=1)[:, ::-1]
    return found / np.maximum(claimed + objects.sum(1, keepdims=True) - found, 1e-12)


def background_share(mixture: Float[np.ndarray, "c b"], null: Float[np.ndarray, "c b"]) -> Float[np.ndarray, c]:
    """The share of background in each mixture: the smallest ratio of both cumulative distributions (Storey's idea)."""
    below, null_below = np.cumsum(mixture, axis=1), np.cumsum(null, axis=1)
    ratio = np.where(null_below >= 0.2, below / np.maximum(null_below, 1e-12), np.inf)
    return np.minimum(ratio.min(axis=1), 1.0)


def otsu(present: Float[np.ndarray, "c b"]) -> Float[np.ndarray, "c b"]:
    """Between-class variance of each cut of each class's score histogram (Otsu 1979), as a share of the variance."""
    p = _shares(present)
    centres = (np.arange(p.shape[1]) + 0.5) / p.shape[1]
    low = np.cumsum(p, axis=1) - p  # strictly below the bin's left edge
    low_mean, mean = np.cumsum(p * centres, axis=1) - p * centres, (p * centres).sum(1, keepdims=True)
    between = (mean * low - low_mean) ** 2 / np.maximum(low * (1 - low), 1e-12)
    return between / np.maximum((p * (centres - mean) ** 2).sum(1, keepdims=True), 1e-12)


def _shares(counts: Float[np.ndarray, "c b"]) -> Float[np.ndarray, "c b"]:
    return counts / np.maximum(counts.sum(1, keepdims=True), 1e-12)
