"""Train a segmentation network on labels, whoever made them; pixels labelled 255 do not count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tagseg.artifacts import LabelSet, Weights, write_weights
from tagseg.config import added
from tagseg.data.index import TaggedSet
from tagseg.data.loader import Augment, Draws, drawn_from, lined_up, prefetched
from tagseg.data.weights import Pretrained
from tagseg.nets.backbones import build
from tagseg.nets.deeplab import DeepLabV3Plus, LargeFov, Segmenter
from tagseg.ops.geometry import align, resample
from tagseg.store import Work, stage
from tagseg.training.loop import Batch, learn
from tagseg.training.schedule import Schedule, Training, optimiser
from tagseg.types import IGNORE

Head = Literal["v3plus", "largefov"]


@dataclass(frozen=True)
class Segment(Training):
    """`head`: "v3plus" (DeepLab v3+, fine features joined) or "largefov"; `positives`: least share of tagged draws.

    `balance`: each class counts by 1/sqrt of its share of labelled pixels; without it rare classes are learned last.
    `undo`: how much of these weights the finished scores are rid of again. 1: the network gives a class the share that
    it has of the labels, which is right where these are complete; 0: objects are seen more often than labels say, which
    makes up for labels that miss some.
    """

    backbone: str = "auto"
    stride: int = 16
    head: Head = "v3plus"
    width: int = 128
    augment: Augment = field(default_factory=lambda: Augment(scale=(0.7, 1.5)))
    schedule: Schedule = field(default_factory=lambda: Schedule(4.0, min_images=2400, max_images=6000, batch=8))
    positives: float = 0.5
    balance: bool = True
    undo: float = added(0.0)

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "augment": Augment(size=96, colour=0.1),
            "width": 64,
            "stride": 8,
            "schedule": Schedule(epochs=6, min_images=1000, max_images=2400, batch=8),
        },
        # DeepLab as LPCAM trains it: crop 321, 20k iterations of batch 5; rates follow the backbone
        "paper": {
            "augment": Augment(size=321, scale=(0.5, 1.5)),
            "schedule": Schedule(epochs=10**6, min_images=0, max_images=100_000, batch=5, warmup=0.0),
        },
    }


def make(cfg: Described, outputs: int, state: Mapping[str, Tensor] | None) -> Segmenter:
    """The network with `outputs` classes (background included where the set has one)."""
    backbone = build(cfg.backbone, stride=cfg.stride, weights_state=state)
    last = backbone.tap("last")
    head = (
        LargeFov(last, outputs, width=8 * cfg.width, dilation=12)
        if cfg.head == "largefov"
        else DeepLabV3Plus(last, backbone.tap("low"), outputs, align=align, width=cfg.width)
    )
    return Segmenter(backbone, head)


@dataclass(frozen=True)
class PixelLoss:
    """Cross-entropy over labelled pixels at the crop's full size, divided by the sum of their weights.

    `shift` is 1 where there is no background class; `weights` float32 (K,) of the outputs.
    """

    shift: int
    weights: Tensor

    def count(self, batch: Batch) -> float:
        labels = batch["labels"].long()
        return float(self.weights[labels[labels != IGNORE] - self.shift].sum())

    def total(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Segmenter)
        images, labels = batch["images"], batch["labels"].long()
        size = (images.shape[2], images.shape[3])
        logits = model(model.backbone.preprocess(images.float() / 255))
        full = resample(logits, stride=model.stride, offset=model.offset, in_size=size, out_size=size)
        target = torch.where(labels == IGNORE, IGNORE, labels - self.shift)
        weights = self.weights.to(full)
        return F.cross_entropy(full, target, weights, ignore_index=IGNORE, reduction="sum")  # cam Eq. 11  # mcof Eq. 9


@stage(Weights, version=4)
def segmenter(work: Work, tagged: TaggedSet, labels: LabelSet, pretrained: Pretrained, cfg: Segment) -> None:
    """Train from pretrained weights on `labels`; tags only steer how often an image is drawn."""
    torch.manual_seed(int(cfg.seed))
    _trained(work, tagged, labels, make(cfg, outputs(tagged), pretrained.start), cfg)


@stage(Weights, version=3)
def onward(work: Work, tagged: TaggedSet, labels: LabelSet, before: Weights, cfg: Segment) -> None:
    """The same, going on from a trained segmenter."""
    torch.manual_seed(int(cfg.seed))
    model = make(cfg, outputs(tagged), None)
    model.load_state_dict(before.tensors())
    _trained(work, tagged, labels, model, cfg)


def outputs(tagged: TaggedSet) -> int:
    """How many classes a segmenter tells apart, background included where the set has one."""
    return len(tagged.classes) + int(tagged.has_background)


def _trained(work: Work, tagged: TaggedSet, labels: LabelSet, model: Segmenter, cfg: Segment) -> None:
    shift = 0 if tagged.has_background else 1
    weights = class_weights(labels, tagged.ids, outputs(tagged), shift, cfg.balance)
    pixels = partial(pixels_of, labels)
    draws = drawn_from(tagged, cfg.augment, cfg.schedule.batch, int(cfg.seed), pixels, cfg.positives)
    rates = optimiser(cfg.schedule, list(model.backbone.parameters()), list(model.head.parameters()))
    with prefetched(draws) as batches:
        learn(work, cfg, model, rates, batches, PixelLoss(shift, weights), len(tagged), draws.names)
    undo_weights(model, weights, cfg.undo)
    described(work, model, cfg, tagged, draws)


class Described(Protocol):
    """What of a config a trained segmenter is built from again."""

    @property
    def backbone(self) -> str: ...
    @property
    def stride(self) -> int: ...
    @property
    def head(self) -> Head: ...
    @property
    def width(self) -> int: ...
    @property
    def augment(self) -> Augment: ...
    @property
    def positives(self) -> float: ...


def described(work: Work, model: Segmenter, cfg: Described, tagged: TaggedSet, draws: Draws) -> None:
    """Write a segmenter and what is needed to build and to read it again."""
    write_weights(
        work,
        model.state_dict(),
        {
            "backbone": cfg.backbone,
            "stride": cfg.stride,
            "head": cfg.head,
            "width": cfg.width,
            "size": cfg.augment.size,
            "crops": [list(crop) for crop in draws.shapes.crops],
            "classes": list(tagged.classes),
            "has_background": tagged.has_background,
            "tag_shares": tagged.tags[lined_up(tagged.tags, cfg.positives)].mean(0).tolist(),  # as they were drawn
        },
    )


def class_weights(labels: LabelSet, ids: tuple[str, ...], outputs: int, shift: int, balance: bool) -> Tensor:
    """Weights (K,) of the outputs: 1/sqrt of the share of labelled pixels, 1 on average; 0 where a class is not."""
    counts = np.zeros(IGNORE + 1, np.int64)
    for sample in ids:
        counts += np.bincount(labels.get(sample).pixels.ravel(), minlength=IGNORE + 1)
    found = counts[shift : shift + outputs].astype(np.float64)
    rough = np.where(found > 0, found.clip(1) ** -0.5 if balance else 1.0, 0.0)
    return torch.tensor(rough * found.sum() / max((rough * found).sum(), 1e-12), dtype=torch.float32)


@torch.no_grad()
def undo_weights(model: Segmenter, weights: Tensor, share: float) -> None:
    """Take class weights (K,) of the loss out of the scores: trained with them softmax gives w_k p_k / sum w p, not p.

    Classes that no pixel was labelled with keep their bias.
    """
    bias = model.head.score.bias
    assert bias is not None
    bias -= share * torch.where(weights > 0, weights, 1.0).log().to(bias)


def pixels_of(labels: LabelSet, sample: str) -> Any:
    return labels.get(sample).pixels


def load(weights: Weights) -> Segmenter:
    """The trained segmenter, in eval mode."""
    meta = weights.meta
    cfg = Segment(backbone=meta["backbone"], stride=meta["stride"], head=meta["head"], width=meta["width"])
    model = make(cfg, len(meta["classes"]) + int(meta["has_background"]), None)
    model.load_state_dict(weights.tensors())
    return model.eval()
