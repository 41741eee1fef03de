"""The affinity random walk of IRN (Ahn, Cho, Kwak, CVPR 2019) on a CPU: scores flow along, not across, boundaries.

A pixel is tied to the pixels nearer than `radius`. One step replaces its value by the mean of its neighbours' values,
weighted by affinity^beta. The weights are symmetric: one array for each offset of a half plane holds them all, without
column indices, so no matrix is ever formed. `walk` takes the steps one by one; `chebyshev` takes about 60 of 256 and
bounds its error. Serial kernels that release the interpreter lock: run images in threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float32, Int64
from numba import njit

from tagseg.types import DataError, UsageError

FLOOR = 1e-10  # smaller weights count as 0: far under float32's resolution beside the weight 1 of the pixel itself
_TINY = np.float32(1e-20)  # values are rounded to 1e-27: with FLOOR no product is denormal, 100 times slower to compute
_CHUNK = 256  # positions that one pass treats: a row of the stencil's arrays then fits the first-level cache
_CACHE = 1 << 21  # bytes of weights that stay in a cache near the core while several steps use them


@dataclass(frozen=True, eq=False)
class Transition:
    """One step of the walk on a grid of `size` (h, w): a weighted mean over each pixel's neighbourhood.

    The grid lies row after row in one line of m positions, `reach` zeros after each row, `lead` zeros before the first.
    `weights[f, i]` ties position i to i + `shifts[f]`, both ways; a pixel's own weight is 1. `inverse` is 1 / the sum
    of a pixel's weights, 0 outside the grid. Memory: 4 bytes x f x m, for 34 offsets 139 bytes a pixel.
    """

    offsets: Int64[np.ndarray, "f 2"]
    size: tuple[int, int]
    weights: Float32[np.ndarray, "f m"]
    inverse: Float32[np.ndarray, "m"]

    @property
    def reach(self) -> int:
        return int(np.abs(self.offsets).max())

    @property
    def shifts(self) -> Int64[np.ndarray, "f"]:
        return self.offsets[:, 0] * (self.size[1] + self.reach) + self.offsets[:, 1]

    @property
    def lead(self) -> int:
        return int(self.shifts.max())


def offsets(radius: int) -> Int64[np.ndarray, "f 2"]:
    """The (dy, dx) nearer than `radius` that point down, or right in the same row: with their opposites, all of them.

    34 for IRN's radius 5. Raises `UsageError` for a radius under 2, which ties no pixel to another.
    """
    if radius < 2:
        raise UsageError(f"radius of the walk: found {radius}, expected 2 pixels or more")
    sides = range(-radius + 1, radius)
    found = [(y, x) for y in range(radius) for x in sides if (y, x) > (0, 0) and y * y + x * x < radius * radius]
    return np.array(found, np.int64)


def path(dy: int, dx: int) -> list[tuple[int, int]]:
    """Pixels (y, x) on the straight way from (0, 0) to (dy, dx): in their rectangle, nearer than 1 to the line."""
    return [
        (y, x)
        for y in range(dy + 1)
        for x in range(min(0, dx), max(0, dx) + 1)
        if (dy * x - dx * y) ** 2 < dy * dy + dx * dx
    ]


def path_affinity(boundary: Float32[np.ndarray, "h w"], radius: int = 5) -> Float32[np.ndarray, "f h w"]:
    """How freely each pixel reaches pixel + offset: 1 - the highest boundary on the straight path (IRN, Eq. 3).

    `boundary` in [0, 1]; 0 where the offset leaves the grid. Raises `DataError` for other values.
    """
    check_boundary(float(boundary.min()), float(boundary.max()))
    h, w = boundary.shape
    steps = offsets(radius)
    affinity = np.zeros((len(steps), h, w), np.float32)
    for out, (dy, dx) in zip(affinity, steps.tolist(), strict=True):
        rows, left, columns = h - dy, max(0, -dx), w - abs(dx)
        if rows <= 0 or columns <= 0:
            continue
        highest = np.zeros((rows, columns), np.float32)
        for y, x in path(dy, dx):
            np.maximum(highest, boundary[y : y + rows, left + x : left + x + columns], out=highest)
        np.subtract(1, highest, out=out[:rows, left : left + columns])
    return affinity


def check_boundary(low: float, high: float) -> None:
    """Raise `DataError` unless the least and the greatest boundary value lie in [0, 1] (NaN does not)."""
    if not (low >= 0 and high <= 1):
        raise DataError(f"boundary map: found values in [{low}, {high}], expected [0, 1]: apply the sigmoid first")


def transition(
    affinity: Float32[np.ndarray, "f h w"], offsets: Int64[np.ndarray, "o 2"], beta: float = 10.0
) -> Transition:
    """The step of the walk from affinities in [0, 1] as `path_affinity` gives them: weights affinity^beta, normalised.

    Raises `DataError` where the affinities do not belong to the offsets, and `UsageError` unless beta > 0.
    """
    if len(affinity) != len(offsets):
        raise DataError(f"affinity: found {len(affinity)} planes, expected one for each of the {len(offsets)} offsets")
    empty = _empty(offsets, (affinity.shape[1], affinity.shape[2]))
    _raise(empty, affinity, beta, top=0)
    return _normalised(empty)


def transition_from_boundary(
    boundary: Float32[np.ndarray, "h w"], radius: int = 5, beta: float = 10.0, band: int = 128
) -> Transition:
    """`transition(path_affinity(boundary, radius), ...)`, the same numbers, made in bands of rows.

    The affinities of only `band` rows exist at a time: for grids whose weights already fill much of the memory.
    """
    h, w = boundary.shape
    empty = _empty(offsets(radius), (h, w))
    for top in range(0, h, band):
        affinity = path_affinity(boundary[top : top + band + radius - 1], radius)  # the rows its paths can reach
        _raise(empty, affinity[:, :band], beta, top)
    return _normalised(empty)


def damp(values: Float32[np.ndarray, "k h w"], boundary: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "k h w"]:
    """Values without what lies on a boundary: values * (1 - boundary).

    IRN does this before it walks (its released code; the paper does not tell). `walk` does not: it is your choice.
    """
    return values * (1 - boundary)


def walk(
    transition: Transition, values: Float32[np.ndarray, "k h w"], steps: int = 256
) -> Float32[np.ndarray, "k h w"]:
    """The maps after `steps` steps of the walk, each taken: IRN's transition matrix to the power of `steps`.

    Every result is a weighted mean of its map, so it stays within the map's lowest and highest value. float32.
    """
    _require_steps(steps)
    return _advance(transition, values, np.ones(steps, np.float32), None)


def chebyshev(
    transition: Transition, values: Float32[np.ndarray, "k h w"], steps: int = 256, degree: int = 60
) -> Float32[np.ndarray, "k h w"]:
    """`walk` with `degree` products instead of `steps`: x^steps in Chebyshev polynomials, the small ones left out.

    A step P = D^-1 W has rows that are positive and sum to 1, and is similar to the symmetric D^-1/2 W D^-1/2: its
    spectrum is real and in [-1, 1], where Chebyshev polynomials do not exceed 1. What is left out is therefore at most
    `chebyshev_error(steps, degree)` times the values, both measured as sqrt(sum_i d_i v_i^2), d the sum of weights.
    """
    kept, _ = coefficients(steps, degree)
    scale = np.full(len(kept) - 1, 2, np.float32)
    scale[:1] = 1  # T_1 = P T_0; T_j+1 = 2 P T_j - T_j-1
    result = _advance(transition, values, scale, kept.astype(np.float32))
    ends = values.min(axis=(1, 2), keepdims=True), values.max(axis=(1, 2), keepdims=True)
    return np.clip(result, *ends, out=result)  # where the exact walk is: this only brings the result nearer to it


def chebyshev_error(steps: int, degree: int) -> float:
    """Bound of what `chebyshev` differs from `walk`, as a share of the values (norm: see `chebyshev`).

    Twice the sum t of the coefficients left out: t for themselves, t for scaling the others to the sum 1, so that
    constant maps stay constant. 256 steps: 2.1e-2 at degree 40, 2.6e-4 at 60, 6.6e-7 at 80. float32 adds about 1e-5.
    """
    return 2 * coefficients(steps, degree)[1]


@cache
def coefficients(steps: int, degree: int) -> tuple[np.ndarray, float]:
    """Chebyshev coefficients 0 ... degree of x^steps, float64, scaled to the sum 1; and the sum of those left out.

    x^n = 2^(1-n) sum_k C(n, (n-k)/2) T_k over the k of n's parity, the term of k = 0 halved.
    """
    _require_steps(steps)
    if degree < 2:
        raise UsageError(f"degree of the walk: found {degree}, expected 2 or more")
    all_terms = np.zeros(steps + 1)
    for k in range(steps % 2, steps + 1, 2):
        all_terms[k] = math.comb(steps, (steps - k) // 2) / 2 ** (steps - (k > 0))
    degree = min(degree, steps)
    degree -= (steps - degree) % 2  # the term beside has the coefficient 0
    kept = all_terms[: degree + 1] / all_terms[: degree + 1].sum()
    kept.setflags(write=False)  # the cached array itself is handed out
    return kept, float(all_terms[degree + 1 :].sum())


def _require_steps(steps: int) -> None:
    if steps < 1:
        raise UsageError(f"steps of the walk: found {steps}, expected 1 or more")


def _empty(offsets: Int64[np.ndarray, "f 2"], size: tuple[int, int]) -> Transition:
    """A transition without weights, its arrays laid out; whole chunks fit behind the lead."""
    line = Transition(offsets, size, np.empty((len(offsets), 0), np.float32), np.empty(0, np.float32))
    chunks = -(-size[0] * (size[1] + line.reach) // _CHUNK)
    m = chunks * _CHUNK + 2 * line.lead
    return Transition(offsets, size, np.zeros((len(offsets), m), np.float32), np.zeros(m, np.float32))


def _grid(line: Float32[np.ndarray, "k m"], transition: Transition) -> Float32[np.ndarray, "k h w"]:
    """The part of each line that is the grid, as a view."""
    h, w = transition.size
    stride = w + transition.reach
    rows = line[:, transition.lead : transition.lead + h * stride]
    return rows.reshape(len(line), h, stride)[:, :, :w]  # a reshape of one axis of a view copies nothing


def _raise(empty: Transition, affinity: Float32[np.ndarray, "f b w"], beta: float, top: int) -> None:
    """Write affinity^beta to the rows from `top`."""
    if not beta > 0:
        raise UsageError(f"beta of the walk: found {beta}, expected more than 0")
    low, high = float(affinity.min()), float(affinity.max())
    if not (low >= 0 and high <= 1):
        raise DataError(f"affinity: found values in [{low}, {high}], expected [0, 1]")
    for rows, plane in zip(_grid(empty.weights, empty), affinity, strict=True):
        part = rows[top : top + len(plane)]
        np.power(plane, np.float32(beta), out=part)
        part[part < FLOOR] = 0


def _normalised(empty: Transition) -> Transition:
    """Fill `inverse`: 1 / (1 + the weights of both directions)."""
    sums, lead = np.ones_like(empty.inverse), empty.lead
    end = len(sums) - lead
    for plane, shift in zip(empty.weights, empty.shifts.tolist(), strict=True):
        sums[lead:end] += plane[lead:end] + plane[lead - shift : end - shift]
    _grid(empty.inverse[None], empty)[:] = 1 / _grid(sums[None], empty)
    return empty


def _advance(
    transition: Transition,
    values: Float32[np.ndarray, "k h w"],
    scale: Float32[np.ndarray, "s"],
    mix: Float32[np.ndarray, "s1"] | None,
) -> Float32[np.ndarray, "k h w"]:
    """s times new = scale P now - (scale - 1) before; the last one, or the sum of all (values first) times `mix`."""
    if values.shape[1:] != transition.size or not np.isfinite(values).all():
        raise DataError(
            f"maps to walk: found shape {values.shape} or values that are not finite, expected (k, h, w) with "
            f"(h, w) = {transition.size} as the boundary map, all finite"
        )
    pair = np.zeros((2, len(values), len(transition.inverse)), np.float32)
    _grid(pair[0], transition)[:] = values
    total = np.zeros((0, 0), np.float32) if mix is None else mix[0] * pair[0]
    later = np.zeros(len(scale), np.float32) if mix is None else mix[1:]
    lag, group = _wave(transition)
    _take_steps(transition.weights, transition.shifts, transition.inverse, transition.lead, lag, group, pair, scale,
                later, total)  # fmt: skip
    return _grid(pair[len(scale) % 2] if mix is None else total, transition).copy()


def _wave(transition: Transition) -> tuple[int, int]:
    """How many chunks a step must lag behind the one before, and how many such steps have their weights in the cache.

    Steps that follow each other at a distance read the weights from memory once for all of them.
    """
    lag = -(-transition.lead // _CHUNK)
    return lag, max(1, _CACHE // (4 * len(transition.offsets) * lag * _CHUNK))


@njit(nogil=True, cache=True)
def _take_steps(weights, shifts, inverse, lead, lag, group, pair, scale, mix, total):  # type: ignore[no-untyped-def]
    """All steps, `group` at a time over the chunks; two arrays suffice, for a step needs no more than `lag` chunks."""
    chunks = (len(inverse) - 2 * lead) // _CHUNK
    room = np.empty(_CHUNK, np.float32)
    for first in range(0, len(scale), group):
        count = min(group, len(scale) - first)
        for front in range(chunks + lag * (count - 1)):
            for t in range(count):
                chunk, step = front - lag * t, first + t
                if 0 <= chunk < chunks:
                    at = lead + chunk * _CHUNK
                    now, new = pair[step % 2], pair[(step + 1) % 2]
                    _step(weights, shifts, inverse, at, now, new, scale[step], mix[step], total, room)


@njit(nogil=True, cache=True)
def _step(weights, shifts, inverse, at, a, b, scale, mix, total, room):  # type: ignore[no-untyped-def]
    """One chunk of b = scale P a - (scale - 1) b, and total += mix b. On slices the loops run in vector registers.

    P a is taken as a + weighted mean of the differences to a: constants stay to the bit, and rounding errors of 256
    steps add up to 1e-5 and not to 5e-4, as they do with a plain mean; it costs about an eighth of the time.
    """
    keep = scale - np.float32(1)
    share = inverse[at : at + _CHUNK]
    for k in range(len(a)):
        old, new = a[k, at : at + _CHUNK], b[k, at : at + _CHUNK]
        for i in range(_CHUNK):
            room[i] = 0
        for f in range(len(shifts)):
            up, down = at - shifts[f], at + shifts[f]
            here, there = weights[f, at : at + _CHUNK], weights[f, up : up + _CHUNK]
            below, above = a[k, down : down + _CHUNK], a[k, up : up + _CHUNK]
            for i in range(_CHUNK):
                room[i] += here[i] * (below[i] - old[i]) + there[i] * (above[i] - old[i])
        for i in range(_CHUNK):
            new[i] = (scale * (old[i] + share[i] * room[i]) - keep * new[i] + _TINY) - _TINY
        if mix != 0:
            out = total[k, at : at + _CHUNK]
            for i in range(_CHUNK):
                out[i] += mix * new[i]
