"""Walk class maps over an image's affinities (IRN, CVPR 2019): scores spread inside objects and stop at boundaries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tagseg.artifacts import MapSet, Weights, write_maps
from tagseg.data.index import TaggedSet
from tagseg.inference import Network, Seen, Size, Views, count, net_shape, predict
from tagseg.nets.affinity_net import EdgeNet, PairNet, affinity_net, feature_affinity
from tagseg.nets.backbones import build
from tagseg.ops.affinity import chebyshev, damp, offsets, path_affinity, transition
from tagseg.ops.affinity import walk as walked
from tagseg.ops.geometry import align, enlarge, resample
from tagseg.store import Work, stage
from tagseg.types import F32, ClassMaps, DataError


@dataclass(frozen=True)
class Walk:
    """`beta` sharpens affinities (IRN 10, PSA 8), `steps` of the walk go to neighbours closer than `radius` cells.

    `exact` makes every step; else the walk is a polynomial of `degree`, several times faster (ops/affinity states the
    error). The grid is the network's: 1/4 (IRN) or 1/8 (PSA) of the image as shown at scale 1.
    """

    views: Views = field(default_factory=lambda: Views(size=384))
    beta: float = 10.0
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


@stage(MapSet, version=1)
def maps(work: Work, tagged: TaggedSet, found: MapSet, affinity: Weights, cfg: Walk) -> None:
    """Maps after the walk, divided by the image's largest score, ready for a threshold or the CRF."""
    model = load(affinity)

    def one(seen: Seen) -> ClassMaps:
        return spread(found.get(seen.id), seen.values / count(cfg.views), model, cfg)

    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        some = [i for i in ids if len(found.get(i).classes)]
        done = work.map(one, predicted(work, model, tagged, some, cfg))
        for sample in ids:  # an image without classes has nothing to walk and is not looked at
            yield next(done) if len(found.get(sample).classes) else found.get(sample)

    write_maps(work, tagged.ids, produce, {"classes": list(tagged.classes), "form": affinity.meta["form"]})


def predicted(work: Work, model: EdgeNet | PairNet, tagged: TaggedSet, ids: list[str], cfg: Walk) -> Iterator[Seen]:
    """Boundary logits (1,h,w) or pair features (d,h,w) of images on the walk's grid, summed over views."""
    channels = 1 if isinstance(model, EdgeNet) else model.channels

    def read(raw: Tensor, in_size: Size, out_size: Size) -> Tensor:
        own = model.tap
        return resample(raw[:, :channels], stride=own.stride, offset=own.offset, in_size=in_size, out_size=out_size)

    def grid(size: Size) -> Size:
        h, w = net_shape(size, cfg.views.size, 1.0, model.min_size)
        return -(-h // model.tap.stride), -(-w // model.tap.stride)

    network = Network(model, model.preprocess, read, channels, model.min_size)
    yield from predict(
        work, network, tagged.source, ids, cfg.views, device=cfg.device, precision=cfg.precision, out_size=grid
    )


def spread(found: ClassMaps, values: Tensor, model: EdgeNet | PairNet, cfg: Walk) -> ClassMaps:
    """The maps of one image walked on the grid of `values` (d,h,w), the network's output averaged over views."""
    near = [(int(dy), int(dx)) for dy, dx in offsets(cfg.radius)]
    scores = enlarge(found.scores, (values.shape[1], values.shape[2]))
    if isinstance(model, PairNet):
        close = feature_affinity(values[None], near)[0].numpy()
    else:
        boundary = torch.sigmoid(values[0]).numpy()  # of averaged logits, as IRN does with its flip
        scores, close = damp(scores, boundary), path_affinity(boundary, cfg.radius)
    steps = transition(close, offsets(cfg.radius), cfg.beta)
    start = np.ascontiguousarray(scores, np.float32)
    end = walked(steps, start, cfg.steps) if cfg.exact else chebyshev(steps, start, cfg.steps, cfg.degree)
    return ClassMaps(found.id, found.classes, shared_peak(end), found.size)


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
