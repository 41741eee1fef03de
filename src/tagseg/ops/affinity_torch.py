"""The affinity random walk of `tagseg.ops.affinity` on torch tensors: many images at once, on any device.

The same numbers to 1e-5. Every step is a handful of slices, multiplied and added in place: nothing waits for the device
between steps, so a whole walk can be captured in a graph. Images of different sizes share a batch by `stack`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tagseg.ops.affinity import FLOOR, check_boundary, coefficients, offsets, path
from tagseg.types import DataError, UsageError

Offsets = tuple[tuple[int, int], ...]
Slices = tuple[EllipsisType, slice, slice]


@dataclass(frozen=True, eq=False)
class Transition:
    """One step of the walk for b images: `weights[:, f]` ties each pixel to pixel + `offsets[f]`, both ways.

    A pixel's own weight is 1; 0 where the offset leaves the grid. `inverse` is 1 / the sum of a pixel's weights.
    """

    offsets: Offsets
    weights: Float[Tensor, "b f h w"]
    inverse: Float[Tensor, "b 1 h w"]


def stack(grids: Sequence[Float[Tensor, "*c _ _"]], fill: float) -> Float[Tensor, "b *c h w"]:
    """Maps (..., h, w) of different sizes as one batch, filled to the right and below; crop the results.

    Boundary maps are filled with 1, affinities and values with 0: then nothing flows between an image and its filling.
    """
    h, w = (max(grid.shape[axis] for grid in grids) for axis in (-2, -1))
    whole = grids[0].new_full((len(grids), *grids[0].shape[:-2], h, w), fill)
    for to, grid in zip(whole, grids, strict=True):
        to[..., : grid.shape[-2], : grid.shape[-1]] = grid
    return whole


def path_affinity(boundary: Float[Tensor, "b h w"], radius: int = 5) -> Float[Tensor, "b f h w"]:
    """How freely each pixel reaches pixel + offset: 1 - the highest boundary on the straight path (IRN, Eq. 3).

    As in `tagseg.ops.affinity`, but gradients pass. `boundary` in [0, 1] (not checked here: `check` does, and waits for
    the device); planes in the order of `offsets(radius)`; 0 where the offset leaves the grid.
    """
    h, w = boundary.shape[-2:]
    planes = []
    for dy, dx in offsets(radius).tolist():
        rows, left, columns = max(0, h - dy), min(w, max(0, -dx)), max(0, w - abs(dx))
        highest = boundary.new_zeros(len(boundary), rows, columns)
        for y, x in path(dy, dx) if rows and columns else []:
            highest = torch.maximum(highest, boundary[:, y : y + rows, left + x : left + x + columns])
        planes.append(torch.nn.functional.pad(1 - highest, (left, w - left - columns, 0, h - rows)))
    return torch.stack(planes, dim=1)


def check(boundary: Float[Tensor, "b h w"]) -> None:
    """Raise `DataError` unless all values of the boundary maps lie in [0, 1]."""
    check_boundary(float(boundary.min()), float(boundary.max()))


def transition(
    affinity: Float[Tensor, "b f h w"], offsets: Int64[np.ndarray, "o 2"], beta: float = 10.0
) -> Transition:
    """The step of the walk from affinities in [0, 1] as `path_affinity` gives them: weights affinity^beta, normalised.

    Raises `DataError` where the affinities do not belong to the offsets, and `UsageError` unless beta > 0.
    """
    steps = tuple((int(dy), int(dx)) for dy, dx in offsets)
    if affinity.shape[1] != len(steps):
        raise DataError(f"affinity: found {affinity.shape[1]} planes, expected one for each of {len(steps)} offsets")
    if not beta > 0:
        raise UsageError(f"beta of the walk: found {beta}, expected more than 0")
    weights = affinity.detach() ** beta
    weights = torch.where(weights < FLOOR, weights.new_zeros(()), weights)
    sums = torch.ones_like(weights[:, 0])
    for plane, offset in zip(weights.unbind(1), steps, strict=True):
        here, there = _ends(offset, *plane.shape[-2:])
        sums[here] += plane[here]
        sums[there] += plane[here]
    return Transition(steps, weights, 1 / sums[:, None])


def damp(values: Float[Tensor, "b k h w"], boundary: Float[Tensor, "b h w"]) -> Float[Tensor, "b k h w"]:
    """Values without what lies on a boundary, as IRN does before it walks: values * (1 - boundary)."""
    return values * (1 - boundary[:, None])


@torch.no_grad()
def walk(transition: Transition, values: Float[Tensor, "b k h w"], steps: int = 256) -> Float[Tensor, "b k h w"]:
    """The maps after `steps` steps of the walk, each taken. Of the values' type and device."""
    if steps < 1:
        raise UsageError(f"steps of the walk: found {steps}, expected 1 or more")
    for _ in range(steps):
        values = _step(transition, values)
    return values


@torch.no_grad()
def chebyshev(
    transition: Transition, values: Float[Tensor, "b k h w"], steps: int = 256, degree: int = 60
) -> Float[Tensor, "b k h w"]:
    """`walk` with `degree` products instead of `steps`; the error is bounded by `affinity.chebyshev_error`."""
    mix = coefficients(steps, degree)[0].tolist()
    before, now = values, _step(transition, values)
    total = mix[0] * values + mix[1] * now
    for factor in mix[2:]:  # T_j+1 = 2 P T_j - T_j-1
        before, now = now, _step(transition, now).mul_(2).sub_(before)
        if factor:
            total.add_(now, alpha=factor)
    return total.clamp(values.amin((-2, -1), keepdim=True), values.amax((-2, -1), keepdim=True))


def _step(transition: Transition, values: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k h w"]:
    """One step: each pixel moved by the weighted mean of the differences to its neighbours (see `affinity._step`)."""
    if values.shape[-2:] != transition.weights.shape[-2:] or len(values) != len(transition.weights):
        raise DataError(f"maps to walk: found shape {tuple(values.shape)}, expected the batch and size of the "
                        f"boundary maps, {tuple(transition.weights[:, 0].shape)}")  # fmt: skip
    change = torch.zeros_like(values)
    for weights, offset in zip(transition.weights.unbind(1), transition.offsets, strict=True):
        here, there = _ends(offset, *values.shape[-2:])
        difference = values[there] - values[here]
        weight = weights[:, None][here]
        change[here].addcmul_(weight, difference)
        change[there].addcmul_(weight, difference, value=-1)
    return change.mul_(transition.inverse).add_(values)


def _ends(offset: tuple[int, int], h: int, w: int) -> tuple[Slices, Slices]:
    """The pixels from which `offset` stays in the grid, and those where it arrives; both empty where there are none."""
    dy, dx = min(h, offset[0]), max(-w, min(w, offset[1]))
    here = (..., slice(0, h - dy), slice(max(0, -dx), w - max(0, dx)))
    there = (..., slice(dy, h), slice(max(0, dx), w - max(0, -dx)))
    return here, there
