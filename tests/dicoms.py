"""DICOM files made for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SecondaryCaptureImageStorage, generate_uid


def write(path: Path, values: np.ndarray, *, bits: int = 0, rle: bool = False, **elements: Any) -> Path:
    """Integers (H,W), (frames,H,W) or uint8 (H,W,3) as a DICOM file; `elements` by their keywords."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.PatientName = "Somebody^Real"
    coloured = values.ndim == 3 and values.shape[-1] == 3
    frames = values if values.ndim == 3 and not coloured else values[None]
    found.Rows, found.Columns = frames.shape[1:3]
    if len(frames) > 1:
        found.NumberOfFrames = len(frames)
    found.SamplesPerPixel, found.PhotometricInterpretation = (3, "RGB") if coloured else (1, "MONOCHROME2")
    if coloured:
        found.PlanarConfiguration = 0
    found.BitsAllocated = 8 * values.dtype.itemsize
    found.BitsStored = bits or found.BitsAllocated
    found.HighBit, found.PixelRepresentation = found.BitsStored - 1, int(values.dtype.kind == "i")
    found.PixelData = values.tobytes()
    for name, value in elements.items():
        setattr(found, name, value)
    if rle:
        found.compress(RLELossless, values)
    found.save_as(path, enforce_file_format=True)
    return path
