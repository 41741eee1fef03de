"""Learn which neighbouring pixels belong together from confident labels: IRN's boundary branch, or PSA's features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from tagseg.artifacts import LabelSet, Weights, write_weights
from tagseg.data.index import TaggedSet
from tagseg.data.loader import Augment, drawn_from, prefetched
from tagseg.data.weights import Pretrained
from tagseg.nets.affinity_net import EdgeNet, Form, PairNet, affinity_net, feature_affinity
from tagseg.nets.backbones import build
from tagseg.ops.affinity import offsets, path
from tagseg.ops.geometry import align, resample, resize_labels
from tagseg.store import Work, stage
from tagseg.training.loop import Batch, learn
from tagseg.training.schedule import Schedule, Training, optimiser
from tagseg.types import BACKGROUND, IGNORE, U8

RADIUS: dict[str, int] = {"irn": 10, "psa": 5}  # cells, as in the authors' code
BOTH_BACKGROUND, SAME_CLASS, APART = 1, 2, 3  # kinds of pairs; 0 does not count
EPS = 1e-5  # the authors': keeps logarithms finite


@dataclass(frozen=True)
class Affinity(Training):
    """`form`: "irn" learns class boundaries, "psa" features of pairs; `radius` in cells, None is the form's own.

    A pretrained backbone is frozen in both forms (IRN passes it no gradient; PSA trains it at a tenth of the rate); one
    that starts at random learns along. `width`: channels of each stage (IRN 32; PSA 64, then twice and four times it).
    `displacement`: also learn the way to each object's centre, for instances; the walk does not read it.
    """

    backbone: str = "auto"
    stride: int = 16
    form: Form = "irn"
    displacement: bool = False
    width: int = 32
    radius: int | None = None
    # zoom from .75 to 2: the walk shows images at one and a half times this size
    augment: Augment = field(default_factory=lambda: Augment(scale=(0.75, 2.0)))
    schedule: Schedule = field(default_factory=lambda: Schedule(2.0, min_images=1200, max_images=3200, batch=8))
    positives: float = 0.5

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "augment": Augment(size=96, scale=(0.9, 2.0), colour=0.1),
            "stride": 8,
            "schedule": Schedule(epochs=4, min_images=600, max_images=1600, batch=8),
        },
        # IRN: 3 epochs of batch 32, crop 512, zoom .5 to 1.5 of VOC's 433 pixels, poly .9; rates follow the backbone
        "paper": {
            "augment": Augment(size=512, scale=(0.42, 1.27), colour=0.0),
            "schedule": Schedule(epochs=3, min_images=0, max_images=10**9, batch=32, warmup=0.0),
        },
    }


@stage(Weights, version=1)
def train(work: Work, tagged: TaggedSet, labels: LabelSet, pretrained: Pretrained, cfg: Affinity) -> None:
    """Train on pairs of pixels of `labels` that are both confident: equal labels belong together, others do not."""
    seed = int(cfg.seed)
    torch.manual_seed(seed)
    backbone = build(cfg.backbone, stride=cfg.stride, weights_state=pretrained.start)
    model = affinity_net(
        cfg.form,
        backbone,
        align=align,
        width=cfg.width,
        displacement=cfg.displacement,
        frozen=not pretrained.is_random,
    )

    def pixels(sample: str) -> U8:
        return labels.get(sample).pixels

    draws = drawn_from(tagged, cfg.augment, cfg.schedule.batch, seed, pixels, cfg.positives)
    radius = cfg.radius or RADIUS[cfg.form]
    body = [] if model.stages.frozen else list(model.stages.backbone.parameters())
    head = [p for name, p in model.named_parameters() if not name.startswith("stages.")]
    rates = optimiser(cfg.schedule, body, head)
    with prefetched(Paired(draws, model.tap.stride, radius)) as batches:
        learn(work, cfg, model, rates, batches, PairLoss(radius), len(tagged), draws.names)
    write_weights(
        work,
        model.state_dict(),
        {
            "form": cfg.form,
            "backbone": cfg.backbone,
            "stride": cfg.stride,
            "width": cfg.width,
            "displacement": cfg.displacement,
            "size": cfg.augment.size,
            "crops": [list(crop) for crop in draws.shapes.crops],
            "radius": radius,
        },
    )


@dataclass(frozen=True)
class Paired:
    """Batches with what is known of each pair of cells within `radius`; a cell is `stride` pixels wide.

    Adds `pairs` uint8 (n,f,h,w), the kind of the pair of a cell and the cell at offset f, and `shares` float32 (n,3),
    the weight of one pair of each kind: each kind is divided by its own count over the whole batch.
    """

    draws: Callable[[int], Batch]
    stride: int
    radius: int

    def __call__(self, step: int) -> Batch:
        batch = self.draws(step)
        h, w = batch["labels"].shape[1:]
        pairs = kinds(resize_labels(batch["labels"], (h // self.stride, w // self.stride)), self.radius)
        counts = torch.bincount(pairs.flatten(), minlength=4)[1:].clamp(min=1)
        shares = torch.tensor([0.25, 0.25, 0.5]) / counts  # same label: half for background, half for classes
        return {"images": batch["images"], "pairs": pairs, "shares": shares.expand(len(pairs), -1)}


def kinds(labels: UInt8[Tensor, "n h w"], radius: int) -> UInt8[Tensor, "n f h w"]:
    """The kind of each pair of cells: 0 where either label is 255 or the second cell lies outside the image."""
    h, w = labels.shape[1:]
    padded = _padded(labels, radius, IGNORE)
    found = []
    for dy, dx in _offsets(radius):
        other = _moved(padded, dy, dx, (h, w))
        known = (labels != IGNORE) & (other != IGNORE)
        same = torch.where(labels == BACKGROUND, BOTH_BACKGROUND, SAME_CLASS)
        found.append(torch.where(labels == other, same, APART) * known)
    return torch.stack(found, 1).to(torch.uint8)


@dataclass(frozen=True)
class PairLoss:
    """Cross-entropy of the affinity of pairs, each kind normalised by its count: IRN's and PSA's loss alike."""

    radius: int

    def count(self, batch: Batch) -> float:
        return 1.0  # `shares` hold the counts of the whole batch already

    def total(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, EdgeNet | PairNet)
        images, pairs = batch["images"], batch["pairs"]
        size, grid = (images.shape[2], images.shape[3]), (pairs.shape[2], pairs.shape[3])
        raw = model(model.preprocess(images.float() / 255))
        out = resample(raw, stride=model.tap.stride, offset=model.tap.offset, in_size=size, out_size=grid)
        weights = F.pad(batch["shares"], (1, 0)).gather(1, pairs.flatten(1).long()).view(pairs.shape)
        close = affinity(model, out, self.radius)
        cost = -torch.log(torch.where(pairs == APART, 1 - close, close) + EPS)
        if out.shape[1] == 3 and isinstance(model, EdgeNet):
            cost = cost + torch.where(pairs == APART, 0, astray(out[:, 1:], pairs, self.radius))
        return (weights * cost).sum()


def affinity(model: EdgeNet | PairNet, out: Tensor, radius: int) -> Float[Tensor, "n f h w"]:
    """How much each cell belongs with the cell at each offset, in [0,1], from the network's output (n,k,h,w)."""
    if isinstance(model, PairNet):
        return feature_affinity(out, _offsets(radius))
    return path_affinity(torch.sigmoid(out[:, 0]), radius)


def path_affinity(boundary: Float[Tensor, "n h w"], radius: int) -> Float[Tensor, "n f h w"]:
    """1 - the largest boundary on the path to each offset, as ops/affinity, but with a gradient.

    Only one cell of a path gets the gradient, so it is found first, without autograd, and then gathered: a maximum over
    thousands of shifted copies need not be remembered. Of no meaning where the path leaves the grid.
    """
    n, h, w = boundary.shape
    # a non-negative float32 sorts as its bits do: value and place in one integer, one maximum carries both
    bits = boundary.detach().float().contiguous().view(torch.int32).long()
    place = torch.arange(h * w, device=boundary.device).view(h, w)
    padded = _padded(bits << 32 | place, radius, 0)
    largest = torch.empty(n, len(_offsets(radius)), h, w, dtype=torch.int64, device=boundary.device)
    for f, (dy, dx) in enumerate(_offsets(radius)):
        best = padded[:, :h, radius - 1 : radius - 1 + w]
        for y, x in path(dy, dx):
            best = torch.maximum(best, _moved(padded, y, x, (h, w)))
        largest[:, f] = best & 0xFFFFFFFF
    return 1 - boundary.flatten(1).gather(1, largest.flatten(1)).view(largest.shape)


def astray(way: Float[Tensor, "n 2 h w"], pairs: UInt8[Tensor, "n f h w"], radius: int) -> Float[Tensor, "n f h w"]:
    """How far the displacements of two cells are from pointing at one centre (both background: from being equal)."""
    size = (way.shape[2], way.shape[3])
    padded = _padded(way, radius, 0)
    found = []
    for f, (dy, dx) in enumerate(_offsets(radius)):
        between = way.new_tensor([dy, dx]).view(1, 2, 1, 1) * (pairs[:, f : f + 1] == SAME_CLASS)
        found.append((way - _moved(padded, dy, dx, size) - between).abs().sum(1))
    return torch.stack(found, 1)


def _offsets(radius: int) -> list[tuple[int, int]]:
    return [(int(dy), int(dx)) for dy, dx in offsets(radius)]


def _padded(x: Tensor, radius: int, value: float) -> Tensor:
    """Room for every offset: to the left, to the right and below."""
    return F.pad(x, (radius - 1, radius - 1, 0, radius - 1), value=value)


def _moved(padded: Tensor, dy: int, dx: int, size: tuple[int, int]) -> Tensor:
    """What lies at (dy,dx) from each cell: (..., h, w) of what `_padded` made; `size` is (h,w)."""
    left = (padded.shape[-1] - size[1]) // 2 + dx
    return padded[..., dy : dy + size[0], left : left + size[1]]
