from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from tagseg.report import plots

NASTY = "<script>alert(1)</script> $x_1$ & \"q\""
CURVE = {"thresholds": [0.1, 0.3, 0.5], "miou": [0.2, 0.5, 0.4], "auto": 0.3, "oracle": 0.5, "flat": [0.3, 0.5]}


def _texts(svg: str) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("}text")]


def _all(names: list[str]) -> list[str]:
    labels = ["background", *names]
    counts = np.eye(len(labels), len(labels) + 1, dtype=int) * 90 + 1
    return [
        plots.threshold_curve("seed", CURVE, {"thresholds": [0.1, 0.5], "evidence_left": [0.3, 0.4]}),
        plots.confusion_matrix("val", labels, counts.tolist()),
        *plots.class_bars({"seed": dict.fromkeys(labels, 0.4), "val": dict.fromkeys(labels, None)}),
        plots.loss_curve("a.b", [[i, math.exp(-i), 0.01] for i in range(20)]),
    ]


def test_same_input_same_bytes_and_nothing_about_when_or_where() -> None:
    first, second = _all(["crab", "jay"]), _all(["crab", "jay"])
    assert first == second
    for svg in first:
        assert svg.startswith("<svg")
        assert "<style" not in svg
        assert "metadata" not in svg
        assert "<!DOCTYPE" not in svg
        assert 'role="img"' in svg
        assert "aria-label=" in svg
        assert "viewBox=" in svg


def test_text_stays_text_in_the_colours_and_font_of_the_page() -> None:
    svg = _all(["crab"])[1]
    assert {"background", "crab", "unsure", "truth", "prediction"} <= set(_texts(svg))
    for drawn in _all(["crab"]):
        assert "#0102" not in drawn
        assert "DejaVu" not in drawn
        assert "var(--muted)" in drawn


@pytest.mark.parametrize("name", [NASTY, "a\x00b\x1b", "鳥 \U0001f426", "x\udcff", "line\nbreak", "%", "$", ""])
def test_class_names_are_shown_as_they_are_and_never_run(name: str) -> None:
    for svg in _all([name]):
        assert "<script" not in svg
        svg.encode("utf-8")
    shown = plots.confusion_matrix("val", ["background", name], [[9, 1], [1, 9]])
    assert any(text.startswith(name[:1].strip("\x00")) for text in _texts(shown))


def test_dollars_are_no_mathematics() -> None:
    assert "$a_1$" in _texts(plots.confusion_matrix("val", ["$a_1$", "b"], [[1, 0], [0, 1]]))


def test_ids_of_two_plots_do_not_meet() -> None:
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (plots.threshold_curve("seed", CURVE),
                                                             plots.threshold_curve("pseudo", CURVE))]
    assert ids[0]
    assert not ids[0] & ids[1]
    svg = plots.threshold_curve("seed", CURVE)
    assert set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg))
    assert all(
        (a or b) in ids[0] for a, b in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg))


def test_curve_names_both_points() -> None:
    assert {"auto 0.30", "oracle 0.50"} <= set(_texts(plots.threshold_curve("seed", CURVE)))


def test_matrix_is_row_normalised_and_unsure_shown_only_if_used() -> None:
    texts = _texts(plots.confusion_matrix("val", ["a", "b"], [[30, 10, 0], [0, 7, 0]]))
    assert "75" in texts
    assert "25" in texts
    assert "100" in texts
    assert "unsure" not in texts
    assert "unsure" in _texts(plots.confusion_matrix("val", ["a", "b"], [[30, 10, 1], [0, 7, 0]]))


@pytest.mark.parametrize("curve", [{}, {"thresholds": [], "miou": []}, {"thresholds": [0.1], "miou": [math.nan]},
                                   {"thresholds": [0.1, 0.2], "miou": [0.3]}, {"thresholds": None, "miou": "x"}])
def test_a_curve_of_nothing_is_no_plot(curve: dict[str, Any]) -> None:
    assert plots.threshold_curve("seed", curve) == ""


def test_holes_and_single_points_are_drawn() -> None:
    assert plots.threshold_curve("seed", {"thresholds": [0.1, 0.2, 0.3], "miou": [0.3, None, math.nan], "auto": None})
    assert plots.threshold_curve("seed", {"thresholds": [0.5], "miou": [0.3], "auto": 0.5, "oracle": 0.5, "flat": []})
    assert plots.loss_curve("x", [[1, 0.5, 0.1]])
    assert plots.loss_curve("x", [[1, 0.5, 0.0], [2, math.nan, 0.0], [3, None], "row", [4, 0.2, 0.0]])
    assert plots.loss_curve("x", []) == "" == plots.loss_curve("x", [[1, math.nan, 0]])


def test_matrix_of_the_wrong_form_is_no_plot() -> None:
    assert plots.confusion_matrix("val", ["a", "b"], [[1, 2]]) == ""
    assert plots.confusion_matrix("val", ["a"], [[0, 0]]) != ""


def test_long_class_lists_are_split_evenly_and_keep_every_class() -> None:
    names = [f"class {i}" for i in range(81)]
    charts = plots.class_bars({"val": dict.fromkeys(names, 0.5)})
    assert len(charts) == 3
    assert [t for svg in charts for t in _texts(svg) if t.startswith("class")] == names
    assert plots.class_bars({"val": {}}) == []


def test_a_long_history_becomes_a_short_curve() -> None:
    svg = plots.loss_curve("x", [[i, 1.0, 0.1] for i in range(50_000)])
    assert len(svg) < 60_000
