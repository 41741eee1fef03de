"""Confusion counts against a pixel loop, and the ratios against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tagseg.ops.confusion import confusion, summary
from tagseg.types import DataError


def by_loop(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    counts = np.zeros((classes + 1, classes + 2), np.int64)
    for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
        if t != 255:
            counts[t, classes + 1 if p == 255 else p] += 1
    return counts


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    classes = draw(st.sampled_from([1, 2, 5, 20, 253, 254]))
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    stretch = draw(st.sampled_from([1, 20]))  # long runs take another path than noise
    values = st.one_of(st.integers(0, classes), st.just(255))
    pair = [np.repeat(draw(arrays(np.uint8, shape, elements=values)), stretch, axis=1) for _ in range(2)]
    return pair[0], pair[1], classes


@settings(max_examples=120, deadline=None)
@given(mask_pairs())
def test_counts_are_those_of_a_pixel_loop(pair: tuple[np.ndarray, np.ndarray, int]) -> None:
    truth, predicted, classes = pair
    np.testing.assert_array_equal(confusion(truth, predicted, classes), by_loop(truth, predicted, classes))


def test_views_are_counted_as_their_values() -> None:
    big = np.random.default_rng(0).integers(0, 3, (40, 60)).astype(np.uint8)
    truth, predicted = big[::2, ::3], big[1::2, 1::3]
    np.testing.assert_array_equal(confusion(truth, predicted, 2), by_loop(truth, predicted, 2))


def test_bytes_that_begin_anywhere_and_cannot_be_written_are_counted() -> None:
    big = np.repeat(np.random.default_rng(1).integers(0, 3, (2, 200)).astype(np.uint8), 11, axis=1)
    big.setflags(write=False)
    truth, predicted = big[0, 3:], big[1, :-3]
    np.testing.assert_array_equal(confusion(truth, predicted, 2), by_loop(truth, predicted, 2))


def test_nothing_to_count() -> None:
    assert confusion(np.zeros(0, np.uint8), np.zeros(0, np.uint8), 2).sum() == 0


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("noisy", [True, False])
def test_a_value_outside_the_classes_is_refused(side: int, noisy: bool) -> None:
    base = np.arange(400).reshape(20, 20) % 3 if noisy else np.zeros((20, 20))
    pair = [base.astype(np.uint8), base.astype(np.uint8)]
    pair[side][7, 7] = 3
    with pytest.raises(DataError, match=r"values 3; expected 0\.\.2"):
        confusion(pair[0], pair[1], 2)
    assert confusion(pair[0], pair[1], 3).sum() == 400


def test_sizes_and_class_counts_are_checked() -> None:
    with pytest.raises(DataError, match="expected the truth's size"):
        confusion(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), 1)
    for classes in (0, 255):
        with pytest.raises(DataError, match="classes"):
            confusion(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), classes)


def test_hand_worked_three_by_three() -> None:
    truth = np.array([[0, 0, 1], [0, 1, 1], [2, 2, 255]], np.uint8)
    predicted = np.array([[0, 1, 1], [0, 1, 255], [0, 2, 2]], np.uint8)
    counts = confusion(truth, predicted, 3)
    assert counts[:3].tolist() == [[2, 1, 0, 0, 0], [0, 2, 0, 0, 1], [1, 0, 1, 0, 0]]
    got = summary(counts, ["a", "b", "c"])
    # background: TP 2 of truth 3, predicted 3 -> 2/4; a: TP 2, truth 3, predicted 3 -> 2/4; b: TP 1, truth 2 -> 1/2
    assert got.per_class == {"background": 0.5, "a": 0.5, "b": 0.5, "c": None}
    assert got.miou == 0.5
    assert got.per_class_precision == {"background": 2 / 3, "a": 2 / 3, "b": 1.0, "c": None}
    assert got.per_class_recall == {"background": 2 / 3, "a": 2 / 3, "b": 0.5, "c": None}
    assert got.precision == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert got.recall == pytest.approx((2 / 3 + 2 / 3 + 1 / 2) / 3)
    assert got.fp_over_tp == {"background": 0.5, "a": 0.5, "b": 0.0, "c": None}
    assert got.fn_over_tp == {"background": 0.5, "a": 0.5, "b": 1.0, "c": None}
    assert got.pixel_accuracy == 5 / 8


def test_never_predicted_and_never_true() -> None:
    counts = np.array([[4, 0, 2, 0], [3, 0, 0, 0], [0, 0, 0, 0]])
    got = summary(counts, ["missed", "invented"])
    assert got.per_class == {"background": 4 / 9, "missed": 0.0, "invented": 0.0}
    assert got.per_class_precision["missed"] == 0.0
    assert got.per_class_recall["invented"] == 0.0
    assert got.fp_over_tp["invented"] is None
    assert got.miou == pytest.approx(4 / 27)


def test_without_a_background() -> None:
    counts = np.array([[0, 5, 5, 0], [2, 6, 0, 0], [0, 0, 3, 1]])
    got = summary(counts, ["a", "b"], has_background=False)
    assert got.per_class == {"a": 6 / 8, "b": 3 / 4}  # truth 0 is not scored; a prediction of 0 or 255 is a miss
    assert got.per_class_precision == {"a": 1.0, "b": 1.0}
    assert got.pixel_accuracy == 9 / 12


def test_all_ignored_scores_zero_not_nan() -> None:
    got = summary(confusion(np.full((3, 3), 255, np.uint8), np.ones((3, 3), np.uint8), 1), ["a"])
    assert (got.miou, got.precision, got.recall, got.pixel_accuracy) == (0.0, 0.0, 0.0, 0.0)
    assert got.per_class == {"background": None, "a": None}


def test_names_must_fit() -> None:
    with pytest.raises(DataError, match="more than once"):
        summary(np.zeros((3, 4), np.int64), ["background", "a"])
    with pytest.raises(DataError, match=r"expected \(3, 4\)"):
        summary(np.zeros((2, 3), np.int64), ["a", "b"])
