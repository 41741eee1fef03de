"""One file of class maps or labels made elsewhere (.npy, .npz, PNG) as an array; nothing in a file is ever executed."""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from tagseg.data.images import MAX_PIXELS, BadImage, decode_mask, read_bytes
from tagseg.types import IGNORE, MAX_CLASSES, DataError

SUFFIXES = (".npy", ".npz", ".png")
ARRAYS = ("probabilities", "maps", "scores", "high_res", "cam")  # the names looked for in an .npz, in this order
SLACK = 1e-4  # resizing and half precision leave [0, 1] by rounding
MAX_BYTES = 2**32
_ZIP, _NUMPY, _PICKLE = b"PK\x03\x04", b"\x93NUMPY", b"\x80"
_CONVERT = ("it is pickled, and pickled files can run code. Where you trust it: d = numpy.load(FILE, "
            "allow_pickle=True).item(); numpy.savez(NEW, maps=d['high_res'], keys=d['keys'])")


class BadMap(DataError):
    """One file that cannot be used as maps.

    `reason` is one of: empty, not-an-array, pickled, unreadable, too-large, arrays, classes, not-floats, not-labels,
    shape, size, not-finite, range, palette, colour, channels, not-a-file, and for PNG those of `BadImage`.
    """

    def __init__(self, path: str | Path, reason: str, detail: str) -> None:
        super().__init__(f"{path}: {reason}: {detail}")
        self.path, self.reason, self.detail = str(path), reason, detail


@dataclass(frozen=True, eq=False)
class Stored:
    """What one file holds: `values` float32 (K,h,w) in [0,1]; mask values of the channels where the file names them."""

    values: Float32[np.ndarray, "k h w"]
    classes: tuple[int, ...] | None = None


def read_map(path: Path) -> Stored:
    """Scores in [0,1] from (K,h,w) or (h,w) floats, or from a grey PNG (8 or 16 bits, white is 1). Errors: `BadMap`.

    An .npz holds one array, or one named as in `ARRAYS`, and may say what its channels are: `classes` are mask values
    (0 background, 1..C), `keys` are IRN's: 0 is the first class.
    """
    if path.suffix.lower() == ".png":
        return Stored(_checked(path, _grey(path)))
    arrays = _arrays(path)
    classes = _classes(path, arrays)
    values = _checked(path, _chosen(path, arrays))
    if classes is not None and len(classes) != len(values):
        raise BadMap(path, "classes", f"found {len(classes)} of them for {len(values)} maps, expected one for each")
    return Stored(values, classes)


def read_labels(path: Path) -> UInt8[np.ndarray, "h w"]:
    """Class indices (h,w) of a palette or grey PNG, or of an array of integers; 255 is unsure. Errors: `BadMap`."""
    if path.suffix.lower() == ".png":
        return _indices(path)
    values = _chosen(path, _arrays(path))
    if values.dtype.kind not in "iu" or values.ndim != 2 or not values.size:
        raise BadMap(path, "not-labels", f"found {values.dtype} {values.shape}, expected integers (H, W) with --labels")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > IGNORE:
        raise BadMap(path, "not-labels", f"found values {low}..{high}, expected 0..{MAX_CLASSES} or {IGNORE} (unsure)")
    return values.astype(np.uint8)


# ---- arrays ----

def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of a file by name; an .npy has one without a name."""
    try:
        head = _head(path)
        if head.startswith(_ZIP):
            return _unpacked(path)
        if head.startswith(_NUMPY):  # mapped: a header that lies about its size allocates nothing
            return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
    except (ValueError, OSError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error,
            struct.error) as error:
        if "allow_pickle" in str(error) or "Python objects" in str(error):  # of an .npz, of a mapped .npy
            raise BadMap(path, "pickled", _CONVERT) from None
        raise BadMap(path, "unreadable", f"{error}; save or copy it again") from error
    if head.startswith(_PICKLE):
        raise BadMap(path, "pickled", _CONVERT)
    raise BadMap(path, "not-an-array", f"first bytes {head!r}, expected what numpy.save or numpy.savez writes")


def _head(path: Path) -> bytes:
    if not path.is_file():
        raise BadMap(path, "not-a-file", "found a pipe or device, expected a file")
    with open(path, "rb") as handle:
        head = handle.read(8)
    if not head:
        raise BadMap(path, "empty", "the file has no bytes; copy it again")
    return head


def _unpacked(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as found:
        if (size := sum(member.file_size for member in found.zip.infolist())) > MAX_BYTES:
            raise BadMap(path, "too-large", f"{size} bytes unpacked, expected at most {MAX_BYTES}")
        return {name: found[name] for name in found.files}


def _chosen(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The array that holds the maps: by its name, or the only one."""
    left = [name for name in arrays if name not in ("classes", "keys")]
    named = [name for name in ARRAYS if name in left]
    if not named and len(left) != 1:
        raise BadMap(path, "arrays", f"found {', '.join(sorted(left)) or 'none'}; expected one array of maps, or one "
                     f"named {', '.join(ARRAYS)}")
    return arrays[named[0] if named else left[0]]


def _classes(path: Path, arrays: dict[str, np.ndarray]) -> tuple[int, ...] | None:
    """Mask values of the channels, from `classes` or from IRN's `keys`, which count classes from 0."""
    name = next((name for name in ("classes", "keys") if name in arrays), None)
    if name is None:
        return None
    found = arrays[name]
    if found.dtype.kind not in "iu" or found.ndim != 1:
        raise BadMap(path, "classes", f"{name!r} is {found.dtype} {found.shape}, expected integers (K,)")
    values = tuple(int(v) + (name == "keys") for v in found)
    least = 1 if name == "keys" else 0
    if len(set(values)) < len(values) or any(not least <= v <= MAX_CLASSES for v in values):
        raise BadMap(path, "classes", f"{name!r} holds {list(map(int, found))[:8]}, expected different mask values "
                     f"{least}..{MAX_CLASSES}" + (" less one" if name == "keys" else ""))
    return values


def _checked(path: Path, values: np.ndarray) -> Float32[np.ndarray, "k h w"]:
    """The maps as float32 (K,h,w), after a look at type, shape and range."""
    if values.dtype.kind != "f":
        raise BadMap(path, "not-floats", f"found {values.dtype}, expected floats in [0, 1]; class indices are read "
                     "with --labels")
    if values.ndim not in (2, 3) or not values.size or (values.ndim == 3 and len(values) > MAX_CLASSES + 1):
        raise BadMap(path, "shape", f"found {values.shape}, expected (K, h, w) with at most {MAX_CLASSES + 1} maps, "
                     "or (h, w)")
    maps = np.array(values if values.ndim == 3 else values[None], np.float32)
    if wrong := int((~np.isfinite(maps)).sum()):
        raise BadMap(path, "not-finite", f"{wrong} of {maps.size} values are NaN or infinite")
    low, high = float(maps.min()), float(maps.max())
    if low < -SLACK or high > 1 + SLACK:
        raise BadMap(path, "range", f"values from {low:g} to {high:g}, expected [0, 1]: apply the softmax or sigmoid, "
                     "or divide each map by its maximum, before saving")
    return maps.clip(0, 1, out=maps)


# ---- PNG ----

def _grey(path: Path) -> np.ndarray:
    """A grey PNG as floats (h,w): 255, or 65535 where it has 16 bits, is 1."""
    image = _opened(path)
    if image.mode == "P":
        raise BadMap(path, "palette", "a palette PNG holds class indices; read them with --labels")
    if image.mode not in ("1", "L", "I;16", "I;16B", "I"):
        raise BadMap(path, "colour", f"found {image.mode} pixels, expected one grey channel with the probability of "
                     "one class")
    white = 1 if image.mode == "1" else 255 if image.mode == "L" else 65535
    return np.asarray(image).astype(np.float32) / np.float32(white)


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(BytesIO(read_bytes(path)), formats=["PNG"])
        if image.width * image.height > MAX_PIXELS:
            raise BadMap(path, "too-large", f"{image.width}x{image.height} pixels, expected at most {MAX_PIXELS}")
        image.load()
    except BadImage as bad:
        raise BadMap(path, bad.reason, bad.detail) from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise BadMap(path, "unreadable", f"{error}; save or copy it again") from error
    return image


def _indices(path: Path) -> UInt8[np.ndarray, "h w"]:
    try:
        return decode_mask(path)
    except BadImage as bad:
        raise BadMap(path, bad.reason, bad.detail) from None
