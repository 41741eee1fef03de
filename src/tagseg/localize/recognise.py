"""Which classes a tagger sees in images, where it travels inside of another model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from tagseg.artifacts import Scores, Weights, write_scores
from tagseg.data.index import TaggedSet
from tagseg.inference import Network, Views, count, predict
from tagseg.localize.classify import built, pool_by
from tagseg.store import Work, stage

PREFIX = "tagger."


@dataclass(frozen=True)
class Recognise:
    """How images are shown to the tagger."""

    views: Views = field(default_factory=Views)
    device: str = "auto"
    precision: str = "auto"

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {"quick": {"views": Views(size=96)}, "paper": {"views": Views(320)}}


@stage(Scores, version=1)
def scores(work: Work, images: TaggedSet, model: Weights, cfg: Recognise) -> None:
    """The probability of each class by image id, the mean over views, by the tagger inside of a model."""
    own = {name.removeprefix(PREFIX): t for name, t in model.tensors().items() if name.startswith(PREFIX)}
    _write(work, images, model.meta["tagger"], own, cfg)


@stage(Scores, version=1)
def taught(work: Work, tagged: TaggedSet, tagger: Weights, cfg: Recognise) -> None:
    """The same of the images that a tagger has learned from, before it travels inside of anything."""
    _write(work, tagged.training(), tagger.meta, tagger.tensors(), cfg)


def _write(work: Work, images: TaggedSet, meta: dict[str, Any], tensors: dict[str, Tensor], cfg: Recognise) -> None:
    net, pooled = built(meta, tensors), pool_by(meta)

    def read(maps: Tensor, in_size: tuple[int, int], out_size: tuple[int, int]) -> Tensor:
        return net.head.logits(maps.float(), pooled).sigmoid()[:, :, None, None]

    network = Network(net, net.backbone.preprocess, read, len(meta["classes"]), net.backbone.min_size, rewrite=False)
    seen = predict(work, network, images.source, images.ids, cfg.views, device=cfg.device, precision=cfg.precision,
                   out_size=lambda size: (1, 1))  # fmt: skip
    write_scores(work, dict(_rows(work, seen, count(cfg.views), len(images))))


def _rows(work: Work, seen: Any, views: int, total: int) -> Iterator[tuple[str, list[float]]]:
    for done, one in enumerate(seen, 1):
        yield one.id, (np.asarray(one.values.numpy(), np.float64).ravel() / views).round(6).tolist()
        work.tick(done, total)
