"""The dense CRF against explicit float64 mean fields, against stored results of pydensecrf2, and by its symmetries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from crf_golden import GOLDEN, maker
from tagseg.ops.crf import (
    Kernels,
    at_least,
    dense_crf,
    kernels,
    mean_field,
    unary_from_labels,
    unary_from_probabilities,
)
from tagseg.ops.lattice import Lattice, filter
from tagseg.types import DataError, UsageError


def small(h: int, w: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A scene cut down to (h, w) and random energies (k, h, w)."""
    image = np.ascontiguousarray(maker.scene(48, 64, seed)[0][:h, :w])
    return image, np.random.default_rng(seed).random((k, h, w)).astype(np.float32) * 2


def explicit_mean_field(matrices: list[np.ndarray], energies: list[np.ndarray], unary: np.ndarray,
                        iterations: int) -> np.ndarray:
    """Mean field in float64 with dense kernels (N,N) and label energies (K,K): Kraehenbuehl & Koltun, Algorithm 1."""
    u = unary.reshape(len(unary), -1).astype(np.float64)
    q = softmax(-u, axis=0)
    for _ in range(iterations):
        q = softmax(-u - sum(mu @ (q @ m.T) for m, mu in zip(matrices, energies, strict=True)), axis=0)
    return q.reshape(unary.shape)


def impulse_matrix(lattice: Lattice) -> np.ndarray:
    """The kernel (N,N) that a lattice stands for: its answers to unit impulses."""
    return filter(lattice, np.eye(len(lattice.vertices), dtype=np.float32)).astype(np.float64)


def exact_matrix(features: np.ndarray) -> np.ndarray:
    """The symmetrically normalised Gaussian kernel of (N,d) features, without any lattice."""
    k = np.exp(-0.5 * ((features[:, None] - features[None]) ** 2).sum(-1))
    return k / np.sqrt(k.sum(1)[:, None] * k.sum(1)[None])


COMPATS: list[tuple[Callable[[int], object], Callable[[int], np.ndarray]]] = [
    (lambda k: 3.0, lambda k: -3.0 * np.eye(k)),
    (lambda k: np.linspace(-4, -1, k), lambda k: np.diag(np.linspace(-4, -1, k))),
    (lambda k: np.arange(k * k).reshape(k, k) / 5.0, lambda k: (np.arange(k * k).reshape(k, k) / 5.0
                                                                + np.arange(k * k).reshape(k, k).T / 5.0) / 2),
]


@pytest.mark.parametrize("k", [2, 3, 7, 21])
@pytest.mark.parametrize("compat", COMPATS, ids=["potts", "diagonal", "matrix"])
def test_mean_field_is_that_of_the_lattices_own_matrices(k: int, compat: tuple) -> None:
    image, unary = small(9, 13, k)
    prepared = kernels(image, sxy_bilateral=8.0, srgb=20.0)
    matrices = [impulse_matrix(prepared.spatial), impulse_matrix(prepared.bilateral)]
    given_compat, energy = compat[0](k), compat[1](k)
    ours = mean_field(prepared, unary, compat_gaussian=given_compat, compat_bilateral=given_compat, iterations=10)
    expected = explicit_mean_field(matrices, [energy, energy], unary, 10)
    assert np.abs(ours - expected).max() < 1e-4
    assert np.abs(ours - softmax(-unary, axis=0)).max() > 0.01  # the kernels did something


def test_mean_field_approximates_exact_gaussians() -> None:
    """The lattice smooths a little otherwise than the Gaussian: stated, mean 0.006 and 99 % equal labels at 5 steps."""
    image, regions = maker.scene(24, 30, 5)
    unary = unary_from_probabilities(maker.guess(regions, 3, 5))
    y, x = np.mgrid[:24, :30]
    place = np.stack([x, y], -1).reshape(-1, 2).astype(np.float64)
    colour = image.reshape(-1, 3).astype(np.float64)
    matrices = [exact_matrix(place / 3), exact_matrix(np.concatenate([place / 15, colour / 20], 1))]
    energy = -np.eye(3)
    expected = explicit_mean_field(matrices, [energy, energy * 3], unary, 5)
    ours = mean_field(kernels(image, sxy_bilateral=15.0, srgb=20.0), unary, compat_gaussian=1.0, compat_bilateral=3.0,
                      iterations=5)
    assert np.abs(ours - expected).mean() < 0.006
    assert np.abs(ours - expected).max() < 0.1
    assert (ours.argmax(0) == expected.argmax(0)).mean() > 0.99
    assert (unary.argmin(0) == expected.argmax(0)).mean() < 0.8  # and the CRF had much to do


@pytest.mark.parametrize("name", list(maker.CASES))
def test_golden_results_of_pydensecrf2(name: str) -> None:
    """Labels equal on 99.99 % of the pixels; marginals within 4e-4, of which float16 storage takes 2.5e-4."""
    with np.load(GOLDEN / "crf_pydensecrf2.npz") as golden:
        image, unary = golden[f"{name}_image"], golden[f"{name}_unary"].astype(np.float32)
        marginals, labels = golden[f"{name}_marginals"].astype(np.float32), golden[f"{name}_labels"]
        sxy_gaussian, compat_gaussian, sxy_bilateral, srgb, compat_bilateral, iterations = golden[f"{name}_settings"]
    prepared = kernels(image, sxy_gaussian=float(sxy_gaussian), sxy_bilateral=float(sxy_bilateral), srgb=float(srgb))
    ours = mean_field(prepared, unary, compat_gaussian=float(compat_gaussian),
                      compat_bilateral=float(compat_bilateral), iterations=int(iterations))
    assert (ours.argmax(0) == labels).mean() >= 0.9999
    assert np.abs(ours - marginals).max() < 4e-4
    assert (labels != unary.argmin(0)).mean() > 0.01  # the golden solve changed labels at all


@pytest.mark.parametrize("name", list(maker.PHOTOS))
def test_golden_labels_of_real_photos(name: str) -> None:
    """Labels equal on 99.99 % of the pixels: at most 3 of 32,000 differ."""
    with np.load(GOLDEN / "crf_pydensecrf2.npz") as golden:
        unary, labels = maker.unary_of(golden[f"{name}_shares"]), golden[f"{name}_labels"]
    sxy_gaussian, compat_gaussian, sxy_bilateral, srgb, compat_bilateral, iterations = maker.USUAL
    prepared = kernels(maker.photo(name), sxy_gaussian=sxy_gaussian, sxy_bilateral=sxy_bilateral, srgb=srgb)
    ours = mean_field(prepared, unary, compat_gaussian=compat_gaussian, compat_bilateral=compat_bilateral,
                      iterations=iterations)
    assert (ours.argmax(0) == labels).mean() >= 0.9999
    assert (labels != unary.argmin(0)).mean() > 0.1


@pytest.mark.peer
@pytest.mark.parametrize(("k", "shape"), [(3, "potts"), (3, "diagonal"), (3, "matrix"), (21, "potts")])
def test_photo_size_results_of_pydensecrf2(k: int, shape: str) -> None:
    pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed (extra `bench`)")
    image, regions = maker.scene(375, 500, 0)
    unary = unary_from_probabilities(maker.guess(regions, k, 1))
    rng = np.random.default_rng(k)
    compat = {"potts": (3.0, 10.0), "diagonal": tuple(-5 * rng.random((2, k), np.float32)),
              "matrix": tuple(2 * rng.random((2, k, k), np.float32))}[shape]
    theirs = maker.peer(image, unary, (3.0, 3.0, 50.0, 5.0, 10.0, 10), compat)
    ours = mean_field(kernels(image), unary, compat_gaussian=compat[0], compat_bilateral=compat[1])
    assert (ours.argmax(0) == theirs.argmax(0)).mean() >= 0.9999
    assert np.abs(ours - theirs).max() < 2e-4


def test_one_call_equals_two_and_kernels_serve_again() -> None:
    image, unary = small(12, 17, 3)
    p = softmax(-unary, axis=0).astype(np.float32)
    prepared = kernels(image, sxy_gaussian=2.0, sxy_bilateral=20.0, srgb=7.0)
    first = mean_field(prepared, unary_from_probabilities(p), compat_gaussian=2.0, compat_bilateral=5.0, iterations=4)
    again = mean_field(prepared, unary_from_probabilities(p), compat_gaussian=2.0, compat_bilateral=5.0, iterations=4)
    one = dense_crf(image, p, sxy_gaussian=2.0, compat_gaussian=2.0, sxy_bilateral=20.0, srgb=7.0,
                    compat_bilateral=5.0, iterations=4)
    assert first.tobytes() == again.tobytes() == one.tobytes()
    assert kernels(image, sxy_gaussian=2.0).spatial is prepared.spatial  # cached for the size


def test_a_floor_leaves_out_labels_that_are_nowhere_likely_and_only_those() -> None:
    image, regions = maker.scene(60, 80, 2)
    p = np.exp(-unary_from_probabilities(maker.guess(regions, 9, 1)))
    p[[2, 5, 8]] *= 0.02
    p /= p.sum(0)
    p[7] *= 0.02
    p[7, 3, 4] = 0.2  # rare, but sure enough in one pixel
    p = (p / p.sum(0)).astype(np.float32)
    compat = np.linspace(-6, -2, 9)
    whole, some = (dense_crf(image, p, compat_bilateral=compat, floor=floor) for floor in (0.0, 0.05))
    gone = [2, 5, 8]
    assert at_least(p, 0.05).tolist() == [k for k in range(9) if k not in gone]
    assert not some[gone].any()
    np.testing.assert_allclose(some.sum(0), 1, atol=1e-5)
    assert (some.argmax(0) == whole.argmax(0)).mean() > 0.999
    assert np.abs(some - whole).max() > 1e-4  # an approximation, and it was made


def test_a_floor_above_everything_keeps_the_best_label() -> None:
    p = np.full((3, 4, 5), 0.3, np.float32)
    p[1] = 0.4
    assert dense_crf(np.zeros((4, 5, 3), np.uint8), p, floor=0.9).argmax(0).tolist() == [[1] * 5] * 4


@pytest.mark.parametrize("k", [3, 5])
def test_a_constant_energy_on_top_changes_nothing(k: int) -> None:
    image, unary = small(10, 12, k)
    usual, raised = mean_field(kernels(image), unary), mean_field(kernels(image), unary + np.float32(1e5))
    np.testing.assert_allclose(raised.sum(0), 1, atol=1e-5)
    assert np.abs(raised - usual).max() < 0.05  # 1e5 costs the energies their last digits


@pytest.mark.parametrize("k", [1, 3, 9, 16])
def test_no_compatibility_or_no_step_gives_the_softmax(k: int) -> None:
    image, unary = small(10, 11, k)
    expected = softmax(-unary, axis=0)
    still = mean_field(kernels(image), unary, compat_gaussian=0.0, compat_bilateral=0.0)
    assert still.tobytes() == mean_field(kernels(image), unary, iterations=0).tobytes()
    np.testing.assert_allclose(still, expected, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(1, 10), st.integers(1, 9), st.integers(1, 9))
def test_sums_are_one_and_labels_may_be_renamed(seed: int, k: int, h: int, w: int) -> None:
    image, unary = small(h, w, k, seed)
    q = mean_field(kernels(image), unary, iterations=3)
    assert q.shape == (k, h, w)
    assert q.min() >= 0
    np.testing.assert_allclose(q.sum(0), 1, atol=1e-5)
    order = np.random.default_rng(seed).permutation(k)
    np.testing.assert_allclose(mean_field(kernels(image), unary[order], iterations=3), q[order], atol=1e-5)


def test_energies_far_apart_stay_finite() -> None:
    image, unary = small(8, 8, 5)
    unary[2] = 1e6
    q = mean_field(kernels(image), unary - 1e6)
    assert np.isfinite(q).all()
    assert q[2].max() == 0


def test_constant_image_and_constant_energy_change_nothing() -> None:
    image = np.full((16, 20, 3), 90, np.uint8)
    unary = np.tile(np.array([0.1, 0.9, 1.0], np.float32)[:, None, None], (1, 16, 20))
    q = mean_field(kernels(image), unary)
    assert (q.argmax(0) == 0).all()
    single = mean_field(kernels(image[:1, :1]), unary[:, :1, :1], compat_gaussian=1.0, compat_bilateral=2.0)
    expected = explicit_mean_field([np.ones((1, 1))], [-3 * np.eye(3)], unary[:, :1, :1], 10)
    np.testing.assert_allclose(single, expected, atol=1e-5)  # a lone pixel's normalised kernel is 1


def test_edges_stop_and_regions_carry() -> None:
    """A sure seed on each side of an edge fills its side: what the CRF is for."""
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, 14:] = 200
    labels = np.full((20, 30), 255, np.uint8)
    labels[:, :4], labels[:, -4:] = 0, 1
    q = mean_field(kernels(image), unary_from_labels(labels, 2, gt_prob=0.9))
    np.testing.assert_array_equal(q.argmax(0), (image[:, :, 0] > 0).astype(int))


def test_unary_from_labels_by_hand() -> None:
    unary = unary_from_labels(np.array([[0, 2, 255]], np.uint8), 3, gt_prob=0.6)
    np.testing.assert_allclose(np.exp(-unary[:, 0].T), [[0.6, 0.2, 0.2], [0.2, 0.2, 0.6], [1 / 3] * 3], rtol=1e-6)
    assert unary.dtype == np.float32


@pytest.mark.peer
def test_unary_from_labels_is_the_peers() -> None:
    theirs = pytest.importorskip("pydensecrf.utils", reason="pydensecrf2 is not installed (extra `bench`)")
    labels = np.random.default_rng(0).integers(0, 4, (5, 6))
    expected = theirs.unary_from_labels(labels, 4, 0.7, zero_unsure=False).reshape(4, 5, 6)
    np.testing.assert_allclose(unary_from_labels(labels, 4), expected, rtol=1e-6)
    unsure = theirs.unary_from_labels(labels, 3, 0.7, zero_unsure=True).reshape(3, 5, 6)
    np.testing.assert_allclose(unary_from_labels(labels - 1, 3, ignore=-1), unsure, rtol=1e-6)


def test_unary_from_probabilities_is_clamped() -> None:
    p = np.array([0.0, 1.0, 0.5, 1e-9], np.float32).reshape(4, 1, 1)
    np.testing.assert_allclose(unary_from_probabilities(p)[:, 0, 0], -np.log([1e-5, 1, 0.5, 1e-5]), rtol=1e-6)


def _prepared() -> tuple[Kernels, np.ndarray]:
    image, unary = small(6, 7, 3)
    return kernels(image), unary


def test_errors_say_what_to_change() -> None:
    prepared, unary = _prepared()
    with pytest.raises(DataError, match=r"expected at least one label and the image's size \(6, 7\)"):
        mean_field(prepared, unary[:, :5])
    with pytest.raises(DataError, match="unary_from_probabilities"):
        mean_field(prepared, np.full_like(unary, np.inf))
    with pytest.raises(DataError, match="compat_bilateral"):
        mean_field(prepared, unary, compat_bilateral=np.ones(4))
    with pytest.raises(UsageError, match="iterations"):
        mean_field(prepared, unary, iterations=-1)
    with pytest.raises(UsageError, match="srgb"):
        kernels(np.zeros((2, 2, 3), np.uint8), srgb=0.0)
    with pytest.raises(UsageError, match="gt_prob"):
        unary_from_labels(np.zeros((2, 2), np.uint8), 2, gt_prob=1.0)
    with pytest.raises(DataError, match=r"found values \[7\], expected 0..2 or 255"):
        unary_from_labels(np.full((2, 2), 7, np.uint8), 3)


def test_the_spatial_lattice_is_kept_for_as_many_sizes_as_a_folder_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from tagseg.ops import crf

    made, real = list[int](), crf.lattices.build

    def build(places: np.ndarray) -> Lattice:
        made.append(len(places))
        return real(places)

    monkeypatch.setattr(crf.lattices, "build", build)
    for _ in range(2):
        for k in range(16):
            crf._spatial(20, 21 + k, 2.25)
    assert len(made) == 16
