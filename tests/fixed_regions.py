"""Artifacts with given content, so that a stage is tested without those before it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tagseg.artifacts import LabelSet, MapSet, RegionSet, write_labels, write_maps, write_regions
from tagseg.data.index import TaggedSet
from tagseg.store import Run, Work, stage
from tagseg.types import ClassMaps, Labels


@dataclass(frozen=True, eq=False)
class Given:
    """Arrays by id; the name and the bytes are the identity."""

    name: str
    arrays: dict[str, np.ndarray]

    @property
    def key(self) -> str:
        parts = [f"{i}{a.shape}{a.dtype}".encode() + np.ascontiguousarray(a).tobytes() for i, a in self.arrays.items()]
        return hashlib.sha256(self.name.encode() + b"".join(parts)).hexdigest()


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def given(name: str, arrays: Mapping[str, np.ndarray]) -> Given:
    return Given(name, dict(arrays))


@stage(LabelSet, version=1)
def _labels(work: Work, tagged: TaggedSet, what: Given, cfg: Nothing) -> None:
    write_labels(work, tagged.ids, lambda ids: (Labels(i, what.arrays[i]) for i in ids), {})


@stage(MapSet, version=1)
def _maps(work: Work, tagged: TaggedSet, what: Given, cfg: Nothing) -> None:
    """Maps (K,h,w): of the present classes where K is their number, else of one nameless object."""

    def one(sample: str) -> ClassMaps:
        scores = what.arrays[sample]
        classes = np.flatnonzero(tagged.tags_of(sample)).astype(np.int64) + 1
        own = classes if len(classes) == len(scores) else np.arange(1, len(scores) + 1, dtype=np.int64)
        return ClassMaps(sample, own, scores, tagged.source.size(sample))

    write_maps(work, tagged.ids, lambda ids: map(one, ids), {})


@stage(RegionSet, version=1)
def _regions(work: Work, tagged: TaggedSet, what: Given, cfg: Nothing) -> None:
    meta = {"tag_shares": tagged.tags.mean(0).tolist()}
    write_regions(work, tagged.ids, lambda ids: ((i, what.arrays[i]) for i in ids), meta)


def labels(run: Run, tagged: TaggedSet, what: Given) -> LabelSet:
    return _labels(run, tagged, what, Nothing())


def maps(run: Run, tagged: TaggedSet, what: Given) -> MapSet:
    return _maps(run, tagged, what, Nothing())


def regions(run: Run, tagged: TaggedSet, what: Given) -> RegionSet:
    return _regions(run, tagged, what, Nothing())
