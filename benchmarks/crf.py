"""Dense CRF against pydensecrf2 on photos of 500x375: kernels and ten iterations, labels compared in the same run."""

from __future__ import annotations

import importlib.util
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import CannotRun, compare
from benchmarks.photos import photos, shared
from benchmarks.processes import Job

PHOTOS = 5
SIZE = (500, 375)  # width, height
FLOOR = 0.05


def files(folder: Path) -> tuple[list[str], str]:
    """Photos of the shared `things` set where there is one, else scenes written to `folder`."""
    real = shared("data/things/images")
    if real is None:
        found = photos(PHOTOS, folder)
        return found.images, found.words
    return [str(p) for p in sorted(real.glob("*.jpg"))[:: 200 // PHOTOS][:PHOTOS]], f"{PHOTOS} photos of things"


def probabilities(labels: int, seed: int, likely: int | None = None) -> np.ndarray:
    """Smooth random probabilities (labels, H, W) as from maps with cells of 16 pixels; only `likely` labels matter."""
    rng = np.random.default_rng(seed)
    coarse = rng.dirichlet(np.ones(likely or labels), (24, 32)).astype(np.float32)
    fine = [np.asarray(Image.fromarray(np.ascontiguousarray(one)).resize(SIZE, Image.Resampling.BILINEAR))
            for one in coarse.transpose(2, 0, 1)]  # fmt: skip
    p = np.concatenate([np.stack(fine), np.full((labels - len(fine), SIZE[1], SIZE[0]), 0.001, np.float32)])
    return p / p.sum(0)


def resized(path: str) -> np.ndarray:
    """uint8 (H,W,3) of `SIZE`."""
    return np.array(Image.open(path).convert("RGB").resize(SIZE, Image.Resampling.BICUBIC))


def sides(paths: list[str], labels: int, likely: int | None) -> dict[str, Job]:
    images = [resized(path) for path in paths]
    given = [probabilities(labels, seed, likely) for seed in range(len(images))]
    return {"ours": partial(ours, images, given, FLOOR if likely else 0.0), "peer": partial(theirs, images, given),
            "warm ours": partial(ours, images[:1], given[:1], FLOOR if likely else 0.0)}  # fmt: skip


def ours(images: list[np.ndarray], given: list[np.ndarray], floor: float) -> list[np.ndarray]:
    """The probabilities of every image."""
    from tagseg.ops.crf import dense_crf

    return [dense_crf(image, p, floor=floor) for image, p in zip(images, given, strict=True)]


def theirs(images: list[np.ndarray], given: list[np.ndarray]) -> list[np.ndarray]:
    """The same by pydensecrf2, called as its page says."""
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_softmax

    found = []
    for image, p in zip(images, given, strict=True):
        crf = DenseCRF2D(*SIZE, len(p))
        crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(p)))
        crf.addPairwiseGaussian(sxy=3, compat=3)
        crf.addPairwiseBilateral(sxy=50, srgb=5, rgbim=image, compat=10)
        found.append(np.array(crf.inference(10)).reshape(p.shape))
    return found


def agreement(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    return float(np.mean([(a.argmax(0) == b.argmax(0)).mean() for a, b in zip(one, other, strict=True)]))


def peer_installed() -> bool:
    return importlib.util.find_spec("pydensecrf") is not None


def main() -> None:
    if not peer_installed():
        raise CannotRun("pydensecrf2 is not installed (extra `bench`)")
    with tempfile.TemporaryDirectory() as folder:
        paths, words = files(Path(folder))
        for job, labels, likely in (("crf-3", 3, None), ("crf-21", 21, None), ("crf-21-floor", 21, 3)):
            note = f", {likely} of them reach {FLOOR} anywhere and the others are dropped" if likely else ""
            compare(job, peer="pydensecrf2", build=sides, args=(paths, labels, likely), rounds=5,
                    setting=f"{words}, {SIZE[0]}x{SIZE[1]}, {labels} labels, 10 iterations, spatial lattice kept{note}",
                    agree=agreement, agreement_of="labels")  # fmt: skip


if __name__ == "__main__":
    main()
