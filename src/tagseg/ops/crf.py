"""Fully connected CRF on an image (Kraehenbuehl & Koltun, NIPS 2011): mean field with Gaussian kernels on lattices.

The results are those of the authors' implementation as packaged in pydensecrf2, with its symmetric normalisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import numpy as np
from jaxtyping import Float32, Int64, Integer, UInt8

from tagseg.ops import lattice as lattices
from tagseg.ops.crf_update import pack, unpack, update
from tagseg.ops.lanes import lanes
from tagseg.ops.lattice import Lattice
from tagseg.types import DataError, UsageError

Number = int | float
Compatibility = int | float | np.ndarray
_NO_LABEL = np.float32(-np.inf)  # logit of the padding labels: its exponential is 0
SMALL, LARGE = 200_000, 2_000_000  # pixels
T = TypeVar("T")
_STRIP = 64  # pixels go strip by strip, so that the vertices of a neighbourhood stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Kernels:
    """Both pairwise kernels of one image of `size` (H, W), symmetrically normalised; good for any number of solves.

    `order` (H*W,): the pixels in the order of the lattices' points.
    """

    size: tuple[int, int]
    order: Int64[np.ndarray, " n"]
    spatial: Lattice
    bilateral: Lattice


def kernels(image: UInt8[np.ndarray, "h w 3"], *, sxy_gaussian: Number = 3.0, sxy_bilateral: Number = 50.0,
            srgb: Number = 5.0) -> Kernels:
    """Prepare the dense CRF of one RGB image: the costly part, done once for several solves.

    `sxy_*` are standard deviations in pixels, `srgb` in grey levels. Raises `UsageError` unless all are positive.
    """
    check_lengths(sxy_gaussian=sxy_gaussian, sxy_bilateral=sxy_bilateral, srgb=srgb)
    h, w = image.shape[:2]
    order = _strips(h, w)
    columns = np.zeros((5, -(-h * w // lattices.POINTS) * lattices.POINTS), np.float32)
    columns[:2, :h * w] = _positions(h, w, float(sxy_bilateral))
    np.divide(image.reshape(-1, 3)[order].T, np.float32(srgb), out=columns[2:, :h * w])
    bilateral = lattices.normalised(lattices.build_columns(columns, h * w))
    return Kernels((h, w), order, _spatial(h, w, float(sxy_gaussian)), bilateral)


def check_lengths(*, sxy_gaussian: Number, sxy_bilateral: Number, srgb: Number) -> None:
    """Raise `UsageError` unless all standard deviations are positive."""
    for name, value in (("sxy_gaussian", sxy_gaussian), ("sxy_bilateral", sxy_bilateral), ("srgb", srgb)):
        if not 0.0 < value < np.inf:
            raise UsageError(f"crf {name}: found {value}, expected a positive number of pixels or grey levels")


def mean_field(kernels: Kernels, unary: Float32[np.ndarray, "k h w"], *, compat_gaussian: Compatibility = 3.0,
               compat_bilateral: Compatibility = 10.0, iterations: int = 10) -> Float32[np.ndarray, "k h w"]:
    """Label probabilities after `iterations` mean-field steps from the `unary` energies (-log probability).

    A number w as compatibility is Potts: equal labels *lower* the energy by w. An array (K,) or (K, K) is, as in
    pydensecrf2, the energy of label k beside k (diagonal) or beside l (symmetrised): it *raises* the energy.
    Raises `DataError` when shapes do not fit or energies are not finite, `UsageError` for negative iterations.
    """
    k, h, w = unary.shape
    _check_solve(kernels, unary, iterations)
    kind = lanes(k)
    logits, finite = pack(np.ascontiguousarray(unary).reshape(k, h * w), kernels.order, _NO_LABEL, kind)
    if not finite:
        raise DataError("crf unary: found energies that are not finite, expected -log of probabilities above 0: "
                        "use unary_from_probabilities")
    near = _term(kernels.spatial, compat_gaussian, k, len(kind), "compat_gaussian")
    far = _term(kernels.bilateral, compat_bilateral, k, len(kind), "compat_bilateral")
    for step in range(iterations + 1):
        if step > 0:
            near, far = _blurred(near, kind), _blurred(far, kind)
        update(near.lattice.vertices, near.lattice.weights, near.values, near.room, near.gain,
               far.lattice.vertices, far.lattice.weights, far.values, far.room, far.gain,
               logits, logits, step > 0, step == iterations, kind)  # the last step no longer needs the logits
        near, far = _swapped(near), _swapped(far)
    return unpack(logits, kernels.order, k).reshape(k, h, w)


def dense_crf(image: UInt8[np.ndarray, "h w 3"], probabilities: Float32[np.ndarray, "k h w"], *,
              sxy_gaussian: Number = 3.0, compat_gaussian: Compatibility = 3.0, sxy_bilateral: Number = 50.0,
              srgb: Number = 5.0, compat_bilateral: Compatibility = 10.0, iterations: int = 10,
              floor: float = 0.0) -> Float32[np.ndarray, "k h w"]:
    """Label probabilities refined by the image's edges: `kernels` and `mean_field` in one call.

    With a `floor`, labels that stay under it in every pixel are left out of the solve and get probability 0: an
    approximation for many labels, off unless asked for.
    """
    kept = at_least(probabilities, floor) if floor > 0 else np.arange(len(probabilities))
    if len(kept) < len(probabilities):
        result = np.zeros_like(probabilities)
        if len(kept):
            shares = probabilities[kept] / probabilities[kept].sum(0).clip(min=np.finfo(np.float32).tiny)
            result[kept] = dense_crf(
                image, shares, sxy_gaussian=sxy_gaussian, compat_gaussian=_among(compat_gaussian, kept),
                sxy_bilateral=sxy_bilateral, srgb=srgb, compat_bilateral=_among(compat_bilateral, kept),
                iterations=iterations)
        return result
    prepared = kernels(image, sxy_gaussian=sxy_gaussian, sxy_bilateral=sxy_bilateral, srgb=srgb)
    return mean_field(prepared, unary_from_probabilities(probabilities), compat_gaussian=compat_gaussian,
                      compat_bilateral=compat_bilateral, iterations=iterations)


def at_least(probabilities: Float32[np.ndarray, "k h w"], floor: float) -> Int64[np.ndarray, " kept"]:
    """The labels whose probability reaches `floor` somewhere; the best one always does."""
    peaks = probabilities.reshape(len(probabilities), -1).max(1, initial=0.0)
    return np.flatnonzero(peaks >= min(floor, float(peaks.max(initial=0.0))))


def _among(compat: Compatibility, kept: np.ndarray) -> Compatibility:
    """The compatibilities of the labels that are kept."""
    weight = np.asarray(compat)
    return compat if weight.ndim == 0 else weight[kept] if weight.ndim == 1 else weight[np.ix_(kept, kept)]


def unary_from_probabilities(probabilities: Float32[np.ndarray, "k h w"], *,
                             clip: float = 1e-5) -> Float32[np.ndarray, "k h w"]:
    """Unary energies -log p, with p not below `clip` (pydensecrf2's value)."""
    energies = np.clip(probabilities, np.float32(clip), np.float32(1.0))
    return np.negative(np.log(energies, out=energies), out=energies)


def unary_from_labels(labels: Integer[np.ndarray, "h w"], n: int, *, gt_prob: float = 0.7,
                      ignore: int = 255) -> Float32[np.ndarray, "{n} h w"]:
    """Unary energies of given labels 0..n-1, right with probability `gt_prob`; `ignore` pixels may be anything.

    The other labels share the rest evenly. Raises `UsageError` unless 0 < gt_prob < 1, `DataError` for other labels.
    """
    if not 0.0 < gt_prob < 1.0:
        raise UsageError(f"crf gt_prob: found {gt_prob}, expected a probability between 0 and 1, both excluded")
    unsure = labels == ignore
    bad = np.unique(labels[~unsure & ((labels < 0) | (labels >= n))])
    if len(bad):
        raise DataError(f"labels for the crf: found values {bad[:5].tolist()}, expected 0..{n - 1} or {ignore}")
    same = np.arange(n)[:, None, None] == labels
    unary = np.where(same, -np.log(gt_prob), -np.log((1.0 - gt_prob) / max(n - 1, 1)))
    return np.where(unsure, np.log(n), unary).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Term:
    """One kernel during a solve: vertex `values` to read, `room` to splat into (M, L); `gain` (L,), `mix` (L, L)."""

    lattice: Lattice
    gain: np.ndarray
    mix: np.ndarray | None
    values: np.ndarray
    room: np.ndarray


def _term(lattice: Lattice, compat: Compatibility, k: int, padded: int, name: str) -> _Term:
    weight = weights_of(compat, k, name)
    gain, mix = np.zeros(padded, np.float32), None
    if weight.ndim == 2:
        mix = np.zeros((padded, padded), np.float32)
        mix[:k, :k] = -0.5 * (weight + weight.T)
    gain[:k] = lattice.gain * (weight if weight.ndim == 0 else -weight if weight.ndim == 1 else 1.0)
    return _Term(lattice, gain, mix, lattices.vertex_values(lattice, padded), lattices.vertex_values(lattice, padded))


def weights_of(compat: Compatibility, k: int, name: str) -> np.ndarray:
    """The compatibility as a number, (K,) or (K, K) in float64; `DataError` for other shapes and for NaN."""
    weight = np.asarray(compat, np.float64)
    if weight.shape not in ((), (k,), (k, k)) or not np.isfinite(weight).all():
        raise DataError(f"crf {name}: found {weight.shape} values for {k} labels, expected one finite number, "
                        f"({k},) or ({k}, {k})")
    return weight


def _blurred(term: _Term, kind: tuple[int, ...]) -> _Term:
    """The blurred vertex values, their labels mixed by the compatibility (linear, so vertices do as well as pixels)."""
    lattices.blur(term.lattice.chains, term.lattice.ends, term.values, kind)
    term.room.fill(0.0)
    return term if term.mix is None else replace(term, values=term.values @ term.mix)


def _swapped(term: _Term) -> _Term:
    return replace(term, values=term.room, room=term.values)


def _kept(make: Callable[..., T]) -> Callable[..., T]:
    """A function of an image's size, kept for the last 16 sizes up to `SMALL` (a folder of photos has that many, and
    making the lattice is a third of a solve), for 4 of larger ones, for one of those above `LARGE`: at 12 megapixels a
    lattice takes half a gigabyte.
    """
    small, usual, large = (lru_cache(maxsize=most)(make) for most in (16, 4, 1))
    return lambda h, w, *more: (small if h * w <= SMALL else usual if h * w <= LARGE else large)(h, w, *more)


@_kept
def _strips(h: int, w: int) -> np.ndarray:
    """The pixels strip by strip, each from top to bottom, row by row."""
    pixels = np.arange(h * w).reshape(h, w)
    return np.concatenate([pixels[:, x:x + _STRIP].ravel() for x in range(0, w, _STRIP)])


@_kept
def _positions(h: int, w: int, sxy: float) -> np.ndarray:
    """Column and row in standard deviations of the pixels in strips, (2, h*w)."""
    order = _strips(h, w)
    return np.stack([order % w, order // w]).astype(np.float32) / np.float32(sxy)


@_kept
def _spatial(h: int, w: int, sxy: float) -> Lattice:
    """The spatial kernel: the same for all images of one size."""
    return lattices.normalised(lattices.build(_positions(h, w, sxy).T))


def _check_solve(kernels: Kernels, unary: np.ndarray, iterations: int) -> None:
    if unary.shape[1:] != kernels.size or not len(unary):
        raise DataError(f"crf unary: found shape {unary.shape}, expected at least one label and the image's size "
                        f"{kernels.size}")
    if iterations < 0:
        raise UsageError(f"crf iterations: found {iterations}, expected 0 or more")
