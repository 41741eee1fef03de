"""What colours say of an object: histograms of two groups of pixels, and the posterior of each pixel (mcof, Eq. 6-7).

After Xie, Lu, Yang, TIP 2013: channels are taken as independent, each has its own histogram over its own range.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from scipy.ndimage import gaussian_filter1d


def posterior(prior: Float[np.ndarray, " ..."], obj: Float[np.ndarray, " ..."],
              bg: Float[np.ndarray, " ..."]) -> Float32[np.ndarray, " ..."]:
    """p(obj | v) of pixels with `prior` p(obj) and likelihoods p(v | obj), p(v | bg); the prior where both are 0."""
    for_obj, for_bg = prior * obj, (1 - prior) * bg
    total = for_obj + for_bg
    found = np.divide(for_obj, total, out=np.array(np.broadcast_to(prior, total.shape), np.float64), where=total > 0)
    return found.astype(np.float32)  # mcof Eq. 6


def calibrated(saliency: Float[np.ndarray, "h w"], cut: float) -> Float32[np.ndarray, "h w"]:
    """Saliency whose log-odds are moved so that `cut` becomes .5: a score in [0,1] read as a probability.

    0 and 1 stay what they are; a cut at either end says nothing, and nothing is moved.
    """
    if not 0 < cut < 1:
        return saliency.astype(np.float32)
    s = saliency.astype(np.float64)
    for_obj, for_bg = s * (1 - cut), (1 - s) * cut
    return (for_obj / (for_obj + for_bg)).astype(np.float32)


def binned(values: Float[np.ndarray, "k h w"], bins: int) -> Int64[np.ndarray, "k h w"]:
    """The bin of each value, `bins` of equal width over each channel's own range; a constant channel has one bin."""
    low, high = (limit(values, axis=(1, 2), keepdims=True) for limit in (np.min, np.max))
    width = np.where(high > low, high - low, 1)
    return ((values - low) / width * bins).astype(np.int64).clip(0, bins - 1)


def histogram(found: Int64[np.ndarray, "k h w"], mask: Bool[np.ndarray, "h w"], bins: int, *, sigma: float = 1.0,
              floor: float = 1e-3) -> Float[np.ndarray, "k bins"]:
    """Shares of the bins among the pixels of `mask`, one row for each channel, each summing to 1.

    Smoothed by a Gaussian of `sigma` bins (0: not); then every bin gets `floor` times the number of pixels, so that a
    colour not seen is unlikely and not impossible. An empty mask has the same share everywhere.
    """
    counts = np.stack([np.bincount(channel[mask], minlength=bins) for channel in found]).astype(np.float64)
    if sigma:
        counts = gaussian_filter1d(counts, sigma, axis=1, mode="reflect")
    counts += floor * max(int(mask.sum()), 1)
    return counts / counts.sum(1, keepdims=True)


def likelihood(found: Int64[np.ndarray, "k h w"], shares: Float[np.ndarray, "k bins"]) -> Float[np.ndarray, "h w"]:
    """The product over channels of the share of each pixel's bin."""
    return np.prod([row[channel] for row, channel in zip(shares, found, strict=True)], axis=0)  # mcof Eq. 7


def object_share(values: Float[np.ndarray, "k h w"], prior: Float[np.ndarray, "h w"], obj: Bool[np.ndarray, "h w"], *,
                 bins: int = 60, sigma: float = 1.0, floor: float = 1e-3,
                 least: int = 50) -> Float32[np.ndarray, "h w"]:
    """The posterior of every pixel, histograms taken inside and outside of `obj`.

    Where either side has fewer than `least` pixels they say too little: the posterior is the prior.
    """
    if min(int(obj.sum()), int((~obj).sum())) < max(least, 1):
        return prior.astype(np.float32)
    found = binned(values, bins)
    inside, outside = (likelihood(found, histogram(found, mask, bins, sigma=sigma, floor=floor))
                       for mask in (obj, ~obj))
    return posterior(prior, inside, outside)
