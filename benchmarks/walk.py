"""The affinity walk against IRN's dense matrix, against scipy's sparse products, and its own two forms."""

from __future__ import annotations

import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import compare, write
from benchmarks.photos import photos, rgb
from benchmarks.processes import Job, alone, once

SMALL, FULL, LARGE = (47, 63), (94, 125), (512, 512)  # grids at a quarter of 188x252, 375x500 and 2048x2048 pixels
RADIUS, BETA, STEPS = 5, 10.0, 256
LABELS = 3
Grid = tuple[int, int]


def boundary_of(image: np.ndarray, grid: Grid) -> np.ndarray:
    """A boundary map in [0,1] of an image (H,W,3): its gradient on the grid, saturating; float32 (h,w)."""
    small = np.asarray(Image.fromarray(image).resize((grid[1], grid[0]), Image.Resampling.BILINEAR), np.float32)
    dy, dx = np.gradient(small.mean(2))
    return np.minimum(np.hypot(dy, dx) / 80, 1).astype(np.float32)


def seeds(grid: Grid) -> np.ndarray:
    """Three blobs side by side, float32 (k,h,w) in [0,1], as class maps that fire in the middle of things."""
    y, x = (np.linspace(0, 1, n, dtype=np.float32) for n in grid)
    places = (np.arange(LABELS) + 0.5) / LABELS
    return np.stack([np.exp(-30 * ((y[:, None] - 0.5) ** 2 + (x[None] - p) ** 2)) for p in places]).astype(np.float32)


def exact(edges: np.ndarray, values: np.ndarray) -> np.ndarray:
    from tagseg.ops.affinity import offsets, path_affinity, transition, walk

    return walk(transition(path_affinity(edges, RADIUS), offsets(RADIUS), BETA), values, STEPS)


def dense(edges: np.ndarray, values: np.ndarray) -> np.ndarray:
    """IRN's published form, which damps the values itself."""
    from torch import from_numpy

    from benchmarks.dense_walk import propagate

    return propagate(from_numpy(values), from_numpy(edges), RADIUS, BETA, int(math.log2(STEPS))).numpy()


def scipy_walk(edges: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The same products with scipy's compressed sparse rows in float32."""
    from scipy import sparse

    from tagseg.ops.affinity import offsets, path_affinity

    h, w = edges.shape
    index = np.arange(h * w).reshape(h, w)
    parts = [sparse.eye(h * w, dtype=np.float32)]
    for (dy, dx), weight in zip(offsets(RADIUS).tolist(), path_affinity(edges, RADIUS), strict=True):
        y, x = np.nonzero(weight)
        here, there = index[y, x], index[y + dy, x + dx]
        one = sparse.coo_matrix((weight[y, x] ** BETA, (here, there)), (h * w, h * w), dtype=np.float32)
        parts += [one, one.T]
    matrix = sum(parts[1:], parts[0].tocsr()).tocsr()
    step = (matrix @ sparse.diags(1 / np.asarray(matrix.sum(0)).ravel())).T.tocsr()  # columns sum to 1, as IRN's
    found = np.ascontiguousarray(values.reshape(len(values), -1).T)
    for _ in range(STEPS):
        found = step @ found
    return found.T.reshape(values.shape)


def sides(file: str, grid: Grid, peer: str) -> dict[str, Job]:
    """Boundary map to walked maps, damped at boundaries first; for "chebyshev" the walk alone, on one transition."""
    from tagseg.ops import affinity

    edges = boundary_of(rgb(file), grid)
    values = affinity.damp(seeds(grid), edges)
    few = edges[:12, :12], values[:, :12, :12]
    if peer.startswith("dense"):
        import torch

        torch.set_flush_denormal(peer == "dense, flushed")
        return {"warm ours": lambda: exact(*few), "warm peer": lambda: dense(*few),
                "ours": lambda: exact(edges, values), "peer": lambda: dense(edges, seeds(grid))}
    if peer == "scipy":
        return {"warm ours": lambda: exact(*few), "warm peer": lambda: scipy_walk(*few),
                "ours": lambda: exact(edges, values), "peer": lambda: scipy_walk(edges, values)}
    made, small = _on(edges, values), _on(*few)
    forms = {"ours": affinity.chebyshev, "peer": affinity.walk}
    return {form: partial(walk, *made, STEPS) for form, walk in forms.items()} | {
        f"warm {form}": partial(walk, *small, STEPS) for form, walk in forms.items()}


def same_labels(a: np.ndarray, b: np.ndarray) -> float:
    return float((a.argmax(0) == b.argmax(0)).mean())


def large(file: str) -> dict[str, Any]:
    """Both forms on the grid of a 2048x2048 image, once each."""
    from tagseg.ops import affinity

    edges, values = boundary_of(rgb(file), LARGE), seeds(LARGE)
    exact(edges[:64, :64], values[:, :64, :64])
    affinity.chebyshev(*_on(edges[:64, :64], values[:, :64, :64]), STEPS)
    quick = once(lambda: affinity.chebyshev(*_on(edges, values), STEPS))
    slow = once(lambda: exact(edges, values))
    return {"agreement": same_labels(quick.result, slow.result), "peak_mb_ours": slow.peak_mb,
            "peak_mb_chebyshev": quick.peak_mb, "exact_ms": round(slow.wall_ms), "chebyshev_ms": round(quick.wall_ms)}


def _on(edges: np.ndarray, values: np.ndarray) -> tuple[Any, np.ndarray]:
    from tagseg.ops import affinity

    return affinity.transition(affinity.path_affinity(edges, RADIUS), affinity.offsets(RADIUS), BETA), values


def extrapolated(squared: dict[str, Any], sparse: dict[str, Any]) -> dict[str, Any]:
    """The dense walk's time on the full grid from its time on the small one: squaring a matrix is cubic in its rows."""
    factor = (math.prod(FULL) / math.prod(SMALL)) ** 3
    times = {
        kind: round(factor * squared["times"][1]["peer"][f"{kind}_ms"]["median"]
                    / sparse["times"][1]["ours"][f"{kind}_ms"]["median"], 1) for kind in ("cpu", "wall")
    }  # fmt: skip
    return {
        "peer": "IRN's dense matrix, extrapolated", "ratio_cpu": times["cpu"], "ratio_wall": times["wall"],
        "setting": f"{_words(FULL)}; dense time from {_words(SMALL)} x {factor:.1f} (rows cubed), "
        "memory of one matrix computed",
        "agreement": sparse["agreement"], "agreement_of": "labels equal to scipy's sparse products",
        "peak_mb_ours": sparse["peak_mb_ours"], "peak_mb_peer": matrix_mb(FULL),
        "extrapolated": True,
    }  # fmt: skip


def matrix_mb(grid: Grid) -> int:
    """What one dense float32 matrix over the grid takes: the least that the dense form needs."""
    return round(4 * math.prod(grid) ** 2 / 2**20)


def _words(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]} grid, {LABELS} labels, radius {RADIUS}, beta {BETA:g}, {STEPS} steps"


def main() -> None:
    from tagseg.ops.affinity import chebyshev_error

    with tempfile.TemporaryDirectory() as folder:
        file = photos(1, Path(folder)).images[0]
        labels: dict[str, Any] = {"agree": same_labels, "agreement_of": "labels equal", "build": sides}
        squared = compare("walk-dense-47x63", peer="IRN's dense matrix squared 8 times", setting=_words(SMALL),
                          args=(file, SMALL, "dense"), rounds=3, **labels)
        compare("walk-flushed-47x63", peer="the same dense matrix, numbers too small for full speed set to 0",
                setting=_words(SMALL), args=(file, SMALL, "dense, flushed"), rounds=3, **labels)
        sparse = compare("walk-scipy-94x125", peer="scipy.sparse, 256 products", setting=_words(FULL),
                         args=(file, FULL, "scipy"), rounds=5, **labels)
        write("walk-dense-94x125", extrapolated(squared, sparse))
        compare("walk-chebyshev-94x125", peer="the exact walk, as here", setting=f"{_words(FULL)}, the walk alone",
                args=(file, FULL, "chebyshev"), rounds=7, more={"error_bound": chebyshev_error(STEPS, 60)}, **labels)
        nothing = dict.fromkeys(("ratio_cpu", "ratio_wall"))
        write("walk-2048", {"peer": "one dense float32 matrix, computed", "peak_mb_peer": matrix_mb(LARGE), **nothing,
                            "setting": f"2048x2048 image, {_words(LARGE)}", **alone(large, file),
                            "agreement_of": "labels of the Chebyshev form equal to the exact ones"})


if __name__ == "__main__":
    main()
