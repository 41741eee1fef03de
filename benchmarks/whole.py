"""Photos from pixels to masks, all steps but training: maps at four scales, dense CRF, with a walk between or not.

The peer takes the same steps as IRN does: fp32, one photo at a time, the walk on a dense matrix, pydensecrf2. Training
costs both the same and is left out; so is the boundary network: both walk over the photo's gradient.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from benchmarks import cam_speed, crf, walk
from benchmarks.measure import CannotRun, compare, in_turn, not_measured, write
from benchmarks.photos import rgb
from benchmarks.processes import Job, alone

DATA, THRESHOLD = "fashion", 0.3
PHOTOS = {"whole": 4, "whole-fp32": 4, "whole-no-walk": 40}
ROUNDS = {"whole": 3, "whole-fp32": 1, "whole-no-walk": 3}  # one takes minutes where the peer walks
SMALL = 240  # pixels of the longer side where the peer walks: at full size its dense matrix takes minutes a photo


class Given(NamedTuple):
    """What both sides get: a trained classifier, its classes, photos, their tags, the area shown, walk or not, and in
    which precision ours sees them.
    """

    weights: Any
    classes: tuple[str, ...]
    files: list[str]
    tags: list[list[int]]
    area: int
    walking: bool
    precision: str


def our_maps(network: Any, given: Given) -> list[np.ndarray]:
    from tagseg.ops.scores import normalise

    found = cam_speed.ours(network, given.files, given.area, given.precision)
    return [normalise(maps[tags]) for maps, tags in zip(found, given.tags, strict=True)]


def our_mask(file: str, maps: np.ndarray, walking: bool) -> np.ndarray:
    """Labels (H,W): the calls that the stages make."""
    from tagseg.ops.affinity import chebyshev, damp, transition_from_boundary
    from tagseg.ops.crf import dense_crf
    from tagseg.ops.geometry import enlarge
    from tagseg.ops.scores import normalise, with_background

    image = rgb(file)
    if walking:
        edges = walk.boundary_of(image, (maps.shape[1], maps.shape[2]))
        maps = normalise(chebyshev(transition_from_boundary(edges), damp(maps, edges)))
    scores = enlarge(maps, (image.shape[0], image.shape[1]))
    return dense_crf(image, with_background(scores, THRESHOLD)).argmax(0)


def _shares(maps: Any) -> Any:
    return maps.relu() / (maps.relu().amax((1, 2), keepdim=True) + 1e-5)


def their_maps(network: Any, given: Given) -> list[Any]:
    import torch

    found = cam_speed.theirs(network, given.files, given.area)
    return [_shares(torch.from_numpy(maps[tags])) for maps, tags in zip(found, given.tags, strict=True)]


def their_mask(file: str, maps: Any, walking: bool) -> np.ndarray:
    import torch
    import torch.nn.functional as F
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_softmax

    from benchmarks.dense_walk import propagate

    image = np.array(rgb(file))
    if walking:
        edges = torch.from_numpy(walk.boundary_of(image, (maps.shape[1], maps.shape[2])))
        maps = _shares(propagate(maps, edges))
    large = F.interpolate(maps[None], image.shape[:2], mode="bilinear", align_corners=False)[0]
    scores = torch.cat([torch.full_like(large[:1], THRESHOLD), large])
    solver = DenseCRF2D(image.shape[1], image.shape[0], len(scores))
    solver.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax((scores / scores.sum(0)).numpy())))
    solver.addPairwiseGaussian(sxy=3, compat=3)
    solver.addPairwiseBilateral(sxy=50, srgb=5, rgbim=image, compat=10)
    return np.array(solver.inference(10)).reshape(len(scores), *image.shape[:2]).argmax(0)


WAYS = {"ours": (our_maps, our_mask), "peer": (their_maps, their_mask)}


def sides(*given: Any) -> dict[str, Job]:
    asked, network = Given(*given), cam_speed.network_of(given[0], given[1])

    def whole(name: str, asked: Given = asked) -> list[np.ndarray]:
        maps, mask = WAYS[name]
        return [mask(file, one, asked.walking) for file, one in zip(asked.files, maps(network, asked), strict=True)]

    jobs: dict[str, Job] = {name: partial(whole, name) for name in WAYS}
    one = asked._replace(files=asked.files[:1], tags=asked.tags[:1], area=cam_speed.WARM)
    return {**jobs, "warm ours": partial(whole, "ours", one), "warm peer": partial(their_maps, network, one)}


def parts(*given: Any) -> dict[str, dict[str, float]]:
    """CPU milliseconds of a photo in each half of the work, both ways."""
    asked, network = Given(*given), cam_speed.network_of(given[0], given[1])
    found = {}
    for name, (maps, mask) in WAYS.items():
        seen = maps(network, asked)
        found[name] = in_turn({
            "maps": partial(maps, network, asked),
            "CRF": lambda mask=mask, seen=seen: [
                mask(f, one, asked.walking) for f, one in zip(asked.files, seen, strict=True)],
        }, 1)  # fmt: skip
    return {name: {part: time["cpu_ms"]["median"] / len(asked.files) for part, time in times.items()}
            for name, times in found.items()}


def same_labels(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return float(np.mean([(x == y).mean() for x, y in zip(a, b, strict=True)]))


def main() -> None:
    if not crf.peer_installed():
        raise CannotRun("pydensecrf2 is not installed (extra `bench`)")
    known = cam_speed.learned(*PHOTOS, data=DATA)
    if known is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        for job in PHOTOS:
            chosen, given = photos(known, job, Path(folder))
            note: dict[str, Any] = {"miou": None}  # filled when the two results are compared
            walking = "dense walk, " if given.walking else ""
            compare(job, peer=f"the same steps as IRN: fp32 loop, {walking}pydensecrf2", build=sides, args=tuple(given),
                    agree=partial(labels_and_quality, note, known.truth, chosen, given), agreement_of="labels",
                    rounds=ROUNDS[job], setting=described(given), more=note)  # fmt: skip
        halves = {name: {"cpu_ms": times} for name, times in alone(parts, *given).items()}
        write("whole-phases", {"setting": f"{described(given)}; each photo", "phases": halves})
        if given.precision != "fp32":
            full_size(given._replace(walking=True))
        else:
            not_measured("whole-full-size", "runs are in fp32 on this processor: nothing to compare")


def full_size(given: Given) -> None:
    """What a run's precision does to labels behind the walk at the photos' own size, where no dense walk can be run:
    ours beside ours in fp32, in this process.
    """
    network = cam_speed.network_of(given.weights, given.classes)
    masks = []
    for precision in (given.precision, "fp32"):
        found = our_maps(network, given._replace(precision=precision))
        masks.append([our_mask(file, maps, True) for file, maps in zip(given.files, found, strict=True)])
    told = f"; of the pixels that differ {100 * in_regions(*masks):.0f} % lie in parts of 1 % of a photo and more"
    write("whole-full-size", {
        "peer": "the same in fp32", "setting": described(given) + told, "agreement": same_labels(*masks),
        "agreement_of": "labels",
        **dict.fromkeys(("ratio_cpu", "ratio_wall", "peak_mb_ours", "peak_mb_peer"))})  # fmt: skip


def in_regions(a: list[np.ndarray], b: list[np.ndarray], least: float = 0.01) -> float:
    """Of the pixels whose labels differ, the share in connected parts of at least so much of their photo: whole regions
    that turn, not borders that move.
    """
    differ = large = 0
    for one, other in zip(a, b, strict=True):
        parts = np.bincount(ndimage.label(one != other)[0].ravel())[1:]
        differ, large = differ + int(parts.sum()), large + int(parts[parts >= least * one.size].sum())
    return large / max(differ, 1)


def photos(known: cam_speed.Learned, job: str, folder: Path) -> tuple[list[str], Given]:
    """Ids of the first photos with several tags, and what is given of them; with a walk they are made smaller.

    Ours works as a run would, in bf16 where the processor has it, but for one job, in which every label can be
    compared.
    """
    several = [(sample, file, np.flatnonzero(known.truth.tagged.tags_of(sample)).tolist())
               for sample, file in zip(known.truth.ids, known.files, strict=True)]
    several = [one for one in several if len(one[2]) > 1][: PHOTOS[job]]
    chosen, files, tags = ([one[part] for one in several] for part in range(3))
    walking = job != "whole-no-walk"
    for n, file in enumerate(files if walking else []):
        photo = Image.fromarray(rgb(file))
        photo.thumbnail((SMALL, SMALL))
        files[n] = str(folder / f"{n}.png")
        photo.save(files[n])
    height, width = rgb(files[0]).shape[:2]
    return chosen, Given(known.weights, known.truth.classes, files, tags, round((height * width) ** 0.5), walking,
                         "fp32" if job == "whole-fp32" else known.precision)  # fmt: skip


def described(given: Given) -> str:
    way = "walk on 1/4 of its sides, " if given.walking else ""
    height, width = rgb(given.files[0]).shape[:2]
    return (f"{cam_speed.NET} trained on {DATA}, {len(given.files)} of its val photos, about {width}x{height}, with "
            f"their tags, 4 scales and mirror, {way}CRF, training not counted; ours {given.precision}")


def labels_and_quality(note: dict[str, Any], truth: Any, chosen: list[str], given: Given, a: list[np.ndarray],
                       b: list[np.ndarray]) -> float:
    """The share of equal labels; both sides' mIoU goes to `note`."""
    from tagseg.ops.confusion import confusion, summary

    def miou(masks: list[np.ndarray]) -> float:
        counts = 0
        for sample, tags, mask in zip(chosen, given.tags, masks, strict=True):
            found = np.array([0, *(t + 1 for t in tags)], np.uint8)[mask]
            true = Image.fromarray(truth.mask(sample)).resize(mask.shape[::-1], Image.Resampling.NEAREST)
            counts = counts + confusion(np.asarray(true), found, len(truth.classes))
        return summary(counts, truth.classes).miou

    note["miou"] = {"ours": miou(a), "peer": miou(b)}
    return same_labels(a, b)


if __name__ == "__main__":
    main()
