"""Keys, the plan, commit, integrity, interruption and locks of the artifact store."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import method_checks
import toy_chain
from tagseg import artifacts, config, disk, store
from tagseg.artifacts import Scores
from tagseg.store import Artifact, Run, Step, Work, stage
from tagseg.types import EnvironmentFault, IntegrityError, Interrupted, UsageError
from toy_chain import Config, LabelsConfig, MapsConfig, Solver, ToySet

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])}


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(artifacts, "SHARD", toy_chain.SHARD)
    monkeypatch.setattr(store, "_verified", {})
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    (tmp_path / "log").touch()
    return tmp_path / "log"


def fit(cache: Path, cfg: Config | None = None) -> Run:
    """Run the toy chain as a new process would: nothing is remembered as verified."""
    store._verified.clear()
    run = Run(cache)
    toy_chain.fit(run, ToySet(), cfg or Config())
    return run


def keys(steps: list[Step]) -> list[str]:
    return [step.key for step in steps]


def states(steps: list[Step]) -> list[str]:
    return [step.state for step in steps]


# ---------------------------------------------------------------------------------------------------------- keys


def test_name_version_config_and_inputs_each_enter_the_key() -> None:
    cfg, value = MapsConfig(), ToySet(key="a")
    first = store.key_of("maps", 1, cfg, (value,))
    others = [
        store.key_of("maps2", 1, cfg, (value,)),
        store.key_of("maps", 2, cfg, (value,)),
        store.key_of("maps", 1, replace(cfg, gain=0.5), (value,)),
        store.key_of("maps", 1, replace(cfg, solver=Solver(3)), (value,)),
        store.key_of("maps", 1, replace(cfg, device="cuda"), (value,)),
        store.key_of("maps", 1, cfg, (ToySet(key="b"),)),
        store.key_of("maps", 1, cfg, (value, value)),
        store.key_of("maps", 1, cfg, ()),
    ]
    assert len({first, *others}) == 1 + len(others)
    assert first == store.key_of("maps", 1, replace(cfg, workers=9), (replace(value, ids=("other",)),))


def test_tuples_of_inputs_stay_grouped() -> None:
    a, b, c = (ToySet(key=k) for k in "abc")
    groups: list[Any] = [((a,), (b, c)), ((a, b), (c,)), (a, (b, c)), (a, b, c), ((a, b, c),), (b, a, c)]
    assert len({store.key_of("s", 1, MapsConfig(), g) for g in groups}) == len(groups)


def test_the_decorator_uses_name_and_version(tmp_path: Path) -> None:
    def make(name: str, version: int) -> str:
        def body(work: Work, cfg: LabelsConfig) -> None: ...

        body.__name__ = name
        run = Run(tmp_path, planning=True)
        stage(Scores, version=version)(body)(run, LabelsConfig())
        return run.steps[0].key

    assert len({make("a", 1), make("b", 1), make("a", 2)}) == 3
    assert make("a", 1) == make("a", 1)


@dataclass(frozen=True)
class Auto:
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class Nested:
    inner: Auto = Auto()


def test_unresolved_auto_is_refused(tmp_path: Path) -> None:
    @stage(Scores, version=1)
    def seeing(work: Work, cfg: Nested) -> None: ...

    run = Run(tmp_path, planning=True)
    with pytest.raises(UsageError, match=r"seeing: inner.device=auto, inner.precision=auto must be resolved"):
        seeing(run, Nested())
    seeing(run, config.resolve(Nested(), {"device": "cpu", "precision": "fp32"}))
    seeing(run, config.resolve(Nested(), {"device": "cuda", "precision": "fp32"}))
    assert len(set(keys(run.steps))) == 2


ARGUMENTS: list[tuple[Any, ...]] = [
    (ToySet(),),
    (MapsConfig(), ToySet().ids),
    (MapsConfig(), ToySet()),
    (MapsConfig(), Artifact("k", Path("x"))),
    ("voc", MapsConfig()),
    (("voc",), MapsConfig()),
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_stages_take_values_and_then_their_config(tmp_path: Path, arguments: tuple[Any, ...]) -> None:
    run = Run(tmp_path, planning=True)
    with pytest.raises(UsageError, match=r"stage toy_chain\.maps: .*expected .*values"):
        toy_chain.maps(run, *arguments)
    with pytest.raises(UsageError, match="expected positional values"):
        toy_chain.maps(run, data=ToySet(), cfg=MapsConfig())


# ---------------------------------------------------------------------------------------------------------- plan


def test_the_plan_runs_nothing_and_has_the_keys_of_the_run(tmp_path: Path, log: Path) -> None:
    cache = tmp_path / "cache"
    before = toy_chain.plan(Config(), cache)
    assert states(before) == ["to do"] * 3
    assert not cache.exists()
    assert not log.read_text()
    ran = fit(cache).steps
    assert keys(ran) == keys(before)
    assert states(ran) == ["ran"] * 3
    assert log.read_text().splitlines() == toy_chain.LINES
    assert states(toy_chain.plan(Config(), cache)) == ["done"] * 3
    other = toy_chain.plan(replace(Config(), labels=LabelsConfig(0.25)), cache)
    assert states(other) == ["done", "to do", "to do"]
    assert [s.inputs for s in other] == [["toy"], [other[0].key], [other[1].key]]


def choosing(run: Run) -> str:
    """The lower or the upper threshold, by what a first score says."""
    maps = toy_chain.maps(run, ToySet(), MapsConfig())
    score = toy_chain.score(run, toy_chain.labels(run, maps, LabelsConfig(0.5)), toy_chain.ScoreConfig())
    chosen = run.choice(score, lambda: "low" if score.read()["mean"] > 2 else "high", ("low", "high"))
    toy_chain.labels(run, maps, LabelsConfig({"low": 0.1, "high": 0.9}[chosen]))
    return chosen


def test_what_hangs_on_a_choice_is_planned_as_maybe(tmp_path: Path) -> None:
    plan = Run(tmp_path, planning=True)
    assert choosing(plan) == "low"
    assert states(plan.steps) == ["to do"] * 3 + ["maybe"]
    run = Run(tmp_path)
    assert choosing(run) == "high"
    again = Run(tmp_path, planning=True)
    assert choosing(again) == "high"
    assert states(again.steps) == ["done"] * 4
    assert keys(again.steps) == keys(run.steps)


READS = {
    "maps.gain": {"maps", "labels", "score"},
    "maps.device": {"maps", "labels", "score"},
    "maps.solver.steps": {"maps", "labels", "score"},
    "maps.solver.tolerance": {"maps", "labels", "score"},
    "maps.workers": set(),
    "labels.threshold": {"labels", "score"},
    "score.name": {"score"},
}


def test_one_changed_setting_runs_what_reads_it_and_what_follows() -> None:
    found = {}
    for name, keyed, changed, expected in method_checks.all_changes(toy_chain.plan, Config()):
        assert changed == expected, name
        assert bool(changed) == keyed, name
        found[name] = {n.removeprefix("toy_chain.").removesuffix("#1") for n in changed}
    assert found == READS


def test_the_check_of_changes_sees_a_key_that_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = store.key_of
    monkeypatch.setattr(store, "key_of", lambda name, version, cfg, values: honest(name, version, cfg, ()))
    changed, expected = method_checks.changed_stages(toy_chain.plan, Config(), "maps.gain")
    assert changed < expected
    monkeypatch.setattr(store, "key_of", lambda name, version, cfg, values: honest(name, version, Solver(), values))
    changed, expected = method_checks.changed_stages(toy_chain.plan, Config(), "maps.gain")
    assert changed < expected


# ------------------------------------------------------------------------------------------ commit and integrity


def test_a_finished_artifact_is_never_rebuilt(tmp_path: Path, log: Path) -> None:
    cache = tmp_path / "cache"
    first = fit(cache)
    log.write_text("")
    stamps = {p: p.stat().st_mtime_ns for p in cache.rglob("*") if p.is_file()}
    second = fit(cache)
    assert states(second.steps) == ["done"] * 3
    assert not log.read_text()
    assert stamps == {p: p.stat().st_mtime_ns for p in cache.rglob("*") if p.is_file()}
    assert [round(s.seconds, 3) for s in first.steps] == [s.seconds for s in second.steps]


def test_touching_or_moving_the_cache_redoes_nothing(tmp_path: Path, log: Path) -> None:
    first = fit(tmp_path / "cache")
    log.write_text("")
    for file in (tmp_path / "cache").rglob("*"):
        os.utime(file, (1, 1))
    (tmp_path / "far" / "away").mkdir(parents=True)
    shutil.move(tmp_path / "cache", tmp_path / "far" / "away" / "c")
    moved = fit(tmp_path / "far" / "away" / "c")
    assert states(moved.steps) == ["done"] * 3
    assert keys(moved.steps) == keys(first.steps)
    assert not log.read_text()


def test_the_artifact_is_there_only_when_it_is_complete(tmp_path: Path) -> None:
    seen: list[str] = []

    @stage(Scores, version=1)
    def slow(work: Work, cfg: LabelsConfig) -> None:
        artifacts.write_scores(work, {"a": 1})
        seen.extend(p.name for p in tmp_path.glob(f"{__name__}*"))
        work.event("batch halved")

    run = Run(tmp_path)
    made = slow(run, LabelsConfig())
    assert seen == [f"{made.path.name}.partial"]
    assert sorted(p.name for p in made.path.iterdir()) == ["record.json", "scores.json"]
    record = made.record
    assert list(record["outputs"]) == ["scores.json"]
    assert record["outputs"]["scores.json"]["bytes"] == (made.path / "scores.json").stat().st_size
    assert (record["stage"], record["version"], record["config"]) == (f"{__name__}.slow", 1, {"threshold": 0.5})
    assert record["events"] == ["batch halved"]
    assert record["libraries"]["numpy"]
    assert record["peak_mb"] > 1


def test_a_body_that_fails_leaves_no_artifact_and_no_fault_of_its_own(tmp_path: Path) -> None:
    @stage(Scores, version=1)
    def failing(work: Work, cfg: LabelsConfig) -> None:
        (tmp_path / "source" / "gone.jpg").read_bytes()

    with pytest.raises(FileNotFoundError):
        failing(Run(tmp_path / "cache"), LabelsConfig())
    assert states(_planned(failing, tmp_path / "cache")) == ["to do"]


def test_an_unreadable_source_is_not_reported_as_a_full_cache(tmp_path: Path) -> None:
    @stage(Scores, version=1)
    def denied(work: Work, cfg: LabelsConfig) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "source" / "a.jpg"))

    with pytest.raises(PermissionError):
        denied(Run(tmp_path / "cache"), LabelsConfig())


def _planned(call: Callable[..., Artifact], cache: Path) -> list[Step]:
    run = Run(cache, planning=True)
    call(run, LabelsConfig())
    return run.steps


def test_a_flipped_byte_anywhere_is_found_and_named(tmp_path: Path) -> None:
    steps = fit(tmp_path).steps
    files = [p for s in steps for p in s.path.iterdir() if p.name != store.RECORD]
    assert len(files) == 4 + 4 + 1  # shards and index of maps and labels, one document
    for file in files:
        whole = file.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(IntegrityError, match=f"{file}: its bytes are not those") as caught:
                fit(tmp_path)
            assert caught.value.exit_code == 5
        file.write_bytes(whole[:-1])
        with pytest.raises(IntegrityError, match=str(file)):
            fit(tmp_path)
        file.unlink()
        with pytest.raises(IntegrityError, match=str(file)):
            fit(tmp_path)
        file.write_bytes(whole)
    assert states(fit(tmp_path).steps) == ["done"] * 3


def test_readers_check_too_and_a_damaged_record_is_an_integrity_error(tmp_path: Path) -> None:
    run = fit(tmp_path)
    made, record = Scores(run.steps[2].key, run.steps[2].path), run.steps[2].path / store.RECORD
    good = record.read_bytes()
    for bad in (b"", good[:-20], b"[]", b"{}", good.replace(b'"sha256"', b'"sha255"'), b"\xff"):
        store._verified.clear()
        record.write_bytes(bad)
        with pytest.raises(IntegrityError, match=r"record .*remove the folder and run again"):
            Scores(made.key, made.path).read()
    record.write_bytes((run.steps[1].path / store.RECORD).read_bytes())  # another artifact's record
    with pytest.raises(IntegrityError, match="it is of key"):
        made.read()


def test_an_artifact_built_again_is_checked_again(tmp_path: Path) -> None:
    run = fit(tmp_path)
    path = run.steps[2].path
    store.verify(path)
    shutil.rmtree(path)
    again = Run(tmp_path)
    made = toy_chain.fit(again, ToySet(), Config())
    assert states(again.steps) == ["done", "done", "ran"]
    (path / "scores.json").write_bytes(b"{}")
    with pytest.raises(IntegrityError, match=r"scores\.json"):
        made.read()


def test_artifacts_travel_to_other_processes(tmp_path: Path) -> None:
    step = fit(tmp_path).steps[0]
    maps = artifacts.MapSet(step.key, step.path)
    first = maps.get(maps.ids[0])
    copy = pickle.loads(pickle.dumps(maps))
    assert copy == maps
    assert (copy.get(maps.ids[0]).scores == first.scores).all()


# ------------------------------------------------------------------------------------ interruption and half-done


def interrupted_at(cache: Path, tick: int) -> None:
    ticks = []
    run = Run(cache, progress=lambda *at: ticks.append(at), stopping=lambda: len(ticks) >= tick)
    with pytest.raises(Interrupted, match=rf"toy_chain.maps at {tick} of 5; the same command goes on") as caught:
        toy_chain.fit(run, ToySet(), Config())
    assert caught.value.exit_code == 130
    assert ticks[-1] == ("toy_chain.maps", tick, 5, "")


@pytest.mark.parametrize("tick", range(1, 6))
def test_an_interrupted_stage_goes_on_at_the_next_shard(tmp_path: Path, log: Path, tick: int) -> None:
    cache = tmp_path / "cache"
    interrupted_at(cache, tick)
    log.write_text("")
    fit(cache)
    assert log.read_text().splitlines() == toy_chain.LINES[(tick - 1) // toy_chain.SHARD :]


def test_seconds_of_interrupted_tries_count(tmp_path: Path) -> None:
    tries = []

    @stage(Scores, version=1)
    def slow(work: Work, cfg: LabelsConfig) -> None:
        tries.append(1)
        time.sleep(0.05)
        artifacts.write_scores(work, {})
        if len(tries) < 3:
            raise Interrupted("x")

    for _ in range(2):
        with pytest.raises(Interrupted):
            slow(Run(tmp_path), LabelsConfig())
    assert slow(Run(tmp_path), LabelsConfig()).record["seconds"] >= 0.15


def test_scratch_outlives_an_interruption_and_is_no_output(tmp_path: Path) -> None:
    found = []

    @stage(Scores, version=1)
    def training(work: Work, cfg: LabelsConfig) -> None:
        note = work.scratch / "checkpoint.json"
        found.append(json.loads(note.read_text()) if note.exists() else 0)
        disk.write_atomic(note, json.dumps(found[-1] + 1).encode())
        if found[-1] < 2:
            raise Interrupted("x")
        artifacts.write_scores(work, {})

    for _ in range(2):
        with pytest.raises(Interrupted):
            training(Run(tmp_path), LabelsConfig())
    made = training(Run(tmp_path), LabelsConfig())
    assert found == [0, 1, 2]
    assert sorted(p.name for p in made.path.iterdir()) == ["record.json", "scores.json"]


@pytest.mark.parametrize("library", ["torch", "numpy", "numba"])
def test_half_done_work_of_other_library_versions_restarts(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    interrupted_at(tmp_path / "cache", 4)
    now = store.library_versions()
    monkeypatch.setattr(store, "library_versions", lambda: {**now, library: "0.1"})
    log.write_text("")
    fit(tmp_path / "cache")
    assert log.read_text().splitlines() == toy_chain.LINES


def test_other_libraries_do_not_restart_and_finished_work_stays(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted_at(tmp_path / "cache", 4)
    now = store.library_versions()
    monkeypatch.setattr(store, "library_versions", lambda: {**now, "scipy": "0.1"})
    log.write_text("")
    fit(tmp_path / "cache")
    assert log.read_text().splitlines() == toy_chain.LINES[1:]
    monkeypatch.setattr(store, "library_versions", lambda: {**now, "torch": "0.1"})
    assert states(fit(tmp_path / "cache").steps) == ["done"] * 3


def test_orphans_are_swept(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    interrupted_at(cache, 4)
    (partial,) = cache.glob("*.partial")
    for orphan in (partial / "shard-000001.tar.99.tmp", partial / store.SCRATCH / "checkpoint.1.tmp"):
        orphan.write_bytes(b"half")
    run = fit(cache)
    assert not list(cache.rglob("*.tmp"))
    assert not list(cache.rglob("*.partial"))
    assert all(not name.endswith(".tmp") for found in toy_chain.outputs(run).values() for name in found)


def test_a_folder_without_a_record_is_no_artifact(tmp_path: Path) -> None:
    step = fit(tmp_path).steps[2]
    (step.path / store.RECORD).unlink()
    (step.path / "stray").touch()
    assert states(toy_chain.plan(Config(), tmp_path)) == ["done", "done", "to do"]
    assert states(fit(tmp_path).steps) == ["done", "done", "ran"]
    assert not (step.path / "stray").exists()


def test_work_map_keeps_the_order_and_looks_little_ahead(tmp_path: Path) -> None:
    begun: list[int] = []

    def square(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item**2

    def items() -> list[int]:
        return [begun.append(i) or i for i in range(50)]  # type: ignore[func-returns-value]

    work = Work(Run(tmp_path, workers=3), "s", tmp_path)
    assert list(work.map(square, items())) == [i**2 for i in range(50)]
    begun.clear()
    lazy = work.map(square, (begun.append(i) or i for i in range(50)))  # type: ignore[func-returns-value]
    assert next(lazy) == 0
    assert len(begun) <= 8
    lazy.close()  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        list(work.map(lambda i: 1 // i, [1, 0, 1]))


# --------------------------------------------------------------------------------------------------------- locks

BUILD = """
import sys, time
from pathlib import Path
from tagseg.artifacts import Scores, write_scores
from tagseg.store import Run, stage
import toy_chain

@stage(Scores, version=1)
def slow(work, cfg):
    toy_chain.note(f"body {sys.argv[2]}")
    time.sleep(float(sys.argv[3]))
    write_scores(work, {"a": 1})

said = []
run = Run(Path(sys.argv[1]), progress=lambda *at: said.append(at[3]))
slow(run, toy_chain.ScoreConfig())
print(run.steps[0].state, *sorted(set(said)), sep=",")
"""


def started(cache: Path, name: str, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(cache), name, str(seconds)]
    return subprocess.Popen(command, env={**ENVIRONMENT, "TOY_LOG": os.environ["TOY_LOG"]}, stdout=-1, text=True)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "nothing happened for 20 s"
        time.sleep(0.02)


def test_two_processes_that_need_one_key_build_it_once(tmp_path: Path, log: Path) -> None:
    both = [started(tmp_path / "cache", name, 1.0) for name in ("a", "b")]
    said = sorted(p.communicate(timeout=30)[0].strip() for p in both)
    assert [p.returncode for p in both] == [0, 0]
    builder = next(p.pid for p in both if f"process {p.pid}" in said[0] or f"process {p.pid}" in said[1])
    assert said == [f"done,waiting for process {builder}", "ran"]
    assert len(log.read_text().splitlines()) == 1


def test_a_killed_holder_frees_its_lock(tmp_path: Path, log: Path) -> None:
    holder = started(tmp_path / "cache", "a", 60)
    until(lambda: "body a" in log.read_text())
    waiter = started(tmp_path / "cache", "b", 0)
    time.sleep(0.3)
    holder.send_signal(signal.SIGKILL)
    assert waiter.communicate(timeout=30)[0].startswith("ran")
    holder.communicate()
    assert log.read_text().splitlines() == ["body a", "body b"]


def test_a_held_lock_names_its_holder(tmp_path: Path) -> None:
    file = tmp_path / "locks" / "x"
    with disk.lock(file, wait=False):
        held = pytest.raises(EnvironmentFault, match=f"{file}: in use by process {os.getpid()}; wait")
        with held as caught, disk.lock(file, wait=False):
            pass
        assert caught.value.exit_code == 4
    with disk.lock(file, wait=False):
        pass


def test_whoever_waits_can_be_interrupted(tmp_path: Path) -> None:
    run = Run(tmp_path, stopping=lambda: True)
    (step,) = _planned(lambda r, cfg: toy_chain.maps(r, ToySet(), MapsConfig()), tmp_path)
    with disk.lock(tmp_path / ".locks" / step.path.name, wait=False), pytest.raises(Interrupted, match="waiting for"):
        toy_chain.maps(run, ToySet(), MapsConfig())
