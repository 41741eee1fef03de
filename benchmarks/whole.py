"""A photo from pixels to a mask, all steps but training: maps at four scales, dense CRF, with a walk between or not.

The peer takes the same steps as IRN does: fp32, one photo at a time, the walk on a dense matrix, pydensecrf2. Training
costs both the same and is left out; so is the boundary network: both walk over the photo's gradient.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import cam_speed, crf, walk
from benchmarks.measure import CannotRun, compare
from benchmarks.photos import rgb
from benchmarks.processes import Job

TAGGED, THRESHOLD = 3, 0.3
LONG_SIDE = 240  # the peer's dense walk takes a minute here and would take six hours at 640 pixels


def ours(network: Any, file: str, tags: list[int], area: int, walking: bool) -> np.ndarray:
    """Labels (H,W): the calls that the stages make, in the precision that they would choose."""
    from tagseg.ops.affinity import chebyshev, damp, transition_from_boundary
    from tagseg.ops.crf import dense_crf
    from tagseg.ops.geometry import enlarge
    from tagseg.ops.scores import normalise, with_background
    from tagseg.runs.setup import choose_precision

    maps = normalise(cam_speed.ours(network, [file], area, choose_precision("auto", "cpu"))[0][tags])
    image = rgb(file)
    if walking:
        edges = walk.boundary_of(image, (maps.shape[1], maps.shape[2]))
        maps = normalise(chebyshev(transition_from_boundary(edges), damp(maps, edges)))
    scores = enlarge(maps, (image.shape[0], image.shape[1]))
    return dense_crf(image, with_background(scores, THRESHOLD)).argmax(0)


def theirs(network: Any, file: str, tags: list[int], area: int, walking: bool) -> np.ndarray:
    import torch
    import torch.nn.functional as F
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_softmax

    from benchmarks.dense_walk import propagate

    def shares(maps: torch.Tensor) -> torch.Tensor:
        return maps.relu() / (maps.relu().amax((1, 2), keepdim=True) + 1e-5)

    maps = shares(torch.from_numpy(cam_speed.theirs(network, [file], area)[0][tags]))
    image = np.array(rgb(file))
    if walking:
        edges = torch.from_numpy(walk.boundary_of(image, (maps.shape[1], maps.shape[2])))
        maps = shares(propagate(maps, edges))
    large = F.interpolate(maps[None], image.shape[:2], mode="bilinear", align_corners=False)[0]
    scores = torch.cat([torch.full_like(large[:1], THRESHOLD), large])
    solver = DenseCRF2D(image.shape[1], image.shape[0], len(scores))
    solver.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax((scores / scores.sum(0)).numpy())))
    solver.addPairwiseGaussian(sxy=3, compat=3)
    solver.addPairwiseBilateral(sxy=50, srgb=5, rgbim=image, compat=10)
    return np.array(solver.inference(10)).reshape(len(scores), *image.shape[:2]).argmax(0)


def sides(weights: str, classes: tuple[str, ...], file: str, tags: list[int], area: int,
          walking: bool) -> dict[str, Job]:
    network = cam_speed.network_at(Path(weights), classes)
    jobs: dict[str, Job] = {"ours": partial(ours, network, file, tags, area, walking),
                            "peer": partial(theirs, network, file, tags, area, walking)}  # fmt: skip
    return {**jobs, "warm": jobs["ours"]}  # compiles; the peer has nothing to compile, and one run takes a minute


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    return float((a == b).mean())


def main() -> None:
    if not crf.peer_installed():
        raise CannotRun("pydensecrf2 is not installed (extra `bench`)")
    known = cam_speed.learned("whole", "whole-no-walk")
    if known is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        tags = [np.flatnonzero(known.truth.tagged.tags_of(sample)).tolist() for sample in known.truth.ids]
        first = next(k for k, found in enumerate(tags) if len(found) == TAGGED)
        file = str(Path(folder) / "photo.png")
        photo = Image.fromarray(rgb(known.files[first]))
        photo.thumbnail((LONG_SIDE, LONG_SIDE))
        photo.save(file)
        height, width = rgb(file).shape[:2]
        for job, walking, rounds in (("whole-no-walk", False, 5), ("whole", True, 1)):
            way = "walk on 1/4 of its sides, " if walking else ""
            compare(job, peer=f"the same steps as IRN: fp32 loop, {'dense walk, ' if walking else ''}pydensecrf2",
                    build=sides, rounds=rounds, agree=agreement, agreement_of="labels",
                    args=(str(known.weights), known.truth.classes, file, tags[first], round((height * width) ** 0.5),
                          walking),
                    setting=f"{cam_speed.NET} trained on {cam_speed.DATA}, a photo of {width}x{height} with {TAGGED} "
                    f"tags, 4 scales and mirror, {way}CRF, training not counted; ours {known.precision}")  # fmt: skip


if __name__ == "__main__":
    main()
