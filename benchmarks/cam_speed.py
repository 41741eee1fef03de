"""Class activation maps at four scales, mirrored too: tagseg's pass against an IRN-style loop, written anew.

Speed with random weights; then, with a tag classifier that is trained here, whether the maps score alike.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import OUT, compare, in_turn, not_measured, ratios, write
from benchmarks.photos import photos, rgb, shared
from benchmarks.processes import Job

SCALES = (1.0, 0.5, 1.5, 2.0)
DATA, NET, AREA = "things", "mobilenet_v2", 256  # of the classifier that learns
TRAIN = {"fashion": ("train", "train_tagonly")}
CLASSES, IMAGES, ROUNDS = 20, 8, 3  # as many photos as fill a batch or two, as a run has them
WARM = 64  # what a first small call shows, so that libraries have begun and compiled
THRESHOLDS = np.linspace(0.02, 0.9, 89)
Size = tuple[int, int]


@dataclass(frozen=True)
class Files:
    """Photos by path, decoded at each read."""

    def size(self, id: str) -> Size:
        from tagseg.data.images import read_size

        return read_size(id)

    def read(self, id: str) -> np.ndarray:
        from tagseg.data.images import decode

        return decode(id)

    def digest(self, id: str) -> str:
        return id


def network_named(name: str) -> Any:
    import torch

    from tagseg.localize.cam import network_of
    from tagseg.localize.classify import TagNet
    from tagseg.nets.backbones import build

    torch.manual_seed(0)
    return network_of(TagNet(build(name, stride=16), CLASSES).eval())


def _wanted(size: Size) -> Size:
    return -(-size[0] // 4), -(-size[1] // 4)


def ours(network: Any, files: list[str], area: int, precision: str) -> list[np.ndarray]:
    """Summed maps (C,h,w) of each photo, by the call that the stage `localize.cam` makes."""
    from tagseg.inference import Views, predict
    from tagseg.store import Run, Work

    work = Work(Run(Path(), workers=1), "benchmark", Path())  # nothing is written
    views = Views(size=area, scales=SCALES, flip=True)
    seen = predict(work, network, Files(), files, views, device="cpu", precision=precision, out_size=_wanted)
    return [one.values.numpy() for one in seen]


def theirs(network: Any, files: list[str], area: int) -> list[np.ndarray]:
    """The same sums, fp32: one photo at a time, resized for each scale, with its mirror image.

    It is shown at the same sizes and its cells are read by the same geometry: then a difference is one of numbers.
    """
    import torch
    from PIL import Image

    from tagseg.inference import net_shape

    found = []
    for file in files:
        maps, image = list[torch.Tensor](), rgb(file)
        for scale in SCALES:
            size, shape = image.shape[:2], net_shape(image.shape[:2], area, scale, network.min_size)
            small = np.array(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BILINEAR))
            x = network.preprocess(torch.from_numpy(small.transpose(2, 0, 1)).contiguous()[None].float() / 255)
            with torch.no_grad():
                both = network.read(network(torch.cat([x, x.flip(3)])), shape, _wanted(size))
            maps.append(both[0] + both[1].flip(2))
        found.append(torch.stack(maps).sum(0).numpy())
    return found


def sides(files: list[str], area: int, precision: str, net: str) -> dict[str, Job]:
    """Both ways on the same weights; `area` is the square root of the pixels shown at scale 1.

    Each side runs in its own process: only ours changes how memory is kept (training/memory).
    """
    network = network_named(net)
    return {"ours": lambda: ours(network, files, area, precision), "peer": lambda: theirs(network, files, area),
            "warm ours": lambda: ours(network, files[:1], WARM, precision),
            "warm peer": lambda: theirs(network, files[:1], WARM)}


def agreement(note: dict[str, Any], a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """Share of cells with the same best class; the largest difference of the maps goes to `note`."""
    pairs = list(zip(a, b, strict=True))
    note["maps_differ"] = max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs)
    return float(np.mean([(x.argmax(0) == y.argmax(0)).mean() for x, y in pairs]))


def main() -> None:
    speed("timm:resnet50", "cam")
    speed("mobilenet_v2", "cam-mobilenet_v2")
    trained()


def speed(net: str, job: str, *, area: int | None = None, images: int = IMAGES) -> None:
    """`area`: by default that of the photos themselves, as IRN shows them."""
    from tagseg.runs.setup import choose_precision

    precision = choose_precision("auto", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        found = photos(images, Path(folder))
        height, width = rgb(found.images[0]).shape[:2]
        area = area or round((height * width) ** 0.5)
        note: dict[str, Any] = {"maps_differ": None}  # filled when the two results are compared
        compare(
            job, peer="IRN-style loop: fp32, one photo at a time",
            setting=f"{net}, stride 16, random weights, {found.words}, shown as {area}x{area} times "
            f"{', '.join(map(str, SCALES))}, mirrored too; ours {precision}",
            build=sides, args=(found.images, area, precision, net), agree=partial(agreement, note),
            agreement_of="cells with the same best class", rounds=ROUNDS, more=note,
        )  # fmt: skip


@dataclass(frozen=True)
class Learned:
    """A tag classifier that has learned (an artifact of weights), the val images, files beside them, the precision."""

    weights: Any
    truth: Any
    files: list[str]
    precision: str


def learned(*jobs: str, data: str = DATA) -> Learned | None:
    """`cam`'s classifier of `NET` on a set (standard, seed 0), trained once for all; None where data lack, and then
    `jobs` are not measured.
    """
    from tagseg.localize import classify
    from tagseg.runs.setup import Request, prepare
    from tagseg.store import Run

    place, weights = shared(f"data/{data}"), shared("weights")
    if place is None or weights is None:
        for job in jobs:
            not_measured(job, f"needs the shared set {data} and pretrained weights")
        return None
    cache = OUT / "cache"
    prepared = prepare(Request(method="cam", data=str(place), train=TRAIN.get(data, ("train",)), val=("val",),
                               backbone=NET, weights=str(weights), out=cache / "run", cache=cache))  # fmt: skip
    assert prepared.val is not None
    assert prepared.val.truth is not None
    inputs, truth = prepared.inputs, prepared.val.truth
    classifier = classify.train(Run(cache, workers=2), inputs.tagged, inputs.pretrained, prepared.cfg.classifier)
    files = [str(next(place.glob(f"images/{i}.*"))) for i in truth.ids]
    return Learned(classifier, truth, files, prepared.precision)


def network_of(weights: Any, classes: tuple[str, ...]) -> Any:
    from tagseg.localize import cam, classify

    return cam.network_of(classify.load(weights, classes))


def trained() -> None:
    """mIoU of both sides' maps, tags given, each at its best threshold, by a tag classifier that learns here."""
    import torch

    known = learned("cam-trained")
    if known is None:
        return
    network, seen = network_of(known.weights, known.truth.classes), dict[str, list[np.ndarray]]()
    ways = {"ours": partial(ours, network, known.files, AREA, known.precision),
            "peer": partial(theirs, network, known.files, AREA)}  # fmt: skip
    torch.set_num_threads(1)
    times = in_turn({name: partial(_kept, seen, name, way) for name, way in ways.items()}, 1)
    miou = {name: best(maps, known.truth) for name, maps in seen.items()}
    found = f"mIoU {100 * miou['ours']:.2f} and {100 * miou['peer']:.2f} at the best threshold"
    write("cam-trained", {
        "peer": "the same loop, fp32",
        "setting": f"{NET} trained on {DATA} (standard, seed 0), {len(known.files)} val images with their tags, shown "
        f"as {AREA}x{AREA} times {', '.join(map(str, SCALES))}, mirrored too; ours {known.precision}; one call of "
        f"each, {found}",
        **ratios(times), "agreement": 1 - abs(miou["ours"] - miou["peer"]),
        "agreement_of": "less the difference of mIoU", "peak_mb_ours": None, "peak_mb_peer": None, "miou": miou,
        "times": times})  # fmt: skip


def _kept(seen: dict[str, list[np.ndarray]], name: str, way: Job) -> None:
    seen[name] = way()


def best(maps: list[np.ndarray], truth: Any) -> float:
    """mIoU at the best threshold of raw maps (C,h,w) of all classes, those of the tags divided by their maximum."""
    from tagseg.evaluate.thresholds import sweep
    from tagseg.ops.geometry import enlarge
    from tagseg.ops.scores import normalise

    def items() -> Any:
        for sample, raw in zip(truth.ids, maps, strict=True):
            mask, classes = truth.mask(sample), np.flatnonzero(truth.tagged.tags_of(sample))
            yield sample, mask, classes + 1, enlarge(normalise(raw[classes]), mask.shape)

    return max(summary.miou for summary in sweep(items(), truth.classes, THRESHOLDS))


if __name__ == "__main__":
    main()
