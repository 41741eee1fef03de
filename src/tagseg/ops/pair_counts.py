"""Counting pairs of labels along two masks, compiled by numba: masks are made of patches, so runs are skipped over."""

from __future__ import annotations

import numpy as np
from numba import njit

_EACH_BYTE = np.uint64(0x0101010101010101)


@njit(nogil=True, cache=True)
def count_pairs(t, p, words_t, words_p, counts):  # type: ignore[no-untyped-def]
    """Adds pairs (n,) uint8 to counts (C+2,C+2) int64, where 255 is row or column 0 and label l is l + 1.

    `words_t`, `words_p`: the same bytes as uint64, eight to a word, what is left over without one. False at the first
    label above C that is not 255; counts are then unfinished.
    """
    width, n, i = counts.shape[0], len(t), 0
    while i < n:
        start, a, b = i, t[i], p[i]
        eight_a, eight_b = np.uint64(a) * _EACH_BYTE, np.uint64(b) * _EACH_BYTE
        i += 1
        while i < n:
            if i & 7 == 0:
                word = i >> 3
                while word < len(words_t) and words_t[word] == eight_a and words_p[word] == eight_b:
                    word += 1
                i = word << 3
                if i >= n:
                    break
            if t[i] != a or p[i] != b:
                break
            i += 1
        row, column = (np.int64(a) + 1) & 255, (np.int64(b) + 1) & 255
        if row >= width or column >= width:
            return False
        counts[row, column] += i - start
    return True
