"""The permutohedral lattice against a slow reference written from the paper, and against exact Gaussian sums."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagseg.ops.lattice import build, build_columns, filter, key_layout, normalised
from tagseg.types import DataError


def reference_simplex(x: np.ndarray) -> list[tuple[tuple[int, ...], float]]:
    """Vertices (d+1 integers of sum 0) and weights of the simplex around `x`: Adams et al. 2010, Sec. 3, float64."""
    d = len(x)
    basis = np.zeros((d + 1, d))  # columns span the plane that is orthogonal to (1, ..., 1), each of length 1
    for j in range(d):
        basis[: j + 1, j], basis[j + 1, j] = 1, -(j + 1)
        basis[:, j] /= np.sqrt((j + 1) * (j + 2))
    y = basis @ x * np.sqrt(2 / 3) * (d + 1)
    multiples = np.rint(y / (d + 1))
    excess = int(multiples.sum())
    order = np.argsort(-(y - multiples * (d + 1)), kind="stable")
    if excess > 0:
        multiples[order[-excess:]] -= 1
    elif excess < 0:
        multiples[order[:-excess]] += 1
    rest = y - multiples * (d + 1)
    order = np.argsort(-rest, kind="stable")
    falling = rest[order]
    simplex = []
    for r in range(d + 1):  # vertex r adds r to all axes but the r highest, which lose d+1-r
        vertex = multiples * (d + 1)
        vertex[order] += np.where(np.arange(d + 1) <= d - r, r, r - (d + 1))
        before = falling[d + 1 - r] if r else falling[0] - (d + 1)
        simplex.append((tuple(vertex.astype(int)), (falling[d - r] - before) / (d + 1)))
    np.testing.assert_allclose(sum(w * np.array(v) for v, w in simplex), y, atol=1e-9)
    assert min(w for _, w in simplex) > -1e-12
    return simplex


def reference_filter(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    d = features.shape[1]
    simplices = [reference_simplex(f) for f in features.astype(np.float64)]
    held: dict[tuple[int, ...], np.ndarray] = {}
    for simplex, value in zip(simplices, values, strict=True):
        for vertex, weight in simplex:
            held[vertex] = held.get(vertex, 0) + weight * value
    for axis in range(d + 1):
        step = np.ones(d + 1, int)
        step[axis] = -d
        held = {v: value + 0.5 * (held.get(tuple(v + step), 0) + held.get(tuple(v - step), 0))
                for v, value in held.items()}
    return np.array([sum(w * held[v] for v, w in s) for s in simplices]) / (1 + 2.0**-d)


def exact_kernel(features: np.ndarray) -> np.ndarray:
    f = features.astype(np.float64)
    return np.exp(-0.5 * ((f[:, None] - f[None]) ** 2).sum(-1))


@pytest.mark.parametrize("d", [1, 2, 3, 5])
@pytest.mark.parametrize("labels", [1, 3, 8, 21])
def test_filter_is_that_of_the_slow_reference(d: int, labels: int) -> None:
    rng = np.random.default_rng(d)
    features = rng.normal(size=(150, d)).astype(np.float32) * 2
    values = rng.random((150, labels)).astype(np.float32)
    expected = reference_filter(features, values)
    np.testing.assert_allclose(filter(build(features), values), expected, rtol=1e-4, atol=1e-4)


def test_vertex_ids_are_shared_as_in_the_reference() -> None:
    features = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    lattice = build(features)
    names: dict[int, tuple[int, ...]] = {}
    for ids, weights, f in zip(lattice.vertices, lattice.weights, features, strict=True):
        expected = reference_simplex(f.astype(np.float64))
        np.testing.assert_allclose(weights, [w for _, w in expected], atol=1e-4)
        for vertex_id, (vertex, _) in zip(ids, expected, strict=True):
            assert names.setdefault(int(vertex_id), vertex) == vertex
    assert len(names) == lattice.size == len(set(names.values()))


def test_chains_are_all_neighbours_along_each_axis_and_no_others() -> None:
    features = np.random.default_rng(1).normal(size=(300, 3)).astype(np.float32)
    lattice = build(features)
    place = np.zeros((lattice.size, 4), int)
    for ids, f in zip(lattice.vertices, features, strict=True):
        place[ids] = [v for v, _ in reference_simplex(f.astype(np.float64))]
    expected = set()
    index = {tuple(p): i for i, p in enumerate(place)}
    for axis, i in itertools.product(range(4), range(lattice.size)):
        step = np.ones(4, int)
        step[axis] = -3
        if tuple(place[i] - step) in index:
            expected.add((axis, i, index[tuple(place[i] - step)]))
    links = list(zip(lattice.chains[:-1].tolist(), lattice.chains[1:].tolist(), strict=True))
    found = [(a if a >= 0 else ~a, b) for a, b in links if b >= 0]
    assert len(found) == len(expected) == len(set(found))
    assert set(found) == {(i, down) for _, i, down in expected}
    axes = {(i, down): axis for axis, i, down in expected}
    assert sorted(axes[link] for link in found) == [axes[link] for link in found]  # axis after axis


@pytest.mark.parametrize(("d", "tolerance"), [(2, 0.04), (5, 0.06)])
def test_normalised_filter_approximates_the_exact_gaussian(d: int, tolerance: float) -> None:
    rng = np.random.default_rng(d)
    features = rng.random((600, d)).astype(np.float32) * 3
    values = (features[:, :1] > 1.5).astype(np.float32)
    ours = filter(build(features), np.concatenate([values, np.ones_like(values)], 1))
    exact = exact_kernel(features)
    error = np.abs(ours[:, 0] / ours[:, 1] - (exact @ values)[:, 0] / exact.sum(1))
    assert error.mean() < tolerance / 2
    assert error.max() < 2 * tolerance


def test_symmetric_normalisation_divides_by_both_roots() -> None:
    features = np.random.default_rng(4).random((40, 2)).astype(np.float32) * 4
    lattice = build(features)
    matrix = filter(lattice, np.eye(40, dtype=np.float32))
    root = np.sqrt(matrix.sum(1))
    expected = matrix / root[:, None] / root[None, :]
    np.testing.assert_allclose(filter(normalised(lattice), np.eye(40, dtype=np.float32)), expected, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.sampled_from([1, 2, 5]), st.floats(0.01, 300))
def test_weights_are_a_partition_of_unity_and_the_filter_is_linear(seed: int, n: int, d: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    lattice = build(((rng.random((n, d)) - 0.5) * spread).astype(np.float32))
    np.testing.assert_allclose(lattice.weights.sum(1), 1, atol=1e-4)
    assert lattice.vertices.min() == 0
    assert lattice.vertices.max() == lattice.size - 1
    a, b = rng.random((2, n, 3)).astype(np.float32)
    both = filter(lattice, a + 2 * b)
    np.testing.assert_allclose(both, filter(lattice, a) + 2 * filter(lattice, b), rtol=1e-4, atol=1e-5)


def test_many_vertices_outgrow_the_first_table() -> None:
    features = (np.arange(40_000, dtype=np.float32) * 10).reshape(-1, 1)  # no two points share a simplex
    lattice = build(features)
    assert lattice.size == 80_000
    alone = filter(lattice, np.ones((40_000, 1), np.float32))
    expected = reference_filter(features[:50], np.ones((50, 1)))
    np.testing.assert_allclose(alone[:50], expected, rtol=1e-2)  # float32 places at 10^5 deviations


@pytest.mark.parametrize("features", [np.zeros((0, 2)), np.zeros((3, 0)), np.array([[0.0, np.nan]]),
                                      np.array([[0.0], [np.inf], [1.0]])])
def test_features_must_be_finite_and_some(features: np.ndarray) -> None:
    with pytest.raises(DataError, match="lattice features"):
        build(features.astype(np.float32))


def test_features_too_wide_for_a_key_say_what_to_change() -> None:
    with pytest.raises(DataError, match="use a larger sxy or srgb"):
        build(np.array([[0] * 5, [1e5] * 5], np.float32))


@pytest.mark.parametrize(("size", "sxy", "srgb"), [((8000, 6000), 50, 5), ((12000, 8000), 50, 5), ((4000, 3000), 50, 3),
                                                   ((2000, 1500), 10, 3)])
def test_keys_of_large_photos_leave_room_for_their_vertices(size: tuple[int, int], sxy: int, srgb: int) -> None:
    ends = np.array([[0] * 5, [size[0] / sxy, size[1] / sxy, *[255 / srgb] * 3]], np.float32)
    assert key_layout(ends, size[0] * size[1]).bits >= 22  # a photo of 12 Mpx has about 2 million vertices


def test_too_many_vertices_for_the_bits_that_are_left_are_an_error() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="too many to tell apart"):
        build((rng.random((60_000, 5)) * 260).astype(np.float32))


def test_columns_must_be_padded_and_whole() -> None:
    with pytest.raises(DataError, match="multiple of 8"):
        build_columns(np.zeros((2, 12), np.float32), 12)
    with pytest.raises(DataError, match="contiguous"):
        build_columns(np.zeros((16, 2), np.float32).T, 16)


def test_values_must_have_one_row_a_point() -> None:
    with pytest.raises(DataError, match=r"\(4, L\)"):
        filter(build(np.zeros((4, 2), np.float32)), np.zeros((5, 3), np.float32))
