"""A few generated scenes with coarse maps of their tagged classes, for the tests of what refines maps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from tagseg.artifacts import MapSet, write_maps
from tagseg.data.generated import scenes
from tagseg.data.index import MaskedSet, TaggedSet
from tagseg.nets.backbones import Backbone
from tagseg.store import Run, Work, stage
from tagseg.types import ClassMaps


@dataclass(frozen=True)
class Coarse:
    """Maps of random values on cells of `cell` pixels."""

    cell: int = 4


def masked_set(count: int = 5, side: int = 40) -> MaskedSet:
    return scenes(f"scenes:basic?train={count}&val=0&size={side}", ["train"])


def tagged_set(count: int = 5, side: int = 40) -> TaggedSet:
    return masked_set(count, side).without_masks()


def coarse(sample: str, classes: np.ndarray, size: tuple[int, int], cell: int) -> ClassMaps:
    h, w = (-(-n // cell) for n in size)
    rng = np.random.default_rng(list(sample.encode()))
    scores = rng.random((len(classes), h, w), np.float32)
    return ClassMaps(sample, classes, scores, size)


@stage(MapSet, version=1)
def maps(work: Work, tagged: TaggedSet, cfg: Coarse) -> None:
    def produce(ids: list[str]) -> Iterable[ClassMaps]:
        return (coarse(i, np.flatnonzero(tagged.tags_of(i)) + 1, tagged.source.size(i), cfg.cell) for i in ids)

    write_maps(work, tagged.ids, produce, {})


def made(run: Run, tagged: TaggedSet) -> MapSet:
    return maps(run, tagged, Coarse())


def as_published(backbone: Backbone) -> dict[str, Tensor]:
    """The state of the small network under torchvision's kind of names: one sequence of layers."""
    flat = [layer for name, stage in backbone.body.stages.items()  # type: ignore[union-attr, operator]
            for layer in (stage if name.startswith("block") else [stage])]
    return {f"features.{name}": tensor for name, tensor in nn.Sequential(*flat).state_dict().items()}
