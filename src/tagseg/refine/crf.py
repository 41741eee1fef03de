"""Labels from class maps, drawn to the image's edges by the dense CRF, restricted to the image's tags."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from tagseg.artifacts import LabelSet, MapSet, Scores, write_labels
from tagseg.data.index import TaggedSet
from tagseg.ops import crf, crf_torch
from tagseg.ops.geometry import enlarge
from tagseg.ops.scores import to_probabilities, with_background
from tagseg.store import Work, stage
from tagseg.types import BACKGROUND, F32, I64, IGNORE, U8, ClassMaps, Labels

TOGETHER = 1_500_000  # pixels that one batch on a graphics card may hold
ABSENT = 1e4  # energy of labels that an image of a batch does not have


@dataclass(frozen=True)
class Crf:
    """Kernels and weights as pydensecrf users know them; the defaults are those of IRN's code.

    Pixels whose probability stays under `unsure_below` become 255 (ignored by the segmenter); 0 keeps all. `device`:
    with "cuda" images of one size are solved together by `ops.crf_torch`, whose numbers are those of the processor but
    for rounding.
    """

    sxy_gaussian: float = 3.0
    compat_gaussian: float = 3.0
    sxy_bilateral: float = 50.0
    srgb: float = 5.0
    compat_bilateral: float = 10.0
    iterations: int = 10
    unsure_below: float = 0.0
    device: str = "cpu"

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
        done = {} if cfg.device == "cpu" else on_card(tagged, [maps.get(i) for i in ids], threshold, cfg)
        yield from work.map(lambda sample: done.get(sample) or one(sample), ids)

    write_labels(work, tagged.ids, produce, {"classes": list(tagged.classes), "threshold": threshold})


def refine(image: U8, maps: ClassMaps, threshold: float, has_background: bool, cfg: Crf) -> Labels:
    """Labels of one image (3,H,W) from its maps; confidence is the CRF's probability of the label."""
    ids, probability = given(maps, threshold, has_background)
    return decided(maps.id, ids, solve(image, probability, cfg), cfg)  # cam Eq. 10


def given(maps: ClassMaps, threshold: float, has_background: bool) -> tuple[I64, F32]:
    """The labels of an image, background first where the set has one, and their probabilities (K,H,W) by the maps."""
    scores = enlarge(maps.scores, maps.size)
    if not has_background:
        return maps.classes, to_probabilities(scores)
    return np.concatenate([[BACKGROUND], maps.classes]), with_background(scores, threshold)  # cam Eq. 9


def decided(sample: str, ids: I64, probability: F32, cfg: Crf) -> Labels:
    """The best label of every pixel, 255 where it is too unsure."""
    pixels, sure = ids[probability.argmax(0)].astype(np.uint8), probability.max(0)
    pixels[sure < cfg.unsure_below] = IGNORE
    return Labels(sample, pixels, np.round(255 * sure).astype(np.uint8))


def on_card(tagged: TaggedSet, maps: Sequence[ClassMaps], threshold: float, cfg: Crf) -> dict[str, Labels]:
    """Labels by id of images that have classes, solved in batches of one size on the device of the config."""
    some = {found.id: found for found in maps if len(found.classes)}
    labels: dict[str, Labels] = {}
    for batch in of_one_size({id: found.size for id, found in some.items()}):
        known = [given(some[id], threshold, tagged.has_background) for id in batch]
        solved = solve_together([tagged.source.read(id) for id in batch], [shares for _, shares in known], cfg)
        for id, (ids, _), shares in zip(batch, known, solved, strict=True):
            labels[id] = decided(id, ids, shares, cfg)
    return labels


def of_one_size(sizes: Mapping[str, tuple[int, int]]) -> Iterator[list[str]]:
    """Ids in batches of one size (H, W), each small enough for a graphics card."""
    alike: dict[tuple[int, int], list[str]] = {}
    for id, size in sizes.items():
        alike.setdefault(size, []).append(id)
    for (h, w), members in alike.items():
        most = max(1, TOGETHER // (h * w))
        yield from (members[start : start + most] for start in range(0, len(members), most))


def solve_together(images: Sequence[U8], probabilities: Sequence[F32], cfg: Crf) -> list[F32]:
    """`solve` of images (3,H,W) of one size, each with its own number of labels, on the device of the config."""
    most = max(len(p) for p in probabilities)
    energies = [np.pad(crf.unary_from_probabilities(p), ((0, most - len(p)), (0, 0), (0, 0)), constant_values=ABSENT)
                for p in probabilities]  # fmt: skip
    photos = np.stack([image.transpose(1, 2, 0) for image in images])
    q = crf_torch.dense_crf(
        torch.from_numpy(photos).to(cfg.device),
        torch.from_numpy(np.stack(energies)).to(cfg.device),
        sxy_gaussian=cfg.sxy_gaussian,
        compat_gaussian=cfg.compat_gaussian,
        sxy_bilateral=cfg.sxy_bilateral,
        srgb=cfg.srgb,
        compat_bilateral=cfg.compat_bilateral,
        iterations=cfg.iterations,
    )
    return [shares[: len(p)] for p, shares in zip(probabilities, q.cpu().numpy(), strict=True)]


def solve(image: U8, probabilities: F32, cfg: Crf) -> F32:
    """Mean-field probabilities (K,H,W) of an image (3,H,W) from given ones."""
    return solver(image, cfg)(probabilities)


def solver(image: U8, cfg: Crf) -> Callable[[F32], F32]:
    """`solve` of one image for any number of times: its kernels, the costly part, are made once."""
    prepared = crf.kernels(
        np.ascontiguousarray(image.transpose(1, 2, 0)),
        sxy_gaussian=cfg.sxy_gaussian,
        sxy_bilateral=cfg.sxy_bilateral,
        srgb=cfg.srgb,
    )
    return lambda probabilities: crf.mean_field(
        prepared,
        crf.unary_from_probabilities(probabilities),
        compat_gaussian=cfg.compat_gaussian,
        compat_bilateral=cfg.compat_bilateral,
        iterations=cfg.iterations,
    )
