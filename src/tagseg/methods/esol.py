"""`esol`: learn where to sample, first to widen class maps, then to narrow them (Li et al., NeurIPS 2022)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tagseg import config
from tagseg.artifacts import LabelSet, MapSet, Scores, Weights
from tagseg.data.index import TaggedSet
from tagseg.localize import (
    affinity,
    cam,
    classify,
    expansion,
    fusion,
    joint_expansion,
    operating_point,
    sampling_layers,
    shrinkage,
)
from tagseg.methods import refining
from tagseg.methods.protocol import Fitted, Inputs, Step
from tagseg.refine import affinity as walk
from tagseg.refine import crf, seeds
from tagseg.segment import predict as segmented
from tagseg.segment import train
from tagseg.store import Run
from tagseg.types import UsageError


@dataclass(frozen=True)
class Config:
    """One config for each stage. `mode`: the classifier and its widening one after the other, or in turn.

    `fuse_maps`: the narrowed maps alone, or joined with the widened ones.
    """

    classifier: classify.Classify = field(default_factory=lambda: classify.Classify(sampler=256))
    mode: Literal["sequential", "joint"] = "sequential"
    expand: expansion.Expand = field(default_factory=expansion.Expand)
    second: shrinkage.Second = field(default_factory=shrinkage.Second)
    shrink: shrinkage.Shrink = field(default_factory=shrinkage.Shrink)
    cam: cam.Cam = field(default_factory=cam.Cam)
    fuse_maps: Literal["shrinkage", "max", "mean"] = "shrinkage"
    point: operating_point.OperatingPoint = field(default_factory=operating_point.OperatingPoint)
    refine: refining.Kind = "affinity"
    seeds: seeds.Seeds = field(default_factory=seeds.Seeds)
    affinity: affinity.Affinity = field(default_factory=affinity.Affinity)
    walk: walk.Walk = field(default_factory=walk.Walk)
    crf: crf.Crf = field(default_factory=crf.Crf)
    segmenter: train.Segment = field(default_factory=train.Segment)
    predict: segmented.Predict = field(default_factory=segmented.Predict)
    post: segmented.Predict = field(default_factory=lambda: segmented.slower(256))

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "post": segmented.slower(96),
            "classifier": config.with_budget(classify.Classify(sampler=128), "quick"),
        },
        "paper": {
            "post": segmented.slower(321),
            "classifier": config.with_budget(classify.Classify(sampler="features"), "paper"),
        },
    }


def fit(run: Run, inputs: Inputs, cfg: Config) -> Fitted:
    """Look where the classifier does worse, learn the tags again from there, look where that takes little room."""
    tagged = inputs.tagged
    *_, wide = before = widened(run, inputs, cfg)
    twofold = shrinkage.second(run, tagged, wide, cfg.second)
    narrow = shrinkage.shrunk(run, tagged, wide, twofold, cfg.shrink)
    found = _maps(run, tagged, wide, narrow, cfg)
    point = operating_point.auto(run, tagged, narrow, found, cfg.point)
    fine = refining.refined(run, inputs, narrow, found, point, cfg)
    pseudo = labels(run, tagged, fine.maps, fine.point, cfg)
    model = train.segmenter(run, tagged, pseudo, inputs.pretrained, cfg.segmenter)
    return Fitted(model, narrow, found, point, fine, pseudo, before)


def widened(run: Run, inputs: Inputs, cfg: Config) -> tuple[Weights, ...]:
    """The classifier (joint mode has none of its own), and with it offsets that widen its maps."""
    if not cfg.classifier.sampler:
        raise UsageError("classifier.sampler: found 0, expected the channels of the layer whose taps move, or features")
    if cfg.mode == "joint":
        both = joint_expansion.joint(cfg.classifier, cfg.expand)
        return (joint_expansion.expanded(run, inputs.tagged, inputs.pretrained, both),)
    classifier = classify.train(run, inputs.tagged, inputs.pretrained, cfg.classifier)
    return classifier, expansion.expanded(run, inputs.tagged, classifier, cfg.expand)


def _maps(run: Run, tagged: TaggedSet, wide: Weights, narrow: Weights, cfg: Config) -> MapSet:
    found = cam.maps(run, tagged, narrow, cfg.cam)  # esol Eq. 9
    if cfg.fuse_maps == "shrinkage":
        return found
    return fusion.fused(run, tagged, found, cam.maps(run, tagged, wide, cfg.cam), fusion.Fuse(cfg.fuse_maps))


def maps(run: Run, tagged: TaggedSet, fitted: Fitted, cfg: Config) -> MapSet:
    """Maps of other images whose tags are given."""
    return _maps(run, tagged, fitted.before[-1], fitted.classifier, cfg)


def labels(run: Run, tagged: TaggedSet, found: MapSet, point: Scores, cfg: Config) -> LabelSet:
    """Labels at an operating point."""
    return refining.labels(run, tagged, found, point, cfg)


def pseudo(run: Run, inputs: Inputs, fitted: Fitted, cfg: Config) -> LabelSet:
    """Labels of other tagged images, made as those that the segmenter learned from."""
    return refining.pseudo(run, inputs.tagged, maps(run, inputs.tagged, fitted, cfg), fitted, cfg)


def steps(run: Run, inputs: Inputs, fitted: Fitted, cfg: Config) -> dict[str, Step]:
    """For the report: maps before and after the widening, and where the two layers look."""
    found: dict[str, Step] = {}
    for name, weights in zip(("before", "expanded")[-len(fitted.before) :], fitted.before, strict=True):
        found[name] = cam.maps(run, inputs.tagged, weights, cfg.cam)
    found["expanding offsets"] = sampling_layers.reach(run, inputs.tagged, fitted.before[-1], cfg.cam)
    found["shrinking offsets"] = sampling_layers.reach(run, inputs.tagged, fitted.classifier, cfg.cam)
    return found


def predict(run: Run, model: Weights, images: TaggedSet, cfg: Config) -> LabelSet:
    """Masks of images by the segmenter alone: the samplers only serve to label training images."""
    return segmented.labels(run, images, model, cfg.predict)
