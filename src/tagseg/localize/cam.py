"""Class activation maps (Zhou et al. 2016): where a tag classifier finds each tag of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from tagseg.artifacts import MapSet, Weights, write_maps
from tagseg.data.index import TaggedSet
from tagseg.inference import Network, Seen, Views, coarser, predict
from tagseg.localize import findings as found
from tagseg.localize.classify import Headless, TagNet, load, pooling_of
from tagseg.ops.geometry import resample
from tagseg.ops.scores import normalise
from tagseg.store import Work, stage
from tagseg.types import F32, I64, ClassMaps

Size = tuple[int, int]


@dataclass(frozen=True)
class Cam:
    """`grid`: maps are stored at 1/grid of the image's sides. `views`: larger than in training, for finer cells."""

    views: Views = field(default_factory=lambda: Views(size=384))
    grid: int = 4
    device: str = "auto"
    precision: str = "auto"

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"views": Views(size=192), "grid": 2},  # twice the training size: finer cells for small images
        "paper": {"views": Views(size=512, scales=(1.0, 0.5, 1.5, 2.0))},  # IRN's scales
    }


@stage(MapSet, version=5)
def maps(work: Work, tagged: TaggedSet, classifier: Weights, cfg: Cam) -> None:
    """Maps of the tagged classes of every image: summed over views, then divided by their maximum."""
    network = network_of(load(classifier, tagged.classes))
    present = {sample: np.flatnonzero(tags) for sample, tags in zip(tagged.ids, tagged.tags, strict=True)}

    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        for seen in raw_maps(work, network, tagged, ids, cfg, lambda sample: present[sample]):
            yield ClassMaps(
                seen.id, present[seen.id] + 1, normalise(values(seen)), (seen.image.shape[1], seen.image.shape[2])
            )

    write_maps(work, tagged.ids, produce, {"classes": list(tagged.classes), "grid": cfg.grid})


@stage(MapSet, version=4)
def findings(work: Work, images: TaggedSet, classifier: Weights, cfg: Cam) -> None:
    """Where the classifier sees any class at all, in images whose tags are not known."""
    model, pooled = load(classifier, images.classes), pooling_of(classifier)
    network = found.network_of(model, model.backbone, model.tap, lambda maps: maps + model.head.bias.view(1, -1, 1, 1),
                               lambda maps: model.head.logits(maps, pooled))  # fmt: skip
    found.write_findings(work, images, network, cfg)


def network_of(model: TagNet) -> Network:
    """A classifier read as raw class maps: positive part on its own grid, then brought to the wanted size. Classes that
    no image of a batch is asked for are not computed.
    """

    def read(raw: Tensor, in_size: Size, out_size: Size) -> Tensor:
        return resample(  # cam Eq. 4
            raw.relu(), stride=model.tap.stride, offset=model.tap.offset, in_size=in_size, out_size=out_size
        )

    rows = model.head.weight  # cam Eq. 1
    return Network(Headless(model), model.backbone.preprocess, read, len(rows), model.backbone.min_size, rows=rows)


def raw_maps(work: Work, network: Network, tagged: TaggedSet, ids: Sequence[str], cfg: Cam,
             classes: Callable[[str], I64] | None = None) -> Iterator[Seen]:
    """Raw maps (C,h,w), before any division, of the images `ids`: of *all* classes, or of those asked for by image."""
    yield from predict(
        work,
        network,
        tagged.source,
        ids,
        cfg.views,
        device=cfg.device,
        precision=cfg.precision,
        out_size=coarser(cfg.grid),
        channels=classes,
    )


def values(seen: Seen) -> F32:
    return np.asarray(seen.values.numpy(), np.float32)
