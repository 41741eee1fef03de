"""`refine`: maps that another program made, drawn to the edges of their images; a tool for itself, without a run."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tagseg import cache, config
from tagseg.artifacts import LabelSet, MapSet, Scores, png
from tagseg.data.files import spacing_of
from tagseg.data.folder import TooManyBad
from tagseg.data.foreign_folders import OpenedMaps, open_maps
from tagseg.data.foreign_maps import ForeignMaps, MapReading
from tagseg.data.index import TaggedSet
from tagseg.data.weights import Pretrained, find
from tagseg.disk import lock, write_atomic
from tagseg.localize import affinity as affinities
from tagseg.localize.affinity import Affinity
from tagseg.refine import affinity as walks
from tagseg.refine import pamr, seeds, superpixels
from tagseg.refine.affinity import Walk
from tagseg.refine.crf import Crf
from tagseg.refine.pamr import Pamr
from tagseg.refine.seeds import Seeds
from tagseg.refine.superpixels import Smooth, Superpixels
from tagseg.report import pictures
from tagseg.runs.foreign_stages import EVEN, Cut, Decide, Import, imported, labels, point, probabilities
from tagseg.runs.results_folder import clear, inner_cache, list_bad, mark
from tagseg.runs.run import Progress
from tagseg.runs.setup import check_outside, choose_device, choose_precision, own_folder
from tagseg.store import Run
from tagseg.training.schedule import recipe_values
from tagseg.types import Labels, UsageError

STEPS = ("affinity", "superpixels", "pamr", "crf")
KINDS = {"mask": ("masks", ".png"), "overlay": ("overlays", ".png"), "confidence": ("confidence", ".png"),
         "probabilities": ("probabilities", ".npy")}
GROUPS = {"crf": ("crf",), "superpixels": ("superpixels", "smooth"), "pamr": ("pamr",),
          "affinity": ("seeds", "affinity", "walk")}
MARKER = ".tagseg-refined"


@dataclass(frozen=True)
class Config:
    """The settings of every step; those of steps that are not asked for play no part."""

    crf: Crf = field(default_factory=Crf)
    superpixels: Superpixels = field(default_factory=Superpixels)
    smooth: Smooth = field(default_factory=Smooth)
    pamr: Pamr = field(default_factory=Pamr)
    seeds: Seeds = field(default_factory=Seeds)
    affinity: Affinity = field(default_factory=Affinity)
    walk: Walk = field(default_factory=Walk)


@dataclass(frozen=True)
class RefineRequest:
    """What a user asks for. `steps` are some of `STEPS`, applied in that order; `save` some of `KINDS`.

    `threshold`: the background's score where it has no map of its own; None chooses it by Otsu's rule.
    `given`: names of settings of `cfg` that were asked for, so that what is found in the maps does not change them.
    `backbone`, `weights`, `precision`, `seed` concern the affinity network alone, `device` every device that is "auto".
    """

    maps: Path
    images: Path
    out: Path
    steps: tuple[str, ...] = ("crf",)
    reading: MapReading = field(default_factory=MapReading)
    cfg: Config = field(default_factory=Config)
    given: tuple[str, ...] = ()
    threshold: float | None = None
    save: tuple[str, ...] = ("mask",)
    backbone: str = "auto"
    weights: str | None = None
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0
    workers: int = 2
    cache: Path | None = None


@dataclass(frozen=True)
class Refined:
    """The labels, what they were decided from, and the background's score (None: it had a map)."""

    labels: LabelSet
    probabilities: MapSet | None
    point: Scores | None


def refine(
    request: RefineRequest,
    progress: Progress = lambda stage, done, total, note: None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Refine a folder of maps into masks; the same request goes on where it stopped. Returns what refine.json holds.

    Errors: `UsageError` where the reading of the maps must be said; `DataError` where too many of them are bad.
    """
    _check(request)
    opened = _opened(request)
    pretrained = find(request.weights, expected=backbone(request)) if "affinity" in request.steps else None
    cfg = decided(request, opened.maps)
    own_folder(request.out, MARKER)
    with lock(request.out / ".lock", wait=False):
        place = inner_cache(request.cache, request.out)
        planning = Run(place, planning=True)
        apply(planning, opened, pretrained, request, cfg)
        cache.register(place, request.out, [step.path for step in planning.steps])
        work = Run(place, workers=request.workers, progress=progress, stopping=stopping)
        found = apply(work, opened, pretrained, request, cfg)
        return _write(request, opened, found, cfg)


def apply(run: Run, opened: OpenedMaps, pretrained: Pretrained | None, request: RefineRequest, cfg: Config) -> Refined:
    """The steps that were asked for, as stages; the CRF alone takes the maps as they are."""
    tagged, maps = opened.images, opened.maps
    own = EVEN if maps.has_background else None
    if request.steps == ("crf",):
        return _decide(run, request, tagged, maps, Cut(own or request.threshold), cfg)
    last = imported(run, maps, Import())
    cut = Cut(own or request.threshold)
    if pretrained is not None:
        sure = seeds.confident(run, tagged, last, point(run, last, Cut(own)), cfg.seeds)
        network = affinities.train(run, tagged, sure, pretrained, cfg.affinity)
        last, cut = walks.maps(run, tagged, last, network, cfg.walk), Cut(request.threshold)
    if "superpixels" in request.steps:
        segments = superpixels.segments(run, tagged, cfg.superpixels)
        last = superpixels.smoothed(run, tagged, last, segments, cfg.smooth)
    if "pamr" in request.steps:
        last = pamr.maps(run, tagged, last, cfg.pamr)
    return _decide(run, request, tagged, last, cut, cfg)


def _decide(run: Run, request: RefineRequest, tagged: TaggedSet, maps: ForeignMaps | MapSet, cut: Cut,
            cfg: Config) -> Refined:
    background = point(run, maps, cut)
    how = Decide(cfg.crf if "crf" in request.steps else None)
    drawn = labels(run, tagged, maps, background, how)
    shares = probabilities(run, tagged, maps, background, how) if "probabilities" in request.save else None
    return Refined(drawn, shares, None if cut.given == EVEN else background)


def decided(request: RefineRequest, maps: ForeignMaps) -> Config:
    """The settings with nothing left at "auto"; the budget is that of the affinity network."""
    device = choose_device(request.device)
    cfg = config.resolve(request.cfg, {"device": device})
    if maps.has_background and "smooth.keep_peaks" not in request.given:
        # the background's own map says where a class ends; raised peaks would move that
        cfg = dataclasses.replace(cfg, smooth=dataclasses.replace(cfg.smooth, keep_peaks=False))
    if "affinity" not in request.steps:
        return cfg
    values = { "precision": choose_precision(request.precision, device), "seed": request.seed,
              "backbone": backbone(request)}
    return config.resolve(config.resolve(cfg, values), recipe_values(backbone(request)))


def budgeted(cfg: Config, budget: str) -> Config:
    """The affinity network's settings at a budget; it does not touch the CRF or the superpixels."""
    return dataclasses.replace(cfg, affinity=config.with_budget(cfg.affinity, budget),
                               walk=config.with_budget(cfg.walk, budget))


def backbone(request: RefineRequest) -> str:
    return "mobilenet_v2" if request.backbone == "auto" else request.backbone


# ---- before ----

def _check(request: RefineRequest) -> None:
    for name, asked, known in (("--with", request.steps, STEPS), ("--save", request.save, tuple(KINDS))):
        unknown = [one for one in asked if one not in known]
        if unknown or not asked:
            raise UsageError(f"{name} {','.join(asked)!r}: expected some of {', '.join(known)}")
    if list(request.steps) != [step for step in STEPS if step in request.steps]:
        raise UsageError(f"--with {','.join(request.steps)}: expected each step once, in the order {', '.join(STEPS)}")
    if request.threshold is not None and not 0 < request.threshold < 1:
        raise UsageError(f"--threshold {request.threshold}: expected a score between 0 and 1, both excluded")
    for what, value, least in (("--workers", request.workers, 1), ("--seed", request.seed, 0)):
        if value < least:
            raise UsageError(f"{what} {value}: expected {least} or more")
    _check_devices(request)
    for data in (request.images, request.maps):
        check_outside(data, request.out)
        check_outside(data, inner_cache(request.cache, request.out), "the cache (--cache, TAGSEG_CACHE)")


def _check_devices(request: RefineRequest) -> None:
    """Refuse --device, and the device of a step that was asked for, before any work is done for them."""
    choose_device(request.device)
    for group in (name for step in request.steps for name in GROUPS[step]):
        for name, value, _ in config.leaves(getattr(request.cfg, group), f"{group}."):
            if name.endswith(".device"):
                choose_device(value, f"setting {name}")


def _opened(request: RefineRequest) -> OpenedMaps:
    """The maps; a folder that is refused for its bad files leaves the whole list of them."""
    try:
        opened = open_maps(request.maps, request.images, request.reading)
    except TooManyBad as refused:
        own_folder(request.out, MARKER)
        list_bad(request.out, refused.bad)
        raise
    if request.threshold is not None and opened.maps.has_background and "affinity" not in request.steps:
        raise UsageError(f"--threshold {request.threshold}: the maps in {request.maps} have a map of the background, "
                         "which decides; leave --threshold out, or say --background none if they have not")
    return opened


# ---- after ----

def _write(request: RefineRequest, opened: OpenedMaps, found: Refined, cfg: Config) -> dict[str, Any]:
    """Everything of the results folder; what an earlier call left there goes first."""
    out = request.out
    clear(out, MARKER, KINDS.values())
    mark(out, MARKER, found.labels.ids)
    for one in found.labels:
        _save(out, one, opened, found, request.save)
    list_bad(out, opened.bad)
    write_atomic(out / "classes.txt", "\n".join(opened.maps.classes).encode() + b"\n")
    document = {
        "images": len(found.labels), "bad_files": len(opened.bad), "out": str(out), "saved": list(request.save),
        "classes": list(opened.maps.classes), "with": list(request.steps),
        "background": found.point.read() if found.point else {"origin": "the background's own map"},
        "dropped": opened.maps.dropped() if request.reading.floor else 0, "notes": list(opened.notes),
        "settings": _settings(request.steps, cfg),
    }
    write_atomic(out / "refine.json", json.dumps(document, indent=1, ensure_ascii=False).encode())
    return document


def _settings(steps: tuple[str, ...], cfg: Config) -> dict[str, Any]:
    """The settings that played a part."""
    return {name: config.canonical(getattr(cfg, name)) for step in steps for name in GROUPS[step]}


def _save(out: Path, one: Labels, opened: OpenedMaps, found: Refined, save: tuple[str, ...]) -> None:
    for kind in save:
        folder, suffix = KINDS[kind]
        write_atomic(out / folder / f"{one.id}{suffix}", _bytes(kind, one, opened, found))


def _bytes(kind: str, one: Labels, opened: OpenedMaps, found: Refined) -> bytes:
    if kind == "overlay":
        photo = opened.images.source.read(one.id).transpose(1, 2, 0)
        return png(pictures.overlay(photo, one.pixels), palette=False)
    if kind == "probabilities" and found.probabilities is not None:
        return _array(found.probabilities, one.id, len(opened.maps.classes))
    if kind == "confidence" and one.confidence is not None:
        return png(one.confidence, palette=False)
    return png(one.pixels, palette=True, spacing=spacing_of(opened.images.source, one.id))


def _array(shares: MapSet, id: str, classes: int) -> bytes:
    """float16 (C+1,H,W) as .npy: the background first, then every class, 0 where the image has none of it."""
    maps = shares.get(id)
    whole = np.zeros((classes + 1, *maps.size), np.float16)
    whole[maps.classes] = maps.scores
    whole[0] = (1 - maps.scores.sum(0)).clip(0, 1)
    buffer = io.BytesIO()
    np.save(buffer, whole, allow_pickle=False)
    return buffer.getvalue()


__all__ = ["KINDS", "STEPS", "Config", "RefineRequest", "refine"]
