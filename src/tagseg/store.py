"""Artifacts on disk: `@stage`, keys, plan before running, atomic commit, resume inside a stage, one lock per key."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import resource
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

from tagseg import config
from tagseg.disk import file_sha256, fsync_folder, lock, space_checked, write_atomic
from tagseg.types import EnvironmentFault, IntegrityError, Interrupted, UsageError

P = ParamSpec("P")
In = TypeVar("In")
Out = TypeVar("Out")
RECORD = "record.json"
SCRATCH = "half-done"
RESTART_ON = ("torch", "numpy", "numba")


class Value(Protocol):
    """Anything a stage takes: identified by content, never by place."""

    @property
    def key(self) -> str: ...


@dataclass(frozen=True)
class Artifact:
    """A finished (or, while planning, future) folder of results."""

    key: str
    path: Path

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """What made it: stage, config, inputs, seconds, memory, versions, events."""
        return verify(self.path)

    def __reduce__(self) -> tuple[Any, ...]:  # to a worker process goes the place, not what was opened there
        return type(self), (self.key, self.path)


K = TypeVar("K", bound=Artifact)


@dataclass
class Step:
    """One line of the plan or of the lineage."""

    stage: str
    key: str
    path: Path
    state: Literal["done", "to do", "maybe", "ran"]
    inputs: list[str]
    config: Any
    seconds: float = 0.0


@dataclass
class Run:
    """What a stage call needs to know about this process: where artifacts live, how to report, whether to plan only."""

    cache: Path
    workers: int = 2
    planning: bool = False
    progress: Callable[[str, int, int, str], None] = lambda stage, done, total, note: None
    stopping: Callable[[], bool] = lambda: False
    steps: list[Step] = field(default_factory=list)
    unsure: bool = False
    commit: str | None = None

    def choice(self, value: Artifact, read: Callable[[], str], options: tuple[str, ...]) -> str:
        """A choice made from data. While planning, an unmade one is the first option; what hangs on it is "maybe"."""
        if self.planning and not (value.path / RECORD).exists():
            self.unsure = True
            return options[0]
        return read()


@dataclass
class Work:
    """What a stage's body sees: its half-done folder, progress, interruption and the record of exceptions."""

    run: Run
    stage: str
    folder: Path
    events: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    resumed_at: int = 0

    @property
    def scratch(self) -> Path:
        """Where checkpoints go: kept with the half-done state until the artifact is committed, and never part of it."""
        return self.folder / SCRATCH

    @property
    def stopping(self) -> bool:
        return self.run.stopping()

    def tick(self, done: int, total: int, note: str = "") -> None:
        """Report progress; raise `Interrupted` if the process was asked to end."""
        self.run.progress(self.stage, done, total, note)
        if self.stopping:
            raise Interrupted(f"interrupted in {self.stage} at {done} of {total}; the same command goes on from there")

    def map(self, function: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
        """`function` of each item, in order, by the run's worker threads; a few results ahead, memory stays bounded."""
        waiting: deque[Future[Out]] = deque()
        with ThreadPoolExecutor(self.run.workers) as pool:
            try:
                for item in items:
                    waiting.append(pool.submit(function, item))
                    if len(waiting) > 2 * self.run.workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def event(self, text: str) -> None:
        """Note an exception to "the same bytes" (a halved batch, a lowered rate) in the stage's record."""
        self.events.append(text)
        write_atomic(self.scratch / "events.json", json.dumps(self.events).encode())


def stage(
    kind: type[K], *, version: int
) -> Callable[[Callable[Concatenate[Work, P], None]], Callable[Concatenate[Run, P], K]]:
    """Make `body(work, *values, cfg)` a cached, resumable step: called with a `Run`, it gives the finished artifact."""

    def wrap(body: Callable[Concatenate[Work, P], None]) -> Callable[Concatenate[Run, P], K]:
        name = f"{body.__module__.removeprefix('tagseg.')}.{body.__name__}"

        @functools.wraps(body)
        def call(run: Run, *args: P.args, **named: P.kwargs) -> K:
            values, cfg = _split(name, args, named)
            step = Step(
                name,
                key_of(name, version, cfg, values),
                Path(),
                "done",
                [v.key for v in _flat(values)],
                config.canonical(cfg),
            )
            step.path = run.cache / f"{name}-{step.key[:24]}"
            run.steps.append(step)
            if run.planning:
                step.state = "done" if (step.path / RECORD).exists() else "maybe" if run.unsure else "to do"
            elif not (step.path / RECORD).exists():
                _build(run, step, version, lambda work: body(work, *args, **named))
            else:
                step.seconds = verify(step.path)["seconds"]
            return kind(step.key, step.path)

        call.version = version  # type: ignore[attr-defined]
        return call

    return wrap


Values = tuple["Value | tuple[Value, ...]", ...]


def _flat(values: Values) -> list[Value]:
    return [v for value in values for v in (value if isinstance(value, tuple) else (value,))]


def _split(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Values, Any]:
    """A stage's arguments are values (or tuples of values), then its config, last."""
    if named or not args or not config.is_config(args[-1]) or hasattr(args[-1], "key"):
        raise UsageError(f"stage {name}: expected positional values and then the stage's config")
    left = [f"{n}={v}" for n, v, _ in config.leaves(args[-1]) if v == "auto"]
    if left:
        raise UsageError(f"stage {name}: {', '.join(left)} must be resolved before a stage is keyed (config.resolve)")
    if bad := [type(v).__name__ for v in _flat(args[:-1]) if not isinstance(getattr(v, "key", None), str)]:
        raise UsageError(f"stage {name}: found {', '.join(bad)} as input, expected values that have a key")
    return args[:-1], args[-1]


def key_of(name: str, version: int, cfg: Any, values: Values) -> str:
    """sha256 over stage name, version, canonical config and the keys of the inputs (a tuple's keys stay grouped)."""
    keys = [[v.key for v in value] if isinstance(value, tuple) else value.key for value in values]
    text = json.dumps([name, version, config.canonical(cfg), keys], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _build(run: Run, step: Step, version: int, body: Callable[[Work], None]) -> None:
    """Run the body in KEY.partial and commit it by one rename; whoever comes second waits and finds it done."""
    partial = step.path.with_name(step.path.name + ".partial")
    waiting = functools.partial(_say_waiting, run, step.stage)
    with space_checked(partial), lock(run.cache / ".locks" / step.path.name, wait=True, told=waiting):
        if (step.path / RECORD).exists():  # built by the one we waited for
            step.seconds = verify(step.path)["seconds"]
            return
        _open_partial(partial)
        work = Work(run, step.stage, partial, events=_earlier_events(partial))
        _reset_peak()
        with _timed(partial, step):
            body(work)
        _commit(step, version, partial, work)
        step.state = "ran"


def _say_waiting(run: Run, stage: str, who: str) -> None:
    run.progress(stage, 0, 0, f"waiting for {who}")
    if run.stopping():
        raise Interrupted(f"interrupted while waiting for {who} in {stage}; the same command goes on from there")


@contextlib.contextmanager
def _timed(partial: Path, step: Step) -> Iterator[None]:
    """Seconds of this try and of those that were interrupted before (kill -9 leaves none: then a lower bound)."""
    note, start = partial / SCRATCH / "seconds", time.perf_counter()
    earlier = float(note.read_text()) if note.exists() else 0.0
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, EnvironmentFault):
            write_atomic(note, repr(earlier + time.perf_counter() - start).encode())
        raise
    step.seconds = earlier + time.perf_counter() - start


def _open_partial(partial: Path) -> None:
    """Keep a half-done folder made under the same library versions; start a fresh one otherwise. Orphans are swept."""
    note = partial / SCRATCH / "versions.json"
    versions = {n: v for n, v in library_versions().items() if n in RESTART_ON}
    if partial.exists() and not (note.exists() and json.loads(note.read_text()) == versions):
        shutil.rmtree(partial)
    (partial / SCRATCH).mkdir(parents=True, exist_ok=True)
    for orphan in partial.rglob("*.tmp"):
        orphan.unlink()
    if not note.exists():
        write_atomic(note, json.dumps(versions).encode())


def _earlier_events(partial: Path) -> list[str]:
    note = partial / SCRATCH / "events.json"
    return list(json.loads(note.read_text())) if note.exists() else []


def _commit(step: Step, version: int, partial: Path, work: Work) -> None:
    """Hash every output, write the record, rename. The scratch goes last: a kill before the rename loses nothing."""
    own = (partial / SCRATCH, partial / RECORD)
    outputs = {
        p.relative_to(partial).as_posix(): {"sha256": file_sha256(p), "bytes": p.stat().st_size}
        for p in sorted(partial.rglob("*"))
        if p.is_file() and not any(p.is_relative_to(o) for o in own)
    }
    record = {
        "stage": step.stage,
        "version": version,
        "key": step.key,
        "config": step.config,
        "inputs": step.inputs,
        "outputs": outputs,
        "seconds": round(step.seconds, 3),
        "peak_mb": peak_mb(),
        "libraries": library_versions(),
        "commit": work.run.commit,
        "events": work.events,
        "meta": work.meta,
    }
    write_atomic(partial / RECORD, json.dumps(record, indent=1).encode())
    if step.path.exists():  # a folder without a record is not an artifact
        shutil.rmtree(step.path)
    os.replace(partial, step.path)
    fsync_folder(step.path.parent)
    _verified.pop(step.path, None)
    shutil.rmtree(step.path / SCRATCH, ignore_errors=True)


_verified: dict[Path, dict[str, Any]] = {}
_NAMED = re.compile(r".+-[0-9a-f]{24}")  # a folder of a cache; a copy elsewhere (the weights of a run) has a plain name


def forget(path: Path) -> None:
    """The next look at this folder checks it again: its files have been replaced."""
    _verified.pop(path, None)


def verify(path: Path) -> dict[str, Any]:
    """The record of a finished artifact after every output was checked against its sha256 (once in a process)."""
    if path not in _verified:
        try:
            record = json.loads((path / RECORD).read_text())
            outputs = {name: entry["sha256"] for name, entry in record["outputs"].items()}
            if _NAMED.fullmatch(path.name) and not path.name.endswith(f"-{record['key'][:24]}"):
                raise ValueError(f"it is of key {record['key'][:24]}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(
                f"{path}: the record of this artifact cannot be read ({error}); remove the folder and run again"
            ) from error
        for name, sha256 in outputs.items():
            if not (path / name).is_file() or file_sha256(path / name) != sha256:
                raise IntegrityError(
                    f"{path / name}: its bytes are not those that were written (expected sha256 "
                    f"{sha256[:12]}...); remove the folder {path.name} and run again to rebuild it"
                )
        _verified[path] = record
    return _verified[path]


@functools.cache
def library_versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "torchvision", "timm", "numpy", "numba", "scipy", "pillow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _reset_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as handle:
        handle.write("5")


def peak_mb() -> float:
    """Peak resident memory in MB: since the stage began on Linux, of the process elsewhere."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as handle:
        return round(int(next(line for line in handle if line.startswith("VmHWM")).split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
