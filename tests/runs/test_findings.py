"""Sets with empty images are screened: each source of maps gets its scores, and the report shows them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import tiny
from tagseg.runs.findings import screened
from tiny import Tiny

LESIONS = "scenes:lesions?train=24&val=12&size=48"
SOURCES = {"cam": ["class maps", "segmenter"], "dfs": ["stack"]}


@pytest.fixture(scope="module", params=sorted(SOURCES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny.make(tmp_path_factory.mktemp(request.param) / "run", request.param, LESIONS)


def test_each_source_is_scored_and_shown(made: Tiny) -> None:
    found = made.document["findings"]
    assert list(found["maps"]) == SOURCES[made.prepared.request.method]
    for scores in found["maps"].values():
        assert scores["images"] == 12
        assert 0 < scores["with_object"] < 12
        assert all(0 <= scores[n] <= 1 for n in ("image_auc", "pixel_auc", "pixel_ap", "froc_mean", "best_dice"))
    assert set(found["labels"]) == {"val", "val_post"}
    counts = np.array(made.document["detail"]["val"]["confusion"])
    hit = counts[1:, 1:-1].sum()
    assert found["labels"]["val"]["dice"] == pytest.approx(2 * hit / (counts[1:].sum() + counts[:, 1:-1].sum()))
    written = json.loads((made.out / "scores.json").read_text())["findings"]
    assert not any(n.endswith("_curve") for scores in written["maps"].values() for n in scores)
    page = (made.out / "report.html").read_text()
    assert "<h2>Findings</h2>" in page
    assert page.count("finding-froc") >= 1


def test_maps_are_comparable_between_images_and_tell_nothing_of_tags(made: Tiny) -> None:
    val = made.prepared.val
    assert val is not None
    assert val.truth is not None
    tagged = val.truth.without_masks()
    method, cfg, run = made.prepared.method, made.prepared.cfg, made.again()
    for name, bare in method.findings(run, tagged.without_tags(), made.fitted, cfg).items():
        peaks = [bare.get(i).scores.max() for i in bare.ids]
        assert max(peaks) < 1, name  # nothing is divided by its own maximum
        assert len(set(peaks)) > 1
        known = method.findings(run, tagged, made.fitted, cfg)[name]
        assert all(np.array_equal(bare.get(i).scores, known.get(i).scores) for i in bare.ids)
        image = bare.get(bare.ids[0]).image
        assert image is not None
        assert image.shape == (1,)


def test_sets_without_an_empty_image_are_not_screened(made: Tiny) -> None:
    prepared, detail = made.prepared, made.document["detail"]
    tagged = prepared.inputs.tagged
    full = tagged.select([i for i in tagged.ids if tagged.tags_of(i).any()])
    without = replace(prepared, inputs=replace(prepared.inputs, tagged=full))
    assert screened(made.again(), prepared, made.fitted, detail) != {}
    assert screened(made.again(), without, made.fitted, detail) == {}
    assert screened(made.again(), replace(prepared, val=None), made.fitted, detail) == {}
