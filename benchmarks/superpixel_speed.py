"""Superpixels with consecutive ids, against scikit-image called directly."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.measure import compare
from benchmarks.photos import photos, rgb
from benchmarks.processes import Job

IMAGES = 4
SMALL = 64  # pixels of a side of what is cut first, so that libraries have begun and compiled


def sides(files: list[str], kind: str) -> dict[str, Job]:
    from skimage import segmentation

    from tagseg.ops import superpixels
    from tagseg.training.memory import keep_freed

    images = [rgb(file) for file in files]
    planes = [np.ascontiguousarray(image.transpose(2, 0, 1)) for image in images]
    if kind == "felzenszwalb":
        theirs = partial(segmentation.felzenszwalb, scale=100.0, sigma=0.8, min_size=50)
        mine = partial(superpixels.felzenszwalb, scale=100.0, sigma=0.8, min_size=50)
    else:
        theirs = partial(segmentation.slic, n_segments=250, compactness=10.0, start_label=0)
        mine = partial(superpixels.slic, regions=250, compactness=10.0)

    def ours() -> list[np.ndarray]:
        keep_freed()  # as the stage does
        return [mine(p) for p in planes]

    return {"ours": ours, "peer": lambda: [theirs(i) for i in images],
            "warm ours": lambda: mine(planes[0][:, :SMALL, :SMALL].copy()),
            "warm peer": lambda: theirs(images[0][:SMALL, :SMALL])}


def agreement(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Share of the pixels that lie in equal regions; ids may differ."""
    return float(np.mean([_same(a, b) for a, b in zip(ours, theirs, strict=True)]))


def _same(a: np.ndarray, b: np.ndarray) -> float:
    """A region is equal to another if all pixels of each lie in the other."""
    pairs, size = np.unique(np.stack([a.ravel(), b.ravel()], 1), axis=0, return_counts=True)
    alone = [np.bincount(column)[column] == 1 for column in pairs.T]
    return float(size[alone[0] & alone[1]].sum() / size.sum())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = photos(IMAGES, Path(folder))
        for kind in ("felzenszwalb", "slic"):
            compare(f"superpixels-{kind}", peer="scikit-image", setting=found.words, build=sides,
                    args=(found.images, kind), agree=agreement, agreement_of="pixels in equal regions", rounds=5)


if __name__ == "__main__":
    main()
