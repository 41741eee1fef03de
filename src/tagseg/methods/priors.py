"""`priors`: a recognition network's own activations tell where objects are; tags tell which (Saleh et al., 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

from tagseg.artifacts import LabelSet, MapSet, SuperpixelSet, Weights
from tagseg.data.index import TaggedSet
from tagseg.localize import cam, classify, foreground, operating_point
from tagseg.methods.protocol import Fitted, Inputs, Step
from tagseg.refine import prior_masks, superpixels
from tagseg.segment import predict as segmented
from tagseg.segment import train_prior
from tagseg.store import Run
from tagseg.types import UsageError

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
    check(inputs, cfg)
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


def check(inputs: Inputs, cfg: Config) -> None:
    """What cannot be done, before the first second of work."""
    train_prior.needs_background(inputs.tagged)
    if cfg.masks == "none" and inputs.picks is not None and len(inputs.picks):
        raise UsageError("--picks: with masks=none nothing is learned from masks, so picks would change nothing; leave "
                         "one of the two out")
    prior_masks.check(cfg.prior)
    if (r := cfg.segmenter.lse_r) != "usual" and not float(r) > 0:
        raise UsageError(f"segmenter.lse_r: found {r}, expected a sharpness above 0, or usual")


class Seen(NamedTuple):
    """What masks of an image are made of: foreground, class maps, and superpixels where there is a region term."""

    ground: MapSet
    maps: MapSet
    segments: tuple[SuperpixelSet, ...]


def seen(run: Run, inputs: Inputs, found: MapSet, cfg: Config) -> Seen:
    """Eq. 1, beside the class maps `found`."""
    ground = foreground.maps(run, inputs.tagged.images(), inputs.pretrained, cfg.foreground)
    segments = (superpixels.segments(run, inputs.tagged, cfg.superpixels),) if cfg.prior.region > 0 else ()
    return Seen(ground, found, segments)


def masks_of(run: Run, tagged: TaggedSet, what: Seen, candidate: str, cfg: Config) -> LabelSet:
    """Eq. 2 and, with a region for each tag, 6 and 7, of some of the images that were seen."""
    prior = prior_masks.named(cfg.prior, candidate)
    if cfg.masks == "binary":
        return prior_masks.binary(run, tagged, what.ground, what.segments, prior)
    return prior_masks.multi(run, tagged, what.ground, what.maps, what.segments, prior)


def chosen(run: Run, inputs: Inputs, found: MapSet, cfg: Config) -> LabelSet:
    """The masks of `cfg.prior.candidate`, or what a person picked in their place."""
    tagged, what, first = inputs.tagged, seen(run, inputs, found, cfg), cfg.prior.candidate
    usual = masks_of(run, tagged, what, first, cfg)
    picks = inputs.picks
    if picks is None or not len(picks):
        return usual
    names = sorted(set(picks.chosen.values()) - {first})
    others = [masks_of(run, tagged.select(picks.of(name)), what, name, cfg) for name in names]
    done = usual if not others else prior_masks.picked(run, tagged, (usual, *others), picks,
                                                       prior_masks.PickFrom((first, *names)))  # fmt: skip
    if picks.seen:
        prior_masks.compared(run, done, picks.looked, prior_masks.Compare())
    return done


def groundwork(run: Run, inputs: Inputs, cfg: Config) -> Seen:
    """What candidates are made of; no picks change it."""
    classifier = classify.train(run, inputs.tagged, inputs.pretrained, cfg.classifier)
    return seen(run, inputs, cam.maps(run, inputs.tagged, classifier, cfg.cam), cfg)


def candidates(run: Run, inputs: Inputs, ids: Sequence[str], cfg: Config) -> dict[str, LabelSet]:
    """The masks of some training images that a person can pick from, by name, that of `cfg.prior.candidate` first."""
    what, first = groundwork(run, inputs, cfg), cfg.prior.candidate
    some = inputs.tagged.select(ids)
    rest = (name for name in CANDIDATES if name != first)
    return {name: masks_of(run, some, what, name, cfg) for name in (first, *rest)}


def maps(run: Run, tagged: TaggedSet, fitted: Fitted, cfg: Config) -> MapSet:
    """Maps of other images whose tags are given."""
    return cam.maps(run, tagged, fitted.classifier, cfg.cam)


def pseudo(run: Run, inputs: Inputs, fitted: Fitted, cfg: Config) -> LabelSet:
    """Masks of other tagged images; nobody picked among theirs."""
    what = seen(run, inputs, maps(run, inputs.tagged, fitted, cfg), cfg)
    return masks_of(run, inputs.tagged, what, cfg.prior.candidate, cfg)


def steps(run: Run, inputs: Inputs, fitted: Fitted, cfg: Config) -> dict[str, Step]:
    """For the report: what each tap responds to, both together, shared out among the tags; the foreground's mask."""
    images, tagged = inputs.tagged.images(), inputs.tagged
    found: dict[str, Step] = {}
    for name in cfg.foreground.taps:
        found[name] = foreground.maps(run, images, inputs.pretrained, replace(cfg.foreground, taps=(name,)))
    what = seen(run, inputs, maps(run, tagged, fitted, cfg), cfg)
    found["foreground"] = what.ground
    found["shared out"] = prior_masks.shares(run, tagged, what.ground, what.maps, cfg.prior)
    found["foreground mask"] = masks_of(run, tagged, what, cfg.prior.candidate, replace(cfg, masks="binary"))
    return found


def findings(run: Run, images: TaggedSet, fitted: Fitted, cfg: Config) -> dict[str, MapSet]:
    """Where the classifier and where the segmenter see any class at all, in images whose tags are not known."""
    found = cam.findings(run, images, fitted.classifier, cfg.cam)
    return {"class maps": found, "segmenter": segmented.findings(run, images, fitted.model, cfg.predict)}


def predict(run: Run, model: Weights, images: TaggedSet, cfg: Config) -> LabelSet:
    """Masks of images by the segmenter alone."""
    return segmented.labels(run, images, model, cfg.predict)
