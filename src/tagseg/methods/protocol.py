"""What a method takes and gives. A method is a module that satisfies this; there is no base class.

`Config`: frozen dataclass of its stages' configs, the paper's values as defaults, with `predict` and `post`.
`fit(run, inputs, cfg) -> Fitted`: composes stages. `maps(run, tagged, fitted, cfg) -> MapSet`: its localisation of
other tagged images. `labels(run, tagged, maps, point, cfg) -> LabelSet`: refined labels at an operating point.
`predict(run, model, images, cfg) -> LabelSet`: masks without tags, as `cfg.predict` says (or `cfg.post` in its place).
"""

from __future__ import annotations

from dataclasses import dataclass

from tagseg.artifacts import LabelSet, MapSet, Scores, Weights
from tagseg.data.index import MaskedSet, TaggedSet
from tagseg.data.weights import Pretrained


@dataclass(frozen=True)
class Inputs:
    """`tagged`: the training images; `pretrained`: the backbone's weights; `aux`: masks of *other* classes."""

    tagged: TaggedSet
    pretrained: Pretrained
    aux: MaskedSet | None = None


@dataclass(frozen=True)
class Fitted:
    """What a method learned: the final model, and the steps on the way that the report shows."""

    model: Weights
    classifier: Weights
    maps: MapSet
    point: Scores
    labels: LabelSet
