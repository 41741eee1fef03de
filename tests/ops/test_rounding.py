"""Filters rounded to bfloat16: against hand-worked cases, and what holds for every filter."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tagseg.ops.rounding import keep_sums

HALF = 2.0**-8  # how far rounding moves a number at most, as its share: bfloat16 keeps eight binary digits


def plain(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).bfloat16().float().numpy()


def test_by_hand() -> None:
    """1 + 3/256 lies between 1 + 2/256 and 1 + 4/256: both of three round up, and the small one gives it back."""
    one = 1 + 3 / 256
    found = keep_sums(np.array([[0.25, one, one]], np.float32))
    # first: 1 + 4/256 (a tie, to even), carry -1/256; second: 1 + 2/256, carry 0
    assert found.tolist() == [[0.25, 1 + 4 / 256, 1 + 2 / 256]]
    assert plain(np.array([one], np.float32)).item() == 1 + 4 / 256


def test_what_bfloat16_holds_stays() -> None:
    held = plain(np.random.default_rng(0).standard_normal((5, 27)).astype(np.float32))
    assert np.array_equal(keep_sums(held), held)


@given(arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 30)),
              elements=st.floats(-8, 8, width=32, allow_subnormal=False)))  # fmt: skip
def test_sums_stay_and_no_weight_moves_far(filters: np.ndarray) -> None:
    before = filters.copy()
    found = keep_sums(filters)
    assert np.array_equal(filters, before)
    assert np.array_equal(plain(found), found)
    large = np.abs(filters).max(1, keepdims=True)
    assert (np.abs(found - filters) <= 2 * large * HALF * 1.01 + 1e-30).all()
    moved = np.abs(found.sum(1, dtype=float) - filters.sum(1, dtype=float))
    last = np.abs(filters).min(1) + large[:, 0] * HALF  # the smallest weight and what it was given
    assert (moved <= last * HALF * 1.01 + 1e-30).all()


def test_filters_whose_weights_all_err_to_one_side() -> None:
    filters = np.full((1, 64), 1 + 1 / 256, np.float32)
    assert plain(filters).sum() == 64  # ties to even: every weight loses
    assert keep_sums(filters).sum() == 64.25
