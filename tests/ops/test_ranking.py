"""Ranking by counting pairs, points by looking at every neighbour, FROC by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.integrate import trapezoid

from tagseg.ops import ranking

counts = arrays.arrays(np.int64, st.shared(st.integers(1, 8), key="bins"), elements=st.integers(0, 5))


def pairs(positive: np.ndarray, negative: np.ndarray) -> float | None:
    """The chance that a true one ranks over a false one, by looking at every pair."""
    true = np.repeat(np.arange(len(positive)), positive)
    false = np.repeat(np.arange(len(negative)), negative)
    if not len(true) or not len(false):
        return None
    wins = (true[:, None] > false[None]).mean() + (true[:, None] == false[None]).mean() / 2
    return float(wins)


@given(counts, counts)
@settings(max_examples=200, deadline=None)
def test_the_area_is_the_share_of_pairs_in_order(positive: np.ndarray, negative: np.ndarray) -> None:
    assert ranking.roc_area(positive, negative) == pytest.approx(pairs(positive, negative))
    if positive.sum() and negative.sum():
        curve = ranking.roc_curve(positive, negative)
        assert curve[0].tolist() == [0, 0]
        assert curve[-1].tolist() == [1, 1]
        below = trapezoid(curve[:, 1], curve[:, 0])  # straight lines count equal scores one half, too
        assert below == pytest.approx(ranking.roc_area(positive, negative))


def test_single_scores() -> None:
    scores, true = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert ranking.area_of(scores, true) == 0.75
    assert ranking.area_of(scores, np.ones(4, np.bool_)) is None


def test_average_precision_by_hand() -> None:
    # from the top: one of one right, then two of four, then three of five
    assert ranking.average_precision(np.array([1, 1, 1]), np.array([0, 2, 0])) == pytest.approx((1 + 0.5 + 0.6) / 3)
    assert ranking.average_precision(np.array([0, 0]), np.array([1, 2])) is None


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)),
                     elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_peaks_are_places_that_none_near_exceeds(values: np.ndarray, reach: int) -> None:
    where, scores = ranking.peaks(values, reach)
    assert np.array_equal(values[where[:, 0], where[:, 1]], scores)
    for row, column in where:
        near = values[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1]
        assert near.max() == values[row, column]
    assert values.max() in scores
    assert len({tuple(place) for place in where.tolist()}) == len(where)


def test_a_level_top_counts_once_and_two_far_ones_twice() -> None:
    values = np.zeros((5, 12), np.float32)
    values[1:3, 1:4], values[3, 10] = 0.7, 0.9
    where, scores = ranking.peaks(values, 2)
    high = scores > 0
    assert sorted(map(tuple, where[high].tolist())) == [(1, 1), (3, 10)]


def test_froc_by_hand() -> None:
    # two images, three objects; objects 0 and 2 are found, 1 is not; one point falls twice on object 0
    scores, hits = np.array([0.9, 0.8, 0.8, 0.5, 0.4, 0.1]), np.array([0, -1, 0, 2, -1, -1])
    curve = ranking.froc(scores, hits, 3, 2)
    assert curve == pytest.approx(np.array([[0, 1 / 3], [0.5, 1 / 3], [0.5, 2 / 3], [1, 2 / 3], [1.5, 2 / 3]]))
    assert ranking.found_at(curve, (0.0, 0.25, 0.5, 9)) == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert ranking.froc(np.zeros(0), np.zeros(0, np.int64), 3, 2).shape == (0, 2)
    assert ranking.found_at(np.zeros((0, 2)), (1.0,)) == [0.0]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_the_order_of_points_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, hits = rng.integers(0, 4, 12) / 4, rng.integers(-1, 3, 12)
    order = rng.permutation(12)
    assert np.array_equal(ranking.froc(scores, hits, 3, 4), ranking.froc(scores[order], hits[order], 3, 4))
