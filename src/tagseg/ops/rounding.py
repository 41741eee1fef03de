"""Filters rounded to bfloat16 so that the sum of each stays, compiled by numba."""

from __future__ import annotations

import numpy as np
from numba import njit

from tagseg.types import F32


def keep_sums(filters: F32) -> F32:
    """Filters (f,k) with values that bfloat16 holds. What rounding one weight takes, the next smaller one is given.

    A filter's answer to an even input stays as it was, to the precision of its smallest weight. Inputs behind a ReLU
    are all of one sign and neighbouring pixels alike, so errors of single weights would add up instead.
    """
    rounded = np.array(filters, np.float32)
    _round_in_turn(rounded, np.argsort(-np.abs(rounded), axis=1, kind="stable"))
    return rounded


@njit(nogil=True, cache=True)
def _round_in_turn(filters, order):  # type: ignore[no-untyped-def]
    one = np.empty(1, np.float32)
    bits = one.view(np.uint32)
    half, low, high = np.uint32(0x7FFF), np.uint32(1), np.uint32(0xFFFF0000)
    for f in range(filters.shape[0]):
        carry = 0.0
        for k in order[f]:
            wanted = filters[f, k] + carry
            one[0] = wanted
            bits[0] = (bits[0] + half + ((bits[0] >> np.uint32(16)) & low)) & high  # to nearest, ties to even
            carry = wanted - one[0]
            filters[f, k] = one[0]
