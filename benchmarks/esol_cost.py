"""What `esol` costs up to its maps beside `cam`, at equal epochs: seconds an image of each stage, then whole sets.

MobileNetV2 from random numbers on generated images of 256x256: time does not depend on what they show.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measure import write
from benchmarks.processes import alone
from tagseg.localize import cam, classify, expansion, shrinkage
from tagseg.runs.setup import Request, prepare
from tagseg.store import Artifact, Run
from tagseg.training.schedule import Schedule, steps

IMAGES, TRAINED = 48, 160  # images of the maps, images seen by each training
SETS = (1010, 1693)  # those of `tiles` and `fashion`


def short(schedule: Schedule) -> Schedule:
    """The same training for `TRAINED` images."""
    return replace(schedule, epochs=0.0, min_images=TRAINED, max_images=TRAINED, checkpoint_seconds=1e9)


def seconds() -> dict[str, float]:
    """Seconds an image of each stage of both methods, on one core, once."""
    with tempfile.TemporaryDirectory() as place:
        request = Request(method="esol", data=f"scenes:basic?train={IMAGES}&val=1&size=256", out=Path(place) / "run",
                          backbone="mobilenet_v2", weights="none", cache=Path(place))  # fmt: skip
        prepared, run = prepare(request), Run(Path(place), workers=1)
        cfg, tagged, start = prepared.cfg, prepared.inputs.tagged, prepared.inputs.pretrained
        parts = {n: replace(getattr(cfg, n), schedule=short(getattr(cfg, n).schedule))
                 for n in ("classifier", "expand", "second", "shrink")}  # fmt: skip
        plain = classify.train(run, tagged, start, replace(parts["classifier"], sampler=0))
        first = classify.train(run, tagged, start, parts["classifier"])
        wide = expansion.expanded(run, tagged, first, replace(parts["expand"], ceiling=0.69))
        idle = expansion.expanded(run, tagged, first, replace(parts["expand"], alpha=0.0))  # looks at the loss twice
        second = shrinkage.second(run, tagged, wide, parts["second"])
        narrow = shrinkage.shrunk(run, tagged, wide, second, parts["shrink"])
        maps = [cam.maps(run, tagged, weights, cfg.cam) for weights in (plain, narrow)]

        def each(artifact: Artifact, images: int) -> float:
            return round(artifact.record["seconds"] / images, 4)

        trained = {"cam classifier": plain, "classifier": first, "second": second, "shrinkage": narrow}
        fixed = idle.record["seconds"]
        return {**{name: each(weights, TRAINED) for name, weights in trained.items()},
                "expansion": round((wide.record["seconds"] - fixed) / TRAINED, 4), "expansion, fixed": round(fixed, 2),
                "cam maps": each(maps[0], IMAGES), "maps": each(maps[1], IMAGES)}  # fmt: skip


def seen(schedule: Schedule, images: int) -> int:
    """Images that a training sees on a set of that many."""
    return steps(schedule, images) * schedule.batch


def ratio(each: dict[str, float], images: int) -> float:
    """Time of `esol` up to its maps over that of `cam`, on a set of that many images, standard budget."""
    from tagseg.methods.esol import Config

    cfg: Any = Config()
    trainings = {"classifier": cfg.classifier, "expansion": cfg.expand, "second": cfg.second, "shrinkage": cfg.shrink}
    ours = sum(each[name] * seen(part.schedule, images) for name, part in trainings.items())
    ours += each["expansion, fixed"] + each["maps"] * images
    return ours / (each["cam classifier"] * seen(cfg.classifier.schedule, images) + each["cam maps"] * images)


def main() -> None:
    each = alone(seconds)
    write("esol-cost", {"setting": f"mobilenet_v2, 256x256, standard budget, one core; {TRAINED} images a training",
                        "seconds_an_image": each,
                        "ratio": {str(n): round(ratio(each, n), 2) for n in SETS}})  # fmt: skip


if __name__ == "__main__":
    main()
