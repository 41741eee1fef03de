"""The affinity walk against hand-worked cases and against dense matrices of its published form in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks.dense_walk import dense_affinity, propagate, transition_matrix
from hypothesis import given, settings
from hypothesis import strategies as st

from tagseg.ops import affinity
from tagseg.types import DataError, UsageError

SIZES = [(9, 14), (17, 12), (3, 30), (1, 7), (6, 1), (23, 23)]


def grid(size: tuple[int, int], seed: int = 0, maps: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A boundary map with both open ground and walls, and values in [0, 1]."""
    rng = np.random.default_rng(seed)
    return rng.random(size, dtype=np.float32) ** 4, rng.random((maps, *size), dtype=np.float32)


def dense_power(boundary: np.ndarray, values: np.ndarray, steps: int, radius: int = 5, beta: float = 10) -> np.ndarray:
    matrix = transition_matrix(dense_affinity(torch.from_numpy(boundary).double(), radius), beta).numpy()
    power = np.linalg.matrix_power(matrix, steps)
    return (values.reshape(len(values), -1).astype(np.float64) @ power).reshape(values.shape)


def test_offsets_are_those_of_the_published_search() -> None:
    found = [tuple(o) for o in affinity.offsets(5).tolist()]
    assert len(found) == len(set(found)) == 34
    assert {(0, 4), (4, 2), (3, -3)} <= set(found)
    assert (4, 3) not in found  # distance 5 is not nearer than 5
    assert not set(found) & {(-y, -x) for y, x in found}
    assert affinity.offsets(2).tolist() == [[0, 1], [1, -1], [1, 0], [1, 1]]


def test_a_path_holds_the_pixels_nearer_than_one_to_its_line() -> None:
    assert affinity.path(0, 3) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert affinity.path(2, 2) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)]  # beside it: distance 0.7
    assert affinity.path(1, -2) == [(y, x) for y in (0, 1) for x in (-2, -1, 0)]  # the corners: distance 2/sqrt(5)


def test_path_affinity_by_hand() -> None:
    boundary = np.array([[0, 0.25, 0, 0.5]], np.float32)
    found = affinity.path_affinity(boundary, radius=4)
    planes = {tuple(o): plane[0].tolist() for o, plane in zip(affinity.offsets(4).tolist(), found, strict=True)}
    assert planes[0, 1] == [0.75, 0.75, 0.5, 0]
    assert planes[0, 2] == [0.75, 0.5, 0, 0]
    assert planes[0, 3] == [0.5, 0, 0, 0]
    assert all(not any(plane) for (dy, _), plane in planes.items() if dy)


@pytest.mark.parametrize("size", SIZES)
def test_path_affinity_is_that_of_the_dense_form(size: tuple[int, int]) -> None:
    boundary, _ = grid(size)
    expected = dense_affinity(torch.from_numpy(boundary)).numpy()
    found = np.eye(boundary.size, dtype=np.float32)
    at = np.arange(boundary.size).reshape(size)
    for (dy, dx), plane in zip(affinity.offsets(5).tolist(), affinity.path_affinity(boundary), strict=True):
        for y, x in np.argwhere(plane):
            found[at[y, x], at[y + dy, x + dx]] = found[at[y + dy, x + dx], at[y, x]] = plane[y, x]
    np.testing.assert_array_equal(found, expected)


def test_one_step_by_hand() -> None:
    """Three pixels in a row, neighbours only: weights 1, 0.5^2, 0.8^2 in between."""
    links = np.zeros((4, 1, 3), np.float32)
    links[0, 0, :2] = 0.5, 0.8
    step = affinity.transition(links, affinity.offsets(2), beta=2)
    found = affinity.walk(step, np.array([[[1, 0, 0]]], np.float32), steps=1)
    np.testing.assert_allclose(found, [[[1 / 1.25, 0.25 / 1.89, 0]]], rtol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps", [1, 2, 7, 256])
def test_walk_and_chebyshev_are_powers_of_the_dense_matrix(size: tuple[int, int], steps: int) -> None:
    boundary, values = grid(size)
    step = affinity.transition(affinity.path_affinity(boundary), affinity.offsets(5))
    expected = dense_power(boundary, values, steps)
    np.testing.assert_allclose(affinity.walk(step, values, steps), expected, atol=2e-5)
    np.testing.assert_allclose(affinity.chebyshev(step, values, steps, degree=100), expected, atol=2e-5)
    np.testing.assert_allclose(affinity.chebyshev(step, values, steps), expected, atol=5e-4)


@pytest.mark.parametrize(("radius", "beta"), [(2, 10.0), (3, 2.5), (7, 4.0)])
def test_other_radii_and_exponents(radius: int, beta: float) -> None:
    boundary, values = grid((13, 19), seed=1)
    step = affinity.transition(affinity.path_affinity(boundary, radius), affinity.offsets(radius), beta)
    np.testing.assert_allclose(affinity.walk(step, values, 64), dense_power(boundary, values, 64, radius, beta),
                               atol=2e-5)  # fmt: skip


def test_damped_walk_is_the_published_propagation() -> None:
    boundary, values = grid((20, 26), seed=2)
    step = affinity.transition(affinity.path_affinity(boundary), affinity.offsets(5))
    expected = propagate(torch.from_numpy(values).double(), torch.from_numpy(boundary).double()).numpy()
    np.testing.assert_allclose(affinity.walk(step, affinity.damp(values, boundary)), expected, atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 10**6), st.sampled_from([1, 2, 3, 50, 256]))
def test_means_stay_between_the_ends_and_constants_stay(h: int, w: int, seed: int, steps: int) -> None:
    boundary, values = grid((h, w), seed, maps=2)
    values[1] = 0.3
    step = affinity.transition_from_boundary(boundary)
    for found in (affinity.walk(step, values, steps), affinity.chebyshev(step, values, steps)):
        assert found[0].min() >= values[0].min() - 1e-5
        assert found[0].max() <= values[0].max() + 1e-5
        np.testing.assert_allclose(found[1], 0.3, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 300), st.integers(0, 200))
def test_chebyshev_series_is_the_power_up_to_its_bound(steps: int, degree: int) -> None:
    degree = max(2, degree)
    kept, left = affinity.coefficients(steps, degree)
    x = np.linspace(-1, 1, 2001)
    worst = np.abs(np.polynomial.chebyshev.chebval(x, kept) - x**steps).max()
    assert worst <= affinity.chebyshev_error(steps, degree) + 1e-12
    assert left == 0 if degree >= steps else 0 < left < 1


def test_chebyshev_bound_holds_in_its_norm() -> None:
    boundary, values = grid((15, 22), seed=3)
    step = affinity.transition_from_boundary(boundary)
    sums = 1 / affinity._grid(step.inverse[None], step)
    exact = dense_power(boundary, values, 256)
    for degree in (20, 40):
        wrong = np.sqrt((sums * (affinity.chebyshev(step, values, 256, degree) - exact) ** 2).sum())
        size = np.sqrt((sums * values.astype(np.float64) ** 2).sum())
        assert 0 < wrong <= affinity.chebyshev_error(256, degree) * size
    assert affinity.chebyshev_error(256, 40) == pytest.approx(2.1e-2, rel=0.05)
    assert affinity.chebyshev_error(256, 60) == pytest.approx(2.6e-4, rel=0.05)
    assert affinity.chebyshev_error(256, 80) == pytest.approx(6.6e-7, rel=0.05)


def test_labels_of_the_default_degree_are_those_of_the_exact_walk() -> None:
    """On regions with soft walls between them and a seed map for each."""
    y, x = np.mgrid[:94, :125] / 20
    field = np.sin(x) + np.cos(1.3 * y) + np.sin(0.7 * x + y)
    boundary = (0.9 * np.exp(-((field / 0.25) ** 2))).astype(np.float32)
    values = np.stack([np.cos(2 * x) * (field > 0), np.sin(2 * y) * (field < 0)]).clip(0, 1).astype(np.float32)
    step = affinity.transition_from_boundary(boundary)
    exact, short = affinity.walk(step, values), affinity.chebyshev(step, values)
    assert 0.2 < exact.argmax(0).mean() < 0.8
    assert (exact.argmax(0) == short.argmax(0)).mean() >= 0.9999


def test_without_boundaries_the_walk_is_a_blur() -> None:
    values = np.zeros((1, 41, 41), np.float32)
    values[0, 20, 20] = 1
    step = affinity.transition_from_boundary(np.zeros((41, 41), np.float32))
    y, x = np.mgrid[-20:21, -20:21]
    np.testing.assert_allclose(affinity.walk(step, values, 1)[0], (y**2 + x**2 < 25) / 69, atol=1e-7)
    blurred = affinity.walk(step, values, 4)[0]
    assert blurred.argmax() == 20 * 41 + 20
    np.testing.assert_allclose(blurred, blurred[::-1, ::-1].T, atol=1e-7)


def test_a_wall_stops_everything() -> None:
    boundary, values = np.zeros((20, 31), np.float32), np.zeros((1, 20, 31), np.float32)
    boundary[:, 15] = 1
    values[0, :, :15] = 1
    found = affinity.walk(affinity.transition_from_boundary(boundary), values)
    np.testing.assert_allclose(found[0, :, :15], 1, atol=1e-5)
    assert (found[0, :, 15:] == 0).all()


def test_bands_of_rows_change_nothing() -> None:
    boundary, _ = grid((50, 33))
    whole = affinity.transition(affinity.path_affinity(boundary), affinity.offsets(5))
    for band in (1, 7, 49, 64):
        found = affinity.transition_from_boundary(boundary, band=band)
        np.testing.assert_array_equal(found.weights, whole.weights)
        np.testing.assert_array_equal(found.inverse, whole.inverse)


def test_steps_taken_together_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    boundary, values = grid((120, 90))
    step = affinity.transition_from_boundary(boundary)
    assert affinity._wave(step)[1] > 5
    together = affinity.walk(step, values, 20), affinity.chebyshev(step, values, 20, 12)
    monkeypatch.setattr(affinity, "_CACHE", 1)
    assert affinity._wave(step)[1] == 1
    for one, other in zip(together, (affinity.walk(step, values, 20), affinity.chebyshev(step, values, 20, 12)),
                          strict=True):  # fmt: skip
        np.testing.assert_array_equal(one, other)


def test_far_values_fall_to_zero_and_not_to_denormals() -> None:
    boundary, values = np.full((4, 400), 0.88, np.float32), np.zeros((1, 4, 400), np.float32)
    values[0, :, 0] = 1
    found = affinity.walk(affinity.transition_from_boundary(boundary), values)
    assert found[found > 0].min() > 1e-28
    assert found[0, 0, 399] == 0


def test_errors_name_what_is_wrong() -> None:
    boundary, values = grid((8, 8))
    step = affinity.transition_from_boundary(boundary)
    with pytest.raises(DataError, match=r"boundary map: found values in \[0.0, 2.0\]"):
        affinity.path_affinity(np.linspace(0, 2, 64, dtype=np.float32).reshape(8, 8))
    with pytest.raises(DataError, match="boundary map"):
        affinity.path_affinity(np.full((8, 8), np.nan, np.float32))
    with pytest.raises(DataError, match="found 34 planes, expected one for each of the 4 offsets"):
        affinity.transition(affinity.path_affinity(boundary), affinity.offsets(2))
    with pytest.raises(DataError, match="affinity: found values"):
        affinity.transition(np.full((4, 3, 3), 1.5, np.float32), affinity.offsets(2))
    with pytest.raises(DataError, match=r"found shape \(3, 8, 7\)"):
        affinity.walk(step, values[:, :, :7])
    with pytest.raises(DataError, match="not finite"):
        affinity.walk(step, values * np.float32(np.nan))
    with pytest.raises(UsageError, match="radius"):
        affinity.offsets(1)
    with pytest.raises(UsageError, match="beta"):
        affinity.transition_from_boundary(boundary, beta=0)
    with pytest.raises(UsageError, match="steps"):
        affinity.walk(step, values, 0)
    with pytest.raises(UsageError, match="degree"):
        affinity.chebyshev(step, values, 256, 1)


def _columns(boundary: np.ndarray) -> np.ndarray:
    """The transition as a matrix [from, to], read off from one step of each cell alone."""
    cells = boundary.size
    units = np.eye(cells, dtype=np.float32).reshape(cells, *boundary.shape)
    return affinity.walk(affinity.transition_from_boundary(boundary, 5, 10.0), units, 1).reshape(cells, cells)


@pytest.mark.parametrize("size", [(6, 7), (1, 9), (5, 2)])
def test_esol_s7_12_columns_of_the_transition_sum_to_one(size: tuple[int, int]) -> None:
    boundary, _ = grid(size)
    assert np.allclose(_columns(boundary).sum(0), 1, atol=1e-5)
    # no edges: what a map holds is spread over cells with as many neighbours, and a map of one value keeps it all
    even = np.full((1, *size), 0.7, np.float32)
    free = affinity.transition_from_boundary(np.zeros(size, np.float32), 5, 10.0)
    assert affinity.walk(free, even, 64).sum() == pytest.approx(even.sum(), rel=1e-4)
    # an edge of 1 everywhere: nothing leaves its cell
    start = grid(size)[1]
    walls = affinity.transition_from_boundary(np.ones(size, np.float32), 5, 10.0)
    assert np.allclose(affinity.walk(walls, start, 64), start, atol=1e-6)
