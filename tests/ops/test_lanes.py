"""Vectors inside kernels: arithmetic by element, exp over its whole range."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from tagseg.ops.lanes import (
    divide,
    exp,
    fill,
    lanes,
    larger,
    largest,
    less,
    load,
    plus_product,
    rint,
    spread,
    store,
    store_whole,
    total,
    where_equal,
    whole,
)


@njit
def _exp_all(x, out, lanes):
    for i in range(0, len(x), len(lanes)):
        store(out, i, exp(load(x, i, lanes)))


@njit
def _combine(a, b, factor, out, lanes):
    x, y = load(a, 0, lanes), load(b, 0, lanes)
    store(out, 0, larger((x + y) * factor - x * y, fill(np.float32(-1), lanes)))


@njit
def _fold(a, group, sums, tops, lanes):
    store(sums, 0, total(load(a, 0, lanes), group))
    store(tops, 0, largest(load(a, 0, lanes), group))


@njit
def _others(a, b, at, out, counts, lanes):
    x, y = load(a, 0, lanes), load(b, 0, lanes)
    store(out, 0, plus_product(divide(x, y), rint(x), y))
    store(out, len(lanes), less(x, y) - where_equal(rint(x), rint(y), x))
    store_whole(counts, 0, rint(x))
    store(out, 2 * len(lanes), spread(a, 1, lanes) * np.float32(whole(at, 2)))


def test_exp_follows_numpy_down_to_the_end_of_float32() -> None:
    x = np.linspace(-87, 40, 1 << 16).astype(np.float32)
    out = np.empty_like(x)
    _exp_all(x, out, lanes(8))
    exact = np.exp(x.astype(np.float64))
    assert np.abs(out / exact - 1).max() < 2e-7


def test_exp_is_zero_far_below_and_one_at_zero() -> None:
    x = np.array([0, -87.5, -1e4, -3e38, -np.inf, -0.0, 1, -1], np.float32)
    out = np.empty_like(x)
    _exp_all(x, out, lanes(4))
    np.testing.assert_allclose(out, [1, 0, 0, 0, 0, 1, np.e, 1 / np.e], rtol=2e-7)


@pytest.mark.parametrize("width", [4, 8, 16, 24, 40])
def test_arithmetic_goes_by_element(width: int) -> None:
    a, b = np.random.default_rng(width).normal(size=(2, width)).astype(np.float32)
    out = np.empty(width, np.float32)
    _combine(a, b, np.float32(0.5), out, lanes(width))
    np.testing.assert_array_equal(out, np.maximum((a + b) * np.float32(0.5) - a * b, np.float32(-1)))


@pytest.mark.parametrize("width", [4, 8, 24])
def test_further_operations_go_by_element(width: int) -> None:
    a, b = np.random.default_rng(width).normal(size=(2, width)).astype(np.float32) * 3
    out = np.empty((3, width), np.float32)
    counts = np.empty(width, np.int32)
    _others(a, b, np.array([5, 6, -7], np.int32), out.ravel(), counts, lanes(width))
    np.testing.assert_allclose(out[0], a / b + np.rint(a) * b, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(out[1], (a < b) - np.where(np.rint(a) == np.rint(b), a, np.float32(0)))
    np.testing.assert_array_equal(counts, np.rint(a))
    np.testing.assert_array_equal(out[2], np.full(width, a[1] * np.float32(-7)))


@pytest.mark.parametrize(("width", "group"), [(4, 4), (8, 4), (8, 8), (24, 24), (16, 8)])
def test_a_fold_stays_within_its_group(width: int, group: int) -> None:
    a = np.random.default_rng(width).normal(size=width).astype(np.float32)
    sums, tops = np.empty((2, width), np.float32)
    _fold(a, lanes(group), sums, tops, lanes(width))
    groups = a.reshape(-1, group)
    np.testing.assert_allclose(sums, groups.sum(1).repeat(group), atol=1e-5)
    np.testing.assert_array_equal(tops, groups.max(1).repeat(group))


def test_lanes_hold_at_least_the_labels() -> None:
    assert [len(lanes(k)) for k in (1, 4, 5, 8, 9, 21, 81)] == [4, 4, 8, 8, 16, 24, 88]
