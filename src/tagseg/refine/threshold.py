"""Labels straight from class maps at an operating point, without looking at the image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tagseg.artifacts import LabelSet, MapSet, Scores, write_labels, write_scores
from tagseg.data.index import TaggedSet
from tagseg.ops.geometry import enlarge
from tagseg.ops.scores import to_labels
from tagseg.store import Work, stage
from tagseg.types import ClassMaps, Labels


@dataclass(frozen=True)
class Fixed:
    """An operating point given as a number, in (0, 1); `origin` says who chose it, and on what."""

    threshold: float = 0.3
    origin: str = "given"


@dataclass(frozen=True)
class Threshold:
    """Nothing to set: the operating point is an input."""


@stage(Scores, version=1)
def fixed(work: Work, cfg: Fixed) -> None:
    """The operating point that was given."""
    write_scores(work, {"threshold": cfg.threshold, "origin": cfg.origin})


@stage(LabelSet, version=1)
def labels(work: Work, tagged: TaggedSet, maps: MapSet, point: Scores, cfg: Threshold) -> None:
    """The best class of each pixel where its score reaches the operating point, else background."""
    threshold = float(point.read()["threshold"])

    def one(sample: str) -> Labels:
        return from_maps(maps.get(sample), threshold, tagged.has_background)

    def produce(ids: list[str]) -> Iterator[Labels]:
        yield from work.map(one, ids)

    write_labels(work, tagged.ids, produce, {"classes": list(tagged.classes), "threshold": threshold})


def from_maps(maps: ClassMaps, threshold: float, has_background: bool) -> Labels:
    """Labels at the image's size; confidence is the winning score."""
    scores = enlarge(maps.scores, maps.size)
    pixels = to_labels(scores, maps.classes, threshold, has_background)
    best = scores.max(0) if len(scores) else np.zeros(maps.size, np.float32)
    sure = np.where(pixels > 0, best, 1 - best)
    return Labels(maps.id, pixels, np.round(255 * sure.clip(0, 1)).astype(np.uint8))
