"""Regions that look like the labelled ones of their class: RegionNet asked about every region (MCOF, Sec. 2, Eq. 5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tagseg.artifacts import LabelSet, RegionSet, SuperpixelSet, Weights, write_labels, write_regions
from tagseg.data.index import Images, TaggedSet
from tagseg.inference import Network, Seen, Size, Views, net_shape, predict
from tagseg.nets.backbones import build
from tagseg.nets.region_net import SIDE, RegionNet
from tagseg.ops import regions
from tagseg.store import Work, stage
from tagseg.types import BACKGROUND, F32, I32, IGNORE, Labels


@dataclass(frozen=True)
class Ask:
    """How images are shown to RegionNet: one view; its size is the square root of the area.

    In the middle of the zoom that it was trained with: at the far end of it, labels lose recall.
    """

    size: int = 384
    batch: int = 8
    device: str = "auto"
    precision: str = "auto"

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {"quick": {"size": 144}, "paper": {"size": 321}}


@dataclass(frozen=True)
class Mine:
    """`keep`: a region is labelled where its best probability, held to the tags, reaches this.

    `tags`: how tags change what the network says of a region: "bayes" by Bayes' rule, from how often each tag is given;
    "allow" leaves out what is not tagged. `keep_tag`: a present class that would vanish keeps its likeliest region.
    """

    keep: float = 0.6
    tags: regions.Tags = "bayes"
    keep_tag: bool = True


@stage(RegionSet, version=3)
def probabilities(work: Work, images: Images, miner: Weights, segments: SuperpixelSet, cfg: Ask) -> None:
    """p(k | region) of background and all classes, for every region of every image; tags are not looked at."""
    model = load(miner)
    network = shown(model)

    def shape(size: Size) -> Size:
        return net_shape(size, cfg.size, 1.0, model.min_size)

    def grid(size: Size) -> Size:
        h, w = shape(size)
        return -(-h // model.tap.stride), -(-w // model.tap.stride)

    def one(seen: Seen) -> tuple[str, F32]:
        h, w = seen.image.shape[1:]
        return seen.id, shares(model, seen.values, segments.get(seen.id), shape((h, w)))

    def produce(ids: list[str]) -> Iterator[tuple[str, F32]]:
        views = Views(cfg.size, (1.0,), flip=False, batch=cfg.batch)
        yield from work.map(one, predict(work, network, images.source, ids, views, device=cfg.device,
                                         precision=cfg.precision, out_size=grid))  # fmt: skip

    write_regions(work, images.ids, produce, {n: miner.meta[n] for n in ("classes", "tag_shares")})


def shown(model: RegionNet) -> Network:
    """RegionNet's features of whole images, on their own grid; its head, which is small, stays on the CPU."""
    return Network(model.body, model.preprocess, lambda raw, in_size, out_size: raw, model.channels, model.min_size)


@torch.inference_mode()
def shares(model: RegionNet, features: Tensor, ids: I32, in_size: Size) -> F32:
    """Probabilities (J,C+1) of the regions of one image from its features (d,h,w); `in_size` of the network's input."""
    count, tap = int(ids.max()) + 1, model.tap
    if model.form == "roi_mask":
        found = regions.boxed(ids, count, in_size=in_size, side=SIDE)
    else:
        h, w = features.shape[1:]
        found = regions.pooled(ids, count, stride=tap.stride, offset=tap.offset, in_size=in_size, grid=(h, w))
    logits = model.head(features[None], *(torch.from_numpy(part)[None] for part in found))
    return logits[0].softmax(1).numpy()


@stage(LabelSet, version=2)
def labels(work: Work, tagged: TaggedSet, likely: RegionSet, segments: SuperpixelSet, cfg: Mine) -> None:
    """The likeliest label of every region, held to the image's tags; 255 where it is not likely enough."""

    def one(sample: str) -> Labels:
        present, ids = tagged.tags_of(sample), segments.get(sample)
        if not present.any():
            return Labels(sample, np.full(ids.shape, BACKGROUND if tagged.has_background else IGNORE, np.uint8))
        held = with_tags(likely, tagged, sample, cfg.tags)
        found = regions.confident(held, keep=cfg.keep, present=present, keep_tag=cfg.keep_tag)
        return Labels(sample, found[ids])

    def produce(ids: list[str]) -> Iterator[Labels]:
        yield from work.map(one, ids)

    write_labels(work, tagged.ids, produce, {"classes": list(tagged.classes), "keep": cfg.keep})


def with_tags(likely: RegionSet, tagged: TaggedSet, sample: str, tags: regions.Tags) -> F32:
    """Probabilities (J,C+1) of an image's regions now that its tags are known; rows of what none allows are 0."""
    usual = np.array(likely.meta["tag_shares"]) if tags == "bayes" else None
    return regions.restricted(  # mcof Eq. 5
        likely.get(sample), regions.allowance(tagged.tags_of(sample), tagged.has_background, usual))


def load(weights: Weights) -> RegionNet:
    """The trained network, in eval mode."""
    meta = weights.meta
    model = RegionNet(build(meta["backbone"], stride=meta["stride"]), len(meta["classes"]) + 1, form=meta["form"],
                      width=meta["width"])  # fmt: skip
    model.load_state_dict(weights.tensors())
    return model.eval()
