"""What a class-agnostic decoder draws of each class of an image: of given tags, or of those that a tagger sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tagseg.artifacts import MapSet, Scores, Weights, write_maps, write_weights
from tagseg.data.index import TaggedSet
from tagseg.data.loader import FILL
from tagseg.inference import coarser, net_shape, one_thread, resized
from tagseg.nets.attention_decoder import TransferNet, foreground_share
from tagseg.ops.geometry import resample
from tagseg.ops.operating_points import best_f1
from tagseg.ops.scores import or_best
from tagseg.segment.train_decoder import load
from tagseg.store import Work, stage
from tagseg.types import F32, F64, U8, Bool, ClassMaps, DataError

Part = Literal["drawn", "dense", "attention"]
SOURCED = 0.6  # the authors' score from which a class counts
LEAST = 1e-3  # the lowest point that a network is weighed for
TOGETHER = 8  # classes of an image that are drawn at once: a decoder keeps hundreds of full maps for each


@dataclass(frozen=True)
class Drawn:
    """`size`: square root of the area at which images are shown. `background`: what its own probability is weighed by
    (times the odds of the network's operating point, where it has one: `weighed`).

    `tag`: the score from which the tagger's class counts; "measured": that of each class at which the tags of the
    training images are told best (by F1). The best class where none counts, unless there were images without any tag to
    learn from (`always`: "yes", "no"). `grid`: maps are stored at 1/grid of the image's sides.
    """

    size: int = 256
    background: float = 0.5
    tag: float | Literal["measured"] = "measured"
    always: Literal["usual", "yes", "no"] = "usual"
    grid: int = 2
    device: str = "auto"

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"size": 96, "grid": 1},
        "paper": {"size": 320, "tag": SOURCED},
    }


D = TypeVar("D", bound=Drawn)


@dataclass(frozen=True)
class Finish:
    """Nothing to set."""


@stage(Weights, version=2)
def finished(work: Work, target: TaggedSet, model: Weights, tagger: Weights, seen: Scores, cfg: Finish) -> None:
    """The network with the tagger of its target classes, which prediction without tags needs, and the score from which
    each of them counts, by what the tagger says of the training images (`seen`, by id).
    """
    known, scores = target.training(), seen.read()
    said = np.array([scores[sample] for sample in known.ids])
    found = [best_f1(said[:, c], known.tags[:, c]) for c in range(len(known.classes))]
    tensors = {**model.tensors(), **{f"tagger.{name}": tensor for name, tensor in tagger.tensors().items()}}
    write_weights(work, tensors, {**model.meta, "has_background": True, "tagger": tagger.meta,
                                  "counts_from": [SOURCED if one is None else round(one, 6) for one in found],
                                  "negatives": bool((~known.tags.any(1)).any())})  # fmt: skip


@dataclass(frozen=True)
class Weighed:
    """Nothing to set: the operating point is an input."""


@stage(Weights, version=1)
def weighed(work: Work, model: Weights, point: Scores, cfg: Weighed) -> None:
    """The same network; its background is weighed so that what it drew at the operating point comes out at one half."""
    threshold = min(max(float(point.read()["threshold"]), LEAST), 1 - LEAST)  # at 0 and 1 nothing is left to weigh
    write_weights(work, model.tensors(), {**model.meta, "odds": threshold / (1 - threshold)})


@dataclass(frozen=True)
class Looked(Drawn):
    """What is shown: the decoder's drawing, the dense attention, or the attention itself."""

    part: Part = "drawn"


@stage(MapSet, version=7)
def maps(work: Work, tagged: TaggedSet, model: Weights, cfg: Looked) -> None:
    """Foreground of every tag of every image: its probability by the decoder; attention is divided by its maximum in
    the image.
    """
    present = dict(zip(tagged.ids, tagged.tags, strict=True))
    _write(work, tagged, model, at_point(cfg, model), lambda sample: present[sample], cfg.part)


@stage(MapSet, version=6)
def predicted(work: Work, images: TaggedSet, model: Weights, scores: Scores, cfg: Drawn) -> None:
    """Foreground of the classes that the tagger sees; `scores` holds its word on every image, by id."""
    forced = cfg.always == "yes" or (cfg.always == "usual" and not model.meta["negatives"])
    known, least = scores.read(), np.array(model.meta["counts_from"] if cfg.tag == "measured" else cfg.tag)
    _write(work, images, model, at_point(cfg, model), lambda sample: told(np.array(known[sample]), least, forced),
           "drawn")  # fmt: skip


def at_point(cfg: D, model: Weights) -> D:
    """`cfg` with the weight of the background times the odds that `weighed` left in the network."""
    return replace(cfg, background=cfg.background * float(model.meta.get("odds", 1.0)))


def told(scores: F64, least: F64, forced: bool) -> Bool:
    """Which classes (C,) reach a score, one for each or for all; the best one where none does and one is `forced`."""
    return or_best(scores >= least, scores, forced)


def check_numbers(images: TaggedSet, model: Weights) -> None:
    """`DataError` unless class k of the images is class k of the network: it names a class by its number alone."""
    known = (*model.meta["classes"], *model.meta["others"])
    if images.classes != known[: len(images.classes)]:
        raise DataError(f"{model.path}: learned the classes {', '.join(known)}, in this order; {images.name} has "
                        f"{', '.join(images.classes)}; give data with the same classes, or run `tagseg adapt`")


def _write(work: Work, images: TaggedSet, model: Weights, cfg: Drawn, present: Callable[[str], Bool],
           part: Part) -> None:
    """Maps of the classes that are `present` by an image's id; the encoder runs once for each image."""
    check_numbers(images, model)
    net = load(model).to(cfg.device)

    def one(sample: str) -> ClassMaps:
        image = images.source.read(sample)
        size = (image.shape[1], image.shape[2])
        classes = np.flatnonzero(present(sample))
        found = drawn(net, image, classes, cfg, part, coarser(cfg.grid)(size))
        return ClassMaps(sample, classes.astype(np.int64) + 1, found, size)

    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        with one_thread(cfg.device):
            yield from work.map(one, ids)

    write_maps(work, images.ids, produce, {"classes": list(images.classes), "grid": cfg.grid})


@torch.inference_mode()
def drawn(model: TransferNet, image: U8, classes: np.ndarray, cfg: Drawn, part: Part, size: tuple[int, int]) -> F32:
    """Maps (K,h,w) in 0..1 of classes (K,), counted from 0, of one image (3,H,W).

    Attention "fc" sees one grid: where it is a square, the image is shown in one; below or to the right of it lies the
    colour that fills training crops.
    """
    if not len(classes):
        return np.zeros((0, *size), np.float32)
    grid, own = model.attention.grid, (image.shape[1], image.shape[2])
    if model.shape.attention == "fc" and grid is not None and grid[0] == grid[1]:
        high, wide = own = (own[0] * cfg.size // max(own) or 1, own[1] * cfg.size // max(own) or 1)
        shown = np.broadcast_to(np.array(FILL, np.uint8)[:, None, None], (3, cfg.size, cfg.size)).copy()
        shown[:, :high, :wide] = resized(image, own)
    else:
        own = net_shape(own, cfg.size, 1.0, model.backbone.min_size)
        shown = resized(image, own)
    found = _looked_at(model, shown, own, classes, cfg, part, size)
    if part != "drawn":  # of the image alone: attention may lie beside it, in what fills the square
        found = found / found.max((1, 2), keepdims=True).clip(min=1e-9)
    return found.clip(0, 1).astype(np.float32)


def _looked_at(model: TransferNet, shown: U8, own: tuple[int, int], classes: np.ndarray, cfg: Drawn, part: Part,
               size: tuple[int, int]) -> F32:
    """The same of what the network is `shown`, whose upper left part of `own` size is the image; attention as it comes.
    """
    x = torch.from_numpy(shown).to(cfg.device)[None].float() / 255
    encoded = model.encode(model.backbone.preprocess(x), switches=part == "drawn")
    every = F.one_hot(torch.from_numpy(classes.astype(np.int64)), model.attention.name.in_features).bool()
    found = []
    for named in every.to(cfg.device).split(TOGETHER):
        rows = encoded.rows(torch.zeros(len(named), dtype=torch.long))
        alpha, dense, _ = model(rows, named)
        if part == "drawn":
            drawing = foreground_share(model.draw(dense, rows).float(), cfg.background)[:, None, : own[0], : own[1]]
            fine: Tensor = F.interpolate(drawing, size, mode="bilinear", align_corners=False)[:, 0]
        else:
            last = model.backbone.tap("last")
            cells = (alpha if part == "attention" else dense[:, 0]).float()[None]
            fine = resample(cells, stride=last.stride, offset=last.offset, in_size=own, out_size=size)[0]
        found.append(fine.cpu().numpy().astype(np.float32))
    return np.concatenate(found)
