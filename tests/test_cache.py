"""The cache keeps what a run points to and what is being built; the rest goes, and nothing that is not ours."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import toy_chain
from tagseg import artifacts, cache, disk, store
from tagseg.store import Run
from tagseg.types import IntegrityError, Interrupted
from toy_chain import Config, LabelsConfig, ToySet


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "SHARD", toy_chain.SHARD)
    monkeypatch.setattr(store, "_verified", {})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def ran(place: Path, cfg: Config | None = None, run_folder: Path | None = None) -> list[Path]:
    run = Run(place)
    toy_chain.fit(run, ToySet(), cfg or Config())
    paths = [step.path for step in run.steps]
    if run_folder:
        run_folder.mkdir(exist_ok=True)
        cache.register(place, run_folder, paths)
    return paths


def half_done(place: Path) -> Path:
    ticks: list[object] = []
    run = Run(place, progress=lambda *at: ticks.append(at), stopping=lambda: len(ticks) > 2)
    with pytest.raises(Interrupted):
        toy_chain.maps(run, ToySet(key="half"), Config().maps)
    return run.steps[0].path.with_name(run.steps[0].path.name + ".partial")


def names(entries: list[cache.Entry]) -> set[str]:
    return {entry.name for entry in entries}


def test_listing(place: Path, tmp_path: Path) -> None:
    assert cache.listing(place) == []
    paths = ran(place, run_folder=tmp_path / "run")
    partial = half_done(place)
    found = {entry.name: entry for entry in cache.listing(place)}
    assert set(found) == {p.name for p in (*paths, partial)}
    entry = found[paths[1].name]
    size = sum(f.stat().st_size for f in paths[1].rglob("*") if f.is_file())
    record = paths[1] / store.RECORD
    assert (entry.stage, entry.megabytes, entry.made) == ("toy_chain.labels", size / 2**20, record.stat().st_mtime)
    assert entry.seconds == store.verify(paths[1])["seconds"]
    assert entry.used_by == (str(tmp_path / "run"),)
    assert found[partial.name].stage == "toy_chain.maps"
    assert found[partial.name].seconds > 0
    assert found[partial.name].used_by == ()


def test_gc_keeps_what_runs_point_to(place: Path, tmp_path: Path) -> None:
    first = ran(place, run_folder=tmp_path / "one")
    other = ran(place, Config(labels=LabelsConfig(0.25)))  # shares the maps with the first
    would = cache.gc(place, dry_run=True)
    assert names(would) == {p.name for p in other[1:]}
    assert all(p.exists() for p in other)
    assert cache.gc(place) == would
    assert [p.exists() for p in other] == [True, False, False]
    assert all(p.exists() for p in first)
    assert cache.gc(place) == []
    assert ran(place) == first  # and they are still whole
    assert names(cache.listing(place)) == {p.name for p in first}


def test_two_runs_that_share(place: Path, tmp_path: Path) -> None:
    first = ran(place, run_folder=tmp_path / "one")
    other = ran(place, Config(labels=LabelsConfig(0.25)), tmp_path / "two")
    assert cache.gc(place) == []
    shared = next(entry for entry in cache.listing(place) if entry.name == first[0].name)
    assert shared.used_by == (str(tmp_path / "one"), str(tmp_path / "two"))
    shutil.rmtree(tmp_path / "one")
    assert names(cache.gc(place, forget_missing=True)) == {p.name for p in first[1:]}
    assert all(p.exists() for p in other)


def test_a_vanished_run_counts_until_it_is_forgotten(place: Path, tmp_path: Path) -> None:
    paths = ran(place, run_folder=tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert cache.gc(place) == []
    assert names(cache.gc(place, forget_missing=True, dry_run=True)) == {p.name for p in paths}
    assert cache.gc(place) == []  # the dry run has forgotten nothing
    cache.register(place, tmp_path / "moved", paths[:2])
    assert names(cache.gc(place, forget_missing=True)) == {paths[2].name}
    assert len(list((place / cache.RUNS).iterdir())) == 1


def test_registering_again_replaces(place: Path, tmp_path: Path) -> None:
    paths = ran(place, run_folder=tmp_path / "run")
    note = cache.register(place, tmp_path / "run", paths[:1])
    assert [note] == list((place / cache.RUNS).iterdir())
    assert names(cache.gc(place)) == {p.name for p in paths[1:]}


def test_half_done_work_goes_only_when_nobody_wants_it(place: Path, tmp_path: Path) -> None:
    partial = half_done(place)
    (tmp_path / "run").mkdir()
    cache.register(place, tmp_path / "run", [partial.with_suffix("")])
    assert cache.gc(place) == []
    cache.register(place, tmp_path / "run", [])
    assert names(cache.gc(place)) == {partial.name}
    assert not partial.exists()


def test_what_is_being_built_is_kept(place: Path) -> None:
    partial = half_done(place)
    finished = ran(place)
    for path in (partial.with_suffix(""), finished[0]):
        with disk.lock(place / ".locks" / path.name, wait=False):
            assert path.name not in {n.removesuffix(".partial") for n in names(cache.gc(place, dry_run=True))}
    with disk.lock(place / ".locks" / partial.with_suffix("").name, wait=False):
        assert names(cache.gc(place)) == {p.name for p in finished}
    assert partial.exists()


def test_nothing_is_removed_that_no_stage_has_made(place: Path, tmp_path: Path) -> None:
    ran(place)
    key = "0" * 24
    (tmp_path / "photos").mkdir()
    (place / f"link-{key}").symlink_to(tmp_path / "photos")
    for name in ("photos", "holiday-2020", f"{key}", f"my photos-{key}", f"x-{key}.bak", ".hidden"):
        (place / name).mkdir()
        (place / name / "a.jpg").touch()
    (place / f"file-{key}").touch()
    kept = set(place.iterdir()) - {p for p in place.iterdir() if p.name.startswith("toy_chain")}
    assert len(cache.gc(place)) == 3
    assert set(place.iterdir()) == kept
    assert (tmp_path / "photos").exists()


def test_a_removal_that_was_cut_short_is_not_a_damaged_artifact(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ran(place)

    def cut(folder: Path) -> None:
        next(folder.iterdir()).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", cut)
    with pytest.raises(KeyboardInterrupt):
        cache.gc(place)
    monkeypatch.undo()
    monkeypatch.setattr(artifacts, "SHARD", toy_chain.SHARD)
    store._verified.clear()
    assert ran(place) == paths
    assert len(cache.gc(place)) == 3


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run": 1}', '{"run": "x", "artifacts": 3}'])
def test_a_damaged_note_stops_gc(place: Path, tmp_path: Path, text: str) -> None:
    paths = ran(place, run_folder=tmp_path / "run")
    (note,) = (place / cache.RUNS).iterdir()
    note.write_text(text)
    with pytest.raises(IntegrityError, match=f"{note}: the note of a run cannot be read"):
        cache.gc(place)
    assert all(p.exists() for p in paths)
