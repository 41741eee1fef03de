"""Classifier and widening offsets learned in turn (ESOL's joint mode): a step for the tags, a step against them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from tagseg.artifacts import Weights
from tagseg.data.index import TaggedSet
from tagseg.data.loader import drawn_from, prefetched
from tagseg.data.weights import Pretrained
from tagseg.localize.classify import Classify, Layer, TagNet, described, flattened, pool, tag_losses, width_of
from tagseg.localize.expansion import SHARE, Expand, check, guessing
from tagseg.localize.sampling_layers import Clip, Pool, descent, moving, offsets_of
from tagseg.nets.backbones import build
from tagseg.nets.sampler import Sampler
from tagseg.store import Work, stage
from tagseg.training.loop import Batch, Task, fit
from tagseg.training.schedule import optimiser, steps
from tagseg.training.together import Together
from tagseg.types import UsageError


@dataclass(frozen=True)
class Joint:
    """`classifier`: the network, its batches, its length and its rates; the rest as in `Expand`. `rate` follows the
    course of the classifier's rates.
    """

    classifier: Classify = field(default_factory=Classify)
    alpha: float = 0.01
    rate: float = 0.1
    clip: Clip = field(default_factory=Clip)
    ceiling: float | Literal["guard"] = "guard"
    limit: float | None = None


def joint(classifier: Classify, up: Expand) -> Joint:
    """The settings of both stages as those of one. What this mode cannot do is refused."""
    check(up)
    if up.area is not None or up.head != "frozen":
        raise UsageError("expand.area and expand.head: no effect with mode=joint; leave them at null and frozen")
    return Joint(classifier, up.alpha, float(up.schedule.lr), up.clip, up.ceiling, up.limit)


@stage(Weights, version=1)
def expanded(work: Work, tagged: TaggedSet, pretrained: Pretrained, cfg: Joint) -> None:
    """Weights like those of `expansion.expanded`, from one training in which all of it moves."""
    net = cfg.classifier
    images, seed = tagged.training(), int(net.seed)
    torch.manual_seed(seed)
    backbone = build(net.backbone, stride=net.stride, weights_state=pretrained.start)
    model = TagNet(backbone, len(tagged.classes), [moving(Layer(width_of(net, backbone)), cfg.clip, cfg.limit)])
    climbing = offsets_of(model, 0)
    own = {id(p) for p in climbing}
    new = [p for p in (*model.samplers.parameters(), *model.head.parameters()) if id(p) not in own]
    # no momentum: it would carry the offsets on where the guard holds them
    up = descent(cfg.alpha * cfg.rate, momentum=0.0)
    optimisers = Together(optimiser(net.schedule, list(backbone.parameters()), new), optimiser(up, climbing, []))
    draws = drawn_from(images, net.augment, net.schedule.batch, seed)
    with prefetched(Turns(draws)) as batches:
        task = Task(
            model,
            optimisers,
            batches,
            InTurn(pool(net), None if cfg.ceiling == "guard" else float(cfg.ceiling), guessing(images.tags)),
            2 * steps(net.schedule, len(images)),
            seed,
            net.device,
            net.precision,
            lambda step: draws.names(step // 2),
        )
        fit(work, task, net.schedule)
    if cfg.alpha and not any(bool(p.detach().any()) for p in climbing):
        work.event("the offsets did not move: every tag loss was over its ceiling, in every step")
    described(work, model, net, tagged.classes, draws.shapes.crops)


@dataclass(frozen=True)
class Turns:
    """Each batch twice: for the tags in even steps, against them in odd ones."""

    draws: Callable[[int], Batch]

    def __call__(self, step: int) -> Batch:
        batch = self.draws(step // 2)
        return {**batch, "against": torch.full((len(batch["tags"]),), bool(step % 2))}


@dataclass(frozen=True)
class InTurn:
    """The tag loss, of which the offsets learn nothing; or minus it, of which only they do: up to each image's ceiling.

    An image's ceiling is `given`, or lies `SHARE` of the way from its loss without offsets to that of guessing.
    """

    pool: Pool
    given: float | None
    guessing: float

    def count(self, batch: Batch) -> float:
        return len(batch["images"])

    def total(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, TagNet)
        against, tags = bool(batch["against"][0]), batch["tags"]
        climbing = {id(p) for p in offsets_of(model, 0)}
        for parameter in model.parameters():
            parameter.requires_grad_((id(parameter) in climbing) == against)
        sampler = model.samplers[0]
        assert isinstance(sampler, Sampler)
        sampler.detached = not against
        model.train(not against)  # statistics of batch norms belong to the classifier's steps
        f = model.backbone(model.backbone.preprocess(batch["images"].float() / 255), ["last"])["last"]
        losses = self.losses(model, model.sampled(f), tags)
        if not against:
            return losses.sum()
        with torch.no_grad():
            still = self.losses(model, flattened(sampler.plain(f).relu(), model.layers[0]), tags)
            ceiling = still + SHARE * (self.guessing - still).clamp(min=0) if self.given is None else self.given
        return -losses.clamp(max=ceiling).sum()

    def losses(self, model: TagNet, features: Tensor, tags: Tensor) -> Tensor:
        """The tag loss of each image (n,) from what the head reads."""
        return tag_losses(model.head.logits(model.head(features).float(), self.pool), tags)
