"""Labels from class maps, drawn to the image's edges by the dense CRF, restricted to the image's tags."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tagseg.artifacts import LabelSet, MapSet, Scores, write_labels
from tagseg.data.index import TaggedSet
from tagseg.ops import crf
from tagseg.ops.geometry import enlarge
from tagseg.ops.scores import to_probabilities, with_background
from tagseg.store import Work, stage
from tagseg.types import BACKGROUND, F32, IGNORE, U8, ClassMaps, Labels


@dataclass(frozen=True)
class Crf:
    """Kernels and weights as pydensecrf users know them; the defaults are those of IRN's code.

    Pixels whose probability stays under `unsure_below` become 255 (ignored by the segmenter); 0 keeps all.
    """

    sxy_gaussian: float = 3.0
    compat_gaussian: float = 3.0
    sxy_bilateral: float = 50.0
    srgb: float = 5.0
    compat_bilateral: float = 10.0
    iterations: int = 10
    unsure_below: float = 0.0

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {"quick": {"iterations": 5, "sxy_bilateral": 20.0, "srgb": 10.0}}


@stage(LabelSet, version=1)
def labels(work: Work, tagged: TaggedSet, maps: MapSet, point: Scores, cfg: Crf) -> None:
    """CRF labels of every image: the unary is background at the operating point against the tagged classes' maps."""
    threshold = float(point.read()["threshold"])

    def one(sample: str) -> Labels:
        found = maps.get(sample)
        if not len(found.classes):  # a negative: nothing to decide
            return Labels(sample, np.full(found.size, BACKGROUND if tagged.has_background else IGNORE, np.uint8))
        return refine(tagged.source.read(sample), found, threshold, tagged.has_background, cfg)

    def produce(ids: list[str]) -> Iterator[Labels]:
        yield from work.map(one, ids)

    write_labels(work, tagged.ids, produce, {"classes": list(tagged.classes), "threshold": threshold})


def refine(image: U8, maps: ClassMaps, threshold: float, has_background: bool, cfg: Crf) -> Labels:
    """Labels of one image (3,H,W) from its maps; confidence is the CRF's probability of the label."""
    scores = enlarge(maps.scores, maps.size)
    ids = np.concatenate([[BACKGROUND], maps.classes]) if has_background else maps.classes
    unary = with_background(scores, threshold) if has_background else to_probabilities(scores)  # cam Eq. 9
    probability = solve(image, unary, cfg)  # cam Eq. 10
    pixels, sure = ids[probability.argmax(0)].astype(np.uint8), probability.max(0)
    pixels[sure < cfg.unsure_below] = IGNORE
    return Labels(maps.id, pixels, np.round(255 * sure).astype(np.uint8))


def solve(image: U8, probabilities: F32, cfg: Crf) -> F32:
    """Mean-field probabilities (K,H,W) of an image (3,H,W) from given ones."""
    return crf.dense_crf(
        np.ascontiguousarray(image.transpose(1, 2, 0)),
        probabilities,
        sxy_gaussian=cfg.sxy_gaussian,
        compat_gaussian=cfg.compat_gaussian,
        sxy_bilateral=cfg.sxy_bilateral,
        srgb=cfg.srgb,
        compat_bilateral=cfg.compat_bilateral,
        iterations=cfg.iterations,
    )
