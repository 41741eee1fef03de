"""Walk class maps over an image's affinities (IRN, CVPR 2019): scores spread inside objects and stop at boundaries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tagseg.artifacts import MapSet, Weights, write_maps
from tagseg.data.index import TaggedSet
from tagseg.inference import Network, Seen, Size, Views, count, net_shape, predict
from tagseg.nets.affinity_net import EdgeNet, PairNet, affinity_net, feature_affinity
from tagseg.nets.backbones import build
from tagseg.ops import affinity_torch
from tagseg.ops.affinity import chebyshev, damp, offsets, transition, transition_from_boundary
from tagseg.ops.affinity import walk as walked
from tagseg.ops.geometry import align, enlarge, resample, shrunk
from tagseg.store import Work, stage
from tagseg.types import F32, ClassMaps, DataError

TOGETHER = 16  # images that are walked at a time on a graphics card
BETAS = {"irn": 10.0, "psa": 8.0}  # of the papers' code


@dataclass(frozen=True)
class Walk:
    """`steps` of the walk go to neighbours closer than `radius` cells; `beta` sharpens the affinities between them
    (None: the form's own, 10 for irn and 8 for psa).

    `exact` makes every step; else the walk is a polynomial of `degree`, several times faster (ops/affinity states the
    error). The grid is the network's: 1/4 (IRN) or 1/8 (PSA) of the image as shown at scale 1.
    """

    views: Views = field(default_factory=lambda: Views(size=384))
    beta: float | None = None
    steps: int = 256
    radius: int = 5
    exact: bool = False
    degree: int = 60
    device: str = "auto"
    precision: str = "auto"

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"views": Views(size=192)},
        "paper": {"views": Views(size=432), "exact": True},  # IRN shows VOC's images (433 pixels) at their own size
    }


@stage(MapSet, version=3)
def maps(work: Work, tagged: TaggedSet, found: MapSet, affinity: Weights, cfg: Walk) -> None:
    """Maps after the walk, divided by the image's largest score, ready for a threshold or the CRF."""
    model = load(affinity)
    network = shown(model)  # once: `inference` folds it anew for each `Network`

    def read(sample: str) -> ClassMaps:
        one, size = found.get(sample), walk_grid(tagged.source.size(sample), model, cfg)
        return ClassMaps(sample, one.classes, shrunk(one.scores, size), one.size)  # a whole shard's are held

    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        given = dict(zip(ids, work.map(read, ids), strict=True))

        def one(seen: Seen) -> ClassMaps:
            return spread(given[seen.id], seen.values / count(cfg.views), model, cfg)

        some = [i for i in ids if len(given[i].classes)]
        seen = predicted(work, model, network, tagged, some, cfg)
        done = work.map(one, seen) if cfg.device == "cpu" else on_card(given, seen, model, cfg)
        for sample in ids:  # an image without classes has nothing to walk and is not looked at
            yield next(done) if len(given[sample].classes) else given[sample]

    write_maps(work, tagged.ids, produce, {"classes": list(tagged.classes), "form": affinity.meta["form"]})


def shown(model: EdgeNet | PairNet) -> Network:
    """How `inference` runs the affinity network: boundary logits (1,h,w) or pair features (d,h,w)."""
    channels = 1 if isinstance(model, EdgeNet) else model.channels

    def read(raw: Tensor, in_size: Size, out_size: Size) -> Tensor:
        own = model.tap
        return resample(raw[:, :channels], stride=own.stride, offset=own.offset, in_size=in_size, out_size=out_size)

    return Network(model, model.preprocess, read, channels, model.min_size)


def walk_grid(size: Size, model: EdgeNet | PairNet, cfg: Walk) -> Size:
    """The walk's grid (h, w) for an image of `size`: the network's cells at scale 1."""
    h, w = net_shape(size, cfg.views.size, 1.0, model.min_size)
    return -(-h // model.tap.stride), -(-w // model.tap.stride)


def predicted(
    work: Work, model: EdgeNet | PairNet, network: Network, tagged: TaggedSet, ids: list[str], cfg: Walk
) -> Iterator[Seen]:
    """What the `network` (`shown(model)`) says of images on the walk's grid, summed over views."""

    def grid(size: Size) -> Size:
        return walk_grid(size, model, cfg)

    yield from predict(
        work, network, tagged.source, ids, cfg.views, device=cfg.device, precision=cfg.precision, out_size=grid
    )


def _on_grid(scores: F32, size: Size) -> F32:
    return enlarge(shrunk(scores, size), size)


def _beta(model: EdgeNet | PairNet, cfg: Walk) -> float:
    return BETAS["psa" if isinstance(model, PairNet) else "irn"] if cfg.beta is None else cfg.beta


def spread(found: ClassMaps, values: Tensor, model: EdgeNet | PairNet, cfg: Walk) -> ClassMaps:
    """The maps of one image walked on the grid of `values` (d,h,w), the network's output averaged over views."""
    near, beta = offsets(cfg.radius), _beta(model, cfg)
    scores = _on_grid(found.scores, (values.shape[1], values.shape[2]))
    if isinstance(model, PairNet):
        close = feature_affinity(values[None], [(int(dy), int(dx)) for dy, dx in near])[0].numpy()
        steps = transition(close, near, beta)
    else:
        boundary = torch.sigmoid(values[0]).numpy()  # of averaged logits, as IRN does with its flip
        scores, steps = damp(scores, boundary), transition_from_boundary(boundary, cfg.radius, beta)
    start = np.ascontiguousarray(scores, np.float32)
    end = walked(steps, start, cfg.steps) if cfg.exact else chebyshev(steps, start, cfg.steps, cfg.degree)
    return ClassMaps(found.id, found.classes, shared_peak(end), found.size)


def on_card(
    found: Mapping[str, ClassMaps], seen: Iterator[Seen], model: EdgeNet | PairNet, cfg: Walk
) -> Iterator[ClassMaps]:
    """`spread`, several images at a time on the device of the config."""
    while members := list(islice(seen, TOGETHER)):
        values = [s.values / count(cfg.views) for s in members]
        yield from _together([found[s.id] for s in members], values, model, cfg)


def _together(found: list[ClassMaps], values: list[Tensor], model: EdgeNet | PairNet, cfg: Walk) -> list[ClassMaps]:
    near, most = offsets(cfg.radius), max(len(f.classes) for f in found)
    scores = [_on_grid(f.scores, (v.shape[1], v.shape[2])) for f, v in zip(found, values, strict=True)]
    start = [torch.from_numpy(np.pad(s, ((0, most - len(s)), (0, 0), (0, 0)))) for s in scores]
    filled = affinity_torch.stack(start, 0.0).to(cfg.device)
    if isinstance(model, PairNet):
        steps = [(int(dy), int(dx)) for dy, dx in near]
        close = affinity_torch.stack([feature_affinity(v[None], steps)[0] for v in values], 0.0).to(cfg.device)
    else:
        boundary = affinity_torch.stack([torch.sigmoid(v[0]) for v in values], 1.0).to(cfg.device)
        filled, close = affinity_torch.damp(filled, boundary), affinity_torch.path_affinity(boundary, cfg.radius)
    step = affinity_torch.transition(close, near, _beta(model, cfg))
    end = (
        affinity_torch.walk(step, filled, cfg.steps)
        if cfg.exact
        else affinity_torch.chebyshev(step, filled, cfg.steps, cfg.degree)
    ).cpu()
    return [
        ClassMaps(f.id, f.classes, shared_peak(e[: len(s), : s.shape[1], : s.shape[2]].numpy()), f.size)
        for f, s, e in zip(found, scores, end, strict=True)
    ]


def shared_peak(raw: F32) -> F32:
    """Maps (K,h,w) divided by their common maximum, as IRN does: classes keep their strength against each other."""
    peak = float(raw.max(initial=0))
    return (raw / peak if peak > 0 else raw).clip(0, 1).astype(np.float32)  # a polynomial may end a hair below 0


def load(weights: Weights) -> EdgeNet | PairNet:
    """The trained affinity network, in eval mode."""
    meta = weights.meta
    if "form" not in meta:
        raise DataError(
            f"{weights.path}: found weights of another network ({', '.join(meta)}), expected those of localize/affinity"
        )
    model = affinity_net(
        meta["form"],
        build(meta["backbone"], stride=meta["stride"]),
        align=align,
        width=meta["width"],
        displacement=meta["displacement"],
        frozen=False,  # nothing learns here, and `inference` follows gradients to see what it may fold
    )
    model.load_state_dict(weights.tensors())
    return model.eval()
