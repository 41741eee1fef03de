"""Time two ways of doing one job in turn, and write the row that is reported."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent / "out"


def in_turn(jobs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """Median, lowest and highest CPU and wall milliseconds of each job; jobs alternate so that noise hits all alike."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            times[name].append((1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)))
    return {
        name: {"cpu_ms": _spread([c for c, _ in t]), "wall_ms": _spread([w for _, w in t])} for name, t in times.items()
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 2), "low": round(min(values), 2), "high": round(max(values), 2)}


def write(job: str, row: dict[str, Any]) -> None:
    """Write benchmarks/out/JOB.json with the commit, and print it."""
    name = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=OUT.parent)
    OUT.mkdir(exist_ok=True)
    document = {"job": job, "commit": name.stdout.strip() or None, **row}
    (OUT / f"{job}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))
