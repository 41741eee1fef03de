"""CRF labels: without iterations the plain cut; with them drawn to edges, but never a class that is not tagged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tagseg.artifacts import LabelSet
from tagseg.refine import crf
from tagseg.refine.crf import Crf, refine
from tagseg.refine.threshold import Threshold, from_maps
from tagseg.refine.threshold import labels as cut_labels
from tagseg.store import Run
from tagseg.types import BACKGROUND, IGNORE, ClassMaps
from tiny import Tiny

SHARP = Crf(iterations=5, sxy_bilateral=20.0, srgb=10.0)


def two_halves() -> tuple[np.ndarray, ClassMaps]:
    """A photo with an edge at column 16, and a map of class 3 that reaches over it by four columns."""
    photo = np.zeros((3, 32, 32), np.uint8)
    photo[:, :, :16] = 220
    scores = np.full((1, 32, 32), 0.1, np.float32)
    scores[:, :, :12], scores[:, :, 12:20] = 0.9, 0.45
    return photo, ClassMaps("a", np.array([3]), scores, (32, 32))


def test_labels_are_drawn_to_the_edge() -> None:
    photo, maps = two_halves()
    before = from_maps(maps, 0.4, True).pixels
    after = refine(photo, maps, 0.4, True, SHARP).pixels
    assert (before[:, :20] == 3).all()
    assert (before[:, 20:] == 0).all()
    assert (after[:, :16] == 3).all()
    assert (after[:, 17:] == 0).all()


@pytest.mark.parametrize("has_background", [True, False])
def test_without_iterations_it_is_the_plain_cut(trained: Tiny, has_background: bool) -> None:
    tagged = trained.prepared.inputs.tagged
    for maps in list(trained.fitted.maps)[:6]:
        found = refine(tagged.source.read(maps.id), maps, 0.3, has_background, replace(SHARP, iterations=0))
        expected = from_maps(maps, 0.3, has_background).pixels
        if has_background:
            assert np.array_equal(found.pixels, expected)
        else:
            assert (found.pixels == expected).mean() > 0.99  # equal scores may fall to either class


def test_only_tagged_classes_and_background_appear(trained: Tiny) -> None:
    tagged = trained.prepared.inputs.tagged
    for found in trained.fitted.labels:
        allowed = {0, *(np.flatnonzero(tagged.tags_of(found.id)) + 1).tolist()}
        assert set(np.unique(found.pixels)) <= allowed
        assert found.pixels.shape == tagged.source.size(found.id)


def test_confidence_is_the_probability_of_the_label() -> None:
    photo, maps = two_halves()
    found = refine(photo, maps, 0.4, True, replace(SHARP, iterations=0))
    assert found.confidence is not None
    assert found.confidence[0, 0] == round(255 * 0.9 / 1.3)
    assert found.confidence[0, -1] == round(255 * 0.4 / 0.5)


def test_unsure_pixels_are_ignored_on_request() -> None:
    photo, maps = two_halves()
    plain = refine(photo, maps, 0.4, True, replace(SHARP, iterations=0))
    strict = refine(photo, maps, 0.4, True, replace(SHARP, iterations=0, unsure_below=0.6))
    unsure = np.zeros((32, 32), bool)
    unsure[:, 12:20] = True  # .45 against .4: 53 %
    assert (strict.pixels[unsure] == IGNORE).all()
    assert np.array_equal(strict.pixels[~unsure], plain.pixels[~unsure])


def made(trained: Tiny, folder: Path, workers: int, iterations: int) -> LabelSet:
    cfg = replace(trained.prepared.cfg.crf, iterations=iterations)
    return crf.labels(Run(folder, workers=workers), trained.prepared.inputs.tagged, trained.fitted.maps,
                      trained.fitted.point, cfg)


def test_any_number_of_workers_gives_the_same_bytes(trained: Tiny, tmp_path: Path) -> None:
    one, four = (made(trained, tmp_path / str(n), n, 2) for n in (1, 4))
    assert one.record["outputs"] == four.record["outputs"] == trained.fitted.labels.record["outputs"]


def test_removing_the_crf_changes_the_labels_into_the_plain_cut(trained: Tiny, tmp_path: Path) -> None:
    without = made(trained, tmp_path, 2, 0)
    plain = cut_labels(Run(tmp_path), trained.prepared.inputs.tagged, trained.fitted.maps, trained.fitted.point,
                       Threshold())
    assert any((a.pixels != b.pixels).any() for a, b in zip(without, trained.fitted.labels, strict=True))
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(without, plain, strict=True))


@pytest.mark.parametrize(("has_background", "value"), [(True, BACKGROUND), (False, IGNORE)])
def test_a_negative_needs_no_crf(trained: Tiny, tmp_path: Path, has_background: bool, value: int) -> None:
    from tagseg.localize import cam

    tagged = trained.prepared.inputs.tagged.limit(2)
    none = replace(tagged, tags=np.zeros_like(tagged.tags), has_background=has_background)
    run = Run(tmp_path)
    maps = cam.maps(run, none, trained.fitted.classifier, trained.prepared.cfg.cam)
    for found in crf.labels(run, none, maps, trained.fitted.point, SHARP):
        assert (found.pixels == value).all()


@pytest.mark.parametrize("unsure", [0.0, 0.6])
def test_batches_for_a_card_give_the_same_labels(trained: Tiny, unsure: float) -> None:
    """On the processor here: images of one size together, those with fewer classes filled up."""
    tagged, cfg = trained.prepared.inputs.tagged, replace(SHARP, unsure_below=unsure)
    maps = list(trained.fitted.maps)[:9]
    assert len({len(m.classes) for m in maps}) > 1
    found = crf.on_card(tagged, maps, 0.3, cfg)
    assert set(found) == {m.id for m in maps if len(m.classes)}
    for one in (m for m in maps if len(m.classes)):
        alone = refine(tagged.source.read(one.id), one, 0.3, tagged.has_background, cfg)
        assert (found[one.id].pixels == alone.pixels).mean() > 0.999
        assert alone.confidence is not None
        assert np.abs(found[one.id].confidence.astype(int) - alone.confidence).max() <= 1
