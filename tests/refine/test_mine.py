"""Every region asked: what the network says of each, held to tags; and that the steps of a round can stand still."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import coarse_maps
import fixed_regions
from tagseg.artifacts import Weights, write_weights
from tagseg.nets.backbones import build
from tagseg.nets.region_net import SIDE, RegionNet
from tagseg.ops import regions
from tagseg.refine import mine
from tagseg.refine.mine import Ask, Mine
from tagseg.refine.region_seeds import Vote, voted
from tagseg.refine.superpixels import Superpixels, segment, segments
from tagseg.store import Run, Work, stage

GRID = Superpixels(kind="grid", regions=16)
ASK = Ask(size=40, device="cpu", precision="fp32")


@stage(Weights, version=1)
def untrained(work: Work, cfg: Ask) -> None:
    """A region network of 6 classes from random numbers; the batch of the config tells its form."""
    torch.manual_seed(0)
    form = "roi_mask" if cfg.batch == 1 else "mean_pool"
    model = RegionNet(build("small", stride=8), 7, form=form, width=16)  # type: ignore[arg-type]
    write_weights(work, model.state_dict(), {"backbone": "small", "stride": 8, "form": form, "width": 16,
                                             "classes": list("abcdef"), "has_background": True,
                                             "tag_shares": [0.5] * 6})


@pytest.mark.parametrize("batch", [8, 1])
def test_probabilities_are_those_of_the_plain_network(tmp_path: Path, batch: int) -> None:
    tagged, run = coarse_maps.tagged_set(), Run(tmp_path)
    weights, cut = untrained(run, replace(ASK, batch=batch)), segments(run, tagged, GRID)
    found = mine.probabilities(run, tagged.images(), weights, cut, ASK)
    model = mine.load(weights)
    for sample in tagged.ids:
        ids = cut.get(sample)
        pixels = torch.from_numpy(tagged.source.read(sample))[None].float() / 255
        x = torch.nn.functional.interpolate(pixels, (48, 48), mode="bilinear", antialias=True)  # 40 in multiples of 16
        parts = (regions.pooled(ids, 16, stride=8, offset=model.tap.offset, in_size=(48, 48), grid=(6, 6))
                 if model.form == "mean_pool" else regions.boxed(ids, 16, in_size=(48, 48), side=SIDE))
        with torch.no_grad():
            plain = model(model.preprocess(x), *(torch.from_numpy(p)[None] for p in parts))[0].softmax(1).numpy()
        assert found.get(sample).shape == (16, 7)
        np.testing.assert_allclose(found.get(sample), plain, atol=0.02)  # bytes are rounded once more on our way
        np.testing.assert_allclose(found.get(sample).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("tags", ["bayes", "allow"])
def test_labels_are_the_likeliest_of_the_tags(tmp_path: Path, tags: regions.Tags) -> None:
    tagged, run = coarse_maps.tagged_set(), Run(tmp_path)
    cut, rng = segments(run, tagged, GRID), np.random.default_rng(0)
    shares = {i: rng.dirichlet(np.full(7, 0.4), 16).astype(np.float32) for i in tagged.ids}
    likely = fixed_regions.regions(run, tagged, fixed_regions.given("likely", shares))
    labels = mine.labels(run, tagged, likely, cut, Mine(keep=0.7, tags=tags))
    strict = mine.labels(run, tagged, likely, cut, Mine(keep=0.99, tags=tags, keep_tag=False))
    for sample in tagged.ids:
        ids, present = cut.get(sample), tagged.tags_of(sample)
        usual = np.float32(tagged.tags.mean(0)).clip(1e-6) if tags == "bayes" else np.ones(6, np.float32)
        held = shares[sample] * np.concatenate([[1], present / usual]).astype(np.float32)
        held /= held.sum(1, keepdims=True)
        expected = np.where(held.max(1) >= 0.7, held.argmax(1), 255)
        pixels = labels.get(sample).pixels
        one_each = np.array([pixels[ids == r][0] for r in range(16)])
        assert np.array_equal(one_each[ids], pixels)
        changed = one_each != expected
        assert changed.sum() <= present.sum()  # a class that vanished got one back
        assert {int(c) + 1 for c in np.flatnonzero(present)} <= set(one_each.tolist())
        assert (strict.get(sample).pixels == 255).mean() >= (pixels == 255).mean()


def test_negatives_are_background_and_say_nothing_where_there_is_none(tmp_path: Path) -> None:
    tagged, run = coarse_maps.tagged_set(), Run(tmp_path)
    bare = replace(tagged, tags=np.zeros_like(tagged.tags))
    cut = segments(run, tagged, GRID)
    likely = fixed_regions.regions(run, tagged, fixed_regions.given("one", {
        i: np.eye(7, dtype=np.float32)[np.ones(16, int)] for i in tagged.ids}))
    assert all((one.pixels == 0).all() for one in mine.labels(run, bare, likely, cut, Mine()))
    without = replace(bare, has_background=False)
    assert all((one.pixels == 255).all() for one in mine.labels(run, without, likely, cut, Mine()))


def test_mcof_s7_09_true_regions_and_a_perfect_network_change_nothing(tmp_path: Path) -> None:
    """A round without saliency, objects made of whole superpixels: mined labels, masks and votes are the truth."""
    truth, run = coarse_maps.masked_set(), Run(tmp_path)
    tagged = truth.without_masks()
    cut = segments(run, tagged, GRID)
    own = {i: regions.votes(truth.mask(i), cut.get(i), 0.5) for i in truth.ids}
    for i in truth.ids:  # every tagged class has a region, as a fixed point needs
        for label in np.flatnonzero(tagged.tags_of(i)) + 1:
            own[i][-label] = label
    perfect = {i: np.eye(7, dtype=np.float32)[own[i]] for i in truth.ids}
    likely = fixed_regions.regions(run, tagged, fixed_regions.given("perfect", perfect))
    mined = mine.labels(run, tagged, likely, cut, Mine())
    assert all(np.array_equal(mined.get(i).pixels, own[i][cut.get(i)]) for i in truth.ids)
    again = voted(run, tagged, mined, cut, Vote())
    assert all(np.array_equal(again.get(i).pixels, mined.get(i).pixels) for i in truth.ids)


def test_mcof_s7_11_superpixel_ids_have_no_gaps_cover_all_and_come_out_the_same_again(tmp_path: Path) -> None:
    image = coarse_maps.tagged_set(1, 60).source.read("train/000000")
    for kind in ("felzenszwalb", "slic", "grid"):
        cfg = Superpixels(kind=kind, regions=20)  # type: ignore[arg-type]
        for photo in (image, image[:, ::2, ::2].copy()):  # a resized image is cut anew, its ids start at 0 again
            ids = segment(photo, cfg)
            assert ids.shape == photo.shape[1:]
            assert np.array_equal(np.unique(ids), np.arange(ids.max() + 1))
            assert np.array_equal(ids, segment(photo, cfg))
    tagged = coarse_maps.tagged_set()
    first, second = (segments(Run(tmp_path / name), tagged, GRID) for name in "ab")
    assert first.record["outputs"] == second.record["outputs"]
