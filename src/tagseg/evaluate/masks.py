"""Score predicted masks against true masks: every number of the default report that needs nothing but the two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tagseg.evaluate.parts import ClassCounts
from tagseg.ops.boundary import TRIMAP_WIDTHS, boundary_counts, trimap_confusion
from tagseg.ops.confusion import class_labels, confusion, summary
from tagseg.types import BACKGROUND, I64, U8, DataError, check_mask

TAG_COUNTS = ("0", "1", "2", "3", "4+")
Pair = tuple[str, U8, U8]


def score_masks(pairs: Iterable[Pair], names: Sequence[str], has_background: bool = True) -> dict[str, Any]:
    """All scores of a set of (id, truth, predicted) masks as JSON-ready values; `names` are the C foreground classes.

    Masks are uint8 (H, W): 0 background, 1..C, 255 ignored (truth) or unsure (prediction: wrong for its true class).
    Means go over the classes, background included where there is one, that occur in truth or prediction of the whole
    set; the others have None and are listed under `absent`. One pass; memory does not grow with the images, but for
    the list `per_image`. Raises `DataError` on wrong sizes or values, naming the image.
    """
    tally = MaskTally.empty(names, has_background)
    for sample, truth, predicted in pairs:
        tally.add(sample, truth, predicted)
    return tally.scores()


@dataclass(frozen=True, eq=False)
class MaskTally:
    """Counts over the images seen so far. Tallies of disjoint parts of a set merge into that of the whole."""

    names: tuple[str, ...]
    has_background: bool
    by_tags: I64      # (tag count, C+1, C+2) confusion of the images with so many foreground classes
    tag_images: I64   # (tag count,)
    boundary: I64     # (2, C+1) intersection, union
    trimap: I64       # (widths, C+1, C+2)
    named: I64        # (3, C) images: with a pixel of the class in both masks, in the prediction, in truth
    parts: ClassCounts
    per_image: list[tuple[str, float | None]] = field(default_factory=list)

    @staticmethod
    def empty(names: Sequence[str], has_background: bool = True) -> MaskTally:
        """A tally of no images, for `names` (the C foreground classes)."""
        class_labels(names, has_background)
        classes = len(names)
        table = (classes + 1, classes + 2)
        return MaskTally(tuple(names), has_background, np.zeros((len(TAG_COUNTS), *table), np.int64),
                         np.zeros(len(TAG_COUNTS), np.int64), np.zeros((2, classes + 1), np.int64),
                         np.zeros((len(TRIMAP_WIDTHS), *table), np.int64), np.zeros((3, classes), np.int64),
                         ClassCounts.empty(classes))

    def add(self, sample: str, truth: U8, predicted: U8) -> None:
        """Count one image. Nothing is counted when its masks are refused."""
        _check_pair(sample, truth, predicted, len(self.names), self.has_background)
        classes = len(self.names)
        counts = confusion(truth, predicted, classes)
        true, said = counts[1:].any(axis=1), counts[:, 1:-1].any(axis=0)
        present = np.flatnonzero(true) + 1
        group = min(len(present), len(TAG_COUNTS) - 1)
        self.by_tags[group] += counts
        self.tag_images[group] += 1
        self.boundary[:] += boundary_counts(truth, predicted, classes)
        self.trimap[:] += trimap_confusion(truth, predicted, classes)
        self.named[:] += (true & said, said, true)
        self.parts.add(counts, present, truth.size)
        self.per_image.append((sample, _image_score(counts, self.has_background)))

    def merged(self, other: MaskTally) -> MaskTally:
        """The tally of both parts; neither is changed."""
        if (self.names, self.has_background) != (other.names, other.has_background):
            raise DataError(f"tallies of different classes: {self.names} and {other.names}; expected the same list")
        return MaskTally(self.names, self.has_background, self.by_tags + other.by_tags,
                         self.tag_images + other.tag_images, self.boundary + other.boundary,
                         self.trimap + other.trimap, self.named + other.named, self.parts.merged(other.parts),
                         self.per_image + other.per_image)

    def scores(self) -> dict[str, Any]:
        """Everything as JSON-ready values; see `score_masks`."""
        counts = self.by_tags.sum(axis=0)
        whole = summary(counts, self.names, self.has_background)
        return {
            "images": len(self.per_image),
            **asdict(whole),
            "absent": [name for name, iou in whole.per_class.items() if iou is None],
            **self._near_contours(),
            "named": named(self.named, self.names),
            "by_area": self.parts.by_area(),
            "by_tag_count": self._by_tag_count(),
            "by_company": self.parts.by_company(self.names),
            "confusion": counts.tolist(),
            "per_image": [{"id": sample, "miou": miou} for sample, miou in self.per_image],
        }

    def _near_contours(self) -> dict[str, Any]:
        labels = class_labels(self.names, self.has_background)
        first = 0 if self.has_background else 1
        found, union = self.boundary[:, first:]
        iou = [float(i / u) if u else None for i, u in zip(found, union, strict=True)]
        seen = [v for v in iou if v is not None]
        bands = (summary(c, self.names, self.has_background) for c in self.trimap)
        return {
            "boundary_iou": sum(seen) / len(seen) if seen else 0.0,
            "boundary_iou_per_class": dict(zip(labels, iou, strict=True)),
            "trimap": {str(w): b.miou for w, b in zip(TRIMAP_WIDTHS, bands, strict=True)},
        }

    def _by_tag_count(self) -> dict[str, dict[str, Any]]:
        groups = zip(TAG_COUNTS, self.tag_images, self.by_tags, strict=True)
        return {name: {"miou": summary(c, self.names, self.has_background).miou if n else None, "images": int(n)}
                for name, n, c in groups}


def named(counts: I64, names: Sequence[str]) -> dict[str, Any]:
    """How well a prediction names classes, wherever it paints them: `counts` (3,C) as in `MaskTally`, over all pairs of
    image and class, and F1 of each class; None where a share is of nothing.
    """
    both, said, true = (int(n) for n in counts.sum(axis=1))
    per_class = {name: _share(2 * b, s + t) for name, (b, s, t) in zip(names, counts.T.tolist(), strict=True)}
    return {"f1": _share(2 * both, said + true), "precision": _share(both, said), "recall": _share(both, true),
            "f1_per_class": per_class}  # fmt: skip


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _check_pair(sample: str, truth: U8, predicted: U8, classes: int, has_background: bool) -> None:
    for what, mask in (("truth", truth), ("prediction", predicted)):
        if mask.dtype != np.uint8 or mask.ndim != 2 or mask.size == 0:
            raise DataError(f"{what} of {sample!r}: found {mask.dtype} {mask.shape}, expected uint8 (H, W), not empty")
    if truth.shape != predicted.shape:
        raise DataError(f"prediction of {sample!r} has size {predicted.shape}, its truth {truth.shape}: "
                        "expected the same; resize the prediction (nearest neighbour)")
    check_mask(truth, classes, f"truth of {sample!r}")
    check_mask(predicted, classes, f"prediction of {sample!r}")
    if not has_background and np.any(truth == BACKGROUND):
        raise DataError(f"truth of {sample!r} holds {np.count_nonzero(truth == BACKGROUND)} pixels of value 0, "
                        "but the set has no background: mark pixels without a class as 255")


def _image_score(counts: I64, has_background: bool) -> float | None:
    """Mean IoU over the classes in this image's truth or prediction; None where every pixel is ignored."""
    first = 0 if has_background else 1
    hit = np.diagonal(counts)[first:]
    union = counts.sum(axis=1)[first:] + counts[:, first:-1].sum(axis=0) - hit
    seen = union > 0
    return float((hit[seen] / union[seen]).mean()) if seen.any() else None
