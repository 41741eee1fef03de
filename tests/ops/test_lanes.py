"""Vectors inside kernels: arithmetic by element, exp over its whole range."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from tagseg.ops.lanes import LANES, exp, fill, larger, largest, load, store, total


@njit
def _exp_all(x, out, lanes):
    for i in range(0, len(x), len(lanes)):
        store(out, i, exp(load(x, i, lanes)))


@njit
def _combine(a, b, factor, out, lanes):
    x, y = load(a, 0, lanes), load(b, 0, lanes)
    store(out, 0, larger((x + y) * factor - x * y, fill(np.float32(-1), lanes)))
    return total(x), largest(x)


def test_exp_follows_numpy_down_to_the_end_of_float32() -> None:
    x = np.linspace(-87, 40, 1 << 16).astype(np.float32)
    out = np.empty_like(x)
    _exp_all(x, out, LANES[8])
    exact = np.exp(x.astype(np.float64))
    assert np.abs(out / exact - 1).max() < 2e-7


def test_exp_is_zero_far_below_and_one_at_zero() -> None:
    x = np.array([0, -87.5, -1e4, -3e38, -np.inf, -0.0, 1, -1], np.float32)
    out = np.empty_like(x)
    _exp_all(x, out, LANES[4])
    np.testing.assert_allclose(out, [1, 0, 0, 0, 0, 1, np.e, 1 / np.e], rtol=2e-7)


@pytest.mark.parametrize("width", [4, 8])
def test_arithmetic_goes_by_element(width: int) -> None:
    rng = np.random.default_rng(width)
    a, b = rng.normal(size=(2, width)).astype(np.float32)
    out = np.empty(width, np.float32)
    sum_a, max_a = _combine(a, b, np.float32(0.5), out, LANES[width])
    np.testing.assert_array_equal(out, np.maximum((a + b) * np.float32(0.5) - a * b, np.float32(-1)))
    assert sum_a == pytest.approx(a.sum(dtype=np.float64), abs=1e-6)
    assert max_a == a.max()
