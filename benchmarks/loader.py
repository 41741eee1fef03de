"""From a photo's file to a normalised training crop: crop first, against the whole photo augmented and then cropped.

Then where our time goes, and one thing that was tried: all three colour steps in one compiled pass, Pillow's bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from benchmarks.measure import compare, in_turn, write
from benchmarks.photos import photos, rgb
from benchmarks.processes import Job, alone

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
    """The same in the order of IRN's data set: the whole photo resized, mirrored and normalised, then cropped. Colours,
    which IRN leaves alone, are changed after resizing.
    """
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


def one_pass() -> Callable[[np.ndarray, tuple[float, float, float]], np.ndarray]:
    """Brightness, contrast, saturation of uint8 (h,w,3), to the byte as Pillow blends them, compiled here."""
    from numba import njit

    @njit
    def blend(a: int, b: int, factor: np.float32) -> np.uint8:
        return np.uint8(min(max(np.float32(a) + factor * np.float32(b - a), np.float32(0)), np.float32(255)))

    @njit
    def grey(r: int, g: int, b: int) -> int:
        return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16

    @njit
    def coloured(image: np.ndarray, factors: tuple[float, float, float]) -> np.ndarray:
        light, contrast, colour = (np.float32(factors[0]), np.float32(factors[1]), np.float32(factors[2]))
        first, both = np.empty(256, np.int64), np.empty(256, np.int64)
        for level in range(256):
            first[level] = blend(0, level, light)
        pixels, total = image.reshape(-1, 3), 0
        for p in pixels:
            total += grey(first[p[0]], first[p[1]], first[p[2]])
        mean = int(total / len(pixels) + 0.5)
        for level in range(256):
            both[level] = blend(mean, first[level], contrast)
        found = np.empty_like(pixels)
        for k in range(len(pixels)):
            r, g, b = both[pixels[k, 0]], both[pixels[k, 1]], both[pixels[k, 2]]
            middle = grey(r, g, b)
            found[k, 0], found[k, 1], found[k, 2] = blend(middle, r, colour), blend(middle, g, colour), blend(
                middle, b, colour)  # fmt: skip
        return found.reshape(image.shape)

    def run(image: np.ndarray, factors: tuple[float, float, float]) -> np.ndarray:
        found: np.ndarray = coloured(image, factors)
        return found

    return run


def parts(files: list[str]) -> dict[str, float]:
    """Median CPU milliseconds of each step of ours for one photo, of the peer, and of the trial."""
    from tagseg.data.images import decode
    from tagseg.data.loader import FILL, Window, cut

    made, fused = plans(files), one_pass()
    decoded = [Image.fromarray(np.ascontiguousarray(decode(f).transpose(1, 2, 0))) for f in files]

    def window(image: Image.Image, how: Plan) -> Image.Image:
        (w, h), (x, y), flip, _ = how
        sx, sy = image.width / w, image.height / h
        view = Window((x * sx, y * sy, (x + CROP) * sx, (y + CROP) * sy), flip)
        return cut(image, view, (CROP, CROP), fill=FILL, nearest=False)

    crops = [window(image, how) for image, how in zip(decoded, made, strict=True)]
    arrays = [np.asarray(crop) for crop in crops]
    assert all(np.array_equal(fused(a, how[3]), np.asarray(_coloured(c, how[3])))
               for a, c, how in zip(arrays, crops, made, strict=True))  # fmt: skip
    times = in_turn({
        "file to pixels": lambda: [decode(f) for f in files],
        "the window, resized": lambda: [window(i, how) for i, how in zip(decoded, made, strict=True)],
        "brightness, contrast, saturation": lambda: [_coloured(c, how[3]) for c, how in zip(crops, made, strict=True)],
        "all": lambda: [ours(f, how, True) for f, how in zip(files, made, strict=True)],
        "the peer": lambda: [theirs(f, how, True) for f, how in zip(files, made, strict=True)],
        "tried: colours in one compiled pass, the same bytes": lambda: [
            fused(a, how[3]) for a, how in zip(arrays, made, strict=True)],
    }, 5)  # fmt: skip
    return {name: found["cpu_ms"]["median"] / len(files) for name, found in times.items()}


def plans(files: list[str]) -> list[Plan]:
    rng = np.random.default_rng(0)
    return [plan(Image.open(file).size, rng) for file in files]


def sides(files: list[str]) -> dict[str, Job]:
    made = plans(files)

    def run(one: Callable[[str, Plan, bool], np.ndarray]) -> None:
        for file, how in zip(files, made, strict=True):
            one(file, how, True)

    return {"ours": partial(run, ours), "peer": partial(run, theirs),
            "warm ours": partial(ours, files[0], made[0], True), "warm peer": partial(theirs, files[0], made[0], True)}


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
        write("loader-phases", {"setting": f"{found.words}, crop {CROP}, each photo",
                                "phases": {"a photo": {"cpu_ms": alone(parts, found.images)}}})  # fmt: skip


if __name__ == "__main__":
    main()
