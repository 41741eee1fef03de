"""What a second core brings: ours in two threads of one process and in two processes, the peer in two processes.

Two threads share an interpreter, an allocator and a file's pages; two processes share the machine alone. What two
processes lose is the machine's, what two threads lose beyond that is ours. `python -m benchmarks.two_cores JOB...`
makes some of them anew and keeps the others.
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import cam_speed, miou, superpixel_speed, walk
from benchmarks.measure import OUT, _alternate, _run, _sides, write
from benchmarks.photos import photos, rgb
from benchmarks.processes import Build, cores

ROUNDS = {"cam": 1}  # a round of it takes minutes; of the others seven are made
ONE, THREADS, PROCESSES = "ours, one core", "ours, two threads", "ours, two processes"
PEER, PEERS = "peer, one core", "peer, two processes"


def wall(build: Build, args: tuple[Any, ...], rounds: int) -> dict[str, float]:
    """Median wall milliseconds of a call when it is made alone, and when two are made at once; ways alternate."""
    first, second, both = cores(1), cores(2)[1:], cores(2)
    with _sides(build, args) as start:
        ours, threads, other = start("ours", first), start("ours", both), start("ours", second)
        peer, another = start("peer", first), start("peer", second)
        ways = {ONE: ([ours], 1), THREADS: ([threads], 2), PROCESSES: ([ours, other], 2), PEER: ([peer], 1),
                PEERS: ([peer, another], 2)}  # fmt: skip
        times = _alternate({name: partial(_run, sides, calls) for name, (sides, calls) in ways.items()}, rounds)
    found = {name: one["wall_ms"]["median"] for name, one in times.items()}
    gains = {f"{two}: times one core's work": found[one] / found[two]
             for one, two in ((ONE, THREADS), (ONE, PROCESSES), (PEER, PEERS))}  # fmt: skip
    return found | gains


def main(only: list[str] | None = None) -> None:
    if len(cores(2)) < 2:
        return
    with tempfile.TemporaryDirectory() as folder:
        few, many = photos(8, Path(folder)), photos(miou.IMAGES, Path(folder))
        height, width = rgb(few.images[0]).shape[:2]
        area, small = round((height * width) ** 0.5), few.images[: superpixel_speed.IMAGES]
        jobs: dict[str, tuple[Build, tuple[Any, ...]]] = {
            "cam": (cam_speed.sides, (few.images, area, _precision(), "timm:resnet50")),
            "cam-mobilenet_v2": (cam_speed.sides, (few.images, area, _precision(), cam_speed.NET)),
            "walk-chebyshev-94x125": (walk.sides, (few.images[0], walk.FULL, "chebyshev")),
            "miou": (miou.sides, (many.masks, many.classes, "histograms")),
            "superpixels-felzenszwalb": (superpixel_speed.sides, (small, "felzenszwalb")),
        }
        made = {name: {"cpu_ms": wall(*jobs[name], ROUNDS.get(name, 7))} for name in only or jobs}
    file = OUT / "two-cores.json"
    before = json.loads(file.read_text())["phases"] if only and file.exists() else {}
    found = {name: (before | made)[name] for name in jobs if name in before | made}
    write("two-cores", {"setting": "as in the rows of these names; medians of seven calls of each way, of cam one",
                        "unit": "wall ms", "phases": found})  # fmt: skip


def _precision() -> str:
    from tagseg.runs.setup import choose_precision

    return choose_precision("auto", "cpu")


if __name__ == "__main__":
    main(sys.argv[1:])
