"""The tag classifier: a recognition network that learns from image tags alone; its class maps are where it looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagseg import config
from tagseg.artifacts import Weights, write_weights
from tagseg.data.index import TaggedSet
from tagseg.data.loader import Augment, Draws, drawn_from, prefetched
from tagseg.data.weights import Pretrained
from tagseg.nets.backbones import Backbone, build
from tagseg.nets.sampler import Sampler
from tagseg.nets.tag_head import TagHead
from tagseg.ops import flattening, pooling
from tagseg.store import Work, stage
from tagseg.training.loop import Batch, Objective, Settings, learn
from tagseg.training.schedule import Schedule, Training, optimiser
from tagseg.types import DataError


@dataclass(frozen=True)
class Classify(Training):
    """`pooling` turns class maps into image scores: "gap" makes the maps exact CAMs, "lse" and "topk" seek peaks.

    `sampler`: channels of a 3x3 layer before the head, which `localize/expansion` can set in motion; "features": as
    many as the backbone gives; 0: no such layer.
    """

    backbone: str = "auto"
    stride: int = 16
    sampler: int | Literal["features"] = config.added(0)
    pooling: Literal["gap", "lse", "topk"] = "gap"
    lse_r: float = 4.0
    topk_share: float = 0.1
    augment: Augment = field(default_factory=Augment)
    schedule: Schedule = field(default_factory=lambda: Schedule(epochs=16.0, max_images=8000))

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


@dataclass(frozen=True)
class Layer:
    """One sampling layer before the head: its channels, whether its taps move, and how its output is flattened.

    `clip`: "channel_max" caps each channel of an image at `beta` times its maximum, "channel_quantile" at its quantile
    `beta`, "none" does not. `limit`: the longest offset in cells, None is free.
    """

    width: int
    moves: bool = False
    clip: Literal["channel_max", "channel_quantile", "none"] = "none"
    beta: float = 1.0
    limit: float | None = None


class TagNet(nn.Module):
    """Backbone, sampling layers, tag head: normalised images (n,3,h,w) to raw class maps (n,C,h',w') on the last grid.

    Frozen (`learns`), it stays in eval mode whatever is called, and only what was named gets gradients.
    """

    def __init__(self, backbone: Backbone, classes: int, layers: Sequence[Layer] = ()) -> None:
        super().__init__()
        self.backbone = backbone
        self.tap = backbone.tap("last")
        self.layers = tuple(layers)
        widths = [self.tap.channels, *(layer.width for layer in layers)]
        self.samplers = nn.ModuleList(
            Sampler(before, layer.width, moves=layer.moves, limit=layer.limit)
            for before, layer in zip(widths, layers, strict=False)
        )
        self.head = TagHead(widths[-1], classes)
        self.frozen = False

    def learns(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Freeze everything but these; returns them as a list."""
        only = list(parameters)
        self.requires_grad_(False)
        for parameter in only:
            parameter.requires_grad_(True)
        self.frozen = True
        return only

    def train(self, mode: bool = True) -> TagNet:
        """A frozen network does not leave eval mode: the statistics of batch norms stay what they are."""
        return super().train(mode and not self.frozen)

    def sampled(self, f: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Features (n,d,h',w') through the sampling layers `start` to `stop`."""
        for sampler, layer in list(zip(self.samplers, self.layers, strict=True))[start:stop]:
            f = flattened(F.relu(sampler(f)), layer)  # esol Eq. 2
        return f

    def features(self, x: Tensor) -> Tensor:
        """What the head reads (n,d,h',w')."""
        return self.sampled(self.backbone(x, ["last"])["last"])

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.head(self.features(x))
        return maps


class Headless(nn.Module):
    """A tag classifier as far as its head."""

    def __init__(self, model: TagNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.features(x)


def flattened(x: Tensor, layer: Layer) -> Tensor:
    """The layer's output under its cap."""
    if layer.clip == "channel_max":
        return flattening.clip_to_peak(x, layer.beta)
    return flattening.clip_to_quantile(x, layer.beta) if layer.clip == "channel_quantile" else x


@dataclass(frozen=True)
class TagLoss:
    """Multi-label soft margin: mean over classes of the binary cross-entropy of image logits, one per image; over the
    classes that are told, where not all are.
    """

    pool: Callable[[Tensor], Tensor]

    def count(self, batch: Batch) -> float:
        return len(batch["images"])

    def total(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, TagNet)
        maps = model(model.backbone.preprocess(batch["images"].float() / 255))
        return tag_loss(model.head.logits(maps.float(), self.pool), batch["tags"], batch.get("told"))


def tag_losses(logits: Tensor, tags: Tensor, told: Tensor | None = None) -> Tensor:
    """Multi-label soft margin of each image's logits (n,C), over the tags that are `told` (n,C; None: all): (n,)."""
    losses = F.binary_cross_entropy_with_logits(logits, tags.float(), reduction="none")  # cam Eq. 3
    return losses.mean(1) if told is None else (losses * told).sum(1) / told.sum(1).clamp(min=1)


def tag_loss(logits: Tensor, tags: Tensor, told: Tensor | None = None) -> Tensor:
    """`tag_losses` summed over images."""
    return tag_losses(logits, tags, told).sum()


@stage(Weights, version=3)
def train(work: Work, tagged: TaggedSet, pretrained: Pretrained, cfg: Classify) -> None:
    """Train the tag classifier on all images that have a tag row (negatives included)."""
    images = tagged.training()
    if not len(images):
        raise DataError(f"{tagged.name}: no image has a tag row; expected tags for at least one image in tags.csv")
    seed = int(cfg.seed)
    torch.manual_seed(seed)
    backbone = build(cfg.backbone, stride=cfg.stride, weights_state=pretrained.start)
    model = TagNet(backbone, len(tagged.classes), [Layer(width_of(cfg, backbone))] if cfg.sampler else [])
    model.to(memory_format=torch.channels_last)  # a step takes 1.2 to 2x less on a CPU
    body, head = list(model.backbone.parameters()), [*model.samplers.parameters(), *model.head.parameters()]
    draws = taught(work, tagged, model, cfg, body, head, TagLoss(pool(cfg)))
    described(work, model, cfg, tagged.classes, draws.shapes.crops)


class Taught(Settings, Protocol):
    """What a config says of training on tags."""

    @property
    def augment(self) -> Augment: ...


def taught(
    work: Work, tagged: TaggedSet, model: nn.Module, cfg: Taught, body: list[nn.Parameter], head: list[nn.Parameter],
    objective: Objective, more: Callable[[int, Batch], Batch] | None = None,
) -> Draws:  # fmt: skip
    """Train on all images that have a tag row as `cfg` says, `head` at a rate of its own; what the batches were.

    `more`: what is put to the batch of a step.
    """
    images = tagged.training()
    draws = drawn_from(images, cfg.augment, cfg.schedule.batch, int(cfg.seed))
    rates = optimiser(cfg.schedule, body, head)
    with prefetched(draws if more is None else lambda step: more(step, draws(step))) as batches:
        learn(work, cfg, model, rates, batches, objective, len(images), draws.names)
    return draws


def width_of(cfg: Classify, backbone: Backbone) -> int:
    """The channels of the sampling layer."""
    return backbone.tap("last").channels if cfg.sampler == "features" else int(cfg.sampler)


def described(
    work: Work, model: TagNet, cfg: Classify, classes: tuple[str, ...], crops: Sequence[tuple[int, int]],
    more: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write a classifier and what is needed to build and to read it again."""
    meta = {
        "backbone": cfg.backbone,
        "stride": cfg.stride,
        "classes": list(classes),
        "crops": [list(crop) for crop in crops],
        "size": cfg.augment.size,
        "pooling": cfg.pooling,
        "lse_r": cfg.lse_r,
        "topk_share": cfg.topk_share,
        "samplers": [asdict(layer) for layer in model.layers],
    }
    write_weights(work, model.state_dict(), {**meta, **(more or {})})


def pool(cfg: Classify) -> Callable[[Tensor], Tensor]:
    """Class maps (n,C,h,w) to image scores (n,C)."""
    if cfg.pooling == "lse":
        return partial(pooling.lse, r=cfg.lse_r)
    return partial(pooling.topk, share=cfg.topk_share) if cfg.pooling == "topk" else pooling.gap


def load(weights: Weights, classes: tuple[str, ...]) -> TagNet:
    """The trained classifier, in eval mode; its class names must be those of the data."""
    check_classes(weights.meta["classes"], classes, str(weights.path))
    return built(weights.meta, weights.tensors())


def built(meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TagNet:
    """A classifier from what `described` wrote, in eval mode."""
    layers = [Layer(**layer) for layer in meta.get("samplers", [])]  # weights of before 0.2 have none
    model = TagNet(build(meta["backbone"], stride=meta["stride"]), len(meta["classes"]), layers)
    model.load_state_dict(tensors)
    return model.eval()


def pooling_of(weights: Weights) -> Callable[[Tensor], Tensor]:
    """The pooling that a classifier was trained with."""
    return pool_by(weights.meta)


def pool_by(meta: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    """The same from what `described` wrote."""
    return pool(Classify(**{name: meta[name] for name in ("pooling", "lse_r", "topk_share")}))


def check_classes(found: list[str], expected: tuple[str, ...], where: str) -> None:
    """Class names travel with weights: refuse a network that was trained for other ones."""
    if tuple(found) != tuple(expected):
        raise DataError(
            f"{where}: trained for the classes {', '.join(found)}; the data has {', '.join(expected)}; "
            "give data with the same classes.txt, or train again"
        )
