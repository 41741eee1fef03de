"""Where the cells of a feature map lie in an image: every resampling of maps, features and labels follows this page.

Pixel centres are integers. Cell i of a grid is centred at pixel `stride * i + offset` of the network's input.
Images of another size are related by the half-pixel rule: output y lies at input (y + 1/2) in/out - 1/2.
Outside the outermost cell centres the edge is replicated.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

Size = tuple[int, int]
Array = TypeVar("Array", np.ndarray, Tensor)


@runtime_checkable
class Grid(Protocol):
    """Anything that says where its cells lie: the centre of cell i is `stride * i + offset`, in input pixels."""

    @property
    def stride(self) -> int: ...

    @property
    def offset(self) -> float: ...


def resample(maps: Float[Tensor, "n k h w"], *, stride: int, offset: float, in_size: Size,
             out_size: Size) -> Float[Tensor, "n k H W"]:
    """Read a cell grid bilinearly at the pixel centres of an image.

    `in_size` (H, W) of the network's input; `out_size` of the wanted image, another scale of the same picture.
    Half precision is computed and returned as float32. Deterministic and differentiable.
    """
    y, x = ((_pixels(i, o) - offset) / stride for i, o in zip(in_size, out_size, strict=True))
    return _read(maps, y, x)


def align(feature: Float[Tensor, "n d h w"], source: Grid, target: Grid, size: Size) -> Float[Tensor, "n d H W"]:
    """Bring a feature map from the `source` grid to the `size` (H, W) cells of the `target` grid of the same input."""
    y, x = ((target.stride * np.arange(n) + target.offset - source.offset) / source.stride for n in size)
    return _read(feature, y, x)


def resize_labels(labels: Array, out_size: Size) -> Array:
    """Scale label maps (..., h, w) to `out_size`: a new pixel takes the label of the old pixel its centre lies in."""
    rows, columns = (((2 * np.arange(o) + 1) * i) // (2 * o)  # integers: no rounding can move a border
                     for i, o in zip(labels.shape[-2:], out_size, strict=True))
    if isinstance(labels, np.ndarray):
        return labels[..., rows[:, None], columns]
    return labels[..., torch.from_numpy(rows).to(labels.device)[:, None], torch.from_numpy(columns).to(labels.device)]


def _pixels(in_length: int, out_length: int) -> np.ndarray:
    """Input coordinates (out_length,) of the output's pixel centres, by the half-pixel rule."""
    return (np.arange(out_length) + 0.5) * (in_length / out_length) - 0.5


def _read(maps: Tensor, y: np.ndarray, x: np.ndarray) -> Tensor:
    """Bilinear values of maps (n, k, h, w) at cell coordinates y (H,) and x (W,): (n, k, H, W), at least float32."""
    dtype = torch.promote_types(maps.dtype, torch.float32)
    down = _matrix(y.tobytes(), maps.shape[-2], dtype, maps.device)
    across = _matrix(x.tobytes(), maps.shape[-1], dtype, maps.device)
    with torch.autocast(maps.device.type, enabled=False):
        return down @ (maps.to(dtype) @ across.T)


@lru_cache(maxsize=32)
def _matrix(positions: bytes, cells: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`_weights` on a device, kept for the next image of that size: each copy to a card waits for the card."""
    with torch.inference_mode(False):  # training will read the same one
        return torch.from_numpy(_weights(np.frombuffer(positions), cells)).to(device, dtype)


def _weights(positions: np.ndarray, cells: int) -> np.ndarray:
    """Interpolation matrix (P, cells): each row holds the two shares of the cells around a position, edges held."""
    low, share = _around(positions, cells)
    matrix = np.zeros((len(positions), cells))
    rows = np.arange(len(positions))
    matrix[rows, low] = 1 - share
    matrix[rows, np.minimum(low + 1, cells - 1)] += share  # `+=`: a grid of one cell has both shares in one place
    return matrix


def _around(positions: np.ndarray, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """The cell before each position, and the share of the one after it."""
    held = positions.clip(0, cells - 1)
    low = np.floor(held).astype(np.int64).clip(0, max(cells - 2, 0))
    return low, held - low


def corners(out_length: int, in_length: int, stride: int, offset: float, cells: int
            ) -> tuple[Int64[np.ndarray, " p"], Float64[np.ndarray, " p"]]:
    """What `resample` reads along one axis: for each of `out_length` pixels the cell before it and the share of the
    next one (the last cell has no next one: its share is 0, or, on a grid of one cell, goes to itself).
    """
    return _around((_pixels(in_length, out_length) - offset) / stride, cells)


def enlarge(scores: Float[np.ndarray, "k h w"], size: Size) -> Float[np.ndarray, "k H W"]:
    """Maps of a coarser copy of an image at the image's own size (H, W), bilinear by the half-pixel rule, float32."""
    if scores.shape[1:] == size or not len(scores):
        return np.zeros((0, *size), np.float32) if not len(scores) else scores
    maps = torch.from_numpy(np.ascontiguousarray(scores))[None]
    return resample(maps, stride=1, offset=0.0, in_size=(scores.shape[1], scores.shape[2]), out_size=size)[0].numpy()


def shrunk(scores: Float32[np.ndarray, "k h w"], size: Size) -> Float32[np.ndarray, "k H W"]:
    """Maps on a grid no finer than `size`: means over its cells' areas, so that thin objects do not fall between
    sampled points; an axis that is not longer than the grid's stays as it is.
    """
    maps = torch.from_numpy(np.ascontiguousarray(scores))
    for axis, cells in ((1, size[0]), (2, size[1])):
        if cells < maps.shape[axis]:
            shares = torch.from_numpy(areas(maps.shape[axis], cells))
            maps = shares @ maps if axis == 1 else maps @ shares.T
    return maps.numpy()


def areas(pixels: int, cells: int) -> Float32[np.ndarray, "cells pixels"]:
    """Each pixel's share of each cell along one axis, cells of equal width; rows sum to 1."""
    edges, left = np.arange(cells + 1) * (pixels / cells), np.arange(pixels)
    inside = np.minimum(edges[1:, None], left + 1) - np.maximum(edges[:-1, None], left)
    return (inside.clip(0) * (cells / pixels)).astype(np.float32)
