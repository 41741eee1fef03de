"""From class maps to image scores. Each pooling turns (n, c, h, w) into (n, c); an added constant passes through."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tagseg.types import UsageError


def gap(maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c"]:
    """Mean over all cells (global average pooling)."""
    return maps.mean(dim=(2, 3))  # cam Eq. 2


def lse(maps: Float[Tensor, "n c h w"], r: float) -> Float[Tensor, "n c"]:
    """Smooth maximum (1/r) log mean exp(r m): the mean as r -> 0, the maximum as r -> infinity. In float32."""
    if not r > 0:
        raise UsageError(f"log-sum-exp pooling: found r = {r}, expected a sharpness above 0 (near 0 is the mean); "
                         "use average pooling for the mean itself")
    cells = maps.flatten(2).to(torch.promote_types(maps.dtype, torch.float32))
    return (torch.logsumexp(r * cells, dim=2) - math.log(cells.shape[2])) / r


def topk(maps: Float[Tensor, "n c h w"], share: float) -> Float[Tensor, "n c"]:
    """Mean of the largest `share` (0 to 1) of the cells, at least one cell."""
    if not 0 < share <= 1:
        raise UsageError(f"top-share pooling: found share = {share}, expected a share in (0, 1], such as 0.05")
    cells = maps.flatten(2)
    count = max(1, math.ceil(round(share * cells.shape[2], 6)))  # .1 * 30 is 3.0000000000000004: still 3 cells
    return cells.topk(count, dim=2).values.mean(dim=2)
