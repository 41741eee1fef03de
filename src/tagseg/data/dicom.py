"""DICOM files to 8-bit RGB by stated rules; needs pydicom (the extra `medical`).

grey            the modality LUT (slope and intercept), then a window: the one that was asked for, else the file's VOI
                table or its first window, else all values that its type can hold; linearly to 0..255.
MONOCHROME1     inverted after the window, so that more of what was measured is always brighter in the end.
padding         pixels that the file calls padding are black.
colour          RGB, YBR and palettes as 8-bit RGB, the high byte of longer values; no window.
several frames  the first one.

Nothing else of the file is read: neither names nor dates leave it.
"""

from __future__ import annotations

import warnings
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np

from tagseg.data.pixels import RGB, Grey, ModeRefused, repeat
from tagseg.types import EnvironmentFault

Window = tuple[float, float]  # centre and width, in the file's own units (HU for CT)
Spacing = tuple[float, float]  # millimetres from row to row, and from column to column
MAGIC_AT = 128
RULES = b"2"  # counts into the digests of images; another one where files come out as other pixels
GROUPS = {
    "PixelMeasuresSequence": ("PixelSpacing",),
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction"),
}


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so is a DICOM file (part 10, with its preamble)."""
    return head[MAGIC_AT : MAGIC_AT + 4] == b"DICM"


def parse(data: bytes) -> Any:
    """The data set in bytes. Errors: `ModeRefused` for one without an image, `EnvironmentFault` without pydicom."""
    found = _pydicom().dcmread(BytesIO(data))
    if "PixelData" not in found:
        raise ModeRefused("a DICOM file without pixels; leave it out")
    return _tidied(found)


def _tidied(dataset: Any) -> Any:
    """What enhanced files keep in sequences for each frame or for all is brought to where others have it; elements
    that were emptied (anonymised files) count as missing; half of a rescaling gets its other half.
    """
    for name in (*(name for names in GROUPS.values() for name in names), "VOILUTSequence", "ModalityLUTSequence",
                 "PixelPaddingValue", "PixelPaddingRangeLimit"):  # fmt: skip
        if name in dataset and dataset[name].is_empty:
            del dataset[name]
    for place in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group, names in GROUPS.items():
            inner = (dataset.get(place) or [{}])[0].get(group)
            for name in names if inner else ():
                if name in inner[0] and name not in dataset and not inner[0][name].is_empty:
                    dataset[name] = inner[0][name]
    if ("RescaleSlope" in dataset) != ("RescaleIntercept" in dataset):
        slope, intercept = dataset.get("RescaleSlope", 1), dataset.get("RescaleIntercept", 0)
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
    return dataset


def size(dataset: Any) -> tuple[int, int]:
    """(H, W) in pixels."""
    return int(dataset.Rows), int(dataset.Columns)


def spacing(dataset: Any) -> Spacing | None:
    """The distance of pixels in the patient, or at the detector, where the file tells it."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        found = dataset.get(name)
        if found is not None and len(found) == 2 and min(float(v) for v in found) > 0:
            return float(found[0]), float(found[1])
    return None


def to_rgb(dataset: Any, window: Window | None, notes: list[str]) -> RGB:
    """uint8 (H,W,3) by the rules above; what was decided is added to `notes`."""
    values = _first_frame(dataset, notes)
    if int(dataset.SamplesPerPixel) == 3:
        return _to_bytes(values, int(dataset.BitsStored))
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        coloured = apply_color_lut(values, dataset)
        return _to_bytes(coloured, 8 * coloured.dtype.itemsize)
    return repeat(_grey(dataset, values, window, notes))


# ---- inside ----

@cache
def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError:
        raise EnvironmentFault("a DICOM file was found, and pydicom, which reads them, is not installed: "
                               "pip install 'tagseg[medical]'") from None
    warnings.filterwarnings("ignore", module="pydicom")  # a line for each odd element of each of a thousand files
    return pydicom


def _first_frame(dataset: Any, notes: list[str]) -> np.ndarray:
    from pydicom.pixels import pixel_array

    if int(dataset.get("NumberOfFrames") or 1) > 1:
        notes.append("first of several frames")
    try:
        return np.asarray(pixel_array(dataset, index=0))
    except (RuntimeError, NotImplementedError) as error:
        kind = dataset.file_meta.TransferSyntaxUID.name
        raise ModeRefused(f"pixels compressed as {kind!r}, which needs one more library (pydicom says: "
                          f"{' '.join(str(error).split())}); install it, or save the file uncompressed") from error


def _to_bytes(values: np.ndarray, bits: int) -> RGB:
    return (values >> max(bits - 8, 0)).astype(np.uint8)


def _grey(dataset: Any, values: np.ndarray, window: Window | None, notes: list[str]) -> Grey:
    shares = _shares(dataset, values, window, notes)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shares = 1 - shares
        notes.append("MONOCHROME1 inverted")
    shares[_padding(dataset, values)] = 0
    return np.rint(shares * 255).astype(np.uint8)


def _shares(dataset: Any, values: np.ndarray, window: Window | None, notes: list[str]) -> np.ndarray:
    """Grey values as shares 0..1 of what is shown."""
    from pydicom.pixels import apply_modality_lut, apply_voi

    measured = np.asarray(apply_modality_lut(values, dataset), np.float64)
    if window is not None:
        notes.append(f"DICOM grey by the window {window[0]:g},{window[1]:g}")
        return windowed(measured, window)
    if "VOILUTSequence" in dataset:
        notes.append("DICOM grey by the file's own table")
        table = dataset.VOILUTSequence[0]
        entries = np.asarray(apply_voi(measured.astype(np.int64), dataset, index=0), np.float64)
        return (entries / (2 ** int(table.LUTDescriptor[2]) - 1)).clip(0, 1)
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    own = _own_window(dataset, 1.0 if function == "LINEAR" else 0.0)
    if own is not None:
        notes.append("DICOM grey by the file's own window")
        return windowed(measured, own, function)
    notes.append("DICOM grey without a window: all values that its type can hold; set one with --window")
    low, high = _range(dataset)
    return ((measured - low) / max(high - low, 1e-9)).clip(0, 1)


def windowed(values: np.ndarray, window: Window, function: str = "LINEAR") -> np.ndarray:
    """Shares 0..1 of values seen through a window (DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3)."""
    centre, width = window
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(-4 * (values - centre) / width)))
    if function == "LINEAR_EXACT":
        return ((values - centre) / width + 0.5).clip(0, 1)
    return ((values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5).clip(0, 1)


def _own_window(dataset: Any, least: float) -> Window | None:
    """The file's window; one without a width, or one narrower than its function allows, is none."""
    centre, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    return (centre, width) if centre is not None and width and width >= least else None


def _first(value: Any) -> float | None:
    """The first of one or several numbers."""
    if value is None or value == "":
        return None
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)


def _range(dataset: Any) -> tuple[float, float]:
    """What the type of the pixels can hold, in the units of the modality LUT."""
    if "ModalityLUTSequence" in dataset:
        return 0.0, float(2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    ends = sorted((low * slope + intercept, high * slope + intercept))
    return ends[0], ends[1]


def _padding(dataset: Any, values: np.ndarray) -> np.ndarray:
    """Which pixels are none; stored values, before any LUT."""
    low = dataset.get("PixelPaddingValue")
    if low is None:
        return np.zeros(values.shape, np.bool_)
    high = dataset.get("PixelPaddingRangeLimit", low)
    return (values >= min(low, high)) & (values <= max(low, high))
