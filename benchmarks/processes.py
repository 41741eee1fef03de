"""Each side of a comparison in a process of its own, on named cores: CPU time and peak memory are its own."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

Job = Callable[[], Any]
Build = Callable[..., dict[str, Job]]
_STATUS = Path("/proc/self/status")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class Once(NamedTuple):
    """What one call gave and cost: milliseconds, and MB of memory above what was held before (None: not Linux)."""

    result: Any
    cpu_ms: float
    wall_ms: float
    peak_mb: float | None


def once(job: Job) -> Once:
    """Call `job` and say what it cost. Memory that was freed before is handed back first, so that it is not hidden."""
    before = _reset_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    result = job()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = None if before is None else round(max(_status("VmHWM") - before, 0.0), 1)
    return Once(result, 1e3 * cpu, 1e3 * wall, peak)


def cores(count: int) -> list[int]:
    """The first `count` cores that this process may use (fewer where there are fewer)."""
    return sorted(os.sched_getaffinity(0))[:count]


def alone(function: Callable[..., Any], *args: Any) -> Any:
    """What a module's function gives in a fresh process on one core. Errors: `RuntimeError` with its traceback."""
    pipe, process = _start(_answer, (function, args), cores(1))
    try:
        return _received(pipe)
    finally:
        process.join()


@dataclass(eq=False)
class Side:
    """A process that has built its job, run it once, and waits to run it again, in one thread for each of its cores.

    `build(*args)` gives the jobs by name, and may give "warm NAME": a small job that imports and compiles what NAME
    needs and is run before it, in NAME's process alone. `first` is the first run of the job itself: what it keeps
    counts as memory that it needs, which a later run would find there already.
    """

    first: Once
    _pipe: Connection
    _process: BaseProcess

    @classmethod
    def start(cls, build: Build, args: tuple[Any, ...], name: str, on: list[int]) -> Side:
        pipe, process = _start(_serve, (build, args, name, len(on)), on)
        return cls(_received(pipe), pipe, process)

    def go(self) -> None:
        self._pipe.send(True)

    def cpu_ms(self) -> float:
        """CPU time of the run that `go` began, once it is done."""
        return float(_received(self._pipe))

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(False)
        self._process.join()


def _answer(pipe: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    with _reporting(pipe):
        pipe.send(("ok", function(*args)))


def _serve(pipe: Connection, build: Build, args: tuple[Any, ...], name: str, threads: int) -> None:
    with _reporting(pipe), ThreadPoolExecutor(threads) as pool:
        jobs = build(*args)
        job = jobs[name]
        if f"warm {name}" in jobs:
            jobs[f"warm {name}"]()
        pipe.send(("ok", once(job)))
        while pipe.recv():
            before = time.process_time()
            for waiting in [pool.submit(job) for _ in range(threads)]:
                waiting.result()
            pipe.send(("ok", 1e3 * (time.process_time() - before)))


@contextlib.contextmanager
def _reporting(pipe: Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            pipe.send(("failed", traceback.format_exc()))


def _received(pipe: Connection) -> Any:
    try:
        state, value = pipe.recv()
    except EOFError:
        raise RuntimeError("a side of the comparison ended without a word: killed, perhaps for memory") from None
    if state == "failed":
        raise RuntimeError(f"a side of the comparison failed:\n{value}")
    return value


def _start(target: Callable[..., None], args: tuple[Any, ...], on: list[int]) -> tuple[Any, BaseProcess]:
    """A spawned process that is on its cores, with its thread pools bounded, before it imports anything."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, *args), daemon=True)
    before, allowed = dict(os.environ), os.sched_getaffinity(0)
    try:
        os.environ.update(dict.fromkeys(_THREADS, str(len(on))), OMP_WAIT_POLICY="PASSIVE", NUMBA_CACHE_DIR=_compiled())
        os.sched_setaffinity(0, on)
        process.start()
    finally:
        os.sched_setaffinity(0, allowed)
        os.environ.clear()
        os.environ.update(before)
    there.close()
    return here, process


@cache
def _compiled() -> str:
    """A folder of compiled kernels for the present state of the code: numba's own check misses changes in callees."""
    state = hashlib.sha256()
    for file in sorted(Path(find_spec("tagseg").origin).parent.joinpath("ops").glob("*.py")):  # type: ignore[union-attr,arg-type]
        state.update(file.read_bytes())
    return str(Path(tempfile.gettempdir()) / f"tagseg-kernels-{os.getuid()}-{state.hexdigest()[:16]}")


def _reset_peak() -> float | None:
    """MB held now, after freed memory went back to the system and the high-water mark was set to it."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except (OSError, AttributeError):
        return None


def _status(name: str) -> float:
    return next(int(line.split()[1]) / 1024 for line in _STATUS.read_text().splitlines() if line.startswith(name))
