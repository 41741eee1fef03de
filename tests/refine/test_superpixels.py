"""Superpixels are made once for a set of images; smoothed maps are flat inside them and sharp at their borders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import coarse_maps
from tagseg.ops import superpixels as ops
from tagseg.ops.geometry import enlarge
from tagseg.refine.superpixels import Smooth, Superpixels, flatten, segment, segments, smoothed
from tagseg.refine.threshold import from_maps
from tagseg.store import Run
from tagseg.types import ClassMaps, DataError

FINE = Superpixels(regions=60, min_size=400)
PLAIN = Smooth(keep_peaks=False)


def halves() -> tuple[ClassMaps, np.ndarray]:
    """A map on an 8x8 grid of a 32x32 image, three quarters of its left half set, and that half as superpixel 0."""
    scores = np.zeros((2, 8, 8), np.float32)
    scores[0, :, :3] = 0.8
    scores[1, 0, 7] = 0.5
    ids = np.zeros((32, 32), np.int32)
    ids[:, 16:] = 1
    return ClassMaps("a", np.array([2, 4]), scores, (32, 32)), ids


# -------------------------------------------------------------------------------------------------------- cutting


@pytest.mark.parametrize("kind", ["felzenszwalb", "slic", "grid"])
def test_every_image_gets_its_own_superpixels(tmp_path: Path, kind: str) -> None:
    tagged, cfg = coarse_maps.tagged_set(), replace(FINE, kind=kind)  # type: ignore[arg-type]
    found = segments(Run(tmp_path), tagged, cfg)
    assert found.ids == list(tagged.ids)
    assert found.meta == {"kind": kind}
    for sample in tagged.ids:
        ids = found.get(sample)
        assert ids.dtype == np.int32
        assert ids.shape == tagged.source.size(sample)
        assert np.array_equal(np.unique(ids), np.arange(ids.max() + 1))
        assert np.array_equal(ids, segment(tagged.source.read(sample), cfg))


def test_other_tags_find_the_same_superpixels_in_the_cache(tmp_path: Path) -> None:
    tagged, run = coarse_maps.tagged_set(), Run(tmp_path)
    first = segments(run, tagged, FINE)
    again = segments(run, replace(tagged, tags=~tagged.tags, classes=tuple("abcdefgh"[: len(tagged.classes)])), FINE)
    assert [step.state for step in run.steps] == ["ran", "done"]
    assert again == first
    others = [segments(run, tagged, replace(FINE, kind="grid")), segments(run, tagged.limit(2), FINE),
              segments(run, coarse_maps.tagged_set(side=48), FINE)]
    assert len({first.key, *(other.key for other in others)}) == 4


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    tagged, outputs = coarse_maps.tagged_set(), []
    for workers in (1, 4):
        run = Run(tmp_path / str(workers), workers=workers)
        cut = segments(run, tagged, FINE)
        flat = smoothed(run, tagged, coarse_maps.made(run, tagged), cut, Smooth())
        outputs.append((cut.record["outputs"], flat.record["outputs"]))
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("kind", ["slic", "grid"])
def test_a_larger_copy_gives_about_as_many_regions(kind: str) -> None:
    blobs = np.random.default_rng(1).random((3, 12, 14), np.float32)
    cfg = Superpixels(kind=kind)  # type: ignore[arg-type]
    photos = (np.round(255 * enlarge(blobs, size)).astype(np.uint8) for size in ((80, 100), (240, 300)))
    one, nine = (int(segment(photo, cfg).max()) + 1 for photo in photos)
    assert 150 < one < 300
    assert 0.7 < nine / one < 1.4


def test_the_least_size_of_a_region_grows_with_the_image() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (3, 60, 150)).astype(np.uint8)  # a tenth of 300 x 300
    cfg = Superpixels(scale=1.0, min_size=200)
    areas = np.bincount(segment(noise, cfg).ravel())
    assert 20 <= areas.min() < 40
    assert np.bincount(segment(noise.repeat(2, 1).repeat(2, 2), cfg).ravel()).min() >= 80


# ------------------------------------------------------------------------------------------------------ smoothing


def test_smoothed_by_hand() -> None:
    maps, ids = halves()
    found = flatten(maps, ids, PLAIN)
    full = enlarge(maps.scores, (32, 32))
    for k in (0, 1):
        for s in (0, 1):
            assert found.scores[k][ids == s] == pytest.approx(full[k][ids == s].mean(dtype=np.float64), abs=1e-6)
    assert found.classes.tolist() == [2, 4]
    assert found.size == found.scores.shape[1:] == (32, 32)


def test_borders_of_superpixels_are_sharp_in_the_labels() -> None:
    maps, ids = halves()
    labels = from_maps(flatten(maps, ids, Smooth()), 0.3, True).pixels
    assert np.array_equal(labels == 2, ids == 0)


def test_peaks_are_kept_on_request() -> None:
    maps, ids = halves()
    full = enlarge(maps.scores, maps.size)
    kept, plain = flatten(maps, ids, Smooth()).scores, flatten(maps, ids, PLAIN).scores
    assert kept.max(axis=(1, 2)) == pytest.approx(full.max(axis=(1, 2)), abs=1e-6)
    assert plain.max(axis=(1, 2)).tolist() < full.max(axis=(1, 2)).tolist()
    assert kept[0] / kept[0].max() == pytest.approx(plain[0] / plain[0].max(), abs=1e-6)


def test_strength_mixes_the_map_and_its_means() -> None:
    maps, ids = halves()
    full = enlarge(maps.scores, maps.size)
    none, half, whole = (flatten(maps, ids, replace(PLAIN, strength=s)).scores for s in (0.0, 0.5, 1.0))
    assert np.array_equal(none, full)
    assert half == pytest.approx((full + ops.smooth(full, ids)) / 2, abs=1e-6)
    assert whole == pytest.approx(ops.smooth(full, ids), abs=1e-6)


def test_no_classes_and_an_empty_map() -> None:
    maps, ids = halves()
    nothing = ClassMaps("a", np.zeros(0, np.int64), np.zeros((0, 8, 8), np.float32), (32, 32))
    assert flatten(nothing, ids, Smooth()).scores.shape == (0, 32, 32)
    assert not flatten(replace(maps, scores=np.zeros_like(maps.scores)), ids, Smooth()).scores.any()


def test_superpixels_of_another_size_are_an_error() -> None:
    maps, ids = halves()
    with pytest.raises(DataError, match=r"'a': found \(30, 32\) .* expected the image's \(32, 32\)"):
        flatten(maps, ids[:30], Smooth())


def test_the_stage_smooths_each_image_by_its_own_superpixels(tmp_path: Path) -> None:
    tagged, run = coarse_maps.tagged_set(), Run(tmp_path)
    maps, cut = coarse_maps.made(run, tagged), segments(run, tagged, FINE)
    found = smoothed(run, tagged, maps, cut, Smooth())
    assert found.ids == list(tagged.ids)
    assert any(cut.get(i).max() > 3 for i in tagged.ids)
    for one in found:
        expected = flatten(maps.get(one.id), cut.get(one.id), Smooth())
        assert one.scores == pytest.approx(expected.scores, abs=5e-4)  # float16 on disk
        for s in range(int(cut.get(one.id).max()) + 1):
            assert (np.ptp(one.scores[:, cut.get(one.id) == s], axis=1) == 0).all()
