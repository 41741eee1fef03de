"""The four numbers of a run, never mixed, and its operating points. Nothing here flows back into what was trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from tagseg.artifacts import LabelSet, MapSet
from tagseg.data.index import MaskedSet, TaggedSet
from tagseg.evaluate import measure
from tagseg.evaluate.thresholds import flat_within
from tagseg.methods.protocol import Fitted
from tagseg.refine.threshold import Fixed, fixed
from tagseg.runs.findings import screened
from tagseg.runs.rounds import by_round
from tagseg.runs.setup import Prepared
from tagseg.store import Run

PSEUDO_CURVE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
PSEUDO_IMAGES = 80


@dataclass
class Measured:
    """What the report shows: `scores` as in scores.json, curves, whole documents, and why entries are missing.

    `rounds` of a repeated method, as `by_round` gives them; `findings` as `screened` does.
    """

    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    per_image: list[tuple[str, float]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    findings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Predicted:
    """Labels of the images without tags, plain and with scales, flips and CRF; `maps` of them with their tags given."""

    images: TaggedSet
    val: LabelSet
    post: LabelSet | None
    maps: MapSet | None


def measured(run: Run, prepared: Prepared, fitted: Fitted, predicted: Predicted) -> Measured:
    """All entries for which there is truth."""
    out, auto = Measured(), float(fitted.point.read()["threshold"])
    _train_numbers(run, prepared, fitted, auto, out)
    truth = prepared.val.truth if prepared.val else None
    if prepared.val is None:
        out.missing |= dict.fromkeys(("val", "val_post"), "no --val split was named")
    elif truth is None:
        out.missing |= dict.fromkeys(("val", "val_post"), _why(prepared, f"the images of {prepared.val.images.name!r}"))
    else:
        _val_numbers(run, predicted, truth, auto, out)
    out.rounds = by_round(run, prepared, fitted)
    out.findings = screened(run, prepared, fitted, out.detail)
    return out


def _why(prepared: Prepared, images: str) -> str:
    """Why there is no truth: there never was any, or it cannot be used."""
    return f"{images} have no masks" + (" that can serve as truth, see bad_files.csv" if prepared.bad_masks else "")


def _train_numbers(run: Run, prepared: Prepared, fitted: Fitted, auto: float, out: Measured) -> None:
    """`seed`: maps on training images; `pseudo`: refined labels on them, tags known."""
    truth = prepared.truth
    if truth is None:
        out.missing |= dict.fromkeys(("seed", "pseudo"), _why(prepared, "the training images"))
        return
    out.curves["seed"], out.scores["seed"] = curve(run, fitted.maps, truth, auto)
    document = measure.labels(run, fitted.labels, truth, measure.MeasureLabels()).read()
    out.detail["pseudo"] = {n: v for n, v in document.items() if n != "per_image"}
    out.per_image = list(measure.worst_first(document))
    if fitted.refined is None:  # these labels do not hang on one cut
        out.scores["pseudo"] = {"auto": measure.entry(document, document["images"])}
    else:
        cut = float(fitted.refined.point.read()["threshold"])
        out.scores["pseudo"] = {"auto": measure.entry(document, document["images"], cut)}
        _pseudo_points(run, prepared, fitted, fitted.refined.maps, truth, cut, out)
    if prepared.request.k_masks:
        _k_point(run, prepared, fitted, truth, out)


def _pseudo_points(
    run: Run, prepared: Prepared, fitted: Fitted, found: MapSet, truth: MaskedSet, cut: float, out: Measured
) -> None:
    """The curve of labels over their cut, and the best of it."""
    out.curves["pseudo"] = _pseudo_curve(run, prepared, found, truth, cut)
    best = out.curves["pseudo"]["oracle"]
    document = _refined(run, prepared, found, truth, best)
    oracle = measure.entry(document, document["images"], best)
    if oracle["miou"] < out.scores["pseudo"]["auto"]["miou"]:  # the curve is drawn on a part of the images
        oracle = out.scores["pseudo"]["auto"]
        out.curves["pseudo"]["oracle"] = cut
    out.scores["pseudo"]["oracle"] = oracle


def _k_point(run: Run, prepared: Prepared, fitted: Fitted, truth: MaskedSet, out: Measured) -> None:
    """The threshold that is best on k masks, scored on all the others."""
    few = truth.limit(prepared.request.k_masks)
    rest = truth.select([i for i in truth.ids if i not in set(few.ids)])
    if not len(rest):
        return
    chosen = measure.maps(run, fitted.maps, few, measure.MeasureMaps()).read()["best"]
    document = measure.maps(run, fitted.maps, rest, measure.MeasureMaps(also=(chosen,))).read()
    out.scores["seed"]["k"] = measure.at(document, chosen)
    if fitted.refined is None:
        return
    if fitted.refined.maps.key != fitted.maps.key:
        chosen = measure.maps(run, fitted.refined.maps, few, measure.MeasureMaps()).read()["best"]
    document = _refined(run, prepared, fitted.refined.maps, rest, chosen)
    out.scores["pseudo"]["k"] = measure.entry(document, document["images"], chosen)


def curve(run: Run, found: MapSet, truth: MaskedSet, auto: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """The threshold curve of maps, and the entries at the auto and at the best threshold."""
    document = measure.maps(run, found, truth, measure.MeasureMaps(also=(auto,))).read()
    shown = {n: document[n] for n in ("thresholds", "miou", "flat", "images", "average_precision")}
    entries = {"auto": measure.at(document, auto), "oracle": measure.at(document, document["best"])}
    return {**shown, "auto": auto, "oracle": document["best"]}, entries


def _pseudo_curve(run: Run, prepared: Prepared, found: MapSet, truth: MaskedSet, auto: float) -> dict[str, Any]:
    """mIoU of refined labels at a few thresholds, on a part of the images: each point is a CRF over all of them."""
    part = truth.limit(PSEUDO_IMAGES)
    thresholds = sorted({*PSEUDO_CURVE, auto})
    miou = [_refined(run, prepared, found, part, t)["miou"] for t in thresholds]
    best = max(range(len(miou)), key=miou.__getitem__)
    return {
        "thresholds": thresholds,
        "miou": miou,
        "auto": auto,
        "oracle": thresholds[best],
        "images": len(part),
        "flat": list(flat_within(thresholds, miou)),
        "note": f"refined labels at {len(thresholds)} thresholds, on {len(part)} of {len(truth)} images",
    }


def _refined(run: Run, prepared: Prepared, found: MapSet, truth: MaskedSet, threshold: float) -> dict[str, Any]:
    point = fixed(run, Fixed(threshold, "oracle curve, for the report only"))
    labels = prepared.method.labels(run, truth.without_masks(), found, point, prepared.cfg)
    return measure.labels(run, labels, truth, measure.MeasureLabels()).read()


def _val_numbers(run: Run, predicted: Predicted, truth: MaskedSet, auto: float, out: Measured) -> None:
    """`val` and `val_post`: the segmenter on images without tags. `seed_val`: maps with given tags, not a result."""
    for name, labels in (("val", predicted.val), ("val_post", predicted.post)):
        if labels is None:
            continue
        document = measure.labels(run, labels, truth, measure.MeasureLabels()).read()
        out.detail[name] = {n: v for n, v in document.items() if n != "per_image"}
        out.scores[name] = {"auto": measure.entry(document, document["images"])}
        if name == "val":
            out.per_image = list(measure.worst_first(document))
    if predicted.maps is not None:
        out.curves["seed_val"], out.scores["seed_val"] = curve(run, predicted.maps, truth, auto)


def predict_all(run: Run, prepared: Prepared, fitted: Fitted) -> Predicted:
    """Predict val, or where there is none the training images; tags are taken away first."""
    opened = prepared.val or prepared.opened
    images = opened.images.without_tags()
    cfg, method = prepared.cfg, prepared.method
    val = method.predict(run, fitted.model, images, cfg)
    post = (
        method.predict(run, fitted.model, images, replace(cfg, predict=cfg.post))
        if prepared.val and opened.truth
        else None
    )
    maps = method.maps(run, opened.truth.without_masks(), fitted, cfg) if prepared.val and opened.truth else None
    return Predicted(images, val, post, maps)
