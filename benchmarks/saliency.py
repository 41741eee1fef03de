"""`python -m benchmarks.saliency`: what saliency costs, and how well it finds the objects of generated scenes.

    python -m benchmarks.saliency --out rows.jsonl --data FOLDER

Time: photos of FOLDER at 400x300 on one core, each measure beyond the superpixels, and the superpixels themselves.
Without --data it is left out. Objects: the best F-measure over thresholds (beta^2 = .3, precision and recall averaged
over images at each of 256 thresholds) and the mean absolute error against the exact masks of scenes, beside a blob in
the middle of the image, which looks at nothing. The masks choose no parameter of any measure. A row for each goes to
the file, with commit and command.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import in_turn, machine, spread
from benchmarks.processes import alone
from tagseg.data.scenes import preset, render
from tagseg.localize.saliency import Saliency, measure
from tagseg.ops.saliency import stretched
from tagseg.refine.superpixels import Superpixels, segment
from tagseg.runs.setup import commit
from tagseg.types import IGNORE

Row = dict[str, Any]
KINDS = ("rbd", "mbd", "ft")
SIZE = (400, 300)  # width, height of a photo
SCENES = ("basic", "parts", "crowd", "habitat")
SIDES = (96, 300)
BETA2 = 0.3  # of the F-measure: precision counts for more, as in every saliency paper since Achanta et al.
THRESHOLDS = np.arange(256) / 255


def photos(folder: str, count: int) -> list[str]:
    """Photos spread over a folder."""
    found = sorted(str(p) for p in Path(folder).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return found[:: max(1, len(found) // count)][:count]


def times(files: list[str]) -> dict[str, dict[str, Any]]:
    """Milliseconds by job: the median, lowest and highest photo, each photo's own time the median of five."""
    found: dict[str, dict[str, list[float]]] = {}
    regions = []
    for file in files:
        photo = np.asarray(Image.open(file).convert("RGB").resize(SIZE, Image.Resampling.BICUBIC))
        image = np.ascontiguousarray(photo.transpose(2, 0, 1))
        ids = segment(image, Superpixels())
        regions.append(float(ids.max()) + 1)
        jobs = {kind: partial(measure, file, image, ids, Saliency(kind=kind)) for kind in KINDS}
        for name, taken in in_turn({"superpixels": partial(segment, image, Superpixels()), **jobs}, rounds=5).items():
            for clock, values in taken.items():
                found.setdefault(name, {}).setdefault(clock, []).append(values["median"])
    return {name: {clock: spread(values) for clock, values in clocks.items()} | {"regions": spread(regions)}
            for name, clocks in found.items()}


def middle(size: tuple[int, int]) -> np.ndarray:
    """The control: a Gaussian in the middle, as wide as a quarter of each side."""
    y, x = (((np.arange(n) + 0.5) / n - 0.5) / 0.25 for n in size)
    return stretched(np.exp(-(y[:, None] ** 2 + x**2) / 2))


def found_in(image: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """Every measure's map of one image, and the control's."""
    ids = segment(image, Superpixels())
    maps = {kind: measure(name, image, ids, Saliency(kind=kind)) for kind in KINDS}
    return {**maps, "middle": middle((image.shape[1], image.shape[2]))}


def curve(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Precision and recall (2, 256) of the pixels at or above each threshold; precision of no pixel is 1."""
    level = np.floor(values * 255 + 1e-4).astype(int)  # the highest threshold that a pixel reaches
    shown, hits = (np.bincount(some, minlength=256)[::-1].cumsum()[::-1] for some in (level.ravel(), level[truth]))
    return np.stack([np.where(shown > 0, hits / np.maximum(shown, 1), 1), hits / truth.sum()])


def scored(curves: list[np.ndarray], errors: list[float]) -> Row:
    """The best point of the mean curve, and the mean absolute error."""
    precision, recall = np.mean(curves, 0)
    f = (1 + BETA2) * precision * recall / np.maximum(BETA2 * precision + recall, 1e-9)
    best = int(f.argmax())
    return {"f": round(float(f[best]), 4), "at": round(float(THRESHOLDS[best]), 3),
            "precision": round(float(precision[best]), 4), "recall": round(float(recall[best]), 4),
            "mae": round(statistics.mean(errors), 4)}


def on_scenes(name: str, side: int, count: int) -> list[Row]:
    """A row for each measure on the first images of a preset that show an object."""
    cfg = replace(preset(name), size=side)
    curves: dict[str, list[np.ndarray]] = {}
    errors: dict[str, list[float]] = {}
    left = 0
    for index in range(count):
        sample = render(cfg, 0, index)
        truth = (sample.mask > 0) & (sample.mask != IGNORE)
        if not truth.any():  # nothing to recall
            left += 1
            continue
        for kind, values in found_in(sample.image, sample.id).items():
            curves.setdefault(kind, []).append(curve(values, truth))
            errors.setdefault(kind, []).append(float(np.abs(values - truth).mean()))
    return [{"saliency": kind, "scene": name, "size": side, "images": count - left, "negatives_left_out": left,
             **scored(curves[kind], errors[kind])} for kind in curves]


def line(row: Row) -> str:
    """One row as text."""
    if "scene" in row:
        return (f"{row['scene']:8s} {row['size']:3d} {row['saliency']:8s} F {row['f']:.3f} (at {row['at']:.2f}: P "
                f"{row['precision']:.3f} R {row['recall']:.3f})  MAE {row['mae']:.3f}")
    cpu, wall = (f"{row[c]['median']:.1f} ({row[c]['low']:.1f} to {row[c]['high']:.1f})" for c in ("cpu_ms", "wall_ms"))
    return f"{row['saliency']:12s} {row['photos']} photos 400x300, one core: CPU {cpu} ms, wall {wall} ms"


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--out", type=Path, help="a file of JSON rows to append to")
    words.add_argument("--data", help="a folder of photos to take the time on")
    words.add_argument("--photos", type=int, default=12)
    words.add_argument("--scenes", default=",".join(SCENES))
    words.add_argument("--sides", default=",".join(map(str, SIDES)))
    words.add_argument("--images", type=int, default=100, help="of each preset")
    asked = words.parse_args()
    given = [Path(w).name if "/" in w else w for w in sys.argv[1:]]  # without the folders of this machine
    more = {"commit": commit(), "command": f"python -m benchmarks.saliency {shlex.join(given)}".strip(),
            "machine": machine()}
    rows: list[Row] = []
    if asked.data:
        files = photos(asked.data, asked.photos)
        rows += [{"saliency": name, "photos": len(files), "size": list(SIZE), **taken}
                 for name, taken in alone(times, files).items()]
    print("\n".join(map(line, rows)), flush=True)
    for name in filter(None, asked.scenes.split(",")):
        for side in map(int, asked.sides.split(",")):
            some = on_scenes(name, side, asked.images)
            print("\n".join(map(line, some)), flush=True)
            rows += some
    if asked.out:
        with open(asked.out, "a") as file:
            file.writelines(json.dumps({**row, **more}, sort_keys=True) + "\n" for row in rows)


if __name__ == "__main__":
    main()
