"""Make crf_pydensecrf2.npz: dense CRF results of pydensecrf2 1.1 on procedural scenes and on real photos.

Needs pydensecrf2 (extra `bench`). From the repository: `python tests/ops/golden/make_crf_golden.py`.
Each case NAME holds NAME_image uint8 (H,W,3), NAME_unary float16 (K,H,W), NAME_settings (sxy_gaussian, compat_gaussian,
sxy_bilateral, srgb, compat_bilateral, iterations), NAME_marginals float16 (K,H,W), NAME_labels uint8 (H,W). Of photos,
which scikit-image brings along, there are NAME_shares float16 (K,H/8,W/8), probabilities of cells, and NAME_labels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

CASES = {  # name: (H, W, K, seed, settings)
    "three": (48, 64, 3, 1, (3.0, 3.0, 50.0, 5.0, 10.0, 10)),
    "eight": (45, 61, 8, 2, (3.0, 3.0, 20.0, 13.0, 4.0, 5)),  # neither the pixels nor the labels fill their lanes
    "wide": (24, 80, 3, 3, (1.0, 3.0, 67.0, 3.0, 4.0, 10)),
}

PHOTOS = {"astronaut": (3, 20, 110), "coffee": (21, 120, 200), "chelsea": (21, 60, 90)}  # K, top and left of the part
PART = (160, 200)
USUAL = (3.0, 3.0, 50.0, 5.0, 10.0, 10)


def photo(name: str) -> np.ndarray:
    """A part of one of scikit-image's own photos, uint8 (H,W,3)."""
    from skimage import data

    _, top, left = PHOTOS[name]
    return np.ascontiguousarray(getattr(data, name)()[top : top + PART[0], left : left + PART[1]])


def shares_of(image: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Doubtful probabilities (k,H/8,W/8) of cells, by how bright they are."""
    h, w = image.shape[:2]
    bright = image.mean(2).reshape(h // 8, 8, w // 8, 8).mean((1, 3))
    rank = bright.ravel().argsort().argsort().reshape(bright.shape) * k // bright.size
    p = np.exp(np.random.default_rng(seed).normal(size=(k, *rank.shape)) + 2.0 * (np.arange(k)[:, None, None] == rank))
    return (p / p.sum(0)).astype(np.float16)


def unary_of(shares: np.ndarray) -> np.ndarray:
    """Energies (k,H,W) float32 of pixels from the probabilities of their cells."""
    return -np.log(np.maximum(np.kron(shares.astype(np.float32), np.ones((1, 8, 8), np.float32)), 1e-5))


def scene(h: int, w: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A photo-like image uint8 (h,w,3) of shaded regions with texture, noise and soft edges; the regions' ids (h,w)."""
    rng = np.random.default_rng(seed)
    field = ndimage.zoom(rng.random((6, 8)), (h / 6, w / 8), order=1)[:h, :w]
    regions = (field * 6).astype(int)
    image = rng.uniform(30, 220, (7, 3))[regions]
    image += 100 * ndimage.gaussian_filter(rng.normal(size=(h, w, 3)), (6, 6, 0))
    image += 12 * ndimage.gaussian_filter(rng.normal(size=(h, w, 3)), (1, 1, 0)) + rng.normal(size=(h, w, 3)) * 2
    return np.clip(ndimage.gaussian_filter(image, (0.7, 0.7, 0)), 0, 255).astype(np.uint8), regions


def guess(regions: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Uncertain, shifted probabilities (k,h,w) float32 of labels `regions % k`."""
    rng = np.random.default_rng(seed)
    moved = ndimage.shift(regions % k, (3, -4), order=0, mode="nearest")
    logits = 20 * ndimage.gaussian_filter(rng.normal(size=(k, *regions.shape)), (0, 8, 8))
    p = np.exp(logits + 1.5 * (np.arange(k)[:, None, None] == moved))
    return (p / p.sum(0)).astype(np.float32)


def peer(image: np.ndarray, unary: np.ndarray, settings: tuple, compat: tuple | None = None) -> np.ndarray:
    """Marginals (K,H,W) of pydensecrf2; `compat` replaces both compatibilities by arrays."""
    from pydensecrf.densecrf import DenseCRF2D

    sxy_gaussian, compat_gaussian, sxy_bilateral, srgb, compat_bilateral, iterations = settings
    if compat is not None:
        compat_gaussian, compat_bilateral = compat
    k, h, w = unary.shape
    crf = DenseCRF2D(w, h, k)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(k, h * w)))
    crf.addPairwiseGaussian(sxy=sxy_gaussian, compat=compat_gaussian)
    crf.addPairwiseBilateral(sxy=sxy_bilateral, srgb=srgb, rgbim=image, compat=compat_bilateral)
    return np.array(crf.inference(int(iterations)), np.float32).reshape(k, h, w)


def main() -> None:
    arrays = {}
    for name, (h, w, k, seed, settings) in CASES.items():
        image, regions = scene(h, w, seed)
        unary = -np.log(np.maximum(guess(regions, k, seed), 1e-5)).astype(np.float16)
        marginals = peer(image, unary.astype(np.float32), settings)
        arrays |= {f"{name}_image": image, f"{name}_unary": unary, f"{name}_settings": np.array(settings),
                   f"{name}_marginals": marginals.astype(np.float16),
                   f"{name}_labels": marginals.argmax(0).astype(np.uint8)}
    for seed, (name, (k, *_)) in enumerate(PHOTOS.items(), 7):
        shares = shares_of(photo(name), k, seed)
        labels = peer(photo(name), unary_of(shares), USUAL).argmax(0).astype(np.uint8)
        arrays |= {f"{name}_shares": shares, f"{name}_labels": labels}
    np.savez_compressed(Path(__file__).with_name("crf_pydensecrf2.npz"), **arrays)


if __name__ == "__main__":
    main()
