"""Class maps drawn to the image's edges by pixel-adaptive mask refinement: a refiner for machines with a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from tagseg.artifacts import MapSet, write_maps
from tagseg.data.index import TaggedSet
from tagseg.inference import one_thread
from tagseg.ops.geometry import enlarge
from tagseg.ops.pamr import DILATIONS, pamr
from tagseg.store import Work, stage
from tagseg.types import F32, U8, ClassMaps


@dataclass(frozen=True)
class Pamr:
    """The paper's rounds and distances (pixels). `batch`: images that each worker may have on the device at once.

    On a CPU the exact dense CRF (`refine/crf.py`) costs less.
    """

    iterations: int = 10
    dilations: tuple[int, ...] = DILATIONS
    batch: int = 8
    device: str = "auto"

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {"quick": {"iterations": 3, "dilations": (1, 2, 4)}}


@stage(MapSet, version=1)
def maps(work: Work, tagged: TaggedSet, maps: MapSet, cfg: Pamr) -> None:
    """Refined maps at the image's own size, where their edges are sharp; cut them with `refine/threshold.py`.

    A background of constant score is left as it is by the refinement, so it need not take part: cutting the refined
    maps at the operating point decides what refining background and maps together would.
    """

    def one(ids: list[str]) -> list[ClassMaps]:
        return refine([tagged.source.read(id) for id in ids], [maps.get(id) for id in ids], cfg)

    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        with one_thread(cfg.device):
            batches = [ids[i : i + cfg.batch] for i in range(0, len(ids), cfg.batch)]
            for refined in work.map(one, batches):
                yield from refined

    write_maps(work, tagged.ids, produce, {"classes": list(tagged.classes), "grid": 1})


def refine(images: Sequence[U8], maps: Sequence[ClassMaps], cfg: Pamr) -> list[ClassMaps]:
    """The refined maps of images (3,H,W), in order; images of one size run together."""
    buckets: dict[tuple[int, int], list[int]] = {}
    for place, found in enumerate(maps):
        if len(found.classes):
            buckets.setdefault(found.size, []).append(place)
    refined: dict[int, F32] = {}
    for places in buckets.values():
        scores = _solve([images[p] for p in places], [enlarge(maps[p].scores, maps[p].size) for p in places], cfg)
        refined |= dict(zip(places, scores, strict=True))
    return [ClassMaps(m.id, m.classes, refined.get(p, m.scores), m.size) for p, m in enumerate(maps)]


def _solve(images: list[U8], scores: list[F32], cfg: Pamr) -> list[F32]:
    """Refined scores (k,H,W) of images of one size; those with fewer classes are filled up with empty maps."""
    most = max(len(s) for s in scores)
    filled = np.stack([np.pad(s, ((0, most - len(s)), (0, 0), (0, 0))) for s in scores])
    photos = torch.from_numpy(np.stack(images)).to(cfg.device).float() / 255
    found = pamr(photos, torch.from_numpy(filled).to(cfg.device), cfg.iterations, cfg.dilations).clamp(0, 1).cpu()
    return [f[: len(s)].numpy() for f, s in zip(found, scores, strict=True)]
