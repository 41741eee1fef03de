"""How time and memory grow with the number of images, and whether classes that are in no image cost anything."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import write
from benchmarks.photos import photos, rgb
from benchmarks.processes import Once, alone, once
from benchmarks.walk import boundary_of
from tagseg.artifacts import MapSet, Scores, Weights, write_maps, write_scores, write_weights
from tagseg.data.index import TaggedSet
from tagseg.localize import cam
from tagseg.refine import crf
from tagseg.store import Artifact, Run, Work, stage
from tagseg.types import ClassMaps

SWEEPS, QUICK = 4, 16  # times that all points are run in turn; of the quick ones, where tenths of a second tell
BASE, TIMES = 36, (1, 4, 16)  # two chunks of 64 images are held at once: memory is full from 4x on
CLASSES = (8, 32, 128)
NOISE_MB = 4  # what the allocator alone makes of one and the same call
Stage = Callable[[Run, TaggedSet, "Inputs"], Artifact]


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


STAGES: dict[str, Stage] = {
    "cam": lambda run, tagged, given: cam.maps(
        run, tagged, given.classifier, replace(cam.Cam(), views=cam.Views(size=192), device="cpu", precision="fp32")),
    "crf": lambda run, tagged, given: crf.labels(run, tagged, given.maps, given.point, crf.Crf()),
    "walk": lambda run, tagged, given: walked(run, tagged, given.maps, Toy()),
}  # fmt: skip


def tagged_set(files: list[str], images: int, classes: int) -> TaggedSet:
    """`images` ids over the same photos, each with the tags 1 and 2 of `classes`."""
    ids = tuple(f"{k:05d}" for k in range(images))
    tags = np.zeros((images, classes), bool)
    tags[:, :2] = True
    return TaggedSet("growth", tuple(f"class {c}" for c in range(1, classes + 1)), ids, tags, np.ones(images, bool),
                     Repeated(tuple(files)))


def cost(name: str, tagged: TaggedSet, folder: Path) -> Once:
    """One run of a stage on an empty cache; what it reads was made before."""
    inputs = Run(folder / "inputs", workers=1)
    given = Inputs(random_weights(inputs, tagged, Toy()), smooth_maps(inputs, tagged, Toy()), point(inputs, Toy()))
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        return once(lambda: STAGES[name](Run(Path(cache), workers=1), tagged, given))


def curve(name: str, files: list[str], sizes: list[tuple[int, int]], sweeps: int) -> list[dict[str, Any]]:
    """Cost and median memory of a stage for each (images, classes), in this process, compiled before. All sizes are run
    in turn, small ones more often, and compared within a turn (`in_turn`).
    """
    found: dict[tuple[int, int], list[list[Once]]] = {size: [] for size in sizes}
    most = max(images for images, _ in sizes)
    with tempfile.TemporaryDirectory() as place:
        cost(name, tagged_set(files, 2, CLASSES[0]), Path(place))
        for _ in range(sweeps):
            for images, classes in sizes:
                tagged, often = tagged_set(files, images, classes), round((most / images) ** 0.5)
                found[images, classes].append([cost(name, tagged, Path(place)) for _ in range(often)])
    cpu, wall = (in_turn([[float(np.mean([getattr(o, kind) for o in turn])) / size[0] for turn in turns]
                          for size, turns in found.items()]) for kind in ("cpu_ms", "wall_ms"))  # fmt: skip
    peaks = [[o.peak_mb for turn in turns for o in turn] for turns in found.values()]
    return [
        {
            "images": images, "classes": classes,
            "cpu_ms_an_image": round(cpu[k], 3), "wall_ms_an_image": round(wall[k], 3),
            "peak_mb": None if None in peaks[k] else float(np.median(np.array(peaks[k], float))),
        }
        for k, (images, classes) in enumerate(found)
    ]  # fmt: skip


def in_turn(each: list[list[float]]) -> list[float]:
    """What each point costs, of its costs in every turn: its median share of a turn, of the median turn. Other work on
    the machine makes whole turns slower, by up to a third, and that is not growth.
    """
    costs = np.array(each)
    whole = costs.sum(0)
    found: list[float] = (np.median(costs / whole, axis=1) * np.median(whole)).tolist()
    return found


def row(points: list[dict[str, Any]], setting: str, deviation: float) -> dict[str, Any]:
    """A row without a peer; `memory_growth` is from the last point but one to the last, less NOISE_MB, as a share."""
    nothing = dict.fromkeys(("ratio_cpu", "ratio_wall", "agreement", "peak_mb_peer"))
    peaks = [p["peak_mb"] for p in points[-2:]]
    return {"peer": "itself", "setting": setting, **nothing, "peak_mb_ours": points[-1]["peak_mb"],
            "deviation": round(deviation, 3),
            "memory_growth": None if None in peaks else round(max(peaks[1] - peaks[0] - NOISE_MB, 0) / peaks[0], 3),
            "points": points}


def bend(points: list[dict[str, Any]]) -> float:
    """How far CPU time is from a straight line: what an image more costs from 4x to 16x against from 1x to 4x, less 1.

    Differences leave out what a stage costs once, such as loading its network.
    """
    images = np.array([p["images"] for p in points], float)
    steps = np.diff(images * [p["cpu_ms_an_image"] for p in points]) / np.diff(images)
    return abs(float(steps[-1] / steps[0] - 1))


def spread(points: list[dict[str, Any]]) -> float:
    """How much dearer the dearest point is than the cheapest, less 1."""
    each = [p["cpu_ms_an_image"] for p in points]
    return max(each) / min(each) - 1


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        given = photos(BASE, Path(folder))
        for name in STAGES:
            sizes = [(BASE * n, CLASSES[0]) for n in TIMES]
            points = alone(curve, name, given.images, sizes, SWEEPS)
            write(f"growth-{name}", row(points, f"stage on {given.words}, under 1, 4 and 16 ids each, 2 tags, one core",
                                        bend(points)))
        for name in ("cam", "crf"):
            points = alone(curve, name, given.images, [(BASE, c) for c in CLASSES], QUICK)
            write(f"absent-{name}", row(points, f"stage on {given.words}, 2 tags of 8, 32, 128 classes, one core",
                                        spread(points)))


if __name__ == "__main__":
    main()
