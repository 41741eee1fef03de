"""The last step over maps from elsewhere: unsure pixels, the same decisions in the form for graphics cards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tagseg.data.foreign_folders import OpenedMaps, open_maps
from tagseg.refine.crf import Crf, of_one_size, solve
from tagseg.runs import foreign_stages
from tagseg.runs.foreign_stages import EVEN, Cut, Decide, labels, on_card, point, probabilities, unary
from tagseg.store import Run
from tagseg.types import IGNORE
from tiny import photos

MILD = Crf(compat_gaussian=1.0, sxy_bilateral=6.0, srgb=20.0, compat_bilateral=2.0, iterations=3)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenedMaps:
    """Five photos of 48 pixels with random soft maps of one to five classes; one image has the background alone."""
    root, rng = tmp_path_factory.mktemp("stages"), np.random.default_rng(0)
    photos(root / "photos", count=5)
    (root / "maps").mkdir()
    (root / "maps" / "classes.txt").write_bytes((root / "photos" / "classes.txt").read_bytes())
    for number in range(5):
        maps = np.zeros((7, 48, 48), np.float32)
        maps[: number + 1] = rng.dirichlet(np.ones(number + 1), (6, 6)).transpose(2, 0, 1).repeat(8, 1).repeat(8, 2)
        np.save(root / "maps" / f"{number:03d}.npy", maps)
    return open_maps(root / "maps", root / "photos" / "images")


def decided(opened: OpenedMaps, place: Path, crf: Crf | None) -> Any:
    run = Run(place)
    return labels(run, opened.images, opened.maps, point(run, opened.maps, Cut(EVEN)), Decide(crf))


def test_unsure_pixels_become_255_and_no_others(opened: OpenedMaps, tmp_path: Path) -> None:
    plain = decided(opened, tmp_path, MILD)
    cut = decided(opened, tmp_path, replace(MILD, unsure_below=0.8))
    count = 0
    for before, after in zip(plain, cut, strict=True):
        unsure = after.pixels == IGNORE
        count += int(unsure.sum())
        assert (before.pixels != IGNORE).all()
        assert np.array_equal(before.pixels[~unsure], after.pixels[~unsure])
        assert before.confidence is not None
        assert before.confidence[unsure].max(initial=0) <= 204  # 0.8 of 255
        assert before.confidence[~unsure].min() >= 204
    assert 100 < count < 5 * 48 * 48 / 2


def test_batches_for_a_card_give_the_same_probabilities(opened: OpenedMaps) -> None:
    """On the processor here, where torch stands for the card."""
    given = {id: unary(opened.maps.get(id), 0.5) for id in opened.maps.ids}
    assert len({len(one.values) for one in given.values()}) > 3
    for id, found in zip(given, on_card(opened.images, given, MILD), strict=True):
        assert np.array_equal(found.values, given[id].values)
        alone = given[id].shares
        if len(found.values) > 1:
            alone = solve(opened.images.source.read(id), alone, MILD)
        np.testing.assert_allclose(found.shares, alone, atol=2e-4)
    assert len(given["000"].values) == 1  # nothing to decide there


def test_another_device_than_the_processor_takes_the_batched_form(opened: OpenedMaps, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """"cpu:0" is torch's name of the processor: what any device but "cpu" gets."""
    there, windows = replace(MILD, device="cpu:0"), []
    real = foreign_stages.on_card
    monkeypatch.setattr(foreign_stages, "AHEAD", 2)
    monkeypatch.setattr(foreign_stages, "on_card",
                        lambda tagged, given, cfg: (windows.append(len(given)), real(tagged, given, cfg))[1])
    for one, other in zip(decided(opened, tmp_path, MILD), decided(opened, tmp_path, there), strict=True):
        assert one.id == other.id
        assert (one.pixels == other.pixels).mean() > 0.999
    assert windows == [2, 2, 1]
    run = Run(tmp_path)
    cut = point(run, opened.maps, Cut(EVEN))
    for one, other in zip(*(probabilities(run, opened.images, opened.maps, cut, Decide(crf)) for crf in (MILD, there)),
                          strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-3)  # float16 on disk
    assert len(windows) == 6


def test_batches_hold_one_size_and_at_least_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tagseg.refine.crf.TOGETHER", 20)
    sizes = {"a": (2, 5), "b": (5, 2), "c": (2, 5), "d": (2, 5), "e": (9, 9)}
    assert list(of_one_size(sizes)) == [["a", "c"], ["d"], ["b"], ["e"]]
