"""Teach attention to tags and a decoder to outlines: masks of other classes show what an outline is (TransferNet)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tagseg.artifacts import Weights, write_weights
from tagseg.data.index import TaggedSet
from tagseg.data.loader import Augment, Draws, drawn_from, prefetched
from tagseg.data.other_masks import OtherMasks
from tagseg.data.weights import Pretrained
from tagseg.nets.attention_decoder import Encoded, Shape, TransferNet
from tagseg.nets.backbones import build
from tagseg.store import Work, stage
from tagseg.training.loop import Batch, learn, precision
from tagseg.training.schedule import Schedule, Training, number, optimiser
from tagseg.types import IGNORE, DataError

Size = tuple[int, int]
Judge = Literal["tags", "rows"]
CALIBRATED = 256  # images that the scale of the features is told from
TOGETHER = 16  # of them, of large batches, at once
ASKED = 128  # images that attention is tried on when it has learned
BRIGHT = 0.999  # the share of features that shall lie under 1
WHOLE = 1 / 6  # a row teaches attention of the whole map once, where that of cells learns from every cell


@dataclass(frozen=True)
class Attend(Training):
    """Attention and the classifier of what it looks at learn the tags of both sets; the decoder is not there yet.

    `scale`: what features are multiplied by; "measured": so that .999 of them lie under 1. `judge`: what the classifier
    of attended features learns from: "tags", of whole images; or "rows", from what attention shows it (the paper's).
    `whole_rate`: attention that sees the whole map ("fc", "fc_pooled") and its classifier learn at this share of
    `head_lr`; to "conv" it says nothing.
    """

    shape: Shape = field(default_factory=Shape)
    scale: float | Literal["measured"] = "measured"
    judge: Judge = "tags"
    whole_rate: float = WHOLE
    augment: Augment = field(default_factory=Augment)
    schedule: Schedule = field(default_factory=lambda: Schedule(4.0, min_images=2400, max_images=8000, batch=8))

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "shape": Shape(width=256),
            "augment": Augment(size=96, colour=0.1),
            "schedule": Schedule(epochs=6, min_images=1600, max_images=4000, batch=8),
        },
        "paper": {
            "shape": Shape(attention="fc", norm="none"),
            "judge": "rows",
            "whole_rate": 1.0,
            "augment": Augment(size=320, scale=(1.0, 1.0), square=True),
            "schedule": Schedule(epochs=10**6, min_images=0, max_images=960_000, batch=64, optimiser="adamw",
                                 head_lr=1e-3, weight_decay=0.0, warmup=0.0, power=0.0),
        },
    }  # fmt: skip


@dataclass(frozen=True)
class Draw(Training):
    """The decoder learns the outlines of the other classes, attention goes on learning the tags of all.

    `tags`, `masks`: weights of the two losses. `attention`: it goes on learning, by both, or stays as it was. `judge`,
    `whole_rate`: as in `Attend`.
    """

    tags: float = 1.0
    masks: float = 2.0
    judge: Judge = "tags"
    whole_rate: float = WHOLE
    attention: Literal["learns", "frozen"] = "learns"
    augment: Augment = field(default_factory=Augment)
    schedule: Schedule = field(default_factory=lambda: Schedule(6.0, min_images=4000, max_images=12000, batch=4))

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "augment": Augment(size=96, colour=0.1),
            "schedule": Schedule(epochs=10, min_images=3200, max_images=8000, batch=4),
        },
        "paper": {
            "judge": "rows",
            "whole_rate": 1.0,
            "augment": Augment(size=320, scale=(1.0, 1.0), square=True),
            "schedule": Schedule(epochs=10**6, min_images=0, max_images=960_000, batch=64, optimiser="adamw",
                                 head_lr=5e-4, weight_decay=0.0, warmup=0.0, power=0.0),
        },
    }  # fmt: skip


@dataclass(frozen=True)
class Alternating:
    """Batches of the target and of the source in turn, each with samplers of its own; tags among all K classes, of
    which those of an image's own side are `told`.

    `labels` of target images are 255 everywhere: nothing is known of their pixels.
    """

    target: Draws
    source: Draws
    offset: int  # the number of the target's classes, which come first

    def __call__(self, step: int) -> Batch:
        theirs = step % 2 == 1
        batch = (self.source if theirs else self.target)(step // 2)
        own, total = batch["tags"], self.offset + self.source.tags.shape[1]
        tags, told = torch.zeros(2, len(own), total, dtype=torch.bool)
        mine = slice(self.offset, None) if theirs else slice(self.offset)
        tags[:, mine], told[:, mine] = own, True
        labels = batch.get("labels")
        if labels is None or not theirs:
            labels = torch.full((len(own), *batch["images"].shape[2:]), IGNORE, dtype=torch.uint8)
        return {"images": batch["images"], "tags": tags, "told": told, "labels": labels}

    def names(self, step: int) -> list[str]:
        """The ids of a step's batch."""
        return (self.source if step % 2 else self.target).names(step // 2)


@dataclass(frozen=True)
class RowLoss:
    """The mean over rows (image, class) of the classifier's loss and, where masks are known, of the outline's.

    Attention is told a class and shows features to the classifier. Where both learn from that (judge "rows") they can
    agree on a sign for each class, anything that most images have, and nothing ties attention to the object. Judge
    "tags": the classifier learns which classes whole images have, as the mean over their cells, and attention alone
    learns from its rows.
    """

    tags: float
    masks: float
    offset: int
    judge: Judge = "tags"

    def count(self, batch: Batch) -> float:
        return float(batch["tags"].sum())

    def total(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, TransferNet)
        image, which = batch["tags"].nonzero(as_tuple=True)  # an image with several tags gives several rows
        if not len(image):
            return sum((p.sum() * 0.0 for p in model.attention.parameters()), torch.zeros(()))
        known = which >= self.offset
        drawing = bool(self.masks) and bool(known.any())
        encoded = model.encode(model.backbone.preprocess(batch["images"].float() / 255), switches=drawing)
        rows = encoded.rows(image)
        _, dense, logits = model(rows, F.one_hot(which, batch["tags"].shape[1]).bool(), judged=self.judge == "tags")
        loss = self.tags * F.cross_entropy(logits.float(), which, reduction="sum")  # transfernet Eq. 9
        if self.judge == "tags" and self.tags:
            wrong = F.binary_cross_entropy_with_logits(model.seen(encoded).float(), batch["tags"].float(),
                                                       batch["told"].float(), reduction="sum")
            loss = loss + self.tags * wrong / batch["told"].shape[1]
        if drawing:
            targets = outlines(batch["labels"][image[known]], which[known] - self.offset + 1)
            loss = loss + self.masks * self._drawn(model, dense[known], rows, known, targets)  # transfernet Eq. 13
        return loss

    @staticmethod
    def _drawn(model: TransferNet, dense: Tensor, rows: Encoded, known: Tensor, targets: Tensor) -> Tensor:
        mine = rows if bool(known.all()) else rows.rows(known.nonzero()[:, 0])
        logits = model.draw(dense, mine).float()
        return mask_losses(logits, targets).sum()


def outlines(labels: Tensor, which: Tensor) -> Tensor:
    """Labels (r,H,W) as 1 where they are the row's class (r,), 0 where they are anything else, 255 where not known."""
    labels = labels.long()
    found = (labels == which.to(labels).view(-1, 1, 1)).long()
    return torch.where(labels == IGNORE, IGNORE, found)


def mask_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy (r,) over the known pixels of each row; 0 where none is known."""
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none").flatten(1)
    return losses.sum(1) / (targets != IGNORE).flatten(1).sum(1).clamp(min=1)  # transfernet Eq. 12


@dataclass(frozen=True)
class Encoder:
    """The network that is looked through, and its stride."""

    backbone: str = "auto"
    stride: int = 16


@stage(Weights, version=1)
def pretrained(work: Work, start: Pretrained, cfg: Encoder) -> None:
    """The encoder as it came: pretrained on something else, and never trained on these tags."""
    backbone = build(cfg.backbone, stride=cfg.stride, weights_state=start.start)
    write_weights(work, {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()},
                  {"backbone": cfg.backbone, "stride": cfg.stride})  # fmt: skip


@stage(Weights, version=7)
def attention(work: Work, target: TaggedSet, source: TaggedSet, encoder: Weights, cfg: Attend) -> None:
    """Where each class of both sets lies, learned from tags alone on a frozen encoder: pretrained or a classifier's."""
    torch.manual_seed(int(cfg.seed))
    meta = encoder.meta
    classes = (*target.classes, *source.classes)
    draws = Alternating(
        drawn_from(with_tags(target), cfg.augment, cfg.schedule.batch, int(cfg.seed)),
        drawn_from(with_tags(source), cfg.augment, cfg.schedule.batch, int(cfg.seed) + 1),
        len(target.classes),
    )
    backbone = build(meta["backbone"], stride=meta["stride"])
    backbone.load_state_dict({name.removeprefix("backbone."): tensor for name, tensor in encoder.tensors().items()
                              if name.startswith("backbone.")})  # fmt: skip
    grid = None
    if cfg.shape.attention == "fc":
        crop = one_square({*draws.target.shapes.crops, *draws.source.shapes.crops})
        with torch.no_grad():  # and in eval mode: nothing of the encoder may move, its batch norms neither
            h, w = backbone.eval()(torch.zeros(1, 3, *crop), ["last"])["last"].shape[2:]
        grid = (h, w)
    model = TransferNet(backbone, len(classes), cfg.shape, grid)
    if cfg.shape.init == "gaussian" and cfg.shape.norm == "none":
        work.event("a fresh decoder of init=gaussian without a norm draws next to nothing: its logits hardly vary over "
                   "pixels, and it learns late; init=kaiming or norm=gn")
    model.scale.fill_(scale_of(model, draws) if cfg.scale == "measured" else float(cfg.scale))
    parts = model.learned(attention=True, decoder=False)
    _train(work, model, draws, RowLoss(1.0, 0.0, draws.offset, cfg.judge), cfg, parts)
    described(work, model, {"backbone": meta["backbone"], "stride": meta["stride"], "classes": list(target.classes),
                            "others": list(source.classes), "masked": [], "grid": grid,
                            "size": cfg.augment.size})  # fmt: skip


@stage(Weights, version=7)
def joint(work: Work, target: TaggedSet, aux: OtherMasks, before: Weights, cfg: Draw) -> None:
    """The same network with its decoder, taught the outlines of the other classes."""
    torch.manual_seed(int(cfg.seed))
    model = load(before)
    source = with_tags(aux.tagged)
    draws = Alternating(
        drawn_from(with_tags(target), cfg.augment, cfg.schedule.batch, int(cfg.seed)),
        drawn_from(source, cfg.augment, cfg.schedule.batch, int(cfg.seed) + 1, aux.mask),
        len(target.classes),
    )
    learns = cfg.attention == "learns"
    loss = RowLoss(cfg.tags if learns else 0.0, cfg.masks, draws.offset, cfg.judge)
    parts = model.learned(attention=learns, decoder=True)
    _train(work, model, draws, loss, cfg, parts)
    described(work, model, {**before.meta, "masked": list(aux.classes), "rest": aux.rest,
                            "size": cfg.augment.size})  # fmt: skip


@stage(Weights, version=7)
def adapted(work: Work, target: TaggedSet, before: Weights, cfg: Attend) -> None:
    """The same network for other classes: what names a class and tells classes apart is learned anew, attention goes on
    learning, encoder and decoder stay as they are. `cfg.shape` and `cfg.scale` are those of `before`.
    """
    if len(target.classes) < 2:
        raise DataError(f"{target.name}: found one class, {target.classes[0]!r}; expected two or more: attention "
                        "learns by telling classes apart")
    torch.manual_seed(int(cfg.seed))
    meta = {**before.meta, "classes": list(target.classes), "others": []}
    model = built(meta)
    anew = ("attention.name.", "classifier.layers.2.")
    kept = {n: t for n, t in before.tensors().items() if not n.startswith(("tagger.", *anew))}
    model.load_state_dict({**model.state_dict(), **kept})
    draws = drawn_from(with_tags(target), cfg.augment, cfg.schedule.batch, int(cfg.seed))
    rates = rated(model, cfg, model.learned(attention=True, decoder=False))

    def batch(step: int) -> Batch:
        one = draws(step)
        return {**one, "told": torch.ones_like(one["tags"]), "labels": torch.full_like(one["images"][:, 0], IGNORE)}

    loss = RowLoss(1.0, 0.0, len(target.classes), cfg.judge)
    with prefetched(batch) as batches:
        learn(work, cfg, model, rates, batches, loss, len(draws.ids), draws.names)
    _tried(work, model, batch, cfg, "attend")
    names = ("backbone", "stride", "classes", "others", "masked", "rest", "grid", "size")
    described(work, model, {n: meta[n] for n in names if n in meta})


def one_square(crops: set[Size]) -> Size:
    """The one crop that attention "fc" learns from. Errors: `DataError` where there are others: predicted are images of
    all shapes, in a square.
    """
    if len({side for crop in crops for side in crop}) > 1:
        raise DataError(f"attention \"fc\" sees one grid, and the images have crops of {sorted(crops)}; expected "
                        "attend.augment.square=true and draw.augment.square=true, or attend.shape.attention=conv")
    return next(iter(crops))


def crops_of(tagged: TaggedSet, cfg: Attend | Draw) -> set[Size]:
    """The shapes (h,w) in which a training shows the images of a set."""
    return set(drawn_from(with_tags(tagged), cfg.augment, cfg.schedule.batch, int(cfg.seed)).shapes.crops)


def with_tags(tagged: TaggedSet) -> TaggedSet:
    """The images that give a row: those with a tag."""
    return tagged.select(np.array(tagged.ids)[tagged.tags.any(1)].tolist())


def _train(work: Work, model: TransferNet, draws: Alternating, loss: RowLoss, cfg: Attend | Draw,
           parts: list[torch.nn.Parameter]) -> None:  # fmt: skip
    images = len(draws.target.ids) + len(draws.source.ids)
    with prefetched(draws) as batches:
        learn(work, cfg, model, rated(model, cfg, parts), batches, loss, images, draws.names)
    if loss.tags:
        _tried(work, model, draws, cfg, "attend" if isinstance(cfg, Attend) else "draw")


@torch.no_grad()
def _tried(work: Work, model: TransferNet, batch: Callable[[int], Batch], cfg: Attend | Draw, part: str) -> None:
    """Say so where what attention shows tells its class no better than a guess that looks at no image: the decoder is
    shown any place then, and nobody would see why. One image at a time: where the loop had to split batches for lack
    of memory a whole one would not fit here, either.
    """
    lost, asked = 0.0, torch.zeros(model.attention.name.in_features)
    for step in range(math.ceil(ASKED / cfg.schedule.batch)):
        given = batch(step)
        asked += given["tags"].sum(0)
        for at in range(len(given["tags"])):
            one = {name: tensor[at : at + 1].to(cfg.device) for name, tensor in given.items()}
            with precision(cfg.device, cfg.precision):
                lost += float(RowLoss(1.0, 0.0, 0, "rows").total(model, one))
    if rows := float(asked.sum()):
        guess = float(torch.special.entr(asked / rows).sum())  # who knows but how frequent classes are
        if lost / rows >= guess:
            slower = "" if model.shape.attention == "conv" else f"; {part}.whole_rate"
            work.event("attention does not show the classes it is asked for: on training images the loss of telling "
                       f"them is {lost / rows:.2f}, that of a guess {guess:.2f}; maps may be of any object. Learn "
                       f"longer ({part}.schedule), in larger batches, or slower ({part}.schedule.head_lr{slower})")


def rated(model: TransferNet, cfg: Attend | Draw, parts: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """All parts learn at `head_lr`, attention of the whole map and what judges it at their share of it."""
    if model.shape.attention == "conv":
        return optimiser(cfg.schedule, [], parts)
    attending = {*model.attention.parameters(), *model.classifier.parameters()}
    slower = replace(cfg.schedule, lr=cfg.whole_rate * number(cfg.schedule.head_lr, "head_lr"))
    return optimiser(slower, [part for part in parts if part in attending],
                     [part for part in parts if part not in attending])  # fmt: skip


@torch.no_grad()
def scale_of(model: TransferNet, draws: Alternating) -> float:
    """1 over the mean quantile of the features of a few batches."""
    model.eval()
    found = []
    for step in range(max(1, CALIBRATED // draws.target.batch)):
        images = draws(step)["images"]
        seen = [model.encode(model.backbone.preprocess(some.float() / 255), switches=False).features.numpy()
                for some in images.split(TOGETHER)]  # fmt: skip
        found.append(np.quantile(np.concatenate(seen), BRIGHT))
    return float(1 / max(float(np.mean(found)), 1e-6))


def described(work: Work, model: TransferNet, meta: dict[str, Any]) -> None:
    """Write a network and what is needed to build it again."""
    write_weights(work, model.state_dict(), {**meta, "shape": asdict(model.shape)})


def load(weights: Weights) -> TransferNet:
    """The trained network, in eval mode."""
    model = built(weights.meta)
    model.load_state_dict({n: t for n, t in weights.tensors().items() if not n.startswith("tagger.")})
    return model.eval()


def built(meta: Mapping[str, Any]) -> TransferNet:
    """A network as `described` it, with random weights."""
    grid: Size | None = (meta["grid"][0], meta["grid"][1]) if meta["grid"] else None
    many = len(meta["classes"]) + len(meta["others"])
    return TransferNet(build(meta["backbone"], stride=meta["stride"]), many, Shape(**meta["shape"]), grid)
