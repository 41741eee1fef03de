"""`transfernet`: outlines learned from masks of other classes, found by attention to one class (Hong et al., 2016)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from tagseg.artifacts import LabelSet, MapSet, Weights
from tagseg.data.index import TaggedSet
from tagseg.data.other_masks import Joined
from tagseg.localize import classify, operating_point, recognise
from tagseg.methods.protocol import Apart, Fitted, Inputs, Step
from tagseg.nets.attention_decoder import check_up
from tagseg.nets.backbones import build
from tagseg.refine import class_crf, threshold
from tagseg.refine.crf import Crf
from tagseg.segment import predict_decoder, train_decoder
from tagseg.store import Run
from tagseg.types import DataError, UsageError

NEEDS_AUX = ADAPTS = True
CELL = 16  # sides of training crops are multiples of it
HALF = 0.5  # from where the decoder's foreground counts


@dataclass(frozen=True)
class Sourced(Crf):
    """The CRF of the authors' inference script, in every budget."""

    sxy_bilateral: float = 20.0
    srgb: float = 3.0
    compat_bilateral: float = 5.0

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {}


@dataclass(frozen=True)
class Predict:
    """How the tagger and the decoder look at images without tags, and what draws the decoder's maps to the edges."""

    recognise: recognise.Recognise = field(default_factory=recognise.Recognise)
    maps: predict_decoder.Drawn = field(default_factory=predict_decoder.Drawn)
    crf: Crf = field(default_factory=lambda: Sourced(iterations=0))


@dataclass(frozen=True)
class Config:
    """One config for each stage. `encoder`: what is looked through, frozen in all stages: the network as it came
    ("pretrained"), or after it has learned the tags of both sets ("tags", by `classifier`).

    `tagger`: the classifier of the target's classes, by which prediction knows what to draw. `cut`: where the decoder's
    foreground begins: where erasing it takes a tag's evidence away (`point`; "measured"), as a decoder is seldom as
    sure of things unlike those it learned from; at one "half"; or, "usual", measured after `tagseg adapt` alone.
    """

    encoder: Literal["pretrained", "tags"] = "tags"
    start: train_decoder.Encoder = field(default_factory=train_decoder.Encoder)
    classifier: classify.Classify = field(default_factory=classify.Classify)
    attend: train_decoder.Attend = field(default_factory=train_decoder.Attend)
    draw: train_decoder.Draw = field(default_factory=train_decoder.Draw)
    tagger: classify.Classify = field(default_factory=classify.Classify)
    maps: predict_decoder.Looked = field(default_factory=predict_decoder.Looked)
    crf: Crf = field(default_factory=Sourced)
    predict: Predict = field(default_factory=Predict)
    post: Predict = field(default_factory=lambda: Predict(crf=Sourced()))
    cut: Literal["measured", "half", "usual"] = "measured"
    point: operating_point.OperatingPoint = field(default_factory=operating_point.OperatingPoint)

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"encoder": "pretrained", "cut": "usual"}}


def fit(run: Run, inputs: Inputs, cfg: Config) -> Fitted:
    """Learn where each class lies from tags, learn what an outline is from other classes' masks, put both together."""
    target, aux = inputs.tagged, inputs.aux
    check(inputs, cfg)
    if not target.has_background:
        raise DataError(f"{target.name}: has no background, expected a set with one: what the decoder draws is an "
                        "object before a background")
    if inputs.trained is not None:  # an earlier run's decoder draws other classes: attention alone learns
        return finished(run, inputs, train_decoder.adapted(run, target, inputs.trained, cfg.attend), cfg)
    if aux is None:
        raise UsageError("transfernet: found no --aux, expected the folder of images with masks of other classes; "
                         "without any mask use cam, esol, mcof, priors or dfs")
    if cfg.encoder == "pretrained":
        encoder = train_decoder.pretrained(run, inputs.pretrained, cfg.start)
    else:
        encoder = classify.train(run, Joined(target, aux.tagged).tagged, inputs.pretrained, cfg.classifier)
    attending = train_decoder.attention(run, target, aux.tagged, encoder, cfg.attend)  # Eq. 1-9
    return finished(run, inputs, train_decoder.joint(run, target, aux, attending, cfg.draw), cfg)  # Eq. 10-13


def as_trained(cfg: Config, model: Weights) -> Config:
    """The config with the network of the run that is adapted, which a budget or a file may describe otherwise."""
    shape = type(cfg.attend.shape)(**model.meta["shape"])
    return replace(cfg, attend=replace(cfg.attend, shape=shape, scale=float(model.tensors()["scale"])))


def check(inputs: Inputs, cfg: Config) -> None:
    """What cannot be done, before anything learns: `UsageError` for settings, `DataError` for images of many shapes."""
    shown = {"maps": cfg.maps, "predict.maps": cfg.predict.maps, "post.maps": cfg.post.maps}
    shape, scale = cfg.attend.shape, cfg.attend.scale
    least: list[tuple[str, float, float, bool]] = [  # name, value, its least, whether that itself will do
        ("attend.shape.width", shape.width, 1, True),
        ("attend.whole_rate", cfg.attend.whole_rate, 0, False),
        ("draw.whole_rate", cfg.draw.whole_rate, 0, False),
        ("attend.scale", 1.0 if isinstance(scale, str) else scale, 0, False),
        *((f"draw.{name}", getattr(cfg.draw, name), 0, True) for name in ("tags", "masks")),
        *((f"{name}.background", one.background, 0, False) for name, one in shown.items()),
        *((f"{name}.grid", one.grid, 1, True) for name, one in shown.items()),
        *((f"{name}.size", one.size, 1, True) for name, one in shown.items()),
    ]
    for name, value, low, included in least:
        if not (value >= low if included else value > low):
            raise UsageError(f"{name}: found {value}, expected {low} or more" if included
                             else f"{name}: found {value}, expected more than {low}")
    for name, one in shown.items():
        if not isinstance(one.tag, str) and not 0 <= one.tag <= 1:
            raise UsageError(f"{name}.tag: found {one.tag}, expected a score from 0 to 1, or measured")
    if shape.up == "switch":
        check_up(build(cfg.start.backbone), shape.up)
    if shape.attention == "fc":
        check_one_grid(inputs, cfg)


def check_one_grid(inputs: Inputs, cfg: Config) -> None:
    """Raise where attention "fc" would learn on one grid and be shown another."""
    parts: dict[str, train_decoder.Attend | train_decoder.Draw] = {"attend": cfg.attend}
    if inputs.trained is None:  # else the decoder learns no more
        parts["draw"] = cfg.draw
    sizes = {**{f"{name}.augment.size": part.augment.size for name, part in parts.items()},
             "maps.size": cfg.maps.size, "predict.maps.size": cfg.predict.maps.size,
             "post.maps.size": cfg.post.maps.size}  # fmt: skip
    found = ", ".join(f"{name}={size}" for name, size in sizes.items())
    if len(set(sizes.values())) > 1:
        raise UsageError(f"attend.shape.attention=fc: found {found}; expected one size, as this attention sees one "
                         "grid; set them alike, or choose attention=conv")
    if cfg.maps.size % CELL:
        raise UsageError(f"attend.shape.attention=fc: found {found}; expected a multiple of {CELL}, as crops have such "
                         "sides and this attention sees one grid")
    aux = inputs.aux
    sides = [inputs.tagged] if aux is None else [inputs.tagged, aux.tagged]
    train_decoder.one_square({crop for side in sides for part in parts.values()
                              for crop in train_decoder.crops_of(side, part)})  # fmt: skip


def finished(run: Run, inputs: Inputs, drawing: Weights, cfg: Config) -> Fitted:
    """The network with a tagger, and what it draws of the training images."""
    target = inputs.tagged
    tagger = classify.train(run, target, inputs.pretrained, cfg.tagger)
    seen = recognise.taught(run, target, tagger, cfg.predict.recognise)
    model = predict_decoder.finished(run, target, drawing, tagger, seen, predict_decoder.Finish())
    found, why = predict_decoder.maps(run, target, model, cfg.maps), "the decoder's foreground is a probability"
    if cfg.cut == "measured" or (cfg.cut == "usual" and inputs.trained is not None):
        point = operating_point.auto(run, target, tagger, found, cfg.point)
        model = predict_decoder.weighed(run, model, point, predict_decoder.Weighed())
        found = predict_decoder.maps(run, target, model, cfg.maps)
        why = "what the decoder drew where erasing takes evidence away is at one half"
    half = threshold.fixed(run, threshold.Fixed(HALF, why))
    return Fitted(model, tagger, found, half, None, class_crf.labels(run, target, found, cfg.crf))


def maps(run: Run, tagged: TaggedSet, fitted: Fitted, cfg: Config) -> MapSet:
    """What the decoder draws of the tags of other images."""
    return predict_decoder.maps(run, tagged, fitted.model, cfg.maps)


def pseudo(run: Run, inputs: Inputs, fitted: Fitted, cfg: Config) -> LabelSet:
    """Labels of other images whose tags are given."""
    return class_crf.labels(run, inputs.tagged, maps(run, inputs.tagged, fitted, cfg), cfg.crf)


def steps(run: Run, inputs: Inputs, fitted: Fitted, cfg: Config) -> dict[str, Step]:
    """For the report, class by class: attention to each tag, what is like what it looks at, what the decoder draws."""
    attention, dense = replace(cfg.maps, part="attention"), replace(cfg.maps, part="dense")
    return {"attention": Apart(predict_decoder.maps(run, inputs.tagged, fitted.model, attention)),
            "densified": Apart(predict_decoder.maps(run, inputs.tagged, fitted.model, dense)),
            "decoder": Apart(maps(run, inputs.tagged, fitted, cfg), HALF)}  # fmt: skip


def predict(run: Run, model: Weights, images: TaggedSet, cfg: Config) -> LabelSet:
    """Masks of images by tagger, attention and decoder alone."""
    seen = recognise.scores(run, images, model, cfg.predict.recognise)  # Sec. 4
    found = predict_decoder.predicted(run, images, model, seen, cfg.predict.maps)
    return class_crf.labels(run, images, found, cfg.predict.crf)
