"""Seeds on superpixels and votes of masks: flat inside each superpixel, and by plain means and counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import coarse_maps
import fixed_regions
from tagseg.ops.geometry import enlarge
from tagseg.refine.region_seeds import RegionSeeds, Vote, from_maps, voted
from tagseg.refine.superpixels import Superpixels, segments
from tagseg.store import Run
from tagseg.types import UsageError

GRID = Superpixels(kind="grid", regions=25)


def test_seeds_are_means_over_superpixels_between_two_cuts(tmp_path: Path) -> None:
    tagged, run = coarse_maps.tagged_set(), Run(tmp_path)
    maps, cut = coarse_maps.made(run, tagged), segments(run, tagged, GRID)
    cfg = RegionSeeds(fg=0.56, bg=0.5)
    kinds = set()
    for found in from_maps(run, tagged, maps, cut, cfg):
        ids, one = cut.get(found.id), maps.get(found.id)
        scores = enlarge(one.scores, one.size)
        for region in range(ids.max() + 1):
            inside = ids == region
            means = scores[:, inside].mean(1)
            expected = 0 if not len(means) or means.max() <= cfg.bg else 255
            if len(means) and means.max() >= cfg.fg:
                expected = int(one.classes[means.argmax()])
            assert np.all(found.pixels[inside] == expected)
            kinds.add(min(expected, 1) if expected != 255 else 255)
    assert kinds == {0, 1, 255}


def test_a_set_without_background_gets_no_background_seeds(tmp_path: Path) -> None:
    tagged, run = replace(coarse_maps.tagged_set(), has_background=False), Run(tmp_path)
    maps, cut = coarse_maps.made(run, tagged), segments(run, tagged, GRID)
    found = from_maps(run, tagged, maps, cut, RegionSeeds(fg=0.56, bg=0.5))
    assert not any((one.pixels == 0).any() for one in found)
    assert any((one.pixels == 255).any() for one in found)


@pytest.mark.parametrize("cfg", [RegionSeeds(0.3, 0.3), RegionSeeds(0.2, 0.4), RegionSeeds(1.2, 0.1)])
def test_cuts_in_the_wrong_order_are_refused(tmp_path: Path, cfg: RegionSeeds) -> None:
    tagged, run = coarse_maps.tagged_set(), Run(tmp_path)
    with pytest.raises(UsageError, match="expected 0 <= bg < fg <= 1"):
        from_maps(run, tagged, coarse_maps.made(run, tagged), segments(run, tagged, GRID), cfg)


def test_votes_are_flat_and_masks_that_respect_superpixels_stay(tmp_path: Path) -> None:
    tagged, run = coarse_maps.tagged_set(), Run(tmp_path)
    cut = segments(run, tagged, GRID)
    rng = np.random.default_rng(0)
    flat = {i: rng.choice([0, 1, 2, 255], 25).astype(np.uint8)[cut.get(i)] for i in tagged.ids}
    masks = fixed_regions.labels(run, tagged, fixed_regions.given("flat", flat))
    again = voted(run, tagged, masks, cut, Vote())
    assert all(np.array_equal(again.get(i).pixels, flat[i]) for i in tagged.ids)
    noisy = {i: rng.choice([0, 1, 2], flat[i].shape, p=[0.5, 0.3, 0.2]).astype(np.uint8) for i in tagged.ids}
    some = fixed_regions.labels(run, tagged, fixed_regions.given("noisy", noisy))
    open_ = [np.mean([(one.pixels == 255).mean() for one in voted(run, tagged, some, cut, Vote(share))])
             for share in (0.3, 0.5, 0.7, 1.0)]
    assert open_[0] == 0.0
    assert open_ == sorted(open_)
    assert open_[-1] == 1.0
    with pytest.raises(UsageError, match=r"vote\.share is 0"):
        voted(run, tagged, some, cut, Vote(0.0))
