"""A foreground map and class maps as one partition of the image, drawn to its edges: masks that a loss can trust.

The masks are constants: nothing flows back through them (Saleh et al.: made once, kept in a database).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np

from tagseg.artifacts import (
    LabelSet,
    MapSet,
    Scores,
    SuperpixelSet,
    write_labels,
    write_maps,
    write_scores,
    written_labels,
)
from tagseg.data.index import TaggedSet
from tagseg.data.picks import Looked, Picks, fingerprint
from tagseg.ops import superpixels
from tagseg.ops.geometry import enlarge
from tagseg.refine import crf
from tagseg.store import Work, stage
from tagseg.types import BACKGROUND, F32, I32, I64, IGNORE, U8, ClassMaps, DataError, Labels, UsageError

CANDIDATES = ("plain", "wider", "tighter", "raw", "second", "loose", "strict")
POWERS = {"wider": 0.5, "tighter": 2.0}
COLOURS = {"loose": 2.0, "strict": 0.5}  # how far colours may lie apart for the CRF, times `srgb`
APART = 3.0  # energy that the "second" best pays for each pixel that it labels as the best does


@dataclass(frozen=True)
class PriorMasks:
    """`widen` "tags": the foreground to the power of 1 / sqrt K where K tags share it; else each of them may lose to a
    background that is less likely than all of them together. `delta` is a prior on pixels that no class map speaks for:
    they are shared out evenly. `region`: how much of each pixel's log-probability is that of its superpixel (0: none).
    `candidate`: "plain"; from a "wider" (F to the power of .5) or a "tighter" foreground (squared); "raw", without the
    CRF; "second", the best labels that are unlike the plain ones; "loose" and "strict", by a CRF to which colours look
    twice as alike, or half. Of `crf`, `unsure_below` must be 0: each pixel belongs to a tag or to the background.
    """

    widen: Literal["tags", "none"] = "tags"
    delta: float = 1e-3
    region: float = 0.0
    candidate: Literal["plain", "wider", "tighter", "raw", "second", "loose", "strict"] = "plain"
    crf: crf.Crf = field(default_factory=crf.Crf)

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"widen": "none"}}


def check(cfg: PriorMasks) -> None:
    """`UsageError` for settings outside of their range."""
    if not 0 <= cfg.region <= 1:
        raise UsageError(f"prior.region: found {cfg.region}, expected a share between 0 and 1")
    if not cfg.delta > 0:
        raise UsageError(f"prior.delta: found {cfg.delta}, expected more than 0: it shares out evenly the pixels that "
                         "no class map speaks for")
    if cfg.crf.unsure_below:
        raise UsageError(f"prior.crf.unsure_below: found {cfg.crf.unsure_below}, expected 0: masks of this method "
                         "leave no pixel out")


@stage(LabelSet, version=1)
def multi(
    work: Work, tagged: TaggedSet, foreground: MapSet, maps: MapSet, segments: tuple[SuperpixelSet, ...],
    cfg: PriorMasks,
) -> None:  # fmt: skip
    """A region for each tag, and background. `segments`: superpixels, one set, where `region` is above 0.

    An image without tags is background; its own foreground, which every image has, does not count.
    """

    def shares(sample: str, ground: F32, present: I64) -> F32:
        return fused(ground, of_tags(maps.get(sample), present), cfg)

    _write(work, tagged, foreground, segments, shares, cfg)
    for name, count in vanished(written_labels(work), tagged).items():
        if count:
            work.event(f"tag {name!r}: no pixel in {count} of its images")


@stage(LabelSet, version=1)
def binary(
    work: Work, tagged: TaggedSet, foreground: MapSet, segments: tuple[SuperpixelSet, ...], cfg: PriorMasks
) -> None:
    """One region for all tags of an image, labelled with the lowest of them, and background."""

    def shares(sample: str, ground: F32, present: I64) -> F32:
        return halves(ground, cfg)

    _write(work, tagged, foreground, segments, shares, cfg)


@stage(MapSet, version=1)
def shares(work: Work, tagged: TaggedSet, foreground: MapSet, maps: MapSet, cfg: PriorMasks) -> None:
    """What `multi` draws to the edges: the foreground, shared out among the tags; for pictures."""

    def one(sample: str) -> ClassMaps:
        found, ground = maps.get(sample), foreground.get(sample)
        if not len(found.classes):
            return found
        fine = fused(enlarge(ground.scores, ground.size)[0], found, cfg)[1:].clip(0, 1)
        return ClassMaps(sample, found.classes, fine, ground.size)

    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        yield from work.map(one, ids)

    write_maps(work, tagged.ids, produce, {"classes": list(tagged.classes), "grid": 1})


def _write(work: Work, tagged: TaggedSet, foreground: MapSet, segments: tuple[SuperpixelSet, ...],
           shares: Callable[[str, F32, I64], F32], cfg: PriorMasks) -> None:
    """Labels of every image from the `shares` (id, foreground (H,W), tags) of background and more."""
    if (cfg.region > 0) != (len(segments) == 1):
        raise UsageError(f"region is {cfg.region}: found {len(segments)} sets of superpixels, expected one if above 0")

    def one(sample: str) -> Labels:
        size = tagged.source.size(sample)
        present = np.flatnonzero(tagged.tags_of(sample)) + 1
        if not len(present):
            return Labels(sample, np.full(size, BACKGROUND, np.uint8))
        found = shares(sample, enlarge(foreground.get(sample).scores, size)[0], present)
        ids = segments[0].get(sample) if segments else None
        return decided(sample, tagged.source.read(sample), found, present, ids, cfg)

    def produce(ids: list[str]) -> Iterator[Labels]:
        yield from work.map(one, ids)

    write_labels(work, tagged.ids, produce, {"classes": list(tagged.classes)})


def of_tags(maps: ClassMaps, present: I64) -> ClassMaps:
    """The maps, if they are of just these classes."""
    if not np.array_equal(maps.classes, present):
        raise DataError(f"maps of {maps.id!r}: found classes {maps.classes.tolist()}, expected its tags "
                        f"{present.tolist()}; make them from the same tags file")
    return maps


def vanished(labels: LabelSet, tagged: TaggedSet) -> dict[str, int]:
    """In how many images of each tag no pixel is labelled with it: what a loss has to go without."""
    lost = np.zeros(len(tagged.classes), np.int64)
    for one in labels:
        there = np.zeros(IGNORE + 1, np.bool_)
        there[np.unique(one.pixels)] = True
        lost += tagged.tags_of(one.id) & ~there[1 : len(lost) + 1]
    return dict(zip(tagged.classes, lost.tolist(), strict=True))


def halves(foreground: F32, cfg: PriorMasks, power: float = 1.0) -> F32:
    """Probabilities (2,H,W) of background and foreground (H,W), to the candidate's power and one more."""
    foreground = foreground.clip(0, 1) ** np.float32(POWERS.get(cfg.candidate, 1.0) * power)
    return np.stack([1 - foreground, foreground])


def fused(foreground: F32, maps: ClassMaps, cfg: PriorMasks) -> F32:
    """Probabilities (K+1,H,W) of background and the K classes of the maps, among which the foreground is shared out.

    One class gets all of it, exactly.
    """
    ground, objects = halves(foreground, cfg, len(maps.classes) ** -0.5 if cfg.widen == "tags" else 1.0)
    scores = enlarge(maps.scores, maps.size) + np.float32(cfg.delta)
    return np.concatenate([ground[None], objects * (scores / scores.sum(0))])  # priors Eq. 6


def decided(sample: str, image: U8, found: F32, present: I64, segments: I32 | None, cfg: PriorMasks) -> Labels:
    """The labels of one image (3,H,W), drawn to its edges by the CRF over background and tags alone."""
    if segments is not None:
        found = within(found, segments, cfg.region)
    if cfg.candidate == "raw":
        shares = found
    else:
        kernels = replace(cfg.crf, srgb=cfg.crf.srgb * COLOURS.get(cfg.candidate, 1.0))
        shares = crf.solve(image, found, kernels)  # priors Eq. 2, 7
        if cfg.candidate == "second":
            shares = crf.solve(image, unlike(found, shares.argmax(0)), kernels)
    labels = np.concatenate([[BACKGROUND], present])[shares.argmax(0)].astype(np.uint8)
    return Labels(sample, labels, np.round(255 * shares.max(0)).astype(np.uint8))


def unlike(found: F32, best: I64) -> F32:
    """Probabilities (K,H,W) in which every pixel pays for its label in the best solution: diverse M-best, M = 2."""
    energies = np.log(found.clip(1e-5, 1))
    np.put_along_axis(energies, best[None], np.take_along_axis(energies, best[None], 0) - np.float32(APART), 0)
    shares = np.exp(energies - energies.max(0))
    return (shares / shares.sum(0)).astype(np.float32)


def within(found: F32, segments: I32, share: float) -> F32:
    """Each pixel's log-probabilities mixed with those of its superpixel: a soft wish for one label in a region."""
    logs = np.log(found.clip(1e-5, 1))
    mixed = np.exp((1 - np.float32(share)) * logs + np.float32(share) * superpixels.smooth(logs, segments))
    return (mixed / mixed.sum(0)).astype(np.float32)


@dataclass(frozen=True)
class PickFrom:
    """The names of the candidates, the one first that counts where nobody picked."""

    names: tuple[str, ...] = CANDIDATES


@stage(LabelSet, version=1)
def picked(work: Work, tagged: TaggedSet, candidates: tuple[LabelSet, ...], picks: Picks, cfg: PickFrom) -> None:
    """The masks that a person picked; the first candidate, in the order of `cfg.names`, where nobody picked."""
    sets: Mapping[str, LabelSet] = dict(zip(cfg.names, candidates, strict=True))

    def one(sample: str) -> Labels:
        return sets[picks.chosen.get(sample, cfg.names[0])].get(sample)

    def produce(ids: list[str]) -> Iterator[Labels]:
        yield from work.map(one, ids)

    write_labels(work, tagged.ids, produce, {"classes": list(tagged.classes)})


@dataclass(frozen=True)
class Compare:
    """Nothing to set."""


@stage(Scores, version=1)
def compared(work: Work, masks: LabelSet, looked: Looked, cfg: Compare) -> None:
    """Whether the `masks` of picked images are those that the person saw; one that is not is taken, and told."""
    known = [id for id in masks.ids if id in looked.masks]
    others = [id for id in known if looked.masks[id] != fingerprint(masks.get(id).pixels)]
    if others:
        work.event(f"{len(others)} picked masks are not those that the person saw, for example of {others[0]!r}: other "
                   "settings, tags or weights; pick again")
    write_scores(work, {"seen": len(known), "others": others})


def named(cfg: PriorMasks, candidate: str) -> PriorMasks:
    """The same settings for another candidate."""
    if candidate not in CANDIDATES:
        raise UsageError(f"candidate {candidate!r} is unknown; expected one of {', '.join(CANDIDATES)}")
    return replace(cfg, candidate=candidate)  # type: ignore[arg-type]
