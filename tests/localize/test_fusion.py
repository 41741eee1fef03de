"""Two sets of maps as one, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tagseg.localize import cam, fusion
from tagseg.store import Run
from tagseg.types import DataError
from tiny import Tiny


@pytest.mark.parametrize("rule", ["max", "mean"])
def test_each_pixel_takes_the_larger_or_the_mean(trained: Tiny, tmp_path: Path, rule: str) -> None:
    tagged, run, cfg = trained.prepared.inputs.tagged.limit(5), Run(tmp_path), trained.prepared.cfg.cam
    one = cam.maps(run, tagged, trained.fitted.classifier, cfg)
    other = cam.maps(run, tagged, trained.fitted.classifier, replace(cfg, views=replace(cfg.views, flip=False)))
    both = fusion.fused(run, tagged, one, other, fusion.Fuse(rule))  # type: ignore[arg-type]
    for sample in tagged.ids:
        a, b, found = (maps.get(sample) for maps in (one, other, both))
        expected = np.maximum(a.scores, b.scores) if rule == "max" else (a.scores + b.scores) / 2
        assert np.array_equal(found.classes, a.classes)
        assert np.allclose(found.scores, expected, atol=1e-3)
    assert any(not np.array_equal(one.get(i).scores, other.get(i).scores) for i in tagged.ids)


def test_maps_of_other_images_are_refused(trained: Tiny, tmp_path: Path) -> None:
    tagged, run, cfg = trained.prepared.inputs.tagged, Run(tmp_path), trained.prepared.cfg.cam
    some = cam.maps(run, tagged.limit(3), trained.fitted.classifier, cfg)
    with pytest.raises(DataError, match="the same images"):
        fusion.fused(run, tagged, trained.fitted.maps, some, fusion.Fuse())
