"""The evaluation stages: labels and maps against pixel truth. The only room that sees truth of the target set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from tagseg.artifacts import LabelSet, MapSet, Scores, write_scores
from tagseg.data.index import MaskedSet
from tagseg.evaluate.masks import MaskTally
from tagseg.evaluate.thresholds import MapTally, flat_within
from tagseg.ops.geometry import enlarge
from tagseg.store import Work, stage
from tagseg.types import F32, I64, IGNORE, U8


@dataclass(frozen=True)
class MeasureLabels:
    """Nothing to set: the report's numbers are fixed."""


@dataclass(frozen=True)
class MeasureMaps:
    """`thresholds` of the curve; `also`: operating points that the curve must hold (the auto one)."""

    thresholds: tuple[float, ...] = tuple(round(0.05 * i, 2) for i in range(1, 20))
    also: tuple[float, ...] = ()


@stage(Scores, version=2)
def labels(work: Work, predicted: LabelSet, truth: MaskedSet, cfg: MeasureLabels) -> None:
    """Everything that `evaluate.masks` counts, over the images that have both labels and truth."""
    tally = MaskTally.empty(truth.classes, truth.has_background)
    ids = [i for i in truth.ids if i in predicted]

    def pair(sample: str) -> tuple[str, U8, U8]:
        return sample, truth.mask(sample), predicted.get(sample).pixels

    for done, item in enumerate(work.map(pair, ids)):
        tally.add(*item)
        work.tick(done + 1, len(ids))
    write_scores(work, tally.scores())


@dataclass(frozen=True)
class Change:
    """Nothing to set."""


@stage(Scores, version=1)
def change(work: Work, before: LabelSet, after: LabelSet, cfg: Change) -> None:
    """The shares of pixels whose label is another one than before, and of those without a label; no truth is needed."""
    differ = unlabelled = pixels = 0
    for sample in after.ids:
        old, new = before.get(sample).pixels, after.get(sample).pixels
        differ, unlabelled = differ + int((old != new).sum()), unlabelled + int((new == IGNORE).sum())
        pixels += new.size
    write_scores(work, {"changed": differ / max(pixels, 1), "unlabelled": unlabelled / max(pixels, 1)})


@stage(Scores, version=1)
def maps(work: Work, found: MapSet, truth: MaskedSet, cfg: MeasureMaps) -> None:
    """mIoU at each threshold without any refinement, the best one (oracle: for the report only), average precision."""
    thresholds = sorted({*cfg.thresholds, *cfg.also})
    ids = [i for i in truth.ids if i in found]
    tally = MapTally.empty(truth.classes, thresholds, truth.has_background)
    for done, item in enumerate(work.map(partial(_item, found, truth), ids)):
        tally.add(*item)
        work.tick(done + 1, len(ids))
    points = [asdict(s) for s in tally.summaries()]
    curve = [p["miou"] for p in points]
    best = max(range(len(curve)), key=curve.__getitem__)
    write_scores(
        work,
        {
            "images": len(ids),
            "thresholds": thresholds,
            "miou": curve,
            "best": thresholds[best],
            "flat": list(flat_within(thresholds, curve)),
            "average_precision": tally.average_precision(),
            "points": points,
        },
    )


def _item(found: MapSet, truth: MaskedSet, sample: str) -> tuple[str, U8, I64, F32]:
    maps = found.get(sample)
    return sample, truth.mask(sample), maps.classes, enlarge(maps.scores, maps.size).clip(0, 1)


def at(curve: dict[str, Any], threshold: float) -> dict[str, Any]:
    """The entry of a curve (what `maps` wrote) at one of its thresholds, as `scores.json` holds it."""
    point = curve["points"][curve["thresholds"].index(threshold)]
    return entry(point, curve["images"], threshold)


def entry(scores: dict[str, Any], images: int, threshold: float | None = None) -> dict[str, Any]:
    """The part of a score document that enters `scores.json`."""
    chosen: dict[str, Any] = {
        n: scores[n] for n in ("miou", "precision", "recall", "per_class", "boundary_iou") if n in scores
    }
    if "named" in scores:
        chosen["tag_f1"] = scores["named"]["f1"]
    return {**chosen, "images": images, **({} if threshold is None else {"threshold": threshold})}


def worst_first(scores: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Images of a label document by their own mIoU, lowest first."""
    known = [(i["miou"], i["id"]) for i in scores["per_image"] if i["miou"] is not None]
    yield from ((sample, miou) for miou, sample in sorted(known))
