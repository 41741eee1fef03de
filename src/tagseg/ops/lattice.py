"""Gaussian filtering in many dimensions by the permutohedral lattice (Adams, Baek, Davis 2010), compiled by numba.

Points are splatted on the vertices of the simplex that holds them, the vertices are blurred along d+1 axes, and the
values are sliced back. Serial kernels that release the interpreter lock: run images in threads. Points that are near
one another should stand near one another: the vertices that they share are then in the processor's cache.

A vertex has d+1 whole coordinates of sum 0, all with one remainder r modulo d+1: it is r and the quotients q of the
first d coordinates, written as the one integer r * base + sum(q * strides).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64
from numba import njit

from tagseg.ops.lanes import (
    fetch,
    fill,
    lanes,
    less,
    load,
    plus_product,
    rint,
    spread,
    store,
    store_whole,
    unless,
    where_equal,
    whole,
)
from tagseg.types import DataError

_MIX = np.uint64(0x9E3779B97F4A7C15)
POINTS = 8  # points that are embedded at a time, one in each lane
_AHEAD, _LINE = 32, 16  # links that the blur asks memory for beforehand; float32 of a cache line
_FIRST_TABLE = 15  # log2 of the slots to begin with


@dataclass(frozen=True, eq=False)
class Lattice:
    """A filter for N points: where each is splatted, and how the M vertices are blurred.

    `vertices` and `weights` (N, d+1): vertex ids and barycentric weights of each point. `chains`: the ids of vertices
    that are neighbours along an axis, one chain after the other, axis after axis; the first of a chain is written ~id.
    A vertex without neighbours along an axis is in none of its chains. `ends` (d+2,): where an axis begins and ends.
    `size`: M. `gain` scales the result: 1 / (1 + 2^-d).
    """

    vertices: Int32[np.ndarray, "n d1"]
    weights: Float32[np.ndarray, "n d1"]
    chains: Int32[np.ndarray, " links"]
    ends: Int64[np.ndarray, " d2"]
    size: int
    gain: float


class Keys(NamedTuple):
    """How a vertex is written as one integer; the lowest quotients (d,), and `bits` left for the vertex id."""

    low: Int64[np.ndarray, " d"]
    strides: Int64[np.ndarray, " d1"]
    base: int
    bits: int


def build(features: Float32[np.ndarray, "n d"]) -> Lattice:
    """Lay a lattice under `features`, in units of the Gaussian's standard deviation (kernel exp(-|f_i - f_j|^2 / 2)).

    Raises `DataError` for features that are not finite, or so wide that their vertices do not fit 62-bit keys.
    """
    n, d = features.shape
    columns = np.zeros((d, -(-n // POINTS) * POINTS), np.float32)
    columns[:, :n] = features.T
    return build_columns(columns, n)


def build_columns(columns: Float32[np.ndarray, "d padded"], n: int) -> Lattice:
    """`build` from the features' columns, padded to a multiple of `POINTS` (whatever values are there)."""
    d = len(columns)
    if columns.shape[1] % POINTS or columns.shape[1] < n or not columns.flags.c_contiguous:
        raise DataError(f"lattice columns: found shape {columns.shape} for {n} points, expected contiguous rows padded "
                        f"to a multiple of {POINTS}")
    ends = np.array([columns[:, :n].min(1), columns[:, :n].max(1)]) if n and d else np.full((2, d), np.nan)
    keys = key_layout(ends, n)
    vertices, weights, table, m = _embed(columns, n, tuple(scale_of(d)), keys)
    if m < 0:
        raise DataError(f"lattice features: found more than {1 << keys.bits} vertices, too many to tell apart at this "
                        "range of features: use a larger sxy or srgb, or a smaller image")
    chains, ends = _chains(np.sort(table[table != -1]), keys)
    return Lattice(vertices, weights, chains, ends, int(m), gain_of(d))


def filter(lattice: Lattice, values: Float32[np.ndarray, "n l"]) -> Float32[np.ndarray, "n l"]:
    """Weighted sums of `values` over all points, the Gaussian of the features' distance as weight (not normalised).

    A convolution of the lattice's own: about exp(-|f_i - f_j|^2 / 2) times a factor; a point counts itself.
    """
    if values.ndim != 2 or len(values) != len(lattice.vertices):
        raise DataError(f"values to filter: found shape {values.shape}, expected ({len(lattice.vertices)}, L): "
                        "one row for each point of the lattice")
    kind = lanes(values.shape[1])
    padded = np.zeros((len(values), len(kind)), np.float32)
    padded[:, :values.shape[1]] = values
    held = vertex_values(lattice, len(kind))
    _splat(lattice.vertices, lattice.weights, padded, held, kind)
    blur(lattice.chains, lattice.ends, held, kind)
    _gather(lattice.vertices, lattice.weights, held, np.float32(lattice.gain), padded, kind)
    return np.ascontiguousarray(padded[:, :values.shape[1]])


def normalised(lattice: Lattice, eps: float = 1e-20) -> Lattice:
    """The lattice of the symmetrically normalised kernel: D^-1/2 K D^-1/2 with D = K 1 (Kraehenbuehl & Koltun)."""
    held = np.zeros(lattice.size, np.float32)
    weights = _normalise(lattice.vertices, lattice.weights, lattice.chains, held, np.float32(lattice.gain), eps)
    return replace(lattice, weights=weights)


def vertex_values(lattice: Lattice, labels: int) -> Float32[np.ndarray, "m l"]:
    """Zeroed values of the vertices, so placed that no vector of 8 lies across two cache lines."""
    count = lattice.size * labels
    room = np.zeros(count + 16, np.float32)
    start = -room.ctypes.data % 64 // 4
    return room[start:start + count].reshape(lattice.size, labels)


def gain_of(d: int) -> float:
    """What the sums of the blurred values are multiplied by (authors' implementation)."""
    return 1.0 / (1.0 + 2.0**-d)


def scale_of(d: int) -> Float32[np.ndarray, " d"]:
    """The diagonal of the embedding: one standard deviation of the lattice's blur is one feature unit."""
    deviation = np.float32(np.sqrt(2.0 / 3.0) * (d + 1))
    return np.array([1.0 / np.sqrt((i + 2.0) * (i + 1.0)) * float(deviation) for i in range(d)], np.float32)


def key_layout(extremes: Float32[np.ndarray, "2 d"], n: int) -> Keys:
    """How the vertices of `n` points are written as integers, from the features' least and greatest values."""
    d = extremes.shape[1]
    if not d or not np.isfinite(extremes).all():  # minimum and maximum carry NaN on
        raise DataError(f"lattice features: found shape {(n, d)} or values that are not finite, "
                        "expected at least one point and one dimension, all finite")
    ends = extremes.astype(np.float64) * scale_of(d)
    tail = np.cumsum(ends[:, ::-1], axis=1)[:, ::-1]  # sum over j >= i, the elevated coordinate of axis 0
    low = np.append(tail[0, 0], np.append(tail[0, 1:], 0.0) - np.arange(1, d + 1) * ends[1])[:d]
    high = np.append(tail[1, 0], np.append(tail[1, 1:], 0.0) - np.arange(1, d + 1) * ends[0])[:d]
    margin = 3  # vertices lie within 2(d+1) of the point, and their neighbours within one d+1 more
    low = np.floor((low - 1e-3 * np.abs(low)) / (d + 1)) - margin
    span = np.ceil((high + 1e-3 * np.abs(high)) / (d + 1)) + margin - low + 1
    used = np.log2(span).sum() + np.log2(d + 1)
    if used >= 46:  # beside the key stands the id: 16 bits of 62 at least
        raise DataError(f"lattice features: found ranges {np.ptp(extremes, axis=0).tolist()} standard "
                        "deviations, expected narrower ones: use a larger sxy or srgb")
    strides = np.append(1, np.cumprod(span.astype(np.int64)))
    base = int(strides[-1])
    strides[-1] = 0  # the last coordinate follows from the others
    return Keys(low.astype(np.int64), strides, base, 62 - int(used))


@njit(nogil=True, cache=True)
def _slot(key, table):  # type: ignore[no-untyped-def]
    """Where the search for `key` begins in an open-addressing table of 2^n slots."""
    return np.int64((np.uint64(key) * _MIX) >> np.uint64(20)) & (len(table) - 1)


@njit(nogil=True, cache=True)
def _grown(table, bits):  # type: ignore[no-untyped-def]
    wider = np.full(4 * len(table), -1, np.int64)
    for entry in table:
        if entry != -1:
            slot = _slot(entry >> bits, wider)
            while wider[slot] != -1:
                slot = (slot + 1) & (len(wider) - 1)
            wider[slot] = entry
    return wider


@njit(nogil=True, cache=True)
def _vertex(key, table, bits, m):  # type: ignore[no-untyped-def]
    """The id of the vertex `key` among the `m` known ones; m itself, now entered, where it is new."""
    slot = _slot(key, table)
    while table[slot] != -1:
        if table[slot] >> bits == key:
            return table[slot] & ((np.int64(1) << bits) - 1)
        slot = (slot + 1) & (len(table) - 1)
    table[slot] = (key << bits) | m
    return m


@njit(nogil=True, cache=True)
def _simplices(columns, start, scale, quotient, rank, bary, room):  # type: ignore[no-untyped-def]
    """The simplices around 8 points, one a lane: `quotient` of the remainder-0 vertex, `rank` of each axis, weights.

    Adams, Sec. 3. Every operation is float32 and in the order of the authors' implementation: points on a border fall
    alike. quotient, rank (d+1, 8) int32, bary (d+1, 8), room (4(d+1), 8).
    """
    d, eight, padded = len(scale), (0,) * 8, columns.shape[1]
    size, inverse = np.float32(d + 1), np.float32(1) / np.float32(d + 1)
    zero, one = fill(np.float32(0), eight), fill(np.float32(1), eight)
    elevated, rest, multiple_at, place_at = 0, (d + 1) * 8, 2 * (d + 1) * 8, 3 * (d + 1) * 8  # parts of the room
    tail, shift = zero, zero
    for j in range(d, 0, -1):
        value = load(columns, (j - 1) * padded + start, eight) * scale[j - 1]
        store(room, elevated + j * 8, tail - value * np.float32(j))
        tail = tail + value
    store(room, elevated, tail)
    for i in range(d + 1):
        here = load(room, elevated + i * 8, eight)
        nearest = rint(here * inverse)
        store(room, multiple_at + i * 8, nearest)
        store(room, rest + i * 8, here - nearest * size)
        store(room, place_at + i * 8, zero)
        shift = shift + nearest
    for i in range(d):
        here, above = load(room, rest + i * 8, eight), load(room, place_at + i * 8, eight)
        for j in range(i + 1, d + 1):
            below = less(here, load(room, rest + j * 8, eight))
            above = above + below
            store(room, place_at + j * 8, load(room, place_at + j * 8, eight) + (one - below))
        store(room, place_at + i * 8, above)
    for i in range(d + 1):  # coordinates sum to zero on the plane: bring the vertex back to it
        place = load(room, place_at + i * 8, eight) + shift
        turn = less(place, zero) - less(fill(np.float32(d), eight), place)
        place = place + turn * size
        multiple = load(room, multiple_at + i * 8, eight) + turn
        store(room, place_at + i * 8, place)
        store(room, rest + i * 8, (load(room, elevated + i * 8, eight) - multiple * size) * inverse)
        store_whole(rank, i * 8, place)
        store_whole(quotient, i * 8, multiple)
    before = zero
    for k in range(d, -1, -1):  # the weights are the steps between the coordinates, from the highest ranked down
        value = zero
        for i in range(d + 1):
            place = load(room, place_at + i * 8, eight)
            value = value + where_equal(place, fill(np.float32(k), eight), load(room, rest + i * 8, eight))
        store(bary, (d - k) * 8, value - before)
        before = value
    store(bary, 0, load(bary, 0, eight) + (one - before))


@njit(nogil=True, cache=True)
def _embed(columns, n, scale, keys):  # type: ignore[no-untyped-def]
    """Vertex ids and weights of each point, the table of the vertices in the order of their first use, their number.

    The number is -1 where ids no longer fit beside the keys.
    """
    d = len(scale)
    vertices, weights = np.empty((n, d + 1), np.int32), np.empty((n, d + 1), np.float32)
    table, m = np.full(1 << _FIRST_TABLE, -1, np.int64), np.int64(0)
    quotient, rank = np.empty((d + 1, 8), np.int32), np.empty((d + 1, 8), np.int32)
    bary, room = np.empty((d + 1, 8), np.float32), np.empty((4 * d + 4, 8), np.float32)
    stride = np.zeros(d + 1, np.int64)  # of the axis of each rank
    origin = (keys.low * keys.strides[:d]).sum()
    for start in range(0, n, 8):
        _simplices(columns, start, scale, quotient, rank, bary, room)
        for lane in range(min(8, n - start)):
            key = -origin
            for j in range(d + 1):
                stride[whole(rank, j * 8 + lane)] = keys.strides[j]
                key += whole(quotient, j * 8 + lane) * keys.strides[j]
            for r in range(d + 1):
                found = _vertex(key, table, keys.bits, m)
                m += found == m
                vertices[start + lane, r] = found
                weights[start + lane, r] = bary[r, lane]
                key += keys.base - stride[d - r]  # one further on all axes, but for the highest ranked: d back
        if m + 8 * (d + 1) >= np.int64(1) << keys.bits:
            return vertices, weights, table, np.int64(-1)
        if 3 * (m + 8 * (d + 1)) > len(table):  # most first looks then hit
            table = _grown(table, keys.bits)
    return vertices, weights, table, m


@njit(nogil=True, cache=True)
def _chains(entries, keys):  # type: ignore[no-untyped-def]
    """The chains of all axes, from the sorted table entries (M,): a vertex, then the one a step down the axis, ..."""
    m, d1 = len(entries), len(keys.strides)
    key, ids = entries >> keys.bits, (entries & ((np.int64(1) << keys.bits) - 1)).astype(np.int32)
    first = np.searchsorted(key, np.arange(d1 + 1) * keys.base)  # of each remainder
    chains, ends, used = np.empty(d1 * m, np.int32), np.zeros(d1 + 1, np.int64), 0
    down, has_up = np.empty(m, np.int32), np.empty(m, np.bool_)
    for axis in range(d1):
        down[:], has_up[:] = -1, False
        for r in range(d1):
            below = r - 1 if r else d1 - 1
            step = keys.strides[axis] - (keys.base if r else keys.strides.sum() - (d1 - 1) * keys.base)
            i, at = first[r], first[below]
            while i < first[r + 1] and at < first[below + 1]:  # both ascend; no branch that could be guessed wrong
                wanted, found = key[i] + step, key[at]
                down[i] = at if wanted == found else -1
                has_up[at] |= wanted == found
                i += wanted <= found
                at += found <= wanted
        for i in range(m):
            if down[i] >= 0 and not has_up[i]:
                chains[used] = ~ids[i]
                used, at = used + 1, down[i]
                while at >= 0:
                    chains[used] = ids[at]
                    used, at = used + 1, down[at]
        ends[axis + 1] = used
    return chains[:used].copy(), ends


@njit(nogil=True, cache=True)
def blur(chains, ends, values, lanes):  # type: ignore[no-untyped-def]
    """Blur the vertex values (M, L) by [1/2, 1, 1/2] along each axis, in place: along a chain each is read once."""
    labels, half, zero = len(lanes), np.float32(0.5), fill(np.float32(0), lanes)
    for axis in range(len(ends) - 1):
        if ends[axis] == ends[axis + 1]:
            continue
        at = ~whole(chains, ends[axis]) * labels
        before, here = zero, load(values, at, lanes)
        for i in range(ends[axis] + 1, ends[axis + 1]):
            later = whole(chains, min(i + _AHEAD, len(chains) - 1))
            for k in range(0, labels, _LINE):
                fetch(values, (later ^ (later >> 63)) * labels + k)
            link = whole(chains, i)
            first = link >> 63  # -1 where a chain begins, else 0
            coming = (link ^ first) * labels
            value = load(values, coming, lanes)
            store(values, at, plus_product(here, before + unless(first, value), half))
            before, here, at = unless(first, here), value, coming
        store(values, at, plus_product(here, before, half))


@njit(nogil=True, cache=True)
def _normalise(vertices, weights, chains, held, gain, eps):  # type: ignore[no-untyped-def]
    """Weights (N, d+1) over the root of the filtered ones; `held` (M,) zeroed. One label, so plain numbers."""
    n, d1 = weights.shape
    half, before, at = np.float32(0.5), np.float32(0), np.int64(0)
    for i in range(n):
        for j in range(d1):
            held[vertices[i, j]] += weights[i, j]
    here = held[0]
    for i in range(len(chains)):
        link = np.int64(chains[i])
        after = held[link] if link >= 0 else np.float32(0)
        held[at] = here + half * (before + after)
        before, here, at = (here, after, link) if link >= 0 else (np.float32(0), held[~link], ~link)
    held[at] = here + half * before
    result = np.empty_like(weights)
    for i in range(n):
        norm = np.float32(0)
        for j in range(d1):
            norm += weights[i, j] * held[vertices[i, j]]
        root = np.float32(1.0 / np.sqrt(np.float64(norm * gain) + eps))
        for j in range(d1):
            result[i, j] = weights[i, j] * root
    return result


@njit(nogil=True, cache=True)
def _splat(vertices, weights, values, out, lanes):  # type: ignore[no-untyped-def]
    """Add each point's values (N, L) to its vertices `out` (M, L)."""
    labels, d1 = len(lanes), vertices.shape[1]
    for i in range(len(vertices)):
        value = load(values, i * labels, lanes)
        for j in range(i * d1, (i + 1) * d1):
            at = whole(vertices, j) * labels
            store(out, at, plus_product(load(out, at, lanes), value, spread(weights, j, lanes)))


@njit(nogil=True, cache=True)
def _gather(vertices, weights, values, gain, out, lanes):  # type: ignore[no-untyped-def]
    """Slice: the weighted mean of each point's vertex values (M, L), times `gain`, into `out` (N, L)."""
    labels, d1 = len(lanes), vertices.shape[1]
    for i in range(len(vertices)):
        mixed = fill(np.float32(0), lanes)
        for j in range(i * d1, (i + 1) * d1):
            mixed = plus_product(mixed, load(values, whole(vertices, j) * labels, lanes), spread(weights, j, lanes))
        store(out, i * labels, mixed * gain)
