"""Class maps from all levels of a network that is run backwards, learned from tags alone (DFS, arXiv 1602.04984)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagseg.artifacts import MapSet, Scores, Weights, write_maps, write_scores, write_weights
from tagseg.data.index import TaggedSet
from tagseg.data.loader import Augment, Draws, drawn_from, prefetched
from tagseg.inference import Network, Views, count, predict
from tagseg.localize import classify
from tagseg.localize.classify import tag_losses
from tagseg.nets.backbones import Backbone, Tap, build, freeze_batch_norm
from tagseg.nets.deconvnet import Mirror, Mirroring, is_plain
from tagseg.ops import pooling
from tagseg.ops.geometry import align, resample
from tagseg.ops.scores import normalise
from tagseg.store import Work, stage
from tagseg.training.loop import Batch, learn
from tagseg.training.schedule import Auto, Schedule, optimiser, steps
from tagseg.types import F32, Bool, ClassMaps, UsageError

Size = tuple[int, int]
BATCHES = 8  # batches that the choice of levels looks at


@dataclass(frozen=True)
class Stack:
    """What the levels are and how they make one map for each class.

    `route`, `rectify`, `tie`, `bias`, `unpool`: as in `Mirroring`; route "any" is "conv" where the network allows it.
    `levels`: which, counted from 1, the finest; none named: all. `select`: "fixed" takes these, "learned" gives each a
    gate that costs `gate_cost`, "greedy" leaves out levels, the least missed first, while the mean tag loss grows by
    less than `spare`. `source`: "mirror", or "encoder": the encoder's own features on the same grids (a hypercolumn,
    the control that shows what the mirror adds). `norm`: what brings levels to one scale: batch norm of each channel,
    "l2" (the root mean square of a level), "none". `pool`: class maps to image scores. `top`: what goes down: all that
    the top holds, or once for each class what speaks for it.
    """

    route: Literal["any", "conv", "vjp"] = "any"
    rectify: Literal["relu", "mask", "guided", "none"] = "relu"
    tie: Literal["shared", "detach", "free"] = "shared"
    bias: bool = False
    unpool: Literal["switch", "nearest", "bilinear"] = "switch"
    source: Literal["mirror", "encoder"] = "mirror"
    levels: tuple[int, ...] = ()
    select: Literal["fixed", "learned", "greedy"] = "fixed"
    gate_cost: float = 0.01
    spare: float = 0.02
    norm: Literal["bn", "l2", "none"] = "bn"
    pool: Literal["lse", "avg", "max", "topk"] = "lse"
    lse_r: float = 4.0
    topk_share: float = 0.05
    top: Literal["all", "class"] = "all"


class StackNet(nn.Module):
    """Normalised images (n,3,h,w) to class maps (n,C,h',w') on the finest chosen grid, and to the auxiliary logits.

    A head for each level, whose maps are added: the same as one head on the stack of all of them (Eq. 7), without ever
    holding that stack. The auxiliary branch pools the top and classifies it (Eq. 11).
    """

    def __init__(self, backbone: Backbone, classes: int, cfg: Stack) -> None:
        super().__init__()
        self.cfg, self.classes = cfg, classes
        freeze_batch_norm(backbone)
        route = cfg.route if cfg.route != "any" else "conv" if is_plain(backbone) else "vjp"
        self.mirror = Mirror(backbone, Mirroring(route, cfg.rectify, cfg.tie, cfg.bias, cfg.unpool))
        many = len(self.mirror.grids)
        self.levels = chosen(cfg.levels, many)
        norms = [nn.BatchNorm2d(g.channels) if cfg.norm == "bn" else nn.Identity() for g in self.mirror.grids]
        self.norms = nn.ModuleList(norms)
        self.heads = nn.ParameterList(torch.empty(classes, g.channels) for g in self.mirror.grids)
        for head in self.heads:
            nn.init.normal_(head, std=0.01)
        self.bias = nn.Parameter(torch.zeros(classes))
        self.gates = nn.ParameterList([torch.full((many,), 2.0)] if cfg.select == "learned" else [])
        self.aux = nn.Linear(self.mirror.top.channels, classes)
        nn.init.normal_(self.aux.weight, std=0.01)

    @property
    def backbone(self) -> Backbone:
        """The encoder, which the mirror holds."""
        return self.mirror.backbone

    @property
    def tap(self) -> Tap:
        """The grid of the maps."""
        return self.mirror.grids[self.levels[0] - 1]

    def new(self) -> list[nn.Parameter]:
        """Everything that is not the encoder's."""
        own = {id(p) for p in self.backbone.parameters()}
        return [p for p in self.parameters() if id(p) not in own]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps with their bias, and the logits of the auxiliary branch."""
        if self.cfg.source == "encoder":
            points = self.mirror.points(x)
            return self.maps(points[:-1]), self.aux(points[-1].mean((2, 3)))
        top, found = self.mirror(x, self.signals if self.cfg.top == "class" else lambda top: [top])
        logits = self.aux(top.mean((2, 3)))
        if self.cfg.top == "all":
            return self.maps(found[0]), logits
        each = [self.maps(levels)[:, k] for k, levels in enumerate(found)]
        return torch.stack(each, 1), logits

    def signals(self, top: Tensor) -> list[Tensor]:
        """What of the top speaks for each class."""
        return [(top * row.view(1, -1, 1, 1)).relu() for row in self.aux.weight]

    def maps(self, levels: Sequence[Tensor]) -> Tensor:
        """Maps (n,C,h',w') of the chosen levels."""
        parts = [self.part(levels[b - 1], b) for b in self.levels]
        size = (parts[0].shape[2], parts[0].shape[3])
        total = parts[0]
        for b, part in zip(self.levels[1:], parts[1:], strict=True):
            total = total + align(part, self.mirror.grids[b - 1], self.tap, size)
        return total + self.bias.view(1, -1, 1, 1)  # dfs Eq. 8

    def part(self, level: Tensor, b: int) -> Tensor:
        """What level b (from 1) adds to each class map, on its own grid."""
        if self.cfg.norm == "l2":
            level = level / level.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-6)
        head = self.heads[b - 1]
        if len(self.gates):
            head = head * self.gates[0][b - 1].sigmoid()
        return F.conv2d(self.norms[b - 1](level), head[:, :, None, None])  # dfs Eq. 7


def chosen(levels: tuple[int, ...], many: int) -> tuple[int, ...]:
    """The levels that are taken, ascending; `UsageError` for one that the network does not have."""
    if not set(levels) <= set(range(1, many + 1)):
        raise UsageError(f"stack.levels: found {list(levels)}, expected some of 1 (finest) to {many}, the levels that "
                         "this network has; none named: all")
    return tuple(sorted(set(levels))) or tuple(range(1, many + 1))


# ---- training ----

@dataclass(frozen=True)
class Heads:
    """Heads, norms and bias learn the tags while the encoder stands still."""

    stack: Stack = field(default_factory=Stack)
    augment: Augment = field(default_factory=Augment)
    schedule: Schedule = field(default_factory=lambda: Schedule(epochs=1.0, min_images=1600, max_images=4000))
    seed: int | Auto = "auto"
    device: str = "auto"
    precision: str = "auto"

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
class Joint:
    """Everything learns: (1 - a) times the auxiliary branch's tag loss plus a times that of the maps.

    a rises linearly over the training, `share` says from where to where (self-transfer learning, arXiv 1602.01625).
    `aux`: "none" leaves the first part out.
    """

    aux: Literal["stl", "none"] = "stl"
    share: tuple[float, float] = (0.1, 0.9)
    augment: Augment = field(default_factory=Augment)
    schedule: Schedule = field(default_factory=lambda: Schedule(epochs=8.0, max_images=8000))
    seed: int | Auto = "auto"
    device: str = "auto"
    precision: str = "auto"

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


def pooled(maps: Tensor, cfg: Stack) -> Tensor:
    """Maps (n,C,h,w) to image logits (n,C)."""
    if cfg.pool == "lse":
        return pooling.lse(maps, cfg.lse_r)  # dfs Eq. 9
    if cfg.pool == "topk":
        return pooling.topk(maps, cfg.topk_share)
    return pooling.gap(maps) if cfg.pool == "avg" else maps.amax((2, 3))


@dataclass(frozen=True)
class Shared:
    """Batches with the weight of the maps' loss at their step."""

    draws: Draws
    share: tuple[float, float]
    steps: int

    def __call__(self, step: int) -> Batch:
        batch = self.draws(step)
        low, high = self.share
        a = low + (high - low) * step / max(self.steps - 1, 1)
        return {**batch, "share": torch.full((len(batch["images"]),), a)}


@stage(Weights, version=1)
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
    _train(work, tagged, model, cfg, (1.0, 1.0), [], [p for p in model.new() if p.requires_grad])
    meta = {n: classifier.meta[n] for n in ("backbone", "stride", "classes")}
    trail: list[dict[str, Any]] = []
    if cfg.stack.select == "greedy":
        draws = drawn_from(tagged.training(), cfg.augment, cfg.schedule.batch, int(cfg.seed) + 1)
        model.levels, trail = fewest(model, [draws(step) for step in range(BATCHES)], cfg.device)
    write(work, model, {**meta, "size": cfg.augment.size, "greedy": trail})


@stage(Weights, version=1)
def joint(work: Work, tagged: TaggedSet, stack: Weights, cfg: Joint) -> None:
    """Encoder, norms and heads together."""
    model = load(stack, tagged.classes)
    torch.manual_seed(int(cfg.seed))
    share = cfg.share if cfg.aux == "stl" else (1.0, 1.0)
    _train(work, tagged, model, cfg, share, list(model.backbone.parameters()), model.new())
    write(work, model, {**stack.meta, "size": cfg.augment.size})


def _train(work: Work, tagged: TaggedSet, model: StackNet, cfg: Heads | Joint, share: tuple[float, float],
           body: list[nn.Parameter], new: list[nn.Parameter]) -> None:
    images = tagged.training()
    draws = drawn_from(images, cfg.augment, cfg.schedule.batch, int(cfg.seed))
    rates = optimiser(cfg.schedule, body, new)
    with prefetched(Shared(draws, share, steps(cfg.schedule, len(images)))) as batches:
        learn(work, cfg, model, rates, batches, StackLoss(model.cfg), len(images), draws.names)


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


def write(work: Work, model: StackNet, meta: dict[str, Any]) -> None:
    """A stack and what is needed to build it again."""
    write_weights(work, model.state_dict(), {**meta, "stack": asdict(replace(model.cfg, levels=model.levels))})


def load(weights: Weights, classes: tuple[str, ...]) -> StackNet:
    """The trained stack, in eval mode; its class names must be those of the data."""
    meta = weights.meta
    classify.check_classes(meta["classes"], classes, str(weights.path))
    cfg = Stack(**{**meta["stack"], "levels": tuple(meta["stack"]["levels"])})
    model = StackNet(build(meta["backbone"], stride=meta["stride"]), len(classes), cfg)
    model.load_state_dict(weights.tensors())
    return model.eval()


@dataclass(frozen=True)
class Finish:
    """Nothing to set."""


@stage(Weights, version=1)
def finished(work: Work, tagged: TaggedSet, stack: Weights, point: Scores, cfg: Finish) -> None:
    """The stack with all that prediction needs: where maps are cut, and whether images without any class are usual."""
    more = {"threshold": point.read()["threshold"], "has_background": tagged.has_background,
            "negatives": bool((~tagged.training().tags.any(1)).any())}
    write_weights(work, stack.tensors(), {**stack.meta, **more})


@stage(Scores, version=1)
def cut(work: Work, model: Weights, cfg: Finish) -> None:
    """The operating point that a finished stack carries."""
    write_scores(work, {"threshold": model.meta["threshold"], "origin": "auto"})


# ---- maps ----

@dataclass(frozen=True)
class StackMaps:
    """`smooth`: standard deviation, in cells of the finest level, of a Gaussian over the maps: unpooled maps are
    sparse. `grid`: maps are stored at 1/grid of the image's sides. `always`: whether an image whose tags are not known
    gets its likeliest class where no class is likely: "usual", unless there were images without any tag to learn from.
    """

    views: Views = field(default_factory=lambda: Views(size=384))
    smooth: float = 0.5
    grid: int = 2
    always: Literal["usual", "yes", "no"] = "usual"
    device: str = "auto"
    precision: str = "auto"

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"views": Views(size=144), "grid": 1},
        "paper": {"views": Views(size=320, scales=(1.0, 0.75, 1.25))},
    }


@stage(MapSet, version=1)
def maps(work: Work, tagged: TaggedSet, stack: Weights, cfg: StackMaps) -> None:
    """Maps of the tagged classes of every image: summed over views, then divided by their maximum."""
    present = dict(zip(tagged.ids, tagged.tags, strict=True))
    _write(work, tagged, load(stack, tagged.classes), cfg, lambda sample, logits: present[sample])


@stage(MapSet, version=1)
def predicted(work: Work, images: TaggedSet, model: Weights, cfg: StackMaps) -> None:
    """The same of images whose tags are not known: of the classes whose score is above 0."""
    forced = cfg.always == "yes" or (cfg.always == "usual" and not model.meta["negatives"])
    _write(work, images, load(model, tuple(model.meta["classes"])), cfg, lambda sample, logits: likely(logits, forced))


def likely(logits: F32, forced: bool) -> Bool:
    """Which classes (C,) an image has by its scores; the best one where none is above 0 and one is `forced`."""
    found: Bool = logits > 0
    if forced and not found.any():
        found[logits.argmax()] = True
    return found


def _write(work: Work, images: TaggedSet, model: StackNet, cfg: StackMaps,
           present: Callable[[str, F32], Bool]) -> None:
    network = network_of(model, cfg.smooth)
    views = count(cfg.views)

    def grid(size: Size) -> Size:
        return math.ceil(size[0] / cfg.grid), math.ceil(size[1] / cfg.grid)

    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        for one in predict(work, network, images.source, ids, cfg.views, device=cfg.device, precision=cfg.precision,
                           out_size=grid):  # fmt: skip
            values = np.asarray(one.values.numpy(), np.float32)
            classes = np.flatnonzero(present(one.id, values[model.classes :, 0, 0] / np.float32(views)))
            yield ClassMaps(one.id, classes.astype(np.int64) + 1, normalise(values[classes]),
                            (one.image.shape[1], one.image.shape[2]))  # fmt: skip

    write_maps(work, images.ids, produce, {"classes": list(images.classes), "grid": cfg.grid})


class MapsOnly(nn.Module):
    """A stack without its auxiliary branch."""

    def __init__(self, stack: StackNet) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.stack(x)[0]
        return found


def network_of(model: StackNet, sigma: float) -> Network:
    """A stack read as raw class maps (smoothed, positive part, brought to the wanted size), then the image's scores,
    each as a flat map.
    """

    def read(raw: Tensor, in_size: Size, out_size: Size) -> Tensor:
        positive = resample(blurred(raw.float(), sigma).relu(), stride=model.tap.stride, offset=model.tap.offset,
                            in_size=in_size, out_size=out_size)  # fmt: skip
        scores = pooled(raw.float(), model.cfg)[:, :, None, None].expand(-1, -1, *out_size)
        return torch.cat([positive, scores], 1)

    return Network(MapsOnly(model), model.backbone.preprocess, read, 2 * model.classes, model.backbone.min_size,
                   rewrite=False)


def blurred(maps: Tensor, sigma: float) -> Tensor:
    """Maps (n,k,h,w) after a Gaussian of `sigma` cells; 0 leaves them."""
    if not sigma:
        return maps
    from torchvision.transforms.functional import gaussian_blur  # torchvision takes seconds to import

    reach = min(max(1, round(3 * sigma)), min(maps.shape[2:]) - 1)
    return gaussian_blur(maps, [2 * reach + 1] * 2, [sigma] * 2)
