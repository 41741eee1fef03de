"""The dense CRF in torch against the numba form, image by image and in batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crf_golden import GOLDEN, maker
from tagseg.ops import crf
from tagseg.ops.crf_torch import dense_crf
from tagseg.types import DataError, UsageError


def photos(count: int, h: int, w: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """So many scenes (b,h,w,3) and energies (b,k,h,w) about them."""
    scenes = [maker.scene(h, w, seed) for seed in range(count)]
    unary = [crf.unary_from_probabilities(maker.guess(regions, k, seed)) for seed, (_, regions) in enumerate(scenes)]
    return torch.from_numpy(np.stack([s[0] for s in scenes])), torch.from_numpy(np.stack(unary))


def by_numba(image: torch.Tensor, unary: torch.Tensor, compat: tuple = (3.0, 10.0), iterations: int = 10) -> np.ndarray:
    return crf.mean_field(crf.kernels(image.numpy()), unary.numpy(), compat_gaussian=compat[0],
                          compat_bilateral=compat[1], iterations=iterations)


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("shape", ["potts", "diagonal", "matrix"])
def test_probabilities_are_those_of_the_numba_form(k: int, shape: str) -> None:
    images, unary = photos(1, 60, 83, k)
    rng = np.random.default_rng(k)
    compat = {"potts": (3.0, 10.0), "diagonal": tuple(-5 * rng.random((2, k))),
              "matrix": tuple(2 * rng.random((2, k, k)))}[shape]
    expected = by_numba(images[0], unary[0], compat)
    ours = dense_crf(images, unary, compat_gaussian=compat[0], compat_bilateral=compat[1])[0].numpy()
    assert (ours.argmax(0) == expected.argmax(0)).mean() >= 0.9999
    assert np.abs(ours - expected).max() < 1e-4
    assert (expected.argmax(0) != unary[0].numpy().argmin(0)).mean() > 0.01  # the solve changed labels at all


def test_at_the_size_of_a_photo_nothing_else_happens() -> None:
    images, unary = photos(1, 375, 500, 3)
    expected = by_numba(images[0], unary[0])
    ours = dense_crf(images, unary)[0].numpy()
    assert (ours.argmax(0) == expected.argmax(0)).mean() >= 0.9999
    assert np.abs(ours - expected).max() < 1e-3


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    images, unary = photos(3, 40, 50, 4)
    images[2], unary[2] = images[0], unary[1]  # the same colours, other energies
    together = dense_crf(images, unary).numpy()
    for i in range(3):
        np.testing.assert_allclose(together[i], dense_crf(images[i:i + 1], unary[i:i + 1])[0].numpy(), atol=2e-5)
        assert np.abs(together[i] - by_numba(images[i], unary[i])).max() < 1e-4


def test_golden_results_of_pydensecrf2() -> None:
    with np.load(GOLDEN / "crf_pydensecrf2.npz") as golden:
        for name in maker.CASES:
            s = golden[f"{name}_settings"]
            unary = torch.from_numpy(golden[f"{name}_unary"].astype(np.float32))
            ours = dense_crf(torch.from_numpy(golden[f"{name}_image"])[None], unary[None], sxy_gaussian=float(s[0]),
                             compat_gaussian=float(s[1]), sxy_bilateral=float(s[2]), srgb=float(s[3]),
                             compat_bilateral=float(s[4]), iterations=int(s[5]))[0].numpy()
            assert (ours.argmax(0) == golden[f"{name}_labels"]).mean() >= 0.9999
            assert np.abs(ours - golden[f"{name}_marginals"]).max() < 5e-4


def test_no_step_gives_the_softmax_and_input_is_checked() -> None:
    images, unary = photos(1, 12, 10, 3)
    np.testing.assert_allclose(dense_crf(images, unary, iterations=0), (-unary).softmax(1), atol=1e-6)
    with pytest.raises(DataError, match="crf images"):
        dense_crf(images[:, :11], unary)
    with pytest.raises(DataError, match="not finite"):
        dense_crf(images, unary * np.inf)
    with pytest.raises(UsageError, match="srgb"):
        dense_crf(images, unary, srgb=0)
    with pytest.raises(UsageError, match="iterations"):
        dense_crf(images, unary, iterations=-1)
    with pytest.raises(DataError, match="compat_gaussian"):
        dense_crf(images, unary, compat_gaussian=np.ones(2))
