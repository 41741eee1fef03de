"""The rules that choose a cut, on numbers small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tagseg.ops.operating_points import best_f1, crossing, evidence_left, otsu

BINS = 10


def bars(**heights: float) -> np.ndarray:
    """Ten bins: `b3=0.5` puts 0.5 into bin 3."""
    row = np.zeros(BINS)
    for name, height in heights.items():
        row[int(name[1:])] = height
    return row


# ---- evidence that is left ----

def test_evidence_left_by_hand() -> None:
    erased = np.array([[1.0, 2.0, 4.0], [1.0, 4.0, 4.0]])
    original, negative = np.array([3.0, 5.0]), np.array([0.0, 2.0])
    # means: original 4, negative 1, so 3 is to be lost; painted 1, 3, 4
    assert evidence_left(erased, original, negative) == pytest.approx([0, 2 / 3, 1])


def test_without_any_evidence_the_shares_stay_numbers() -> None:
    assert np.isfinite(evidence_left(np.ones((2, 3)), np.ones(2), np.ones(2))).all()


logits = arrays(np.float64, (4, 5), elements=st.floats(-5, 5))


@given(logits, st.floats(-3, 3), st.floats(0.5, 4))
def test_shift_and_scale_of_the_logits_do_not_matter(values: np.ndarray, shift: float, scale: float) -> None:
    original, negative, erased = values[:, 0] + 12, values[:, 1] - 12, values[:, 2:]
    plain = evidence_left(erased, original, negative)
    assert plain == pytest.approx(evidence_left(*(scale * v + shift for v in (erased, original, negative))))


# ---- where a level is crossed ----

@pytest.mark.parametrize(("values", "level", "expected"), [
    ([0.0, 0.2, 1.0], 0.4, 0.35),  # a quarter of the way from .3 to .5
    ([0.0, 0.4, 1.0], 0.4, 0.3),  # reached at .3, passed after it
    ([0.5, 0.6, 1.0], 0.4, 0.1),  # above from the start
    ([0.0, 0.1, 0.2], 0.4, 0.5),  # never
    ([0.0, 0.8, 0.2], 0.4, 0.2),  # the first time counts
])
def test_crossings_by_hand(values: list[float], level: float, expected: float) -> None:
    assert crossing(np.array([0.1, 0.3, 0.5]), np.array(values), level) == pytest.approx(expected)


@given(arrays(np.float64, 6, elements=st.floats(-1, 2)), st.floats(-0.5, 1.5), st.floats(0, 1))
def test_a_higher_level_is_never_crossed_earlier(values: np.ndarray, level: float, more: float) -> None:
    cuts = np.linspace(0.1, 0.9, 6)
    low, high = crossing(cuts, values, level), crossing(cuts, values, level + more)
    assert 0.1 <= low <= high + 1e-9
    assert high <= 0.9 + 1e-9


# ---- Otsu ----

def test_otsu_cuts_between_two_spikes() -> None:
    assert 0.2 <= otsu(bars(b1=0.6, b7=0.4)) <= 0.7


def test_otsu_of_three_spikes_by_hand() -> None:
    # bins 0, 4, 9: splitting off bin 9 separates means by 7, splitting off bin 0 by 6.5
    assert 0.5 <= otsu(bars(b0=1, b4=1, b9=1)) <= 0.9
    assert 0.1 <= otsu(bars(b0=1, b5=1, b9=1)) <= 0.5


@given(arrays(np.float64, BINS, elements=st.floats(0, 1)).filter(lambda h: float(h.sum()) > 0.01))
def test_otsu_is_the_best_of_all_cuts_by_a_slow_reference(counts: np.ndarray) -> None:
    x, p = (np.arange(BINS) + 0.5) / BINS, counts / counts.sum()

    def between(cut: int) -> float:
        low, high = p[:cut].sum(), p[cut:].sum()
        if min(low, high) < 1e-9:
            return 0.0
        return float(low * high * ((p[:cut] * x[:cut]).sum() / low - (p[cut:] * x[cut:]).sum() / high) ** 2)

    for found in (otsu(counts), otsu(50 * counts)):  # cuts that are equally good may change places by rounding
        assert between(round(found * BINS)) == pytest.approx(max(between(cut) for cut in range(BINS)), abs=1e-7)


# ---- where a tag is said to be there ----

def test_best_f1_by_hand() -> None:
    scores, tags = np.array([0.9, 0.2, 0.6, 0.4]), np.array([True, False, True, False])
    assert best_f1(scores, tags) == pytest.approx(0.5)  # both tags and nothing else
    tags = np.array([True, True, False, False])
    # F1 by the lowest score said: .9: 2/3, .6: 2/4, .4: 2/5, .2: 4/6; of the equal ones the higher cut
    assert best_f1(scores, tags) == pytest.approx(0.75)
    assert best_f1(scores, np.array([False, True, True, True])) == pytest.approx(0.1)  # all four: 6/7
    assert best_f1(scores, np.zeros(4, bool)) is None
    assert best_f1(np.full(4, 0.3), tags) == pytest.approx(0.15)  # equal scores are said together


@given(arrays(np.float64, 12, elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])), arrays(np.bool_, 12))
def test_no_cut_has_a_better_f1(scores: np.ndarray, tags: np.ndarray) -> None:
    found = best_f1(scores, tags)
    if found is None:
        assert not tags.any()
        return

    def f1(cut: float) -> float:
        said = scores >= cut
        return 2 * float((said & tags).sum()) / float(said.sum() + tags.sum())

    assert f1(found) >= max(f1(cut) for cut in (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95)) - 1e-12
