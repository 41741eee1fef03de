"""`saliency`: how salient each pixel of a folder of images is; a tool for itself, without tags and without a run."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tagseg import cache, config
from tagseg.artifacts import MapSet, png
from tagseg.data.folder import Opened, Reading, TooManyBad, open_images
from tagseg.data.index import Images
from tagseg.disk import lock, write_atomic
from tagseg.localize.saliency import CLASSES, Saliency, maps
from tagseg.refine.superpixels import Superpixels, cut
from tagseg.report import pictures
from tagseg.runs.results_folder import clear, inner_cache, list_bad, mark
from tagseg.runs.run import Progress
from tagseg.runs.setup import check_outside, own_folder
from tagseg.store import Run
from tagseg.types import ClassMaps, UsageError

KINDS = {"map": ("maps", ".png"), "overlay": ("overlays", ".png"), "array": ("arrays", ".npy")}
MARKER = ".tagseg-saliency"


@dataclass(frozen=True)
class Config:
    """The settings of the measure, and of the superpixels that "rbd" works on."""

    saliency: Saliency = field(default_factory=Saliency)
    superpixels: Superpixels = field(default_factory=Superpixels)


@dataclass(frozen=True)
class SaliencyRequest:
    """What a user asks for. `save`: some of `KINDS`."""

    images: Path
    out: Path
    cfg: Config = field(default_factory=Config)
    save: tuple[str, ...] = ("map",)
    reading: Reading = field(default_factory=Reading)
    workers: int = 2
    cache: Path | None = None


def saliency(
    request: SaliencyRequest,
    progress: Progress = lambda stage, done, total, note: None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Write the saliency of every image below a folder; the same request goes on where it stopped. Returns what
    saliency.json holds. Errors: `UsageError` for what cannot be asked, `DataError` where too many images are bad.
    """
    _check(request)
    opened = _opened(request)
    place = inner_cache(request.cache, request.out)
    own_folder(request.out, MARKER)
    with lock(request.out / ".lock", wait=False):
        planning = Run(place, planning=True)
        measured(planning, opened.images.images(), request.cfg)
        cache.register(place, request.out, [step.path for step in planning.steps])
        work = Run(place, workers=request.workers, progress=progress, stopping=stopping)
        return _write(request, opened, measured(work, opened.images.images(), request.cfg))


def measured(run: Run, images: Images, cfg: Config) -> MapSet:
    """The maps, after the superpixels where they are needed."""
    segments = (cut(run, images, cfg.superpixels),) if cfg.saliency.kind == "rbd" else ()
    return maps(run, images, segments, cfg.saliency)


def _check(request: SaliencyRequest) -> None:
    unknown = [kind for kind in request.save if kind not in KINDS]
    if unknown or not request.save:
        raise UsageError(f"--save {','.join(request.save)!r}: expected some of {', '.join(KINDS)}")
    limit = request.reading.limit
    for name, value in (("--workers", request.workers), ("--limit", 1 if limit is None else limit)):
        if value < 1:
            raise UsageError(f"{name} {value}: expected 1 or more")
    check_outside(request.images, request.out)
    check_outside(request.images, inner_cache(request.cache, request.out), "the cache (--cache, TAGSEG_CACHE)")


def _opened(request: SaliencyRequest) -> Opened:
    """The images; a folder that is refused for its bad files leaves the whole list of them."""
    try:
        return open_images(request.images, tuple(CLASSES), request.reading)
    except TooManyBad as refused:
        own_folder(request.out, MARKER)
        list_bad(request.out, refused.bad)
        raise


def _write(request: SaliencyRequest, opened: Opened, found: MapSet) -> dict[str, Any]:
    """Everything of the results folder; what an earlier call left there goes first."""
    out, cfg = request.out, request.cfg
    clear(out, MARKER, KINDS.values())
    mark(out, MARKER, found.ids)
    for one in found:
        for kind in request.save:
            folder, suffix = KINDS[kind]
            write_atomic(out / folder / f"{one.id}{suffix}", _bytes(kind, one, opened.images.images()))
    list_bad(out, opened.bad)
    settings = {"saliency": config.canonical(cfg.saliency)}
    if cfg.saliency.kind == "rbd":
        settings["superpixels"] = config.canonical(cfg.superpixels)
    document = {"images": len(found), "bad_files": len(opened.bad), "out": str(out), "saved": list(request.save),
                "kind": cfg.saliency.kind, "settings": settings}
    write_atomic(out / "saliency.json", json.dumps(document, indent=1, ensure_ascii=False).encode())
    return document


def _bytes(kind: str, one: ClassMaps, images: Images) -> bytes:
    """One file: white is 1 in a map of 8 bits; an array is float16 (H,W)."""
    if kind == "overlay":
        photo = images.source.read(one.id).transpose(1, 2, 0)
        return png(pictures.heat(photo, one.scores, one.classes), palette=False)
    if kind == "map":
        return png(np.round(255 * one.scores[0]).astype(np.uint8), palette=False)
    buffer = io.BytesIO()
    np.save(buffer, one.scores[0].astype(np.float16), allow_pickle=False)
    return buffer.getvalue()


__all__ = ["KINDS", "Config", "SaliencyRequest", "saliency"]
