"""How the growth of cost is told from turns: by hand, and what must not change it."""

from __future__ import annotations

import pytest
from benchmarks.growth import bends, middle, row, spreads
from benchmarks.processes import Once
from hypothesis import given
from hypothesis import strategies as st

SIZES = ((36, 8), (144, 8), (576, 8))


def turns(*costs: tuple[float, ...]) -> dict[tuple[int, int], list[Once]]:
    """What three sizes cost in each turn, in ms."""
    return {size: [Once(None, one, one, 10.0) for one in column]
            for size, column in zip(SIZES, zip(*costs, strict=True), strict=True)}  # fmt: skip


def test_a_straight_line_has_no_bend_whatever_a_stage_costs_once() -> None:
    assert bends(turns((36.0, 144.0, 576.0), (500 + 36.0, 500 + 144.0, 500 + 576.0))) == [0.0, 0.0]


def test_bends_by_hand() -> None:
    # first turn: 108 images more cost 108, 432 more cost 432 * 1.25; second: twice as slow a machine, and 432 * .5
    assert bends(turns((36.0, 144.0, 144 + 540.0), (72.0, 288.0, 288 + 432.0))) == pytest.approx([0.25, -0.5])


@given(st.floats(0.1, 10), st.floats(0, 1000), st.floats(-0.5, 2))
def test_a_slower_turn_bends_as_much(slower: float, once: float, bend: float) -> None:
    costs = (once + 36, once + 144, once + 144 + 432 * (1 + bend))
    assert bends(turns(tuple(slower * one for one in costs))) == pytest.approx([bend], abs=1e-6)


def test_spreads_by_hand() -> None:
    assert spreads(turns((100.0, 90.0, 110.0), (200.0, 500.0, 190.0))) == pytest.approx([0.1, -0.05])


def test_the_middle_of_runs_knows_missing_memory() -> None:
    assert middle([Once(None, 3.0, 5.0, 1.0), Once(None, 1.0, 9.0, 3.0), Once(None, 2.0, 4.0, 2.0)]) == (None, 2, 5, 2)
    assert middle([Once(None, 3.0, 5.0, None)]).peak_mb is None


def test_a_row_says_the_median_of_all_turns_and_how_memory_grows() -> None:
    found = turns((36.0, 144.0, 576.0), (36.0, 144.0, 576.0))
    found[576, 8] = [Once(None, 576.0, 576.0, 19.0)] * 2
    made = row(found, "a stage", [0.3, -0.1, 0.02])
    assert (made["deviation"], made["deviations"], made["memory_growth"]) == (0.02, [-0.1, 0.02, 0.3], 0.5)
    assert [point["cpu_ms_an_image"] for point in made["points"]] == [1.0, 1.0, 1.0]
