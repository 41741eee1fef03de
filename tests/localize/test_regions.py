"""RegionNet's training: which regions are learned from, the loss, and that it learns what the labels say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import coarse_maps
import fixed_regions
from tagseg.data.index import TaggedSet
from tagseg.data.loader import NOWHERE, Augment, draw, lined_up
from tagseg.data.weights import Pretrained
from tagseg.localize import regions
from tagseg.localize.regions import RegionBatches, RegionLoss, Regions, labelled, renamed, sampled, seen, tag_shares
from tagseg.nets.backbones import build
from tagseg.nets.region_net import RegionNet
from tagseg.ops import regions as ops
from tagseg.refine import mine
from tagseg.refine.superpixels import Superpixels, segments
from tagseg.store import Run
from tagseg.training.schedule import Schedule

GRID = Superpixels(kind="grid", regions=25)
RATES = Schedule(0.0, 320, 320, batch=8, optimiser="adamw", lr=3e-3, head_lr=3e-3, weight_decay=1e-2)
CFG = Regions("small", 8, width=32, augment=Augment(size=48, scale=(0.9, 1.5), colour=0.0), schedule=RATES, seed=0,
              device="cpu", precision="fp32")
START = Pretrained("small", "random start", "random", {})


def test_crops_of_region_ids_are_cut_as_the_image_is_and_know_what_lies_outside() -> None:
    ids = np.arange(20 * 30, dtype=np.int32).reshape(20, 30)
    image = np.stack([ids % 256, ids // 256, ids * 0]).astype(np.uint8)
    seen_outside = False
    for seed in range(8):
        photo, cut = draw(image, ids, (16, 16), Augment(size=16, scale=(0.5, 2.0), colour=0.0),
                          np.random.default_rng(seed))
        assert cut is not None
        assert photo.shape == (3, 16, 16)
        assert cut.dtype == np.int32
        assert cut.max() <= ids.max()
        seen_outside |= bool((cut == NOWHERE).any())
    assert seen_outside


def test_regions_that_are_learned_from() -> None:
    own = np.array([0] * 20 + [1] * 5 + [2] * 3 + [255] * 4, np.uint8)
    everything, rng = np.arange(32), np.random.default_rng(0)
    chosen = sampled(own, everything, CFG, rng)
    assert np.array_equal(chosen, np.sort(chosen))
    assert np.bincount(own[chosen], minlength=3)[:3].tolist() == [8, 5, 3]  # as much background as objects
    assert not (own[chosen] == 255).any()
    few = sampled(own, everything, replace(CFG, most=2), rng)
    assert np.bincount(own[few], minlength=3)[:3].tolist() == [2, 2, 2]
    every = sampled(own, everything, replace(CFG, bg_sample="all"), rng)
    assert np.bincount(own[every], minlength=3)[:3].tolist() == [20, 5, 3]
    none = sampled(np.zeros(20, np.uint8), np.arange(20), CFG, rng)
    assert len(none) == regions.FEW  # a negative gives a few
    assert len(sampled(np.full(5, 255, np.uint8), np.arange(5), CFG, rng)) == 0
    assert set(sampled(own, np.array([21, 25, 30]), CFG, rng)) == {21, 25}  # only what the crop shows
    other = sampled(own, everything, CFG, np.random.default_rng(1))
    assert not np.array_equal(chosen, other)


@pytest.mark.parametrize("bg_sample", ["balanced", "all"])
def test_tags_come_back_by_bayes_rule_whatever_was_learned_from(bg_sample: Any) -> None:
    """Images of one tag of three, or none; a class covers a tenth of its images; looks are one of four values.

    A network that knows its training regions exactly, drawn and thinned out as in training, must give p(k | look, tag)
    of the images as they are.
    """
    rng, n, regions_each = np.random.default_rng(0), 3000, 60
    tag = rng.choice(4, n, p=[0.7, 0.15, 0.1, 0.05])  # 0: none
    looks_of = np.array([[0.7, 0.1, 0.1, 0.1], [0.2, 0.5, 0.1, 0.2], [0.2, 0.1, 0.5, 0.2], [0.3, 0.1, 0.1, 0.5]])
    own = np.where(rng.random((n, regions_each)) < 0.1, tag[:, None], 0).astype(np.uint8)
    look = (rng.random((n, regions_each, 1)) > looks_of.cumsum(1)[own]).sum(2).clip(max=3)
    ids = tuple(f"{i:05d}" for i in range(n))
    tags = tag[:, None] == np.arange(1, 4)
    tagged = TaggedSet("world", ("a", "b", "c"), ids, tags, np.ones(n, np.bool_), coarse_maps.tagged_set().source)
    cfg = replace(CFG, bg_sample=bg_sample, positives=0.5, most=64)
    counts = np.zeros((4, 4))  # look, label
    for i in lined_up(tags, cfg.positives):
        kept = sampled(own[i], np.arange(regions_each), cfg, rng)
        np.add.at(counts, (look[i][kept], own[i][kept]), 1)
    said = counts / counts.sum(1, keepdims=True)
    usual = tag_shares(tagged, lambda sample: own[int(sample)], cfg)
    for k in (1, 2, 3):
        held = ops.restricted(said, ops.allowance(np.arange(1, 4) == k, usual=usual))
        mine = own[tag == k], look[tag == k]
        true = np.array([[(mine[0][mine[1] == v] == label).mean() for label in (0, k)] for v in range(4)])
        np.testing.assert_allclose(held[:, [0, k]], true, atol=0.04)
        if bg_sample == "balanced":  # the share of images with the tag would call nearly everything the tag
            wide = ops.restricted(said, ops.allowance(np.arange(1, 4) == k, usual=tags.mean(0)))
            assert (wide[:, k] - true[:, 1]).mean() > 0.3
    if bg_sample == "all":  # nothing was thinned out: it is the share of draws that have the tag
        drawn = tags[lined_up(tags, cfg.positives)].mean(0)
        np.testing.assert_allclose(usual, drawn, rtol=0.12)


def test_tags_of_which_no_region_was_labelled_count_as_often_as_they_were_drawn() -> None:
    tagged = coarse_maps.tagged_set(8)
    drawn = tagged.tags[lined_up(tagged.tags, CFG.positives)].mean(0)
    nothing = tag_shares(tagged, lambda sample: np.full(5, 255, np.uint8), CFG)
    np.testing.assert_allclose(nothing, drawn)
    ground = tag_shares(tagged, lambda sample: np.zeros(5, np.uint8), CFG)
    np.testing.assert_allclose(ground, drawn)


def test_names_of_regions_in_a_crop() -> None:
    ids = np.array([[3, 3, NOWHERE], [5, 1, 1]], np.int32)
    assert seen(ids, 7).tolist() == [1, 3, 5]
    assert renamed(ids, np.array([1, 5]), 7).tolist() == [[-1, -1, -1], [1, 0, 0]]


@pytest.mark.parametrize("form", ["mean_pool", "roi_mask"])
def test_mcof_s7_06_regions_without_a_label_give_no_gradient_and_no_nan(form: str) -> None:
    torch.manual_seed(0)
    net = RegionNet(build("small", stride=8), 4, form=form, width=8, reduced=8)  # type: ignore[arg-type]
    batch = {"images": torch.randint(0, 255, (2, 3, 48, 48), dtype=torch.uint8), "cells": torch.rand(2, 3, 36),
             "boxes": torch.tensor([[[0.0, 0, 20, 20], [10, 10, 40, 48], [0, 0, 0, 0]]] * 2),
             "masks": torch.ones(2, 3, 7, 7), "targets": torch.full((2, 3), 255, dtype=torch.uint8)}
    loss = RegionLoss()
    nothing = loss.total(net, batch)
    assert loss.count(batch) == 0
    assert nothing.item() == 0.0
    nothing.backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in net.parameters())
    batch["targets"][0, 1] = 2
    assert loss.count(batch) == 1
    gradients: list[torch.Tensor] = []

    def listen(module: torch.nn.Module, given: object, out: torch.Tensor) -> None:
        out.register_hook(gradients.append)

    net.head.register_forward_hook(listen)
    loss.total(net, batch).backward()
    assert gradients[0].abs().sum(2).nonzero().tolist() == [[0, 1]]  # exactly 0 for all others


def test_the_loss_is_the_mean_of_minus_log_p_over_labelled_regions() -> None:
    torch.manual_seed(0)
    net = RegionNet(build("small", stride=8), 3, width=8).eval()
    cells = torch.rand(1, 2, 36)
    batch = {"images": torch.randint(0, 255, (1, 3, 48, 48), dtype=torch.uint8), "cells": cells,
             "boxes": torch.zeros(1, 2, 4), "masks": torch.zeros(1, 2, 0, 0),
             "targets": torch.tensor([[1, 255]], dtype=torch.uint8)}
    with torch.no_grad():
        loss = RegionLoss().total(net, batch)
        logits = net(net.preprocess(batch["images"].float() / 255), cells, batch["boxes"], batch["masks"])
    assert float(loss) == pytest.approx(-float(logits[0, 0].log_softmax(0)[1]), abs=1e-5)


def test_the_label_of_a_region_is_what_most_of_its_labelled_pixels_carry(tmp_path: Path) -> None:
    tagged, run = coarse_maps.tagged_set(1), Run(tmp_path)
    cut = segments(run, tagged, GRID)
    ids = cut.get("train/000000")
    pixels = np.full(ids.shape, 255, np.uint8)
    pixels[ids == 3] = 2
    pixels[np.nonzero(ids == 4)[0][:3], np.nonzero(ids == 4)[1][:3]] = 1
    labels = fixed_regions.labels(run, tagged, fixed_regions.given("some", {"train/000000": pixels}))
    own = labelled(labels, cut)("train/000000")
    assert own.tolist() == [255, 255, 255, 2, 1, *[255] * 20]


@pytest.mark.parametrize("form", ["mean_pool", "roi_mask"])
def test_batches_depend_on_the_step_alone(tmp_path: Path, form: str) -> None:
    from tagseg.data.loader import drawn_from

    truth, run = coarse_maps.masked_set(), Run(tmp_path)
    tagged = truth.without_masks()
    cut = segments(run, tagged, GRID)
    labels = fixed_regions.labels(run, tagged, fixed_regions.given("true", {i: truth.mask(i) for i in truth.ids}))
    cfg = replace(CFG, form=form)  # type: ignore[arg-type]
    net = RegionNet(build("small", stride=8), 7, form=cfg.form, width=8)
    draws = drawn_from(tagged, cfg.augment, 4, 0, cut.get, 0.5)
    grids = {crop: regions.grid_of(net, crop) for crop in draws.shapes.crops}
    made = [RegionBatches(draws, labelled(labels, cut), net.tap, grids, cfg) for _ in range(2)]
    later = made[0](7)
    made[1](0)
    again = made[1](7)
    assert later.keys() == {"images", "cells", "boxes", "masks", "targets"}
    assert all(torch.equal(later[name], again[name]) for name in later)
    assert later["targets"].shape[1] > 1
    assert net(net.preprocess(later["images"].float() / 255), later["cells"], later["boxes"],
               later["masks"]).shape == (*later["targets"].shape, 7)


@pytest.mark.parametrize("form", ["mean_pool", "roi_mask"])
def test_it_learns_what_the_labels_say_and_goes_on_from_another(tmp_path: Path, form: str) -> None:
    """From true labels of half of the regions to most of the others."""
    truth, run = coarse_maps.masked_set(24, 48), Run(tmp_path)
    tagged = truth.without_masks()
    cut = segments(run, tagged, GRID)
    rng = np.random.default_rng(0)
    some = {i: np.where((rng.random(25) < 0.5)[cut.get(i)], truth.mask(i), 255).astype(np.uint8) for i in truth.ids}
    labels = fixed_regions.labels(run, tagged, fixed_regions.given("some", some))
    cfg = replace(CFG, form=form, most=4 if form == "roi_mask" else 64)  # type: ignore[arg-type]  # boxes take time
    weights = regions.train(run, tagged, labels, cut, START, (), cfg)
    likely = mine.probabilities(run, tagged.images(), weights, cut, mine.Ask(48, device="cpu", precision="fp32"))
    right = total = 0
    for i in truth.ids:
        own = regions.regions.votes(truth.mask(i), cut.get(i), 0.5)
        new = regions.regions.votes(some[i], cut.get(i), 0.5) == 255
        held = mine.with_tags(likely, tagged, i, "bayes")
        right += int((held.argmax(1) == own)[new].sum())
        total += int(new.sum())
    assert right / total > 0.7
    onward = regions.train(run, tagged, labels, cut, START, (weights,), replace(cfg, schedule=replace(
        RATES, min_images=8, max_images=8)))
    fresh = regions.train(run, tagged, labels, cut, START, (), replace(cfg, schedule=replace(
        RATES, min_images=8, max_images=8)))
    before = weights.tensors()
    apart = [sum((t - before[n]).abs().sum().item() for n, t in w.tensors().items()) for w in (onward, fresh)]
    assert apart[0] < 0.5 * apart[1]
