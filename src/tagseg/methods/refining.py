"""From maps to training labels, the same for every method: the CRF, or a walk over affinities learned from the maps."""

from __future__ import annotations

from typing import Literal, Protocol

from tagseg.artifacts import LabelSet, MapSet, Scores, Weights
from tagseg.data.index import TaggedSet
from tagseg.localize import affinity as pairs
from tagseg.localize import operating_point
from tagseg.methods.protocol import Fitted, Inputs, Refined
from tagseg.refine import affinity as walking
from tagseg.refine import crf, seeds, threshold
from tagseg.store import Run

Kind = Literal["crf", "affinity", "none"]


class Settings(Protocol):
    """What a method's config must hold. `refine`: "crf" draws maps to edges, "affinity" walks them (IRN), "none" cuts.

    The walk's labels are cut without a CRF, as IRN does.
    """

    @property
    def refine(self) -> Kind: ...
    @property
    def point(self) -> operating_point.OperatingPoint: ...
    @property
    def seeds(self) -> seeds.Seeds: ...
    @property
    def affinity(self) -> pairs.Affinity: ...
    @property
    def walk(self) -> walking.Walk: ...
    @property
    def crf(self) -> crf.Crf: ...


def refined(run: Run, inputs: Inputs, judge: Weights, found: MapSet, point: Scores, cfg: Settings) -> Refined:
    """Learn what refines the maps of the training images, and refine them; `judge` tells evidence for the new cut."""
    if cfg.refine != "affinity":
        return Refined(found, point, None)
    sure = seeds.confident(run, inputs.tagged, found, point, cfg.seeds)
    net = pairs.train(run, inputs.tagged, sure, inputs.pretrained, cfg.affinity)
    walked = walking.maps(run, inputs.tagged, found, net, cfg.walk)
    return Refined(walked, operating_point.auto(run, inputs.tagged, judge, walked, cfg.point), net)


def spread(run: Run, tagged: TaggedSet, found: MapSet, net: Weights | None, cfg: Settings) -> MapSet:
    """The maps of other images, refined by what was learned."""
    return found if net is None else walking.maps(run, tagged, found, net, cfg.walk)


def pseudo(run: Run, tagged: TaggedSet, found: MapSet, fitted: Fitted, cfg: Settings) -> LabelSet:
    """Labels of other images from their maps, as those of the training images were made."""
    assert fitted.refined is not None  # both callers cut labels out of maps
    maps = spread(run, tagged, found, fitted.refined.affinity, cfg)
    return labels(run, tagged, maps, fitted.refined.point, cfg)


def labels(run: Run, tagged: TaggedSet, maps: MapSet, point: Scores, cfg: Settings) -> LabelSet:
    """Labels of refined maps at an operating point."""
    if cfg.refine == "crf":
        return crf.labels(run, tagged, maps, point, cfg.crf)
    return threshold.labels(run, tagged, maps, point, threshold.Threshold())
