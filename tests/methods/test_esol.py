"""Method `esol` from tags to masks: planned as it runs, blind to truth, and each of its mechanisms matters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import method_checks
import tiny
from tagseg.methods import esol
from tagseg.runs import run as runs
from tagseg.runs.predict import load
from tagseg.store import Artifact
from tagseg.types import UsageError
from tiny import Tiny

UP_TO_MAPS = ["localize.classify.train", "localize.expansion.expanded", "localize.shrinkage.second",
              "localize.shrinkage.shrunk", "localize.cam.maps"]  # fmt: skip
FIT = [*UP_TO_MAPS, "localize.operating_point.auto", "refine.seeds.confident", "localize.affinity.train",
       "refine.affinity.maps", "localize.operating_point.auto", "refine.threshold.labels",
       "segment.train.segmenter"]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny.make(tmp_path_factory.mktemp("esol") / "run", "esol")


def test_a_whole_run_leaves_numbers_masks_and_a_model(made: Tiny) -> None:
    assert made.document["masks_read_by_fit"] == 0
    assert {"seed", "pseudo", "val", "val_post", "seed_val"} <= set(made.document["scores"])
    assert made.document["scores"]["pseudo"]["auto"]["threshold"] == made.fitted.refined.point.read()["threshold"]
    assert len(list((made.out / "masks").rglob("*.png"))) == 12
    assert (made.out / "report.html").exists()
    photo = tiny.photos(made.out.parent / "photos", count=2) / "images" / "000.png"
    assert load(made.out)(photo).pixels.shape == (48, 48)  # its own predict, without any tag


def test_the_plan_is_what_runs(made: Tiny, tmp_path: Path) -> None:
    planned, _ = runs.plan(tiny.request(tmp_path / "elsewhere", method="esol"))
    assert [s.stage for s in planned][: len(FIT)] == FIT
    run = made.again()
    esol.fit(run, made.prepared.inputs, made.prepared.cfg)
    assert [(s.stage, s.key, s.state) for s in run.steps] == [(s.stage, s.key, "done") for s in planned[: len(FIT)]]


def test_each_setting_changes_its_stages_and_what_follows(made: Tiny) -> None:
    def refused(cfg: Any, name: str) -> bool:
        return cfg.mode == "joint" and name in ("expand.area", "expand.head", "expand.schedule.weight_decay")

    variants = ({"refine": "crf"}, {"refine": "affinity"}, {"mode": "joint"}, {"fuse_maps": "max"})
    others = {"expand.ceiling": 0.5, "expand.area": 0.5, "second.width": 24, "expand.clip.quantile": 0.5,
              "expand.clip.beta": 0.25}
    cfgs = [replace(made.prepared.cfg, **variant) for variant in variants]
    method_checks.settings_matter(esol, made.prepared.inputs, cfgs, 120, own=("refine", "mode", "fuse_maps"),
                                  values=others, refused=refused)


WITHOUT = {
    "no ascent": ("expand.alpha=0",),
    "no clip": ("expand.clip.kind=none",),
    "no shrinkage": ("shrink.schedule.lr=0", "shrink.schedule.head_lr=0"),
    "no area": ("shrink.weight=0",),
    "no second head of its own": ("shrink.head=train",),
}


@pytest.mark.parametrize("gone", WITHOUT)
def test_without_a_mechanism_the_maps_are_others(made: Tiny, gone: str) -> None:
    prepared = runs.plan(tiny.request(made.out, method="esol", sets=WITHOUT[gone]))[1]
    run, tagged, cfg = made.again(), prepared.inputs.tagged, prepared.cfg
    *_, wide = esol.widened(run, prepared.inputs, cfg)
    twofold = esol.shrinkage.second(run, tagged, wide, cfg.second)
    narrow = esol.shrinkage.shrunk(run, tagged, wide, twofold, cfg.shrink)
    found = esol._maps(run, tagged, wide, narrow, cfg)
    assert found.record["outputs"] != made.fitted.maps.record["outputs"]


def test_joint_mode_runs_to_the_maps(made: Tiny) -> None:
    prepared = runs.plan(tiny.request(made.out, method="esol", sets=("mode=joint",)))[1]
    run = made.again()
    (wide,) = esol.widened(run, prepared.inputs, prepared.cfg)
    assert [s.stage for s in run.steps] == ["localize.joint_expansion.expanded"]
    assert Artifact(wide.key, wide.path).record["stage"] == "localize.joint_expansion.expanded"


def test_a_classifier_without_the_layer_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"classifier\.sampler: found 0"):
        runs.plan(tiny.request(tmp_path, method="esol", sets=("classifier.sampler=0",)))
