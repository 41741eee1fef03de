"""The rules that choose a cut, on histograms small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tagseg.ops.operating_points import background_share, expected_iou, otsu

BINS = 10


def bars(**heights: float) -> np.ndarray:
    """One row of ten bins: `b3=0.5` puts 0.5 into bin 3."""
    row = np.zeros((1, BINS))
    for name, height in heights.items():
        row[0, int(name[1:])] = height
    return row


def test_groups_that_do_not_meet_have_iou_one_in_the_whole_gap() -> None:
    present, absent = bars(b0=0.7, b8=0.3), bars(b0=1.0)
    curve = expected_iou(present, absent)[0]
    assert curve[1:9] == pytest.approx(1.0)
    assert curve[0] == pytest.approx(0.3)  # everything claimed: 0.3 of it is object
    assert curve[9] == pytest.approx(0.0)  # nothing found


def test_scale_of_the_histograms_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    present, absent = rng.random((3, BINS)), rng.random((3, BINS))
    assert np.allclose(expected_iou(present, absent), expected_iou(100 * present, 7 * absent))


def test_overlapping_groups_by_hand() -> None:
    present, absent = bars(b0=0.4, b4=0.3, b8=0.3), bars(b0=0.8, b4=0.2)
    # share of background: min(.4/.8, .7/1) = .5, so objects are (0, .2, .3) in bins 0, 4, 8
    assert background_share(present, absent) == pytest.approx([0.5])
    curve = expected_iou(present, absent)[0]
    assert curve[0] == pytest.approx(0.5)
    assert curve[1:5] == pytest.approx(0.5 / 0.6)  # claims .6, of which .5 is object
    assert curve[5:9] == pytest.approx(0.3 / 0.5)  # claims .3, all object; .2 missed
    assert curve.argmax() == 1


def test_background_alone_leaves_no_object() -> None:
    same = bars(b0=0.5, b1=0.3, b2=0.2)
    assert background_share(same, same) == pytest.approx([1.0])
    assert expected_iou(same, same) == pytest.approx(0.0)


def test_a_mixture_below_the_background_counts_as_background() -> None:
    assert background_share(bars(b0=1.0), bars(b9=1.0)) == pytest.approx([1.0])


def test_classes_are_judged_apart() -> None:
    first, second = bars(b0=0.7, b8=0.3), bars(b0=0.5, b5=0.5)
    absent = bars(b0=1.0)
    both = expected_iou(np.concatenate([first, second]), np.concatenate([absent, absent]))
    assert np.allclose(both[0], expected_iou(first, absent)[0])
    assert np.allclose(both[1], expected_iou(second, absent)[0])


histograms = arrays(np.float64, (2, BINS), elements=st.floats(0, 1)).filter(lambda h: bool((h.sum(1) > 0.01).all()))


@given(histograms, histograms)
def test_expected_iou_is_a_share(present: np.ndarray, absent: np.ndarray) -> None:
    curve = expected_iou(present, absent)
    assert curve.shape == (2, BINS)
    assert (curve >= -1e-9).all()
    assert (curve <= 1 + 1e-9).all()


@given(histograms, histograms)
def test_the_background_is_the_largest_share_that_fits_below(present: np.ndarray, absent: np.ndarray) -> None:
    mixture, null = present / present.sum(1, keepdims=True), absent / absent.sum(1, keepdims=True)
    share = background_share(mixture, null)
    assert ((share >= 0) & (share <= 1)).all()
    below, null_below = mixture.cumsum(1), null.cumsum(1)
    counted = null_below >= 0.2
    assert (below - share[:, None] * null_below)[counted].min() >= -1e-9


def test_otsu_explains_all_variance_between_two_spikes() -> None:
    curve = otsu(bars(b1=0.6, b7=0.4))[0]
    assert curve[2:8] == pytest.approx(1.0)
    assert curve[[0, 1, 8, 9]] == pytest.approx(0.0)


def test_otsu_of_three_spikes_by_hand() -> None:
    curve = otsu(bars(b0=1, b4=1, b9=1))[0]
    # bins 0, 4, 9 with mean 13/3: variance (169 + 1 + 196)/27; a cut splits off bin 0, or bin 9
    whole = (169 + 1 + 196) / 27
    assert curve[1:5] == pytest.approx((2 / 9) * 6.5**2 / whole)
    assert curve[5:] == pytest.approx((2 / 9) * 7.0**2 / whole)


@given(histograms)
def test_otsu_is_a_share_of_the_variance_and_agrees_with_a_slow_reference(present: np.ndarray) -> None:
    curve = otsu(present)
    assert (curve >= -1e-9).all()
    assert (curve <= 1 + 1e-6).all()
    x = (np.arange(BINS) + 0.5) / BINS
    for row, found in zip(present, curve, strict=True):
        p = row / row.sum()
        variance = (p * (x - (p * x).sum()) ** 2).sum()
        for cut in range(1, BINS):
            low, high = p[:cut].sum(), p[cut:].sum()
            if min(low, high) > 1e-6 and variance > 1e-6:
                between = low * high * ((p[:cut] * x[:cut]).sum() / low - (p[cut:] * x[cut:]).sum() / high) ** 2
                assert found[cut] == pytest.approx(between / variance, abs=1e-6)
