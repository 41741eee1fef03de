"""How labels that differ are told apart: regions that turn, borders that move."""

from __future__ import annotations

import numpy as np
from benchmarks.whole import in_regions


def test_regions_are_told_from_borders() -> None:
    one, other = np.zeros((20, 20), int), np.zeros((20, 20), int)
    other[2:6, 2:6] = 1  # 16 pixels: a region
    other[10, ::2] = 1  # ten single ones, each under one percent of 400
    assert in_regions([one], [other]) == 16 / 26
    assert in_regions([one], [one]) == 0
