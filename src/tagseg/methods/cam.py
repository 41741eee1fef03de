"""`cam`, the baseline: class activation maps, dense CRF, a segmenter trained on the labels (Zhou et al., CVPR 2016)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from tagseg.artifacts import LabelSet, MapSet, Scores, Weights
from tagseg.data.index import TaggedSet
from tagseg.localize import affinity, cam, classify, operating_point
from tagseg.methods import refining
from tagseg.methods.protocol import Fitted, Inputs
from tagseg.refine import affinity as walk
from tagseg.refine import crf, seeds
from tagseg.segment import predict as segmented
from tagseg.segment import train
from tagseg.store import Run


@dataclass(frozen=True)
class Config:
    """One config for each stage; `post` is the slower prediction with scales, flip and CRF.

    `refine`: how maps become labels, see `refining.Settings`; "affinity" reads `seeds`, `affinity` and `walk`.
    """

    classifier: classify.Classify = field(default_factory=classify.Classify)
    cam: cam.Cam = field(default_factory=cam.Cam)
    point: operating_point.OperatingPoint = field(default_factory=operating_point.OperatingPoint)
    refine: refining.Kind = "crf"
    seeds: seeds.Seeds = field(default_factory=seeds.Seeds)
    affinity: affinity.Affinity = field(default_factory=affinity.Affinity)
    walk: walk.Walk = field(default_factory=walk.Walk)
    crf: crf.Crf = field(default_factory=crf.Crf)
    segmenter: train.Segment = field(default_factory=train.Segment)
    predict: segmented.Predict = field(default_factory=segmented.Predict)
    post: segmented.Predict = field(default_factory=lambda: segmented.slower(256))

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"post": segmented.slower(96)},
        "paper": {"post": segmented.slower(321)},
    }


def fit(run: Run, inputs: Inputs, cfg: Config) -> Fitted:
    """Learn to recognise the tags, see where the network looks, draw that to the edges, learn to segment it."""
    classifier = classify.train(run, inputs.tagged, inputs.pretrained, cfg.classifier)
    found = cam.maps(run, inputs.tagged, classifier, cfg.cam)
    point = operating_point.auto(run, inputs.tagged, classifier, found, cfg.point)
    fine = refining.refined(run, inputs, classifier, found, point, cfg)
    pseudo = labels(run, inputs.tagged, fine.maps, fine.point, cfg)
    model = train.segmenter(run, inputs.tagged, pseudo, inputs.pretrained, cfg.segmenter)
    return Fitted(model, classifier, found, point, fine, pseudo)


def maps(run: Run, tagged: TaggedSet, fitted: Fitted, cfg: Config) -> MapSet:
    """Maps of other images whose tags are given."""
    return cam.maps(run, tagged, fitted.classifier, cfg.cam)


def labels(run: Run, tagged: TaggedSet, found: MapSet, point: Scores, cfg: Config) -> LabelSet:
    """Labels at an operating point, drawn to the image's edges."""
    return refining.labels(run, tagged, found, point, cfg)


def pseudo(run: Run, inputs: Inputs, fitted: Fitted, cfg: Config) -> LabelSet:
    """Labels of other tagged images, made as those that the segmenter learned from."""
    return refining.pseudo(run, inputs.tagged, maps(run, inputs.tagged, fitted, cfg), fitted, cfg)


def findings(run: Run, images: TaggedSet, fitted: Fitted, cfg: Config) -> dict[str, MapSet]:
    """Where the classifier and where the segmenter see any class at all, in images whose tags are not known."""
    maps = cam.findings(run, images, fitted.classifier, cfg.cam)
    return {"class maps": maps, "segmenter": segmented.findings(run, images, fitted.model, cfg.predict)}


def predict(run: Run, model: Weights, images: TaggedSet, cfg: Config) -> LabelSet:
    """Masks of images by the segmenter alone."""
    return segmented.labels(run, images, model, cfg.predict)
