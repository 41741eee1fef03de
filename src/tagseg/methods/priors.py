"""`priors`: a recognition network's own activations tell where objects are; tags tell which (Saleh et al., 2016)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from tagseg.artifacts import LabelSet, MapSet, Weights
from tagseg.data.index import TaggedSet
from tagseg.localize import cam, classify, foreground, operating_point
from tagseg.methods.protocol import Fitted, Inputs, Step
from tagseg.refine import prior_masks, superpixels
from tagseg.segment import predict as segmented
from tagseg.segment import train_prior
from tagseg.store import Run

TAKES_PICKS = True
CANDIDATES = prior_masks.CANDIDATES


@dataclass(frozen=True)
class Config:
    """One config for each stage. `masks`: a region for each tag ("multi", the extension), one foreground for all of
    them ("binary", ECCV 2016), or no masks at all ("none": the plain tag loss, which the masks are measured against).
    """

    masks: Literal["multi", "binary", "none"] = "multi"
    foreground: foreground.Foreground = field(default_factory=foreground.Foreground)
    classifier: classify.Classify = field(default_factory=classify.Classify)
    cam: cam.Cam = field(default_factory=cam.Cam)
    point: operating_point.OperatingPoint = field(default_factory=operating_point.OperatingPoint)
    superpixels: superpixels.Superpixels = field(default_factory=superpixels.Superpixels)
    prior: prior_masks.PriorMasks = field(default_factory=prior_masks.PriorMasks)
    segmenter: train_prior.SegmentPrior = field(default_factory=train_prior.SegmentPrior)
    predict: segmented.Predict = field(default_factory=segmented.Predict)
    post: segmented.Predict = field(default_factory=lambda: segmented.slower(256))

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"post": segmented.slower(96)},
        "paper": {"post": segmented.slower(321)},
    }


def fit(run: Run, inputs: Inputs, cfg: Config) -> Fitted:
    """See what the pretrained network responds to, share that out among the tags, segment with a loss that knows it."""
    tagged = inputs.tagged
    classifier = classify.train(run, tagged, inputs.pretrained, cfg.classifier)
    found = cam.maps(run, tagged, classifier, cfg.cam)
    point = operating_point.auto(run, tagged, classifier, found, cfg.point)
    masks = chosen(run, inputs, found, cfg)
    if cfg.masks == "none":
        model = train_prior.weak(run, tagged, inputs.pretrained, cfg.segmenter)  # Eq. 4
    elif cfg.masks == "binary":
        model = train_prior.binary(run, tagged, masks, inputs.pretrained, cfg.segmenter)  # Eq. 5
    else:
        model = train_prior.multi(run, tagged, masks, inputs.pretrained, cfg.segmenter)  # Eq. 8
    return Fitted(model, classifier, found, point, None, masks)


def chosen(run: Run, inputs: Inputs, found: MapSet, cfg: Config) -> LabelSet:
    """The masks of `cfg.prior.candidate`, or what a person picked in their place."""
    first = masks_of(run, inputs, found, cfg)
    picks = inputs.picks
    if picks is None or not len(picks):
        return first
    names = (cfg.prior.candidate, *sorted(set(picks.chosen.values()) - {cfg.prior.candidate}))
    others = [masks_of(run, inputs, found, replace(cfg, prior=prior_masks.named(cfg.prior, n))) for n in names[1:]]
    return prior_masks.picked(run, inputs.tagged, (first, *others), picks, prior_masks.PickFrom(names))


def candidates(run: Run, inputs: Inputs, fitted: Fitted, cfg: Config) -> dict[str, LabelSet]:
    """All candidate masks of tagged images by name, that of `cfg.prior.candidate` first."""
    found = maps(run, inputs.tagged, fitted, cfg)
    rest = [name for name in prior_masks.CANDIDATES if name != cfg.prior.candidate]
    return {name: masks_of(run, inputs, found, replace(cfg, prior=prior_masks.named(cfg.prior, name)))
            for name in (cfg.prior.candidate, *rest)}  # fmt: skip


def masks_of(run: Run, inputs: Inputs, found: MapSet, cfg: Config) -> LabelSet:
    """Eq. 1, 2 and, with a region for each tag, 6 and 7, of tagged images whose class maps are given."""
    tagged = inputs.tagged
    ground = foreground.maps(run, tagged.images(), inputs.pretrained, cfg.foreground)
    segments = (superpixels.segments(run, tagged, cfg.superpixels),) if cfg.prior.region > 0 else ()
    if cfg.masks == "binary":
        return prior_masks.binary(run, tagged, ground, segments, cfg.prior)
    return prior_masks.multi(run, tagged, ground, found, segments, cfg.prior)


def maps(run: Run, tagged: TaggedSet, fitted: Fitted, cfg: Config) -> MapSet:
    """Maps of other images whose tags are given."""
    return cam.maps(run, tagged, fitted.classifier, cfg.cam)


def pseudo(run: Run, inputs: Inputs, fitted: Fitted, cfg: Config) -> LabelSet:
    """Masks of other tagged images; nobody picked among theirs."""
    return masks_of(run, inputs, maps(run, inputs.tagged, fitted, cfg), cfg)


def steps(run: Run, inputs: Inputs, fitted: Fitted, cfg: Config) -> dict[str, Step]:
    """For the report: what each tap responds to, both together, shared out among the tags; the foreground's mask."""
    images, tagged = inputs.tagged.images(), inputs.tagged
    found: dict[str, Step] = {}
    for name in cfg.foreground.taps:
        found[name] = foreground.maps(run, images, inputs.pretrained, replace(cfg.foreground, taps=(name,)))
    ground = found["foreground"] = foreground.maps(run, images, inputs.pretrained, cfg.foreground)
    assert isinstance(ground, MapSet)
    found["shared out"] = prior_masks.shares(run, tagged, ground, maps(run, tagged, fitted, cfg), cfg.prior)
    found["foreground mask"] = masks_of(run, inputs, maps(run, tagged, fitted, cfg), replace(cfg, masks="binary"))
    return found


def findings(run: Run, images: TaggedSet, fitted: Fitted, cfg: Config) -> dict[str, MapSet]:
    """Where the classifier and where the segmenter see any class at all, in images whose tags are not known."""
    found = cam.findings(run, images, fitted.classifier, cfg.cam)
    return {"class maps": found, "segmenter": segmented.findings(run, images, fitted.model, cfg.predict)}


def predict(run: Run, model: Weights, images: TaggedSet, cfg: Config) -> LabelSet:
    """Masks of images by the segmenter alone."""
    return segmented.labels(run, images, model, cfg.predict)
