"""Class activation maps: of the tagged classes only, in [0, 1], and what the network says by plain arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from tagseg.data.index import ImageSource
from tagseg.localize import cam, classify, expansion
from tagseg.ops.geometry import resample
from tagseg.runs.setup import prepare
from tagseg.store import Run
from tagseg.types import U8
from tiny import Tiny


def test_each_image_has_maps_of_its_tags(trained: Tiny) -> None:
    tagged, cfg = trained.prepared.inputs.tagged, trained.prepared.cfg.cam
    assert trained.fitted.maps.ids == list(tagged.ids)
    for maps in trained.fitted.maps:
        assert np.array_equal(maps.classes, np.flatnonzero(tagged.tags_of(maps.id)) + 1)
        assert maps.size == tagged.source.size(maps.id)
        assert maps.scores.shape[1:] == tuple(-(-side // cfg.grid) for side in maps.size)
        peaks = maps.scores.max((1, 2))
        assert ((peaks == 0) | (peaks > 0.99)).all()


@pytest.mark.parametrize("flip", [False, True])
def test_the_maps_by_plain_arithmetic(trained: Tiny, tmp_path: Path, flip: bool) -> None:
    tagged = trained.prepared.inputs.tagged.limit(3)
    cfg = trained.prepared.cfg.cam
    cfg = replace(cfg, views=replace(cfg.views, flip=flip))
    found = cam.maps(Run(tmp_path), tagged, trained.fitted.classifier, cfg)
    model = classify.load(trained.fitted.classifier, tagged.classes)
    for maps in found:
        pixels = torch.from_numpy(tagged.source.read(maps.id))[None].float() / 255  # 48x48: no resizing
        raw = torch.zeros(len(tagged.classes), 24, 24)
        for mirror in ((False, True) if flip else (False,)):
            x = model.backbone.preprocess(pixels.flip(3) if mirror else pixels)
            with torch.no_grad():
                out = resample(model(x).clamp(min=0), stride=16, offset=7.5, in_size=(48, 48), out_size=(24, 24))[0]
            raw += out.flip(2) if mirror else out
        for c, scores in zip(maps.classes, maps.scores, strict=True):
            expected = raw[c - 1] / (raw[c - 1].max() + 1e-5)
            assert np.allclose(scores, expected.numpy(), atol=1e-3)  # stored as float16


def test_classes_that_no_image_has_change_nothing(trained: Tiny, tmp_path: Path) -> None:
    some, cfg = trained.prepared.inputs.tagged, trained.prepared.cfg.cam
    last = replace(some, tags=some.tags & (np.arange(len(some.classes)) == len(some.classes) - 1))
    assert last.tags.any()
    assert some.tags[:, :-1].any()
    whole = trained.fitted.maps
    for maps in cam.maps(Run(tmp_path), last, trained.fitted.classifier, cfg):
        all_of_it = whole.get(maps.id)
        kept = all_of_it.classes == len(some.classes)
        assert np.array_equal(maps.classes, all_of_it.classes[kept])
        assert np.allclose(maps.scores, all_of_it.scores[kept], atol=1e-3)  # stored as float16


def test_a_negative_has_no_maps(trained: Tiny, tmp_path: Path) -> None:
    some = trained.prepared.inputs.tagged.limit(2)
    none = replace(some, tags=np.zeros_like(some.tags))
    for maps in cam.maps(Run(tmp_path), none, trained.fitted.classifier, trained.prepared.cfg.cam):
        assert maps.classes.size == 0
        assert maps.scores.shape[0] == 0
        assert maps.size == some.source.size(maps.id)


def test_raw_maps_hold_all_classes_undivided(trained: Tiny, tmp_path: Path) -> None:
    from tagseg.store import Work

    tagged = trained.prepared.inputs.tagged
    network = cam.network_of(classify.load(trained.fitted.classifier, tagged.classes))
    work = Work(Run(tmp_path), "toy", tmp_path)
    seen = next(cam.raw_maps(work, network, tagged, tagged.ids[:1], trained.prepared.cfg.cam))
    assert seen.values.shape[0] == len(tagged.classes) == network.channels
    assert (cam.values(seen) >= 0).all()


def test_any_number_of_workers_writes_the_same_bytes(trained: Tiny, tmp_path: Path) -> None:
    one = trained.fitted.maps
    four = cam.maps(Run(tmp_path, workers=4), trained.prepared.inputs.tagged, trained.fitted.classifier,
                    trained.prepared.cfg.cam)
    assert four.key == one.key
    assert four.record["outputs"] == one.record["outputs"]


@dataclass(frozen=True)
class Mirrored:
    """The images of another source, each seen in a mirror."""

    source: ImageSource

    def read(self, id: str) -> U8:
        return np.ascontiguousarray(self.source.read(id)[:, :, ::-1])

    def size(self, id: str) -> tuple[int, int]:
        return self.source.size(id)

    def digest(self, id: str) -> str:
        return "mirrored " + self.source.digest(id)


@pytest.mark.parametrize("moves", [False, True])
def test_esol_s7_14_a_mirrored_image_has_mirrored_maps(trained: Tiny, tmp_path: Path, moves: bool) -> None:
    prepared = prepare(tiny.request(tmp_path / "esol", method="esol"))
    some, run = prepared.inputs.tagged.limit(4), Run(tmp_path / "cache", workers=1)
    weights = classify.train(run, prepared.inputs.tagged, prepared.inputs.pretrained, prepared.cfg.classifier)
    if moves:
        weights = expansion.expanded(run, prepared.inputs.tagged, weights, prepared.cfg.expand)
    views = replace(prepared.cfg.cam.views, size=48, scales=(1.0, 0.5, 1.5), flip=True)
    cfg = replace(prepared.cfg.cam, views=views)
    turned = replace(some, source=Mirrored(some.source))
    straight, mirrored = (cam.maps(run, one, weights, cfg) for one in (some, turned))
    for a, b in zip(straight, mirrored, strict=True):
        assert np.allclose(a.scores, b.scores[:, :, ::-1], atol=2e-3)  # stored as float16
