"""How the pixels of each file mode become 8-bit RGB: one stated rule for each, no rule that looks at the picture.

1-bit           0 -> 0, 1 -> 255.
8-bit           as they are; grey is repeated three times; palettes are looked up; CMYK by Pillow's plain formula.
16-bit grey     0..65535 -> 0..255 linearly, rounded: (v + 128) // 257. Never stretched by a file's own range, which
                would give one material two brightnesses in two images. 12-bit data comes out dark, and is noted.
                Where a TIFF says that white is zero, inverted, and noted.
16-bit colour   the high byte (what Pillow keeps), at most one level from the rule above.
32-bit integer  only values in 0..65535, as 16-bit.
float           only values in 0..1, times 255, rounded.
transparency    composited over white.
DICOM           rules of its own: `tagseg.data.dicom`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

RGB = UInt8[np.ndarray, "h w 3"]
Grey = UInt8[np.ndarray, "h w"]

TWELVE_BIT = 4095
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # of TIFF
INVERTED = "white-is-zero inverted"


class ModeRefused(ValueError):
    """A pixel type with no rule above; the message says what was found and what to save instead."""


def to_rgb(image: Image.Image, notes: list[str]) -> RGB:
    """RGB of a fully loaded Pillow image by the rules above; what was changed on the way is added to `notes`.

    Errors: `ModeRefused` for LAB, floats outside 0..1, integers outside 0..65535.
    """
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = _from_16_bit(np.asarray(image), notes)
        if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow turns 8-bit ones alone
            grey = 255 - grey
            notes.append(INVERTED)
        return repeat(grey)
    if image.mode == "F":
        return repeat(_from_float(np.asarray(image), notes))
    if image.has_transparency_data:
        return _over_white(np.asarray(image.convert("RGBA")), notes)
    if image.mode in ("1", "L"):
        return repeat(np.asarray(image.convert("L")))
    if image.mode in ("CMYK", "YCbCr", "HSV"):
        notes.append(f"{image.mode} converted to RGB")
    if image.mode in ("RGB", "P", "CMYK", "YCbCr", "HSV", "RGBX"):
        return np.asarray(image.convert("RGB"))
    raise ModeRefused(f"pixels of type {image.mode}; save it as 8-bit RGB")


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an (h, w, ...) array as EXIF orientation 1..8 asks; any other value leaves it as it is."""
    if orientation in (5, 7):
        turned = pixels if orientation == 5 else pixels[::-1, ::-1]
        return turned.swapaxes(0, 1)
    if orientation in (6, 8):
        return np.rot90(pixels, -1 if orientation == 6 else 1)
    if orientation in (2, 3, 4):
        rows, columns = -1 if orientation != 2 else 1, -1 if orientation != 4 else 1
        return pixels[::rows, ::columns]
    return pixels


def repeat(grey: Grey) -> RGB:
    """Grey (H,W) as three equal channels."""
    return np.repeat(grey[:, :, None], 3, axis=2)


def _from_16_bit(values: np.ndarray, notes: list[str]) -> Grey:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ModeRefused(f"integers from {low} to {high}, expected 0..65535; save it as 16-bit or 8-bit grey")
    notes.append("16-bit grey scaled to 8 bits")
    if 255 < high <= TWELVE_BIT:
        notes.append("16-bit values end below 4096: 12-bit data comes out dark, multiply it by 16 before saving")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _from_float(values: np.ndarray, notes: list[str]) -> Grey:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= 1.0):  # NaN fails both comparisons
        raise ModeRefused(f"floats from {low:g} to {high:g}, expected 0..1; scale them and save 8 or 16 bits")
    notes.append("floats scaled to 8 bits")
    return np.rint(values.astype(np.float64) * 255.0).astype(np.uint8)


def _over_white(rgba: UInt8[np.ndarray, "h w 4"], notes: list[str]) -> RGB:
    alpha = rgba[:, :, 3:].astype(np.uint32)
    if int(alpha.min()) < 255:
        notes.append("transparency composited over white")
    mixed = rgba[:, :, :3] * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)
