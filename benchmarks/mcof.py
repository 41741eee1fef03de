"""`python -m benchmarks.mcof`: what mining, saliency and iteration do to labels and masks, each beside its control.

Iteration: one classifier and its seeds for each scene and seed; from these every arm goes its own way for `--rounds`
rounds. Labels are scored on training images (precision, recall, mIoU, share without a label), segmenters on val images
without tags. Bayes: the posterior on generated pixels whose colour, texture or neither tells the object, beside its
seed, its saliency and their union (`--bayes`; the colour version is section 8's gate). Rows go to
docs/results/mcof_scenes.jsonl from a clean tree.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.results import append
from tagseg.artifacts import LabelSet, SuperpixelSet, Weights, write_labels
from tagseg.data.index import MaskedSet, TaggedSet
from tagseg.evaluate import measure
from tagseg.localize import cam, classify, operating_point
from tagseg.methods import mcof
from tagseg.ops import bayes, regions
from tagseg.refine import region_seeds, superpixels
from tagseg.runs.setup import Prepared, Request, commit, prepare
from tagseg.segment import predict as segmented
from tagseg.store import Run, Work, stage
from tagseg.types import F32, Bool, Labels

PRESETS = ("parts", "crowd")
TRAIN, VAL = 384, 128
SETS = (
    "classifier.schedule.min_images=8000",
    "classifier.schedule.max_images=8000",
    "segmenter.schedule.min_images=4800",  # from half of it even truth gets to .57, .66 on val, from this to .74, .72
    "segmenter.schedule.max_images=4800",
    "regions.schedule.min_images=4800",  # from random weights in every round: with a third of it the loss still falls
    "regions.schedule.max_images=4800",
)
Row = dict[str, Any]


# ---- iteration ----

@dataclass(frozen=True)
class Shuffle:
    """The seed of the permutation."""

    seed: int = 0


@dataclass(frozen=True)
class Truth:
    """Nothing to set."""


@stage(LabelSet, version=1)
def shuffled(work: Work, tagged: TaggedSet, labels: LabelSet, segments: SuperpixelSet, cfg: Shuffle) -> None:
    """The labels of each image's regions dealt out among them at random: as many of each, anywhere."""

    def produce(ids: list[str]) -> Iterator[Labels]:
        for sample in ids:
            found = segments.get(sample)
            own = regions.votes(labels.get(sample).pixels, found, 0.5)
            rng = np.random.default_rng([cfg.seed, sum(sample.encode())])
            yield Labels(sample, rng.permutation(own)[found])

    write_labels(work, tagged.ids, produce, {})


@stage(LabelSet, version=1)
def true(work: Work, truth: MaskedSet, cfg: Truth) -> None:
    """The truth as labels: the ceiling."""
    write_labels(work, truth.ids, lambda ids: (Labels(sample, truth.mask(sample)) for sample in ids), {})


@dataclass(frozen=True)
class Start:
    """What every arm starts from."""

    run: Run
    prepared: Prepared
    segments: SuperpixelSet
    seeds: LabelSet

    @property
    def cfg(self) -> mcof.Config:
        cfg: mcof.Config = self.prepared.cfg
        return cfg

    @property
    def truth(self) -> MaskedSet:
        assert self.prepared.truth is not None
        return self.prepared.truth


Named = tuple[int, str, LabelSet | Weights]


def started(preset: str, seed: int, rounds: int, cache: Path, more: tuple[str, ...]) -> Start:
    """The classifier of one scene and seed, and its seeds on superpixels."""
    data = f"scenes:{preset}?train={TRAIN}&val={VAL}&seed={seed}"
    request = Request(method="mcof", data=data, out=cache / "mcof", budget="quick", backbone="small", seed=seed,
                      sets=(*SETS, f"rounds={rounds}", *more), cache=cache)  # fmt: skip
    prepared, run = prepare(request), Run(cache, workers=2)
    cfg, tagged = prepared.cfg, prepared.inputs.tagged
    segments = superpixels.segments(run, tagged, cfg.superpixels)
    classifier = classify.train(run, tagged, prepared.inputs.pretrained, cfg.classifier)
    found = cam.maps(run, tagged, classifier, cfg.cam)
    operating_point.auto(run, tagged, classifier, found, cfg.point)
    return Start(run, prepared, segments, region_seeds.from_maps(run, tagged, found, segments, cfg.seeds))


def mining(start: Start, seeds: LabelSet, **changes: Any) -> Iterator[Named]:
    """The method from `seeds` on, with some settings changed."""
    cfg = replace(start.cfg, **changes)
    _, _, rounds = mcof.repeated(start.run, start.prepared.inputs, seeds, start.segments, cfg)
    for one in rounds:
        for name, labels in one.labels.items():
            yield int(one.name), name, labels
        yield int(one.name), "segmenter", one.segmenter


def without_regions(start: Start) -> Iterator[Named]:
    """Seeds and votes train the segmenter; nothing is mined and no saliency is looked at."""
    labels, cfg, tagged = start.seeds, start.cfg, start.prepared.inputs.tagged
    for t in range(1, cfg.rounds + 1):
        model = mcof.segmenter(start.run, start.prepared.inputs, labels, None, cfg)
        yield t, "segmenter", model
        masks = segmented.restricted(start.run, tagged, model, cfg.again)
        labels = region_seeds.voted(start.run, tagged, masks, start.segments, cfg.vote)
        yield t, "votes", labels


def self_training(start: Start) -> Iterator[Named]:
    """Round 1 of the method; from then on the segmenter learns from its own masks, without regions of any kind."""
    cfg, tagged = start.cfg, start.prepared.inputs.tagged
    _, _, rounds = mcof.repeated(start.run, start.prepared.inputs, start.seeds, start.segments, replace(cfg, rounds=1))
    model = rounds[0].segmenter
    yield 1, "segmenter", model
    for t in range(2, cfg.rounds + 1):
        masks = segmented.restricted(start.run, tagged, model, cfg.again)
        yield t, "masks", masks
        model = mcof.segmenter(start.run, start.prepared.inputs, masks, model, cfg)
        yield t, "segmenter", model


def ceiling(start: Start) -> Iterator[Named]:
    """The segmenter on the truth."""
    labels = true(start.run, start.truth, Truth())
    yield 1, "segmenter", mcof.segmenter(start.run, start.prepared.inputs, labels, None, start.cfg)


def random_seeds(start: Start) -> Iterator[Named]:
    """The method from as many regions of each class, anywhere in the image."""
    tagged = start.prepared.inputs.tagged
    yield from mining(start, shuffled(start.run, tagged, start.seeds, start.segments, Shuffle()))


ARMS: dict[str, Callable[[Start], Iterator[Named]]] = {
    "mcof": lambda start: mining(start, start.seeds),
    "no saliency": lambda start: mining(start, start.seeds, saliency_rounds=()),
    "saliency in every round": lambda start: mining(
        start, start.seeds, saliency_rounds=tuple(range(1, start.cfg.rounds + 1))),
    "no RegionNet": without_regions,
    "self-training": self_training,
    "random seeds": random_seeds,
    "truth": ceiling,
}  # fmt: skip


def scored(start: Start, found: LabelSet | Weights) -> Row:
    """Labels against the truth of the training images, a segmenter's masks against that of val."""
    prepared, run = start.prepared, start.run
    if isinstance(found, Weights):
        assert prepared.val is not None
        assert prepared.val.truth is not None
        images = prepared.val.images.without_tags()
        labels = prepared.method.predict(run, found, images, start.cfg)
        document = measure.labels(run, labels, prepared.val.truth, measure.MeasureLabels()).read()
        return {"images": "val", **{n: document[n] for n in ("miou", "precision", "recall")}}
    document = measure.labels(run, found, start.truth, measure.MeasureLabels()).read()
    share = measure.change(run, found, found, measure.Change()).read()["unlabelled"]
    return {"images": "train", "unlabelled": share, **{n: document[n] for n in ("miou", "precision", "recall")}}


def iterated(preset: str, seed: int, asked: argparse.Namespace, cache: Path, at: str | None) -> list[Row]:
    """All rows of one scene and seed."""
    start = started(preset, seed, asked.rounds, cache, tuple(asked.set))
    rows = []
    for arm, way in ARMS.items():
        if asked.only and arm not in asked.only.split(","):
            continue
        clock = time.monotonic()
        for t, what, found in way(start):
            rows.append({"scene": preset, "seed": seed, "arm": arm, "round": t, "what": what, "set": list(asked.set),
                         **scored(start, found), "commit": at, "seconds": round(time.monotonic() - clock, 1)})
            print(line(rows[-1]), flush=True)
    return rows


def line(row: Row) -> str:
    """One row as text."""
    return (f"{row['scene']:8s} {row['seed']} {row['arm']:24s} {row['round']} {row['what']:10s} {row['images']:5s} "
            f"mIoU {row['miou']:.3f}  P {row['precision']:.3f}  R {row['recall']:.3f}  "
            f"without label {row.get('unlabelled', 0):.3f}  {row['seconds']:.0f} s")  # fmt: skip


def summary(rows: list[Row]) -> str:
    """The segmenters' mIoU on val by arm and round, and the seeds': mean and sd over seeds."""
    lines = []
    for preset in dict.fromkeys(row["scene"] for row in rows):
        mine = [row for row in rows if row["scene"] == preset]
        seeds = [row["miou"] for row in mine if row["what"] == "seeds" and row["arm"] == "mcof"]
        lines.append(f"{preset}: seeds on train {np.mean(seeds or [np.nan]):.3f}")
        for arm in dict.fromkeys(row["arm"] for row in mine):
            cells = []
            for t in sorted({row["round"] for row in mine}):
                found = [r["miou"] for r in mine if (r["arm"], r["round"], r["images"]) == (arm, t, "val")]
                if found:
                    cells.append(f"{np.mean(found):.3f} ± {np.std(found, ddof=min(1, len(found) - 1)):.3f}")
            lines.append(f"  {arm:24s} " + "   ".join(cells))
    return "\n".join(lines)


# ---- Bayes ----

KINDS = ("colour", "texture", "camouflage")
SIDE, IMAGES, SHIFT = 48, 40, 14


def painted(kind: str, seed: int) -> tuple[F32, Bool, Bool, F32]:
    """An ellipse on clutter: pixels (3,48,48), its mask, the part that was mined, and a blurred noisy saliency.

    "colour": object and ground differ in colour; "texture": in variance alone; "camouflage": in nothing.
    """
    rng = np.random.default_rng([KINDS.index(kind), seed])
    y, x = np.mgrid[:SIDE, :SIDE]
    cy, cx, ry, rx = rng.uniform(18, 30), rng.uniform(18, 30), rng.uniform(8, 14), rng.uniform(8, 14)
    mask = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
    ground, own = rng.uniform(40, 110, 3), rng.uniform(130, 220, 3)
    image = np.broadcast_to(ground[:, None, None], (3, SIDE, SIDE)).copy()
    for _ in range(4):  # clutter, of colours of its own
        ty, tx, r = *rng.uniform(0, SIDE, 2), rng.uniform(3, 6)
        image[:, (y - ty) ** 2 + (x - tx) ** 2 <= r**2] = rng.uniform(20, 130, 3)[:, None]
    noise = rng.normal(0, 12, image.shape)
    if kind == "colour":
        image[:, mask] = own[:, None]
    elif kind == "texture":
        image[:, mask] = ground[:, None]
        noise = np.where(mask, rng.normal(0, 36, image.shape), rng.normal(0, 6, image.shape))
    part = gaussian_filter((mask & ((y - cy + 0.4 * (x - cx)) < -0.2 * ry)).astype(float), 1.0) > 0.5
    saliency = gaussian_filter(mask.astype(float), 3.0) + rng.normal(0, 0.15, mask.shape)
    return (image + noise).clip(0, 255).astype(np.float32), mask, part, saliency.clip(0, 1).astype(np.float32)


def posteriors(at: str | None) -> list[Row]:
    """Mean IoU with the object of the seed, the saliency, both together, and the posterior."""
    rows = []
    for kind in KINDS:
        found: dict[str, list[float]] = {}
        for seed in range(IMAGES):
            image, mask, part, prior = painted(kind, seed)
            moved = np.roll(prior, SHIFT, axis=1)
            guesses = {"seed": part, "saliency": prior >= 0.5, "seed or saliency": part | (prior >= 0.5),
                       "posterior": bayes.object_share(image, prior, part) >= 0.5,
                       f"posterior, saliency moved by {SHIFT}": bayes.object_share(image, moved, part) >= 0.5}
            for name, guess in guesses.items():
                found.setdefault(name, []).append(float((guess & mask).sum() / max((guess | mask).sum(), 1)))
        rows.append({"kind": kind, "images": IMAGES, "iou": {n: float(np.mean(v)) for n, v in found.items()},
                     "commit": at})  # fmt: skip
        print(f"{kind:11s} " + "  ".join(f"{n} {v:.3f}" for n, v in rows[-1]["iou"].items()))
    return rows


def gate(rows: list[Row]) -> list[str]:
    """Section 8: where colour tells the object, the posterior is better than what it is made of."""
    iou = next(row["iou"] for row in rows if row["kind"] == "colour")
    return [f"the posterior ({iou['posterior']:.3f}) is not above the {name} ({iou[name]:.3f})"
            for name in ("seed", "saliency", "seed or saliency") if not iou["posterior"] > iou[name]]


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--presets", default=",".join(PRESETS))
    words.add_argument("--seeds", default="0,1,2")
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--only", default="", help="arms, separated by commas; no rows")
    words.add_argument("--set", action="append", default=[], help="a setting, as in tagseg run; no rows")
    words.add_argument("--cache", type=Path, default=None)
    words.add_argument("--bayes", action="store_true", help="the pixels of Bayes' rule alone")
    words.add_argument("--gates", action="store_true", help="the same, without rows")
    asked = words.parse_args()
    at, alone = commit(), asked.bayes or asked.gates
    rows = posteriors(at) if alone else []
    faults = gate(rows) if alone else []
    if not alone:
        with tempfile.TemporaryDirectory() as place:
            rows = [row for preset in asked.presets.split(",") for seed in asked.seeds.split(",")
                    for row in iterated(preset, int(seed), asked, asked.cache or Path(place), at)]  # fmt: skip
        print(summary(rows))
    print("\n".join(faults) or "ok")
    if not (faults or asked.only or asked.set or asked.gates):
        append("mcof_scenes.jsonl", rows, at)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
