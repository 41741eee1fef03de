"""How the cut is chosen: which pairs are looked at, what is painted, and that it is said how. Rules: tests/ops."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tagseg.artifacts import Scores
from tagseg.data.images import mask_reads, reset_mask_reads
from tagseg.inference import resized
from tagseg.localize import classify
from tagseg.localize.operating_point import BINS, CUTS, OperatingPoint, Painted, auto, erased_evidence, histogram, pairs
from tagseg.ops.geometry import enlarge
from tagseg.store import Run, Work
from tiny import Tiny


def settings(trained: Tiny, **changes: Any) -> OperatingPoint:
    cfg: OperatingPoint = replace(trained.prepared.cfg.point, **changes)
    return cfg


def chosen(trained: Tiny, folder: Path, workers: int = 1, **changes: Any) -> Scores:
    return auto(Run(folder, workers=workers), trained.prepared.inputs.tagged, trained.fitted.classifier,
                trained.fitted.maps, settings(trained, **changes))


def test_each_pair_is_an_image_with_the_tag_and_one_without(trained: Tiny) -> None:
    tagged = trained.prepared.inputs.tagged
    found, left_out = pairs(tagged, settings(trained))
    assert left_out == []
    for pair in found:
        assert tagged.tags_of(pair.id)[pair.label]
        assert not tagged.tags_of(pair.negative)[pair.label]
    assert len({(p.id, p.label) for p in found}) == len(found)


def test_pairs_are_spread_evenly_over_the_classes(trained: Tiny) -> None:
    tagged = trained.prepared.inputs.tagged
    found, _ = pairs(tagged, settings(trained, pairs=2 * len(tagged.classes)))
    each = Counter(p.label for p in found)
    images = tagged.tags.sum(0).tolist()
    assert each == {c: min(2, n) for c, n in enumerate(images) if n}
    more, _ = pairs(tagged, settings(trained, pairs=4 * len(tagged.classes)))
    assert {p[:2] for p in found} <= {p[:2] for p in more}


def test_a_class_that_is_nearly_everywhere_has_no_pairs(trained: Tiny) -> None:
    tagged = trained.prepared.inputs.tagged
    full = tagged.tags.copy()
    full[:, 1] = np.arange(len(tagged)) != 3
    found, left_out = pairs(replace(tagged, tags=full), settings(trained, few=2))
    assert left_out == [1]
    assert 1 not in {p.label for p in found}
    everywhere = replace(tagged, tags=np.ones_like(tagged.tags))
    assert pairs(everywhere, settings(trained, few=1)) == ([], list(range(len(tagged.classes))))


def test_what_reaches_the_cut_is_painted_over_with_the_negative(trained: Tiny) -> None:
    tagged, maps = trained.prepared.inputs.tagged, trained.fitted.maps
    found, _ = pairs(tagged, settings(trained))
    painted = Painted(tagged.source, maps, tuple(found))
    assert len(painted.ids()) == len(found) * (2 + len(CUTS))
    pair = found[4]
    original, negative = (tagged.source.read(i) for i in (pair.id, pair.negative))
    assert np.array_equal(painted.read("4 original"), original)
    assert np.array_equal(painted.read("4 negative"), negative)
    map_of = maps.get(pair.id)
    scores = enlarge(map_of.scores[map_of.classes == pair.label + 1], map_of.size)[0]
    covered = []
    for cut in CUTS:
        image = painted.read(f"4 {cut}")
        assert np.array_equal(image[:, scores >= cut], negative[:, scores >= cut])
        assert np.array_equal(image[:, scores < cut], original[:, scores < cut])
        assert image.shape[1:] == painted.size(f"4 {cut}")
        covered.append((scores >= cut).mean())
    assert covered == sorted(covered, reverse=True)
    assert len({painted.digest(i) for i in painted.ids()}) == len(painted.ids())


def test_the_evidence_by_plain_arithmetic(trained: Tiny, tmp_path: Path) -> None:
    tagged = trained.prepared.inputs.tagged
    few = pairs(tagged, settings(trained))[0][:3]
    found = erased_evidence(Work(Run(tmp_path, workers=1), "toy", tmp_path), tagged, trained.fitted.classifier,
                            trained.fitted.maps, few, settings(trained))
    model = classify.load(trained.fitted.classifier, tagged.classes)

    def logit(image: np.ndarray, label: int) -> float:
        with torch.no_grad():
            maps = model(model.backbone.preprocess(torch.from_numpy(resized(image, (48, 48)))[None].float() / 255))
            return float(maps.mean((2, 3))[0, label] + model.head.bias[label])

    rows = []
    for pair in few:
        image, other = (tagged.source.read(i) for i in (pair.id, pair.negative))
        one = trained.fitted.maps.get(pair.id)
        scores = enlarge(one.scores[one.classes == pair.label + 1], one.size)[0]
        views = [image, other, *(np.where(scores >= cut, other, image) for cut in CUTS)]
        rows.append([logit(view, pair.label) for view in views])
    mean = np.mean(rows, axis=0)
    assert found == pytest.approx((mean[2:] - mean[1]) / max(mean[0] - mean[1], 1e-6), rel=1e-3, abs=1e-3)


def test_the_record_says_how_it_was_chosen(trained: Tiny) -> None:
    found = trained.fitted.point.read()
    assert (found["origin"], found["rule"]) == ("auto", "erase")
    assert CUTS[0] <= found["threshold"] <= CUTS[-1]
    assert found["curve"]["thresholds"] == list(CUTS)
    assert len(found["curve"]["evidence_left"]) == len(CUTS)
    count = len(pairs(trained.prepared.inputs.tagged, settings(trained))[0])
    assert f"on {count} pairs" in found["note"]
    assert "no pixel truth" in found["note"]


def test_more_evidence_may_remain_at_a_higher_cut(trained: Tiny, tmp_path: Path) -> None:
    found = [chosen(trained, tmp_path, level=level).read()["threshold"] for level in (0.1, 0.4, 0.9)]
    assert found == sorted(found)


def test_a_class_that_is_left_out_is_named(trained: Tiny, tmp_path: Path) -> None:
    tagged = trained.prepared.inputs.tagged
    absent = (~tagged.tags).sum(0)
    if absent.min() == absent.max():
        pytest.skip("all classes are equally frequent in this tiny set")
    name = tagged.classes[int(absent.argmin())]
    note = chosen(trained, tmp_path, few=int(absent.min()) + 1).read()["note"]
    assert name in note.rsplit("Not counted", 1)[1]


@pytest.mark.parametrize(("changes", "says"), [({"few": 1000}, "no image without its tag"), ({"rule": "otsu"}, "Otsu")])
def test_without_negatives_otsu_steps_in_and_says_so(trained: Tiny, tmp_path: Path, changes: dict[str, Any],
                                                     says: str) -> None:
    found = chosen(trained, tmp_path, **changes).read()
    assert found["rule"] == "otsu"
    assert says in found["note"]
    assert ("no image without" in found["note"]) == ("few" in changes)
    assert 0 < found["threshold"] < 1


def test_each_map_counts_as_one_in_the_histogram(trained: Tiny) -> None:
    total = histogram(trained.fitted.maps)
    assert total.shape == (BINS,)
    assert total.sum() == pytest.approx(sum(len(m.classes) for m in trained.fitted.maps))
    values = np.concatenate([m.scores.ravel() for m in trained.fitted.maps])  # all maps have one size here
    assert total[:50].sum() / total.sum() == pytest.approx((values < 0.5).mean(), abs=1e-6)


def test_any_number_of_workers_chooses_the_same_and_no_mask_is_opened(trained: Tiny, tmp_path: Path) -> None:
    reset_mask_reads()
    made = [chosen(trained, tmp_path / str(workers), workers) for workers in (1, 4)]
    assert mask_reads() == ()
    assert made[0].record["outputs"] == made[1].record["outputs"] == trained.fitted.point.record["outputs"]
