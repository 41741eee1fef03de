"""Rounds of measurements: which are made again, and which count."""

from __future__ import annotations

from itertools import chain, repeat

import pytest

from benchmarks import measure


def rounds(monkeypatch: pytest.MonkeyPatch, shares: list[float], wanted: int) -> tuple[measure.Times, int]:
    """Times of two jobs, of which the k-th round takes k ms, when so much of each round is stolen."""
    looks, made = iter(chain.from_iterable(((0, 0), (round(1000 * s), 1000)) for s in chain(shares, repeat(0.5)))), [0]

    def first() -> tuple[float, float]:
        made[0] += 1
        return float(made[0]), 2.0 * made[0]

    monkeypatch.setattr(measure, "jiffies", lambda: next(looks))
    return measure._alternate({"a": first, "b": lambda: (1.0, 1.0)}, wanted), made[0]


def test_a_quiet_machine_makes_each_round_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, made = rounds(monkeypatch, [0.0, 0.1, 0.05], 3)
    assert made == 3
    assert found["a"]["cpu_ms"] == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert found["a"]["stolen_percent"] == {"median": 5.0, "low": 0.0, "high": 10.0}


def test_rounds_that_were_stolen_from_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found, made = rounds(monkeypatch, [0.4, 0.0, 0.3, 0.02], 2)
    assert made == 4
    assert found["a"]["wall_ms"] == {"median": 6.0, "low": 4.0, "high": 8.0}  # the second and the fourth
    assert found["b"]["stolen_percent"]["high"] == 2.0


def test_where_all_are_stolen_from_the_least_count_and_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found, made = rounds(monkeypatch, [0.4, 0.2, 0.5, 0.6, 0.3, 0.9], 2)
    assert made == 6
    assert found["a"]["cpu_ms"] == {"median": 3.5, "low": 2.0, "high": 5.0}
    assert found["a"]["stolen_percent"] == {"median": 25.0, "low": 20.0, "high": 30.0}


def test_the_share_of_what_was_wanted() -> None:
    assert measure.stolen_share((10, 100), (15, 200)) == 0.05
    assert measure.stolen_share((10, 100), (10, 100)) == 0
    stolen, wanted = measure.jiffies()
    assert 0 <= stolen <= wanted
