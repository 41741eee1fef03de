"""Mined regions and saliency put together: every case of the table, and the stages on generated scenes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import coarse_maps
import fixed_regions
from tagseg.refine import bayes
from tagseg.refine.bayes import Merge, Posterior, above, best_class, merge
from tagseg.refine.superpixels import Superpixels, segments
from tagseg.store import Run
from tagseg.types import DataError

NONE = 255
ONE_TAG = np.array([[0.3, 0.0, 0.7], [0.9, 0.0, 0.1]], np.float32)  # regions 0 and 1: background, class 1, class 2
TWO_TAGS = np.array([[0.2, 0.5, 0.3], [0.8, 0.05, 0.15]], np.float32)


@pytest.mark.parametrize(("held", "label", "classes"), [(ONE_TAG, 2, (2, 2)), (TWO_TAGS, 1, (1, 2))])
@pytest.mark.parametrize("disputed", ["ignore", "object", "background"])
@pytest.mark.parametrize(("mined", "high"), [(m, h) for m in ("class", "background", "open") for h in (True, False)])
def test_mcof_s7_14_the_merge_table(
    held: np.ndarray, label: int, classes: tuple[int, int], disputed: str, mined: str, high: bool
) -> None:
    best = best_class(held, np.array([[0, 1]], np.int32))
    assert best.tolist() == [list(classes)]  # a single tag wherever it is; of two tags the region's likeliest
    value = {"class": label, "background": 0, "open": NONE}[mined]
    pixels = np.full((1, 2), value, np.uint8)
    found = merge(pixels, np.full((1, 2), high), best, disputed).tolist()[0]
    against = {"ignore": [NONE, NONE], "object": list(classes), "background": [0, 0]}[disputed]
    assert found == {
        ("class", True): [label, label],
        ("class", False): [NONE, NONE],
        ("background", True): against,
        ("background", False): [0, 0],
        ("open", True): list(classes),
        ("open", False): [0, 0],
    }[mined, high]


@given(st.integers(0, 999), st.sampled_from(["ignore", "object", "background"]))
def test_mcof_s7_05_merged_labels_are_background_tags_or_none(seed: int, disputed: str) -> None:
    rng = np.random.default_rng(seed)
    present = rng.random(4) < 0.5
    allowed = [0, NONE, *(np.flatnonzero(present) + 1)]
    held = rng.random((6, 5)).astype(np.float32) * np.concatenate([[True], present])
    mined = rng.choice(allowed, (5, 5)).astype(np.uint8)
    best = best_class(held, rng.integers(0, 6, (5, 5)).astype(np.int32))
    found = merge(mined, rng.random((5, 5)) < 0.5, best, disputed)
    assert set(np.unique(found)) <= set(allowed)


def test_where_no_class_is_possible_there_is_none() -> None:
    held = np.array([[1.0, 0.0], [0.0, 0.0]], np.float32)
    assert best_class(held, np.array([[0, 1]], np.int32)).tolist() == [[NONE, NONE]]


def test_probabilities_of_other_superpixels_are_refused() -> None:
    with pytest.raises(DataError, match="probabilities of 2 regions for superpixels up to 5"):
        best_class(ONE_TAG, np.array([[0, 5]], np.int32))


def test_a_posterior_at_the_cut_is_high_and_otsu_cuts_between_two_humps() -> None:
    share = np.array([[0.5, 0.49999, 0.9]], np.float32)
    assert above(share, Merge()).tolist() == [[True, False, True]]
    humps = np.concatenate([np.full(50, 0.62), np.full(50, 0.95)]).astype(np.float32)[None]
    assert above(humps, Merge()).all()
    assert above(humps, Merge(threshold="otsu")).sum() == 50


# ---- stages ----

def test_the_posterior_finds_an_objects_rest_and_the_merge_takes_it(tmp_path: Path) -> None:
    """Truth mined in one half of each object alone, saliency a blur: the other half comes back by its colour."""
    truth, run = coarse_maps.masked_set(), Run(tmp_path)
    tagged = truth.without_masks()
    half = fixed_regions.labels(run, tagged, fixed_regions.given("half", {
        i: np.where(np.arange(truth.mask(i).shape[1]) % 2, NONE, truth.mask(i)).astype(np.uint8) for i in truth.ids}))
    prior = fixed_regions.maps(run, tagged, fixed_regions.given("prior", {
        i: np.where(truth.mask(i) > 0, 0.6, 0.4).astype(np.float32)[None] for i in truth.ids}))
    found = bayes.posterior(run, tagged, half, prior, Posterior(bins=20, least=10))
    cut = segments(run, tagged, Superpixels(kind="grid", regions=64))
    likely = fixed_regions.regions(run, tagged, fixed_regions.given("likely", {
        i: np.full((64, len(tagged.classes) + 1), 0.1, np.float32) for i in truth.ids}))
    merged = bayes.merged(run, tagged, half, likely, cut, found, Merge())
    right = before = 0
    for sample in truth.ids:
        assert found.get(sample).size == truth.mask(sample).shape
        inside = truth.mask(sample) > 0
        right += int((inside & (merged.get(sample).pixels > 0) & (merged.get(sample).pixels != NONE)).sum())
        before += int((inside & (half.get(sample).pixels != NONE)).sum())
        assert np.all(np.isin(merged.get(sample).pixels, [0, NONE, *(np.flatnonzero(tagged.tags_of(sample)) + 1)]))
    assert right > 1.4 * before


def test_negatives_and_sets_without_background_keep_what_was_mined(tmp_path: Path) -> None:
    truth, run = coarse_maps.masked_set(), Run(tmp_path)
    tagged = truth.without_masks()
    bare = replace(tagged, tags=np.zeros_like(tagged.tags))
    mined = fixed_regions.labels(run, bare, fixed_regions.given("mined", {
        i: np.zeros(truth.mask(i).shape, np.uint8) for i in truth.ids}))
    prior = fixed_regions.maps(run, bare, fixed_regions.given("prior", {
        i: np.ones((1, *truth.mask(i).shape), np.float32) for i in truth.ids}))
    found = bayes.posterior(run, bare, mined, prior, Posterior())
    assert all(len(found.get(i).classes) == 0 for i in truth.ids)
    cut = segments(run, bare, Superpixels(kind="grid", regions=64))
    likely = fixed_regions.regions(run, bare, fixed_regions.given("likely", {
        i: np.ones((64, len(tagged.classes) + 1), np.float32) for i in truth.ids}))
    for images in (bare, replace(bare, has_background=False)):
        merged = bayes.merged(run, images, mined, likely, cut, found, Merge())
        assert all((merged.get(i).pixels == 0).all() for i in truth.ids)


@pytest.mark.parametrize("change", [{"prior": "raw"}, {"colour": "rgb"}, {"bins": 7}, {"smooth": 0.0}, {"floor": 0.05},
                                    {"least": 10**6}])
def test_every_setting_of_the_posterior_changes_it(tmp_path: Path, change: dict[str, object]) -> None:
    truth, run = coarse_maps.masked_set(), Run(tmp_path)
    tagged = truth.without_masks()
    mined = fixed_regions.labels(run, tagged, fixed_regions.given("mined", {i: truth.mask(i) for i in truth.ids}))
    prior = fixed_regions.maps(run, tagged, fixed_regions.given("prior", {
        i: np.where(truth.mask(i) > 0, 0.4, 0.1).astype(np.float32)[None] for i in truth.ids}))
    plain, other = (bayes.posterior(run, tagged, mined, prior, replace(Posterior(least=5), **c))  # type: ignore[arg-type]
                    for c in ({}, change))
    assert any(not np.array_equal(plain.get(i).scores, other.get(i).scores) for i in truth.ids)
