"""The tag classifier: a recognition network that learns from image tags alone; its class maps are where it looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagseg.artifacts import Weights, write_weights
from tagseg.data.index import TaggedSet
from tagseg.data.loader import Augment, drawn_from, prefetched
from tagseg.data.weights import Pretrained
from tagseg.nets.backbones import Backbone, build
from tagseg.nets.tag_head import TagHead
from tagseg.ops import pooling
from tagseg.store import Work, stage
from tagseg.training.loop import Batch, Task, fit
from tagseg.training.schedule import Auto, Schedule, optimiser, steps
from tagseg.types import DataError


@dataclass(frozen=True)
class Classify:
    """`pooling` turns class maps into image scores: "gap" makes the maps exact CAMs, "lse" and "topk" seek peaks."""

    backbone: str = "auto"
    stride: int = 16
    pooling: Literal["gap", "lse", "topk"] = "gap"
    lse_r: float = 4.0
    topk_share: float = 0.1
    augment: Augment = field(default_factory=Augment)
    schedule: Schedule = field(default_factory=lambda: Schedule(epochs=5.0, max_images=9000))
    seed: int | Auto = "auto"
    device: str = "auto"
    precision: str = "auto"

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "augment": Augment(size=96, colour=0.1),
            "stride": 8,
            "schedule": Schedule(epochs=10, min_images=1000, max_images=4000, batch=32),
        },
        # IRN's classification step: 5 epochs of batch 16, crop 512, poly .9. Its SGD .1 belongs to its ResNet-50: rates
        # follow the backbone here, too (--set classifier.schedule.optimiser=sgd, lr, head_lr for the original)
        "paper": {
            "augment": Augment(size=512, scale=(0.6, 1.25)),
            "schedule": Schedule(epochs=5, min_images=0, max_images=10**9, batch=16, warmup=0.0),
        },
    }


class TagNet(nn.Module):
    """Backbone and tag head: normalised images (n,3,h,w) to raw class maps (n,C,h',w') on the backbone's last grid."""

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.tap = backbone.tap("last")
        self.head = TagHead(self.tap.channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.head(self.backbone(x, ["last"])["last"])
        return maps


@dataclass(frozen=True)
class TagLoss:
    """Multi-label soft margin: mean over classes of the binary cross-entropy of image logits, one per image."""

    pool: Callable[[Tensor], Tensor]

    def count(self, batch: Batch) -> float:
        return len(batch["images"])

    def total(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, TagNet)
        maps = model(model.backbone.preprocess(batch["images"].float() / 255))
        logits = model.head.logits(maps.float(), self.pool)
        each = F.binary_cross_entropy_with_logits(logits, batch["tags"].float(), reduction="none")
        return each.mean(1).sum()  # cam Eq. 3


@stage(Weights, version=2)
def train(work: Work, tagged: TaggedSet, pretrained: Pretrained, cfg: Classify) -> None:
    """Train the tag classifier on all images that have a tag row (negatives included)."""
    images = tagged.training()
    if not len(images):
        raise DataError(f"{tagged.name}: no image has a tag row; expected tags for at least one image in tags.csv")
    seed = int(cfg.seed)
    torch.manual_seed(seed)
    model = TagNet(build(cfg.backbone, stride=cfg.stride, weights_state=pretrained.start), len(tagged.classes))
    draws = drawn_from(images, cfg.augment, cfg.schedule.batch, seed)
    body, head = list(model.backbone.parameters()), list(model.head.parameters())
    with prefetched(draws) as batches:
        task = Task(
            model,
            optimiser(cfg.schedule, body, head),
            batches,
            TagLoss(pool(cfg)),
            steps(cfg.schedule, len(images)),
            seed,
            cfg.device,
            cfg.precision,
            draws.names,
        )
        fit(work, task, cfg.schedule)
    write_weights(
        work,
        model.state_dict(),
        {
            "backbone": cfg.backbone,
            "stride": cfg.stride,
            "classes": list(tagged.classes),
            "crops": [list(crop) for crop in draws.shapes.crops],
            "size": cfg.augment.size,
            "pooling": cfg.pooling,
            "lse_r": cfg.lse_r,
            "topk_share": cfg.topk_share,
        },
    )


def pool(cfg: Classify) -> Callable[[Tensor], Tensor]:
    """Class maps (n,C,h,w) to image scores (n,C)."""
    if cfg.pooling == "lse":
        return partial(pooling.lse, r=cfg.lse_r)
    return partial(pooling.topk, share=cfg.topk_share) if cfg.pooling == "topk" else pooling.gap


def load(weights: Weights, classes: tuple[str, ...]) -> TagNet:
    """The trained classifier, in eval mode; its class names must be those of the data."""
    meta = weights.meta
    check_classes(meta["classes"], classes, str(weights.path))
    model = TagNet(build(meta["backbone"], stride=meta["stride"]), len(classes))
    model.load_state_dict(weights.tensors())
    return model.eval()


def check_classes(found: list[str], expected: tuple[str, ...], where: str) -> None:
    """Class names travel with weights: refuse a network that was trained for other ones."""
    if tuple(found) != tuple(expected):
        raise DataError(
            f"{where}: trained for the classes {', '.join(found)}; the data has {', '.join(expected)}; "
            "give data with the same classes.txt, or train again"
        )
