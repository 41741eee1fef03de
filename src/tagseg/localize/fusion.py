"""Two sets of maps of the same images as one: the larger score of each pixel, or the mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tagseg.artifacts import MapSet, write_maps
from tagseg.data.index import TaggedSet
from tagseg.store import Work, stage
from tagseg.types import ClassMaps, DataError


@dataclass(frozen=True)
class Fuse:
    """`rule`: "max" keeps what either map shows, "mean" what both do."""

    rule: Literal["max", "mean"] = "mean"


@stage(MapSet, version=1)
def fused(work: Work, tagged: TaggedSet, one: MapSet, other: MapSet, cfg: Fuse) -> None:
    """Maps in [0,1] of all images, for the classes that both sets have."""
    if one.ids != other.ids:
        raise DataError(f"{other.path}: maps of other images than {one.path}; expected the same images in both")

    def both(sample: str) -> ClassMaps:
        a, b = one.get(sample), other.get(sample)
        scores = np.maximum(a.scores, b.scores) if cfg.rule == "max" else (a.scores + b.scores) / 2
        return ClassMaps(sample, a.classes, scores.astype(np.float32), a.size)

    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        yield from work.map(both, ids)

    write_maps(work, tagged.ids, produce, {"classes": list(tagged.classes), "rule": cfg.rule})
