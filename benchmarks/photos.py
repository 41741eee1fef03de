"""What the measurements look at: real photos and masks where there are any, else generated scenes, enlarged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tagseg.data.scenes import preset, render

SIZE = (500, 375)  # width, height of an enlarged scene


class Photos(NamedTuple):
    """JPEG files, PNG masks of class indices beside them, how many classes, and what to call them in a row."""

    images: list[str]
    masks: list[str]
    classes: int
    words: str


def photos(count: int, folder: Path) -> Photos:
    """`count` photos of the shared `fashion` set (TAGSEG_SHARED, else ../shared), else scenes written to `folder`."""
    real = shared("data/fashion")
    if real is None:
        return _scenes(count, folder)
    names = sorted(p.stem for p in (real / "masks").glob("*.png"))[:count]
    images = [str(real / "images" / f"{name}.jpg") for name in names]
    sizes = np.median([Image.open(path).size for path in images], axis=0).astype(int)
    classes = len((real / "classes.txt").read_text().split("\n")) - 1
    words = f"{len(names)} photos of fashion, about {sizes[0]}x{sizes[1]}"
    return Photos(images, [str(real / "masks" / f"{name}.png") for name in names], classes, words)


def shared(what: str) -> Path | None:
    """A part of the folder with real data and weights, or None."""
    root = Path(os.environ.get("TAGSEG_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    return root / what if (root / what).exists() else None


def rgb(path: str) -> np.ndarray:
    """uint8 (H,W,3)."""
    return np.asarray(Image.open(path).convert("RGB"))


def _scenes(count: int, folder: Path) -> Photos:
    images, masks = [], []
    for index in range(count):
        scene = render(preset("basic"), 0, index)
        images.append(str(folder / f"{index}.jpg"))
        masks.append(str(folder / f"{index}.png"))
        large = Image.fromarray(scene.image.transpose(1, 2, 0)).resize(SIZE, Image.Resampling.BICUBIC)
        large.save(images[-1], quality=90)
        Image.fromarray(scene.mask).resize(SIZE, Image.Resampling.NEAREST).save(masks[-1])
    words = f"{count} generated scenes enlarged to {SIZE[0]}x{SIZE[1]}"
    return Photos(images, masks, len(preset("basic").classes), words)
