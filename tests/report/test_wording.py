from __future__ import annotations

import math

import pytest

from tagseg.report import wording


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "0.3", [], True])
def test_what_is_no_number_is_a_dash(value: object) -> None:
    for say in (wording.percent, wording.points, wording.ratio, wording.count, wording.duration, wording.memory):
        assert say(value) == "–"


@pytest.mark.parametrize(("seconds", "said"), [
    (0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (99, "99 s"), (99.6, "1 min 40 s"), (3599.7, "60 min 00 s"),
    (3600, "1 h 00 min"), (7500, "2 h 05 min"), (-1, "–"),
])
def test_duration(seconds: float, said: str) -> None:
    assert wording.duration(seconds) == said.replace("60 min 00 s", "1 h 00 min")


def test_numbers() -> None:
    assert wording.percent(0.4123) == "41.2"
    assert wording.percent(1) == "100.0"
    assert wording.points(-0.0131) == "−1.3"
    assert wording.points(0.02) == "+2.0"
    assert wording.points(-0.0001) == "0.0"
    assert wording.count(1693) == "1693"
    assert wording.count(21693.0) == "21\u00a0693"
    assert wording.memory(900) == "900 MB"
    assert wording.memory(1812) == "1.8 GB"


def test_clean_shows_what_would_hide_or_break() -> None:
    assert wording.clean("a\x1b[31mb") == "a\\u001b[31mb"
    assert wording.clean("photo\udcff") == "photo\\udcff"
    assert wording.clean("\u202egpj.exe") == "\\u202egpj.exe"
    assert wording.clean("é 鳥 می\u200cخواهم") == "é 鳥 می\u200cخواهم"
