"""Method `mcof`: rounds that can be added, stopped and left out, saliency once, masks that need images alone."""

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
import torch

import method_checks
import tiny
from tagseg.data.images import mask_reads
from tagseg.methods import mcof
from tagseg.methods.protocol import Fitted
from tagseg.runs import run as runs
from tagseg.runs.setup import prepare
from tagseg.segment.train import PixelLoss, Segment, make
from tagseg.store import Run, Step
from tagseg.types import UsageError
from tiny import Tiny

HERE = Path(tiny.__file__).parent
BEGIN = ["refine.superpixels.cut", "localize.classify.train", "localize.cam.maps", "localize.operating_point.auto",
         "refine.region_seeds.from_maps"]
MINED = ["localize.regions.train", "refine.mine.probabilities", "refine.mine.labels"]
SALIENT = ["localize.saliency.maps", "refine.bayes.posterior", "refine.bayes.merged"]
BACK = ["segment.predict.restricted", "refine.region_seeds.voted"]
SEGMENTED = ["segment.train.segmenter"]
CHANGES = {"merge.threshold": 0.6, "saliency_rounds": (2,)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A finished tiny run of two rounds."""
    return tiny.make(tmp_path_factory.mktemp("mcof") / "run", "mcof")


def again(made: Tiny, planning: bool = True, **changes: Any) -> tuple[list[Step], Fitted]:
    run = Run(made.cache, workers=1, planning=planning)
    fitted = mcof.fit(run, made.prepared.inputs, replace(made.prepared.cfg, **changes))
    return run.steps, fitted


def names(steps: list[Step]) -> list[str]:
    return [s.stage for s in steps]


def new(steps: list[Step]) -> list[str]:
    return [s.stage for s in steps if s.state != "done"]


def test_the_stages_of_two_rounds(made: Tiny) -> None:
    steps, fitted = again(made)
    assert names(steps) == [*BEGIN, *MINED, *SALIENT, *SEGMENTED, *BACK, *MINED, *SEGMENTED]
    assert new(steps) == []
    assert fitted.refined is None
    first, second = (list(one.labels) for one in fitted.rounds)
    assert first == ["seeds", "mined", "merged", "segmenter", "votes"]
    assert second == ["mined"]
    assert fitted.labels == fitted.rounds[-1].labels["mined"]


def test_mcof_s7_08_saliency_is_looked_at_in_its_rounds_alone(made: Tiny) -> None:
    for rounds in ((), (1,), (2,), (1, 2)):
        steps, _ = again(made, saliency_rounds=rounds)
        assert names(steps).count("refine.bayes.merged") == len(rounds)
        assert names(steps).count("localize.saliency.maps") == len(rounds)
    without = replace(made.prepared.inputs, tagged=replace(made.prepared.inputs.tagged, has_background=False))
    run = Run(made.cache, planning=True)
    mcof.fit(run, without, made.prepared.cfg)
    assert "localize.saliency.maps" not in names(run.steps)


def test_mcof_s7_08_no_rounds_give_the_seeds(made: Tiny) -> None:
    steps, fitted = again(made, rounds=0)
    assert names(steps) == [*BEGIN, *SEGMENTED]
    assert new(steps) == SEGMENTED
    assert fitted.labels == again(made)[1].rounds[0].labels["seeds"]
    assert fitted.rounds == ()
    with pytest.raises(UsageError, match="rounds is -1"):
        again(made, rounds=-1)


def test_mcof_s7_08_more_rounds_run_only_the_new_ones(made: Tiny) -> None:
    steps, fitted = again(made, rounds=4)
    assert new(steps) == [*BACK, *(MINED + SEGMENTED + BACK), *(MINED + SEGMENTED)]
    assert [one.segmenter for one in fitted.rounds[:2]] == [one.segmenter for one in again(made)[1].rounds]


CHILD = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import tiny
from tagseg.store import Run
from tagseg.runs.setup import prepare

def progress(stage, done, total, note):
    if stage == sys.argv[2] and done == int(sys.argv[3]) and (stage != "segment.train.segmenter" or rounds()):
        os.kill(os.getpid(), signal.SIGKILL)

def rounds():
    return list(prepared.cache.glob("refine.region_seeds.voted-*"))

prepared = prepare(tiny.request(Path(sys.argv[1]), method="mcof", sets=(
    "segmenter.schedule.checkpoint_seconds=0", "regions.schedule.checkpoint_seconds=0")))
prepared.method.fit(Run(prepared.cache, workers=1, progress=progress), prepared.inputs, prepared.cfg)
"""


@pytest.mark.parametrize(("stage", "at"), [("localize.regions.train", 5), ("refine.bayes.merged", 10),
                                           ("segment.train.segmenter", 7)])
def test_mcof_s7_08_killed_in_a_round_it_goes_on_and_gives_the_same_labels(
    made: Tiny, tmp_path: Path, stage: str, at: int
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1",
                   "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path / "run"), stage, str(at)], env=environment,
                          check=False)
    assert done.returncode == -signal.SIGKILL
    prepared = prepare(tiny.request(tmp_path / "run", method="mcof"))
    assert list(prepared.cache.glob(f"{stage}-*.partial"))
    run = Run(prepared.cache, workers=2)
    fitted = prepared.method.fit(run, prepared.inputs, prepared.cfg)
    for own, other in zip(fitted.rounds, made.fitted.rounds, strict=True):
        assert own.segmenter.record["outputs"] == other.segmenter.record["outputs"]
        for name, labels in own.labels.items():
            assert labels.record["outputs"] == other.labels[name].record["outputs"]


def test_mcof_s7_06_pixels_without_a_label_give_no_gradient() -> None:
    torch.manual_seed(0)
    model = make(Segment("small", 16, width=8), 3, None)
    loss = PixelLoss(0, torch.ones(3))
    images = torch.randint(0, 255, (1, 3, 48, 48), dtype=torch.uint8)
    labels = torch.full((1, 48, 48), 255, dtype=torch.uint8)
    total = loss.total(model, {"images": images, "labels": labels})
    assert total.item() == 0.0
    assert loss.count({"labels": labels}) == 0
    labels[0, :20] = 1
    full = torch.randn(1, 3, 48, 48, requires_grad=True)
    torch.nn.functional.cross_entropy(full, labels.long(), ignore_index=255, reduction="sum").backward()
    assert full.grad is not None
    assert full.grad[:, :, 20:].abs().max() == 0
    assert full.grad[:, :, :20].abs().min() > 0


def test_mcof_s7_12_masks_need_no_tags_superpixels_or_saliency(
    made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made.prepared.val is not None
    images = made.prepared.val.images

    def refuse(*given: Any) -> None:
        raise AssertionError("predict must not come here")

    for module in (mcof.superpixels, mcof.salient, mcof.mine, mcof.bayes, mcof.region_seeds):
        for name in ("segments", "cut", "maps", "imported", "probabilities", "labels", "posterior", "voted"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, refuse)
    run = Run(tmp_path, workers=1)
    results = [mcof.predict(run, made.fitted.model, some, made.prepared.cfg)
               for some in (images, images.without_tags(), replace(images, tags=np.roll(images.tags, 1, 0)))]
    assert len({r.record["outputs"]["shard-000000.tar"]["sha256"] for r in results}) == 1
    assert names(run.steps) == ["segment.predict.labels"] * 3


def test_mcof_s7_05_votes_of_restricted_masks_stay_within_the_tags(made: Tiny) -> None:
    tagged = made.prepared.inputs.tagged
    for one in made.fitted.rounds:
        for name, labels in one.labels.items():
            for found in labels:
                allowed = [0, 255, *(np.flatnonzero(tagged.tags_of(found.id)) + 1)]
                assert np.isin(found.pixels, allowed).all(), name
                if name == "mined":
                    assert set(np.flatnonzero(tagged.tags_of(found.id)) + 1) <= set(np.unique(found.pixels))


def test_each_setting_changes_its_stages_and_what_follows(made: Tiny) -> None:
    cfgs = [replace(made.prepared.cfg, region_init=start, pixel_init=start) for start in ("imagenet", "previous")]
    own = ("rounds", "saliency_rounds", "region_init", "pixel_init")
    method_checks.settings_matter(mcof, made.prepared.inputs, cfgs, 100, own=own, values=CHANGES)


@pytest.mark.parametrize("changes", [
    {"saliency_rounds": ()}, {"region_init": "previous"}, {"pixel_init": "previous"}])
def test_what_is_left_out_or_changed_shows_in_the_model(made: Tiny, changes: dict[str, Any]) -> None:
    _, fitted = again(made, planning=False, **changes)
    assert fitted.model.record["outputs"] != made.fitted.model.record["outputs"]


def test_no_mask_was_opened_by_the_fit(made: Tiny, tmp_path: Path) -> None:
    request = tiny.request(tmp_path / "run", method="mcof", sets=("classifier.schedule.max_images=24",
                                                                   "segmenter.schedule.max_images=24",
                                                                   "regions.schedule.max_images=24", "rounds=1"))
    prepared = prepare(request)
    runs.fit_without_truth(Run(prepared.cache, workers=1), prepared)
    assert mask_reads() == ()


def test_the_report_tells_every_round(made: Tiny) -> None:
    rows = made.document["rounds"]
    assert [(r["round"], r["what"], r["images"]) for r in rows] == [
        ("1", "seeds", "train"), ("1", "mined", "train"), ("1", "merged", "train"), ("1", "segmenter", "train"),
        ("1", "votes", "train"), ("1", "segmenter", "val"), ("2", "mined", "train"), ("2", "segmenter", "val")]
    assert all(0 <= r["miou"] <= 1 and 0 <= r["unlabelled"] <= 1 for r in rows)
    assert [r["changed"] is not None for r in rows] == [False] * 6 + [True, False]
    assert rows[-1]["miou"] == made.document["scores"]["val"]["auto"]["miou"]
    assert rows[-2]["miou"] == made.document["scores"]["pseudo"]["auto"]["miou"]
    assert set(made.document["scores"]["pseudo"]) == {"auto"}  # labels that do not hang on one cut have no other point
    assert "threshold" not in made.document["scores"]["pseudo"]["auto"]
    panels = [name for name, _ in made.document["gallery"][0]["panels"]]
    assert panels == ["photo", "truth", "seeds", "mined 1", "saliency 1", "posterior 1", "merged 1", "segmenter 1",
                      "mined 2", "segmenter 2", "map", "pseudo mask", "prediction"]
    page = (made.out / "report.html").read_text()
    assert 'id="rounds"' in page
    assert "segment.train.segmenter #2" in made.document["histories"]


def test_both_forms_of_the_region_network_make_a_run(made: Tiny, tmp_path: Path) -> None:
    request = tiny.request(tmp_path / "run", method="mcof", cache=made.cache, sets=(
        "regions.form=roi_mask", "regions.most=2", "regions.schedule.max_images=8", "segmenter.schedule.max_images=16",
        "rounds=1"))
    document = runs.run(request)
    assert document["scores"]["val"]["auto"]["images"] == 12


def test_saliency_from_elsewhere_is_used_and_needed_for_training_images_alone(made: Tiny, tmp_path: Path) -> None:
    for sample in made.prepared.inputs.tagged.ids:
        (tmp_path / "maps" / sample).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "maps" / f"{sample}.npy", np.full((48, 48), 0.9, np.float32))
    request = tiny.request(tmp_path / "run", method="mcof", cache=made.cache, saliency=tmp_path / "maps",
                           saliency_from="a constant, learned from nothing", sets=(
                               "rounds=1", "segmenter.schedule.max_images=16"))  # fmt: skip
    document = runs.run(request)
    assert "saliency maps from elsewhere: a constant, learned from nothing" in document["supervision"]
    assert "localize.saliency.taken" in [s["stage"] for s in document["lineage"] if s["part"] == "fit"]
    panels = [name for name, _ in document["gallery"][0]["panels"]]
    assert "mined 1" in panels
    assert "saliency 1" not in panels  # the images of val have no map from there
