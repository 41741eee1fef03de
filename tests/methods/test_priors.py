"""Method `priors` from tags to masks: planned as it runs, picks and settings change what they should, nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import method_checks
import tiny
from tagseg import config
from tagseg.data.picks import Picks, write_picks
from tagseg.methods import priors
from tagseg.runs import run as runs
from tagseg.runs.predict import load
from tagseg.store import Step
from tagseg.types import DataError, UsageError
from tiny import Tiny

FIT = ["localize.classify.train", "localize.cam.maps", "localize.operating_point.auto", "localize.foreground.maps",
       "refine.prior_masks.multi", "segment.train_prior.multi"]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny.make(tmp_path_factory.mktemp("priors") / "run", "priors")


def test_a_whole_run_leaves_numbers_masks_and_a_model(made: Tiny) -> None:
    assert made.document["masks_read_by_fit"] == 0
    assert {"seed", "pseudo", "val", "val_post", "seed_val"} <= set(made.document["scores"])
    assert set(made.document["scores"]["pseudo"]) == {"auto"}
    assert len(list((made.out / "masks").rglob("*.png"))) == 12
    names = [name for name, _ in made.document["gallery"][0]["panels"]]
    assert names[2:7] == ["block4", "block5", "foreground", "shared out", "foreground mask"]
    photo = tiny.photos(made.out.parent / "photos", count=2) / "images" / "000.png"
    assert load(made.out)(photo).pixels.shape == (48, 48)


def test_the_plan_is_what_runs(made: Tiny, tmp_path: Path) -> None:
    planned, _ = runs.plan(tiny.request(tmp_path / "elsewhere", method="priors"))
    assert [s.stage for s in planned][: len(FIT)] == FIT
    run = made.again()
    priors.fit(run, made.prepared.inputs, made.prepared.cfg)
    assert [(s.stage, s.key, s.state) for s in run.steps] == [(s.stage, s.key, "done") for s in planned[: len(FIT)]]


def test_each_setting_changes_its_stages_and_what_follows(made: Tiny) -> None:
    cfgs = (made.prepared.cfg, config.replace(made.prepared.cfg, "prior.region", 0.5))
    method_checks.settings_matter(priors, made.prepared.inputs, cfgs, 80, own=("masks", "prior.region"),
                                  values={"prior.region": 0.25, "segmenter.lse_r": 3.0},
                                  refused=lambda cfg, name: name == "prior.crf.unsure_below")


def plan_of(made: Tiny, tmp_path: Path, **more: Any) -> list[Step]:
    return runs.plan(tiny.request(tmp_path / "elsewhere", method="priors", cache=made.cache, **more))[0]


def test_picks_change_the_masks_of_the_next_run_and_nothing_else(made: Tiny, tmp_path: Path) -> None:
    tagged = made.prepared.inputs.tagged
    sample = next(i for i in tagged.ids if tagged.tags_of(i).any())
    file = tmp_path / "picks.csv"
    write_picks(file, {sample: "wider"})
    before, after = plan_of(made, tmp_path), plan_of(made, tmp_path, picks=file)
    kept = [s for s in after if s.state == "done"]
    assert [s.stage for s in kept][:5] == FIT[:5]  # nothing before the masks is made again
    todo = [s.stage for s in after if s.state != "done"]
    assert todo[:3] == ["refine.prior_masks.multi", "refine.prior_masks.picked", "segment.train_prior.multi"]
    assert [s.stage for s in after].count("localize.foreground.maps") == 1
    assert {s.key for s in before[:5]} <= {s.key for s in after}
    run, inputs = made.again(), replace(made.prepared.inputs, picks=Picks({sample: "wider"}))
    found = priors.maps(run, tagged, made.fitted, made.prepared.cfg)
    picked = priors.chosen(run, inputs, found, made.prepared.cfg)
    others = priors.candidates(run, inputs, [sample], made.prepared.cfg)
    assert list(others) == list(priors.CANDIDATES)
    for one in made.fitted.labels:
        expected = others["wider"].get(sample).pixels if one.id == sample else one.pixels
        assert np.array_equal(picked.get(one.id).pixels, expected)
    prepared = runs.plan(tiny.request(tmp_path / "x", method="priors", cache=made.cache, picks=file))[1]
    from tagseg.runs.setup import ledger

    assert any("a person picked the masks of 1 images among 7 candidates" in line for line in ledger(prepared))


def test_an_empty_file_of_picks_changes_nothing(made: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "picks.csv"
    write_picks(file, {})
    assert [s.key for s in plan_of(made, tmp_path, picks=file)] == [s.key for s in plan_of(made, tmp_path)]


def test_picks_of_another_set_and_for_another_method_are_refused(made: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "picks.csv"
    sample = made.prepared.inputs.tagged.ids[0]
    write_picks(file, {sample: "wider"})
    with pytest.raises(UsageError, match="--picks: with masks=none nothing is learned from masks"):
        plan_of(made, tmp_path, picks=file, sets=("masks=none",))
    write_picks(file, {"nowhere": "wider"})
    with pytest.raises(DataError, match="none of its 1 images"):
        plan_of(made, tmp_path, picks=file)
    with pytest.raises(UsageError, match="no candidate masks to pick from"):
        runs.plan(tiny.request(tmp_path / "y", picks=file))


WITHOUT = {
    "no fourth stage": ("foreground.taps=[block5]",),
    "no fifth stage": ("foreground.taps=[block4]",),
    "taps as they are": ("foreground.tap_norm=none",),
    "no sharing out": ("masks=binary",),
    "no CRF": ("prior.candidate=raw",),
    "a region term": ("prior.region=0.7", "superpixels.kind=grid"),
}


@pytest.mark.parametrize("gone", WITHOUT)
def test_without_a_mechanism_the_masks_are_others(made: Tiny, gone: str) -> None:
    prepared = runs.plan(tiny.request(made.out, method="priors", sets=WITHOUT[gone]))[1]
    run, inputs = made.again(), prepared.inputs
    masks = priors.chosen(run, inputs, priors.maps(run, inputs.tagged, made.fitted, prepared.cfg), prepared.cfg)
    assert masks.record["outputs"] != made.fitted.labels.record["outputs"]


def test_without_masks_the_segmenter_learns_from_tags_alone(made: Tiny, tmp_path: Path) -> None:
    steps = plan_of(made, tmp_path, sets=("masks=none",))
    trained = next(s for s in steps if s.stage == "segment.train_prior.weak")
    masks = {s.key for s in steps if s.stage.startswith("refine.prior_masks")}
    assert not masks & set(trained.inputs)
