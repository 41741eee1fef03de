"""How the cut is chosen: histograms by hand, which classes take part, and that it is said how. Rules: tests/ops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tagseg.artifacts import Weights
from tagseg.data.images import mask_reads, reset_mask_reads
from tagseg.data.index import TaggedSet
from tagseg.inference import Seen
from tagseg.localize import operating_point
from tagseg.localize.cam import Cam
from tagseg.localize.operating_point import BINS, Auto, OperatingPoint, auto, histograms
from tagseg.store import Run, Work
from tiny import Tiny


@dataclass(frozen=True)
class Blank:
    def read(self, id: str) -> np.ndarray:
        return np.zeros((3, 2, 2), np.uint8)

    def size(self, id: str) -> tuple[int, int]:
        return 2, 2

    def digest(self, id: str) -> str:
        return id


RAW = {  # raw maps (2 classes, 2x2): image a is tagged 1, b is tagged 1 and 2, c nothing
    "a": [[[8.0, 4.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]],
    "b": [[[2.0, 0.0], [0.0, 0.0]], [[4.0, 4.0], [4.0, 0.0]]],
    "c": [[[2.5, 0.0], [0.0, 10.0]], [[0.0, 2.0], [0.0, 0.0]]],
}


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> TaggedSet:
    def raw_maps(work: Any, network: Any, tagged: TaggedSet, ids: tuple[str, ...], cfg: Cam) -> Iterator[Seen]:
        for i in ids:
            yield Seen(i, Blank().read(i), torch.tensor(RAW[i]))

    monkeypatch.setattr(operating_point.cam, "raw_maps", raw_maps)
    monkeypatch.setattr(operating_point.cam, "network_of", lambda model: None)
    monkeypatch.setattr(operating_point, "load", lambda weights, classes: None)
    tags = np.array([[True, False], [True, True], [False, False]])
    return TaggedSet("hand", ("x", "y"), ("a", "b", "c"), tags, np.ones(3, bool), Blank())


def test_histograms_by_hand(by_hand: TaggedSet, tmp_path: Path) -> None:
    classifier = Weights("k", tmp_path)
    present, absent, counts = histograms(Work(Run(tmp_path), "toy", tmp_path), by_hand, classifier, Cam())
    assert counts.tolist() == [[2, 1], [1, 2]]
    top = BINS - 1  # the maximum, divided by itself, lies just under 1
    # x where tagged: a gives (1, .5, 0, 0), b gives (1, 0, 0, 0); each image counts as one
    assert sum(present[0]) == pytest.approx(2)
    assert present[0][top] == pytest.approx(0.5)
    assert present[0][BINS // 2 - 1] + present[0][BINS // 2] == pytest.approx(0.25)
    assert present[0][0] == pytest.approx(0.5 + 0.75)
    # x where not tagged: c divided by the median peak of a and b, which is 5: (.5, 0, 0, 2) and 2 counts as 1
    assert absent[0][top] == pytest.approx(0.25)
    assert absent[0][BINS // 2 - 1] + absent[0][BINS // 2] == pytest.approx(0.25)
    # y where not tagged: peak 4 in b; a gives (.25, 0, 0, 0), c gives (0, .5, 0, 0)
    assert absent[1][BINS // 4 - 1] + absent[1][BINS // 4] == pytest.approx(0.25)
    assert absent[1][0] == pytest.approx(1.5)


def test_a_class_that_is_nowhere_has_empty_histograms(by_hand: TaggedSet, tmp_path: Path) -> None:
    bare = replace(by_hand, tags=np.array([[True, False], [True, False], [False, False]]))
    present, absent, counts = histograms(Work(Run(tmp_path), "toy", tmp_path), bare, Weights("k", tmp_path), Cam())
    assert counts[:, 1].tolist() == [0, 3]
    assert not present[1].any()
    assert not absent[1].any()


def chosen(trained: Tiny, folder: Path, **point: Any) -> dict[str, Any]:
    cfg = Auto(replace(trained.prepared.cfg.point, **point), trained.prepared.cfg.cam)
    return auto(Run(folder), trained.prepared.inputs.tagged, trained.fitted.classifier, cfg).read()


def test_the_choice_is_the_best_of_the_allowed_curve(trained: Tiny, tmp_path: Path) -> None:
    for low, high in ((0.1, 0.9), (0.35, 0.5)):
        found = chosen(trained, tmp_path, low=low, high=high)
        thresholds, curve = (np.array(found["curve"][n]) for n in ("thresholds", "expected_miou"))
        allowed = (thresholds >= low) & (thresholds <= high)
        assert low <= found["threshold"] <= high
        assert curve[allowed].max() == pytest.approx(curve[thresholds == found["threshold"]][0], abs=1e-4)


def test_the_record_says_how_it_was_chosen(trained: Tiny) -> None:
    found = trained.fitted.point.read()
    tagged = trained.prepared.inputs.tagged
    assert found["origin"] == "auto"
    assert found["rule"] == trained.prepared.cfg.point.rule
    assert "24 images" in found["note"]
    assert "no pixel truth" in found["note"]
    assert found["images_with"] == tagged.tags.sum(0).tolist()
    assert found["images_without"] == (~tagged.tags).sum(0).tolist()
    assert np.array(found["present"]).shape == (len(tagged.classes), BINS)


def test_without_enough_negatives_otsu_steps_in_and_says_so(trained: Tiny, tmp_path: Path) -> None:
    found = chosen(trained, tmp_path, few=1000)
    assert found["rule"] == "otsu"
    assert "Otsu" in found["note"]
    assert "no class has enough images" in found["note"]
    assert 0.1 <= found["threshold"] <= 0.9


def test_rare_classes_are_named(trained: Tiny, tmp_path: Path) -> None:
    tagged = trained.prepared.inputs.tagged
    few = int(np.sort(tagged.tags.sum(0))[0]) + 1
    if tagged.tags.sum(0).max() < few:
        pytest.skip("all classes are equally frequent in this tiny set")
    rare = tagged.classes[int(tagged.tags.sum(0).argmin())]
    assert rare in chosen(trained, tmp_path, few=few)["note"].rsplit("Not counted", 1)[-1]


def test_no_more_images_than_asked_for_are_looked_at(trained: Tiny, tmp_path: Path) -> None:
    found = chosen(trained, tmp_path, images=7)
    assert np.array(found["images_with"])[0] + np.array(found["images_without"])[0] == 7


def test_no_mask_is_opened(trained: Tiny, tmp_path: Path) -> None:
    reset_mask_reads()
    chosen(trained, tmp_path)
    assert mask_reads() == ()


def test_defaults_are_within_the_allowed_range() -> None:
    assert 0 < OperatingPoint().low < OperatingPoint().high < 1
