"""Pixel-adaptive mask refinement (Araslanov & Roth 2020): masks drawn to edges by local averaging, for GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from tagseg.types import DataError, UsageError

DILATIONS = (1, 2, 4, 8, 12, 24)
BANDWIDTH = 0.1  # of the local standard deviation, as in the authors' code
EPS = 1e-8
_RING = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


@torch.no_grad()
def pamr(images: Float[Tensor, "n 3 h w"], masks: Float[Tensor, "n k h w"], iterations: int = 10,
         dilations: Sequence[int] = DILATIONS) -> Float[Tensor, "n k h w"]:
    """Each pixel's scores become a mean over the neighbours that look like it, `iterations` times over.

    Neighbours are the 8 of a 3x3 window at each of the `dilations` (pixels; beyond the frame the edge is repeated); the
    pixel itself is not one of them. `images` in 0..1 (any scale gives the same up to rounding), `masks` of the same
    size; computed and returned as float32 on the tensors' device. Every new score is a weighted mean of old ones: the
    range is kept, and a constant map stays constant.

    Made for GPUs, where the images of a batch run together. On a CPU it is dearer than the exact dense CRF
    (`tagseg.ops.crf`): use that there. Raises `DataError` where sizes differ.
    Source: "Single-stage semantic segmentation from image labels", CVPR 2020; bandwidth and windows as in its code.
    """
    _check(images, masks, iterations, dilations)
    weights = affinity(images, dilations)
    refined = masks.float()
    for _ in range(iterations):
        held = _held(refined, dilations)
        refined = torch.zeros_like(refined)
        for p, (dy, dx) in enumerate(_offsets(dilations)):  # one pass a neighbour: 8 d copies would not fit
            refined.addcmul_(weights[:, p : p + 1], _shifted(held, dy, dx, dilations))
    return refined


def affinity(images: Float[Tensor, "n 3 h w"],
             dilations: Sequence[int] = DILATIONS) -> Float[Tensor, "n p h w"]:
    """How much each of the p = 8 d neighbours counts at each pixel: softmax over p, so the sum is 1.

    The logit is -|difference| / (0.1 x local standard deviation), mean over the three colours. The deviation is taken
    over the 9 d pixels of all windows, the centre counted once for each.
    """
    x = images.float()
    held, places = _held(x, dilations), list(_offsets(dilations))
    scale = EPS + BANDWIDTH * _deviation(x, held, dilations)
    logits = x.new_empty(len(x), len(places), *x.shape[2:])
    for p, (dy, dx) in enumerate(places):
        logits[:, p] = -((x - _shifted(held, dy, dx, dilations)).abs() / scale).mean(1)
    return torch.softmax(logits, 1)


def _deviation(x: Tensor, held: Tensor, dilations: Sequence[int]) -> Tensor:
    """Unbiased standard deviation (n, 3, h, w) in two passes: sums of squares lose too much in flat areas."""
    count = 9 * len(dilations)
    mean = len(dilations) * x  # the centres
    for dy, dx in _offsets(dilations):
        mean = mean + _shifted(held, dy, dx, dilations)
    mean = mean / count
    spread = len(dilations) * (x - mean) ** 2
    for dy, dx in _offsets(dilations):
        spread += (_shifted(held, dy, dx, dilations) - mean) ** 2
    return (spread / (count - 1)).sqrt()


def _offsets(dilations: Sequence[int]) -> Iterator[tuple[int, int]]:
    yield from ((d * dy, d * dx) for d in dilations for dy, dx in _RING)


def _held(x: Tensor, dilations: Sequence[int]) -> Tensor:
    """`x` with its edge repeated far enough for the widest window."""
    return pad(x, [max(dilations)] * 4, mode="replicate")


def _shifted(held: Tensor, dy: int, dx: int, dilations: Sequence[int]) -> Tensor:
    """A view on `held`: at each pixel the value of the pixel (dy, dx) away."""
    r = max(dilations)
    return held[..., r + dy : held.shape[-2] - r + dy, r + dx : held.shape[-1] - r + dx]


def _check(images: Tensor, masks: Tensor, iterations: int, dilations: Sequence[int]) -> None:
    if images.shape[0] != masks.shape[0] or images.shape[2:] != masks.shape[2:]:
        raise DataError(f"found masks {tuple(masks.shape)} (n, k, h, w) for images {tuple(images.shape)}: expected the "
                        "same n, h and w; bring the masks to the images' size first (tagseg.ops.geometry.resample)")
    if iterations < 0 or not dilations or min(dilations) < 1:
        raise UsageError(f"iterations is {iterations} and dilations are {tuple(dilations)}: expected 0 or more, and "
                         f"one or more distances of at least 1 pixel, for example {DILATIONS}")
