"""Dense CRF against pydensecrf2: a photo-like 375x500 image, 3 and 21 labels, agreement beside speed."""

from __future__ import annotations

import numpy as np

from benchmarks.measure import in_turn, write
from tagseg.ops.crf import kernels, mean_field, unary_from_probabilities

SIZE = (375, 500)


def photo(rng: np.random.Generator) -> np.ndarray:
    """Smooth coloured patches with grain, uint8 (H,W,3)."""
    small = rng.random((12, 16, 3))
    rows, columns = (np.linspace(0, n - 1, m).astype(int) for n, m in zip(small.shape, SIZE, strict=False))
    return (255 * small[rows][:, columns] + rng.normal(0, 6, (*SIZE, 3))).clip(0, 255).astype(np.uint8)


def main() -> None:
    try:
        import pydensecrf.densecrf as peer
    except ImportError:
        print("crf: pydensecrf2 is not installed (extra `bench`); not measured")
        return
    rng = np.random.default_rng(0)
    image = photo(rng)
    for labels in (3, 21):
        p = rng.dirichlet(np.ones(labels), (24, 32)).transpose(2, 0, 1)
        rows, columns = np.linspace(0, 23, SIZE[0]).astype(int), np.linspace(0, 31, SIZE[1]).astype(int)
        unary = unary_from_probabilities(np.ascontiguousarray(p[:, rows][:, :, columns], dtype=np.float32))

        def ours(unary: np.ndarray = unary) -> np.ndarray:
            return mean_field(kernels(image), unary, iterations=10)

        def theirs(unary: np.ndarray = unary, labels: int = labels) -> np.ndarray:
            crf = peer.DenseCRF2D(SIZE[1], SIZE[0], labels)
            crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(labels, -1)))
            crf.addPairwiseGaussian(sxy=3, compat=3)
            crf.addPairwiseBilateral(sxy=50, srgb=5, rgbim=image, compat=10)
            return np.array(crf.inference(10)).reshape(labels, *SIZE)

        agreement = float((ours().argmax(0) == theirs().argmax(0)).mean())
        times = in_turn({"ours": ours, "peer": theirs}, rounds=7)
        ratio = {k: round(times["peer"][k]["median"] / times["ours"][k]["median"], 2) for k in ("cpu_ms", "wall_ms")}
        write(
            f"crf-{labels}",
            {
                "peer": "pydensecrf2",
                "setting": f"{SIZE[0]}x{SIZE[1]}, {labels} labels, 10 iterations",
                "ratio_cpu": ratio["cpu_ms"],
                "ratio_wall": ratio["wall_ms"],
                "agreement": agreement,
                "times": times,
            },
        )


if __name__ == "__main__":
    main()
