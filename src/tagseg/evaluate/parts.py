"""How well a class is found by its size in the image and by the company it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tagseg.types import I64

AREAS = ("<1%", "1-5%", "5-20%", ">20%")
AREA_EDGES = (0.01, 0.05, 0.20)  # shares of the image; an area on an edge belongs to the larger group


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """Intersections and unions of foreground classes, over the images that truly hold the class.

    The object of a class is all its pixels in one image (semantic masks do not tell instances apart). A class painted
    where the image does not hold it has no size and no company: it shows in precision, not here.
    """

    area: I64         # (3, areas, C): intersection, union, number of objects
    company: I64      # (2, C, C): intersection, union of class c in images that also hold class k; k = c: all images
    together: I64     # (C, C): number of images with both; diagonal: images of the class

    @staticmethod
    def empty(classes: int) -> ClassCounts:
        """No images seen."""
        return ClassCounts(np.zeros((3, len(AREAS), classes), np.int64), np.zeros((2, classes, classes), np.int64),
                           np.zeros((classes, classes), np.int64))

    def add(self, counts: I64, present: I64, pixels: int) -> None:
        """Count one image: its confusion (C+1, C+2), the class ids in its truth, its number of pixels."""
        hit = np.diagonal(counts)[present]
        size = counts[present].sum(axis=1)
        union = size + counts[:, present].sum(axis=0) - hit
        group = np.searchsorted(AREA_EDGES, size / pixels, side="right")
        rows = present - 1  # each class occurs once, so fancy += adds every entry
        for table, values in zip(self.area, (hit, union, np.ones_like(hit)), strict=True):
            table[group, rows] += values
        pairs = np.ix_(rows, rows)
        self.company[0][pairs] += hit[:, None]
        self.company[1][pairs] += union[:, None]
        self.together[pairs] += 1

    def merged(self, other: ClassCounts) -> ClassCounts:
        """The counts of both; neither is changed."""
        return ClassCounts(self.area + other.area, self.company + other.company, self.together + other.together)

    def by_area(self) -> dict[str, dict[str, Any]]:
        """For each group of sizes: mean IoU over the classes with such objects (None without any), and their number."""
        groups = zip(AREAS, *self.area, strict=True)
        return {name: {"iou": _mean_iou(hit, union), "objects": int(n.sum())} for name, hit, union, n in groups}

    def by_company(self, names: Sequence[str]) -> dict[str, dict[str, Any] | None]:
        """For each class: its most frequent companion and the IoU in images with and without it.

        None for a class that never has company; an IoU is None where there is no such image. Equally frequent
        companions: the lowest id.
        """
        return {name: self._company_of(c, names) for c, name in enumerate(names)}

    def _company_of(self, c: int, names: Sequence[str]) -> dict[str, Any] | None:
        others = self.together[c].copy()
        others[c] = 0
        k = int(np.argmax(others))
        if others[k] == 0:
            return None
        together, alone = self.company[:, c, k], self.company[:, c, c] - self.company[:, c, k]
        images = int(others[k])
        return {"companion": names[k], "with": _iou(*together), "without": _iou(*alone),
                "images_with": images, "images_without": int(self.together[c, c]) - images}


def _iou(hit: np.int64, union: np.int64) -> float | None:
    return float(hit / union) if union else None


def _mean_iou(hit: I64, union: I64) -> float | None:
    seen = union > 0
    return float((hit[seen] / union[seen]).mean()) if seen.any() else None
