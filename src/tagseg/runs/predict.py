"""Masks of new images by a finished run: a folder of them, or one image from Python."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tagseg import config, methods
from tagseg.artifacts import Weights, png
from tagseg.data.dicom import Spacing, Window
from tagseg.data.files import FileImages, scan, spacing_of
from tagseg.data.folder import Reading, open_images
from tagseg.data.index import TaggedSet
from tagseg.disk import write_atomic
from tagseg.report import pictures
from tagseg.runs.results_folder import clear, list_bad, mark
from tagseg.runs.run import Progress
from tagseg.runs.setup import check_outside, choose_device, choose_precision, own_folder
from tagseg.store import RECORD, Run, verify
from tagseg.types import U8, DataError, IntegrityError, Labels, UsageError

KINDS = ("mask", "overlay", "confidence")
MARKER = ".tagseg-masks"


@dataclass(frozen=True)
class Trained:
    """What a run folder holds for prediction: its method, its config on this device, its model, and the window that it
    saw DICOM files through, if not their own.
    """

    method: Any
    cfg: Any
    model: Weights
    classes: tuple[str, ...]
    has_background: bool
    window: Window | None = None


def trained(run_folder: Path, device: str = "auto", precision: str = "auto") -> Trained:
    """Read a run folder; the model's bytes are checked against their record."""
    place = Path(run_folder)
    if not (place / "weights" / RECORD).is_file():
        raise UsageError(
            f"{place}: holds no trained model (weights/{RECORD}); give the --out folder of a finished `tagseg run`"
        )
    about = _environment(place)
    method = methods.get(about["method"])
    cfg = config.load(method.Config(), place / "config.yaml")
    chosen = choose_device(device)
    cfg = config.assign(cfg, {"device": chosen, "precision": choose_precision(precision, chosen)})
    model = Weights(verify(place / "weights")["key"], place / "weights")
    window = (float(about["window"][0]), float(about["window"][1])) if about.get("window") else None
    return Trained(method, cfg, model, tuple(model.meta["classes"]), bool(model.meta["has_background"]), window)


def _environment(place: Path) -> dict[str, Any]:
    try:
        found = json.loads((place / "environment.json").read_text())
        return {**found, "method": str(found["method"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{place / 'environment.json'}: does not say which method this run is of ({error})"
        ) from error


def predict(
    run_folder: Path,
    images: Path,
    out: Path,
    *,
    save: Sequence[str] = ("mask",),
    post: bool = False,
    device: str = "auto",
    workers: int = 2,
    reading: Reading | None = None,
    progress: Progress = lambda stage, done, total, note: None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Predict every image of a folder into `out`: ID.png (palette indices at the original size), bad files listed."""
    unknown = [k for k in save if k not in KINDS]
    if unknown:
        raise UsageError(f"--save {unknown[0]!r} is unknown; expected some of {', '.join(KINDS)}")
    check_outside(images, out)
    known = trained(run_folder, device)
    reading = reading or Reading()
    opened = open_images(images, known.classes, replace(reading, window=reading.window or known.window))
    cfg = _post(known.cfg) if post else known.cfg
    own_folder(out, MARKER)
    work = Run(out / ".tagseg-cache", workers=workers, progress=progress, stopping=stopping)
    labels = known.method.predict(work, known.model, replace(opened.images, has_background=known.has_background), cfg)
    clear(out, MARKER, [(folder, ".png") for folder in ("", "confidence", "overlays")])
    for found in labels:
        _save(out, found, opened.images, save)
    mark(out, MARKER, labels.ids)
    list_bad(out, opened.bad)
    write_atomic(out / "classes.txt", "\n".join(known.classes).encode() + b"\n")
    return {
        "images": len(labels),
        "bad_files": len(opened.bad),
        "out": str(out),
        "saved": list(save),
        "classes": list(known.classes),
    }


def _post(cfg: Any) -> Any:
    return replace(cfg, predict=cfg.post)


def _save(out: Path, found: Labels, images: TaggedSet, save: Sequence[str]) -> None:
    if "mask" in save:
        spacing = spacing_of(images.source, found.id)
        write_atomic(out / f"{found.id}.png", png(found.pixels, palette=True, spacing=spacing))
    if "confidence" in save and found.confidence is not None:
        write_atomic(out / "confidence" / f"{found.id}.png", png(found.confidence, palette=False))
    if "overlay" in save:
        photo = images.source.read(found.id).transpose(1, 2, 0)
        write_atomic(out / "overlays" / f"{found.id}.png", png(pictures.overlay(photo, found.pixels), palette=False))


@dataclass(frozen=True, eq=False)
class Mask:
    """One predicted mask: `pixels` uint8 (H,W), `confidence` uint8 (H,W), the class names of 1..C, and the millimetres
    between rows and between columns where the image tells them.
    """

    pixels: U8
    confidence: U8 | None
    classes: tuple[str, ...]
    spacing: Spacing | None = None

    def save(self, path: str | Path) -> None:
        """Write a palette PNG."""
        write_atomic(Path(path), png(self.pixels, palette=True, spacing=self.spacing))


@dataclass(frozen=True)
class Loaded:
    """A trained model as a function of one image file. For a whole folder `predict` is faster."""

    trained: Trained

    def __call__(self, path: str | Path) -> Mask:
        """The mask of an image file, at its own size."""
        file = Path(path)
        source = FileImages({file.stem: file}, window=self.trained.window)
        for bad in scan(source, [file.stem], file.parent):
            raise DataError(f"{bad.path}: {bad.reason}: {bad.detail}")
        classes = self.trained.classes
        tags = np.zeros((1, len(classes)), np.bool_)
        one = TaggedSet(
            file.name, classes, (file.stem,), tags, np.zeros(1, np.bool_), source, self.trained.has_background
        )
        with tempfile.TemporaryDirectory() as folder:
            labels = self.trained.method.predict(
                Run(Path(folder), workers=1), self.trained.model, one, self.trained.cfg
            )
            found = labels.get(file.stem)
        return Mask(found.pixels, found.confidence, classes, source.spacing(file.stem))


def load(run_folder: str | Path, device: str = "auto") -> Loaded:
    """A finished run as a function: `tagseg.load("runs/first")("a.jpg").save("a.png")`."""
    return Loaded(trained(Path(run_folder), device))


__all__ = ["KINDS", "Loaded", "Mask", "Trained", "load", "predict", "trained"]
