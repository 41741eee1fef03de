"""Narrow widened maps: a second layer learns the tags from them, then offsets that keep maps small (ESOL, stage 2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagseg.artifacts import Weights
from tagseg.data.index import TaggedSet
from tagseg.data.loader import Augment, drawn_from
from tagseg.localize.classify import Layer, TagNet, load, pooling_of, tag_losses, taught
from tagseg.localize.sampling_layers import (
    Pool,
    check_offsets,
    descent,
    layers_of,
    mean_tag_loss,
    moving,
    offsets_of,
    with_layers,
    write,
)
from tagseg.nets.sampler import Sampler
from tagseg.nets.tag_head import TagHead
from tagseg.ops.flattening import area, by_peak
from tagseg.ops.scores import EPS
from tagseg.store import Work, stage
from tagseg.training.loop import Batch
from tagseg.training.schedule import Schedule, Training
from tagseg.types import UsageError

Kind = Literal["detached_max", "max", "fixed_max", "start_max", "local_max", "sigmoid"]


@dataclass(frozen=True)
class Second(Training):
    """The second layer and head learn the tags on the widened, flattened features. `width`: channels of the layer, or
    as many as the first one has. Both are new, so both learn at `schedule.head_lr`.
    """

    width: int | Literal["first"] = "first"
    augment: Augment = field(default_factory=Augment)
    schedule: Schedule = field(default_factory=lambda: Schedule(2.0, min_images=1600, max_images=4000))

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "augment": Augment(size=96, colour=0.1),
            "schedule": Schedule(epochs=4, min_images=600, max_images=2000, batch=32),
        },
        # as the first stage, at a fifth of its rate
        "paper": {
            "augment": Augment(size=512, scale=(0.6, 1.25)),
            "schedule": descent(0.02, head_lr=0.2, epochs=5.0, max_images=10**9, momentum=0.0, weight_decay=1e-4,
                                power=0.9),
        },
    }  # fmt: skip


@dataclass(frozen=True)
class Shrink(Training):
    """Descent of tag loss plus `weight` times the area of the maps by the second layer's offsets.

    `area`: what a map is divided by before its mean is taken: its maximum without ("detached_max") or with ("max") a
    gradient, the maximum of the widened map of the first stage ("fixed_max"), its own before it shrinks ("start_max"),
    the maximum within two cells ("local_max"), or nothing, its logistic ("sigmoid"). `tags`: "bound" counts an image's
    tag loss only where it is over the mean at the start: a constraint in place of a sum. `negatives`: weight of what
    the maps of absent classes still show. `limit`: the longest offset in cells; without one they run off, and tags are
    forgotten. `head`: whether the second head moves along ("train"), or the head and the layer's own weights ("layer").
    """

    weight: float = 0.1
    area: Kind = "detached_max"
    tags: Literal["loss", "bound"] = "loss"
    negatives: float = 0.0
    limit: float | None = 1.0
    head: Literal["frozen", "train", "layer"] = "frozen"
    augment: Augment = field(default_factory=Augment)
    schedule: Schedule = field(default_factory=lambda: descent(0.02, epochs=1.0, max_images=4000))

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"augment": Augment(size=96, colour=0.1), "schedule": descent(0.02, epochs=2.0, batch=32)},
        "paper": {
            "augment": Augment(size=512, scale=(0.6, 1.25)),
            "schedule": descent(0.02, epochs=1.0, max_images=10**9),
        },
    }


@stage(Weights, version=1)
def second(work: Work, tagged: TaggedSet, wide: Weights, cfg: Second) -> None:
    """A second layer and head, without offsets, trained on the widened and flattened features of the first."""
    torch.manual_seed(int(cfg.seed))
    (first,) = layers_of(wide, 1)
    width = first.width if cfg.width == "first" else int(cfg.width)
    model = with_layers(wide, tagged.classes, [first, Layer(width)], new=("samplers.1.", "head."))
    learning = model.learns([*model.samplers[1].parameters(), *model.head.parameters()])
    taught(work, tagged, model, cfg, [], learning, TagsOnly(pooling_of(wide)))
    write(work, model, wide, {})


@stage(Weights, version=1)
def shrunk(work: Work, tagged: TaggedSet, wide: Weights, twofold: Weights, cfg: Shrink) -> None:
    """The second layer's offsets (and what `cfg.head` adds) learn the tags with maps as small as these allow.

    `wide`: the weights that `twofold` was made from, whose maps "fixed_max" is measured against.
    """
    check_offsets("shrink", cfg.limit, cfg.schedule.weight_decay)
    if min(cfg.weight, cfg.negatives) < 0:
        raise UsageError(f"shrink: found weight {cfg.weight}, negatives {cfg.negatives}, expected 0 or more for both")
    first, last = layers_of(twofold, 2)
    model = with_layers(twofold, tagged.classes, [first, moving(last, None, cfg.limit)])
    offsets, pooled = offsets_of(model, 1), pooling_of(twofold)
    head = [] if cfg.head == "frozen" else list(model.head.parameters())
    if cfg.head == "layer":
        moved = {id(parameter) for parameter in offsets}
        head += [parameter for parameter in model.samplers[1].parameters() if id(parameter) not in moved]
    model.learns([*offsets, *head])
    floor = 0.0
    if cfg.tags == "bound":
        draws = drawn_from(tagged.training(), cfg.augment, cfg.schedule.batch, int(cfg.seed))
        floor = mean_tag_loss(model, draws, pooled, cfg.device)
    before = load(wide if cfg.area == "fixed_max" else twofold, tagged.classes).head.to(cfg.device)
    taught(work, tagged, model, cfg, offsets, head, Shrinking(pooled, cfg, before.requires_grad_(False), floor))
    write(work, model, twofold, {})


@torch.no_grad()
def widened(model: TagNet, images: Tensor) -> Tensor:
    """The features that the first layer leaves: nothing of what follows reaches it."""
    x = model.backbone.preprocess(images.float() / 255)
    return model.sampled(model.backbone(x, ["last"])["last"], 0, 1)  # esol Eq. 6


@dataclass(frozen=True)
class TagsOnly:
    """The tag loss of the second layer, on features that get no gradient."""

    pool: Pool

    def count(self, batch: Batch) -> float:
        return len(batch["images"])

    def total(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, TagNet)
        maps = model.head(model.sampled(widened(model, batch["images"]), 1))
        return tag_losses(model.head.logits(maps.float(), self.pool), batch["tags"]).sum()


@dataclass(frozen=True)
class Shrinking:
    """Each image's tag loss over `floor`, the area of its maps, and what the maps of absent classes show.

    `before`: the head whose maps are the measure where `cfg.area` names an earlier one.
    """

    pool: Pool
    cfg: Shrink
    before: TagHead
    floor: float = 0.0

    def count(self, batch: Batch) -> float:
        return len(batch["images"])

    def total(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, TagNet)
        wide, tags = widened(model, batch["images"]), batch["tags"]
        maps = model.head(model.sampled(wide, 1)).float()
        loss = (tag_losses(model.head.logits(maps, self.pool), tags) - self.floor).clamp(min=0)
        loss = loss + self.cfg.weight * area(self.shares(model, wide, maps), tags)  # esol Eq. 7
        return (loss + self.cfg.negatives * area(maps.relu(), ~tags)).sum()

    def shares(self, model: TagNet, wide: Tensor, maps: Tensor) -> Tensor:
        """Maps (n,C,h,w) as shares of what `cfg.area` says."""
        kind = self.cfg.area
        if kind == "sigmoid":
            return torch.sigmoid(maps)
        if kind == "max":
            return by_peak(maps)
        if kind == "local_max":
            return maps.relu() / (F.max_pool2d(maps.relu(), 5, stride=1, padding=2) + EPS)
        if kind == "detached_max":
            return by_peak(maps, maps.detach().relu().amax((2, 3)))
        with torch.no_grad():
            sampler = model.samplers[1]
            assert isinstance(sampler, Sampler)
            still = self.before(wide if kind == "fixed_max" else F.relu(sampler.plain(wide))).float()
        return by_peak(maps, still.relu().amax((2, 3)))
