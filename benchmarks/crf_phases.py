"""Where the dense CRF's time goes, phase by phase, on a smooth and on textured photos; no peer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import crf
from benchmarks.measure import in_turn, write
from benchmarks.processes import alone

ROUNDS = 7
ITERATIONS = 10


def phases(path: str, labels: int) -> dict[str, Any]:
    """Median CPU milliseconds of each phase of one solve, and the number of lattice vertices."""
    from tagseg.ops import crf as dense
    from tagseg.ops import lattice
    from tagseg.ops.crf_update import pack, unpack, update
    from tagseg.ops.lanes import lanes

    image = np.array(Image.open(path).convert("RGB").resize(crf.SIZE, Image.Resampling.BICUBIC))
    unary = dense.unary_from_probabilities(crf.probabilities(labels, 0)).reshape(labels, -1)
    prepared, kind = dense.kernels(image), lanes(labels)
    near, far, order = prepared.spatial, prepared.bilateral, prepared.order
    columns = np.zeros((5, -(-len(order) // lattice.POINTS) * lattice.POINTS), np.float32)
    columns[:2, : len(order)] = np.stack([order % crf.SIZE[0], order // crf.SIZE[0]]) / np.float32(50)
    columns[2:, : len(order)] = image.reshape(-1, 3)[order].T / np.float32(5)
    n, scale = len(order), tuple(lattice.scale_of(5))
    keys = lattice.key_layout(np.array([columns[:, :n].min(1), columns[:, :n].max(1)]), n)
    vertices, weights, table, m = lattice._embed(columns, n, scale, keys)
    entries = np.sort(table[table != -1])
    chains, ends = lattice._chains(entries, keys)
    logits, _ = pack(unary, order, np.float32(-np.inf), kind)
    a, b = (lattice.vertex_values(near, len(kind)) for _ in range(2))
    c, d = (lattice.vertex_values(far, len(kind)) for _ in range(2))
    gain, q = np.ones(len(kind), np.float32), np.empty_like(logits)
    times = in_turn({
        "vertices of the pixels": lambda: lattice._embed(columns, n, scale, keys),
        "sorting them": lambda: np.sort(table[table != -1]),
        "chains": lambda: lattice._chains(entries, keys),
        "normalisation": lambda: lattice._normalise(vertices, weights, chains, np.zeros(m, np.float32),
                                                    np.float32(far.gain), 1e-20),
        "pixels in order and back": lambda: (pack(unary, order, np.float32(-np.inf), kind), unpack(q, order, labels)),
        "blur, each step": lambda: (lattice.blur(near.chains, near.ends, a, kind), lattice.blur(chains, ends, c, kind)),
        "slice, softmax, splat, each step": lambda: update(near.vertices, near.weights, a, b, gain, vertices, weights,
                                                           c, d, gain, logits, q, True, False, kind),
        "whole solve": lambda: dense.mean_field(dense.kernels(image), unary.reshape(labels, *crf.SIZE[::-1])),
    }, ROUNDS)  # fmt: skip
    return {"vertices": int(m), "cpu_ms": {name: found["cpu_ms"]["median"] for name, found in times.items()}}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths, words = crf.files(Path(folder))
        found = {f"{k}, {labels} labels": alone(phases, paths[k], labels) for k in (0, 2, 4) for labels in (3, 21)}
        write("crf-phases", {"setting": f"{words}, {crf.SIZE[0]}x{crf.SIZE[1]}, {ITERATIONS} steps",
                             "phases": found})  # fmt: skip


if __name__ == "__main__":
    main()
