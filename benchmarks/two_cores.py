"""What a second core brings: ours in two threads of one process and in two processes, the peer in two processes.

Two threads share an interpreter, an allocator and a file's pages; two processes share the machine alone. What two
processes lose is the machine's, what two threads lose beyond that is ours.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import cam_speed, miou, superpixel_speed, walk
from benchmarks.measure import _alternate, _run, _sides, write
from benchmarks.photos import photos, rgb
from benchmarks.processes import Build, cores

ROUNDS = 7
ONE, THREADS, PROCESSES = "ours, one core", "ours, two threads", "ours, two processes"
PEER, PEERS = "peer, one core", "peer, two processes"


def wall(build: Build, args: tuple[Any, ...]) -> dict[str, float]:
    """Median wall milliseconds of a call when it is made alone, and when two are made at once; ways alternate."""
    first, second, both = cores(1), cores(2)[1:], cores(2)
    with _sides(build, args) as start:
        ours, threads, other = start("ours", first), start("ours", both), start("ours", second)
        peer, another = start("peer", first), start("peer", second)
        ways = {ONE: ([ours], 1), THREADS: ([threads], 2), PROCESSES: ([ours, other], 2), PEER: ([peer], 1),
                PEERS: ([peer, another], 2)}  # fmt: skip
        times = _alternate({name: partial(_run, sides, calls) for name, (sides, calls) in ways.items()}, ROUNDS)
    found = {name: one["wall_ms"]["median"] for name, one in times.items()}
    gains = {f"{two}: times one core's work": found[one] / found[two]
             for one, two in ((ONE, THREADS), (ONE, PROCESSES), (PEER, PEERS))}  # fmt: skip
    return found | gains


def main() -> None:
    if len(cores(2)) < 2:
        return
    with tempfile.TemporaryDirectory() as folder:
        few, many = photos(8, Path(folder)), photos(miou.IMAGES, Path(folder))
        height, width = rgb(few.images[0]).shape[:2]
        area, small = round((height * width) ** 0.5), few.images[: superpixel_speed.IMAGES]
        jobs: dict[str, tuple[Build, tuple[Any, ...]]] = {
            "cam-mobilenet_v2": (cam_speed.sides, (few.images, area, _precision(), cam_speed.NET)),
            "walk-chebyshev-94x125": (walk.sides, (few.images[0], walk.FULL, "chebyshev")),
            "miou": (miou.sides, (many.masks, many.classes, "histograms")),
            "superpixels-felzenszwalb": (superpixel_speed.sides, (small, "felzenszwalb")),
        }
        found = {name: {"cpu_ms": wall(*job)} for name, job in jobs.items()}
    write("two-cores", {"setting": f"as in the rows of these names, medians of {ROUNDS} calls of each way in turn",
                        "unit": "wall ms", "phases": found})  # fmt: skip


def _precision() -> str:
    from tagseg.runs.setup import choose_precision

    return choose_precision("auto", "cpu")


if __name__ == "__main__":
    main()
