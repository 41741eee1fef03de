"""DICOM files: windows against pydicom's, inversion, padding, colour, frames, spacing, and every refusal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import JPEGLSLossless

import dicoms
from tagseg.data import dicom
from tagseg.data.files import FileImages, spacing_of
from tagseg.data.folder import Reading, open_set
from tagseg.data.images import BadImage, decode, examine, read_size
from tagseg.types import EnvironmentFault, UsageError

CT = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def ramp(kind: str = "uint16", top: int = 4095, shape: tuple[int, int] = (12, 20)) -> np.ndarray:
    return np.linspace(0, top, shape[0] * shape[1]).astype(kind).reshape(shape)


def grey(path: Path, window: dicom.Window | None = None) -> np.ndarray:
    pixels = decode(path, window=window)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels[0], pixels[1])
    assert np.array_equal(pixels[0], pixels[2])
    return pixels[0]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("window", [(40, 400), (-600, 1500)])
def test_the_files_own_window_is_that_of_pydicom(tmp_path: Path, function: str, window: tuple[int, int]) -> None:
    path = dicoms.write(tmp_path / "a.dcm", ramp(), bits=12, WindowCenter=window[0], WindowWidth=window[1],
                        VOILUTFunction=function, **CT)
    dataset = dcmread(path)
    expected = apply_windowing(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    low, high = -1024.0, 3071.0  # what 12 bits hold, in Hounsfield units: pydicom stays in these
    np.testing.assert_allclose(grey(path), (expected - low) / (high - low) * 255, atol=0.51)


def test_a_window_by_hand() -> None:
    values = np.array([-5.0, 0, 1, 2, 3, 4, 9])
    np.testing.assert_allclose(dicom.windowed(values, (2, 5)), np.array([0, 1, 3, 5, 7, 8, 8]) / 8)
    np.testing.assert_allclose(dicom.windowed(values, (2, 4), "LINEAR_EXACT"), np.array([0, 0, 1, 2, 3, 4, 4]) / 4)
    assert dicom.windowed(np.array([2.0]), (2, 5), "SIGMOID") == 0.5


def test_a_window_that_was_asked_for_wins_and_is_another_image(tmp_path: Path) -> None:
    path = dicoms.write(tmp_path / "a.dcm", ramp(), bits=12, WindowCenter=40, WindowWidth=400, **CT)
    same = dicoms.write(tmp_path / "b.dcm", ramp(), bits=12, WindowCenter=-600, WindowWidth=1500, **CT)
    assert np.array_equal(grey(path, (-600, 1500)), grey(same))
    assert examine(path).sha256 != examine(path, window=(-600, 1500)).sha256
    assert examine(path, window=(40, 400)).sha256 != examine(path, window=(40, 401)).sha256


def test_the_first_of_several_windows(tmp_path: Path) -> None:
    one = dicoms.write(tmp_path / "a.dcm", ramp(), bits=12, WindowCenter=1000, WindowWidth=500)
    many = dicoms.write(tmp_path / "b.dcm", ramp(), bits=12, WindowCenter=[1000, 50], WindowWidth=[500, 300])
    assert np.array_equal(grey(one), grey(many))


@pytest.mark.parametrize(("kind", "bits", "low", "high"), [("uint16", 12, 0, 4095), ("uint16", 16, 0, 65535),
                                                          ("uint8", 8, 0, 255), ("int16", 16, -32768, 32767)])
def test_without_a_window_all_that_the_type_can_hold(tmp_path: Path, kind: str, bits: int, low: int, high: int) -> None:
    values = np.array([[low, (low + high + 1) // 2, high]]).astype(kind)
    path = dicoms.write(tmp_path / "a.dcm", values, bits=bits)
    assert grey(path).tolist() == [[0, 128, 255]]
    assert any("without a window" in note for note in examine(path).notes)
    negative = dicoms.write(tmp_path / "b.dcm", values, bits=bits, RescaleSlope=-2, RescaleIntercept=7)
    assert grey(negative)[0, [0, 2]].tolist() == [255, 0]


def test_a_table_of_the_file(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4, 10, 12], np.array([0, 1365, 2730, 4095], np.uint16).tobytes()
    path = dicoms.write(tmp_path / "a.dcm", np.array([[0, 10, 11, 12, 13, 99]], np.uint16), bits=12,
                        VOILUTSequence=[table], WindowCenter=1, WindowWidth=2)
    assert grey(path).tolist() == [[0, 0, 85, 170, 255, 255]]


def test_monochrome1_is_inverted_after_the_window(tmp_path: Path) -> None:
    how = {"bits": 12, "WindowCenter": 2000, "WindowWidth": 1000}
    plain = dicoms.write(tmp_path / "a.dcm", ramp(), **how)
    dark = dicoms.write(tmp_path / "b.dcm", ramp(), PhotometricInterpretation="MONOCHROME1", **how)
    assert np.abs(255 - grey(plain).astype(int) - grey(dark)).max() <= 1  # both are rounded
    assert "MONOCHROME1 inverted" in examine(dark).notes


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black(tmp_path: Path, kind: str) -> None:
    values = np.array([[-2000, -1999, 0, 500, 1000]], np.int16)
    path = dicoms.write(tmp_path / "a.dcm", values, WindowCenter=500, WindowWidth=1001, PixelPaddingValue=-2000,
                        PixelPaddingRangeLimit=-1999, PhotometricInterpretation=kind)
    ends = [0, 128, 255] if kind == "MONOCHROME2" else [255, 127, 0]
    assert grey(path).tolist() == [[0, 0, *ends]]


def test_colour_is_taken_as_it_is(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    assert np.array_equal(decode(dicoms.write(tmp_path / "a.dcm", values)), values.transpose(2, 0, 1))
    palette = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, column in (("Red", [0, 65535]), ("Green", [256, 512]), ("Blue", [65535, 0])):
        palette |= {f"{name}PaletteColorLookupTableDescriptor": [2, 0, 16],
                    f"{name}PaletteColorLookupTableData": np.array(column, np.uint16).tobytes()}
    path = dicoms.write(tmp_path / "b.dcm", np.array([[0, 1]], np.uint8), **palette)
    assert decode(path)[:, 0].T.tolist() == [[0, 1, 255], [255, 2, 0]]


@pytest.mark.parametrize("place", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_enhanced_files_keep_window_rescaling_and_spacing_in_groups(tmp_path: Path, place: str) -> None:
    inner, groups = Dataset(), {
        "PixelMeasuresSequence": {"PixelSpacing": [0.5, 0.25]},
        "PixelValueTransformationSequence": {"RescaleIntercept": -1024, "RescaleSlope": 2},
        "FrameVOILUTSequence": {"WindowCenter": 40, "WindowWidth": 400},
    }  # fmt: skip
    for group, values in groups.items():
        one = Dataset()
        for name, value in values.items():
            setattr(one, name, value)
        setattr(inner, group, [one])
    frames = np.stack([np.arange(0, 1200, 10, np.uint16).reshape(10, 12), np.zeros((10, 12), np.uint16)])
    enhanced = dicoms.write(tmp_path / "a.dcm", frames, **{place: [inner]})
    flat = dicoms.write(tmp_path / "b.dcm", frames, PixelSpacing=[0.5, 0.25], RescaleIntercept=-1024, RescaleSlope=2,
                        WindowCenter=40, WindowWidth=400)  # fmt: skip
    one, other = examine(enhanced), examine(flat)
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert len(np.unique(one.pixels)) > 20
    assert one.spacing == other.spacing == (0.5, 0.25)
    empty = {"WindowCenter": None, "WindowWidth": None, "RescaleSlope": None, "RescaleIntercept": None}
    emptied = examine(dicoms.write(tmp_path / "c.dcm", frames, **{place: [inner]}, **empty))  # of no use, but there
    np.testing.assert_array_equal(one.pixels, emptied.pixels)


@pytest.mark.parametrize("emptied", [
    {"VOILUTSequence": []}, {"RescaleSlope": None, "RescaleIntercept": None}, {"ModalityLUTSequence": []},
    {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": None}, {"WindowCenter": None, "WindowWidth": None},
])  # fmt: skip
def test_elements_that_were_emptied_count_as_missing(tmp_path: Path, emptied: dict[str, Any]) -> None:
    values = np.arange(1, 121, dtype=np.uint8).reshape(10, 12)
    found = examine(dicoms.write(tmp_path / "a.dcm", values, **emptied))
    np.testing.assert_array_equal(found.pixels[0], values)


def test_half_of_a_rescaling_is_a_whole_one(tmp_path: Path) -> None:
    values = np.arange(0, 240, 2, dtype=np.uint8).reshape(10, 12)
    found = examine(dicoms.write(tmp_path / "a.dcm", values, RescaleSlope=2))
    np.testing.assert_array_equal(found.pixels[0], values)  # stored values and the type's range are scaled alike


def test_an_exact_window_may_be_narrower_than_one(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2, 3]], np.uint8)
    found = examine(dicoms.write(tmp_path / "a.dcm", values, WindowCenter=1.0, WindowWidth=0.5, RescaleSlope=0.25,
                                      RescaleIntercept=0.5, VOILUTFunction="LINEAR_EXACT"))  # fmt: skip
    assert found.pixels[0].tolist() == [[0, 0, 128, 255]]


def test_the_first_of_several_frames_and_run_lengths(tmp_path: Path) -> None:
    frames = np.stack([ramp(), ramp()[::-1]])
    path = dicoms.write(tmp_path / "a.dcm", frames, bits=12)
    assert np.array_equal(grey(path), grey(dicoms.write(tmp_path / "b.dcm", frames[0], bits=12)))
    assert "first of several frames" in examine(path).notes
    packed = dicoms.write(tmp_path / "c.dcm", frames[0], bits=12, rle=True)
    assert np.array_equal(grey(path), grey(packed))


def test_size_and_spacing(tmp_path: Path) -> None:
    path = dicoms.write(tmp_path / "a.dcm", ramp(), bits=12, PixelSpacing=[0.5, 0.25])
    detector = dicoms.write(tmp_path / "b.dcm", ramp(), bits=12, ImagerPixelSpacing=[0.143, 0.143])
    none = dicoms.write(tmp_path / "c.dcm", ramp(), bits=12)
    assert read_size(path) == (12, 20)
    assert [examine(p).spacing for p in (path, detector, none)] == [(0.5, 0.25), (0.143, 0.143), None]
    files = FileImages({"a": path})
    assert spacing_of(files, "a") == (0.5, 0.25)
    assert spacing_of(object(), "a") is None


def broken(path: Path) -> BadImage:
    with pytest.raises(BadImage) as caught:
        decode(path)
    assert str(path) in str(caught.value)
    return caught.value


def test_what_is_refused(tmp_path: Path) -> None:
    path = dicoms.write(tmp_path / "a.dcm", ramp(shape=(60, 60)), bits=12)
    whole = path.read_bytes()
    for share in (0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        assert broken(path).reason == "truncated"
    path.write_bytes(whole)
    with pytest.raises(BadImage, match="too-large"):
        decode(path, max_pixels=3599)
    report = dcmread(path)
    del report.PixelData
    report.save_as(tmp_path / "report.dcm")
    assert "without pixels" in broken(tmp_path / "report.dcm").detail
    packed = dcmread(path)
    packed.file_meta.TransferSyntaxUID = JPEGLSLossless
    packed.PixelData = encapsulate([b"\0" * 100])
    packed.save_as(tmp_path / "packed.dcm")
    refused = broken(tmp_path / "packed.dcm")
    assert refused.reason == "pixel-type"
    assert "JPEG-LS" in refused.detail
    assert "save the file uncompressed" in refused.detail
    rows = dcmread(path)
    del rows.Rows
    rows.save_as(tmp_path / "rows.dcm")
    assert "Rows" in broken(tmp_path / "rows.dcm").detail


def test_without_pydicom_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dicoms.write(tmp_path / "a.dcm", ramp(), bits=12)
    dicom._pydicom.cache_clear()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'tagseg\[medical\]'"):
        decode(path)
    dicom._pydicom.cache_clear()


def test_a_folder_as_archives_write_it(tmp_path: Path) -> None:
    place = tmp_path / "series"
    (place / "images").mkdir(parents=True)
    dicoms.write(place / "images" / "IM000001", ramp(), bits=12)
    dicoms.write(place / "images" / "1.2.840.113619.7", ramp(top=2000), bits=12)
    dicoms.write(place / "images" / "c.DCM", ramp(top=1000), bits=12, WindowCenter=500, WindowWidth=1000)
    dicoms.write(place / "images" / "DICOMDIR", ramp(), bits=12)
    (place / "images" / "VERSION").write_text("1")
    (place / "tags.csv").write_text("file,tags\nIM000001,nodule\n1.2.840.113619.7,\nc.DCM,nodule\n")
    opened = open_set(place)
    assert opened.images.ids == ("1.2.840.113619.7", "IM000001", "c")
    assert {f.path for f in opened.ignored} == {"images/DICOMDIR", "images/VERSION"}
    assert any(w.startswith("2 of 3 images: DICOM grey without a window") for w in opened.warnings)
    seen = open_set(place, how=Reading(window=(500, 1000)))
    assert seen.images.key != opened.images.key
    assert np.array_equal(seen.images.source.read("c"), opened.images.source.read("c"))
    assert not np.array_equal(seen.images.source.read("IM000001"), opened.images.source.read("IM000001"))


@pytest.mark.parametrize("window", [(0.0, 0.5), (float("nan"), 10.0), (0.0, float("inf"))])
def test_a_window_that_is_none_is_refused(window: dicom.Window) -> None:
    with pytest.raises(UsageError, match="--window"):
        Reading(window=window)
