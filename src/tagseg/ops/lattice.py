"""Gaussian filtering in many dimensions by the permutohedral lattice (Adams, Baek, Davis 2010), compiled by numba.

Points are splatted on the vertices of the simplex that holds them, the vertices are blurred along d+1 axes, and the
values are sliced back. Serial kernels that release the interpreter lock: run images in threads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int32
from numba import njit

from tagseg.ops.lanes import LANES, fill, load, store
from tagseg.types import DataError

_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False)
class Lattice:
    """A filter for N points: where each is splatted, and how the M vertices are blurred.

    `vertices` and `weights` (N, d+1): vertex ids and barycentric weights of each point. `neighbours` (d+1, M, 2): the
    two vertices beside each one along each axis; M stands for none. `gain` scales the result: 1 / (1 + 2^-d).
    """

    vertices: Int32[np.ndarray, "n d1"]
    weights: Float32[np.ndarray, "n d1"]
    neighbours: Int32[np.ndarray, "d1 m 2"]
    gain: float

    @property
    def size(self) -> int:
        """The number M of vertices."""
        return self.neighbours.shape[1]


def build(features: Float32[np.ndarray, "n d"]) -> Lattice:
    """Lay a lattice under `features`, in units of the Gaussian's standard deviation (kernel exp(-|f_i - f_j|^2 / 2)).

    Raises `DataError` for features that are not finite, or so wide that a vertex does not fit a 62-bit key.
    """
    features = np.ascontiguousarray(features, dtype=np.float32)
    d = features.shape[1]
    scale = _scale(d)
    low, strides = _key_layout(features, scale)
    vertices, weights, table, mask, m = _embed(features, scale, low, strides)
    return Lattice(vertices, weights, _neighbours(table, mask, m, strides), 1.0 / (1.0 + 2.0**-d))


def filter(lattice: Lattice, values: Float32[np.ndarray, "n l"]) -> Float32[np.ndarray, "n l"]:
    """Weighted sums of `values` over all points, the Gaussian of the features' distance as weight (not normalised).

    A convolution of the lattice's own: about exp(-|f_i - f_j|^2 / 2) times a factor; a point counts itself.
    """
    if values.ndim != 2 or len(values) != len(lattice.vertices):
        raise DataError(f"values to filter: found shape {values.shape}, expected ({len(lattice.vertices)}, L): "
                        "one row for each point of the lattice")
    padded, lanes = pad(values)
    a, b = buffers(lattice, padded.shape[1])
    splat(lattice.vertices, lattice.weights, padded, a, lanes)
    result, _ = blur(lattice.neighbours, a, b, lanes)
    gather(lattice.vertices, lattice.weights, result, np.float32(lattice.gain), padded, lanes)
    return np.ascontiguousarray(padded[:, :values.shape[1]])


def normalised(lattice: Lattice, eps: float = 1e-20) -> Lattice:
    """The lattice of the symmetrically normalised kernel: D^-1/2 K D^-1/2 with D = K 1 (Kraehenbuehl & Koltun)."""
    ones = np.ones((len(lattice.vertices), 1), np.float32)
    norm = 1.0 / np.sqrt(filter(lattice, ones).astype(np.float64) + eps)
    return replace(lattice, weights=lattice.weights * norm.astype(np.float32))


def pad(values: np.ndarray, fill_value: float = 0.0) -> tuple[np.ndarray, tuple[int, ...]]:
    """Copy `values` (N, L) to a label count of 4 or a multiple of 8, and the lanes its kernels take."""
    n, count = values.shape
    width = 4 if count <= 4 else 8
    padded = np.full((n, -(-count // width) * width), fill_value, np.float32)
    padded[:, :count] = values
    return padded, LANES[width]


def buffers(lattice: Lattice, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Two zeroed (M+1, labels) arrays of vertex values; the last row stands for vertices that do not exist."""
    return np.zeros((lattice.size + 1, labels), np.float32), np.zeros((lattice.size + 1, labels), np.float32)


def _scale(d: int) -> np.ndarray:
    """The diagonal of the embedding, (d,): one standard deviation of the lattice's blur is one feature unit."""
    deviation = np.float32(np.sqrt(2.0 / 3.0) * (d + 1))
    return np.array([1.0 / np.sqrt((i + 2.0) * (i + 1.0)) * float(deviation) for i in range(d)], np.float32)


def _key_layout(features: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest coordinate and stride (d,) of each axis, so that a vertex is the one integer sum((c - low) * stride)."""
    n, d = features.shape
    ends = _ends(features) * scale if n and d else np.full((2, 1), np.nan)
    if not np.isfinite(ends).all():
        raise DataError(f"lattice features: found shape {features.shape} or values that are not finite, "
                        "expected at least one point and one dimension, all finite")
    tail = np.cumsum(ends[:, ::-1], axis=1)[:, ::-1]  # sum over j >= i, the elevated coordinate of axis 0
    low = np.append(tail[0, 0], np.append(tail[0, 1:], 0.0) - np.arange(1, d + 1) * ends[1])[:d]
    high = np.append(tail[1, 0], np.append(tail[1, 1:], 0.0) - np.arange(1, d + 1) * ends[0])[:d]
    margin = 2 * (d + 1) + 2  # vertices lie within d+1 of the point, and their neighbours d beyond
    low = np.floor(low - 1e-3 * np.abs(low)) - margin
    span = np.ceil(high + 1e-3 * np.abs(high)) + margin - low + 1
    if np.log2(span).sum() >= 62:
        raise DataError(f"lattice features: found ranges {(np.ptp(ends, axis=0) / scale).tolist()} standard "
                        "deviations, expected narrower ones: use a larger sxy or srgb")
    strides = np.concatenate([[1], np.cumprod(span.astype(np.int64))[:-1]]).astype(np.int64)
    return low.astype(np.int64), strides


@njit(nogil=True, cache=True)
def _ends(features):  # type: ignore[no-untyped-def]
    """Least and greatest value of each dimension, (2, d); not finite where any value is not."""
    ends = np.empty((2, features.shape[1]), np.float64)
    for j in range(features.shape[1]):
        ends[0, j] = ends[1, j] = features[0, j]
    for i in range(len(features)):
        for j in range(features.shape[1]):
            value = np.float64(features[i, j])
            if not np.isfinite(value):
                ends[0, j] = ends[1, j] = np.nan
                return ends
            ends[0, j] = min(value, ends[0, j])
            ends[1, j] = max(value, ends[1, j])
    return ends


@njit(nogil=True, cache=True)
def _slot(key, table, mask):  # type: ignore[no-untyped-def]
    """Where `key` is in the open-addressing table (slots, [key, id]), or the free slot where it belongs."""
    slot = np.int64((np.uint64(key) * _MIX) >> np.uint64(20)) & mask
    while table[slot, 0] != key and table[slot, 0] != -1:
        slot = (slot + 1) & mask
    return slot


@njit(nogil=True, cache=True)
def _grown(table):  # type: ignore[no-untyped-def]
    wider = np.full((2 * len(table), 2), -1, np.int64)
    mask = np.int64(len(wider) - 1)
    for i in range(len(table)):
        if table[i, 0] != -1:
            slot = _slot(table[i, 0], wider, mask)
            wider[slot, 0], wider[slot, 1] = table[i, 0], table[i, 1]
    return wider


@njit(nogil=True, cache=True)
def _simplex(features, point, scale, elevated, rest, rank, bary):  # type: ignore[no-untyped-def]
    """The simplex around one point: remainder-0 vertex `rest`, `rank` of each axis, weights `bary` (Adams, Sec. 3).

    Every operation is float32 and in the order of the reference implementation: points on a border fall alike.
    """
    d = features.shape[1]
    size, inverse = np.float32(d + 1), np.float32(1) / np.float32(d + 1)
    tail = np.float32(0)
    for j in range(d, 0, -1):
        value = features[point, j - 1] * scale[j - 1]
        elevated[j] = tail - np.float32(j) * value
        tail += value
    elevated[0] = tail
    shift = np.int64(0)
    for i in range(d + 1):
        nearest = np.rint(inverse * elevated[i])
        rest[i] = nearest * size
        shift += np.int64(nearest)
        rank[i] = 0
    for i in range(d):
        for j in range(i + 1, d + 1):
            below = elevated[i] - rest[i] < elevated[j] - rest[j]
            rank[i] += below
            rank[j] += not below
    for i in range(d + 1):  # coordinates sum to zero on the plane: bring the vertex back to it
        rank[i] += shift
        turn = np.int64(rank[i] < 0) - np.int64(rank[i] > d)
        rank[i] += turn * (d + 1)
        rest[i] += np.float32(turn) * size
    for i in range(d + 2):
        bary[i] = 0
    for i in range(d + 1):
        value = (elevated[i] - rest[i]) * inverse
        bary[d - rank[i]] += value
        bary[d + 1 - rank[i]] -= value
    bary[0] += np.float32(1) + bary[d + 1]


@njit(nogil=True, cache=True)
def _embed(features, scale, low, strides):  # type: ignore[no-untyped-def]
    """Vertex ids and weights of each point, and the table of the vertices in the order of their first use."""
    n, d = features.shape
    vertices, weights = np.empty((n, d + 1), np.int32), np.empty((n, d + 1), np.float32)
    table = np.full((1 << 14, 2), -1, np.int64)
    mask, m = np.int64(len(table) - 1), 0
    elevated, rest, bary = np.empty(d + 1, np.float32), np.empty(d + 1, np.float32), np.empty(d + 2, np.float32)
    rank, axis, last = np.empty(d + 1, np.int64), np.empty(d + 1, np.int64), np.full(d + 1, -1, np.int64)
    step = strides.sum()
    for i in range(n):
        _simplex(features, i, scale, elevated, rest, rank, bary)
        key = np.int64(0)
        for j in range(d):
            key += (np.int64(rest[j]) - low[j]) * strides[j]
        for j in range(d + 1):
            axis[rank[j]] = j
        for r in range(d + 1):
            if key == last[r]:  # the point before mostly lies on the same vertex
                vertices[i, r] = vertices[i - 1, r]
            else:
                slot = _slot(key, table, mask)
                if table[slot, 0] == -1:
                    table[slot, 0], table[slot, 1] = key, m
                    m += 1
                vertices[i, r] = table[slot, 1]
                last[r] = key
            weights[i, r] = bary[r]
            key += step  # the next vertex is one further on all axes, but for the highest ranked: d back
            if axis[d - r] < d:
                key -= (d + 1) * strides[axis[d - r]]
        if 2 * (m + d + 1) > len(table):
            table = _grown(table)
            mask = np.int64(len(table) - 1)
    return vertices, weights, table, mask, m


@njit(nogil=True, cache=True)
def _neighbours(table, mask, m, strides):  # type: ignore[no-untyped-def]
    """Vertices one step down and up each axis, (d+1, m, 2); m where there is none."""
    d = len(strides)
    found = np.full((d + 1, m, 2), m, np.int32)
    for slot in range(len(table)):
        if table[slot, 0] == -1:
            continue
        for j in range(d + 1):
            down = table[slot, 0] - strides.sum()
            if j < d:
                down += (d + 1) * strides[j]
            other = _slot(down, table, mask)
            if table[other, 0] != -1:
                found[j, table[slot, 1], 0] = table[other, 1]
                found[j, table[other, 1], 1] = table[slot, 1]
    return found


@njit(nogil=True, cache=True)
def splat(vertices, weights, values, out, lanes):  # type: ignore[no-untyped-def]
    """Add each point's values (N, L) to its vertices `out` (M+1, L)."""
    labels, width = values.shape[1], len(lanes)
    for i in range(len(vertices)):
        for k in range(0, labels, width):
            value = load(values, i * labels + k, lanes)
            for j in range(vertices.shape[1]):
                at = np.int64(vertices[i, j]) * labels + k
                store(out, at, load(out, at, lanes) + value * weights[i, j])


@njit(nogil=True, cache=True)
def blur(neighbours, a, b, lanes):  # type: ignore[no-untyped-def]
    """Blur the vertex values `a` by [1/2, 1, 1/2] along each axis, with `b` as room. Returns (result, other array)."""
    labels, width, half = a.shape[1], len(lanes), np.float32(0.5)
    for axis in range(len(neighbours)):
        for i in range(neighbours.shape[1]):
            down = np.int64(neighbours[axis, i, 0]) * labels
            up = np.int64(neighbours[axis, i, 1]) * labels
            for k in range(0, labels, width):
                sides = load(a, down + k, lanes) + load(a, up + k, lanes)
                store(b, i * labels + k, load(a, i * labels + k, lanes) + sides * half)
        a, b = b, a
    return a, b


@njit(nogil=True, cache=True)
def gather(vertices, weights, values, gain, out, lanes):  # type: ignore[no-untyped-def]
    """Slice: the weighted mean of each point's vertex values (M+1, L), times `gain`, into `out` (N, L)."""
    labels, width = values.shape[1], len(lanes)
    for i in range(len(vertices)):
        for k in range(0, labels, width):
            mixed = fill(np.float32(0), lanes)
            for j in range(vertices.shape[1]):
                mixed = mixed + load(values, np.int64(vertices[i, j]) * labels + k, lanes) * weights[i, j]
            store(out, i * labels + k, mixed * gain)
