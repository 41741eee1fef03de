"""Learn where to sample: offsets that widen a classifier's maps, then offsets that narrow them (ESOL, NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagseg.artifacts import Scores, Weights, write_scores, write_weights
from tagseg.data.index import TaggedSet
from tagseg.data.loader import Augment, Draws, drawn_from, prefetched
from tagseg.inference import net_shape, resized
from tagseg.localize.cam import Cam
from tagseg.localize.classify import Layer, TagNet, load, pooling_of, tag_loss
from tagseg.nets.backbones import build
from tagseg.ops.flattening import area, by_peak
from tagseg.ops.scores import EPS
from tagseg.store import Work, stage
from tagseg.training.loop import Batch, Task, fit
from tagseg.training.schedule import Auto, Schedule, optimiser, steps
from tagseg.types import DataError, UsageError

Pool = Callable[[Tensor], Tensor]
WINDOW = 8  # batches over which the guard takes its mean
CHANCE = float(np.log(2))
SHARE = 0.2  # how far from knowing to guessing the ascent may go


def _sgd(rate: float, **more: Any) -> Schedule:
    """Plain descent at one rate from the first step to the last, no decay: it would pull offsets back to zero."""
    return Schedule(**{"min_images": 0, "optimiser": "sgd", "lr": rate, "head_lr": rate, "weight_decay": 0.0,
                       "warmup": 0.0, "power": 0.0, **more})  # fmt: skip


@dataclass(frozen=True)
class Clip:
    """How the output of a sampling layer is flattened: see `classify.Layer`."""

    kind: Literal["channel_max", "channel_quantile", "none"] = "channel_max"
    beta: float = 0.5


@dataclass(frozen=True)
class Expand:
    """Ascent of the tag loss by the offsets alone: what counts is `alpha` times the rate.

    `ceiling`: the ascent stops where the tag loss goes over it; "guard" is `guard_ceiling`. `area`: it also stops where
    the mean area of the maps has reached this share of the image. `limit`: the longest offset in cells. `head`:
    "train" lets the head flee, too, and is there to show that it collapses.
    """

    alpha: float = 0.01
    clip: Clip = field(default_factory=Clip)
    ceiling: float | Literal["guard"] = "guard"
    area: float | None = None
    limit: float | None = None
    head: Literal["frozen", "train"] = "frozen"
    augment: Augment = field(default_factory=Augment)
    schedule: Schedule = field(default_factory=lambda: _sgd(0.1, epochs=1.0, max_images=4000))
    seed: int | Auto = "auto"
    device: str = "auto"
    precision: str = "auto"

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"augment": Augment(size=96, colour=0.1), "schedule": _sgd(0.1, epochs=1.0, batch=32)},
        "paper": {"augment": Augment(size=512, scale=(0.6, 1.25))},
    }


@dataclass(frozen=True)
class Second:
    """The second layer and head learn the tags on the widened, flattened features. `width`: channels of the layer."""

    width: int = 256
    augment: Augment = field(default_factory=Augment)
    schedule: Schedule = field(default_factory=lambda: Schedule(2.0, min_images=1600, max_images=4000))
    seed: int | Auto = "auto"
    device: str = "auto"
    precision: str = "auto"

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "width": 128,
            "augment": Augment(size=96, colour=0.1),
            "schedule": Schedule(epochs=4, min_images=600, max_images=2000, batch=32),
        },
        "paper": {
            "width": 2048,
            "augment": Augment(size=512, scale=(0.6, 1.25)),
            "schedule": _sgd(0.02, epochs=5.0, momentum=0.0, weight_decay=1e-4, power=0.9),
        },
    }


@dataclass(frozen=True)
class Shrink:
    """Descent of tag loss plus `weight` times the area of the maps by the second layer's offsets.

    `area`: what a map is divided by before its mean is taken: its maximum without ("detached_max") or with ("max") a
    gradient, the maximum that it has before it shrinks ("fixed_max"), the maximum within two cells ("local_max"), or
    nothing, its logistic ("sigmoid"). `tags`: "bound" counts the tag loss only where it is over that of the start: a
    constraint in place of a sum. `negatives`: weight of what the maps of absent classes still show. `head`: whether the
    second head moves along.
    """

    weight: float = 0.1
    area: Literal["detached_max", "max", "fixed_max", "local_max", "sigmoid"] = "detached_max"
    tags: Literal["loss", "bound"] = "loss"
    negatives: float = 0.0
    limit: float | None = None
    head: Literal["frozen", "train"] = "frozen"
    augment: Augment = field(default_factory=Augment)
    schedule: Schedule = field(default_factory=lambda: _sgd(0.02, epochs=1.0, max_images=4000))
    seed: int | Auto = "auto"
    device: str = "auto"
    precision: str = "auto"

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"augment": Augment(size=96, colour=0.1), "schedule": _sgd(0.02, epochs=2.0, batch=32)},
        "paper": {"augment": Augment(size=512, scale=(0.6, 1.25))},
    }


@stage(Weights, version=1)
def expansion(work: Work, tagged: TaggedSet, classifier: Weights, cfg: Expand) -> None:
    """The classifier with offsets in its sampling layer that make it do worse, so that evidence is found elsewhere."""
    check(cfg)
    layer = _only_layer(classifier)
    moving = replace(layer, moves=True, clip=cfg.clip.kind, beta=cfg.clip.beta, limit=cfg.limit)
    model = with_layers(classifier, tagged.classes, [moving])
    learning = list(offsets_of(model, 0)) + (list(model.head.parameters()) if cfg.head == "train" else [])
    model.learns(learning)
    images, pooled = tagged.training(), pooling_of(classifier)
    draws = drawn_from(images, cfg.augment, cfg.schedule.batch, int(cfg.seed))
    start = mean_tag_loss(model, draws, pooled, cfg.device)
    guard = Guard(guard_ceiling(start, images.tags) if cfg.ceiling == "guard" else float(cfg.ceiling), cfg.alpha)
    total = steps(cfg.schedule, len(images)) if cfg.alpha else 0
    with prefetched(draws) as batches:
        task = Task(
            model,
            optimiser(cfg.schedule, learning, []),
            batches,
            Ascent(pooled, cfg.alpha),
            total,
            int(cfg.seed),
            cfg.device,
            cfg.precision,
            draws.names,
            partial(_enough, guard=guard, wide=Wide(model, draws, cfg.area, cfg.device)),
        )
        fit(work, task, cfg.schedule)
    write(work, model, classifier, {"tag_loss_at_start": start, "ceiling": guard.ceiling})


def check(cfg: Expand) -> None:
    """Settings with which the ascent cannot work are refused before it begins."""
    if cfg.alpha < 0:
        raise UsageError(f"expand.alpha: found {cfg.alpha}, expected 0 or more (below 0 would train the classifier)")
    if cfg.ceiling != "guard" and not 0 < float(cfg.ceiling) <= CHANCE:
        raise UsageError(
            f"expand.ceiling: found {cfg.ceiling}, expected guard or a tag loss in (0, {CHANCE:.3f}]: over the loss of "
            "guessing the maps have nothing left to show"
        )


def guard_ceiling(start: float, tags: np.ndarray) -> float:
    """Where the ascent must end: a fifth of the way from the loss at its start to that of guessing, 5 times the start
    at most.

    Guessing: the entropy of how often each class is tagged (N,C). The specification's guard, min(.2 ln 2, 5 start), is
    this where the start is near 0 and tags are even; a classifier that stands above .14 could not move at all by it.
    """
    return min(start + SHARE * max(guessing(tags) - start, 0.0), 5 * start)


def guessing(tags: np.ndarray) -> float:
    """The tag loss of who knows only how often each class is tagged (N,C)."""
    share = np.clip(tags.mean(0), 1e-6, 1 - 1e-6)
    return float(-(share * np.log(share) + (1 - share) * np.log(1 - share)).mean())


@dataclass(frozen=True)
class Ascent:
    """-alpha times the tag loss."""

    pool: Pool
    alpha: float

    def count(self, batch: Batch) -> float:
        return len(batch["images"])

    def total(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, TagNet)
        maps = model(model.backbone.preprocess(batch["images"].float() / 255))
        loss = tag_loss(model.head.logits(maps.float(), self.pool), batch["tags"])  # esol Eq. 4
        return -self.alpha * loss  # esol Eq. 5


@dataclass(frozen=True)
class Guard:
    """Stops an ascent, whose loss knows no upper bound, where the running mean of the tag loss is over a ceiling."""

    ceiling: float
    alpha: float

    def __call__(self, history: list[list[float]]) -> str | None:
        if len(history) < WINDOW:
            return None
        now = -float(np.mean([row[1] for row in history[-WINDOW:]])) / self.alpha
        if now <= self.ceiling:
            return None
        return (
            f"the tag loss is {now:.3f}, the mean of {WINDOW} batches, and its ceiling {self.ceiling:.3f}, with alpha "
            f"{self.alpha}; for a longer ascent lower expand.alpha or the rate, not the guard: maps collapse beyond it"
        )


@dataclass(frozen=True)
class Wide:
    """Stops an ascent where the maps are wide enough: their mean area on the first batch, looked at every few steps."""

    model: TagNet
    draws: Draws
    wanted: float | None
    device: str

    def __call__(self, history: list[list[float]]) -> str | None:
        if self.wanted is None or not history or len(history) % 5:
            return None
        now = mean_area(self.model, self.draws, self.device)
        return f"the mean area of the maps is {now:.3f}, wanted {self.wanted}" if now >= self.wanted else None


def _enough(history: list[list[float]], guard: Guard, wide: Wide) -> str | None:
    return guard(history) or wide(history)


@stage(Weights, version=1)
def second(work: Work, tagged: TaggedSet, expanded: Weights, cfg: Second) -> None:
    """A second layer and head, without offsets, trained on the widened and flattened features of the first."""
    torch.manual_seed(int(cfg.seed))
    model = with_layers(expanded, tagged.classes, [_only_layer(expanded), Layer(cfg.width)], head=False)
    body = model.learns([*model.samplers[1].parameters(), *model.head.parameters()])
    _train(work, tagged, model, expanded, cfg, body, TagsOnly(pooling_of(expanded)))


@stage(Weights, version=1)
def shrinkage(work: Work, tagged: TaggedSet, twofold: Weights, cfg: Shrink) -> None:
    """The second layer's offsets (and, if asked for, its head) learn the tags with maps as small as these allow."""
    layers = _layers(twofold)
    if len(layers) != 2:
        raise DataError(f"{twofold.path}: found {len(layers)} sampling layers, expected those of `second`: 2")
    model = with_layers(twofold, tagged.classes, [layers[0], replace(layers[1], moves=True, limit=cfg.limit)])
    learning = [*offsets_of(model, 1), *(model.head.parameters() if cfg.head == "train" else [])]
    pooled, learning = pooling_of(twofold), model.learns(learning)
    floor = 0.0
    if cfg.tags == "bound":
        draws = drawn_from(tagged.training(), cfg.augment, cfg.schedule.batch, int(cfg.seed))
        floor = mean_tag_loss(model, draws, pooled, cfg.device)
    _train(work, tagged, model, twofold, cfg, learning, Shrinking(pooled, cfg.area, cfg.weight, cfg.negatives, floor))


def _train(
    work: Work, tagged: TaggedSet, model: TagNet, before: Weights, cfg: Second | Shrink, learning: list[nn.Parameter],
    objective: TagsOnly | Shrinking,
) -> None:  # fmt: skip
    images = tagged.training()
    draws = drawn_from(images, cfg.augment, cfg.schedule.batch, int(cfg.seed))
    with prefetched(draws) as batches:
        task = Task(
            model,
            optimiser(cfg.schedule, [], learning),
            batches,
            objective,
            steps(cfg.schedule, len(images)),
            int(cfg.seed),
            cfg.device,
            cfg.precision,
            draws.names,
        )
        fit(work, task, cfg.schedule)
    write(work, model, before, {})


@dataclass(frozen=True)
class TagsOnly:
    """The tag loss of the second layer, on features that get no gradient."""

    pool: Pool

    def count(self, batch: Batch) -> float:
        return len(batch["images"])

    def total(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, TagNet)
        maps = model.head(model.sampled(widened(model, batch["images"]), 1))
        return tag_loss(model.head.logits(maps.float(), self.pool), batch["tags"])


@dataclass(frozen=True)
class Shrinking:
    """Tag loss over `floor`, plus the area of the maps, plus what the maps of absent classes show."""

    pool: Pool
    kind: str
    weight: float
    negatives: float
    floor: float = 0.0

    def count(self, batch: Batch) -> float:
        return len(batch["images"])

    def total(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, TagNet)
        wide, tags = widened(model, batch["images"]), batch["tags"]
        maps = model.head(model.sampled(wide, 1)).float()
        loss = (tag_loss(model.head.logits(maps, self.pool), tags) - self.floor * len(tags)).clamp(min=0)
        loss = loss + self.weight * area(self.shares(model, wide, maps), tags).sum()  # esol Eq. 7
        if self.negatives:
            loss = loss + self.negatives * area(maps.relu(), ~tags).sum()
        return loss

    def shares(self, model: TagNet, wide: Tensor, maps: Tensor) -> Tensor:
        """Maps (n,C,h,w) as shares of what `kind` says."""
        if self.kind == "sigmoid":
            return torch.sigmoid(maps)
        if self.kind == "max":
            return by_peak(maps)
        if self.kind == "local_max":
            near = F.max_pool2d(maps.relu(), 5, stride=1, padding=2)
            return maps.relu() / (near + EPS)
        if self.kind == "fixed_max":
            with torch.no_grad():
                layer: Any = model.samplers[1]
                still = model.head(F.relu(layer.plain(wide)))
            return by_peak(maps, still.relu().amax((2, 3)))
        return by_peak(maps, maps.detach().relu().amax((2, 3)))


@torch.no_grad()
def widened(model: TagNet, images: Tensor) -> Tensor:
    """The features that the first layer leaves: nothing of what follows reaches it."""
    x = model.backbone.preprocess(images.float() / 255)
    return model.sampled(model.backbone(x, ["last"])["last"], 0, 1)  # esol Eq. 6


@contextmanager
def _looking(model: TagNet, device: str) -> Iterator[None]:
    model.to(device).eval()
    with torch.no_grad():
        yield


def mean_tag_loss(model: TagNet, draws: Draws, pooled: Pool, device: str) -> float:
    """The tag loss of a model as it stands, on the first `WINDOW` batches."""
    losses = []
    with _looking(model, device):
        for batch in (draws(step) for step in range(WINDOW)):
            maps = model(model.backbone.preprocess(batch["images"].to(device).float() / 255))
            loss = tag_loss(model.head.logits(maps.float(), pooled), batch["tags"].to(device))
            losses.append(float(loss) / len(batch["tags"]))
    return float(np.mean(losses))


def mean_area(model: TagNet, draws: Draws, device: str) -> float:
    """The mean area of the maps of present classes on the first batch."""
    batch = draws(0)
    with _looking(model, device):
        maps = model(model.backbone.preprocess(batch["images"].to(device).float() / 255))
        return float(area(by_peak(maps.float()), batch["tags"].to(device)).mean())


@stage(Scores, version=1)
def reach(work: Work, tagged: TaggedSet, weights: Weights, cfg: Cam) -> None:
    """Where the last layer's taps go on each image as shown at scale 1: for pictures.

    By id: `offsets` (18,h,w) in cells, (dy, dx) tap by tap; `shown` (H,W), the image's size as the network saw it;
    `stride` and `offset` of the cells there.
    """
    model = load(weights, tagged.classes)
    found = {}
    for sample in tagged.ids:
        image = tagged.source.read(sample)
        size = net_shape((image.shape[1], image.shape[2]), cfg.views.size, 1.0, model.backbone.min_size)
        x = torch.from_numpy(resized(image, size))[None].float() / 255
        with torch.no_grad():
            f = model.backbone(model.backbone.preprocess(x), ["last"])["last"]
            layer: Any = model.samplers[-1]
            moved = layer.offsets(model.sampled(f, 0, len(model.layers) - 1))
        still = torch.zeros(1, 18, *f.shape[2:])
        found[sample] = {
            "offsets": np.round((still if moved is None else moved)[0].numpy().astype(np.float64), 3).tolist(),
            "shown": list(size),
            "stride": model.tap.stride,
            "offset": model.tap.offset,
        }
    write_scores(work, found)


def offsets_of(model: TagNet, number: int) -> Iterator[nn.Parameter]:
    """The two tensors of a layer's offsets."""
    moving: Any = model.samplers[number]
    yield from moving.offset.parameters()


def _layers(weights: Weights) -> list[Layer]:
    return [Layer(**layer) for layer in weights.meta["samplers"]]


def _only_layer(weights: Weights) -> Layer:
    layers = _layers(weights)
    if len(layers) != 1:
        raise DataError(
            f"{weights.path}: found {len(layers)} sampling layers, expected 1; train the classifier with one "
            "(classifier.sampler: its channels)"
        )
    return layers[0]


def with_layers(weights: Weights, classes: tuple[str, ...], layers: list[Layer], head: bool = True) -> TagNet:
    """The network of `weights` with these sampling layers; what they did not have yet is new: offsets start at zero."""
    before, meta = load(weights, classes), weights.meta
    model = TagNet(build(meta["backbone"], stride=meta["stride"]), len(classes), layers)
    known = {n: t for n, t in before.state_dict().items() if head or not n.startswith("head.")}
    model.load_state_dict(known, strict=False)
    return model.eval()


def write(work: Work, model: TagNet, before: Weights, more: dict[str, Any]) -> None:
    """Weights that say which layers they have, and all else that the classifier before them said."""
    layers = [asdict(layer) for layer in model.layers]
    write_weights(work, model.state_dict(), {**before.meta, "samplers": layers, **more})
