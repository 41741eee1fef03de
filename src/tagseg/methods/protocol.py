"""What a method takes and gives. A method is a module that satisfies this; there is no base class.

`Config`: frozen dataclass of its stages' configs, the paper's values as defaults, with `predict` and `post`.
`fit(run, inputs, cfg) -> Fitted`: composes stages. `maps(run, tagged, fitted, cfg) -> MapSet`: its localisation of
other tagged images. `pseudo(run, inputs, fitted, cfg) -> LabelSet`: labels of other tagged images, made as those that
the segmenter learned from. `labels(run, tagged, maps, point, cfg) -> LabelSet`, where labels are cut out of maps
(`Fitted.refined`): at any operating point. `steps(run, inputs, fitted, cfg)`, where a method has it: named maps, labels
and offsets on the way, for the report, maps also class by class (`Apart`); its `inputs` are other images.
`findings(run, images, fitted, cfg)`, where a method has it: maps of any class at all in images without tags, by what
gave them (`evaluate.findings` scores them).
`predict(run, model, images, cfg) -> LabelSet`: masks without tags, as `cfg.predict` says (or `cfg.post` in its place).
`TAKES_SALIENCY`, `TAKES_PICKS`: True where `Inputs.saliency`, `Inputs.picks` is read; a method that takes picks has
`CANDIDATES`, the names of the masks that there are to pick from, `candidates(run, inputs, ids, cfg)`: these masks of
some training images, by name, the usual one first; and `groundwork(run, inputs, cfg)`: the stages they are made from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tagseg.artifacts import LabelSet, MapSet, Scores, Weights
from tagseg.data.index import TaggedSet
from tagseg.data.other_masks import OtherMasks
from tagseg.data.picks import Picks
from tagseg.data.saliency_folder import SaliencyFolder
from tagseg.data.weights import Pretrained


class Apart(NamedTuple):
    """Maps that are shown for each class by itself; with a `cut` as masks: where the score is that or more."""

    maps: MapSet
    cut: float | None = None


Step = MapSet | LabelSet | Scores | Apart


@dataclass(frozen=True)
class Inputs:
    """`tagged`: the training images; `pretrained`: the backbone's weights; `aux`: masks of *other* classes; `saliency`:
    maps of the training images that were made elsewhere; `picks`: the masks that a person picked among candidates;
    `trained`: the model of an earlier run, which is adapted to other classes.
    """

    tagged: TaggedSet
    pretrained: Pretrained
    aux: OtherMasks | None = None
    saliency: SaliencyFolder | None = None
    picks: Picks | None = None
    trained: Weights | None = None


class Refined(NamedTuple):
    """The maps that labels are cut from, where they are cut, and the affinity network, if there is one."""

    maps: MapSet
    point: Scores
    affinity: Weights | None


class Round(NamedTuple):
    """One round: labels of the training images by name, in the order they were made, and the segmenter of the round."""

    name: str
    labels: dict[str, LabelSet]
    segmenter: Weights


@dataclass(frozen=True)
class Fitted:
    """What a method learned: the final model, and the steps on the way that the report shows.

    `classifier` is the network that `maps` come from, `before` other networks that `maps` or `pseudo` need; `point` is
    where the maps would be cut. `refined` is None where labels do not hang on one cut. `rounds`: what each round of a
    repeated method gave.
    """

    model: Weights
    classifier: Weights
    maps: MapSet
    point: Scores
    refined: Refined | None
    labels: LabelSet
    before: tuple[Weights, ...] = ()
    rounds: tuple[Round, ...] = ()
