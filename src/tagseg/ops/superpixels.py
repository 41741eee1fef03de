"""Superpixels: an image cut into a few hundred regions of one colour, their means, and who borders on whom.

A segmentation is int32 (H, W) of ids 0..n-1 without gaps, numbered as their first pixels come in reading order, so that
equal regions get equal ids whatever made them. No randomness anywhere: the same image gives the same ids on one machine
type (felzenszwalb sorts edges of equal weight as the processor's sort leaves them).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Int, Int32, Int64, UInt8

from tagseg.types import DataError, UsageError


def felzenszwalb(image: UInt8[np.ndarray, "3 h w"], *, scale: float = 100.0, sigma: float = 0.8,
                 min_size: int = 50) -> Int32[np.ndarray, "h w"]:
    """Regions that follow edges and differ in size: merged while the edge between them is weak for their size.

    Regions grow with `scale` (pixels x grey levels) and `min_size` (pixels); `sigma` in pixels smooths first.
    Felzenszwalb & Huttenlocher 2004, scikit-image's implementation.
    """
    from skimage.segmentation import felzenszwalb as cut

    return _in_reading_order(cut(image.transpose(1, 2, 0), scale=scale, sigma=sigma, min_size=min_size))


def slic(image: UInt8[np.ndarray, "3 h w"], *, regions: int = 250,
         compactness: float = 10.0) -> Int32[np.ndarray, "h w"]:
    """About `regions` connected regions of similar size, by k-means of Lab colour and place; larger `compactness` =
    squarer. Achanta et al. 2012, scikit-image's implementation; on photos some 20 % fewer regions come out than asked.
    """
    from skimage.segmentation import slic as cut

    _check_regions(regions)
    return _in_reading_order(cut(image.transpose(1, 2, 0), n_segments=regions, compactness=compactness, start_label=0))


def grid(size: tuple[int, int], *, regions: int = 250) -> Int32[np.ndarray, "h w"]:
    """About `regions` near-square cells of an image of `size` (H, W), without a look at the image."""
    _check_regions(regions)
    side = (size[0] * size[1] / regions) ** 0.5
    rows, columns = (min(n, max(1, round(n / side))) for n in size)
    row, column = (np.arange(n, dtype=np.int64) * cells // n for n, cells in zip(size, (rows, columns), strict=True))
    return (row[:, None] * columns + column).astype(np.int32)


def means(values: Float[np.ndarray, "k h w"], ids: Int32[np.ndarray, "h w"]) -> Float32[np.ndarray, "n k"]:
    """The mean of each map inside each superpixel, summed in float64. Raises `DataError` where the sizes differ."""
    _check_size(values, ids)
    flat = ids.ravel().astype(np.intp)  # once, not once for each map
    pixels = np.bincount(flat)
    sums = [np.bincount(flat, weights=one.ravel(), minlength=len(pixels)) for one in values]
    return (np.stack(sums, 1) / pixels[:, None] if sums else np.zeros((len(pixels), 0))).astype(np.float32)


def smooth(values: Float[np.ndarray, "k h w"], ids: Int32[np.ndarray, "h w"]) -> Float32[np.ndarray, "k h w"]:
    """Maps that are flat inside each superpixel: every pixel gets its superpixel's mean."""
    return np.ascontiguousarray(means(values, ids).T)[:, ids]


def neighbours(ids: Int32[np.ndarray, "h w"]) -> tuple[Int32[np.ndarray, "p 2"], Int64[np.ndarray, " p"]]:
    """Pairs (a, b), a < b, of superpixels that share a border, in ascending order, and its length.

    The length counts pixel edges: pairs of pixels, one above or beside the other, of which one lies in each. Corners
    that touch do not count.
    """
    sides = ((ids[:-1], ids[1:]), (ids[:, :-1], ids[:, 1:]))
    first, second = (np.concatenate([pair[i].ravel() for pair in sides]).astype(np.int64) for i in (0, 1))
    differ = first != second
    first, second = first[differ], second[differ]
    count = int(ids.max()) + 1
    code, length = np.unique(np.minimum(first, second) * count + np.maximum(first, second), return_counts=True)
    return np.stack([code // count, code % count], 1).astype(np.int32), length.astype(np.int64)


def _in_reading_order(labels: Int[np.ndarray, "h w"]) -> Int32[np.ndarray, "h w"]:
    """The same regions, named 0..n-1 in the order of their first pixels; labels from 0, gaps allowed."""
    flat = labels.ravel()
    first = np.full(int(flat.max()) + 1, flat.size)
    first[flat[::-1]] = np.arange(flat.size)[::-1]  # of repeated places the last assignment stays: the first pixel
    name = np.empty(len(first), np.int32)
    name[np.argsort(first, kind="stable")] = np.arange(len(first), dtype=np.int32)  # labels without pixels come last
    return name[labels]


def _check_regions(regions: int) -> None:
    if regions < 1:
        raise UsageError(f"regions is {regions}: expected 1 or more, for example 250")


def _check_size(values: np.ndarray, ids: np.ndarray) -> None:
    if values.shape[1:] != ids.shape:
        raise DataError(f"found maps of {values.shape[1:]} (h, w) for superpixels of {ids.shape}: expected one size; "
                        "bring the maps to the image's size first (tagseg.ops.geometry.enlarge)")
