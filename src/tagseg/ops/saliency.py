"""What stands out in an image, from its colours alone: two quick measures, one of contrast, one of enclosure.

Images uint8 (3,H,W) RGB; maps float32 (H,W) in [0,1], the least value 0 and the greatest 1; where nothing stands out,
all 0. Nothing is learned and nothing is random. The third and best, which works on superpixels:
`tagseg.ops.background_saliency`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, UInt8
from numba import njit
from scipy.ndimage import convolve1d

from tagseg.ops.colour import lab
from tagseg.types import UsageError

FLAT = 1e-3  # Lab units; two colours of 8 bits are at least ten times as far apart, so less is rounding
_BINOMIAL = np.array([1, 4, 6, 4, 1], np.float32) / 16


def ft(image: UInt8[np.ndarray, "3 h w"]) -> Float32[np.ndarray, "h w"]:
    """How far each pixel's slightly blurred colour lies from the image's mean colour, in Lab.

    Achanta, Hemami, Estrada, Suesstrunk, CVPR 2009 ("frequency-tuned"), with its binomial kernel of 5x5. Weak: a large
    object pulls the mean to itself, and a varied background stands out as well.
    """
    return stretched(from_mean(lab(image)))


def from_mean(colours: Float32[np.ndarray, "k h w"]) -> Float32[np.ndarray, "h w"]:
    """The distance of blurred colours (k,H,W) from their mean over the image; the edge is repeated outwards."""
    blurred = convolve1d(convolve1d(colours, _BINOMIAL, 1, mode="nearest"), _BINOMIAL, 2, mode="nearest")
    mean = colours.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    return np.sqrt(((blurred - mean) ** 2).sum(0))


def mbd(image: UInt8[np.ndarray, "3 h w"], passes: int = 3) -> Float32[np.ndarray, "h w"]:
    """How much colours must change on the way from the image's border to each pixel, on the way where they change
    least: what is enclosed by an edge stands out, whatever happens elsewhere.

    Zhang, Sclaroff, Lin, Shen, Price, Mech, ICCV 2015: the distance alone, without the background cue and the
    sharpening that the paper adds. It fails where the object touches the border. Raises `UsageError` for no pass.
    """
    if passes < 1:
        raise UsageError(f"passes over the image: found {passes}, expected 1 or more, for example 3")
    return stretched(barrier(lab(image), passes))


def barrier(colours: Float32[np.ndarray, "k h w"], passes: int = 3) -> Float32[np.ndarray, "h w"]:
    """The minimum barrier distance to the border, summed over channels (k,H,W): the range (highest less lowest value)
    of the path to the border, over 4-neighbours, that has the smallest range.

    Raster scans, forwards and backwards in turn; each pixel keeps the best path so far. So it is 0 on the border and
    never less than the exact distance; after three scans a fifth to two fifths more in the mean (four photos of 80x60),
    as one path a pixel is too few to find the best of all.
    """
    total = np.zeros(colours.shape[1:], np.float32)
    for channel in colours:
        high, low = _unreached(channel)
        for turn in range(passes):
            _scan(channel, high, low, turn % 2 == 0)
        total += high - low
    return total


def stretched(values: Float[np.ndarray, "..."], least: float = FLAT) -> Float32[np.ndarray, "..."]:
    """Values shifted and scaled to 0..1, float32; all 0 where they differ by less than `least`."""
    low, high = values.min(), values.max()
    if high - low < least:
        return np.zeros(values.shape, np.float32)
    return ((values - low) / (high - low)).astype(np.float32)


def _unreached(channel: Float32[np.ndarray, "h w"]) -> tuple[np.ndarray, np.ndarray]:
    """Highest and lowest value (H,W) on the best path of each pixel: its own on the border, none inside."""
    inside = np.zeros(channel.shape, bool)
    inside[1:-1, 1:-1] = True
    unknown = np.float32(np.inf)
    return np.where(inside, unknown, channel), np.where(inside, -unknown, channel)


@njit(nogil=True, cache=True)
def _scan(channel, high, low, forwards):  # type: ignore[no-untyped-def]
    """One pass: a path of the two neighbours scanned before is taken over, with this pixel, where its range is less."""
    h, w = channel.shape
    step = 1 if forwards else -1
    for i in range(1, h - 1):
        y = i if forwards else h - 1 - i
        for j in range(1, w - 1):
            x = j if forwards else w - 1 - j
            value, top, bottom = channel[y, x], high[y, x], low[y, x]
            for ny, nx in ((y - step, x), (y, x - step)):
                upper, lower = max(high[ny, nx], value), min(low[ny, nx], value)
                if upper - lower < top - bottom:
                    top, bottom = upper, lower
            high[y, x], low[y, x] = top, bottom
