"""Where to cut class maps, without pixel truth: from what the classifier says when the cut-out is painted over."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def evidence_left(
    erased: Float[np.ndarray, "pairs cuts"], original: Float[np.ndarray, "pairs"], negative: Float[np.ndarray, "pairs"]
) -> Float[np.ndarray, "cuts"]:
    """Share of a tag's evidence that remains when everything at or above each cut is painted over.

    Class logits of the painted, the original and the class-absent images; 1 = nothing was lost, 0 = like an image
    without the tag. A ratio of means over all pairs: single pairs may have no evidence at all to share out.
    """
    gained = max(float(original.mean() - negative.mean()), 1e-6)
    return np.asarray((erased.mean(0) - negative.mean()) / gained, np.float64)  # cam Eq. 8


def crossing(cuts: Float[np.ndarray, "cuts"], values: Float[np.ndarray, "cuts"], level: float) -> float:
    """Where `values` first rises above `level`, interpolated between cuts; an end of `cuts` where it never crosses."""
    above = np.flatnonzero(values > level)
    if not len(above):
        return float(cuts[-1])
    k = int(above[0])
    if k == 0:
        return float(cuts[0])
    share = (level - values[k - 1]) / (values[k] - values[k - 1])
    return float(cuts[k - 1] + share * (cuts[k] - cuts[k - 1]))


def otsu(counts: Float[np.ndarray, "bins"]) -> float:
    """The cut of [0,1] with the largest variance between its sides (Otsu 1979), from a histogram of scores."""
    p = counts / max(counts.sum(), 1e-12)
    centres = (np.arange(len(p)) + 0.5) / len(p)
    low, low_mean = np.cumsum(p) - p, np.cumsum(p * centres) - p * centres  # strictly below the bin's left edge
    between = ((p * centres).sum() * low - low_mean) ** 2 / np.maximum(low * (1 - low), 1e-12)
    return float(between.argmax() / len(p))


def best_f1(scores: Float[np.ndarray, "n"], tags: Bool[np.ndarray, "n"]) -> float | None:
    """The cut of scores 0..1 at which saying "has the tag" from it on has the best F1; the highest of equal ones.

    It lies halfway to the next score below (to 0 at the last one). None where no image has the tag.
    """
    if not tags.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(tags[order])
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # equal scores are said together
    f1 = 2 * hits[last] / (last + 1 + int(tags.sum()))
    best = int(f1.argmax())
    below = ranked[last[best] + 1] if last[best] + 1 < len(ranked) else 0.0
    return float((ranked[last[best]] + below) / 2)
