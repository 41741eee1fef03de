"""IRN's random walk in its published form, written anew: a dense matrix over all pixel pairs, squared 8 times.

The peer of `tagseg.ops.affinity` in the benchmarks and the oracle of its tests; it shares no code with it. Memory and
time grow with the square and the cube of the number of pixels: (h w)^2 floats, 2 (h w)^3 operations a squaring.
"""

from __future__ import annotations

import torch
from torch import Tensor


def directions(radius: int) -> list[tuple[int, int]]:
    """Right in the same row, and every (dy, dx) with dy > 0, nearer than `radius`."""
    right = [(0, x) for x in range(1, radius)]
    down = [(y, x) for y in range(1, radius) for x in range(1 - radius, radius) if x**2 + y**2 < radius**2]
    return right + down


def way(dy: int, dx: int) -> list[tuple[int, int]]:
    """Pixels of the rectangle from (0, 0) to (dy, dx) whose distance to the straight line is under 1."""
    ys, xs = range(min(0, dy), max(0, dy) + 1), range(min(0, dx), max(0, dx) + 1)
    return [(y, x) for y in ys for x in xs if (dy * x - dx * y) ** 2 / (dy**2 + dx**2) < 1]


def dense_affinity(boundary: Tensor, radius: int = 5) -> Tensor:
    """boundary (h, w) -> (h w, h w): 1 on the diagonal, 1 - highest boundary on the way, 0 beyond `radius`."""
    h, w = boundary.shape
    pixel = torch.arange(h * w).reshape(h, w)
    affinity = torch.eye(h * w, dtype=boundary.dtype)
    for dy, dx in directions(radius):
        sources = pixel[: max(0, h - dy), max(0, -dx) : max(0, w - max(0, dx))].reshape(-1)
        if not len(sources):
            continue
        on_way = torch.stack([boundary.reshape(-1)[sources + y * w + x] for y, x in way(dy, dx)])
        targets = sources + dy * w + dx
        affinity[sources, targets] = affinity[targets, sources] = 1 - on_way.amax(0)
    return affinity


def transition_matrix(affinity: Tensor, beta: float = 10) -> Tensor:
    """affinity^beta, each column (the target pixel) divided by its sum over the sources."""
    scaled = affinity**beta
    return scaled / scaled.sum(0, keepdim=True)


def propagate(values: Tensor, boundary: Tensor, radius: int = 5, beta: float = 10, squarings: int = 8) -> Tensor:
    """values (k, h, w) after 2^squarings steps, damped at boundaries first, as IRN's released code does it."""
    matrix = transition_matrix(dense_affinity(boundary, radius), beta)
    for _ in range(squarings):
        matrix = matrix @ matrix
    damped = values * (1 - boundary)
    return (damped.reshape(len(values), -1) @ matrix).reshape(values.shape)
