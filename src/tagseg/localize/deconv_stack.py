"""Teach a mirrored network class maps by tags alone: its heads first, then everything (DFS, arXiv 1602.04984)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tagseg.artifacts import Weights
from tagseg.data.index import TaggedSet
from tagseg.data.loader import Augment, drawn_from
from tagseg.localize import classify
from tagseg.localize.classify import tag_losses, taught
from tagseg.localize.stack_net import Stack, StackNet, load, pooled, write
from tagseg.store import Work, stage
from tagseg.training.loop import Batch
from tagseg.training.schedule import Schedule, Training, steps

BATCHES = 8  # batches that the choice of levels looks at


@dataclass(frozen=True)
class Heads(Training):
    """Heads, norms and bias learn the tags while the encoder stands still."""

    stack: Stack = field(default_factory=Stack)
    augment: Augment = field(default_factory=Augment)
    schedule: Schedule = field(default_factory=lambda: Schedule(epochs=1.0, min_images=1600, max_images=4000))

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "augment": Augment(size=96, colour=0.1),
            "schedule": Schedule(epochs=2, min_images=600, max_images=2000, batch=32),
        },
        "paper": {
            "augment": Augment(size=320),
            "schedule": Schedule(epochs=1, min_images=0, max_images=10**9, batch=16, optimiser="sgd", lr=1e-3,
                                 head_lr=1e-2, weight_decay=5e-4, warmup=0.0),
        },
    }  # fmt: skip


@dataclass(frozen=True)
class Joint(Training):
    """Everything learns: (1 - a) times the auxiliary branch's tag loss plus a times that of the maps.

    a rises linearly over the training, `share` says from where to where (self-transfer learning, arXiv 1602.01625).
    `aux`: "none" leaves the first part out.
    """

    aux: Literal["stl", "none"] = "stl"
    share: tuple[float, float] = (0.1, 0.9)
    augment: Augment = field(default_factory=Augment)
    schedule: Schedule = field(default_factory=lambda: Schedule(epochs=8.0, max_images=8000))

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "augment": Augment(size=96, colour=0.1),
            "schedule": Schedule(epochs=6, min_images=1000, max_images=4000, batch=32),
        },
        "paper": {
            "augment": Augment(size=320),
            "schedule": Schedule(epochs=8, min_images=0, max_images=10**9, batch=16, optimiser="sgd", lr=1e-4,
                                 head_lr=1e-3, weight_decay=5e-4, warmup=0.0),
        },
    }  # fmt: skip


@dataclass(frozen=True)
class StackLoss:
    """The tag losses of maps and auxiliary branch; `share` (n,) of the batch weighs the maps' one."""

    stack: Stack

    def count(self, batch: Batch) -> float:
        return len(batch["images"])

    def total(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, StackNet)
        maps, logits = model(model.backbone.preprocess(batch["images"].float() / 255))
        by_maps = tag_losses(pooled(maps.float(), self.stack), batch["tags"])  # dfs Eq. 10
        a = batch["share"]
        loss: Tensor = ((1 - a) * tag_losses(logits.float(), batch["tags"]) + a * by_maps).sum()  # dfs Eq. 11
        return loss + len(a) * self.stack.gate_cost * sum((g.sigmoid().sum() for g in model.gates), torch.zeros(()))


@dataclass(frozen=True)
class Rising:
    """Gives the batch of a step the weight of the maps' loss: from `share[0]` to `share[1]` over so many steps."""

    share: tuple[float, float]
    steps: int

    def __call__(self, step: int, batch: Batch) -> Batch:
        low, high = self.share
        a = low + (high - low) * step / max(self.steps - 1, 1)
        return {**batch, "share": torch.full((len(batch["images"]),), a)}


@stage(Weights, version=3)
def heads(work: Work, tagged: TaggedSet, classifier: Weights, cfg: Heads) -> None:
    """Heads on the mirror of a tag classifier; chooses levels where `stack.select` is "greedy"."""
    torch.manual_seed(int(cfg.seed))
    before = classify.load(classifier, tagged.classes)
    model = StackNet(before.backbone, len(tagged.classes), cfg.stack)
    if before.head.weight.shape == model.aux.weight.shape:
        with torch.no_grad():
            model.aux.weight.copy_(before.head.weight)
            model.aux.bias.copy_(before.head.bias)
    model.backbone.requires_grad_(False)
    new = [p for p in model.new() if p.requires_grad]
    taught(work, tagged, model, cfg, [], new, StackLoss(cfg.stack), Rising((1.0, 1.0), 1))
    meta = {n: classifier.meta[n] for n in ("backbone", "stride", "classes")}
    trail: list[dict[str, Any]] = []
    if cfg.stack.select == "greedy":
        draws = drawn_from(tagged.training(), cfg.augment, cfg.schedule.batch, int(cfg.seed) + 1)
        model.levels, trail = fewest(model, [draws(step) for step in range(BATCHES)], cfg.device)
    write(work, model, {**meta, "size": cfg.augment.size, "greedy": trail})


@stage(Weights, version=3)
def joint(work: Work, tagged: TaggedSet, stack: Weights, cfg: Joint) -> None:
    """Encoder, norms and heads together."""
    model = load(stack, tagged.classes)
    torch.manual_seed(int(cfg.seed))
    share = cfg.share if cfg.aux == "stl" else (1.0, 1.0)
    rising = Rising(share, steps(cfg.schedule, len(tagged.training())))
    taught(work, tagged, model, cfg, list(model.backbone.parameters()), model.new(), StackLoss(model.cfg), rising)
    write(work, model, {**stack.meta, "size": cfg.augment.size})


@torch.no_grad()
def fewest(model: StackNet, batches: Sequence[Batch], device: str) -> tuple[tuple[int, ...], list[dict[str, Any]]]:
    """The levels that are left when those are dropped whose lack raises the tag loss by less than `spare` of it.

    One by one, the least missed first; the mean loss of what was left is in the trail.
    """
    model.to(device).eval()
    kept, spare = model.levels, 1 + model.cfg.spare

    def loss(levels: tuple[int, ...]) -> float:
        model.levels = levels
        losses = []
        for batch in batches:
            maps, _ = model(model.backbone.preprocess(batch["images"].to(device).float() / 255))
            losses.append(tag_losses(pooled(maps.float(), model.cfg), batch["tags"].to(device)).mean())
        return float(torch.stack(losses).mean())

    whole = loss(kept)
    trail: list[dict[str, Any]] = [{"levels": list(kept), "loss": whole}]
    while len(kept) > 1:
        found, without = min((loss(rest), rest) for rest in (tuple(b for b in kept if b != out) for out in kept))
        if found > spare * whole:
            break
        kept = without
        trail.append({"levels": list(kept), "loss": found})
    return kept, trail
