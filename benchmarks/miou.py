"""Mean IoU of many masks: one joint histogram against the usual per-image ways, written anew or as installed."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import compare, not_measured
from benchmarks.photos import SIZE, photos
from benchmarks.processes import Job

IMAGES = 40
IGNORE = 255
Pairs = list[tuple[np.ndarray, np.ndarray]]


def pairs(files: list[str], classes: int) -> Pairs:
    """Truth and a prediction as a network makes them: borders some pixels off, some patches of another class."""
    from PIL import Image

    rng = np.random.default_rng(0)
    found = []
    for file in files:
        truth = np.array(Image.open(file).resize(SIZE, Image.Resampling.NEAREST))
        predicted = np.roll(np.where(truth == IGNORE, 0, truth), rng.integers(-4, 5, 2), (0, 1)).astype(np.uint8)
        for _ in range(6):
            y, x = (int(rng.integers(0, n)) for n in truth.shape)
            predicted[y : y + 30, x : x + 40] = rng.integers(0, classes + 1)
        found.append((truth, predicted))
    return found


def ours(given: Pairs, classes: int) -> np.ndarray:
    """IoU of each class, background first; NaN where a class is nowhere."""
    from tagseg.ops.confusion import confusion, summary

    counts = sum(confusion(truth, predicted, classes) for truth, predicted in given)
    found = summary(counts, [str(c) for c in range(1, classes + 1)])
    return np.array([np.nan if v is None else v for v in found.per_class.values()])


def histograms(given: Pairs, classes: int) -> np.ndarray:
    """The per-image form of mmsegmentation's metric: three float histograms of the kept pixels, summed over images."""
    import torch

    total = torch.zeros(3, classes + 1, dtype=torch.float64)
    for truth, predicted in given:
        t, p = torch.from_numpy(truth), torch.from_numpy(predicted)
        keep = t != IGNORE
        t, p = t[keep], p[keep]
        for k, part in enumerate((p[p == t], p, t)):
            total[k] += torch.histc(part.float(), bins=classes + 1, min=0, max=classes).double()
    hit, found, wanted = total
    return (hit / (found + wanted - hit)).numpy()


def torchmetric(given: Pairs, classes: int) -> np.ndarray:
    import torch
    from torchmetrics.classification import MulticlassJaccardIndex

    metric = MulticlassJaccardIndex(classes + 1, average="none", ignore_index=IGNORE)
    for truth, predicted in given:
        metric.update(torch.from_numpy(predicted).long()[None], torch.from_numpy(truth).long()[None])
    return metric.compute().numpy()


def sides(files: list[str], classes: int, peer: str) -> dict[str, Job]:
    given = pairs(files, classes)
    theirs = {"histograms": histograms, "torchmetrics": torchmetric}[peer]
    return {"ours": lambda: ours(given, classes), "peer": lambda: theirs(given, classes),
            "warm ours": lambda: ours(given[:1], classes), "warm peer": lambda: theirs(given[:1], classes)}


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the classes that are there whose IoU is equal to 1e-6 (torchmetrics counts in float32)."""
    seen = ~np.isnan(a)
    return float((np.abs(a - b)[seen] < 1e-6).mean())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = photos(IMAGES, Path(folder))
        common: dict[str, Any] = {
            "setting": f"masks of {found.words}, shown as {SIZE[0]}x{SIZE[1]}, {found.classes} classes and background",
            "build": sides, "agree": agreement, "agreement_of": "classes with equal IoU (1e-6)", "rounds": 5,
        }  # fmt: skip
        compare("miou", peer="per-image histograms, as mmsegmentation", args=(found.masks, found.classes, "histograms"),
                **common)
        if importlib.util.find_spec("torchmetrics") is None:
            not_measured("miou-torchmetrics", "torchmetrics is not installed (extra `bench`)")
            return
        compare("miou-torchmetrics", peer="torchmetrics", args=(found.masks, found.classes, "torchmetrics"), **common)


if __name__ == "__main__":
    main()
