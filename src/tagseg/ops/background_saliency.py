"""What stands out because it is not background, where background is what hangs together with the image's border.

Zhu, Liang, Wei, Sun, "Saliency Optimization from Robust Background Detection", CVPR 2014, on superpixels of any size.
The paper's superpixels are about equal, and it counts them. Here areas and shares are in pixels and lengths in pixels
of the border: for equal squares the ratio of both is the paper's (but for the corners of the image).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int32, UInt8
from scipy.sparse import coo_array, diags_array
from scipy.sparse.csgraph import dijkstra
from scipy.sparse.linalg import spsolve
from scipy.spatial.distance import cdist

from tagseg.ops.colour import lab
from tagseg.ops.saliency import stretched
from tagseg.ops.superpixels import means, neighbours
from tagseg.types import DataError, UsageError

BOND = 0.1  # ties neighbours of any colours, so that small parts in a busy place follow their surroundings
_FAR = 6.0  # standard deviations: beyond, a share is under exp(-18) = 1.5e-8
_ROWS = 512  # superpixels whose distances to all others are held at once


@dataclass(frozen=True, eq=False)
class Parts:
    """What is known of n superpixels: mean Lab `colour`, `place` of the centre (y, x, each 0..1), area in `pixels`, how
    many of these lie on the image's `border`, and the `pairs` that share an edge.
    """

    colour: Float64[np.ndarray, "n 3"]
    place: Float64[np.ndarray, "n 2"]
    pixels: Float64[np.ndarray, " n"]
    border: Float64[np.ndarray, " n"]
    pairs: Int32[np.ndarray, "p 2"]

    def __len__(self) -> int:
        return len(self.pixels)


def rbd(image: UInt8[np.ndarray, "3 h w"], ids: Int32[np.ndarray, "h w"], *, geodesic: float = 10.0,
        spatial: float = 0.25, colour: float = 10.0) -> Float32[np.ndarray, "h w"]:
    """Saliency in [0,1], flat inside each of the superpixels `ids` (0..n-1 without gaps); all 0 where none stands out.

    The paper's standard deviations: `geodesic` and `colour` in Lab units, `spatial` as a share of the image's sides.
    Time grows with n^2 beside what the pixels cost; it is made for some hundred superpixels. A small constant that the
    authors' code takes from every step (steps between many small, equal superpixels add up) is left out: between
    superpixels that follow edges steps are real, and with it people melted into streets on the photos looked at.
    Errors: `DataError` where ids have gaps or another size, `UsageError` for a deviation that is not above 0.
    """
    for name, value in (("geodesic", geodesic), ("spatial", spatial), ("colour", colour)):
        if not value > 0:
            raise UsageError(f"{name} is {value}: expected a standard deviation above 0")
    found = measured(image, ids)
    background = 1 - np.exp(-(connectivity(found, geodesic) ** 2) / 2)
    foreground = stretched(contrast(found, background, spatial))
    return stretched(settled(found, background, foreground, colour), least=1e-6)[ids]


def measured(image: UInt8[np.ndarray, "3 h w"], ids: Int32[np.ndarray, "h w"]) -> Parts:
    """The facts of an image's superpixels."""
    pixels = np.bincount(ids.ravel())
    if not pixels.all():
        raise DataError(f"superpixels: {int((pixels == 0).sum())} of the ids 0..{len(pixels) - 1} have no pixel, "
                        "expected ids without gaps, as tagseg.ops.superpixels makes them")
    inside = np.zeros(ids.shape, bool)
    inside[1:-1, 1:-1] = True
    rows, columns = ((np.arange(n) + 0.5) / n for n in ids.shape)
    place = means(np.stack(np.meshgrid(rows, columns, indexing="ij")), ids)
    border, colour = np.bincount(ids[~inside], minlength=len(pixels)), means(lab(image), ids)
    return Parts(colour.astype(np.float64), place.astype(np.float64), pixels.astype(np.float64),
                 border.astype(np.float64), neighbours(ids)[0])


def connectivity(found: Parts, sigma: float) -> Float64[np.ndarray, " n"]:
    """Boundary connectivity: how much of the border belongs to the area around a superpixel, length / sqrt(area).

    The area reaches as far as colours hardly change: each superpixel has the share exp(-d^2 / (2 sigma^2)) in it, d the
    sum of Lab steps on the shortest way there. All superpixels at the border are linked, so that a background which an
    object cuts in two is one. About 0 for things inside, 1 for a square at one side, 4 for the whole of an image.
    """
    graph, limit, sums = _steps(found), _FAR * sigma, []
    sizes = np.stack([found.border, found.pixels], 1)
    for some in _some(len(found)):  # i: superpixels asked about, j: all of them, k: border and area
        share = np.exp(-(dijkstra(graph, directed=False, indices=some, limit=limit) ** 2) / (2 * sigma**2))
        sums.append(np.einsum("ij,jk->ik", share, sizes))  # not @: bytes must not depend on its threads
    length, area = np.concatenate(sums).T
    return length / np.sqrt(area)


def contrast(found: Parts, background: Float64[np.ndarray, " n"], sigma: float) -> Float64[np.ndarray, " n"]:
    """How far, in Lab units, a superpixel's colour lies from those around it that are background (weights 0..1).

    Each counts by its share of the image's area, too, and by exp(-distance^2 / (2 sigma^2)) of the centres.
    """
    weight, place = background * found.pixels / found.pixels.sum(), found.place / (np.sqrt(2) * sigma)
    sums = []
    for some in _some(len(found)):
        near = np.exp(-cdist(place[some], place, "sqeuclidean"))
        sums.append(np.einsum("ij,ij,j->i", cdist(found.colour[some], found.colour), near, weight))
    return np.concatenate(sums)


def settled(found: Parts, background: Float64[np.ndarray, " n"], foreground: Float[np.ndarray, " n"],
            sigma: float) -> Float64[np.ndarray, " n"]:
    """The saliency s that costs least: background s^2 + foreground (s - 1)^2 + sum over neighbours of w (s_i - s_j)^2.

    w = exp(-colour distance^2 / (2 sigma^2)) + 0.1. The minimum lies in [0,1]; it solves a sparse linear system.
    """
    weight = np.exp(-(_apart(found, found.pairs) ** 2) / (2 * sigma**2)) + BOND
    upper = coo_array((weight, found.pairs.T), shape=(len(found), len(found)))
    ties = upper + upper.T
    system = diags_array(background + foreground + ties.sum(0)) - ties
    return np.atleast_1d(spsolve(system.tocsc(), foreground.astype(np.float64)))


def _steps(found: Parts) -> Any:
    """Lab steps between neighbours, and among all superpixels at the border, as a sparse matrix (n, n)."""
    rim = np.flatnonzero(found.border)
    first, second = np.triu_indices(len(rim), 1)
    pairs = np.unique(np.concatenate([found.pairs, np.stack([rim[first], rim[second]], 1)]), axis=0)  # none twice
    return coo_array((_apart(found, pairs), pairs.T), shape=(len(found), len(found))).tocsr()  # a stored 0 is a step


def _apart(found: Parts, pairs: np.ndarray) -> Float64[np.ndarray, " p"]:
    """The colour distance of each pair."""
    return np.sqrt(((found.colour[pairs[:, 0]] - found.colour[pairs[:, 1]]) ** 2).sum(1))


def _some(count: int) -> Iterator[np.ndarray]:
    """Rows of what is computed for all pairs, a few at a time, so that memory stays bounded."""
    for start in range(0, count, _ROWS):
        yield np.arange(start, min(start + _ROWS, count))
