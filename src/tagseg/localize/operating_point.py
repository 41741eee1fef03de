"""The `auto` operating point: where to cut class maps, from tags and maps alone; class-absent images are negatives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tagseg.artifacts import Scores, Weights, write_scores
from tagseg.data.index import TaggedSet, spread
from tagseg.localize import cam
from tagseg.localize.classify import load
from tagseg.ops import operating_points as rules
from tagseg.ops.scores import normalise
from tagseg.store import Work, stage

BINS = 100


@dataclass(frozen=True)
class OperatingPoint:
    """`rule`: "two_groups" needs negatives, "otsu" does not and steps in where a class is nearly everywhere.

    At most `images` images are looked at; a class takes part with `few` images with and `few` without its tag.
    """

    rule: Literal["two_groups", "otsu"] = "two_groups"
    images: int = 300
    few: int = 8
    low: float = 0.1
    high: float = 0.9


@dataclass(frozen=True)
class Auto:
    """The rule, and how the maps that it will cut are made."""

    point: OperatingPoint = field(default_factory=OperatingPoint)
    cam: cam.Cam = field(default_factory=cam.Cam)


@stage(Scores, version=1)
def auto(work: Work, tagged: TaggedSet, classifier: Weights, both: Auto) -> None:
    """Choose one threshold for all classes; the record says by which rule, from how many negatives, and why."""
    cfg = both.point
    looked = tagged.select(spread(tagged.ids, cfg.images))
    present, absent, counts = histograms(work, looked, classifier, both.cam)
    usable = (counts[0] >= cfg.few) & (counts[1] >= cfg.few)
    rule = cfg.rule if usable.any() else "otsu"
    rows = usable if rule == "two_groups" else counts[0] > 0
    curves = rules.expected_iou(present[rows], absent[rows]) if rule == "two_groups" else rules.otsu(present[rows])
    edges = np.arange(BINS) / BINS
    allowed = (edges >= cfg.low) & (edges <= cfg.high)
    curve = curves.mean(0) if len(curves) else np.zeros(BINS)
    threshold = float(edges[allowed][curve[allowed].argmax()]) if len(curves) else 0.3
    left_out = [name for name, used in zip(tagged.classes, rows, strict=True) if not used]
    write_scores(
        work,
        {
            "threshold": threshold,
            "origin": "auto",
            "rule": rule,
            "note": _note(cfg, rule, looked, left_out),
            "curve": {"thresholds": edges.tolist(), "expected_miou": np.round(curve, 5).tolist()},
            "present": present.tolist(),
            "absent": absent.tolist(),
            "images_with": counts[0].tolist(),
            "images_without": counts[1].tolist(),
        },
    )


def histograms(work: Work, looked: TaggedSet, classifier: Weights, cfg: cam.Cam) -> tuple[np.ndarray, ...]:
    """Score histograms (C,BINS) with and without the tag, each image counting as one, and image counts (2,C).

    A map of an absent class has no maximum of its own worth dividing by: it is divided by the median of the maxima
    that the class reaches where it is present.
    """
    network = cam.network_of(load(classifier, looked.classes))
    classes = len(looked.classes)
    present, counts = np.zeros((classes, BINS)), np.zeros((2, classes), np.int64)
    peaks: list[list[float]] = [[] for _ in range(classes)]
    empty: list[list[np.ndarray]] = [[] for _ in range(classes)]
    for done, seen in enumerate(cam.raw_maps(work, network, looked, looked.ids, cfg)):
        raw, tags = cam.values(seen), looked.tags_of(seen.id)
        scores = normalise(raw)
        for c in range(classes):
            counts[0 if tags[c] else 1, c] += 1
            if tags[c]:
                peaks[c].append(float(raw[c].max()))
                present[c] += _histogram(scores[c])
            else:
                empty[c].append(np.sort(raw[c].ravel())[:: max(1, raw[c].size // 1000)])
        work.tick(done + 1, len(looked))
    absent = np.stack(
        [
            sum((_histogram(values / (np.median(peaks[c]) + 1e-5)) for values in empty[c]), np.zeros(BINS))
            if peaks[c]
            else np.zeros(BINS)
            for c in range(classes)
        ]
    )
    return present, absent, counts


def _histogram(scores: np.ndarray) -> np.ndarray:
    counts = np.bincount((scores.ravel().clip(0, 1) * BINS).astype(np.intp).clip(0, BINS - 1), minlength=BINS)
    return counts / max(scores.size, 1)


def _note(cfg: OperatingPoint, rule: str, looked: TaggedSet, left_out: list[str]) -> str:
    text = {
        "two_groups": "pixel scores in images with a tag are a mixture of object and background; images without the "
        "tag show the background alone; the cut is where the expected IoU is largest",
        "otsu": "the cut that separates the scores of tagged maps best (Otsu), because no class has enough images "
        "without its tag to serve as negatives"
        if cfg.rule != "otsu"
        else "Otsu's cut of the scores",
    }[rule]
    said = f"{text}. Chosen on {len(looked)} images, one threshold for all classes, no pixel truth."
    if left_out:
        said += f" Not counted, too rare or nearly everywhere: {', '.join(left_out)}."
    return said
