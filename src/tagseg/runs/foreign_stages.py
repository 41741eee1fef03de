"""Stages over maps from elsewhere: into our own form, where to cut them, and the last decision with or without CRF."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tagseg.artifacts import LabelSet, MapSet, Scores, write_labels, write_maps, write_scores
from tagseg.data.foreign_maps import ForeignMap, ForeignMaps
from tagseg.data.index import TaggedSet
from tagseg.ops.geometry import enlarge
from tagseg.ops.operating_points import otsu
from tagseg.ops.scores import to_probabilities, with_background
from tagseg.refine.crf import Crf, solve
from tagseg.store import Work, stage
from tagseg.types import BACKGROUND, F32, I64, ClassMaps, Labels

BINS = 100
EVEN = 0.50001  # of the best class and the background; a hair above one half, as ties go to the background


@dataclass(frozen=True)
class Import:
    """Nothing to set: the reading is part of the maps."""


@dataclass(frozen=True)
class Cut:
    """`given`: the background's score; None chooses it by Otsu's rule over all maps, each counting as one."""

    given: float | None = None


@dataclass(frozen=True)
class Decide:
    """The last step: the likeliest class of each pixel, after the CRF unless `crf` is None."""

    crf: Crf | None = None


class Solved(NamedTuple):
    """Mask values of the channels (k,), 0 first, and their probabilities (k,H,W)."""

    values: I64
    shares: F32


@stage(MapSet, version=1)
def imported(work: Work, maps: ForeignMaps, cfg: Import) -> None:
    """The maps as an artifact. Where the background has a map, scores become p / (best p + background): `EVEN` cuts
    there where the arg-max would, and a class that loses to another stays as weak as it was.
    """

    def one(id: str) -> ClassMaps:
        found = maps.get(id)
        return found.maps if found.background is None else against(found.maps, found.background)

    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        yield from work.map(one, ids)

    write_maps(work, maps.ids, produce, {"classes": list(maps.classes)})


def against(maps: ClassMaps, background: F32) -> ClassMaps:
    """Scores divided by what the best class and the background hold together; 0 where neither has anything."""
    both = maps.scores.max(0, initial=0) + background
    odds = np.divide(maps.scores, both, out=np.zeros_like(maps.scores), where=both > 0)
    return ClassMaps(maps.id, maps.classes, odds, maps.size)


@stage(Scores, version=1)
def point(work: Work, maps: ForeignMaps | MapSet, cfg: Cut) -> None:
    """The background's score: as given, or where Otsu's rule splits the scores of all maps."""
    if cfg.given is not None:
        return write_scores(work, {"threshold": cfg.given, "origin": "given"})
    total = np.zeros(BINS)
    for done, id in enumerate(maps.ids):
        for scores in _class_maps(maps.get(id)).scores:
            total += np.histogram(scores, BINS, (0.0, 1.0))[0] / scores.size
        work.tick(done + 1, len(maps.ids))
    write_scores(work, {"threshold": round(otsu(total), 3), "origin": "Otsu's rule over all maps"})


@stage(LabelSet, version=1)
def labels(work: Work, tagged: TaggedSet, maps: ForeignMaps | MapSet, point: Scores, cfg: Decide) -> None:
    """The likeliest class of each pixel; confidence is its probability."""
    solved = _solver(tagged, maps, point, cfg)

    def one(id: str) -> Labels:
        values, shares = solved(id)
        return Labels(id, values[shares.argmax(0)].astype(np.uint8), np.round(255 * shares.max(0)).astype(np.uint8))

    def produce(ids: list[str]) -> Iterator[Labels]:
        yield from work.map(one, ids)

    write_labels(work, tagged.ids, produce, {"classes": list(tagged.classes)})


@stage(MapSet, version=1)
def probabilities(work: Work, tagged: TaggedSet, maps: ForeignMaps | MapSet, point: Scores, cfg: Decide) -> None:
    """What `labels` chooses from, at the image's size; the background's is what the classes leave of 1."""
    solved = _solver(tagged, maps, point, cfg)

    def one(id: str) -> ClassMaps:
        values, shares = solved(id)
        return ClassMaps(id, values[1:], shares[1:].clip(0, 1), (shares.shape[1], shares.shape[2]))

    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        yield from work.map(one, ids)

    write_maps(work, tagged.ids, produce, {"classes": list(tagged.classes)})


def _solver(tagged: TaggedSet, maps: ForeignMaps | MapSet, point: Scores, cfg: Decide) -> Callable[[str], Solved]:
    threshold = float(point.read()["threshold"])

    def one(id: str) -> Solved:
        given = unary(maps.get(id), threshold)
        if cfg.crf is None or len(given.values) == 1:
            return given
        return Solved(given.values, solve(tagged.source.read(id), given.shares, cfg.crf))

    return one


def unary(found: ForeignMap | ClassMaps, threshold: float) -> Solved:
    """Probabilities of background and classes at the image's size: the background's own map, or the threshold's."""
    maps = _class_maps(found)
    values = np.concatenate([[BACKGROUND], maps.classes]).astype(np.int64)
    if isinstance(found, ForeignMap) and found.background is not None:
        channels = np.concatenate([found.background[None], maps.scores])
        return Solved(values, to_probabilities(enlarge(channels, maps.size)))
    return Solved(values, with_background(enlarge(maps.scores, maps.size), threshold))


def _class_maps(found: ForeignMap | ClassMaps) -> ClassMaps:
    return found.maps if isinstance(found, ForeignMap) else found
