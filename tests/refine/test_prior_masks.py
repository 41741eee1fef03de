"""Masks from a foreground and class maps: the partition by hand, what the CRF may label, candidates and picks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coarse_maps
from tagseg.artifacts import LabelSet, MapSet, write_maps
from tagseg.data.index import TaggedSet
from tagseg.data.picks import Picks, fingerprint, read_picks, write_picks
from tagseg.refine import crf, prior_masks, superpixels
from tagseg.refine.crf import Crf
from tagseg.refine.prior_masks import CANDIDATES, PickFrom, PriorMasks, decided, fused, halves, named, unlike, within
from tagseg.store import Run, Work, stage
from tagseg.types import ClassMaps, DataError, UsageError

SHORT = PriorMasks(crf=Crf(iterations=2))
STILL = PriorMasks(crf=Crf(iterations=2, compat_gaussian=0.0, compat_bilateral=0.0))


def maps(*values: float, classes: tuple[int, ...] = ()) -> ClassMaps:
    """Constant maps of an image of 2x3 pixels."""
    ids = classes or tuple(range(1, len(values) + 1))
    scores = np.stack([np.full((2, 3), v, np.float32) for v in values])
    return ClassMaps("a", np.array(ids), scores, (2, 3))


def test_priors_s7_06_the_partition_by_hand() -> None:
    found = fused(np.full((2, 3), 0.8, np.float32), maps(0.6, 0.2), PriorMasks(widen="none"))
    np.testing.assert_allclose(found[:, 0, 0], [0.2, 0.59950, 0.20050], atol=5e-6)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-6)
    for value in (0.7, 0.0):
        alone = fused(np.full((2, 3), 0.8, np.float32), maps(value), PriorMasks())
        assert np.array_equal(alone, halves(np.full((2, 3), 0.8, np.float32), PriorMasks()))
    nothing = fused(np.full((2, 3), 0.6, np.float32), maps(0.0, 0.0, 0.0), PriorMasks(widen="none"))
    np.testing.assert_allclose(nothing[1:], 0.2, atol=1e-6)


def test_a_foreground_that_several_tags_share_is_widened() -> None:
    """With .6 all four tags together are likelier than the background, and each alone is not."""
    ground, even = np.full((2, 3), 0.6, np.float32), maps(0.5, 0.5, 0.5, 0.5)
    wide = fused(ground, even, PriorMasks())
    np.testing.assert_allclose(wide[0], 1 - 0.6**0.5, atol=1e-6)
    np.testing.assert_allclose(wide[1:], 0.6**0.5 / 4, atol=1e-6)
    np.testing.assert_allclose(fused(ground, even, PriorMasks(widen="none"))[0], 0.4, atol=1e-6)
    one = maps(0.5)
    assert np.array_equal(fused(ground, one, PriorMasks()), fused(ground, one, PriorMasks(widen="none")))


def test_candidates_see_more_or_less_foreground() -> None:
    ground = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    plain, wider, tighter = (halves(ground, named(PriorMasks(), n))[1] for n in ("plain", "wider", "tighter"))
    assert (wider >= plain).all()
    assert (plain >= tighter).all()
    with pytest.raises(UsageError, match="expected one of plain, wider"):
        named(PriorMasks(), "broad")


def image(side: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, side, side), dtype=np.uint8)


def shares(labels: int, side: int = 24, seed: int = 1) -> np.ndarray:
    raw = np.random.default_rng(seed).random((labels, side, side)).astype(np.float32) + 0.05
    return raw / raw.sum(0)


def test_priors_s7_05_without_weights_the_crf_returns_the_unary() -> None:
    found, present = shares(3), np.array([2, 5])
    done = decided("a", image(), found, present, None, STILL)
    assert np.array_equal(done.pixels, np.array([0, 2, 5])[found.argmax(0)])
    raw = decided("a", image(), found, present, None, named(SHORT, "raw"))
    assert np.array_equal(raw.pixels, done.pixels)
    assert not np.array_equal(decided("a", image(), found, present, None, SHORT).pixels, done.pixels)


def test_the_second_best_pays_for_every_pixel_that_it_shares_with_the_best() -> None:
    found = shares(3)
    best = found.argmax(0)
    other = unlike(found, best)
    np.testing.assert_allclose(other.sum(0), 1, atol=1e-5)
    mine, theirs = (np.take_along_axis(s, best[None], 0)[0] for s in (found, other))
    odds = np.log(mine / (1 - mine)) - np.log(theirs / (1 - theirs))
    np.testing.assert_allclose(odds, prior_masks.APART, atol=1e-3)
    plain, second = (decided("a", image(), found, np.array([1, 2]), None, named(SHORT, n)).pixels
                     for n in ("plain", "second"))
    assert (plain != second).mean() > 0.02


def test_regions_pull_their_pixels_together() -> None:
    found, ids = shares(2), np.arange(24 * 24, dtype=np.int32).reshape(24, 24) // 96
    same = within(found, ids, 1.0)
    for region in range(ids.max() + 1):
        assert np.ptp(same[:, ids == region], axis=1).max() < 1e-5
    np.testing.assert_allclose(within(found, ids, 0.0), found, atol=1e-5)
    np.testing.assert_allclose(within(found, ids, 0.5).sum(0), 1, atol=1e-5)


# ---- the stages ----

@stage(MapSet, version=1)
def ground_maps(work: Work, tagged: TaggedSet, cfg: PickFrom) -> None:
    """A foreground that every image has, tags or none."""

    def one(sample: str) -> ClassMaps:
        h, w = tagged.source.size(sample)
        rows, columns = np.mgrid[:h, :w]
        found = np.exp(-((rows - h / 2) ** 2 + (columns - w / 2) ** 2) / (2 * (h / 4) ** 2)).astype(np.float32)
        return ClassMaps(sample, np.array([1]), found[None], (h, w))

    write_maps(work, tagged.ids, lambda ids: map(one, ids), {"classes": ["object"]})


@pytest.fixture
def made(tmp_path: Path) -> tuple[Run, TaggedSet, MapSet, MapSet]:
    run, tagged = Run(tmp_path), coarse_maps.tagged_set(10)
    return run, tagged, ground_maps(run, tagged, PickFrom()), coarse_maps.made(run, tagged)


def pixels(labels: LabelSet) -> dict[str, np.ndarray]:
    return {one.id: one.pixels for one in labels}


def test_priors_s7_05_labels_are_tags_or_background(made: tuple[Run, TaggedSet, MapSet, MapSet]) -> None:
    run, tagged, ground, found = made
    masks = prior_masks.multi(run, tagged, ground, found, (), SHORT)
    for sample, labels in pixels(masks).items():
        assert labels.shape == tagged.source.size(sample)
        present = {0, *(np.flatnonzero(tagged.tags_of(sample)) + 1).tolist()}
        assert set(np.unique(labels).tolist()) <= present  # one label a pixel: regions are disjoint and cover all
    lost = {name: sum(bool(tagged.tags_of(i)[k]) and not (labels == k + 1).any() for i, labels in pixels(masks).items())
            for k, name in enumerate(tagged.classes)}  # fmt: skip
    said = [f"tag {name!r}: no pixel in {count} of its images" for name, count in lost.items() if count]
    assert masks.record["events"] == said


def test_images_without_tags_are_background(made: tuple[Run, TaggedSet, MapSet, MapSet]) -> None:
    run, tagged, ground, _ = made
    bare = tagged.without_tags()
    assert ground.get(tagged.ids[0]).scores.max() > 0.9
    for labels in pixels(prior_masks.binary(run, bare, ground, (), SHORT)).values():
        assert not labels.any()


def test_priors_s7_07_one_tag_gives_the_same_mask_file(made: tuple[Run, TaggedSet, MapSet, MapSet]) -> None:
    run, tagged, ground, found = made
    sets = (prior_masks.multi(run, tagged, ground, found, (), SHORT),
            prior_masks.binary(run, tagged, ground, (), SHORT))  # fmt: skip
    multi, binary = map(pixels, sets)
    single = [i for i in tagged.ids if tagged.tags_of(i).sum() == 1]
    several = [i for i in tagged.ids if tagged.tags_of(i).sum() > 1]
    assert single
    assert several
    assert all(np.array_equal(multi[i], binary[i]) for i in single)
    assert all(np.array_equal(*(m.get(i).confidence for m in sets)) for i in single)
    assert any(not np.array_equal(multi[i], binary[i]) for i in several)
    assert all(len(np.unique(binary[i])) <= 2 for i in several)


def test_priors_s7_09_two_runs_give_the_same_bytes(made: tuple[Run, TaggedSet, MapSet, MapSet],
                                                  tmp_path: Path) -> None:
    run, tagged, ground, found = made
    first = prior_masks.multi(run, tagged, ground, found, (), SHORT)
    again = prior_masks.multi(Run(tmp_path / "other", workers=2), tagged, ground, found, (), SHORT)
    assert first.record["outputs"] == again.record["outputs"]


def test_a_region_term_needs_superpixels_and_changes_masks(made: tuple[Run, TaggedSet, MapSet, MapSet]) -> None:
    run, tagged, ground, found = made
    with pytest.raises(UsageError, match="expected one if above 0"):
        prior_masks.multi(run, tagged, ground, found, (), replace(SHORT, region=0.5))
    segments = superpixels.segments(run, tagged, superpixels.Superpixels(kind="grid", regions=30))
    with_them = prior_masks.multi(run, tagged, ground, found, (segments,), replace(SHORT, region=0.8))
    plain = prior_masks.multi(run, tagged, ground, found, (), SHORT)
    assert with_them.record["outputs"] != plain.record["outputs"]


def test_maps_of_other_tags_are_refused(made: tuple[Run, TaggedSet, MapSet, MapSet]) -> None:
    run, tagged, ground, found = made
    other = replace(tagged, tags=~tagged.tags)
    with pytest.raises(DataError, match="make them from the same tags file"):
        prior_masks.multi(run, other, ground, found, (), SHORT)


def test_picks_replace_the_masks_of_their_images_and_no_others(made: tuple[Run, TaggedSet, MapSet, MapSet]) -> None:
    run, tagged, ground, found = made
    names = ("plain", "wider")
    sets = tuple(prior_masks.multi(run, tagged, ground, found, (), named(SHORT, n)) for n in names)
    plain, wider = map(pixels, sets)
    changed = next(i for i in tagged.ids if not np.array_equal(plain[i], wider[i]))
    done = pixels(prior_masks.picked(run, tagged, sets, Picks({changed: "wider"}), PickFrom(names)))
    assert np.array_equal(done[changed], wider[changed])
    assert all(np.array_equal(done[i], plain[i]) for i in tagged.ids if i != changed)


def test_masks_that_nobody_saw_are_told(made: tuple[Run, TaggedSet, MapSet, MapSet]) -> None:
    run, tagged, ground, found = made
    names = ("plain", "wider")
    sets = tuple(prior_masks.multi(run, tagged, ground, found, (), named(SHORT, n)) for n in names)
    first, second = tagged.ids[:2]
    seen = {first: fingerprint(sets[1].get(first).pixels), second: "of another mask"}
    picks = Picks({first: "wider", second: "wider"}, seen)
    done = prior_masks.picked(run, tagged, sets, picks, PickFrom(names))
    (told,) = prior_masks.compared(run, done, picks.looked, prior_masks.Compare()).record["events"]
    again = replace(picks, seen={first: seen[first]})
    assert again.key == picks.key  # the same masks, made once
    assert not prior_masks.compared(run, done, again.looked, prior_masks.Compare()).record["events"]
    assert told.startswith(f"1 picked masks are not those that the person saw, for example of {second!r}")
    assert picks.among([first]).seen == {first: seen[first]}
    assert fingerprint(np.zeros((2, 3), np.uint8)) != fingerprint(np.zeros((3, 2), np.uint8))


@pytest.mark.parametrize(("change", "words"), [
    ({"region": 1.5}, "prior.region: found 1.5, expected a share"), ({"delta": 0.0}, "prior.delta: found 0.0"),
    ({"crf": crf.Crf(unsure_below=0.5)}, "prior.crf.unsure_below: found 0.5, expected 0"),
])  # fmt: skip
def test_settings_out_of_range(change: dict[str, Any], words: str) -> None:
    prior_masks.check(SHORT)
    with pytest.raises(UsageError, match=words):
        prior_masks.check(replace(SHORT, **change))


def test_candidates_by_other_colour_kernels(made: tuple[Run, TaggedSet, MapSet, MapSet]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 20, 24), np.uint8)
    found = prior_masks.halves(rng.random((20, 24), np.float32), SHORT)
    present = np.array([3])
    for name, factor in (("loose", 2.0), ("strict", 0.5), ("plain", 1.0)):
        kernels = replace(SHORT.crf, srgb=SHORT.crf.srgb * factor)
        expected = crf.solve(image, found, kernels).argmax(0) * 3
        labels = prior_masks.decided("a", image, found, present, None, named(SHORT, name))
        assert np.array_equal(labels.pixels, expected)


def test_files_that_people_write_have_two_columns_and_broken_ones_say_so(tmp_path: Path) -> None:
    path = tmp_path / "picks.csv"
    path.write_text("file,candidate\na,raw\n")
    assert read_picks(path, CANDIDATES).chosen == {"a": "raw"}
    path.write_text("file,candidate,mask\na,raw\n")
    with pytest.raises(DataError, match="2 fields, expected 3"):
        read_picks(path, CANDIDATES)
    path.write_text('file,candidate\n"a\rb",raw\nc\rd,raw\n')
    with pytest.raises(DataError, match="cannot be read as CSV"):
        read_picks(path, CANDIDATES)
    write_picks(path, {"c\rd": "raw"}, {"c\rd": "0123"})
    found = read_picks(path, CANDIDATES)
    assert (found.chosen, found.seen) == ({"c\rd": "raw"}, {"c\rd": "0123"})


def test_a_file_of_picks(tmp_path: Path) -> None:
    path = tmp_path / "picks.csv"
    write_picks(path, {"b/ä,1": "wider", "a": "raw"})
    assert path.read_text().splitlines()[:2] == ["file,candidate,mask", "a,raw,"]
    found = read_picks(path, CANDIDATES)
    assert dict(found.chosen) == {"a": "raw", "b/ä,1": "wider"}
    assert found.key == Picks({"b/ä,1": "wider", "a": "raw"}).key
    assert found.key != Picks({"a": "raw"}).key
    assert len(found.among(["a", "z"])) == 1
    for text, said in (("x,y\n", ":1: found x,y"), ("", "an empty file"),
                       ("file,candidate\na,broad\n", ":2: candidate 'broad'"),
                       ("file,candidate\na,raw\na,raw\n", ":3: 'a': listed already"),
                       ("file,candidate\na\n", ":2: 'a': 1 fields")):
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            read_picks(path, CANDIDATES)
