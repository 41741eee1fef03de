"""Class maps of images by a trained stack, for given tags and for those that it sees itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tagseg.artifacts import MapSet, Scores, Weights, write_maps, write_scores, write_weights
from tagseg.data.index import TaggedSet
from tagseg.inference import Network, Views, coarser, count, predict
from tagseg.localize import findings as found
from tagseg.localize.stack_net import StackNet, by_class, load, pooled
from tagseg.ops.geometry import resample
from tagseg.ops.scores import normalise, or_best
from tagseg.store import Work, stage
from tagseg.types import F32, Bool, ClassMaps

Size = tuple[int, int]


@dataclass(frozen=True)
class StackMaps:
    """`smooth`: standard deviation, in cells of the finest level, of a Gaussian over the maps: unpooled maps are
    sparse. `grid`: maps are stored at 1/grid of the image's sides. `always`: whether an image whose tags are not known
    gets its likeliest class where no class is likely: "usual", unless there were images without any tag to learn from.
    `zero`: what a map counts from: "empty", what a cell says where nothing came down the mirror (a class that most
    images have is likely there, too), or "score", that class and no class are as likely.
    """

    views: Views = field(default_factory=lambda: Views(size=384))
    smooth: float = 0.5
    grid: int = 2
    always: Literal["usual", "yes", "no"] = "usual"
    zero: Literal["empty", "score"] = "empty"
    device: str = "auto"
    precision: str = "auto"

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"views": Views(size=144), "grid": 1},
        "paper": {"views": Views(size=320, scales=(1.0, 0.75, 1.25))},
    }


@stage(MapSet, version=2)
def maps(work: Work, tagged: TaggedSet, stack: Weights, cfg: StackMaps) -> None:
    """Maps of the tagged classes of every image: summed over views, then divided by their maximum."""
    present = dict(zip(tagged.ids, tagged.tags, strict=True))
    _write(work, tagged, network_of(load(stack, tagged.classes), cfg), cfg, lambda sample, _: present[sample])


@stage(MapSet, version=2)
def predicted(work: Work, images: TaggedSet, model: Weights, cfg: StackMaps) -> None:
    """The same of images whose tags are not known: of the classes whose score is above 0."""
    forced = cfg.always == "yes" or (cfg.always == "usual" and not model.meta["negatives"])
    network = network_of(load(model, tuple(model.meta["classes"])), cfg)
    _write(work, images, network, cfg, lambda sample, logits: likely(logits, forced))


@stage(MapSet, version=4)
def findings(work: Work, images: TaggedSet, stack: Weights, cfg: StackMaps) -> None:
    """Where the stack sees any class at all, in images whose tags are not known."""
    model = load(stack, images.classes)
    network = found.network_of(MapsOnly(model), model.backbone, model.tap, lambda maps: blurred(maps, cfg.smooth),
                               lambda maps: pooled(maps, model.cfg))  # fmt: skip
    found.write_findings(work, images, network, cfg)


def likely(logits: F32, forced: bool) -> Bool:
    """Which classes (C,) an image has by its scores; the best one where none is above 0 and one is `forced`."""
    return or_best(logits > 0, logits, forced)


def _write(work: Work, images: TaggedSet, network: Network, cfg: StackMaps,
           present: Callable[[str, F32], Bool]) -> None:
    """Maps of the classes that are `present` by an image's id and by what `network` says of it behind its C maps."""
    views, count_of = count(cfg.views), len(images.classes)

    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        for one in predict(work, network, images.source, ids, cfg.views, device=cfg.device, precision=cfg.precision,
                           out_size=coarser(cfg.grid)):  # fmt: skip
            values = np.asarray(one.values.numpy(), np.float32)
            classes = np.flatnonzero(present(one.id, values[count_of:, 0, 0] / np.float32(views)))
            yield ClassMaps(one.id, classes.astype(np.int64) + 1, normalise(values[classes]),
                            (one.image.shape[1], one.image.shape[2]))  # fmt: skip

    write_maps(work, images.ids, produce, {"classes": list(images.classes), "grid": cfg.grid})


@dataclass(frozen=True)
class Level(StackMaps):
    """One level alone, counted from 1, the finest."""

    level: int = 1


def level_of(cfg: StackMaps, level: int) -> Level:
    """The same settings for one level."""
    return Level(**{f.name: getattr(cfg, f.name) for f in fields(StackMaps)}, level=level)


@stage(MapSet, version=2)
def level(work: Work, tagged: TaggedSet, stack: Weights, cfg: Level) -> None:
    """What one level adds to the maps of the tagged classes, its positive part divided by its maximum: for pictures."""
    present = dict(zip(tagged.ids, tagged.tags, strict=True))
    model = load(stack, tagged.classes)
    tap, zero = model.grids[cfg.level - 1], zero_of(model.empty(cfg.level), cfg)

    def read(raw: Tensor, in_size: Size, out_size: Size) -> Tensor:
        found = raw.float() - zero.to(raw.device)
        return resample(found.relu(), stride=tap.stride, offset=tap.offset, in_size=in_size, out_size=out_size)

    network = Network(LevelOnly(model, cfg.level), model.backbone.preprocess, read, model.classes,
                      model.backbone.min_size, rewrite=False)  # fmt: skip
    _write(work, tagged, network, cfg, lambda sample, _: present[sample])


class LevelOnly(nn.Module):
    """What one level adds to the maps, on its own grid."""

    def __init__(self, stack: StackNet, level: int) -> None:
        super().__init__()
        self.stack, self.level = stack, level

    def forward(self, x: Tensor) -> Tensor:
        found, _ = self.stack.found(x)
        return by_class(found, lambda levels: self.stack.part(levels[self.level - 1], self.level))


class MapsOnly(nn.Module):
    """A stack without its auxiliary branch."""

    def __init__(self, stack: StackNet) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.stack(x)[0]
        return found


def network_of(model: StackNet, cfg: StackMaps) -> Network:
    """A stack read as raw class maps (smoothed, positive part, brought to the wanted size), then the image's scores,
    each as a flat map.
    """

    zero = zero_of(model.empty(), cfg)

    def read(raw: Tensor, in_size: Size, out_size: Size) -> Tensor:
        found = blurred(raw.float(), cfg.smooth) - zero.to(raw.device)
        positive = resample(found.relu(), stride=model.tap.stride, offset=model.tap.offset,
                            in_size=in_size, out_size=out_size)  # fmt: skip
        scores = pooled(raw.float(), model.cfg)[:, :, None, None].expand(-1, -1, *out_size)
        return torch.cat([positive, scores], 1)

    return Network(MapsOnly(model), model.backbone.preprocess, read, 2 * model.classes, model.backbone.min_size,
                   rewrite=False)


def zero_of(empty: Tensor, cfg: StackMaps) -> Tensor:
    """What maps count from, (1,C,1,1), where `empty` (C,) is what a cell says to which nothing came down."""
    zero = empty.detach().float().view(1, -1, 1, 1)
    return zero if cfg.zero == "empty" else torch.zeros_like(zero)


def blurred(maps: Tensor, sigma: float) -> Tensor:
    """Maps (n,k,h,w) after a Gaussian of `sigma` cells; 0 leaves them."""
    if not sigma:
        return maps
    from torchvision.transforms.functional import gaussian_blur  # torchvision takes seconds to import

    reach = min(max(1, round(3 * sigma)), min(maps.shape[2:]) - 1)
    return gaussian_blur(maps, [2 * reach + 1] * 2, [sigma] * 2)


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
