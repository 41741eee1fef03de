"""The store is killed, or the disk fails it, at every single file operation; the same command always goes on.

RELIABILITY 1, 3: a chain of two sharded stages and a document runs with the n-th file operation failing, for every n.
"""

from __future__ import annotations

import builtins
import errno
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import toy_chain
from tagseg import artifacts, disk, store
from tagseg.store import RECORD, SCRATCH, Run
from tagseg.types import EnvironmentFault
from toy_chain import Config, ToySet

SHARDS = -(-len(toy_chain.IDS) // toy_chain.SHARD)


@dataclass
class Faults:
    """Counts file operations and lets one of them, or all from one on (`lasting`), fail."""

    at: int = 0
    fail: Callable[[], None] = lambda: None
    lasting: bool = False
    seen: list[str] = field(default_factory=list)

    def operation(self, name: str) -> None:
        self.seen.append(name)
        if len(self.seen) == self.at or (self.lasting and 0 < self.at < len(self.seen) and name != "unlink"):
            self.fail()


class Counted:
    """A file opened for writing. A write that fails has written half."""

    def __init__(self, handle: Any, faults: Faults) -> None:
        self._handle, self._faults = handle, faults

    def write(self, data: Any) -> int:
        try:
            self._faults.operation("write")
        except OSError:
            self._handle.write(data[: len(data) // 2])
            raise
        return self._handle.write(data)

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where there is such a place: hundreds of small caches are made and removed."""
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(artifacts, "SHARD", toy_chain.SHARD)
    monkeypatch.setattr(store, "_verified", {})
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # the disk itself is not under test, and it is slow
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.fixture
def inject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Faults], pytest.MonkeyPatch]]:
    """Let the operations of this process in its temporary folder pass by `Faults`, until undone."""
    patches = pytest.MonkeyPatch()

    def patch(faults: Faults) -> pytest.MonkeyPatch:
        real = builtins.open

        def counted_open(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
            if not set(mode) & set("wax+") or not str(file).startswith(str(tmp_path)):
                return real(file, mode, *args, **more)
            faults.operation("open")
            return Counted(real(file, mode, *args, **more), faults)

        def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **more: Any) -> Any:
                if name != "mkdir" or not Path(args[0]).exists():
                    faults.operation(name)
                return call(*args, **more)

            return wrapped

        patches.setattr(builtins, "open", counted_open)
        for name in ("fsync", "replace", "unlink", "mkdir"):
            patches.setattr(os, name, counted(name, getattr(os, name)))
        return patches

    yield patch
    patches.undo()


def fit(cache: Path) -> Run:
    store._verified.clear()
    run = Run(cache)
    toy_chain.fit(run, ToySet(), Config())
    return run


def finished(cache: Path) -> list[str]:
    """The lines of work, as they stand in the log, whose result is safely on disk."""
    done = []
    for stage in ("maps", "labels"):
        whole = any((p / RECORD).exists() for p in cache.glob(f"toy_chain.{stage}-{'?' * 24}"))
        count = SHARDS if whole else len(list(cache.glob(f"toy_chain.{stage}-*.partial/shard-*.tar")))
        done += [line for line in toy_chain.LINES if line.startswith(f"{stage} ")][:count]
    return done + ["score"] * any((p / RECORD).exists() for p in cache.glob(f"toy_chain.score-{'?' * 24}"))


def raising(code: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    return fail


def fails_in_process(cache: Path, faults: Faults) -> None:
    """The error is an environment fault that names a place; cleaning up after the commit may fail in silence."""
    try:
        fit(cache)
        return
    except EnvironmentFault as error:
        fault = error
    assert fault.exit_code == 4
    assert str(cache) in str(fault)
    assert "MB free at" in str(fault)
    assert "the same command goes on" in str(fault)


def dies(cache: Path, faults: Faults) -> None:
    """The same in a child process that is killed: no handler, no clean-up."""
    child = os.fork()
    if child == 0:
        try:
            fit(cache)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


CASES = {
    "ENOSPC": (raising(errno.ENOSPC), True, fails_in_process),
    "EIO": (raising(errno.EIO), False, fails_in_process),
    "SIGKILL": (lambda: os.kill(os.getpid(), signal.SIGKILL), False, dies),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_command_goes_on_after_a_fault_at_every_operation(
    tmp_path: Path, log: Path, inject: Callable[[Faults], pytest.MonkeyPatch], case: str
) -> None:
    fail, lasting, run_and_fail = CASES[case]
    counting = Faults()
    inject(counting)
    expected = toy_chain.outputs(fit(tmp_path / "whole"))
    inject(Faults()).undo()
    assert {"open", "write", "fsync", "replace", "mkdir"} <= set(counting.seen)
    begun_when_hit, kept_when_hit = set(), set()
    for n in range(1, len(counting.seen) + 1):
        cache = tmp_path / f"fault-{n}"
        log.write_text("")
        faults = Faults(n, fail, lasting)
        patches = inject(faults)
        run_and_fail(cache, faults)
        patches.undo()
        begun, kept = log.read_text().splitlines(), finished(cache)
        assert begun == toy_chain.LINES[: len(begun)]
        begun_when_hit.add(len(begun))
        kept_when_hit.add(len(kept))
        log.write_text("")
        assert toy_chain.outputs(fit(cache)) == expected, f"operation {n}: {counting.seen[n - 1]}"
        # k shards were safe, so k+1 came next; the one document is written again unless its stage was committed
        assert log.read_text().splitlines() == toy_chain.LINES[len(kept) :], f"operation {n}"
        assert not [p for p in cache.rglob("*") if p.suffix in (".tmp", ".partial")]
        shutil.rmtree(cache)
    assert begun_when_hit == set(range(len(toy_chain.LINES) + 1))  # each body was hit, before, between and after
    assert kept_when_hit == set(range(len(toy_chain.LINES) + 1))


def test_a_kill_after_the_rename_may_leave_the_scratch_and_it_does_no_harm(tmp_path: Path, log: Path) -> None:
    run = fit(tmp_path)
    (run.steps[0].path / SCRATCH).mkdir()
    (run.steps[0].path / SCRATCH / "versions.json").write_text("{}")
    log.write_text("")
    fit(tmp_path)
    assert not log.read_text()


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EROFS", "EFBIG", "EACCES"])
def test_a_disk_that_takes_no_more_is_an_environment_fault_and_harms_nothing(
    tmp_path: Path, log: Path, inject: Callable[[Faults], pytest.MonkeyPatch], code: str
) -> None:
    cache = tmp_path / "cache"
    toy_chain.maps(Run(cache), ToySet(), Config().maps)
    before = {p: p.read_bytes() for p in cache.rglob("*") if p.is_file()}
    faults = Faults(1, raising(getattr(errno, code)), lasting=True)
    patches = inject(faults)
    with pytest.raises(EnvironmentFault) as caught:
        fit(cache)
    patches.undo()
    text = str(caught.value)
    assert caught.value.exit_code == 4
    assert os.strerror(getattr(errno, code)) in text
    assert f"cannot write {cache}" in text
    assert "MB free at" in text
    assert "--out and --cache" in text
    assert before == {p: p.read_bytes() for p in before}


def test_an_old_file_survives_a_failed_rewrite(tmp_path: Path, inject: Callable[[Faults], pytest.MonkeyPatch]) -> None:
    file = tmp_path / "note.json"
    disk.write_atomic(file, b"old")
    counting = Faults()
    inject(counting)
    disk.write_atomic(tmp_path / "other", b"new")
    assert counting.seen == ["open", "write", "fsync", "replace", "fsync"]
    for n in range(1, 5):
        patches = inject(Faults(n, raising(errno.ENOSPC)))
        with pytest.raises(EnvironmentFault, match=str(file)):
            disk.write_atomic(file, b"new")
        patches.undo()
        assert file.read_bytes() == b"old"
        assert not list(tmp_path.glob("*.tmp"))


def test_names_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    for name in ("n" * 255, "ä" * 127, "\udcff" * 200, "-rf"):
        disk.write_atomic(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"


def test_a_real_limit_on_the_size_of_files(tmp_path: Path, log: Path) -> None:
    """EFBIG from the kernel: exit 4, and the same command goes on without the limit."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            fit(tmp_path / "cache")
        except EnvironmentFault as fault:
            os.write(write, str(fault).encode())
            code = fault.exit_code
        finally:
            os._exit(code)
    os.close(write)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    with os.fdopen(read) as pipe:
        text = pipe.read()
    assert os.strerror(errno.EFBIG) in text
    assert "shard-000000.tar" in text
    assert not list(tmp_path.rglob("*.tmp"))
    assert toy_chain.outputs(fit(tmp_path / "cache")) == toy_chain.outputs(fit(tmp_path / "fresh"))
