"""Time two ways of doing one job in turn, say whether they agree, and write the row that is reported."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.processes import Build, Side, cores

OUT = Path(__file__).resolve().parent / "out"
LIBRARIES = ("numpy", "numba", "torch", "scikit-image", "pydensecrf2", "torchmetrics")
Times = dict[str, dict[str, dict[str, float]]]
STOLEN = 0.1  # of the time that this machine wanted: more, and a round is made again
AGAIN = 2  # times as many rounds as were asked for, at most, are made again


class CannotRun(Exception):
    """A job that this machine cannot do; the text says why. The other jobs go on."""


def compare(job: str, *, peer: str, setting: str, build: Build, args: tuple[Any, ...] = (),
            agree: Callable[[Any, Any], float], agreement_of: str, rounds: int = 7,
            more: dict[str, Any] | None = None) -> dict[str, Any]:
    """Measure `build(*args)["ours"]` against `["peer"]` on one and on two cores, and write the row.

    On two cores ours runs in two threads of one process, as a run does it, and the peer in two processes, as its users
    do. `agree` compares the two results of this very run. `build` is a module's function, for it runs in fresh
    processes; `args` are plain values.
    """
    times: dict[int, Times] = {}
    with _sides(build, args) as start:
        ours, peers = start("ours", cores(1)), [start("peer", cores(1))]
        for count in range(1, 1 + len(cores(2))):
            if count > 1:
                ours, peers = start("ours", cores(2)), [*peers, start("peer", cores(2)[1:])]
            at_once = {"ours": partial(_run, [ours], count), "peer": partial(_run, peers, count)}
            times[count] = _alternate(at_once, rounds)
            if count == 1:
                first, theirs = ours.first, peers[0].first
    row = {
        "peer": peer, "setting": setting, **ratios(times[1]),
        "agreement": agree(first.result, theirs.result), "agreement_of": agreement_of,
        "peak_mb_ours": first.peak_mb, "peak_mb_peer": theirs.peak_mb,
        "two_cores": ratios(times[2]) if 2 in times else None, "rounds": rounds, "times": times, **(more or {}),
    }  # fmt: skip
    write(job, row)
    return row


@contextmanager
def _sides(build: Build, args: tuple[Any, ...]) -> Iterator[Callable[[str, list[int]], Side]]:
    """Starts sides, and ends them whatever happens. A side has as many threads as cores."""
    started: list[Side] = []

    def start(name: str, on: list[int]) -> Side:
        started.append(Side.start(build, args, name, on))
        return started[-1]

    try:
        yield start
    finally:
        for side in started:
            side.stop()


def _run(sides: list[Side], calls: int) -> tuple[float, float]:
    """CPU and wall milliseconds of one call when `calls` of them were made at once."""
    start = time.perf_counter()
    for side in sides:
        side.go()
    cpu = sum(side.cpu_ms() for side in sides)
    return cpu / calls, 1e3 * (time.perf_counter() - start) / calls


def in_turn(jobs: dict[str, Callable[[], Any]], rounds: int) -> Times:
    """Median, lowest and highest CPU and wall milliseconds of each job, in this process; jobs alternate."""
    return _alternate({name: partial(_timed, job) for name, job in jobs.items()}, rounds)


def _timed(job: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    return 1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)


def _alternate(jobs: dict[str, Callable[[], tuple[float, float]]], rounds: int) -> Times:
    """All jobs once in each round, so that noise hits all alike. A round in which the host gave the cores of this
    (virtual) machine to others is made again, whatever it measured; where all are like that, the best of them in this
    respect count, and "stolen_percent" says how much it was.
    """
    made: list[tuple[float, dict[str, tuple[float, float]]]] = []
    while sum(stolen <= STOLEN for stolen, _ in made) < rounds and len(made) < (1 + AGAIN) * rounds:
        before = jiffies()
        found = {name: job() for name, job in jobs.items()}
        made.append((stolen_share(before, jiffies()), found))
    made = sorted(made, key=lambda one: one[0] > STOLEN and one[0])[:rounds]
    times = {name: [found[name] for _, found in made] for name in jobs}
    share = spread([100 * stolen for stolen, _ in made])
    return {
        name: {"cpu_ms": spread([c for c, _ in t]), "wall_ms": spread([w for _, w in t]), "stolen_percent": share}
        for name, t in times.items()
    }


def jiffies() -> tuple[int, int]:
    """Since the start: what the host gave to others when this machine wanted it, and all that it wanted; 0 where
    nothing says so.
    """
    try:
        user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    except (OSError, ValueError):
        return 0, 0
    return steal, user + nice + system + irq + soft + steal


def stolen_share(before: tuple[int, int], after: tuple[int, int]) -> float:
    wanted = after[1] - before[1]
    return (after[0] - before[0]) / wanted if wanted else 0.0


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 2), "low": round(min(values), 2), "high": round(max(values), 2)}


def ratios(times: Times) -> dict[str, float]:
    """How many times longer the peer takes, by medians."""
    peer, ours = times["peer"], times["ours"]
    return {
        f"ratio_{kind}": round(peer[f"{kind}_ms"]["median"] / max(ours[f"{kind}_ms"]["median"], 1e-3), 2)
        for kind in ("cpu", "wall")
    }


def machine() -> str:
    """The processor's model, its vector width and the cores, without any name of a host."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    facts = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}
    flags = facts.get("flags", "").split()
    width = next((name for name in ("avx512f", "avx2") if name in flags), "no AVX2")
    bf16 = "bf16" if {"avx512_bf16", "amx_bf16"} & set(flags) else "no bf16"
    return f"{facts.get('model name', platform.machine())}, {width}, {bf16}, {os.cpu_count()} cores"


def write(job: str, row: dict[str, Any]) -> None:
    """Write benchmarks/out/JOB.json with commit, machine and versions, and print it in one line."""
    name = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=OUT.parent)
    OUT.mkdir(exist_ok=True)
    document = {"job": job, **row, "commit": name.stdout.strip() or None, "machine": machine(), "versions": _versions()}
    (OUT / f"{job}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps({k: v for k, v in document.items() if k not in ("times", "versions", "machine", "points")}))


def not_measured(job: str, why: str) -> None:
    """Say that a job could not run; a row of an earlier run stays."""
    print(f"{job}: not measured: {why}")
    file = OUT / f"{job}.json"
    if not file.exists() or "not_measured" in json.loads(file.read_text()):
        write(job, {"not_measured": why})


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
