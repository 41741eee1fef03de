"""PAMR on a processor beside the exact dense CRF, on the same photos and maps: what the advice to use the CRF rests on.

They are two refiners, so what they agree on is told and nothing is asked of it.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import crf
from benchmarks.measure import compare
from benchmarks.processes import Job

LABELS = 3


def refined(images: list[np.ndarray], given: list[np.ndarray]) -> list[np.ndarray]:
    """The maps after ten rounds at the paper's distances, as `refine/pamr.py` asks for them."""
    import torch

    from tagseg.ops.pamr import pamr

    pictures = [torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float() / 255 for image in images]
    return [pamr(x, torch.from_numpy(p)[None])[0].numpy() for x, p in zip(pictures, given, strict=True)]


def sides(paths: list[str]) -> dict[str, Job]:
    images = [crf.resized(path) for path in paths]
    given = [crf.probabilities(LABELS, seed) for seed in range(len(images))]
    return {"ours": partial(crf.ours, images, given, 0.0), "peer": partial(refined, images, given),
            "warm ours": partial(crf.ours, images[:1], given[:1], 0.0),
            "warm peer": partial(refined, [images[0][:64, :64]], [given[0][:, :64, :64]])}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths, words = crf.files(Path(folder))
        compare("pamr", peer="PAMR, as here, on a processor", build=sides, args=(paths,), rounds=3,
                setting=f"{words}, {crf.SIZE[0]}x{crf.SIZE[1]}, {LABELS} labels; ours is the dense CRF, 10 iterations",
                agree=crf.agreement, agreement_of="labels, of two refiners")  # fmt: skip


if __name__ == "__main__":
    main()
