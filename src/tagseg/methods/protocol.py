"""What a method takes and gives. A method is a module that satisfies this; there is no base class.

`Config`: frozen dataclass of its stages' configs, the paper's values as defaults, with `predict` and `post`.
`fit(run, inputs, cfg) -> Fitted`: composes stages. `maps(run, tagged, fitted, cfg) -> MapSet`: its localisation of
other tagged images. `spread(run, tagged, maps, fitted, cfg) -> MapSet`: these maps refined by what was learned, if it
was. `labels(run, tagged, maps, point, cfg) -> LabelSet`: labels of refined maps at an operating point.
`steps(run, tagged, fitted, cfg)`, where a method has it: named maps and offsets on the way, for the report.
`predict(run, model, images, cfg) -> LabelSet`: masks without tags, as `cfg.predict` says (or `cfg.post` in its place).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tagseg.artifacts import LabelSet, MapSet, Scores, Weights
from tagseg.data.index import MaskedSet, TaggedSet
from tagseg.data.weights import Pretrained


@dataclass(frozen=True)
class Inputs:
    """`tagged`: the training images; `pretrained`: the backbone's weights; `aux`: masks of *other* classes."""

    tagged: TaggedSet
    pretrained: Pretrained
    aux: MaskedSet | None = None


class Refined(NamedTuple):
    """The maps that labels are cut from, where they are cut, and the affinity network, if there is one."""

    maps: MapSet
    point: Scores
    affinity: Weights | None


@dataclass(frozen=True)
class Fitted:
    """What a method learned: the final model, and the steps on the way that the report shows.

    `classifier` is the network that `maps` come from, `before` those that it was made from and that `maps` need, too;
    `point` is where the maps would be cut.
    """

    model: Weights
    classifier: Weights
    maps: MapSet
    point: Scores
    refined: Refined
    labels: LabelSet
    before: tuple[Weights, ...] = ()
