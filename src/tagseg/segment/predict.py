"""Labels of images from a trained segmenter; tags are not looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from tagseg.artifacts import LabelSet, MapSet, Weights, write_labels, write_maps
from tagseg.data.index import TaggedSet
from tagseg.inference import Network, Seen, Views, coarser, count, predict
from tagseg.nets.deeplab import Segmenter
from tagseg.ops import crf, regions
from tagseg.ops.geometry import resample
from tagseg.segment.train import load
from tagseg.store import Work, stage
from tagseg.types import F32, U8, ClassMaps, Labels

Size = tuple[int, int]


@dataclass(frozen=True)
class EdgeCrf:
    """The dense CRF after prediction; off with 0 iterations. Labels that stay under `floor` everywhere are left out."""

    iterations: int = 0
    sxy_gaussian: float = 3.0
    compat_gaussian: float = 3.0
    sxy_bilateral: float = 50.0
    srgb: float = 5.0
    compat_bilateral: float = 4.0
    floor: float = 0.05


@dataclass(frozen=True)
class Predict:
    """Scales and flips are averaged as probabilities at the image's own size."""

    views: Views = field(default_factory=lambda: Views(flip=False))
    crf: EdgeCrf = field(default_factory=EdgeCrf)
    device: str = "auto"
    precision: str = "auto"

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"views": Views(size=96, flip=False)},
        "paper": {"views": Views(size=321, flip=False)},
    }


@dataclass(frozen=True)
class PredictTagged(Predict):
    """For images whose tags are known. `tags`: "bayes", how often each tag is given counts; "allow", tags only hold."""

    tags: regions.Tags = "bayes"


def slower(size: int) -> Predict:
    """`val_post`: three scales, mirror images and the CRF, for a network that was trained at this size."""
    return Predict(Views(size=size, scales=(1.0, 0.75, 1.25)), EdgeCrf(iterations=10))


@stage(LabelSet, version=2)
def labels(work: Work, images: TaggedSet, segmenter: Weights, cfg: Predict) -> None:
    """The most probable label of every pixel, at the original size, with its probability as confidence."""
    _write(work, images, segmenter, cfg, lambda sample: None)


@stage(LabelSet, version=3)
def restricted(work: Work, tagged: TaggedSet, segmenter: Weights, cfg: PredictTagged) -> None:
    """The same, held to background and the tags of each image: for training images, whose tags are known."""
    shift = 0 if tagged.has_background else 1
    usual = np.array(segmenter.meta["tag_shares"]) if cfg.tags == "bayes" else None

    def allowed(sample: str) -> F32 | None:
        present = tagged.tags_of(sample)
        if shift and not present.any():
            return None
        return regions.allowance(present, not shift, usual)[shift:]

    _write(work, tagged, segmenter, cfg, allowed)


@stage(MapSet, version=3)
def findings(work: Work, images: TaggedSet, segmenter: Weights, cfg: Predict) -> None:
    """How surely each pixel is any class but background, at half the size; of the image, its surest pixel.

    As in `localize/findings`, odds are brought nearer to each other (fourth roots) so that sure pixels do not tie.
    """
    meta, views = segmenter.meta, count(cfg.views)
    network = network_of(load(segmenter), len(meta["classes"]) + 1)

    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        for seen in predict(work, network, images.source, ids, cfg.views, device=cfg.device, precision=cfg.precision,
                            out_size=coarser(2)):  # fmt: skip
            share = np.asarray((seen.values[:1] / views).numpy(), np.float32).clip(0, 1)
            ground, objects = share**0.25, (1 - share) ** 0.25
            shares = np.asarray(objects / (ground + objects), np.float32)
            yield ClassMaps(seen.id, np.array([1]), shares, seen.image.shape[1:], shares.max((1, 2)))

    write_maps(work, images.ids, produce, {"classes": ["object"], "grid": 2})


def _write(
    work: Work, images: TaggedSet, segmenter: Weights, cfg: Predict, allowed: Callable[[str], F32 | None]
) -> None:
    """Labels of every image among the outputs that are allowed (None: all)."""
    meta, views = segmenter.meta, count(cfg.views)
    shift = 0 if meta["has_background"] else 1
    network = network_of(load(segmenter), len(meta["classes"]) + 1 - shift)

    def one(seen: Seen) -> Labels:
        probability = np.asarray((seen.values / views).numpy(), np.float32)
        if (kept := allowed(seen.id)) is not None:
            probability = held(probability, kept)
        if cfg.crf.iterations:
            probability = sharpened(seen.image, probability, cfg.crf)  # cam Eq. 13
            probability = probability if kept is None else held(probability, (kept > 0).astype(np.float32))
        best = probability.argmax(0)  # cam Eq. 12
        return Labels(seen.id, (best + shift).astype(np.uint8), np.round(255 * probability.max(0)).astype(np.uint8))

    def produce(ids: list[str]) -> Iterator[Labels]:
        yield from work.map(
            one, predict(work, network, images.source, ids, cfg.views, device=cfg.device, precision=cfg.precision)
        )

    write_labels(work, images.ids, produce, {"classes": meta["classes"], "has_background": meta["has_background"]})


def held(probability: F32, allowed: F32) -> F32:
    """Probabilities (K,H,W) times what tags allow (0: nothing), summing to 1; as `allowed` where nothing was left."""
    kept = probability * allowed[:, None, None]
    total = kept.sum(0)
    even = (allowed / max(allowed.sum(), 1e-12))[:, None, None]
    return np.where(total > 0, kept / np.where(total > 0, total, 1), even)


def network_of(model: Segmenter, outputs: int) -> Network:
    """A segmenter of so many outputs read as probabilities on the wanted grid."""

    def read(logits: Tensor, in_size: Size, out_size: Size) -> Tensor:
        return resample(logits, stride=model.stride, offset=model.offset, in_size=in_size, out_size=out_size).softmax(1)

    return Network(model, model.backbone.preprocess, read, outputs, model.backbone.min_size)


def sharpened(image: U8, probability: F32, cfg: EdgeCrf) -> F32:
    """The CRF over the labels that reach `floor` somewhere, the others get probability 0; a lone one needs no CRF."""
    if len(crf.at_least(probability, cfg.floor)) < 2:
        return probability
    return crf.dense_crf(
        np.ascontiguousarray(image.transpose(1, 2, 0)),
        probability,
        sxy_gaussian=cfg.sxy_gaussian,
        compat_gaussian=cfg.compat_gaussian,
        sxy_bilateral=cfg.sxy_bilateral,
        srgb=cfg.srgb,
        compat_bilateral=cfg.compat_bilateral,
        iterations=cfg.iterations,
        floor=cfg.floor,
    )
