"""A repeated method round by round: its labels of the training images, and what each round's segmenter gives."""

from __future__ import annotations

from typing import Any

from tagseg.artifacts import LabelSet
from tagseg.data.index import MaskedSet
from tagseg.evaluate import measure
from tagseg.methods.protocol import Fitted
from tagseg.runs.setup import Prepared
from tagseg.store import Run


def by_round(run: Run, prepared: Prepared, fitted: Fitted) -> list[dict[str, Any]]:
    """A row for each set of labels and each segmenter, in the order they were made; empty for other methods.

    `round`, `what`; `unlabelled` share of pixels and `changed` share against the labels of the same name one round
    before; with truth `miou`, `precision`, `recall`. The last round's segmenter is the entry `val`: it is not predicted
    twice.
    """
    rows: list[dict[str, Any]] = []
    before: dict[str, LabelSet] = {}
    for one in fitted.rounds:
        for name, labels in one.labels.items():
            known = measure.change(run, before.get(name, labels), labels, measure.Change()).read()
            changed = known["changed"] if name in before else None
            rows.append({"round": one.name, "what": name, "images": "train", "unlabelled": known["unlabelled"],
                         "changed": changed, **_scores(run, labels, prepared.truth)})  # fmt: skip
        before = one.labels
        if prepared.val and prepared.val.truth:
            images = prepared.val.images.without_tags()
            labels = prepared.method.predict(run, one.segmenter, images, prepared.cfg)
            rows.append({"round": one.name, "what": "segmenter", "images": "val", "unlabelled": 0.0, "changed": None,
                         **_scores(run, labels, prepared.val.truth)})  # fmt: skip
    return rows


def _scores(run: Run, labels: LabelSet, truth: MaskedSet | None) -> dict[str, float]:
    if truth is None:
        return {}
    document = measure.labels(run, labels, truth, measure.MeasureLabels()).read()
    return {n: document[n] for n in ("miou", "precision", "recall")}
