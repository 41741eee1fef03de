"""Labels at an operating point, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tagseg.artifacts import Scores
from tagseg.ops.geometry import enlarge
from tagseg.refine.threshold import Fixed, Threshold, fixed, from_maps, labels
from tagseg.store import Run
from tagseg.types import BACKGROUND, IGNORE, ClassMaps
from tiny import Tiny

SCORES = np.array([[[0.9, 0.3], [0.3, 0.0]], [[0.2, 0.5], [0.3, 0.0]]], np.float32)
MAPS = ClassMaps("a", np.array([2, 5]), SCORES, (2, 2))


def test_the_best_class_where_it_reaches_the_threshold() -> None:
    assert from_maps(MAPS, 0.4, True).pixels.tolist() == [[2, 5], [0, 0]]
    assert from_maps(MAPS, 0.3, True).pixels.tolist() == [[2, 5], [2, 0]]  # equal scores: the lower class; 0.3 reaches


def test_without_a_background_the_best_class_always() -> None:
    assert from_maps(MAPS, 0.9, False).pixels.tolist() == [[2, 5], [2, 2]]


def test_confidence_is_the_winning_score() -> None:
    assert from_maps(MAPS, 0.4, True).confidence.tolist() == [[230, 128], [178, 255]]  # type: ignore[union-attr]


@pytest.mark.parametrize(("has_background", "value"), [(True, BACKGROUND), (False, IGNORE)])
def test_an_image_without_maps(has_background: bool, value: int) -> None:
    empty = ClassMaps("a", np.zeros(0, np.int64), np.zeros((0, 2, 2), np.float32), (4, 6))
    found = from_maps(empty, 0.3, has_background)
    assert found.pixels.shape == (4, 6)
    assert (found.pixels == value).all()


def test_coarse_maps_come_out_at_the_images_size() -> None:
    coarse = ClassMaps("a", MAPS.classes, MAPS.scores, (20, 30))
    found = from_maps(coarse, 0.4, True).pixels
    assert found.shape == (20, 30)
    assert (found[0, 0], found[0, -1], found[-1, -1]) == (2, 5, 0)


def test_the_stage_labels_every_image_from_its_own_maps(trained: Tiny, tmp_path: Path) -> None:
    tagged, maps = trained.prepared.inputs.tagged, trained.fitted.maps
    run = Run(tmp_path, workers=2)
    point = fixed(run, Fixed(0.4, "a test"))
    assert point.read() == {"threshold": 0.4, "origin": "a test"}
    found = labels(run, tagged, maps, point, Threshold())
    assert found.ids == list(tagged.ids)
    assert found.meta["threshold"] == 0.4
    for one in found:
        scores = enlarge(maps.get(one.id).scores, maps.get(one.id).size)
        assert np.array_equal(one.pixels > 0, scores.max(0, initial=0) >= np.float32(0.4))
        assert set(np.unique(one.pixels)) <= {0, *maps.get(one.id).classes.tolist()}


def test_who_chose_a_point_is_part_of_its_identity(tmp_path: Path) -> None:
    run = Run(tmp_path, planning=True)
    assert isinstance(fixed(run, Fixed(0.4, "a")), Scores)
    assert fixed(run, Fixed(0.4, "a")).key != fixed(run, Fixed(0.4, "b")).key
