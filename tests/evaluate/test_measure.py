"""The evaluation stages agree with each other and with counting by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tagseg.artifacts import LabelSet, write_labels
from tagseg.data.index import MaskedSet
from tagseg.evaluate import measure
from tagseg.evaluate.measure import MeasureLabels, MeasureMaps
from tagseg.refine.threshold import Fixed, Threshold, fixed
from tagseg.refine.threshold import labels as cut
from tagseg.store import Run, Work, stage
from tagseg.types import Labels
from tiny import Tiny


def truth_of(trained: Tiny) -> MaskedSet:
    assert trained.prepared.truth is not None
    return trained.prepared.truth


def test_a_point_of_the_curve_is_what_labels_at_that_threshold_score(trained: Tiny, tmp_path: Path) -> None:
    run, truth = Run(tmp_path), truth_of(trained)
    curve = measure.maps(run, trained.fitted.maps, truth, MeasureMaps(thresholds=(0.2, 0.5), also=(0.35,))).read()
    assert curve["thresholds"] == [0.2, 0.35, 0.5]
    for threshold in curve["thresholds"]:
        labels = cut(run, truth.without_masks(), trained.fitted.maps, fixed(run, Fixed(threshold)), Threshold())
        plain = measure.labels(run, labels, truth, MeasureLabels()).read()
        point = measure.at(curve, threshold)
        assert point["threshold"] == threshold
        assert point["images"] == plain["images"] == 24
        for name in ("miou", "precision", "recall"):
            assert point[name] == pytest.approx(plain[name], abs=1e-9)
        assert point["per_class"] == pytest.approx(plain["per_class"])
    best = max(curve["miou"])
    assert curve["miou"][curve["thresholds"].index(curve["best"])] == best
    assert curve["flat"][0] <= curve["best"] <= curve["flat"][1]


@stage(LabelSet, version=1)
def copied(work: Work, truth: MaskedSet, cfg: MeasureLabels) -> None:
    """The truth as labels, with the upper half of the first image called background; the last image is left out."""
    def one(i: str) -> Labels:
        pixels = truth.mask(i).copy()
        pixels[: len(pixels) // 2] = 0 if i == truth.ids[0] else pixels[: len(pixels) // 2]
        return Labels(i, pixels)

    write_labels(work, truth.ids[:-1], lambda ids: map(one, ids), {})


def test_labels_against_truth_by_counting(trained: Tiny, tmp_path: Path) -> None:
    run, truth = Run(tmp_path), truth_of(trained).limit(5)
    found = measure.labels(run, copied(run, truth, MeasureLabels()), truth, MeasureLabels()).read()
    assert found["images"] == 4  # only images with both
    hit, union = np.zeros((2, len(truth.classes) + 1))
    for i in truth.ids[:-1]:
        t, p = truth.mask(i), copied(run, truth, MeasureLabels()).get(i).pixels
        for c in range(len(hit)):
            hit[c] += np.sum((t == c) & (p == c))
            union[c] += np.sum((t == c) | (p == c))
    names = ["background", *truth.classes]
    expected = {n: pytest.approx(h / u) if u else None for n, h, u in zip(names, hit, union, strict=True)}
    assert found["per_class"] == expected
    assert found["miou"] == pytest.approx((hit[union > 0] / union[union > 0]).mean())
    ranked = list(measure.worst_first(found))
    assert ranked[0][0] == truth.ids[0]
    assert [m for _, m in ranked] == sorted(m for _, m in ranked)
    assert ranked[-1][1] == 1.0


def test_an_entry_holds_what_scores_json_promises(trained: Tiny) -> None:
    document = {"miou": 0.5, "precision": 0.6, "recall": 0.7, "per_class": {"a": 0.5}, "boundary_iou": 0.2,
                "confusion": []}
    assert measure.entry(document, 3, 0.4) == {"miou": 0.5, "precision": 0.6, "recall": 0.7, "per_class": {"a": 0.5},
                                               "boundary_iou": 0.2, "images": 3, "threshold": 0.4}
    assert "threshold" not in measure.entry(document, 3)


def test_perfect_maps_score_one_everywhere(trained: Tiny, tmp_path: Path) -> None:
    run, truth = Run(tmp_path), truth_of(trained).limit(4)

    from tagseg.artifacts import MapSet, write_maps
    from tagseg.types import ClassMaps

    @stage(MapSet, version=1)
    def ideal(work: Work, truth: MaskedSet, cfg: MeasureLabels) -> None:
        def one(i: str) -> ClassMaps:
            mask = truth.mask(i)
            classes = np.setdiff1d(np.unique(mask), [0, 255]).astype(np.int64)
            return ClassMaps(i, classes, (mask == classes[:, None, None]).astype(np.float32), mask.shape)

        write_maps(work, truth.ids, lambda ids: map(one, ids), {})

    found = measure.maps(run, ideal(run, truth, MeasureLabels()), truth, MeasureMaps()).read()
    assert found["miou"] == [1.0] * 19
    assert found["flat"] == [0.05, 0.95]
    assert {v for v in found["average_precision"].values() if v is not None} == {1.0}
