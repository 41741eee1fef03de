"""`python -m benchmarks.dfs`: what the mirror's levels do to class maps, beside class activation maps and the controls.

From one tag classifier for each scene and seed every arm trains its own stack. Maps of val images whose tags are given
are scored by pixels of present classes, at the best cut and by ranking alone (`benchmarks.esol.scored`), and by the
mean IoU of classes at one best cut; tags by how many of them the arm tells right without being given any. Precondition
of section 8: tag accuracy of .95 in every arm and seed; below it a scene is VOID, the command fails and leaves no rows
of that scene. Arms of `MORE` run on one scene and seed, for their cost. Rows go to docs/results/dfs_scenes.jsonl from a
clean tree.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.esol import scored
from benchmarks.results import append
from tagseg.artifacts import MapSet, Weights
from tagseg.data.index import MaskedSet, TaggedSet
from tagseg.inference import Views
from tagseg.localize import cam, classify, deconv_stack, stack_maps, stack_net
from tagseg.ops.geometry import enlarge
from tagseg.runs.setup import Prepared, Request, commit, prepare
from tagseg.store import Run

PRESETS = ("lesions", "thin", "basic")
TRAIN, VAL = 768, 192
SHOWN = 144  # one and a half times the training size, for every arm
ACCURATE = 0.95  # precondition
CUTS = 100
LENGTHS = {"classifier": 12000, "heads": 1500, "joint": 4500}
LONGER = {"lesions": {"joint": 9000}}  # at 4500 two arms told .89 of the tags (seed 1)

Row = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """What of the stack, its joint training and its maps is changed; `joint` None: heads alone."""

    stack: dict[str, Any] = field(default_factory=dict)
    joint: dict[str, Any] | None = field(default_factory=dict)
    maps: dict[str, Any] = field(default_factory=dict)


ARMS = {
    "dfs": Arm(),
    "average pooling": Arm({"pool": "avg"}),
    "top 2 levels": Arm({"levels": (4, 5)}),
    "hypercolumn": Arm({"source": "encoder"}),
    "free filters": Arm({"tie": "free"}),
    "nearest for switches": Arm({"unpool": "nearest"}),
    "no smoothing": Arm(maps={"smooth": 0.0}),
    "smoothing of 2 cells": Arm(maps={"smooth": 2.0}),
}
EARLY = {"heads alone": Arm(joint=None)}  # before it is trained to the end, so by name alone (`--only`) and no row
MORE_ON = ("thin", 0)
MORE = {
    "levels 2 to 5": Arm({"levels": (2, 3, 4, 5)}),
    "greedy levels": Arm({"select": "greedy"}),
    "mask for relu": Arm({"rectify": "mask"}),
    "a top for each class": Arm({"top": "class"}),
    "no auxiliary branch": Arm(joint={"aux": "none"}),
}
CAMS = {"CAM": {}, "CAM, log-sum-exp": {"pooling": "lse"}, "CAM, trained as long": {"longer": True}}


def lengths(preset: str) -> dict[str, int]:
    """How many images each training sees on a scene."""
    return LENGTHS | LONGER.get(preset, {})


def sets(preset: str) -> tuple[str, ...]:
    many = lengths(preset)
    return ("classifier.stride=16", *(f"{part}.schedule.batch=16" for part in many),
            *(f"{part}.schedule.{end}={n}" for part, n in many.items() for end in ("min_images", "max_images")))


def accuracy(scores: np.ndarray, tags: np.ndarray) -> float:
    """The share of tags that are told right by the sign of their scores (n,C)."""
    return float(((scores > 0) == tags).mean())


def seen(model: torch.nn.Module, preprocess: Any, tagged: TaggedSet, read: Any, side: int = SHOWN) -> np.ndarray:
    """Scores (n,C) of images, one at a time, at so many pixels a side."""
    rows = []
    for sample in tagged.ids:
        image = torch.from_numpy(tagged.source.read(sample))[None].float() / 255
        image = torch.nn.functional.interpolate(image, (side, side), mode="bilinear", align_corners=False)
        with torch.no_grad():
            rows.append(read(model(preprocess(image)))[0].numpy())
    return np.stack(rows)


def cams(run: Run, prepared: Prepared, val: TaggedSet, wanted: str,
         longer: int) -> Iterator[tuple[str, MapSet, float, Weights]]:
    """Class activation maps of the same network: name, maps, tag accuracy, weights. `longer`: images that the stacks
    see beyond the classifier's.
    """
    for name, change in CAMS.items():
        if wanted and name not in wanted.split(","):
            continue
        cfg, change = prepared.cfg.classifier, dict(change)
        more = cfg.schedule.max_images + longer * bool(change.pop("longer", False))
        cfg = replace(cfg, schedule=replace(cfg.schedule, min_images=more, max_images=more), **change)
        weights = classify.train(run, prepared.inputs.tagged, prepared.inputs.pretrained, cfg)
        model, pooled = classify.load(weights, val.classes), classify.pooling_of(weights)
        scores = seen(model, model.backbone.preprocess, val, lambda maps, m=model, p=pooled: m.head.logits(maps, p))
        looked = cam.Cam(Views(size=SHOWN), grid=1, device=cfg.device, precision=cfg.precision)
        yield name, cam.maps(run, val, weights, looked), accuracy(scores, val.tags), weights


def stacks(run: Run, prepared: Prepared, val: TaggedSet, arms: dict[str, Arm],
           wanted: str) -> Iterator[tuple[str, MapSet, float, Weights]]:
    """The same of every arm."""
    cfg, tagged = prepared.cfg, prepared.inputs.tagged
    classifier = classify.train(run, tagged, prepared.inputs.pretrained, cfg.classifier)
    for name, arm in arms.items():
        if wanted and name not in wanted.split(","):
            continue
        stack = replace(cfg.heads.stack, **arm.stack)
        weights = deconv_stack.heads(run, tagged, classifier, replace(cfg.heads, stack=stack))
        if arm.joint is not None:
            weights = deconv_stack.joint(run, tagged, weights, replace(cfg.joint, **arm.joint))
        model = stack_net.load(weights, val.classes)
        scores = seen(model, model.backbone.preprocess, val, lambda out, c=stack: stack_net.pooled(out[0], c))
        looked = replace(cfg.maps, views=Views(size=SHOWN), grid=1, **arm.maps)
        yield name, stack_maps.maps(run, val, weights, looked), accuracy(scores, val.tags), weights


def measured(preset: str, seed: int, cache: Path, wanted: str, at: str | None) -> list[Row]:
    """All rows of one scene and one seed (of data and of training)."""
    data = f"scenes:{preset}?train={TRAIN}&val={VAL}&seed={seed}"
    request = Request(method="dfs", data=data, out=cache / "dfs", budget="quick", backbone="small", seed=seed,
                      sets=sets(preset), cache=cache)  # fmt: skip
    prepared, run = prepare(request), Run(cache, workers=2)
    assert prepared.val is not None
    assert prepared.val.truth is not None
    truth = prepared.val.truth
    val = truth.without_masks()
    rows, start = list[Row](), time.monotonic()
    more = lengths(preset)["heads"] + lengths(preset)["joint"]
    chosen = ARMS | (MORE if (preset, seed) == MORE_ON else {}) | (EARLY if wanted else {})
    for arms in (cams(run, prepared, val, wanted, more), stacks(run, prepared, val, chosen, wanted)):
        for name, found, right, weights in arms:
            rows.append({"scene": preset, "seed": seed, "variant": name, "tag_accuracy": right,
                         "class_iou": class_iou(found, truth),
                         "levels": weights.meta.get("stack", {}).get("levels"), **scored(found, truth), "commit": at,
                         "seconds": round(time.monotonic() - start, 1)})  # fmt: skip
            print(line(rows[-1]), flush=True)
            start = time.monotonic()
    return rows


def class_iou(found: MapSet, truth: MaskedSet) -> float:
    """Mean over classes of their IoU in images that carry the tag, at the one cut that is best for the mean."""
    counts = np.zeros((3, len(truth.classes) + 1, CUTS + 1))  # said, true among them, true, by the highest cut below
    for sample in truth.ids:
        one, mask = found.get(sample), truth.mask(sample)
        for label, scores in zip(one.classes, enlarge(one.scores, one.size), strict=True):
            at, inside = (scores.clip(0, 1) * CUTS).astype(np.int64).ravel(), (mask == label).ravel()
            counts[0, label] += np.bincount(at, minlength=CUTS + 1)
            counts[1, label] += np.bincount(at[inside], minlength=CUTS + 1)
            counts[2, label] += inside.sum()
    said, hit = (np.cumsum(c[1:, ::-1], axis=1)[:, ::-1] for c in counts[:2])
    iou = hit / np.maximum(said + counts[2, 1:] - hit, 1)
    return float(iou[counts[2, 1:, 0] > 0].mean(0).max())


def line(row: Row) -> str:
    """One row as text."""
    return (f"{row['scene']:8s} {row['seed']} {row['variant']:24s} tags {row['tag_accuracy']:.3f}  best IoU "
            f"{row['best_iou']:.3f} ({row['best_at']:.2f})  P at R .5 {row['precision_at_0.5']:.3f} .7 "
            f"{row['precision_at_0.7']:.3f}  AP {row['average_precision']:.3f}  {row['seconds']:.0f} s")  # fmt: skip


def void(rows: list[Row]) -> list[str]:
    """Arms that do not tell the tags well enough for anything to be read off their maps."""
    return [f"VOID: {row['scene']}, seed {row['seed']}: {row['variant']} tells {row['tag_accuracy']:.3f} of the tags, "
            f"under {ACCURATE}" for row in rows if row["tag_accuracy"] < ACCURATE]  # fmt: skip


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--presets", default=",".join(PRESETS))
    words.add_argument("--seeds", default="0,1,2")
    words.add_argument("--only", default="", help="arms, separated by commas; no rows")
    words.add_argument("--gates", action="store_true", help="the precondition alone: one arm, one scene, one seed")
    words.add_argument("--cache", type=Path, default=None)
    asked = words.parse_args()
    if asked.gates:
        asked.presets, asked.seeds, asked.only = PRESETS[0], "0", "dfs"
    at = commit()
    with tempfile.TemporaryDirectory() as place:
        rows = [row for preset in asked.presets.split(",") for seed in asked.seeds.split(",")
                for row in measured(preset, int(seed), asked.cache or Path(place), asked.only, at)]  # fmt: skip
    faults = void(rows)
    print("\n".join(faults) or "ok")
    lost = {row["scene"] for row in rows if void([row])}
    if not asked.only:
        append("dfs_scenes.jsonl", [row for row in rows if row["scene"] not in lost], at)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
