"""The inner step of the mean field, compiled by numba: slice, softmax and splat of each pixel in one pass."""

from __future__ import annotations

import numpy as np
from numba import njit

from tagseg.ops.lanes import exp, fill, larger, largest, load, store, total

_SPATIAL, _BILATERAL = 3, 6  # vertices of a simplex in 2 and 5 dimensions, fixed so that the loops unroll
_LOWEST = np.float32(-3e38)


@njit(nogil=True, cache=True)
def update(near_at, near_by, near, near_next, near_gain, far_at, far_by, far, far_next, far_gain,  # type: ignore[no-untyped-def]
           logits, q, messages, last, lanes):
    """q = softmax(logits + near_gain * slice(near) + far_gain * slice(far)), splatted into the `_next` vertex values.

    `_at`, `_by`: vertices and weights of each pixel in the spatial (near) and bilateral (far) lattice; `_gain` (L,);
    logits, q (N, L). Without `messages` the softmax of the logits alone. The `last` step writes q and splats nothing.
    """
    n, width = len(logits), len(lanes)
    labels = 4 if width == 4 else logits.shape[1]
    row = np.empty(labels, np.float32)
    for i in range(n):
        top = fill(_LOWEST, lanes)
        for k in range(0, labels, width):
            value = load(logits, i * labels + k, lanes)
            if messages:
                mixed = fill(np.float32(0), lanes)
                for j in range(_SPATIAL):
                    mixed = mixed + load(near, np.int64(near_at[i, j]) * labels + k, lanes) * near_by[i, j]
                value = value + mixed * load(near_gain, k, lanes)
                mixed = fill(np.float32(0), lanes)
                for j in range(_BILATERAL):
                    mixed = mixed + load(far, np.int64(far_at[i, j]) * labels + k, lanes) * far_by[i, j]
                value = value + mixed * load(far_gain, k, lanes)
            store(row, k, value)
            top = larger(top, value)
        peak = largest(top)
        mass = fill(np.float32(0), lanes)
        for k in range(0, labels, width):
            value = exp(load(row, k, lanes) - peak)
            store(row, k, value)
            mass = mass + value
        share = np.float32(1) / total(mass)
        for k in range(0, labels, width):
            value = load(row, k, lanes) * share
            if last:
                store(q, i * labels + k, value)
                continue
            for j in range(_SPATIAL):
                at = np.int64(near_at[i, j]) * labels + k
                store(near_next, at, load(near_next, at, lanes) + value * near_by[i, j])
            for j in range(_BILATERAL):
                at = np.int64(far_at[i, j]) * labels + k
                store(far_next, at, load(far_next, at, lanes) + value * far_by[i, j])
