"""The inner step of the mean field, compiled by numba: slice, softmax and splat of each pixel in one pass."""

from __future__ import annotations

import numpy as np
from numba import njit

from tagseg.ops.lanes import divide, exp, fill, largest, load, plus_product, spread, store, total, whole

_SPATIAL, _BILATERAL = 3, 6  # vertices of a simplex in 2 and 5 dimensions, fixed so that the loops unroll
_GROUP = 16  # pixels that go through each phase together: a pixel's phases wait for each other, its neighbours' do not


@njit(nogil=True, cache=True)
def pack(unary, order, low, lanes):  # type: ignore[no-untyped-def]
    """Logits (N, L) in the `order` (N,) of visits from energies (K, N), padded with `low`; are all of them finite?"""
    n, k = len(order), len(unary)
    logits, finite = np.empty((n, len(lanes)), np.float32), True
    for i in range(n):
        for label in range(k):
            energy = unary[label, order[i]]
            finite &= np.isfinite(energy)
            logits[i, label] = -energy
        for label in range(k, len(lanes)):
            logits[i, label] = low
    return logits, finite


@njit(nogil=True, cache=True)
def unpack(q, order, k):  # type: ignore[no-untyped-def]
    """Probabilities (K, N) of pixels from those of visits (N, L)."""
    out = np.empty((k, len(order)), np.float32)
    for i in range(len(order)):
        for label in range(k):
            out[label, order[i]] = q[i, label]
    return out


@njit(nogil=True, cache=True)
def update(near_at, near_by, near, near_next, near_gain, far_at, far_by, far, far_next, far_gain,  # type: ignore[no-untyped-def]
           logits, q, messages, last, lanes):
    """q = softmax(logits + near_gain * slice(near) + far_gain * slice(far)), splatted into the `_next` vertex values.

    `_at`, `_by`: vertices and weights of each pixel in the spatial (near) and bilateral (far) lattice; `_gain` (L,);
    logits, q (N, L). Without `messages` the softmax of the logits alone. The `last` step writes q and splats nothing.
    """
    n, labels = len(logits), len(lanes)
    rows = np.zeros(_GROUP * labels, np.float32)
    for start in range(0, n, _GROUP):
        count = min(_GROUP, n - start)
        for r in range(count):
            value = load(logits, (start + r) * labels, lanes)
            if messages:
                a, b = (start + r) * _SPATIAL, (start + r) * _BILATERAL
                mixed = fill(np.float32(0), lanes)
                for j in range(a, a + _SPATIAL):
                    at = whole(near_at, j) * labels
                    mixed = plus_product(mixed, load(near, at, lanes), spread(near_by, j, lanes))
                value = plus_product(value, mixed, load(near_gain, 0, lanes))
                mixed = fill(np.float32(0), lanes)
                for j in range(b, b + _BILATERAL):
                    at = whole(far_at, j) * labels
                    mixed = plus_product(mixed, load(far, at, lanes), spread(far_by, j, lanes))
                value = plus_product(value, mixed, load(far_gain, 0, lanes))
            store(rows, r * labels, value)
        _softmax(rows, lanes)
        if last:
            for r in range(count):
                store(q, (start + r) * labels, load(rows, r * labels, lanes))
            continue
        for r in range(count):
            value = load(rows, r * labels, lanes)
            a, b = (start + r) * _SPATIAL, (start + r) * _BILATERAL
            for j in range(a, a + _SPATIAL):
                at = whole(near_at, j) * labels
                store(near_next, at, plus_product(load(near_next, at, lanes), value, spread(near_by, j, lanes)))
            for j in range(b, b + _BILATERAL):
                at = whole(far_at, j) * labels
                store(far_next, at, plus_product(load(far_next, at, lanes), value, spread(far_by, j, lanes)))


@njit(nogil=True, cache=True)
def _softmax(rows, lanes):  # type: ignore[no-untyped-def]
    """Softmax of each pixel of a group, in place; with 4 labels two pixels share a register."""
    if len(lanes) == 4:
        two = (0,) * 8
        for at in range(0, len(rows), 8):
            value = load(rows, at, two)
            value = exp(value - largest(value, lanes))
            store(rows, at, divide(value, total(value, lanes)))
    else:
        for at in range(0, len(rows), len(lanes)):
            value = load(rows, at, lanes)
            value = exp(value - largest(value, lanes))
            store(rows, at, value * divide(fill(np.float32(1), lanes), total(value, lanes)))
