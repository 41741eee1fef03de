"""Boundary regions against erosion one class at a time, bands against brute-force distances, counts by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from tagseg.ops.boundary import (
    TRIMAP_WIDTHS,
    boundary_counts,
    boundary_width,
    mask_boundary,
    steps_to_change,
    trimap_confusion,
)
from tagseg.ops.confusion import confusion

LABELS = st.sampled_from([0, 0, 0, 1, 1, 2, 255])


def masks(low: int = 1, high: int = 9) -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(st.integers(low, high), st.integers(low, high))
    return shapes.flatmap(lambda s: arrays(np.uint8, s, elements=LABELS)).map(
        lambda m: np.kron(m, np.ones((3, 3), np.uint8)))


def steps_by_loop(labels: np.ndarray) -> np.ndarray:
    rows, columns = np.indices(labels.shape)
    steps = np.full(labels.shape, 2**30)
    for r, c in np.ndindex(labels.shape):
        other = labels != labels[r, c]
        if other.any():
            steps[r, c] = np.maximum(abs(rows - r), abs(columns - c))[other].min()
    return steps


def boundary_by_erosion(mask: np.ndarray, d: int) -> np.ndarray:
    """As the authors' code does it: pad with zeros, erode d times by a 3x3 square, subtract."""
    padded = np.pad(mask, 1)
    return mask & ~ndimage.binary_erosion(padded, np.ones((3, 3)), iterations=d)[1:-1, 1:-1]


@settings(max_examples=40, deadline=None)
@given(masks(high=5))
def test_steps_are_chessboard_distances(labels: np.ndarray) -> None:
    np.testing.assert_array_equal(steps_to_change(labels), steps_by_loop(labels))


@settings(max_examples=40, deadline=None)
@given(masks(), st.integers(1, 6))
def test_boundary_is_mask_minus_erosion_for_every_label(labels: np.ndarray, d: int) -> None:
    got = mask_boundary(labels, d)
    for label in np.unique(labels):
        of_label = labels == label
        np.testing.assert_array_equal(got & of_label, boundary_by_erosion(of_label, d))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_counts_are_those_of_one_class_at_a_time(data: st.DataObject) -> None:
    truth = data.draw(masks())
    predicted = data.draw(arrays(np.uint8, truth.shape, elements=LABELS))
    d = boundary_width(*truth.shape)
    both_ignored = np.where(truth == 255, 255, predicted)
    expected = []
    for label in range(4):
        t, p = boundary_by_erosion(truth == label, d), boundary_by_erosion(both_ignored == label, d)
        expected.append([(t & p).sum(), (t | p).sum()])
    np.testing.assert_array_equal(boundary_counts(truth, predicted, 3), np.transpose(expected))


def test_a_square_shifted_by_one() -> None:
    truth = np.zeros((30, 30), np.uint8)
    predicted = truth.copy()
    truth[10:16, 10:16] = 1
    predicted[10:16, 11:17] = 1
    assert boundary_width(30, 30) == 1
    found, union = boundary_counts(truth, predicted, 1)
    # two rings of 20 pixels: the shifted top and bottom rows share 5 each, the vertical sides share nothing
    assert (found[1], union[1]) == (10, 30)


@settings(max_examples=30, deadline=None)
@given(masks())
def test_a_perfect_prediction_scores_one_whatever_it_says_on_ignored_pixels(truth: np.ndarray) -> None:
    found, union = boundary_counts(truth, np.where(truth == 255, np.uint8(1), truth), 2)
    np.testing.assert_array_equal(found, union)
    assert union.sum() > 0 or (truth == 255).all()


@pytest.mark.parametrize(("size", "pixels"), [((300, 300), 8), ((375, 500), 12), ((3, 3), 1), ((1, 1), 1)])
def test_width_is_two_percent_of_the_diagonal(size: tuple[int, int], pixels: int) -> None:
    assert boundary_width(*size) == pixels


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_bands_hold_the_pixels_within_each_width(data: st.DataObject) -> None:
    truth = data.draw(masks(high=5))
    predicted = data.draw(arrays(np.uint8, truth.shape, elements=LABELS))
    steps = steps_by_loop(truth)
    bands = trimap_confusion(truth, predicted, 2)
    for counts, width in zip(bands, TRIMAP_WIDTHS, strict=True):
        np.testing.assert_array_equal(counts, confusion(truth[steps <= width], predicted[steps <= width], 2))


def test_an_image_of_one_label_has_frame_but_no_band() -> None:
    plain = np.ones((40, 40), np.uint8)
    assert trimap_confusion(plain, plain, 1).sum() == 0
    assert boundary_counts(plain, plain, 1).tolist() == [[0, 156], [0, 156]]  # a frame of one pixel


def test_fast_enough_for_five_classes() -> None:
    fields = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((6, 300, 300)), (0, 15, 15))
    truth = fields.argmax(0).astype(np.uint8)
    predicted = np.roll(truth, 4, axis=0)
    times = []
    for _ in range(7):
        start = time.process_time()
        boundary_counts(truth, predicted, 5)
        trimap_confusion(truth, predicted, 5)
        times.append(time.process_time() - start)
    assert min(times) < 0.06  # about 0.01 s when alone; room for a slow machine
