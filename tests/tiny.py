"""A whole run in seconds: generated scenes of 48 pixels, the small network, a few dozen steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tagseg.methods.protocol import Fitted
from tagseg.runs.setup import Prepared, Request, prepare
from tagseg.store import Run

DATA = "scenes:basic?train=24&val=12&size=48"
CLASSIFIER = (
    "classifier.stride=16",
    "classifier.augment.size=48",
    "classifier.schedule.min_images=0",
    "classifier.schedule.max_images=192",
    "classifier.schedule.batch=8",
    "point.few=2",
    "point.pairs=20",
)
SETS = (
    *CLASSIFIER,
    "cam.views.size=48",
    "segmenter.stride=16",
    "segmenter.width=16",
    "segmenter.augment.size=48",
    "segmenter.schedule.min_images=0",
    "segmenter.schedule.max_images=96",
    "segmenter.schedule.batch=8",
    "predict.views.size=48",
    "post.views.size=48",
    "post.views.scales=[1.0]",
    "post.crf.iterations=1",
)

WALK = (
    "seeds.crf.iterations=1",
    "affinity.augment.size=48",
    "affinity.stride=16",
    "affinity.width=8",
    "affinity.schedule.min_images=0",
    "affinity.schedule.max_images=32",
    "walk.views.size=48",
    "walk.degree=20",
)
OWN = {
    "cam": ("crf.iterations=2",),
    "esol": (
        "crf.iterations=2",
        *WALK,
        "classifier.sampler=16",
        "classifier.stride=8",
        "classifier.schedule.max_images=1600",
        "expand.augment.size=48",
        "expand.schedule.batch=8",
        "second.augment.size=48",
        "second.schedule.min_images=0",
        "second.schedule.max_images=400",
        "second.schedule.batch=8",
        "shrink.augment.size=48",
        "shrink.schedule.batch=8",
    ),
    "mcof": (
        "superpixels.kind=grid",
        "superpixels.regions=64",
        "regions.stride=16",
        "regions.width=32",
        "regions.augment.size=48",
        "regions.schedule.min_images=0",
        "regions.schedule.max_images=96",
        "ask.size=48",
        "posterior.least=10",
        "again.views.size=48",
    ),
    "dfs": (
        *(f"{part}.augment.size=48" for part in ("heads", "joint")),
        *(f"{part}.schedule.min_images=0" for part in ("heads", "joint")),
        *(f"{part}.schedule.max_images=96" for part in ("heads", "joint")),
        *(f"{part}.schedule.batch=8" for part in ("heads", "joint")),
        "maps.views.size=48",
        "crf.iterations=2",
        "predict.maps.views.size=48",
        "predict.crf.iterations=1",
        "post.maps.views.size=48",
        "post.maps.views.scales=[1.0]",
        "post.maps.smooth=0.7",
        "post.crf.iterations=1",
    ),
}
OWN["priors"] = (
    "foreground.views.size=48",
    "prior.crf.iterations=2",
)
OWN["transfernet"] = (
    *(f"{part}.augment.size=48" for part in ("attend", "draw", "tagger")),
    *(f"{part}.schedule.min_images=0" for part in ("attend", "draw", "tagger")),
    *(f"{part}.schedule.max_images=96" for part in ("attend", "draw", "tagger")),
    *(f"{part}.schedule.batch=8" for part in ("attend", "draw", "tagger")),
    "attend.shape.width=16",
    "tagger.stride=16",
    "crf.iterations=2",
    "maps.size=48",
    "predict.maps.size=48",
    "predict.recognise.views.size=48",
    "post.maps.size=48",
    "post.recognise.views.size=48",
    "post.crf.iterations=1",
)
COMMON = {"dfs": CLASSIFIER, "transfernet": CLASSIFIER[:-2]}  # they have neither cam's maps nor a segmenter
TARGET, SOURCE = (f"scenes:transfer?train=24&val=12&size=48&side={side}" for side in ("target", "source"))
MORE: dict[str, dict[str, Any]] = {"transfernet": {"data": TARGET, "aux": SOURCE}}


def request(
    out: Path, *, method: str = "cam", data: str = DATA, sets: tuple[str, ...] = (), **more: Any
) -> Request:  # fmt: skip
    """The tiny run of a method; `sets` come after the tiny ones and win."""
    given = (*COMMON.get(method, SETS), *OWN[method], *sets)
    asked = Request(method, data, out, budget="quick", backbone="small", sets=given, device="cpu", precision="fp32",
                    workers=1)
    return replace(asked, **more)


def words(out: Path, *more: str, data: str = DATA) -> list[str]:
    """The same run as words of the command line, after the command's name."""
    sets = [word for item in (*SETS, *OWN["cam"]) for word in ("--set", item)]
    return ["cam", data, "--out", str(out), "--budget", "quick", "--backbone", "small", "--device", "cpu",
            "--precision", "fp32", "--workers", "1", *sets, *more]


@dataclass(frozen=True)
class Tiny:
    """One finished tiny run that tests share and must not change."""

    out: Path
    prepared: Prepared
    fitted: Fitted
    document: dict[str, Any]

    @property
    def cache(self) -> Path:
        return self.prepared.cache

    def again(self) -> Run:
        """A run on the same cache: everything that was made is done."""
        return Run(self.cache, workers=1)


def make(out: Path, method: str = "cam", data: str = DATA) -> Tiny:
    """Do the whole tiny run."""
    from tagseg.runs.run import run

    asked = request(out, **{"method": method, "data": data, **MORE.get(method, {})})
    document = run(asked)
    prepared = prepare(asked)
    fitted = prepared.method.fit(Run(prepared.cache, workers=1), prepared.inputs, prepared.cfg)
    return Tiny(out, prepared, fitted, document)


def photos(root: Path, *, masks: str = "true", count: int = 12, side: int = 48) -> Path:
    """A folder of generated photos with tags.csv; `masks` are "true", "none", "garbage" bytes, or "other" classes."""
    from tagseg.artifacts import png
    from tagseg.data.scenes import preset, render

    cfg = replace(preset("basic"), size=side)
    rows = []
    for k in range(count):
        scene = render(cfg, 5, k)
        _write(root / "images" / f"{k:03d}.png", _rgb(scene.image))
        rows.append(f"{k:03d}.png,{';'.join(n for n, t in zip(cfg.classes, scene.tags, strict=True) if t)}")
        if masks != "none":
            other = (scene.mask + 1) % (len(cfg.classes) + 1) if masks == "other" else scene.mask
            _write(root / "masks" / f"{k:03d}.png", b"no mask" if masks == "garbage" else png(other, palette=True))
    _write(root / "tags.csv", "\n".join(["file,tags", *rows, ""]).encode())
    _write(root / "classes.txt", "\n".join([*cfg.classes, ""]).encode())
    return root


def _rgb(image: Any) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
