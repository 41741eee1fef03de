"""Picking from a finished run: what is offered, in which order, where it is kept, and that the next run uses it."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from tagseg.data.folder import Reading
from tagseg.data.picks import read_picks, write_picks
from tagseg.methods import priors
from tagseg.runs import run as runs
from tagseg.runs.pick import PICKS, disagreement, prepare_picks
from tagseg.runs.request import Request, asked, remembered
from tagseg.types import IntegrityError, UsageError
from tiny import Tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny.make(tmp_path_factory.mktemp("pick") / "run", "priors")


def test_a_request_comes_back_as_it_was(tmp_path: Path) -> None:
    request = Request("priors", "photos", tmp_path, train=("a", "b"), sets=("x=1",), config=tmp_path / "c.yaml",
                      reading=Reading(tags=tmp_path / "t.csv", negative=("n",), window=(40.0, 400.0)))  # fmt: skip
    (tmp_path / "request.json").write_bytes(remembered(request))
    assert asdict(asked(tmp_path)) == asdict(request)
    (tmp_path / "request.json").write_text('{"method": 1}')
    with pytest.raises(IntegrityError, match="cannot be read as a request"):
        asked(tmp_path)
    with pytest.raises(UsageError, match="finished `tagseg run`"):
        asked(tmp_path / "nowhere")


def test_images_are_offered_with_every_candidate_the_most_disputed_first(made: Tiny) -> None:
    picking = prepare_picks(made.out, limit=6)
    table, tagged = picking.table, made.prepared.inputs.tagged
    assert table.candidates == priors.CANDIDATES
    assert len(table.items) == 6
    assert all(tagged.tags_of(item.id).any() for item in table.items)
    run = made.again()
    ids = [item.id for item in table.items]
    sets = priors.candidates(run, made.prepared.inputs, sorted(ids), made.prepared.cfg)
    apart = [disagreement([s.get(i).pixels for s in sets.values()]) for i in ids]
    assert apart == sorted(apart, reverse=True)
    pictures = [table.picture(ids[0], name) for name in ("photo", *table.candidates)]
    assert len(set(pictures)) > 2
    with Image.open(io.BytesIO(pictures[0])) as picture:
        assert picture.size == (48, 48)


def test_picks_are_kept_beside_the_run_and_shown_again(made: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    write_picks(file, {"of another set": "raw"})
    picking = prepare_picks(made.out, file=file, limit=3)
    first = picking.table.items[0].id
    picking.table.pick(first, "wider", None)
    assert dict(read_picks(file, priors.CANDIDATES).chosen) == {"of another set": "raw", first: "wider"}
    again = prepare_picks(made.out, file=file, limit=1)
    assert again.table.picks == {first: "wider"}
    assert first in [item.id for item in again.table.items]  # picked images are always shown
    again.table.pick(first, None, "wider")
    assert dict(read_picks(file, priors.CANDIDATES).chosen) == {"of another set": "raw"}
    assert not (made.out / PICKS).exists()


def test_a_file_that_another_program_changed_is_not_written_over(made: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    picking = prepare_picks(made.out, file=file, limit=2)
    first = picking.table.items[0].id
    picking.table.pick(first, "wider", None)
    write_picks(file, {first: "raw"})
    with pytest.raises(OSError, match="changed by another program"):
        picking.table.pick(first, "plain", "wider")
    assert dict(read_picks(file, priors.CANDIDATES).chosen) == {first: "raw"}
    assert picking.table.picks == {first: "wider"}


def test_the_next_run_uses_them(made: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    picking = prepare_picks(made.out, file=file, limit=4)
    first = picking.table.items[0].id
    picking.table.pick(first, "wider", None)
    request = tiny.request(tmp_path / "next", method="priors", cache=made.cache, picks=file)
    document = runs.run(request)
    assert any("a person picked the masks of 1 images" in line for line in document["supervision"])
    assert document["masks_read_by_fit"] == 0
    ran = [s["stage"] for s in document["lineage"] if s["state"] == "ran" and s["part"] == "fit"]
    ends = ["refine.prior_masks.picked", "refine.prior_masks.compared", "segment.train_prior.multi"]
    assert ran[-3:] == ends
    assert set(ran) <= {"refine.prior_masks.multi", *ends}
    assert not any("not those that the person saw" in e for s in document["lineage"] for e in s.get("events", ()))
    second = picking.table.items[1].id
    picking.table.pick(second, "raw", None)  # the file goes on changing
    picked = prepare_picks(tmp_path / "next", limit=2)  # a run with picks can be picked from again
    assert picked.table.candidates == priors.CANDIDATES
    assert picked.table.picks == {first: "wider", second: "raw"}  # it begins with the picks that it was given
    picked.table.pick(first, "tighter", "wider")
    assert read_picks(tmp_path / "next" / PICKS, priors.CANDIDATES).chosen == {first: "tighter", second: "raw"}
    kept = read_picks(file, priors.CANDIDATES)
    assert kept.chosen == {first: "wider", second: "raw"}
    assert set(kept.seen) == {first, second}
    again = read_picks(tmp_path / "next" / PICKS, priors.CANDIDATES)
    assert again.seen[second] == kept.seen[second]
    assert again.seen[first] != kept.seen[first]


def test_picks_of_masks_that_other_settings_make_are_told(made: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    write_picks(file, {(sample := made.prepared.inputs.tagged.ids[0]): "wider"}, {sample: "0123456789ab"})
    request = tiny.request(tmp_path / "next", method="priors", cache=made.cache, picks=file)
    events = [e for s in runs.run(request)["lineage"] for e in s.get("events", ())]
    assert any("1 picked masks are not those that the person saw" in e for e in events)
    write_picks(file, {sample: "plain"}, {sample: "0123456789ab"})  # the usual mask, and not as it was seen
    events = [e for s in runs.run(replace(request, out=tmp_path / "usual"))["lineage"] for e in s.get("events", ())]
    assert any("1 picked masks are not those that the person saw" in e for e in events)
    write_picks(file, {sample: "wider"})  # picked anew, with nothing to compare: the same masks, and nothing is told
    events = [e for s in runs.run(replace(request, out=tmp_path / "anew"))["lineage"] for e in s.get("events", ())]
    assert not any("not those that the person saw" in e for e in events)


def test_runs_that_offer_nothing_say_so(made: Tiny, trained: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no candidate masks to pick from"):
        prepare_picks(trained.out)
    with pytest.raises(UsageError, match="--limit 0"):
        prepare_picks(made.out, limit=0)
    lone = tmp_path / "moved" / "run"
    shutil.copytree(made.out, lone)
    with pytest.raises(IntegrityError, match="is not there any more; run it again: "):
        prepare_picks(lone)  # the cache lies beside a run, and this copy has none


def test_disagreement_is_the_mean_over_pairs() -> None:
    a, b = np.zeros((2, 2)), np.array([[0, 1], [0, 0]])
    assert disagreement([a, b, b]) == pytest.approx((0.25 + 0.25 + 0) / 3)
    assert disagreement([a]) == 0
    assert json.loads(remembered(Request("cam", "x", Path("y"))))["out"] == "y"
