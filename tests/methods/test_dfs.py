"""Method `dfs` from tags to masks: planned as it runs, predicting its own tags, and each of its mechanisms matters."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import method_checks
import tiny
from tagseg import config
from tagseg.artifacts import MapSet
from tagseg.localize import deconv_stack, stack_maps, stack_net
from tagseg.methods import dfs
from tagseg.runs import run as runs
from tagseg.runs.predict import load
from tiny import Tiny

FIT = ["localize.classify.train", "localize.deconv_stack.heads", "localize.deconv_stack.joint",
       "localize.stack_maps.maps", "localize.operating_point.auto", "refine.crf.labels",
       "localize.stack_maps.finished"]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny.make(tmp_path_factory.mktemp("dfs") / "run", "dfs")


def test_a_whole_run_leaves_numbers_masks_and_a_model(made: Tiny) -> None:
    assert made.document["masks_read_by_fit"] == 0
    assert {"seed", "pseudo", "val", "val_post", "seed_val"} <= set(made.document["scores"])
    assert len(list((made.out / "masks").rglob("*.png"))) == 12
    assert (made.out / "report.html").exists()
    photo = tiny.photos(made.out.parent / "photos", count=2) / "images" / "000.png"
    assert load(made.out)(photo).pixels.shape == (48, 48)  # its own predict, without any tag


def test_the_plan_is_what_runs(made: Tiny, tmp_path: Path) -> None:
    planned, _ = runs.plan(tiny.request(tmp_path / "elsewhere", method="dfs"))
    assert [s.stage for s in planned][: len(FIT)] == FIT
    run = made.again()
    dfs.fit(run, made.prepared.inputs, made.prepared.cfg)
    assert [(s.stage, s.key, s.state) for s in run.steps] == [(s.stage, s.key, "done") for s in planned[: len(FIT)]]


def test_each_setting_changes_its_stages_and_what_follows(made: Tiny) -> None:
    edges = config.replace(made.prepared.cfg, "predict.edges", True)
    method_checks.settings_matter(dfs, made.prepared.inputs, (edges, replace(edges, edges=False)), 100,
                                  own=("joint_stage", "edges", "predict.edges", "post.edges"))


def test_prediction_paints_the_classes_that_it_sees(made: Tiny) -> None:
    run, cfg = made.again(), made.prepared.cfg
    assert made.prepared.val is not None
    images = made.prepared.val.images.without_tags()
    found = stack_maps.predicted(run, images, made.fitted.model, cfg.predict.maps)
    masks = dfs.predict(run, made.fitted.model, images, cfg)
    for sample in images.ids:
        seen = found.get(sample).classes.tolist()
        assert set(np.unique(masks.get(sample).pixels).tolist()) <= {0, *seen}
    strict = stack_maps.predicted(run, images, made.fitted.model, replace(cfg.predict.maps, always="no"))
    forced = stack_maps.predicted(run, images, made.fitted.model, replace(cfg.predict.maps, always="yes"))
    for sample in images.ids:
        few, more = (set(maps.get(sample).classes.tolist()) for maps in (strict, forced))
        assert more == (few or more)
        assert len(more) >= 1


def test_scores_above_zero_are_classes_and_one_can_be_forced() -> None:
    scores = np.array([-1.0, 0.5, 0.0], np.float32)
    assert stack_maps.likely(scores, True).tolist() == [False, True, False]
    none = np.array([-1.0, -0.5, -2.0], np.float32)
    assert stack_maps.likely(none, False).tolist() == [False, False, False]
    assert stack_maps.likely(none, True).tolist() == [False, True, False]


def test_the_report_shows_what_each_level_adds(made: Tiny) -> None:
    names = [name for name, _ in made.document["gallery"][0]["panels"]]
    assert names[2:7] == [f"level {b}" for b in (5, 4, 3, 2, 1)]
    run, cfg, tagged = made.again(), made.prepared.cfg, made.prepared.inputs.tagged
    found = dfs.steps(run, replace(made.prepared.inputs, tagged=tagged), made.fitted, cfg)
    shown = [step.get(tagged.ids[0]).scores for step in found.values() if isinstance(step, MapSet)]
    assert len(shown) == 5
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(shown))
    model = stack_net.load(made.fitted.model, tagged.classes)
    x = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    levels, _ = model.found(x)
    finest = stack_maps.LevelOnly(model, 1)(x)
    assert torch.equal(finest, model.part(levels[0][0], 1))
    assert finest.shape[1:] == (len(tagged.classes), 48, 48)


WITHOUT = {
    "no mirror": ("heads.stack.source=encoder",),
    "no switches": ("heads.stack.unpool=nearest",),
    "no tie": ("heads.stack.tie=free",),
    "no fine levels": ("heads.stack.levels=[4,5]",),
    "no auxiliary branch": ("joint.aux=none",),
    "no joint stage": ("joint_stage=false",),
    "no smoothing": ("maps.smooth=0",),
    "no empty cell": ("maps.zero=score",),
}


@pytest.mark.parametrize("gone", WITHOUT)
def test_without_a_mechanism_the_maps_are_others(made: Tiny, gone: str) -> None:
    prepared = runs.plan(tiny.request(made.out, method="dfs", sets=WITHOUT[gone]))[1]
    run, tagged, cfg = made.again(), prepared.inputs.tagged, prepared.cfg
    stack = deconv_stack.heads(run, tagged, made.fitted.classifier, cfg.heads)
    if cfg.joint_stage:
        stack = deconv_stack.joint(run, tagged, stack, cfg.joint)
    found = stack_maps.maps(run, tagged, stack, cfg.maps)
    assert found.record["outputs"] != made.fitted.maps.record["outputs"]
