"""`mcof`: mine what a class's objects have in common, segment, take the masks as the next seeds (Wang et al., 2018)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from tagseg.artifacts import LabelSet, MapSet, SuperpixelSet, Weights
from tagseg.data.index import TaggedSet
from tagseg.localize import cam, classify, operating_point, regions
from tagseg.localize import saliency as salient
from tagseg.methods.protocol import Fitted, Inputs, Round, Step
from tagseg.refine import bayes, mine, region_seeds, superpixels
from tagseg.segment import predict as segmented
from tagseg.segment import train
from tagseg.store import Run
from tagseg.types import UsageError

TAKES_SALIENCY = True


@dataclass(frozen=True)
class Config:
    """One config for each stage, the same in every round; `saliency_rounds` says in which saliency is looked at.

    `region_init`, `pixel_init`: each round's networks start from the pretrained weights, or from the round before.
    `again`: how the segmenter looks at the training images for the next seeds (with `again.crf.iterations`, after a
    CRF). `rounds=0` trains the segmenter on the seeds. `segmenter.undo` is 1, unlike elsewhere: labels of later rounds
    miss little, and what each round sees too much the next one learns.
    """

    classifier: classify.Classify = field(default_factory=classify.Classify)
    cam: cam.Cam = field(default_factory=cam.Cam)
    point: operating_point.OperatingPoint = field(default_factory=operating_point.OperatingPoint)
    superpixels: superpixels.Superpixels = field(default_factory=superpixels.Superpixels)
    seeds: region_seeds.RegionSeeds = field(default_factory=region_seeds.RegionSeeds)
    rounds: int = 5
    regions: regions.Regions = field(default_factory=regions.Regions)
    region_init: Literal["imagenet", "previous"] = "imagenet"
    ask: mine.Ask = field(default_factory=mine.Ask)
    mine: mine.Mine = field(default_factory=mine.Mine)
    saliency: salient.Saliency = field(default_factory=salient.Saliency)
    saliency_rounds: tuple[int, ...] = (1,)
    posterior: bayes.Posterior = field(default_factory=bayes.Posterior)
    merge: bayes.Merge = field(default_factory=bayes.Merge)
    segmenter: train.Segment = field(default_factory=lambda: train.Segment(undo=1.0))
    pixel_init: Literal["imagenet", "previous"] = "imagenet"
    again: segmented.PredictTagged = field(default_factory=segmented.PredictTagged)
    vote: region_seeds.Vote = field(default_factory=region_seeds.Vote)
    predict: segmented.Predict = field(default_factory=segmented.Predict)
    post: segmented.Predict = field(default_factory=lambda: segmented.slower(256))

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"post": segmented.slower(96), "rounds": 2},
        "paper": {"post": segmented.slower(321)},
    }


def fit(run: Run, inputs: Inputs, cfg: Config) -> Fitted:
    """Learn to recognise the tags, see which superpixels that is sure of, and go on from these round by round."""
    tagged = inputs.tagged
    segments = superpixels.segments(run, tagged, cfg.superpixels)
    classifier = classify.train(run, tagged, inputs.pretrained, cfg.classifier)
    found = cam.maps(run, tagged, classifier, cfg.cam)
    point = operating_point.auto(run, tagged, classifier, found, cfg.point)
    seeds = region_seeds.from_maps(run, tagged, found, segments, cfg.seeds)  # Eq. 1-2
    labels, miners, rounds = repeated(run, inputs, seeds, segments, cfg)
    model = rounds[-1].segmenter if rounds else segmenter(run, inputs, seeds, None, cfg)
    return Fitted(model, classifier, found, point, None, labels, miners, rounds)


def repeated(
    run: Run, inputs: Inputs, seeds: LabelSet, segments: SuperpixelSet, cfg: Config
) -> tuple[LabelSet, tuple[Weights, ...], tuple[Round, ...]]:
    """Mine regions, supplement them by saliency (once), segment, vote: `cfg.rounds` times from `seeds` on.

    The labels that the last segmenter learned from, all miners, all rounds.
    """
    if cfg.rounds < 0:
        raise UsageError(f"rounds is {cfg.rounds}; expected 0 (the segmenter learns from the seeds) or more")
    labels, made = seeds, {"seeds": seeds}
    miners, rounds, model = list[Weights](), list[Round](), None
    for t in range(1, cfg.rounds + 1):
        before = tuple(miners[-1:]) if cfg.region_init == "previous" else ()
        miners.append(regions.train(run, inputs.tagged, labels, segments, inputs.pretrained, before, cfg.regions))
        made |= only_labels(mined(run, inputs, miners[-1], segments, t, cfg))  # Eq. 5-8
        labels = made.get("merged", made["mined"])
        model = segmenter(run, inputs, labels, model, cfg)  # Eq. 9
        rounds.append(Round(str(t), made, model))
        if t < cfg.rounds:
            made["segmenter"] = segmented.restricted(run, inputs.tagged, model, cfg.again)
            made["votes"] = region_seeds.voted(run, inputs.tagged, made["segmenter"], segments, cfg.vote)  # Eq. 10
            labels, made = made["votes"], {}
    return labels, tuple(miners), tuple(rounds)


def mined(
    run: Run, inputs: Inputs, miner: Weights, segments: SuperpixelSet, t: int, cfg: Config
) -> dict[str, Step]:
    """Labels of every region that the miner is sure of; in saliency's rounds also what these make of the saliency."""
    tagged = inputs.tagged
    likely = mine.probabilities(run, tagged.images(), miner, segments, cfg.ask)
    labels = mine.labels(run, tagged, likely, segments, cfg.mine)
    if t not in cfg.saliency_rounds or not tagged.has_background:
        return {"mined": labels}
    prior = saliency(run, inputs, segments, cfg)
    share = bayes.posterior(run, tagged, labels, prior, cfg.posterior)
    merged = bayes.merged(run, tagged, labels, likely, segments, share, cfg.merge)
    return {"mined": labels, "saliency": prior, "posterior": share, "merged": merged}


def saliency(run: Run, inputs: Inputs, segments: SuperpixelSet, cfg: Config) -> MapSet:
    """Maps from elsewhere where they were given, else our own."""
    images = inputs.tagged.images()
    if inputs.saliency is not None:
        return salient.imported(run, images, inputs.saliency, salient.Import())
    return salient.maps(run, images, (segments,) if cfg.saliency.kind == "rbd" else (), cfg.saliency)


def segmenter(run: Run, inputs: Inputs, labels: LabelSet, before: Weights | None, cfg: Config) -> Weights:
    """PixelNet on the labels of this round."""
    if before is not None and cfg.pixel_init == "previous":
        return train.onward(run, inputs.tagged, labels, before, cfg.segmenter)
    return train.segmenter(run, inputs.tagged, labels, inputs.pretrained, cfg.segmenter)


def maps(run: Run, tagged: TaggedSet, fitted: Fitted, cfg: Config) -> MapSet:
    """Maps of other images whose tags are given."""
    return cam.maps(run, tagged, fitted.classifier, cfg.cam)


def pseudo(run: Run, inputs: Inputs, fitted: Fitted, cfg: Config) -> LabelSet:
    """Labels of other tagged images, as the last round's miner (in saliency's rounds with the posterior) gives them."""
    segments = superpixels.segments(run, inputs.tagged, cfg.superpixels)
    if not fitted.before:
        return region_seeds.from_maps(run, inputs.tagged, maps(run, inputs.tagged, fitted, cfg), segments, cfg.seeds)
    made = only_labels(mined(run, inputs, fitted.before[-1], segments, cfg.rounds, within_reach(inputs, cfg)))
    return made.get("merged", made["mined"])


def steps(run: Run, inputs: Inputs, fitted: Fitted, cfg: Config) -> dict[str, Step]:
    """For the report: seeds, then the first, second and last round of other images whose tags are given."""
    tagged = inputs.tagged
    segments = superpixels.segments(run, tagged, cfg.superpixels)
    seeds = region_seeds.from_maps(run, tagged, maps(run, tagged, fitted, cfg), segments, cfg.seeds)
    found: dict[str, Step] = {"seeds": seeds}
    rounds = list(zip(range(1, cfg.rounds + 1), fitted.before, fitted.rounds, strict=True))
    for t, miner, one in rounds[:2] + rounds[2:][-1:]:
        made = mined(run, inputs, miner, segments, t, within_reach(inputs, cfg))
        made["segmenter"] = segmented.restricted(run, tagged, one.segmenter, cfg.again)
        found |= {f"{name} {t}": step for name, step in made.items()}
    return found


def predict(run: Run, model: Weights, images: TaggedSet, cfg: Config) -> LabelSet:
    """Masks of images by the last round's segmenter alone."""
    return segmented.labels(run, images, model, cfg.predict)


def within_reach(inputs: Inputs, cfg: Config) -> Config:
    """The config without saliency where maps from elsewhere do not cover these images: they are the training's."""
    given = inputs.saliency
    missing = given is not None and not set(inputs.tagged.ids) <= set(given.ids)
    return replace(cfg, saliency_rounds=()) if missing else cfg


def only_labels(made: dict[str, Step]) -> dict[str, LabelSet]:
    """The label sets among the steps of a round."""
    return {name: step for name, step in made.items() if isinstance(step, LabelSet)}
