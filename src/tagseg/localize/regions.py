"""Learn what the regions of images are from those that have a label: RegionNet (MCOF, Sec. 2, Eq. 3-4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagseg.artifacts import LabelSet, SuperpixelSet, Weights, write_weights
from tagseg.data.index import TaggedSet
from tagseg.data.loader import Augment, Draws, drawn_from, lined_up, prefetched
from tagseg.data.weights import Pretrained
from tagseg.nets.backbones import Tap, build
from tagseg.nets.region_net import SIDE, Form, RegionNet
from tagseg.ops import regions
from tagseg.store import Work, stage
from tagseg.training.loop import Batch, learn
from tagseg.training.schedule import Schedule, Training, optimiser
from tagseg.types import BACKGROUND, F64, I32, I64, IGNORE, U8

Size = tuple[int, int]
FEW = 8  # background regions that an image without labelled objects gives


@dataclass(frozen=True)
class Regions(Training):
    """`form`: how a region is read, see nets/region_net; "roi_mask" (Fast R-CNN with masks) is the paper's, likely.

    `most`: at most so many regions of one class in an image. `bg_sample`: "balanced" takes no more background regions
    than object regions of the same image (8 where it has none), "all" takes up to `most`. `width`: of hidden layers.
    """

    backbone: str = "auto"
    stride: int = 16
    form: Form = "mean_pool"
    width: int = 1024
    most: int = 64
    bg_sample: Literal["balanced", "all"] = "balanced"
    # zoom from .75 to 2: regions are shown at one and a half times this size
    augment: Augment = field(default_factory=lambda: Augment(scale=(0.75, 2.0)))
    schedule: Schedule = field(default_factory=lambda: Schedule(2.0, min_images=1200, max_images=3200, batch=8))
    positives: float = 0.5

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "augment": Augment(size=96, scale=(0.9, 2.0), colour=0.1),
            "stride": 8,
            "width": 256,
            "schedule": Schedule(epochs=4, min_images=600, max_images=1600, batch=8),
        },
        # 8 epochs, stride 8 so that small regions survive (the paper's are not known); rates follow the backbone
        "paper": {
            "form": "roi_mask",
            "stride": 8,
            "augment": Augment(size=321, scale=(0.75, 1.5)),
            "schedule": Schedule(epochs=8, min_images=0, max_images=10**9, batch=8, warmup=0.0),
        },
    }


@stage(Weights, version=3)
def train(
    work: Work,
    tagged: TaggedSet,
    labels: LabelSet,
    segments: SuperpixelSet,
    pretrained: Pretrained,
    before: tuple[Weights, ...],
    cfg: Regions,
) -> None:
    """Train on the regions of `segments` whose pixels mostly carry one of `labels`; regions of 255 do not count.

    `before`: empty, or the network to go on from instead of the pretrained one.
    """
    seed = int(cfg.seed)
    torch.manual_seed(seed)
    outputs = len(tagged.classes) + 1
    model = RegionNet(build(cfg.backbone, stride=cfg.stride, weights_state=pretrained.start), outputs,
                      form=cfg.form, width=cfg.width)  # fmt: skip
    if before:
        model.load_state_dict(before[0].tensors())
    draws = drawn_from(tagged, cfg.augment, cfg.schedule.batch, seed, segments.get, cfg.positives)
    rates = optimiser(cfg.schedule, list(model.body.backbone.parameters()),
                      [*model.body.reduce.parameters(), *model.head.parameters()])  # fmt: skip
    grids = {crop: grid_of(model, crop) for crop in draws.shapes.crops}
    own = labelled(labels, segments)
    with prefetched(RegionBatches(draws, own, model.tap, grids, cfg)) as batches:
        learn(work, cfg, model, rates, batches, RegionLoss(), len(tagged), draws.names)
    meta = {n: getattr(cfg, n) for n in ("backbone", "stride", "form", "width")}
    write_weights(work, model.state_dict(), {**meta, "size": cfg.augment.size, "classes": list(tagged.classes),
                                             "has_background": tagged.has_background,
                                             "tag_shares": tag_shares(tagged, own, cfg).tolist()})  # fmt: skip


@torch.no_grad()
def grid_of(model: RegionNet, size: Size) -> Size:
    """The cells (h,w) that the features of an input of `size` have: some networks do not pad."""
    model.eval()
    h, w = model.body(torch.zeros(1, 3, *size)).shape[2:]
    return h, w


def labelled(labels: LabelSet, segments: SuperpixelSet) -> Callable[[str], U8]:
    """The label (J,) of each region of an image: that of most of its pixels that have one."""

    @lru_cache(maxsize=4096)  # a few hundred bytes each, and every image is drawn more than once
    def one(sample: str) -> U8:
        return regions.votes(labels.get(sample).pixels, segments.get(sample), 0.5)

    return one


@dataclass(frozen=True)
class RegionBatches:
    """Batches with the regions that are learned from.

    Replaces `labels` by `targets` uint8 (n,J), 255 where there is no region, and by what the form reads of each region:
    `cells` (n,J,h·w), or `boxes` (n,J,4) and `masks` (n,J,7,7).
    """

    draws: Draws
    labelled: Callable[[str], U8]
    tap: Tap
    grids: dict[Size, Size]
    cfg: Regions

    def __call__(self, step: int) -> Batch:
        batch = self.draws(step)
        rng = np.random.default_rng([self.draws.seed, 5, step])
        found, targets = [], []
        for ids, sample in zip(batch["labels"].numpy(), self.draws.names(step), strict=True):
            own = self.labelled(sample)
            chosen = sampled(own, seen(ids, len(own)), self.cfg, rng)
            found.append(self._read(renamed(ids, chosen, len(own)), len(chosen)))
            targets.append(own[chosen])
        most = max(1, *map(len, targets))
        rows = {name: torch.from_numpy(np.stack([_filled(getattr(one, name), most, 0) for one in found]))
                for name in regions.Described._fields}  # fmt: skip
        targets = [_filled(t, most, IGNORE) for t in targets]
        return {"images": batch["images"], **rows, "targets": torch.from_numpy(np.stack(targets))}

    def _read(self, ids: I32, count: int) -> regions.Described:
        size = (ids.shape[0], ids.shape[1])
        if self.cfg.form == "roi_mask":
            return regions.boxed(ids, count, in_size=size, side=SIDE)
        return regions.pooled(ids, count, stride=self.tap.stride, offset=self.tap.offset, in_size=size,
                              grid=self.grids[size])  # fmt: skip


def seen(ids: I32, count: int) -> I64:
    """The regions of which a crop shows something, ascending."""
    return np.flatnonzero(np.bincount(ids[ids >= 0], minlength=count)).astype(np.int64)


def sampled(own: U8, visible: I64, cfg: Regions, rng: np.random.Generator) -> I64:
    """The regions that are learned from: labelled, visible, at most `most` of each class; ascending."""
    enough = taken(own[visible], cfg)
    drawn = [rng.permutation(visible[own[visible] == k])[: enough[k]] for k in np.flatnonzero(enough)]
    return np.sort(np.concatenate(drawn)) if drawn else np.zeros(0, np.int64)


def taken(own: U8, cfg: Regions) -> I64:
    """How many regions of each label (255,) are learned from, of an image whose regions are labelled `own`."""
    counts = np.minimum(np.bincount(own, minlength=IGNORE + 1)[:IGNORE], cfg.most)
    if cfg.bg_sample == "balanced":
        counts[BACKGROUND] = min(counts[BACKGROUND], max(counts[BACKGROUND + 1 :].sum(), FEW))
    return counts.astype(np.int64)


def tag_shares(tagged: TaggedSet, own: Callable[[str], U8], cfg: Regions) -> F64:
    """How often each tag counts as given (C,), for Bayes' rule over what the network says (`ops/regions.allowance`).

    Were all regions learned from alike, that would be the share of images with the tag. But images with tags are drawn
    more often, and of their background only a part is: the network has seen a class's regions more often, against
    background, than they lie in images, and only what is left of that is the tag's to say. So: the share of class k
    among what was learned from, over its share of the regions in images that have the tag; as of background.
    """
    classes = len(tagged.classes)
    times = np.bincount(lined_up(tagged.tags, cfg.positives), minlength=len(tagged))
    drawn, inside, images = (np.zeros(classes + 1) for _ in range(3))
    for sample, tags, often in zip(tagged.ids, tagged.tags, times, strict=True):
        labels = own(sample)
        counts = np.bincount(labels, minlength=classes + 1)[: classes + 1]
        drawn += often * taken(labels, cfg)[: classes + 1]
        if tags.any() and counts.sum():
            present = np.concatenate([[True], tags])
            inside += present * counts / counts.sum()
            images += present
    seen, there = drawn / max(drawn.sum(), 1), inside / images.clip(1)
    plain = (times[:, None] * tagged.tags).sum(0) / max(times.sum(), 1)
    ground = seen[0] / there[0] if there[0] > 0 and seen[0] > 0 else 1.0
    known = (seen[1:] > 0) & (there[1:] > 0)
    return np.where(known, seen[1:] / np.where(known, there[1:], 1) / ground, plain)


def renamed(ids: I32, chosen: I64, count: int) -> I32:
    """Ids of a crop with the chosen regions named 0, 1, ... and everything else -1."""
    names = np.full(count + 1, -1, np.int32)  # the last entry is what -1 finds
    names[chosen] = np.arange(len(chosen), dtype=np.int32)
    return names[ids]


def _filled(rows: np.ndarray, most: int, value: int) -> np.ndarray:
    return np.pad(rows, [(0, most - len(rows)), *[(0, 0)] * (rows.ndim - 1)], constant_values=value)


@dataclass(frozen=True)
class RegionLoss:
    """Cross-entropy of the labelled regions, divided by their number."""

    def count(self, batch: Batch) -> float:
        return float((batch["targets"] != IGNORE).sum())

    def total(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, RegionNet)
        images = model.preprocess(batch["images"].float() / 255)
        logits = model(images, *(batch[name] for name in regions.Described._fields))
        return F.cross_entropy(logits.float().flatten(0, 1), batch["targets"].flatten().long(), ignore_index=IGNORE,
                               reduction="sum")  # mcof Eq. 4  # fmt: skip
