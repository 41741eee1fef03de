"""Stages over maps from elsewhere: into our own form, where to cut them, and the last decision with or without CRF."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tagseg.artifacts import LabelSet, MapSet, Scores, write_labels, write_maps, write_scores
from tagseg.data.foreign_maps import ForeignMap, ForeignMaps
from tagseg.data.index import TaggedSet
from tagseg.ops.geometry import enlarge
from tagseg.ops.operating_points import otsu
from tagseg.ops.scores import to_probabilities, with_background
from tagseg.refine.crf import Crf, decided, of_one_size, solve, solve_together
from tagseg.store import Work, stage
from tagseg.types import BACKGROUND, F32, I64, ClassMaps, Labels

BINS = 100
AHEAD = 32  # images whose probabilities are held at once while a graphics card solves them
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
    """The last step: the likeliest class of each pixel, after the CRF (on its device) unless `crf` is None."""

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


@stage(LabelSet, version=2)
def labels(work: Work, tagged: TaggedSet, maps: ForeignMaps | MapSet, point: Scores, cfg: Decide) -> None:
    """The likeliest class of each pixel, 255 where the CRF's `unsure_below` asks for it; confidence is its share."""

    def produce(ids: list[str]) -> Iterator[Labels]:
        for id, found in zip(ids, _solved(work, tagged, maps, point, cfg, ids), strict=True):
            yield decided(id, found.values, found.shares, cfg.crf or Crf())

    write_labels(work, tagged.ids, produce, {"classes": list(tagged.classes)})


@stage(MapSet, version=2)
def probabilities(work: Work, tagged: TaggedSet, maps: ForeignMaps | MapSet, point: Scores, cfg: Decide) -> None:
    """What `labels` chooses from, at the image's size; the background's is what the classes leave of 1."""

    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        for id, (values, shares) in zip(ids, _solved(work, tagged, maps, point, cfg, ids), strict=True):
            yield ClassMaps(id, values[1:], shares[1:].clip(0, 1), (shares.shape[1], shares.shape[2]))

    write_maps(work, tagged.ids, produce, {"classes": list(tagged.classes)})


def _solved(work: Work, tagged: TaggedSet, maps: ForeignMaps | MapSet, point: Scores, cfg: Decide,
            ids: list[str]) -> Iterator[Solved]:
    """The decision's probabilities of each image, in the order of `ids`."""
    threshold = float(point.read()["threshold"])

    def start(id: str) -> Solved:
        return unary(maps.get(id), threshold)

    def one(id: str) -> Solved:
        given = start(id)
        if cfg.crf is None or len(given.values) == 1:
            return given
        return Solved(given.values, solve(tagged.source.read(id), given.shares, cfg.crf))

    if cfg.crf is None or cfg.crf.device == "cpu":
        yield from work.map(one, ids)
        return
    for first in range(0, len(ids), AHEAD):
        some = ids[first : first + AHEAD]
        yield from on_card(tagged, dict(zip(some, work.map(start, some), strict=True)), cfg.crf)


def on_card(tagged: TaggedSet, given: dict[str, Solved], cfg: Crf) -> list[Solved]:
    """The CRF's probabilities in the order of `given`, solved in batches of one size on the device of the config."""
    done = dict(given)
    several = {id: one.shares.shape[1:] for id, one in given.items() if len(one.values) > 1}
    for batch in of_one_size({id: (h, w) for id, (h, w) in several.items()}):
        photos = [tagged.source.read(id) for id in batch]
        for id, shares in zip(batch, solve_together(photos, [given[id].shares for id in batch], cfg), strict=True):
            done[id] = Solved(given[id].values, shares)
    return list(done.values())


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
