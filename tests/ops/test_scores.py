"""The one rule from scores to labels: hand-worked cases, a pixel loop, and the CRF's unary that must agree with it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tagseg.ops.scores import merge, normalise, to_labels, to_probabilities, with_background
from tagseg.types import DataError

ids = lambda *values: np.array(values, np.int64)  # noqa: E731
UNIT = st.one_of(st.sampled_from([0.0, 0.25, 0.3, 0.5, 1.0, float(np.nextafter(np.float32(0.3), np.float32(1)))]),
                 st.floats(0, 1, width=32))


def labels_by_loop(scores: np.ndarray, classes: np.ndarray, threshold: float, has_background: bool) -> np.ndarray:
    out = np.zeros(scores.shape[1:], np.uint8)
    for r, c in np.ndindex(out.shape):
        best = max(scores[:, r, c].tolist())
        lowest = min(int(k) for k, s in zip(classes, scores[:, r, c], strict=True) if s == best)
        out[r, c] = lowest if best >= float(np.float32(threshold)) or not has_background else 0
    return out


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float]:
    classes = np.array(draw(st.lists(st.integers(1, 254), min_size=1, max_size=4, unique=True)), np.int64)
    shape = (len(classes), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    return draw(arrays(np.float32, shape, elements=UNIT)), classes, draw(UNIT)


@settings(max_examples=150, deadline=None)
@given(scored(), st.booleans())
def test_labels_are_those_of_a_pixel_loop(case: tuple[np.ndarray, np.ndarray, float], has_background: bool) -> None:
    scores, classes, threshold = case
    np.testing.assert_array_equal(to_labels(scores, classes, threshold, has_background),
                                  labels_by_loop(scores, classes, threshold, has_background))


@settings(max_examples=300, deadline=None)
@given(scored())
def test_arg_max_with_background_is_the_rule(case: tuple[np.ndarray, np.ndarray, float]) -> None:
    scores, classes, threshold = case
    classes = np.sort(classes)
    p = with_background(scores, threshold)
    assert p.dtype == np.float32
    assert p.min() >= 0
    np.testing.assert_allclose(p.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(np.append(0, classes)[p.argmax(axis=0)], to_labels(scores, classes, threshold))


def test_scores_that_division_would_make_equal_keep_their_order() -> None:
    one, below = np.float32(1), np.nextafter(np.float32(1), np.float32(0))
    scores = np.array([[[below]], [[one]]], np.float32)
    p = with_background(scores, float(below))
    assert p[:, 0, 0].argmax() == 2


def test_hand_worked_labels() -> None:
    scores = np.array([[[0.5, 0.2], [0.7, 0.29]], [[0.5, 0.6], [0.1, 0.0]]], np.float32)
    assert to_labels(scores, ids(3, 7), 0.3).tolist() == [[3, 7], [3, 0]]
    assert to_labels(scores, ids(7, 3), 0.3).tolist() == [[3, 3], [7, 0]]  # a tie: the lowest id, whatever the order
    assert to_labels(scores, ids(3, 7), 0.5).tolist() == [[3, 7], [3, 0]]  # reaching the threshold is enough
    assert to_labels(scores, ids(3, 7), 2.0, has_background=False).tolist() == [[3, 7], [3, 3]]


def test_the_threshold_is_compared_in_float32() -> None:
    scores = np.full((1, 1, 1), 0.3, np.float32)  # float32(0.3) > 0.3 > the float32 below it
    for threshold in (0.3, np.float64(0.3), np.float32(0.3)):
        assert to_labels(scores, ids(1), float(threshold)).item() == 1


def test_no_classes() -> None:
    none = np.zeros((0, 2, 3), np.float32)
    assert to_labels(none, ids(), 0.0).tolist() == [[0, 0, 0]] * 2
    assert to_labels(none, ids(), 0.0, has_background=False).tolist() == [[255, 255, 255]] * 2
    assert with_background(none, 0.3).tolist() == [[[1.0] * 3] * 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(bad: float) -> None:
    scores = np.zeros((2, 2, 2), np.float32)
    for k in (0, 1):
        broken = scores.copy()
        broken[k, 1, 1] = bad
        with pytest.raises(DataError, match="NaN or infinite"):
            to_labels(broken, ids(1, 2), 0.5)
        with pytest.raises(DataError, match="NaN or infinite"):
            normalise(broken)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (2, 3, 3), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_normalised_maps_lie_in_the_unit_interval(raw: np.ndarray) -> None:
    maps = normalise(raw)
    assert maps.dtype == np.float32
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert not (maps[raw <= 0]).any()


def test_normalise_by_hand() -> None:
    raw = np.array([[[-1.0, 2.0, 4.0]], [[0.0, 0.0, 0.0]], [[-3.0, -2.0, -1.0]]], np.float32)
    before = raw.copy()
    np.testing.assert_allclose(normalise(raw), [[[0, 0.5, 1]], [[0, 0, 0]], [[0, 0, 0]]], atol=1e-5)
    np.testing.assert_array_equal(raw, before)
    assert normalise(np.zeros((0, 2, 2), np.float32)).shape == (0, 2, 2)


def test_merge_sums_before_it_divides() -> None:
    strong = np.array([[[8.0, 0.0, 4.0]]], np.float32)
    weak = np.array([[[0.0, 1.0, -9.0]]], np.float32)  # alone it would be blown up to 1; its negatives do not count
    np.testing.assert_allclose(merge([strong, weak]), [[[1, 0.125, 0.5]]], atol=1e-5)
    np.testing.assert_array_equal(merge([strong]), normalise(strong))
    np.testing.assert_array_equal(strong, [[[8, 0, 4]]])
    with pytest.raises(DataError, match="one shape"):
        merge([])
    with pytest.raises(DataError, match="one shape"):
        merge([strong, weak[:, :, :2]])


def test_probabilities_share_the_sum() -> None:
    scores = np.array([[[1.0, 0.0]], [[3.0, 0.0]]], np.float32)
    assert to_probabilities(scores).tolist() == [[[0.25, 0.5]], [[0.75, 0.5]]]
