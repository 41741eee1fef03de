"""The `auto` operating point: cut class maps where painting the cut-out over takes a tag's evidence away. No truth."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from tagseg.artifacts import MapSet, Scores, Weights, write_scores
from tagseg.data.index import ImageSource, TaggedSet
from tagseg.inference import Network, Size, Views, predict, resized
from tagseg.localize.classify import load, pooling_of
from tagseg.ops import operating_points as rules
from tagseg.ops.geometry import enlarge
from tagseg.store import Work, stage
from tagseg.types import U8

CUTS = tuple(round(0.1 * i, 1) for i in range(1, 10))
BINS = 100


@dataclass(frozen=True)
class OperatingPoint:
    """`rule`: "erase" needs class-absent images, "otsu" does not and steps in where every class is nearly everywhere.

    `level`: the share of evidence that may remain; `pairs`: so many (image, tag) pairs are looked at, evenly over the
    classes; a class takes part with at least `few` images without its tag.
    """

    rule: Literal["erase", "otsu"] = "erase"
    level: float = 0.4
    pairs: int = 120
    few: int = 4
    device: str = "auto"
    precision: str = "auto"


class Pair(NamedTuple):
    """An image, one of its classes (0..C-1), and an image without that class."""

    id: str
    label: int
    negative: str


@stage(Scores, version=2)
def auto(work: Work, tagged: TaggedSet, classifier: Weights, maps: MapSet, cfg: OperatingPoint) -> None:
    """Choose one threshold for all classes; the record says by which rule, on what, and why."""
    chosen, left_out = pairs(tagged, cfg)
    rule = cfg.rule if chosen else "otsu"
    curve = {}
    if rule == "erase":
        left = erased_evidence(work, tagged, classifier, maps, chosen, cfg)
        threshold = rules.crossing(np.array(CUTS), left, cfg.level)  # cam Eq. 8
        curve = {"thresholds": list(CUTS), "evidence_left": np.round(left, 4).tolist(), "level": cfg.level}
    else:
        threshold = rules.otsu(histogram(maps))
    note = said(cfg, rule, len(chosen), [tagged.classes[c] for c in left_out])
    write_scores(work, {"threshold": round(threshold, 3), "origin": "auto", "rule": rule, "note": note, "curve": curve})


def pairs(tagged: TaggedSet, cfg: OperatingPoint) -> tuple[list[Pair], list[int]]:
    """The pairs that are looked at, the same ones each time, and the classes that have too few negatives."""
    each = max(1, cfg.pairs // len(tagged.classes))
    found: list[Pair] = []
    left_out = []
    for label in range(len(tagged.classes)):
        with_tag, without = (_shuffled(tagged, tagged.tags[:, label] == has, label) for has in (True, False))
        if len(without) < cfg.few:
            left_out.append(label)
            continue
        found += [Pair(i, label, without[n % len(without)]) for n, i in enumerate(with_tag[:each])]
    return found, left_out


def _shuffled(tagged: TaggedSet, rows: np.ndarray, label: int) -> list[str]:
    ids = [tagged.ids[row] for row in np.flatnonzero(rows)]
    return sorted(ids, key=lambda i: hashlib.sha256(f"{label}/{i}".encode()).digest())


@dataclass(frozen=True)
class Painted:
    """Images of a pair: the original, the negative, and the original painted over with it from each cut up."""

    source: ImageSource
    maps: MapSet
    pairs: tuple[Pair, ...]

    def ids(self) -> list[str]:
        return [f"{n} {kind}" for n in range(len(self.pairs)) for kind in ("original", "negative", *CUTS)]

    def read(self, id: str) -> U8:
        number, kind = id.split(" ")
        pair = self.pairs[int(number)]
        image = self.source.read(pair.id)
        if kind == "original":
            return image
        other = resized(self.source.read(pair.negative), (image.shape[1], image.shape[2]))
        if kind == "negative":
            return other
        found = self.maps.get(pair.id)
        scores = enlarge(found.scores, found.size)[found.classes.tolist().index(pair.label + 1)]
        return np.where((scores >= float(kind))[None], other, image)

    def size(self, id: str) -> Size:
        return self.source.size(self.pairs[int(id.split(" ")[0])].id)

    def digest(self, id: str) -> str:
        return f"{self.source.digest(self.pairs[int(id.split(' ')[0])].id)} {id}"


def erased_evidence(
    work: Work, tagged: TaggedSet, classifier: Weights, maps: MapSet, chosen: list[Pair], cfg: OperatingPoint
) -> np.ndarray:
    """The share of evidence left at each of `CUTS`, over all pairs."""
    painted = Painted(tagged.source, maps, tuple(chosen))
    logits = np.array(list(_logits(work, tagged, classifier, painted, cfg))).reshape(len(chosen), -1)
    return rules.evidence_left(logits[:, 2:], logits[:, 0], logits[:, 1])


def _logits(
    work: Work, tagged: TaggedSet, classifier: Weights, painted: Painted, cfg: OperatingPoint
) -> Iterator[float]:
    """The logit of its pair's class for every painted image."""
    model = load(classifier, tagged.classes)
    pooled = pooling_of(classifier)

    def read(raw: Tensor, in_size: Size, out_size: Size) -> Tensor:
        return model.head.logits(raw.float(), pooled)[:, :, None, None]

    network = Network(model, model.backbone.preprocess, read, len(tagged.classes), model.backbone.min_size)
    ids, views = painted.ids(), Views(size=classifier.meta["size"], flip=False)
    each = len(CUTS) + 2
    seen = predict(work, network, painted, ids, views, device=cfg.device, precision=cfg.precision, out_size=_single)
    for n, one in enumerate(seen):
        work.tick(n + 1, len(ids))
        yield float(one.values[painted.pairs[n // each].label, 0, 0])


def _single(size: Size) -> Size:
    return 1, 1


def histogram(maps: MapSet) -> np.ndarray:
    """Scores of all tagged maps, each map counting as one: (BINS,)."""
    total = np.zeros(BINS)
    for found in maps:
        for scores in found.scores:
            total += (
                np.bincount((scores.ravel() * BINS).astype(np.intp).clip(0, BINS - 1), minlength=BINS) / scores.size
            )
    return total


def said(cfg: OperatingPoint, rule: str, count: int, left_out: list[str]) -> str:
    """The choice in words, for the record and the report."""
    if rule == "erase":
        text = (
            f"Everything at or above a cut is painted over with an image that lacks the tag; the cut is where "
            f"{cfg.level:.0%} of the tag's evidence is left (1: nothing lost, 0: like an image without the tag). "
            f"Measured on {count} pairs of image and tag, one cut for all classes, no pixel truth."
        )
    else:
        text = "Otsu's cut of the scores of all tagged maps, one for all classes, no pixel truth."
        if cfg.rule == "erase":
            text += " Every class is nearly everywhere: no image without its tag could serve as a negative."
    if left_out and rule == "erase":
        text += f" Not counted, nearly everywhere: {', '.join(left_out)}."
    return text
