"""Train a segmentation network on tags, told by masks where objects may lie; without masks, on tags alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tagseg.artifacts import LabelSet, Weights
from tagseg.data.index import TaggedSet
from tagseg.data.loader import Augment, drawn_from, prefetched
from tagseg.data.weights import Pretrained
from tagseg.nets.deeplab import Segmenter
from tagseg.ops import tag_losses
from tagseg.ops.geometry import resample
from tagseg.segment.train import Head, described, make, outputs, pixels_of
from tagseg.store import Work, stage
from tagseg.training.loop import Batch, learn
from tagseg.training.schedule import Schedule, Training, optimiser
from tagseg.types import IGNORE, U8, DataError


@dataclass(frozen=True)
class SegmentPrior(Training):
    """`lse_r`: small spreads a class over its region, large raises its best pixels; "usual": 1 with masks, which can be
    trusted as a whole, 20 without. `loss_grid`: probabilities are
    brought to the masks ("full"), or masks to the network's grid ("cells", where they cover over half of a cell).
    `empty`: a term whose region is empty is left out ("skip") or goes over the whole image ("fallback"); a tag without
    a region of its own first goes over those of the others. The rest as for `segment.train.Segment`.
    """

    lse_r: float | Literal["usual"] = "usual"
    loss_grid: Literal["full", "cells"] = "full"
    empty: Literal["skip", "fallback"] = "skip"
    backbone: str = "auto"
    stride: int = 16
    head: Head = "v3plus"
    width: int = 128
    augment: Augment = field(default_factory=lambda: Augment(scale=(0.7, 1.5)))
    schedule: Schedule = field(default_factory=lambda: Schedule(4.0, min_images=2400, max_images=6000, batch=8))
    positives: float = 0.5

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "augment": Augment(size=96, colour=0.1),
            "width": 64,
            "stride": 8,
            "schedule": Schedule(epochs=6, min_images=1000, max_images=2400, batch=8),
        },
        "paper": {
            "lse_r": 5.0,
            "augment": Augment(size=321, scale=(1.0, 1.0)),
            "schedule": Schedule(epochs=10**6, min_images=0, max_images=160_000, batch=8, optimiser="sgd", lr=1e-3,
                                 head_lr=1e-2, weight_decay=5e-4, power=0.9, warmup=0.0),
        },
    }  # fmt: skip


Kind = Literal["multi", "binary", "weak"]
USUAL = {"multi": 1.0, "binary": 1.0, "weak": 20.0}  # the best of 1, 5, 10, 20 on generated scenes


@dataclass
class PriorLoss:
    """The loss of each image; `missed` counts regions that were empty in a crop since training (re)started."""

    kind: Kind
    cfg: SegmentPrior
    missed: float = 0.0

    @property
    def r(self) -> float:
        """The sharpness of the smooth maximum."""
        return USUAL[self.kind] if self.cfg.lse_r == "usual" else float(self.cfg.lse_r)

    def count(self, batch: Batch) -> float:
        return len(batch["images"])

    def total(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Segmenter)
        images, labels, tags = batch["images"], batch["labels"], batch["tags"].bool()
        size = (images.shape[2], images.shape[3])
        logits = model(model.backbone.preprocess(images.float() / 255)).float()
        if self.cfg.loss_grid == "full":
            logits = resample(logits, stride=model.stride, offset=model.offset, in_size=size, out_size=size)
        shares = logits.softmax(1)
        known = _on((labels != IGNORE)[:, None], shares)[:, 0]
        if self.kind == "weak":
            return tag_losses.weak(shares, tags, known, self.r).sum()
        regions = _on(tag_losses.regions_of(labels, tags, binary=self.kind == "binary"), shares)
        losses, missed = tag_losses.masked(shares, tags, regions, self.r, known, self.cfg.empty)
        self.missed += float(missed.sum())
        return losses.sum()


def _on(regions: Tensor, shares: Tensor) -> Tensor:
    """Regions (n,k,h,w) on the grid of the probabilities: what covers more than half of a cell."""
    if regions.shape[2:] == shares.shape[2:]:
        return regions
    return F.adaptive_avg_pool2d(regions.float(), (shares.shape[2], shares.shape[3])) > 0.5


@stage(Weights, version=1)
def multi(work: Work, tagged: TaggedSet, masks: LabelSet, pretrained: Pretrained, cfg: SegmentPrior) -> None:
    """Each tag within its own region of `masks`."""
    _train(work, tagged, partial(pixels_of, masks), pretrained, "multi", cfg)


@stage(Weights, version=1)
def binary(work: Work, tagged: TaggedSet, masks: LabelSet, pretrained: Pretrained, cfg: SegmentPrior) -> None:
    """All tags within the foreground, which is whatever is not 0 in `masks`."""
    _train(work, tagged, partial(pixels_of, masks), pretrained, "binary", cfg)


@stage(Weights, version=1)
def weak(work: Work, tagged: TaggedSet, pretrained: Pretrained, cfg: SegmentPrior) -> None:
    """Tags alone: what the masks are measured against."""
    _train(work, tagged, lambda sample: np.zeros(tagged.source.size(sample), np.uint8), pretrained, "weak", cfg)


def needs_background(tagged: TaggedSet) -> None:
    """`DataError` for sets in which every pixel has a class."""
    if not tagged.has_background:
        raise DataError(f"{tagged.name}: has no background, expected a set with one: a foreground mask tells nothing "
                        "where every pixel has a class")


def _train(work: Work, tagged: TaggedSet, pixels: Callable[[str], U8], pretrained: Pretrained, kind: Kind,
           cfg: SegmentPrior) -> None:
    """From pretrained weights, on tags and the regions that `pixels` tell."""
    needs_background(tagged)
    torch.manual_seed(int(cfg.seed))
    model = make(cfg, outputs(tagged), pretrained.start)
    draws = drawn_from(tagged, cfg.augment, cfg.schedule.batch, int(cfg.seed), pixels, cfg.positives)
    rates = optimiser(cfg.schedule, list(model.backbone.parameters()), list(model.head.parameters()))
    loss = PriorLoss(kind, cfg)
    with prefetched(draws) as batches:
        learn(work, cfg, model, rates, batches, loss, len(tagged), draws.names)
    work.meta["empty_regions"] = loss.missed
    described(work, model, cfg, tagged, draws)
