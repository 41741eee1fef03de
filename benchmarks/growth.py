"""How time and memory grow with the number of images, and whether classes that are in no image cost anything."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import write
from benchmarks.photos import photos, rgb
from benchmarks.processes import Once, alone, once
from benchmarks.walk import boundary_of
from tagseg import inference
from tagseg.artifacts import MapSet, Scores, Weights, write_maps, write_scores, write_weights
from tagseg.data.index import TaggedSet
from tagseg.localize import cam
from tagseg.refine import crf
from tagseg.store import Artifact, Run, Work, stage
from tagseg.types import ClassMaps

SWEEPS, QUICK = 6, 16  # times that all points are run in turn; of the quick ones, where tenths of a second tell
FRESH = 3  # processes in which memory is measured, for each point
BASE, TIMES = 36, (1, 4, 16)  # two chunks of 64 images are held at once: memory is full from 4x on
CLASSES = (8, 32, 128)
NOISE_MB = 4  # what the allocator alone makes of one and the same call
Stage = Callable[[Run, TaggedSet, "Inputs"], Artifact]
Turns = dict[tuple[int, int], list[Once]]  # by (images, classes)


@dataclass(frozen=True, eq=False)
class Repeated:
    """The same few photos under any number of ids, so that every image is as much work as another."""

    files: tuple[str, ...]

    def read(self, id: str) -> np.ndarray:
        return np.ascontiguousarray(rgb(self._file(id)).transpose(2, 0, 1))

    def size(self, id: str) -> tuple[int, int]:
        height, width = rgb(self._file(id)).shape[:2]
        return height, width

    def digest(self, id: str) -> str:
        return f"{int(id) % len(self.files):064x}"

    def _file(self, id: str) -> str:
        return self.files[int(id) % len(self.files)]


@dataclass(frozen=True)
class Toy:
    """Config of the stand-ins below."""

    stride: int = 16


@stage(Weights, version=1)
def random_weights(work: Work, tagged: TaggedSet, cfg: Toy) -> None:
    """A classifier that was not trained: as much work as a trained one."""
    from tagseg.localize.classify import TagNet
    from tagseg.nets.backbones import build

    net = TagNet(build("mobilenet_v2", stride=cfg.stride), len(tagged.classes))
    write_weights(work, net.state_dict(), {"backbone": "mobilenet_v2", "stride": cfg.stride,
                                           "classes": list(tagged.classes)})


@stage(MapSet, version=1)
def smooth_maps(work: Work, tagged: TaggedSet, cfg: Toy) -> None:
    """Maps with soft blobs, one for each tag, at a quarter of the image's size."""
    def produce(ids: list[str]) -> Iterator[ClassMaps]:
        for sample in ids:
            h, w = tagged.source.size(sample)
            y, x = np.mgrid[: -(-h // 4), : -(-w // 4)].astype(np.float32)
            classes = np.flatnonzero(tagged.tags_of(sample)).astype(np.int64) + 1
            places = np.linspace(0.3, 0.7, len(classes))
            blobs = [np.exp(-((y - p * y.max()) ** 2 + (x - p * x.max()) ** 2) / 600) for p in places]
            yield ClassMaps(sample, classes, np.stack(blobs).astype(np.float32), (h, w))

    write_maps(work, tagged.ids, produce, {})


@stage(Scores, version=1)
def point(work: Work, cfg: Toy) -> None:
    write_scores(work, {"threshold": 0.3})


@stage(MapSet, version=1)
def walked(work: Work, tagged: TaggedSet, maps: MapSet, cfg: Toy) -> None:
    """The affinity walk with the image's gradient as boundary, in the manner of the stage that applies a network."""
    from tagseg.ops.affinity import chebyshev, damp, transition_from_boundary

    def one(sample: str) -> ClassMaps:
        found = maps.get(sample)
        edges = boundary_of(tagged.source.read(sample).transpose(1, 2, 0), found.scores.shape[1:])
        scores = chebyshev(transition_from_boundary(edges), damp(found.scores, edges))
        return replace(found, scores=np.clip(scores / max(float(scores.max()), 1e-5), 0, 1))

    write_maps(work, tagged.ids, lambda ids: work.map(one, ids), {})


@dataclass(frozen=True, eq=False)
class Inputs:
    classifier: Weights
    maps: MapSet
    point: Scores


VIEWS = cam.Views(size=192)
STAGES: dict[str, Stage] = {
    "cam": lambda run, tagged, given: cam.maps(
        run, tagged, given.classifier, replace(cam.Cam(), views=VIEWS, device="cpu", precision="fp32")),
    "crf": lambda run, tagged, given: crf.labels(run, tagged, given.maps, given.point, crf.Crf()),
    "walk": lambda run, tagged, given: walked(run, tagged, given.maps, Toy()),
}  # fmt: skip


def tagged_set(files: list[str], images: int, classes: int) -> TaggedSet:
    """`images` ids over the same photos, each with two of `classes` as tags, dealt in turn."""
    ids = tuple(f"{k:05d}" for k in range(images))
    tags = np.zeros((images, classes), bool)
    for k, row in enumerate(tags):
        row[[2 * k % classes, (2 * k + 1) % classes]] = True
    return TaggedSet("growth", tuple(f"class {c}" for c in range(1, classes + 1)), ids, tags, np.ones(images, bool),
                     Repeated(tuple(files)))


def cost(name: str, tagged: TaggedSet, folder: Path) -> Once:
    """One run of a stage on an empty cache; what it reads was made before."""
    inputs = Run(folder / "inputs", workers=1)
    given = Inputs(random_weights(inputs, tagged, Toy()), smooth_maps(inputs, tagged, Toy()), point(inputs, Toy()))
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        return once(lambda: STAGES[name](Run(Path(cache), workers=1), tagged, given))


def curve(name: str, files: list[str], sizes: list[tuple[int, int]], turns: int) -> Turns:
    """What a stage costs for each (images, classes), in every turn: all sizes one after another, from the other end in
    every second one, small ones more often and the median of these. In this process, compiled before.
    """
    found: Turns = {size: [] for size in sizes}
    most = max(images for images, _ in sizes)
    with tempfile.TemporaryDirectory() as place:
        cost(name, tagged_set(files, 2, CLASSES[0]), Path(place))
        for turn in range(turns):
            for images, classes in sizes[:: 1 if turn % 2 else -1]:
                tagged, often = tagged_set(files, images, classes), round((most / images) ** 0.5)
                found[images, classes].append(middle([cost(name, tagged, Path(place)) for _ in range(often)]))
    return found


def fresh_peak(name: str, files: list[str], size: tuple[int, int]) -> float | None:
    """MB of the first whole run of a process. What a later one needs depends on what those before it have left."""
    with tempfile.TemporaryDirectory() as place:
        cost(name, tagged_set(files, 2, CLASSES[0]), Path(place))
        return cost(name, tagged_set(files, *size), Path(place)).peak_mb


def measured(name: str, files: list[str], sizes: list[tuple[int, int]], turns: int) -> Turns:
    """`curve`, with the memory of fresh processes in place of what its turns found."""
    found: Turns = alone(curve, name, files, sizes, turns)
    for size, runs in found.items():
        peaks = [alone(fresh_peak, name, files, size) for _ in range(FRESH)]
        peak = None if None in peaks else float(np.median(peaks))
        found[size] = [one._replace(peak_mb=peak) for one in runs]
    return found


def middle(runs: list[Once]) -> Once:
    """Medians of the same work."""
    peaks = [one.peak_mb for one in runs]
    peak = None if None in peaks else float(np.median(np.array(peaks, float)))
    cpu, wall = (float(np.median([getattr(one, kind) for one in runs])) for kind in ("cpu_ms", "wall_ms"))
    return Once(None, cpu, wall, peak)


def row(found: Turns, setting: str, deviations: list[float]) -> dict[str, Any]:
    """A row without a peer. `deviation` is the median of all turns' (`deviations`), which keeps out what makes a whole
    turn slower; `memory_growth` is from the last point but one to the last, less NOISE_MB, as a share.
    """
    points = []
    for (images, classes), turns in found.items():
        one = middle(turns)
        points.append({"images": images, "classes": classes, "cpu_ms_an_image": round(one.cpu_ms / images, 3),
                       "wall_ms_an_image": round(one.wall_ms / images, 3), "peak_mb": one.peak_mb,
                       "cpu_ms": [round(turn.cpu_ms / images, 3) for turn in turns]})  # fmt: skip
    nothing = dict.fromkeys(("ratio_cpu", "ratio_wall", "agreement", "peak_mb_peer"))
    peaks = [p["peak_mb"] for p in points[-2:]]
    return {"peer": "itself", "setting": setting, **nothing, "peak_mb_ours": points[-1]["peak_mb"],
            "deviation": abs(round(float(np.median(deviations)), 3)),
            "deviations": [round(one, 3) for one in sorted(deviations)],
            "memory_growth": None if None in peaks else round(max(peaks[1] - peaks[0] - NOISE_MB, 0) / peaks[0], 3),
            "points": points}


def fullness(files: list[str]) -> str:
    """How many images pass the network together, on average, at each number of images: photos of one shape meet."""
    found = []
    for times in TIMES:
        tagged = tagged_set(files, BASE * times, CLASSES[0])
        chunks = inference._chunks(tagged.source, tagged.ids, lambda id: 2, inference.coarser(cam.Cam().grid))
        sizes = ([tagged.source.size(id) for id in chunk] for chunk in chunks)
        found.append(len(tagged) / sum(len(inference._batches(chunk, VIEWS, 32)) for chunk in sizes))
    return ", ".join(f"{one:.1f}" for one in found)


def bends(found: Turns) -> list[float]:
    """How far CPU time is from a straight line in each turn: what an image more costs from 4x to 16x against from 1x to
    4x, less 1. Differences leave out what a stage costs once, such as loading its network.
    """
    images = np.array([size[0] for size in found], float)
    steps = np.diff([[one.cpu_ms for one in turns] for turns in found.values()], axis=0) / np.diff(images)[:, None]
    bent: list[float] = (steps[-1] / steps[0] - 1).tolist()
    return bent


def spreads(found: Turns) -> list[float]:
    """How much dearer most classes are than fewest in each turn, less 1."""
    costs = np.array([[one.cpu_ms for one in turns] for turns in found.values()])
    dearer: list[float] = (costs[-1] / costs[0] - 1).tolist()
    return dearer


def main(names: Sequence[str] = tuple(STAGES)) -> None:
    """All stages, or those that are named: `python -m benchmarks.growth crf walk`."""
    with tempfile.TemporaryDirectory() as folder:
        given = photos(BASE, Path(folder))
        for name in names:
            sizes = [(BASE * n, CLASSES[0]) for n in TIMES]
            found = measured(name, given.images, sizes, SWEEPS)
            full = f"; images in a batch: {fullness(given.images)}" if name == "cam" else ""
            write(f"growth-{name}", row(found, f"stage on {given.words}, under 1, 4 and 16 ids each, 2 tags, one core"
                                        f"{full}", bends(found)))
        for name in names:
            found = measured(name, given.images, [(BASE, c) for c in CLASSES], QUICK)
            write(f"absent-{name}", row(found, f"stage on {given.words}, 2 tags of 8, 32, 128 classes, one core",
                                        spreads(found)))


if __name__ == "__main__":
    main(sys.argv[1:] or tuple(STAGES))
