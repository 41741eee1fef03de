"""Classifier and widening offsets learned in turn (ESOL's joint mode): a step for the tags, a step against them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tagseg.artifacts import Weights
from tagseg.data.index import TaggedSet
from tagseg.data.loader import drawn_from, prefetched
from tagseg.data.weights import Pretrained
from tagseg.localize.classify import Classify, Layer, TagNet, described, pool, tag_loss
from tagseg.localize.offset_sampling import SHARE, Expand, Pool, check, guessing, offsets_of
from tagseg.nets.backbones import build
from tagseg.nets.sampler import Sampler
from tagseg.store import Work, stage
from tagseg.training.loop import Batch, Task, fit
from tagseg.training.schedule import optimiser, steps
from tagseg.training.together import Together


@dataclass(frozen=True)
class Joint:
    """`classifier`: the network, its batches and its rates; `expand`: how the offsets climb in every second step, while
    the tag loss is under the ceiling ("guard": a fifth of that of guessing).
    """

    classifier: Classify = field(default_factory=Classify)
    expand: Expand = field(default_factory=Expand)


@stage(Weights, version=1)
def expansion(work: Work, tagged: TaggedSet, pretrained: Pretrained, cfg: Joint) -> None:
    """Weights like those of `offset_sampling.expansion`, from one training in which all of it moves."""
    check(cfg.expand)
    net, up = cfg.classifier, cfg.expand
    images, seed = tagged.training(), int(net.seed)
    torch.manual_seed(seed)
    layer = Layer(net.sampler, True, up.clip.kind, up.clip.beta, up.limit)
    model = TagNet(build(net.backbone, stride=net.stride, weights_state=pretrained.start), len(tagged.classes), [layer])
    climbing = list(offsets_of(model, 0))
    head = [p for p in (*model.samplers.parameters(), *model.head.parameters()) if all(p is not c for c in climbing)]
    optimisers = Together(
        optimiser(net.schedule, list(model.backbone.parameters()), head), optimiser(up.schedule, climbing, [])
    )
    ceiling = SHARE * guessing(images.tags) if up.ceiling == "guard" else float(up.ceiling)
    draws = drawn_from(images, net.augment, net.schedule.batch, seed)
    with prefetched(Turns(draws)) as batches:
        task = Task(
            model,
            optimisers,
            batches,
            InTurn(pool(net), up.alpha, ceiling),
            2 * steps(net.schedule, len(images)),
            seed,
            net.device,
            net.precision,
            lambda step: draws.names(step // 2),
        )
        fit(work, task, net.schedule)
    described(work, model, net, tagged.classes, draws.shapes.crops, {"ceiling": ceiling})


@dataclass(frozen=True)
class Turns:
    """Each batch twice: for the tags in even steps, against them in odd ones."""

    draws: Callable[[int], Batch]

    def __call__(self, step: int) -> Batch:
        batch = self.draws(step // 2)
        return {**batch, "against": torch.full((len(batch["tags"]),), bool(step % 2))}


@dataclass(frozen=True)
class InTurn:
    """The tag loss, of which the offsets learn nothing; or -alpha times it, of which only they do, up to `ceiling`."""

    pool: Pool
    alpha: float
    ceiling: float

    def count(self, batch: Batch) -> float:
        return len(batch["images"])

    def total(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, TagNet)
        against = bool(batch["against"][0])
        climbing = {id(p) for p in offsets_of(model, 0)}
        for parameter in model.parameters():
            parameter.requires_grad_((id(parameter) in climbing) == against)
        sampler = model.samplers[0]
        assert isinstance(sampler, Sampler)
        sampler.detached = not against
        model.train(not against)  # statistics of batch norms belong to the classifier's steps
        maps = model(model.backbone.preprocess(batch["images"].float() / 255))
        loss = tag_loss(model.head.logits(maps.float(), self.pool), batch["tags"])
        return -self.alpha * loss.clamp(max=self.ceiling * len(batch["tags"])) if against else loss
