"""Bayes' rule and colour histograms by hand, and their properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagseg.ops import bayes

SHARE = st.floats(0, 1, width=32)


def one(prior: float, obj: float, bg: float) -> float:
    return float(bayes.posterior(np.array([prior]), np.array([obj]), np.array([bg]))[0])


def test_mcof_s7_01_posterior_by_hand() -> None:
    assert one(0.6, 0.3, 0.1) == pytest.approx(0.81818, abs=1e-5)
    assert one(0.2, 0.3, 0.1) == pytest.approx(0.428571, abs=1e-6)
    assert one(0.35, 0.2, 0.2) == pytest.approx(0.35)
    assert [one(p, 0.3, 0.1) for p in (0.0, 1.0)] == [0.0, 1.0]
    assert one(0.0, 1.0, 0.0) == 0.0
    assert one(0.4, 0.0, 0.0) == pytest.approx(0.4)  # neither says anything


@given(SHARE, SHARE, SHARE, SHARE)
def test_mcof_s7_01_posterior_grows_with_prior_and_likelihood_and_swaps(p: float, q: float, a: float, b: float) -> None:
    low, high = sorted((p, q))
    assert one(low, a, b) <= one(high, a, b) + 1e-6
    if a + b > 1e-6 and 1e-6 < p < 1 - 1e-6:
        assert one(p, a, b) <= one(p, min(a + 0.1, 1.1), b) + 1e-6
        assert one(1 - p, b, a) == pytest.approx(1 - one(p, a, b), abs=1e-5)


PIXELS = np.array([[[0, 0, 1, 1]], [[0, 1, 1, 1]], [[0, 0, 1, 0]]], float)
OBJECT = np.array([[True, True, False, False]])  # (0,0,0) and (0,1,0); not (1,1,1) and (1,1,0)


def test_mcof_s7_02_histograms_by_hand() -> None:
    found = bayes.binned(PIXELS, 2)
    np.testing.assert_array_equal(found, PIXELS)
    inside, outside = (bayes.histogram(found, mask, 2, sigma=0.0, floor=0.5) for mask in (OBJECT, ~OBJECT))  # adds one
    np.testing.assert_allclose(inside, [[0.75, 0.25], [0.5, 0.5], [0.75, 0.25]])
    np.testing.assert_allclose(inside.sum(1), 1)
    for_obj, for_bg = bayes.likelihood(found, inside), bayes.likelihood(found, outside)
    assert for_obj[0, 1] == pytest.approx(0.28125)
    assert for_bg[0, 1] == pytest.approx(0.09375)
    assert one(0.5, for_obj[0, 1], for_bg[0, 1]) == pytest.approx(0.75)
    whole = bayes.object_share(PIXELS, np.full((1, 4), 0.6), OBJECT, bins=2, sigma=0.0, floor=0.5, least=1)
    assert whole[0, 1] == pytest.approx(0.81818, abs=1e-5)


def test_smoothing_gives_neighbouring_bins_a_share_and_keeps_the_sum() -> None:
    found = np.full((1, 2, 2), 3)
    mask = np.ones((2, 2), bool)
    sharp, smooth = (bayes.histogram(found, mask, 7, sigma=s, floor=0.0) for s in (0.0, 1.0))
    assert sharp[0].tolist() == [0, 0, 0, 1, 0, 0, 0]
    assert smooth.sum() == pytest.approx(1)
    assert smooth[0, 2] == pytest.approx(smooth[0, 4])
    assert 0.2 < smooth[0, 2] < smooth[0, 3]


@given(st.integers(1, 20), st.integers(0, 99))
def test_bins_stay_in_range_and_keep_the_order(bins: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(2, 4, 5))
    found = bayes.binned(values, bins)
    assert found.min() >= 0
    assert found.max() <= bins - 1
    order = np.argsort(values[0], axis=None)
    assert np.all(np.diff(found[0].ravel()[order]) >= 0)
    assert np.all(bayes.binned(np.full((1, 2, 2), 5.0), bins) == 0)


def test_mcof_s7_10_without_pixels_on_one_side_the_posterior_is_the_prior() -> None:
    rng = np.random.default_rng(0)
    values, prior = rng.normal(size=(3, 10, 12)), rng.random((10, 12)).astype(np.float32)
    few = np.zeros((10, 12), bool)
    few[0, :7] = True
    for mask in (np.zeros((10, 12), bool), np.ones((10, 12), bool), few, ~few):
        np.testing.assert_array_equal(bayes.object_share(values, prior, mask, least=8), prior)
    assert not np.array_equal(bayes.object_share(values, prior, few, least=7), prior)


@given(st.floats(0.01, 0.99), st.integers(0, 2**16))
def test_calibrated_saliency_has_its_cut_at_a_half_and_keeps_its_order(cut: float, seed: int) -> None:
    saliency = np.random.default_rng(seed).random((6, 7)).astype(np.float32)
    saliency[0, :3] = 0, 1, cut
    moved = bayes.calibrated(saliency, cut)
    assert moved[0, :2].tolist() == [0, 1]
    assert moved[0, 2] == pytest.approx(0.5, abs=1e-4)
    assert np.all(np.diff(moved.ravel()[np.argsort(saliency, axis=None)]) >= 0)
    inner = (saliency > 0.01) & (saliency < 0.99)
    odds = [np.log(s[inner].astype(np.float64) / (1 - s[inner])) for s in (moved, saliency)]
    np.testing.assert_allclose(odds[0] - odds[1], np.log((1 - cut) / cut), atol=1e-2)


def test_a_cut_at_an_end_moves_no_saliency() -> None:
    saliency = np.array([[0.0, 0.3, 1.0]], np.float32)
    for cut in (0.0, 1.0):
        np.testing.assert_array_equal(bayes.calibrated(saliency, cut), saliency)


def test_an_objects_colour_is_found_where_it_was_not_mined() -> None:
    rng = np.random.default_rng(1)
    truth = np.zeros((30, 30), bool)
    truth[5:25, 8:22] = True
    values = np.where(truth, 60.0, 20.0)[None] + rng.normal(0, 4, (3, 30, 30))
    part = truth.copy()
    part[:, 14:] = False
    found = bayes.object_share(values, np.full((30, 30), 0.4), part)
    assert ((found >= 0.5) == truth).mean() > 0.95
