"""Method `cam` from tags to masks: planned as it runs, resumed as it would have run, and blind to pixel truth."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import method_checks
import tiny
from tagseg import methods
from tagseg.data.images import mask_reads
from tagseg.runs import run as runs
from tagseg.runs.setup import Prepared, Request, prepare
from tagseg.store import Artifact, Run, Step
from tagseg.types import IntegrityError, UsageError
from tiny import Tiny

HERE = Path(tiny.__file__).parent
SHORT = ("classifier.schedule.max_images=24", "segmenter.schedule.max_images=24")
FIT = ["localize.classify.train", "localize.cam.maps", "localize.operating_point.auto", "refine.crf.labels",
       "segment.train.segmenter"]


def fitted(request: Request) -> tuple[Run, Prepared]:
    prepared = prepare(request)
    work = Run(prepared.cache, workers=1)
    runs.fit_without_truth(work, prepared)
    return work, prepared


def outputs(steps: list[Step]) -> list[Any]:
    return [Artifact(s.key, s.path).record["outputs"] for s in steps]


def test_the_plan_is_what_runs(trained: Tiny, tmp_path: Path) -> None:
    planned, _ = runs.plan(tiny.request(tmp_path / "elsewhere"))
    assert [s.stage for s in planned] == [*FIT, "segment.predict.labels", "segment.predict.labels", "localize.cam.maps"]
    assert {s.state for s in planned} == {"to do"}
    assert not (tmp_path / "elsewhere").exists()
    run = trained.again()
    trained.prepared.method.fit(run, trained.prepared.inputs, trained.prepared.cfg)
    assert [(s.stage, s.key) for s in run.steps] == [(s.stage, s.key) for s in planned[:5]]


def test_a_second_run_does_nothing(trained: Tiny) -> None:
    run = trained.again()
    trained.prepared.method.fit(run, trained.prepared.inputs, trained.prepared.cfg)
    assert [s.state for s in run.steps] == ["done"] * 5


def test_each_setting_changes_its_stages_and_what_follows(trained: Tiny) -> None:
    cfgs = [replace(trained.prepared.cfg, refine=kind) for kind in ("crf", "affinity")]  # each reads others
    method_checks.settings_matter(trained.prepared.method, trained.prepared.inputs, cfgs, 100)


@pytest.mark.parametrize(("setting", "stages"), [
    ("crf.compat_bilateral=4", FIT[3:]), ("segmenter.positives=0.25", FIT[4:]), ("predict.crf.iterations=1", [])])
def test_a_changed_setting_runs_only_what_depends_on_it(trained: Tiny, tmp_path: Path, setting: str,
                                                        stages: list[str]) -> None:
    work, _ = fitted(tiny.request(tmp_path / "run", sets=(setting,), cache=trained.cache))
    assert [s.stage for s in work.steps if s.state == "ran"] == stages
    assert [s.state for s in work.steps if s.stage not in stages] == ["done"] * (5 - len(stages))


def test_the_fit_is_blind_to_masks(tmp_path: Path) -> None:
    results = []
    for masks in ("true", "garbage", "other", "none"):
        data = tiny.photos(tmp_path / masks / "photos", masks=masks)
        work, _ = fitted(tiny.request(tmp_path / masks / "run", data=str(data), sets=SHORT))
        assert mask_reads() == ()
        assert [s.state for s in work.steps] == ["ran"] * 5  # each in its own cache
        results.append(([s.key for s in work.steps], outputs(work.steps)))
    assert all(result == results[0] for result in results)


def test_a_fit_that_opens_a_mask_is_stopped(trained: Tiny, tmp_path: Path) -> None:
    prepared = trained.prepared

    class Peeking:
        @staticmethod
        def fit(run: Run, inputs: Any, cfg: Any) -> Any:
            assert prepared.truth is not None
            prepared.truth.mask(prepared.truth.ids[0])

    with pytest.raises(IntegrityError, match="opened 1 masks, the first is scenes:basic/train/000000"):
        runs.fit_without_truth(Run(tmp_path), replace(prepared, method=Peeking))  # type: ignore[arg-type]


CHILD = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import tiny
from tagseg.store import Run
from tagseg.runs.setup import prepare

def progress(stage, done, total, note):
    if stage == "segment.train.segmenter" and done == 7:
        os.kill(os.getpid(), signal.SIGKILL)

prepared = prepare(tiny.request(Path(sys.argv[1]), sets=("segmenter.schedule.checkpoint_seconds=0",)))
prepared.method.fit(Run(prepared.cache, workers=1, progress=progress), prepared.inputs, prepared.cfg)
"""


def test_killed_in_the_middle_of_the_fit_it_goes_on_and_gives_the_same_bytes(trained: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1",
                   "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", CHILD, str(out)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    prepared = prepare(tiny.request(out))
    partial = list(prepared.cache.glob("segment.train.segmenter-*.partial/half-done/checkpoint-*.json"))
    assert partial  # the kill was inside the training
    reached: list[int] = []

    def progress(stage: str, at: int, total: int, note: str) -> None:
        if stage == FIT[4]:
            reached.append(at)

    run = Run(prepared.cache, workers=2, progress=progress)
    prepared.method.fit(run, prepared.inputs, prepared.cfg)
    assert [s.state for s in run.steps] == ["done"] * 4 + ["ran"]
    assert reached == list(range(8, 13))  # step 7 was saved: the next is the eighth
    again = trained.again()
    trained.prepared.method.fit(again, trained.prepared.inputs, trained.prepared.cfg)
    assert outputs(run.steps) == outputs(again.steps)


def test_another_seed_gives_other_weights(trained: Tiny, tmp_path: Path) -> None:
    work, _ = fitted(tiny.request(tmp_path / "run", seed=1, sets=SHORT))
    assert work.steps[0].key != trained.fitted.classifier.key


def test_without_the_crf_the_labels_differ(trained: Tiny, tmp_path: Path) -> None:
    prepared = prepare(tiny.request(tmp_path / "run", sets=("crf.iterations=0",), cache=trained.cache))
    plain = prepared.method.labels(trained.again(), prepared.inputs.tagged, trained.fitted.maps, trained.fitted.point,
                                   prepared.cfg)
    changed = [np.mean(a.pixels != b.pixels) for a, b in zip(plain, trained.fitted.labels, strict=True)]
    assert max(changed) > 0.02


def test_a_set_without_background_runs(tmp_path: Path) -> None:
    data = "scenes:tissue?train=10&val=4&size=48"
    document = runs.run(tiny.request(tmp_path / "run", data=data, sets=SHORT))
    assert document["has_background"] is False
    for entry in ("seed", "pseudo", "val", "val_post"):
        assert set(document["scores"][entry]["auto"]["per_class"]) == set(document["classes"])
    from tagseg.artifacts import read_png

    masks = sorted((tmp_path / "run" / "masks").rglob("*.png"))
    assert len(masks) == 4
    values = {int(v) for m in masks for v in np.unique(read_png(m.read_bytes()))}
    assert values <= set(range(1, len(document["classes"]) + 1))


def test_a_set_with_negatives_runs(tmp_path: Path) -> None:
    data = "scenes:basic?train=16&val=4&size=48&negatives=0.4"
    document = runs.run(tiny.request(tmp_path / "run", data=data, sets=SHORT))
    assert 2 <= document["tags"]["negatives"] < 16
    assert f"{document['tags']['negatives']} negatives" in document["supervision"][0]
    assert document["masks_read_by_fit"] == 0


def test_a_set_where_every_class_is_everywhere_runs(tmp_path: Path) -> None:
    data = tiny.photos(tmp_path / "photos", masks="none", count=6)
    document = runs.run(tiny.request(tmp_path / "run", data=str(data), sets=(*SHORT, "point.few=1000")))
    assert document["operating_point"]["rule"] == "otsu"
    assert "Otsu" in (tmp_path / "run" / "report.html").read_text()


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'camm' is unknown; expected one of cam.*nearest: cam"):
        methods.get("camm")
