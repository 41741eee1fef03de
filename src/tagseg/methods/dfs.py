"""`dfs`: a recognition network run backwards, class maps from all its levels (Kim and Hwang, 2016)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from tagseg.artifacts import LabelSet, MapSet, Scores, Weights
from tagseg.data.index import TaggedSet
from tagseg.inference import Views
from tagseg.localize import classify, deconv_stack, operating_point, stack_maps
from tagseg.methods.protocol import Fitted, Inputs, Refined, Step
from tagseg.refine import crf, threshold
from tagseg.store import Run


@dataclass(frozen=True)
class Predict:
    """How images are shown to the stack; `edges`: whether a CRF draws its masks to the edges."""

    maps: stack_maps.StackMaps = field(default_factory=stack_maps.StackMaps)
    edges: bool = False
    crf: crf.Crf = field(default_factory=crf.Crf)


def slower(size: int, grid: int = 2) -> Predict:
    """`val_post`: three scales, mirror images and the CRF."""
    return Predict(stack_maps.StackMaps(Views(size, (1.0, 0.75, 1.25)), grid=grid), edges=True)


@dataclass(frozen=True)
class Config:
    """One config for each stage. There is no segmenter: the stack itself predicts, `predict` and `post` say how.

    `joint_stage`: whether encoder and heads learn together after the heads have learned alone.
    """

    classifier: classify.Classify = field(default_factory=classify.Classify)
    heads: deconv_stack.Heads = field(default_factory=deconv_stack.Heads)
    joint_stage: bool = True
    joint: deconv_stack.Joint = field(default_factory=deconv_stack.Joint)
    maps: stack_maps.StackMaps = field(default_factory=stack_maps.StackMaps)
    point: operating_point.OperatingPoint = field(default_factory=operating_point.OperatingPoint)
    edges: bool = True
    crf: crf.Crf = field(default_factory=crf.Crf)
    predict: Predict = field(default_factory=Predict)
    post: Predict = field(default_factory=lambda: slower(384))

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"post": slower(144, grid=1)},
        "paper": {"post": slower(320)},
    }


def fit(run: Run, inputs: Inputs, cfg: Config) -> Fitted:
    """Learn to recognise the tags, learn to tell them by what comes back through the network, see where that lies."""
    tagged = inputs.tagged
    classifier = classify.train(run, tagged, inputs.pretrained, cfg.classifier)
    stack = deconv_stack.heads(run, tagged, classifier, cfg.heads)
    if cfg.joint_stage:
        stack = deconv_stack.joint(run, tagged, stack, cfg.joint)
    found = stack_maps.maps(run, tagged, stack, cfg.maps)
    point = operating_point.auto(run, tagged, classifier, found, cfg.point)
    pseudo = labels(run, tagged, found, point, cfg)
    model = stack_maps.finished(run, tagged, stack, point, stack_maps.Finish())
    return Fitted(model, classifier, found, point, Refined(found, point, None), pseudo)


def maps(run: Run, tagged: TaggedSet, fitted: Fitted, cfg: Config) -> MapSet:
    """Maps of other images whose tags are given."""
    return stack_maps.maps(run, tagged, fitted.model, cfg.maps)


def labels(run: Run, tagged: TaggedSet, found: MapSet, point: Scores, cfg: Config) -> LabelSet:
    """Labels at an operating point, drawn to the image's edges."""
    return _labels(run, tagged, found, point, cfg.edges, cfg.crf)


def pseudo(run: Run, inputs: Inputs, fitted: Fitted, cfg: Config) -> LabelSet:
    """Labels of other tagged images."""
    return labels(run, inputs.tagged, maps(run, inputs.tagged, fitted, cfg), fitted.point, cfg)


def steps(run: Run, inputs: Inputs, fitted: Fitted, cfg: Config) -> dict[str, Step]:
    """For the report: what each level adds, the coarsest first, to maps of other images whose tags are given."""
    levels = fitted.model.meta["stack"]["levels"]
    return {f"level {b}": stack_maps.level(run, inputs.tagged, fitted.model, stack_maps.level_of(cfg.maps, b))
            for b in reversed(levels)}  # fmt: skip


def findings(run: Run, images: TaggedSet, fitted: Fitted, cfg: Config) -> dict[str, MapSet]:
    """Where the stack sees any class at all, in images whose tags are not known."""
    return {"stack": stack_maps.findings(run, images, fitted.model, cfg.predict.maps)}


def predict(run: Run, model: Weights, images: TaggedSet, cfg: Config) -> LabelSet:
    """Masks of images by the stack alone, for the tags that it sees itself."""
    found = stack_maps.predicted(run, images, model, cfg.predict.maps)
    point = stack_maps.cut(run, model, stack_maps.Finish())
    return _labels(run, images, found, point, cfg.predict.edges, cfg.predict.crf)


def _labels(run: Run, images: TaggedSet, found: MapSet, point: Scores, edges: bool, how: crf.Crf) -> LabelSet:
    if edges:
        return crf.labels(run, images, found, point, how)
    return threshold.labels(run, images, found, point, threshold.Threshold())
