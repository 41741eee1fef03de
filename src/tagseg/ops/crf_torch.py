"""The dense CRF of `crf.py` in torch, for graphics cards: a batch of images of one size in each operation.

Vertices are found by sorting (`torch.unique`) instead of hashing, neighbours by binary search; splat, blur and slice
are scatter and gather. On a processor the numba form is many times faster. Probabilities are equal to its within 1e-4,
except where rounding puts a pixel on the other side of a simplex.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from tagseg.ops.crf import Compatibility, Number, check_lengths, weights_of
from tagseg.ops.lattice import Keys, gain_of, key_layout, scale_of
from tagseg.types import DataError, UsageError


@dataclass(frozen=True, eq=False)
class _Lattice:
    """`vertices`, `weights` (N, d+1) of all points of a batch; `neighbours` (d+1, 2, M), where M stands for none."""

    vertices: Int64[Tensor, "n d1"]
    weights: Float[Tensor, "n d1"]
    neighbours: Int64[Tensor, "d1 2 m"]
    gain: float


def dense_crf(images: UInt8[Tensor, "b h w 3"], unary: Float[Tensor, "b k h w"], *, sxy_gaussian: Number = 3.0,
              compat_gaussian: Compatibility = 3.0, sxy_bilateral: Number = 50.0, srgb: Number = 5.0,
              compat_bilateral: Compatibility = 10.0, iterations: int = 10) -> Float[Tensor, "b k h w"]:
    """Label probabilities of a batch from `unary` energies, on the device of `unary`; parameters as in `crf`.

    Sums on a card are added in no fixed order: repeated runs agree to rounding, not to the bit. Raises as `crf` does.
    """
    check_lengths(sxy_gaussian=sxy_gaussian, sxy_bilateral=sxy_bilateral, srgb=srgb)
    b, k, h, w = unary.shape
    if images.shape != (b, h, w, 3) or not k:
        raise DataError(f"crf images: found shape {tuple(images.shape)} beside energies {tuple(unary.shape)}, expected "
                        "(B, H, W, 3) beside (B, K, H, W) with one label or more")
    if iterations < 0:
        raise UsageError(f"crf iterations: found {iterations}, expected 0 or more")
    if not bool(torch.isfinite(unary).all()):
        raise DataError("crf unary: found energies that are not finite, expected -log of probabilities above 0")
    place = _positions(b, h, w, unary.device)
    colour = images.to(unary.device).reshape(b, h * w, 3).float() / float(srgb)
    terms = [(_normalised(_build(place / float(sxy_gaussian))), compat_gaussian, "compat_gaussian"),
             (_normalised(_build(torch.cat([place / float(sxy_bilateral), colour], 2))), compat_bilateral,
              "compat_bilateral")]
    mixes = [torch.from_numpy(_mix(compat, k, name)).to(unary) for _, compat, name in terms]
    logits = -unary.permute(0, 2, 3, 1).reshape(b * h * w, k)
    q = logits.softmax(1)
    for _ in range(iterations):
        energy = logits
        for (lattice, _, _), mix in zip(terms, mixes, strict=True):
            energy = energy + _filter(lattice, q) @ mix
        q = energy.softmax(1)
    return q.reshape(b, h, w, k).permute(0, 3, 1, 2).contiguous()


def _mix(compat: Compatibility, k: int, name: str) -> np.ndarray:
    """What a label's message adds to each label's logit, (K, K)."""
    weight = weights_of(compat, k, name)
    if weight.ndim == 2:
        return (-0.5 * (weight + weight.T)).astype(np.float32)
    return (weight * np.eye(k) if weight.ndim == 0 else -np.diag(weight)).astype(np.float32)


def _positions(b: int, h: int, w: int, device: torch.device) -> Tensor:
    """Column and row of each pixel, (b, h*w, 2)."""
    rows, columns = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    return torch.stack([columns, rows], -1).reshape(1, h * w, 2).float().expand(b, -1, -1)


def _build(features: Float[Tensor, "b n d"]) -> _Lattice:
    """The lattices of a batch as one: an image's vertices are its own, for its number stands before their keys."""
    b, n, d = features.shape
    flat = features.reshape(b * n, d)
    keys = key_layout(torch.stack([flat.amin(0), flat.amax(0)]).cpu().numpy(), b * n)
    if b >= 1 << keys.bits:
        raise DataError(f"crf images: found {b} in a batch, expected fewer than {1 << keys.bits} at such a small srgb")
    quotient, rank, weights = _simplices(flat)
    stride = torch.tensor(keys.strides, device=flat.device)
    low = torch.tensor(np.append(keys.low, 0), device=flat.device)
    image = torch.arange(b, device=flat.device).repeat_interleave(n) * (keys.base * (d + 1))
    code = ((quotient.long() - low) * stride).sum(1) + image
    falling = rank.argsort(1, descending=True)  # the axis of each rank, from the highest down
    lost = torch.cumsum(stride[falling[:, :d]], 1)
    codes = torch.cat([code[:, None], code[:, None] - lost + keys.base * torch.arange(1, d + 1, device=flat.device)], 1)
    known, vertices = torch.unique(codes, return_inverse=True)
    return _Lattice(vertices, weights, _neighbours(known, keys, d), gain_of(d))


def _simplices(points: Float[Tensor, "n d"]) -> tuple[Tensor, Tensor, Tensor]:
    """Quotients of the remainder-0 vertex, ranks of the axes, weights of the d+1 vertices, each (n, d+1)."""
    d = points.shape[1]
    scaled = points * torch.from_numpy(scale_of(d)).to(points)
    tail, columns = torch.zeros_like(scaled[:, 0]), []
    for j in range(d, 0, -1):
        columns.append(tail - j * scaled[:, j - 1])
        tail = tail + scaled[:, j - 1]
    elevated = torch.stack([tail, *reversed(columns)], 1)
    quotient = torch.round(elevated * np.float32(1 / (d + 1)).item())
    rest = elevated - quotient * (d + 1)
    rank = rest.argsort(dim=1, descending=True, stable=True).argsort(1) + quotient.sum(1, keepdim=True).long()
    turn = (rank < 0).long() - (rank > d).long()
    rank, quotient = rank + turn * (d + 1), quotient + turn
    value = (elevated - quotient * (d + 1)) / (d + 1)
    falling = value.gather(1, rank.argsort(1, descending=True))  # at position m the value of rank d - m
    weights = falling - torch.cat([torch.zeros_like(falling[:, :1]), falling[:, :-1]], 1)
    weights[:, 0] += 1 - falling[:, -1]
    return quotient, rank, weights


def _neighbours(known: Int64[Tensor, " m"], keys: Keys, d: int) -> Int64[Tensor, "d1 2 m"]:
    """Positions among the sorted `known` keys of the vertices one step down and up each axis."""
    whole = keys.base * (d + 1)
    remainder = (known % whole) // keys.base
    found = []
    for axis in range(d + 1):
        step = int(keys.strides[axis])
        around = step - int(keys.strides.sum()) + d * keys.base
        down = _search(known, known + torch.where(remainder > 0, step - keys.base, around))
        up = _search(known, known - torch.where(remainder < d, step - keys.base, around))
        found.append(torch.stack([down, up]))
    return torch.stack(found)


def _search(known: Tensor, wanted: Tensor) -> Tensor:
    at = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
    return torch.where(known[at] == wanted, at, len(known))


def _normalised(lattice: _Lattice, eps: float = 1e-20) -> _Lattice:
    ones = torch.ones_like(lattice.weights[:, :1])
    norm = 1.0 / (_filter(lattice, ones).double() + eps).sqrt()
    return _Lattice(lattice.vertices, lattice.weights * norm.float(), lattice.neighbours, lattice.gain)


def _filter(lattice: _Lattice, values: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Splat, blur along each axis, slice."""
    m, d1 = lattice.neighbours.shape[2], lattice.vertices.shape[1]
    held = values.new_zeros(m + 1, values.shape[1])  # the last row stands for vertices that do not exist
    for j in range(d1):  # one corner at a time bounds the memory
        held.index_add_(0, lattice.vertices[:, j], values * lattice.weights[:, j:j + 1])
    for down, up in lattice.neighbours:
        held[:m] = held[:m] + 0.5 * (held[down] + held[up])
    out = torch.zeros_like(values)
    for j in range(d1):
        out += held[lattice.vertices[:, j]] * lattice.weights[:, j:j + 1]
    return out * lattice.gain
