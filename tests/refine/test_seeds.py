"""Confident labels: cuts that follow the operating point, IRN's combination of two CRF solutions, 255 between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagseg.artifacts import LabelSet
from tagseg.ops.geometry import enlarge
from tagseg.refine import seeds
from tagseg.refine.crf import Crf, solve
from tagseg.refine.seeds import Seeds, cuts
from tagseg.store import Run
from tagseg.types import BACKGROUND, IGNORE, ClassMaps, UsageError
from tiny import Tiny

PLAIN = Seeds(crf=Crf(iterations=0))
SHARP = Seeds(crf=Crf(iterations=5, sxy_bilateral=20.0, srgb=10.0))


def test_at_irns_own_point_the_cuts_are_irns() -> None:
    assert cuts(0.15, Seeds()) == pytest.approx((0.30, 0.05))
    assert cuts(0.6, Seeds()) == pytest.approx((0.7846, 0.3091), abs=1e-4)
    assert cuts(0.9, Seeds()) == pytest.approx((0.9563, 0.7286), abs=1e-4)


@given(st.floats(0, 1), st.floats(0, 1))
def test_cuts_lie_around_any_point_and_move_with_it(a: float, b: float) -> None:
    low, high = (cuts(t, Seeds()) for t in sorted((a, b)))
    for (fg, bg), t in ((low, min(a, b)), (high, max(a, b))):
        assert 0 < bg < min(max(t, 0.01), 0.99) < fg < 1
    assert low[0] <= high[0]
    assert low[1] <= high[1]


@pytest.mark.parametrize("bad", [{"fg": 0.1}, {"bg": 0.2}, {"bg": 0.0}, {"fg": 1.0}])
def test_cuts_out_of_order_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected 0 < bg <= at <= fg < 1"):
        cuts(0.3, replace(Seeds(), **bad))


def scene() -> tuple[np.ndarray, ClassMaps]:
    """A photo with an edge at column 16; classes 3 and 5 with scores that are sure, unsure and absent."""
    photo = np.zeros((3, 32, 32), np.uint8)
    photo[:, :, :16] = 220
    scores = np.full((2, 32, 32), 0.01, np.float32)
    scores[0, :, :12], scores[0, :, 12:20] = 0.9, 0.15
    scores[1, :4, 24:] = 0.5
    return photo, ClassMaps("a", np.array([3, 5]), scores, (32, 32))


def test_without_a_crf_it_is_two_plain_cuts() -> None:
    photo, maps = scene()
    found = seeds.seeds(photo, maps, 0.3, 0.05, True, PLAIN)
    wanted = np.zeros((32, 32), np.uint8)
    wanted[:, :12], wanted[:, 12:20], wanted[:4, 24:] = 3, IGNORE, 5
    assert np.array_equal(found, wanted)


def test_a_score_on_a_cut_belongs_to_the_class() -> None:
    photo, maps = scene()
    found = seeds.seeds(photo, maps, 0.5, 0.15, True, PLAIN)
    assert (found[:4, 24:] == 5).all()
    assert (found[8:, 12:20] == IGNORE).all()


def test_both_cuts_are_drawn_to_the_edge() -> None:
    photo, maps = scene()
    found = seeds.seeds(photo, maps, 0.3, 0.05, True, SHARP)
    assert (found[8:, :16] == 3).all()  # unsure until column 20, but the object ends at 16
    assert (found[8:, 17:] == BACKGROUND).all()


def test_the_crf_is_irns_labels_with_gt_prob(trained: Tiny) -> None:
    tagged, cfg = trained.prepared.inputs.tagged, Seeds(crf=trained.prepared.cfg.crf, gt_prob=0.6)
    for maps in list(trained.fitted.maps)[:4]:
        image, scores, n = tagged.source.read(maps.id), enlarge(maps.scores, maps.size), len(maps.classes) + 1
        drawn = []
        for cut in (0.6, 0.3):
            padded = np.concatenate([np.full((1, *maps.size), np.nextafter(np.float32(cut), 0), np.float32), scores])
            same = padded.argmax(0) == np.arange(n)[:, None, None]
            shares = np.where(same, 0.6, 0.4 / (n - 1)).astype(np.float32)
            drawn.append(np.array([0, *maps.classes])[solve(image, shares, cfg.crf).argmax(0)])
        wanted = np.where(drawn[0] > 0, drawn[0], np.where(drawn[1] > 0, IGNORE, 0))
        assert np.array_equal(seeds.seeds(image, maps, 0.6, 0.3, True, cfg), wanted)


def test_without_background_only_sure_pixels_are_labelled() -> None:
    photo, maps = scene()
    found = seeds.seeds(photo, maps, 0.3, 0.05, False, PLAIN)
    wanted = np.full((32, 32), IGNORE, np.uint8)
    wanted[:, :12], wanted[:4, 24:] = 3, 5
    assert np.array_equal(found, wanted)
    one = ClassMaps("a", np.array([3]), maps.scores[:1], (32, 32))
    assert set(np.unique(seeds.seeds(photo, one, 0.3, 0.05, False, SHARP))) == {3, IGNORE}


def made(trained: Tiny, folder: Path, workers: int = 2, cfg: Seeds = SHARP) -> LabelSet:
    run = Run(folder, workers=workers)
    return seeds.confident(run, trained.prepared.inputs.tagged, trained.fitted.maps, trained.fitted.point, cfg)


def test_of_a_set_only_tags_background_and_255(trained: Tiny, tmp_path: Path) -> None:
    tagged, found = trained.prepared.inputs.tagged, made(trained, tmp_path)
    assert (found.meta["fg"], found.meta["bg"]) == cuts(trained.fitted.point.read()["threshold"], SHARP)
    values = set()
    for labels in found:
        own = set(np.unique(labels.pixels).tolist())
        assert own <= {0, IGNORE, *(np.flatnonzero(tagged.tags_of(labels.id)) + 1).tolist()}
        assert labels.pixels.shape == tagged.source.size(labels.id)
        values |= own
    assert {0, IGNORE} < values


def test_any_number_of_workers_gives_the_same_bytes(trained: Tiny, tmp_path: Path) -> None:
    one, four = (made(trained, tmp_path / str(n), n) for n in (1, 4))
    assert one.record["outputs"] == four.record["outputs"]


@pytest.mark.parametrize("change", [{"fg": 0.5}, {"bg": 0.01}, {"gt_prob": 0.95}, {"crf": Crf(iterations=0)}])
def test_each_part_matters(trained: Tiny, tmp_path: Path, change: dict[str, object]) -> None:
    plain, other = made(trained, tmp_path), made(trained, tmp_path, cfg=replace(SHARP, **change))  # type: ignore[arg-type]
    assert any((a.pixels != b.pixels).any() for a, b in zip(plain, other, strict=True))


@pytest.mark.parametrize(("has_background", "value"), [(True, BACKGROUND), (False, IGNORE)])
def test_a_negative_is_all_background(trained: Tiny, tmp_path: Path, has_background: bool, value: int) -> None:
    from tagseg.localize import cam

    tagged = trained.prepared.inputs.tagged.limit(2)
    none = replace(tagged, tags=np.zeros_like(tagged.tags), has_background=has_background)
    run = Run(tmp_path)
    maps = cam.maps(run, none, trained.fitted.classifier, trained.prepared.cfg.cam)
    for found in seeds.confident(run, none, maps, trained.fitted.point, SHARP):
        assert (found.pixels == value).all()
