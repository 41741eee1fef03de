"""From a photo's file to a normalised training crop: crop first, against the whole photo augmented and then cropped."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from benchmarks.measure import compare
from benchmarks.photos import photos, rgb
from benchmarks.processes import Job

IMAGES = 40
CROP = 224
LONG = (320, 640)  # IRN's range of the longer side
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
SCALE, SHIFT = (1 / (255 * STD))[:, None, None], (MEAN / STD)[:, None, None]
Plan = tuple[tuple[int, int], tuple[int, int], bool, tuple[float, float, float]]


def plan(size: tuple[int, int], rng: np.random.Generator) -> Plan:
    """The new size of the whole photo (w, h), where the crop lies in it (x, y), mirrored or not, colour factors.

    Windows lie on whole pixels of the resized photo, for a photo resized as a whole can be cropped nowhere else.
    """
    factor = max(rng.uniform(*LONG) / max(size), (CROP + 1) / min(size))
    w, h = (round(side * factor) for side in size)
    place = int(rng.integers(0, w - CROP + 1)), int(rng.integers(0, h - CROP + 1))
    return (w, h), place, bool(rng.random() < 0.5), tuple(rng.uniform(0.8, 1.2, 3))


def ours(file: str, how: Plan, colour: bool) -> np.ndarray:
    """float32 (3,h,w): tagseg decodes, resizes the window alone, and works on its bytes until the last step."""
    from tagseg.data.images import decode
    from tagseg.data.loader import FILL, Window, cut

    (w, h), (x, y), flip, factors = how
    image = Image.fromarray(np.ascontiguousarray(decode(file).transpose(1, 2, 0)))
    sx, sy = image.width / w, image.height / h
    view = Window((x * sx, y * sy, (x + CROP) * sx, (y + CROP) * sy), flip)
    crop = cut(image, view, (CROP, CROP), fill=FILL, nearest=False)
    crop = _coloured(crop, factors) if colour else crop
    values = np.ascontiguousarray(np.asarray(crop).transpose(2, 0, 1)).astype(np.float32)  # bytes until the device
    values *= SCALE
    values -= SHIFT
    return values


def theirs(file: str, how: Plan, colour: bool) -> np.ndarray:
    """The same as IRN's data set does it: resize, colour, mirror and normalise the whole photo, then crop."""
    size, (x, y), flip, factors = how
    image = Image.fromarray(rgb(file)).resize(size, Image.Resampling.BILINEAR)
    image = _coloured(image, factors) if colour else image
    if flip:
        image, x = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), size[0] - CROP - x
    whole = np.zeros((*reversed(size), 3), np.float32)
    for c in range(3):  # channel by channel, as the published code
        whole[..., c] = (np.asarray(image)[..., c] / 255.0 - MEAN[c]) / STD[c]
    return np.ascontiguousarray(whole[y : y + CROP, x : x + CROP].transpose(2, 0, 1))


def _coloured(image: Image.Image, factors: tuple[float, float, float]) -> Image.Image:
    steps = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for enhance, factor in zip(steps, factors, strict=True):
        image = enhance(image).enhance(factor)
    return image


def plans(files: list[str]) -> list[Plan]:
    rng = np.random.default_rng(0)
    return [plan(Image.open(file).size, rng) for file in files]


def sides(files: list[str]) -> dict[str, Job]:
    made = plans(files)

    def run(one: Callable[[str, Plan, bool], np.ndarray]) -> None:
        for file, how in zip(files, made, strict=True):
            one(file, how, True)

    return {"ours": partial(run, ours), "peer": partial(run, theirs)}


def agreement(files: list[str]) -> float:
    """Share of crop values that differ by at most 2 grey levels of 255.

    Without colour: its contrast step turns about the mean of what it sees, the crop or the whole photo.
    """
    pairs = [(ours(file, how, False), theirs(file, how, False)) for file, how in zip(files, plans(files), strict=True)]
    return float(np.mean([(np.abs(a - b) * 255 * STD[:, None, None] < 2.5).mean() for a, b in pairs]))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = photos(IMAGES, Path(folder))
        compare("loader", peer="whole photo augmented, then cropped (IRN's order)", build=sides, args=(found.images,),
                setting=f"{found.words}, longer side {LONG[0]}-{LONG[1]}, crop {CROP}, normalised floats",
                agree=lambda *_: agreement(found.images),
                agreement_of="crop values within 2 of 255 levels, colour left out", rounds=5)


if __name__ == "__main__":
    main()
