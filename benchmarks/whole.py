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

from benchmarks import cam_speed, crf, walk
from benchmarks.measure import CannotRun, compare
from benchmarks.photos import photos, rgb
from benchmarks.processes import Job

NET, TAGGED, THRESHOLD = "mobilenet_v2", 3, 0.3


def ours(network: Any, file: str, area: int, walking: bool) -> np.ndarray:
    """Labels (H,W): the calls that the stages make, in the precision that they would choose."""
    from tagseg.ops.affinity import chebyshev, damp, transition_from_boundary
    from tagseg.ops.crf import dense_crf
    from tagseg.ops.geometry import enlarge
    from tagseg.ops.scores import normalise, with_background
    from tagseg.runs.setup import choose_precision

    maps = normalise(cam_speed.ours(network, [file], area, choose_precision("auto", "cpu"))[0][:TAGGED])
    image = rgb(file)
    if walking:
        edges = walk.boundary_of(image, (maps.shape[1], maps.shape[2]))
        maps = normalise(chebyshev(transition_from_boundary(edges), damp(maps, edges)))
    scores = enlarge(maps, (image.shape[0], image.shape[1]))
    return dense_crf(image, with_background(scores, THRESHOLD)).argmax(0)


def theirs(network: Any, file: str, area: int, walking: bool) -> np.ndarray:
    import torch
    import torch.nn.functional as F
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_softmax

    from benchmarks.dense_walk import propagate

    def shares(maps: torch.Tensor) -> torch.Tensor:
        return maps.relu() / (maps.relu().amax((1, 2), keepdim=True) + 1e-5)

    maps = shares(torch.from_numpy(cam_speed.theirs(network, [file], area)[0][:TAGGED]))
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


def sides(file: str, area: int, walking: bool) -> dict[str, Job]:
    network = cam_speed.network_named(NET)
    jobs: dict[str, Job] = {"ours": partial(ours, network, file, area, walking),
                            "peer": partial(theirs, network, file, area, walking)}  # fmt: skip
    return {**jobs, "warm": jobs["ours"]}  # compiles; the peer has nothing to compile, and one run takes a minute


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    return float((a == b).mean())


def main() -> None:
    from tagseg.runs.setup import choose_precision

    if not crf.peer_installed():
        raise CannotRun("pydensecrf2 is not installed (extra `bench`)")
    precision = choose_precision("auto", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        found = photos(1, Path(folder))
        height, width = rgb(found.images[0]).shape[:2]
        for job, walking, rounds in (("whole-no-walk", False, 5), ("whole", True, 1)):
            way = "walk on 1/4 of its sides, " if walking else ""
            compare(job, peer=f"the same steps as IRN: fp32 loop, {'dense walk, ' if walking else ''}pydensecrf2",
                    build=sides, rounds=rounds, args=(found.images[0], round((height * width) ** 0.5), walking),
                    agree=agreement, agreement_of="labels", setting=f"{NET}, {found.words}, 4 scales and mirror, {way}"
                    f"CRF, {TAGGED} tags, without training; ours {precision}")  # fmt: skip


if __name__ == "__main__":
    main()
