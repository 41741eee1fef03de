"""The one image decoder: any photo to uint8 RGB, any mask to class indices, and a typed refusal for the rest."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import UInt8
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from tagseg.data import dicom
from tagseg.data.pixels import INVERTED, ModeRefused, to_rgb, upright
from tagseg.types import DataError, EnvironmentFault

MAX_PIXELS = 100_000_000
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".pbm", ".dcm",
            ".dicom")
HEAD = 132  # bytes that tell what a file is

# Our own table instead of Image.open: the format is what the first bytes say, no other parser is ever tried, and
# Pillow's global MAX_IMAGE_PIXELS (a mere warning up to twice its value) plays no part; the cap below is ours.
_READERS: tuple[tuple[tuple[bytes, ...], Callable[[IO[bytes]], ImageFile.ImageFile]], ...] = (
    ((b"\xff\xd8\xff",), JpegImagePlugin.jpeg_factory),
    ((b"\x89PNG\r\n\x1a\n",), PngImagePlugin.PngImageFile),
    ((b"BM",), BmpImagePlugin.BmpImageFile),
    ((b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    ((b"RIFF",), WebPImagePlugin.WebPImageFile),
    ((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), PpmImagePlugin.PpmImageFile),
)
_PNG = b"\x89PNG\r\n\x1a\n"
_BYTES_A_PIXEL = 16  # no format read here stores more; anything longer is not this image


class BadImage(DataError):
    """One file that cannot be used as an image.

    `reason` is one of: missing, not-a-file, no-permission, empty, not-an-image, too-large, truncated, unreadable,
    no-pixels, pixel-type, mask-format, mask-coloured, mask-range.
    """

    def __init__(self, path: str | Path, reason: str, detail: str) -> None:
        super().__init__(f"{path}: {reason}: {detail}")
        self.path, self.reason, self.detail = str(path), reason, detail

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str, str]]:
        return BadImage, (self.path, self.reason, self.detail)  # crosses from worker processes


@dataclass(frozen=True, eq=False)
class Decoded:
    """What one read of a file gave: `pixels` uint8 (3,H,W) RGB upright, the sha256 of its bytes (and of a window, where
    one was asked for and counts), notes on what was converted, the millimetres between rows and columns where known.
    """

    pixels: UInt8[np.ndarray, "3 h w"]
    sha256: str
    notes: tuple[str, ...]
    spacing: dicom.Spacing | None = None


def decode(
    path: str | Path, *, max_pixels: int = MAX_PIXELS, window: dicom.Window | None = None
) -> UInt8[np.ndarray, "3 h w"]:
    """The image in a file as uint8 (3,H,W) RGB, upright by its EXIF orientation.

    The file is decoded to its last pixel, so a cut file is an error; the first page of several is taken. Pixel types
    follow the rules of `tagseg.data.pixels`, DICOM files those of `tagseg.data.dicom`, which `window` (centre, width)
    is for. Errors: `BadImage` with a reason code.
    """
    return examine(path, max_pixels=max_pixels, window=window).pixels


def examine(path: str | Path, *, max_pixels: int = MAX_PIXELS, window: dicom.Window | None = None) -> Decoded:
    """As `decode`, with the sha256 of the same bytes and notes on what was converted; one read of the file."""
    data = read_bytes(path, max_pixels)
    if dicom.is_dicom(data):
        return _examine_dicom(path, data, max_pixels, window)
    with _parsing(path):
        image = _open(path, data, max_pixels)
        notes = _page_notes(image)
        image.load()
        pixels = np.array(upright(to_rgb(image, notes), _orientation(image, notes)))
    digest = hashlib.sha256(data + (b"inverted" if INVERTED in notes else b"")).hexdigest()
    return Decoded(pixels.transpose(2, 0, 1), digest, tuple(notes))  # a view: crops and filters want (H,W,3) back


def decode_mask(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w"]:
    """The class indices stored in a palette or grey PNG as uint8 (H,W): raw values, never looked up in the palette.

    The read is recorded (`mask_reads`). Values are not judged here: `tagseg.types.check_mask` does that.
    Errors: `BadImage`, among them mask-coloured for RGB masks, mask-format for anything but PNG, mask-range above 255.
    """
    record_mask_read(str(path))
    data = read_bytes(path, max_pixels)
    if not data.startswith(_PNG) or data[12:16] != b"IHDR":
        raise BadImage(path, "mask-format", "found no PNG, expected a palette or grey PNG (lossy formats blur classes)")
    with _parsing(path):
        image = _open(path, data, max_pixels)
        image.load()
        return _indices(path, image, bits=data[24])


def read_size(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(H, W) in pixels of the upright image, from the header (a PNG without EXIF in its header is read through)."""
    data = read_bytes(path, max_pixels)
    if dicom.is_dicom(data):
        with _parsing(path):
            return dicom.size(dicom.parse(data))
    with _parsing(path):
        image = _open(path, data, max_pixels)
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow swaps .size itself, in some versions only
            width, height = int(image.tag_v2[256]), int(image.tag_v2[257])
            orientation = int(image.tag_v2.get(274, 1))
        else:
            (width, height), orientation = image.size, _orientation(image, [])
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def read_bytes(path: str | Path, max_pixels: int = MAX_PIXELS) -> bytes:
    """The whole file, after a look at its kind, length and first bytes. Errors: `BadImage`, `EnvironmentFault`."""
    try:
        with open(path, "rb", opener=_open_regular) as file:
            length = os.fstat(file.fileno()).st_size
            head = file.read(HEAD)
            _check_head(path, head, length, max_pixels)
            return head + file.read()
    except FileNotFoundError:
        raise BadImage(path, "missing", "there is no such file") from None
    except (IsADirectoryError, _NotAFile):
        raise BadImage(path, "not-a-file", "found a folder, pipe or device, expected an image file") from None
    except PermissionError:
        raise BadImage(path, "no-permission", "the file may not be read; change its permissions") from None
    except OSError as error:
        raise EnvironmentFault(f"{path}: reading failed: {error.strerror or error}; check the disk") from error


def is_unnamed_dicom(path: Path) -> bool:
    """Whether a file without a known suffix is a DICOM file: archives name them 1.2.840.... or IM000001.

    Not so the table of contents that lies beside them, DICOMDIR.
    """
    if path.name == "DICOMDIR":
        return False
    try:
        with open(path, "rb", opener=_open_regular) as file:
            return dicom.is_dicom(file.read(HEAD))
    except OSError:
        return False


# ---- the log of opened masks: how a run proves that a fit saw no pixel truth ----

_mask_log: list[str] = []
_other_log: list[str] = []
_mask_lock = threading.Lock()
_reading = threading.local()


def record_mask_read(name: str) -> None:
    """Note that pixel truth was opened; every reader of masks calls this, whatever the layout."""
    with _mask_lock:
        (_other_log if getattr(_reading, "others", False) else _mask_log).append(name)


@contextmanager
def reading_others() -> Iterator[None]:
    """Masks that this thread opens inside are of other classes than those that are asked for: counted apart."""
    before, _reading.others = getattr(_reading, "others", False), True
    try:
        yield
    finally:
        _reading.others = before


def other_mask_reads() -> int:
    """How many masks of other classes were opened since the last reset."""
    with _mask_lock:
        return len(_other_log)


def mask_reads() -> tuple[str, ...]:
    """Every mask opened by this process since the last reset, in order, once for each time."""
    with _mask_lock:
        return tuple(_mask_log)


def reset_mask_reads() -> None:
    """Empty the log, as at the start of a fit."""
    with _mask_lock:
        _mask_log.clear()
        _other_log.clear()


# ---- inside ----

class _NotAFile(OSError):
    pass


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe must not block the scan for ever
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _NotAFile
    return descriptor


def _check_head(path: str | Path, head: bytes, length: int, max_pixels: int) -> None:
    if length == 0:
        raise BadImage(path, "empty", "the file has no bytes; copy it again")
    if _reader(head) is None and not dicom.is_dicom(head):
        found = "text or HTML" if head.lstrip()[:1] in (b"<", b"{") else f"first bytes {head[:8]!r}"
        raise BadImage(path, "not-an-image", f"found {found}, expected JPEG, PNG, TIFF, WEBP, BMP, GIF, PPM "
                       "or DICOM")
    if length > max_pixels * _BYTES_A_PIXEL + 2**26:
        raise BadImage(path, "too-large", f"{length} bytes for at most {max_pixels} pixels; cut it into tiles")


def _reader(head: bytes) -> Callable[[IO[bytes]], ImageFile.ImageFile] | None:
    if head.startswith(b"RIFF") and head[8:12] != b"WEBP":
        return None
    return next((read for starts, read in _READERS if head.startswith(starts)), None)


def _open(path: str | Path, data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise EnvironmentFault("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: half images would pass as whole; unset it")
    reader = _reader(data)
    if reader is None:
        raise BadImage(path, "not-an-image", "the file changed while it was read; run again")
    image = reader(BytesIO(data))
    _check_size(path, *image.size, max_pixels)
    return image


def _check_size(path: str | Path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadImage(path, "too-large", f"{width}x{height} pixels, expected at most {max_pixels}; "
                       "cut it into tiles, shrink it, or raise max_pixels")
    if width < 1 or height < 1:
        raise BadImage(path, "no-pixels", f"the header says {width}x{height}")


def _examine_dicom(path: str | Path, data: bytes, max_pixels: int, window: dicom.Window | None) -> Decoded:
    """As `examine`. The window counts into the digest: other windows are other images."""
    notes: list[str] = []
    with _parsing(path):
        dataset = dicom.parse(data)
        height, width = dicom.size(dataset)
        _check_size(path, width, height, max_pixels)
        pixels = dicom.to_rgb(dataset, window, notes)
        spacing = dicom.spacing(dataset)
    rules = dicom.RULES + (b"" if window is None else repr(window).encode())
    digest = hashlib.sha256(data + rules).hexdigest()
    return Decoded(pixels.transpose(2, 0, 1), digest, tuple(notes), spacing)


class _parsing:
    """Whatever a parser raises on bytes it did not expect becomes `BadImage`; our own errors pass."""

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ModeRefused):
            raise BadImage(self.path, "pixel-type", f"found {error}") from None
        if isinstance(error, Image.DecompressionBombError):
            raise BadImage(self.path, "too-large", str(error)) from None
        if isinstance(error, Exception) and not isinstance(error, DataError | EnvironmentFault | MemoryError):
            reason = "truncated" if _speaks_of_an_end(error) else "unreadable"
            raise BadImage(self.path, reason, f"{error or type(error).__name__}; save or copy it again") from error


def _speaks_of_an_end(error: Exception) -> bool:
    words = ("truncated", "not enough", "unexpected end", "end of file", "decoder error -2", "incomplete",
             "less than expected")
    return isinstance(error, EOFError | struct.error) or any(word in str(error).lower() for word in words)


def _orientation(image: Image.Image, notes: list[str]) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception as error:  # a camera's broken EXIF block is no reason to lose the photo
        if isinstance(image, PngImagePlugin.PngImageFile) and isinstance(error, OSError):
            raise  # a PNG is read through for its EXIF: a cut one must not pass
        notes.append("unreadable EXIF ignored")
        return 1


def _page_notes(image: ImageFile.ImageFile) -> list[str]:
    """A phone's MPO carries only previews beside the photo, so its further pages are not worth a note."""
    several = image.format != "MPO" and bool(getattr(image, "is_animated", False))
    return ["first of several pages"] if several else []


def _indices(path: str | Path, image: Image.Image, bits: int) -> UInt8[np.ndarray, "h w"]:
    values = np.asarray(image)
    if image.mode == "P":
        return np.array(values, dtype=np.uint8)
    if image.mode in ("1", "L"):  # Pillow spreads 1-, 2- and 4-bit grey over 0..255; the file holds 0..2^bits-1
        spread = 1 if image.mode == "1" else 255 // (2**min(bits, 8) - 1)
        return (values.astype(np.uint8) // spread).astype(np.uint8)
    if image.mode in ("I;16", "I;16B", "I"):
        if int(values.max()) > 255:
            raise BadImage(path, "mask-range", f"16-bit values up to {int(values.max())}, expected 0..255")
        return values.astype(np.uint8)
    raise BadImage(path, "mask-coloured", f"found {image.mode} pixels, expected one channel of class indices; "
                   + _colour_hint(np.asarray(image.convert("RGB"))))


def _colour_hint(rgb: UInt8[np.ndarray, "h w 3"]) -> str:
    if bool((rgb == rgb[:, :, :1]).all()):
        return "its three channels are equal, so save one of them as a grey PNG"
    colours = np.unique(rgb.reshape(-1, 3), axis=0)
    listed = ", ".join(str(tuple(int(v) for v in colour)) for colour in colours[:4])
    return f"its {len(colours)} colours ({listed}, ...) must be mapped to indices by their palette first"
