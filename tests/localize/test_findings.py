"""Scores as shares: in their order, 0 in the middle, and sure pixels told apart where they are stored."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tagseg.localize.findings import SOFT, shares


def test_a_score_of_zero_is_a_half_and_signs_mirror() -> None:
    found = shares(torch.tensor([0.0, SOFT, -SOFT, 3 * SOFT]))
    assert found.tolist() == [0.5, 0.75, 0.25, 0.875]


@given(st.floats(-300, 300), st.floats(0.05, 2))
def test_scores_keep_their_order_when_stored(score: float, share: float) -> None:
    more = score + share * max(abs(score), 1) * 0.2
    low, high = shares(torch.tensor([score, more])).half().tolist()
    assert 0 < low <= high < 1


def test_what_a_logistic_function_lets_tie_is_told_apart_in_halves_of_floats() -> None:
    sure = torch.tensor([20.0, 30.0, 40.0, 60.0, 100.0])
    assert len(set(shares(sure).half().tolist())) == len(sure)
    assert len(set(sure.sigmoid().half().tolist())) == 1
    assert len(set((sure / 4).sigmoid().half().tolist())) < len(sure)
