"""Training by tags and masks: aligned with its images, per image, and every part of the loss counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import coarse_maps
from tagseg.artifacts import LabelSet, write_labels
from tagseg.data.generated import scenes
from tagseg.data.index import TaggedSet
from tagseg.data.loader import Augment, draw
from tagseg.data.weights import Pretrained
from tagseg.localize import foreground
from tagseg.nets.backbones import build
from tagseg.ops import tag_losses
from tagseg.refine import crf, prior_masks
from tagseg.segment import predict, train, train_prior
from tagseg.segment.train_prior import PriorLoss, SegmentPrior
from tagseg.store import Run, Work, stage
from tagseg.training.schedule import Schedule
from tagseg.types import DataError, Labels

SHORT = Schedule(epochs=1.0, min_images=32, max_images=32, batch=8, optimiser="adamw", lr=1e-3, head_lr=1e-2,
                 weight_decay=0.0)
SETTINGS: dict[str, Any] = {"backbone": "small", "width": 16, "augment": Augment(size=32), "schedule": SHORT, "seed": 0,
                            "device": "cpu", "precision": "fp32"}
CFG = SegmentPrior(**SETTINGS)
RANDOM = Pretrained("small", "random start", "random", {})


def net(classes: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return train.make(CFG, classes + 1, None).eval()


def batch(n: int = 2) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(1)
    labels = torch.zeros(n, 32, 40, dtype=torch.uint8)
    labels[:, 8:20, 8:24] = 1
    labels[:, :, :3] = 255
    return {"images": torch.randint(0, 256, (n, 3, 32, 40), dtype=torch.uint8, generator=rng), "labels": labels,
            "tags": torch.tensor([[True, False, False]] * n)}


def part(whole: dict[str, Any], k: int) -> dict[str, Any]:
    return {name: value[k : k + 1] for name, value in whole.items()}


@pytest.mark.parametrize("kind", ["multi", "binary", "weak"])
@pytest.mark.parametrize("grid", ["full", "cells"])
def test_priors_s7_12_a_batch_is_the_mean_of_its_images(kind: Any, grid: Any) -> None:
    model, both = net(), batch()
    loss = PriorLoss(kind, SegmentPrior(**SETTINGS, loss_grid=grid))
    whole = loss.total(model, both) / loss.count(both)
    alone = [loss.total(model, part(both, k)) / loss.count(part(both, k)) for k in range(2)]
    torch.testing.assert_close(whole, torch.stack(alone).mean())


def test_the_loss_reads_probabilities_on_the_grid_of_the_masks() -> None:
    model, both = net(), batch()
    logits = model(model.backbone.preprocess(both["images"].float() / 255))  # type: ignore[operator, union-attr]
    fine = train.resample(logits, stride=model.stride, offset=model.offset, in_size=(32, 40), out_size=(32, 40))  # type: ignore[arg-type]
    regions = tag_losses.regions_of(both["labels"], both["tags"], binary=False)
    expected, _ = tag_losses.masked(fine.softmax(1), both["tags"], regions, 1.0, regions.any(1))
    torch.testing.assert_close(PriorLoss("multi", CFG).total(model, both), expected.sum())
    coarse = PriorLoss("multi", SegmentPrior(**SETTINGS, loss_grid="cells")).total(model, both)
    assert not torch.allclose(coarse, expected.sum())


def test_priors_s7_08_empty_regions_of_crops_are_counted() -> None:
    model, both = net(), batch()
    both["labels"][:] = 0
    loss = PriorLoss("multi", CFG)
    assert torch.isfinite(loss.total(model, both))
    assert loss.missed == 2
    loss.total(model, both)
    assert loss.missed == 4


def test_priors_s7_09_masks_carry_no_gradient(tmp_path: Path) -> None:
    """The network that makes the foreground learns nothing: its weights' file is the same before and after."""
    run, tagged = Run(tmp_path), coarse_maps.tagged_set(16)
    source = build("small", stride=8)
    pretrained = Pretrained("small", "a start", "some", coarse_maps.as_published(source))
    before = {name: value.clone() for name, value in pretrained.state.items()}
    looked = foreground.Foreground(backbone="small", device="cpu", precision="fp32")
    seen = foreground.maps(run, tagged.images(), pretrained, looked)
    masks = prior_masks.binary(run, tagged, seen, (), prior_masks.PriorMasks(crf=crf.Crf(iterations=1)))
    train_prior.binary(run, tagged, masks, pretrained, CFG)
    assert all(torch.equal(value, before[name]) for name, value in pretrained.state.items())
    again = foreground.maps(Run(tmp_path / "again"), tagged.images(), pretrained, looked)
    assert again.record["outputs"] == seen.record["outputs"]


def test_cells_that_no_region_fills_are_known_all_the_same() -> None:
    """A cell half background, half object: no region has it, but absent classes are kept out of it."""
    model, both = net(), batch()
    cell = int(model.stride)  # type: ignore[arg-type]
    both["labels"][:] = 0
    both["labels"][:, :, : cell // 2] = 1
    shares = model(model.backbone.preprocess(both["images"].float() / 255)).softmax(1)  # type: ignore[operator, union-attr]
    regions = tag_losses.regions_of(both["labels"], both["tags"], binary=False)
    cells = F.avg_pool2d(regions.float(), cell) > 0.5
    assert cells.shape[2:] == shares.shape[2:]
    found = PriorLoss("multi", SegmentPrior(**SETTINGS, loss_grid="cells")).total(model, both)
    every, some = (tag_losses.masked(shares, both["tags"], cells, 1.0, known)[0].sum()
                   for known in (torch.ones_like(cells[:, 0]), cells.any(1)))  # fmt: skip
    torch.testing.assert_close(found, every)
    assert not torch.allclose(found, some)


@pytest.mark.parametrize("seed", range(6))
def test_priors_s7_11_a_mask_is_cut_and_mirrored_with_its_image(seed: int) -> None:
    image, mask = np.zeros((3, 40, 60), np.uint8), np.zeros((40, 60), np.uint8)
    image[:, 10:14, 20:24], mask[10:14, 20:24] = 255, 3  # one marked place
    rng = np.random.default_rng(seed)
    photo, cut = draw(image, mask, (40, 60), Augment(size=48, scale=(1.0, 1.3), flip=True, colour=0.0), rng)
    assert cut is not None
    bright = photo[0] > 120
    if bright.sum() < 4:  # the place was cut away
        assert (cut == 3).sum() < 8
    else:
        assert (cut[bright] == 3).mean() > 0.9


@stage(LabelSet, version=1)
def blobs(work: Work, tagged: TaggedSet, cfg: coarse_maps.Coarse) -> None:
    """A bar for each tag of an image."""

    def one(sample: str) -> Labels:
        pixels = np.zeros(tagged.source.size(sample), np.uint8)
        for k in np.flatnonzero(tagged.tags_of(sample)):
            pixels[10:30, 4 * k : 4 * k + 8] = k + 1
        return Labels(sample, pixels)

    write_labels(work, tagged.ids, lambda ids: map(one, ids), {})


def test_from_masks_to_labels_and_each_kind_is_another_network(tmp_path: Path) -> None:
    run, tagged = Run(tmp_path), coarse_maps.tagged_set(16)
    masks = blobs(run, tagged, coarse_maps.Coarse())
    made = {
        "multi": train_prior.multi(run, tagged, masks, RANDOM, CFG),
        "binary": train_prior.binary(run, tagged, masks, RANDOM, CFG),
        "weak": train_prior.weak(run, tagged, RANDOM, CFG),
        "sharper": train_prior.multi(run, tagged, masks, RANDOM, SegmentPrior(**SETTINGS, lse_r=20.0)),
    }
    assert len({str(m.record["outputs"]["weights.safetensors"]) for m in made.values()}) == len(made)
    assert made["multi"].record["meta"]["empty_regions"] >= 0
    looked = predict.Predict(views=predict.Views(size=40, flip=False), device="cpu", precision="fp32")
    for weights in made.values():
        found = predict.labels(run, tagged, weights, looked)
        assert found.get(tagged.ids[0]).pixels.shape == (40, 40)


def test_sets_without_background_are_refused(tmp_path: Path) -> None:
    tissue = scenes("scenes:tissue?train=2&val=1&size=32", ("train",)).without_masks()
    with pytest.raises(DataError, match="has no background"):
        train_prior.weak(Run(tmp_path), tissue, RANDOM, CFG)
