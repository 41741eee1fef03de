"""What each refiner makes of the same maps at the `auto` operating point: pseudo mIoU and boundary IoU on real sets.

`python -m benchmarks.refiners DATA --train SPLIT[,SPLIT] --weights PATH --cache DIR` trains `cam`'s classifier and one
affinity network (or finds them in the cache), refines the training images that have truth, prints a table and, from a
clean tree, appends a row for each refiner to docs/results/refiners.jsonl. Truth is read last and chooses nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS
from tagseg.artifacts import LabelSet, MapSet, Scores
from tagseg.evaluate import measure
from tagseg.localize import affinity, cam, classify, operating_point
from tagseg.refine import affinity as walk
from tagseg.refine import crf, seeds, superpixels, threshold
from tagseg.runs.setup import Prepared, Request, commit, configure, prepare
from tagseg.store import Run


def settled(cfg: Any, prepared: Prepared) -> Any:
    """A stage's config with budget, device, precision, backbone and seed decided, as in a run."""
    return configure(cfg, prepared.request, prepared.device, prepared.precision, prepared.backbone)


def refined(run: Run, prepared: Prepared, forms: list[str]) -> dict[str, tuple[Scores, LabelSet]]:
    """The operating point and the labels of each refiner."""
    cfg, inputs = prepared.cfg, prepared.inputs
    tagged = inputs.tagged
    classifier = classify.train(run, tagged, inputs.pretrained, cfg.classifier)
    found = cam.maps(run, tagged, classifier, cfg.cam)
    point = operating_point.auto(run, tagged, classifier, found, cfg.point)
    confident = seeds.confident(run, tagged, found, point, seeds.Seeds(crf=cfg.crf))
    assert prepared.truth is not None
    some = tagged.select(prepared.truth.ids)

    def both(maps: MapSet, name: str) -> dict[str, tuple[Scores, LabelSet]]:
        at = point if maps is found else operating_point.auto(run, some, classifier, maps, cfg.point)
        plain = threshold.labels(run, some, maps, at, threshold.Threshold())
        sharp = crf.labels(run, some, maps, at, cfg.crf)
        return {name or "threshold": (at, plain), f"{name} + crf" if name else "crf": (at, sharp)}

    results = both(found, "")
    for form in forms:
        beta = {"irn": 10.0, "psa": 8.0}[form]
        net = affinity.train(run, tagged, confident, inputs.pretrained, settled(affinity.Affinity(form=form), prepared))
        walked = walk.maps(run, some, found, net, settled(walk.Walk(beta=beta), prepared))
        results |= both(walked, f"affinity ({form})")
    flat = superpixels.smoothed(run, some, found, superpixels.segments(run, some, superpixels.Superpixels()),
                                superpixels.Smooth())  # fmt: skip
    return results | both(flat, "superpixels")


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("data")
    words.add_argument("--train", default="train")
    words.add_argument("--backbone", default="mobilenet_v2")
    words.add_argument("--weights", required=True)
    words.add_argument("--cache", type=Path, required=True)
    words.add_argument("--forms", default="irn", help="of affinity networks: irn, psa or both, with a comma")
    asked = words.parse_args()
    request = Request(method="cam", data=asked.data, out=asked.cache / "refiners", train=tuple(asked.train.split(",")),
                      backbone=asked.backbone, weights=asked.weights, cache=asked.cache)  # fmt: skip
    prepared = prepare(request)
    assert prepared.truth is not None, f"{asked.data}: no masks to measure with"
    start, rows = time.monotonic(), []
    run = Run(asked.cache, 2, progress=lambda stage, done, total, note: print(stage, done, total, note, flush=True))
    results = refined(run, prepared, asked.forms.split(","))
    for name, (at, labels) in results.items():
        document = measure.labels(run, labels, prepared.truth, measure.MeasureLabels()).read()
        entry = measure.entry(document, document["images"], float(at.read()["threshold"]))
        rows.append({"data": Path(asked.data).name, "refiner": name, **entry, "seed": request.seed, "commit": commit(),
                     "backbone": prepared.backbone, "budget": request.budget})  # fmt: skip
        print(f"{name:24s} at {entry['threshold']:.2f}  mIoU {100 * entry['miou']:.1f}  "
              f"boundary IoU {100 * entry['boundary_iou']:.1f}", flush=True)  # fmt: skip
    print(f"{time.monotonic() - start:.0f} s")
    if str(commit()).endswith("+dirty"):
        print("not written: the tree is not clean")
    else:
        with open(RESULTS / "refiners.jsonl", "a") as file:
            file.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows)


if __name__ == "__main__":
    main()
