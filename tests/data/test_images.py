"""Every pixel type against values worked out by hand; every kind of broken file refused with its reason."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from tagseg.data import images
from tagseg.data.images import BadImage, decode, decode_mask, examine, read_size
from tagseg.types import EnvironmentFault


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def reason(path: Path, **options: int) -> str:
    with pytest.raises(BadImage) as caught:
        decode(path, **options)
    assert str(path) in str(caught.value)
    return caught.value.reason


def row(path: Path) -> list[list[int]]:
    """The pixels of a one-row image as [r, g, b] lists."""
    pixels = decode(path)
    assert pixels.dtype == np.uint8
    assert pixels.transpose(1, 2, 0).flags.c_contiguous  # nobody pays for turning it back
    assert pixels.flags.writeable
    return pixels[:, 0].T.tolist()


def photo(height: int = 40, width: int = 60) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, extra: bytes = b"", late: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return (b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(rows)) + late + chunk(b"IEND", b""))


# ---- golden pixels, one mode each ----

def test_eight_bit_rgb_and_grey(tmp_path: Path) -> None:
    rgb = Image.fromarray(np.array([[[1, 2, 3], [250, 128, 0]]], np.uint8))
    assert row(save(rgb, tmp_path / "a.png")) == [[1, 2, 3], [250, 128, 0]]
    assert row(save(rgb, tmp_path / "a.bmp")) == [[1, 2, 3], [250, 128, 0]]
    assert row(save(rgb, tmp_path / "a.ppm")) == [[1, 2, 3], [250, 128, 0]]
    assert row(save(rgb, tmp_path / "a.webp", lossless=True)) == [[1, 2, 3], [250, 128, 0]]
    grey = Image.fromarray(np.array([[0, 7, 255]], np.uint8))
    assert row(save(grey, tmp_path / "g.png")) == [[0] * 3, [7] * 3, [255] * 3]


def test_jpeg_of_one_colour(tmp_path: Path) -> None:
    path = save(Image.new("RGB", (16, 8), (200, 100, 50)), tmp_path / "a.jpg", quality=95)
    assert np.abs(decode(path).astype(int) - np.array([200, 100, 50])[:, None, None]).max() <= 2
    assert decode(path).shape == (3, 8, 16)


def test_one_bit(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[True, False, True]]))
    assert image.mode == "1"
    assert row(save(image, tmp_path / "a.png")) == [[255] * 3, [0] * 3, [255] * 3]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_linear_over_the_full_range(tmp_path: Path, suffix: str) -> None:
    # 65535 / 255 = 257 a level: 128 rounds down to 0, 129 up to 1, 257 is 1, 32896 = 128 * 257
    image = Image.fromarray(np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16))
    path = save(image, tmp_path / f"a.{suffix}")
    assert [pixel[0] for pixel in row(path)] == [0, 0, 1, 1, 128, 255]
    assert "16-bit grey scaled to 8 bits" in examine(path).notes


def test_white_is_zero_is_turned_at_any_depth(tmp_path: Path) -> None:
    deep = np.array([[0, 16383, 32767, 65535]], np.uint16)
    path = tmp_path / "x-ray.tif"
    Image.fromarray(deep).save(path, tiffinfo={262: 0})  # as it is
    assert decode(path)[0].tolist() == [[255, 191, 128, 0]]
    assert "white-is-zero inverted" in examine(path).notes
    shallow = np.array([[0, 63, 127, 255]], np.uint8)
    Image.fromarray(shallow).save(path, tiffinfo={262: 0})  # Pillow turns these on writing and on reading
    assert Image.open(path).tag_v2[262] == 0  # type: ignore[attr-defined]
    assert decode(path)[0].tolist() == shallow.tolist()


def test_sixteen_bit_ramp_is_not_saturated(tmp_path: Path) -> None:
    image = Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16)[None])
    assert np.abs(decode(save(image, tmp_path / "a.png"))[0, 0].astype(int) - np.arange(256)).max() <= 1


def test_twelve_bit_data_is_scaled_by_the_same_rule_and_noted(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.array([[0, 4095]], np.uint16)), tmp_path / "a.png")
    assert row(path)[1] == [16] * 3  # (4095 + 128) // 257
    assert any("12-bit" in note for note in examine(path).notes)


def test_sixteen_bit_colour_keeps_the_high_byte(tmp_path: Path) -> None:
    rows = b"\0" + struct.pack(">6H", 0x0180, 0xFF00, 0x0000, 0xFFFF, 0x8000, 0x7FFF)
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, rows))
    assert row(tmp_path / "a.png") == [[1, 255, 0], [255, 128, 127]]


def test_integers_and_floats(tmp_path: Path) -> None:
    integers = save(Image.fromarray(np.array([[0, 65535]], np.int32)), tmp_path / "i.tif")
    assert row(integers) == [[0] * 3, [255] * 3]
    floats = save(Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)), tmp_path / "f.tif")
    assert row(floats) == [[0] * 3, [128] * 3, [255] * 3]  # 127.5 rounds to the even 128


@pytest.mark.parametrize("values", [np.array([[0.0, 2.0]], np.float32), np.array([[0.0, np.nan]], np.float32),
                                    np.array([[-1, 5]], np.int32), np.array([[0, 70000]], np.int32)])
def test_numbers_outside_the_stated_range_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    assert reason(save(Image.fromarray(values), tmp_path / "a.tif")) == "pixel-type"


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert row(save(image, tmp_path / "p.png")) == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    path = save(image, tmp_path / "t.png", transparency=1)
    assert row(path) == [[10, 20, 30], [255, 255, 255], [70, 80, 90]]
    assert examine(path).notes == ("transparency composited over white",)


def test_alpha_goes_over_white(tmp_path: Path) -> None:
    rgba = Image.fromarray(np.array([[[0, 100, 200, 255], [0, 100, 200, 0], [0, 100, 200, 51]]], np.uint8))
    # alpha 51 = 0.2: 0.2 c + 0.8 * 255 = 204, 224, 244
    assert row(save(rgba, tmp_path / "a.png")) == [[0, 100, 200], [255] * 3, [204, 224, 244]]
    la = Image.fromarray(np.array([[[0, 255], [0, 51]]], np.uint8), mode="LA")
    assert row(save(la, tmp_path / "la.png")) == [[0] * 3, [204] * 3]


def test_grey_with_a_transparent_value(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.array([[5, 9]], np.uint8)), tmp_path / "a.png", transparency=9)
    assert row(path) == [[5] * 3, [255] * 3]


def test_cmyk(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 0, 51], [9, 9, 9, 255]]], np.uint8),
                            mode="CMYK")
    assert row(save(image, tmp_path / "a.tif")) == [[255] * 3, [0, 255, 255], [204, 0, 204], [0] * 3]


def test_lab_is_refused(tmp_path: Path) -> None:
    assert reason(save(Image.new("LAB", (3, 3)), tmp_path / "a.tif")) == "pixel-type"


@pytest.mark.parametrize("suffix", ["tif", "gif"])
def test_first_page_of_several(tmp_path: Path, suffix: str) -> None:
    pages = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    path = save(pages[0], tmp_path / f"a.{suffix}", save_all=True, append_images=pages[1:])
    found = examine(path)
    assert found.pixels[:, 0, 0].tolist() == [255, 0, 0]
    assert found.notes == ("first of several pages",)


# ---- orientation ----

@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_exif_orientation_is_applied_once(tmp_path: Path, orientation: int, suffix: str) -> None:
    image, exif = photo(24, 40), Image.Exif()
    exif[0x0112] = orientation
    options = {"webp": {"lossless": True}}.get(suffix, {})
    path = save(image, tmp_path / f"a.{suffix}", exif=exif.tobytes(), **options)
    with Image.open(path) as again:
        expected = np.asarray(ImageOps.exif_transpose(again).convert("RGB")).transpose(2, 0, 1)
    pixels = decode(path)
    np.testing.assert_array_equal(pixels, expected)
    assert pixels.shape[1:] == ((40, 24) if orientation >= 5 else (24, 40))
    assert read_size(path) == pixels.shape[1:]


def test_orientation_after_the_pixels_of_a_png(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    late = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    (tmp_path / "a.png").write_bytes(png(2, 1, 8, 0, b"\0\x01\x02", late=late))
    assert decode(tmp_path / "a.png")[0].tolist() == [[1], [2]]
    assert read_size(tmp_path / "a.png") == (2, 1)


def test_quarter_turn_by_hand(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the stored left column becomes the top row
    path = save(Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], np.uint8)), tmp_path / "a.png", exif=exif.tobytes())
    assert decode(path)[0].tolist() == [[4, 1], [5, 2], [6, 3]]


def test_broken_exif_is_noted(tmp_path: Path) -> None:
    path = save(photo(), tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff")
    assert decode(path).shape == (3, 40, 60)


# ---- refusals ----

@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp", "gif", "webp", "ppm"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_files_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    whole = save(photo(120, 160), tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"b.{suffix}").write_bytes(whole[:int(len(whole) * share)])
    assert reason(tmp_path / f"b.{suffix}") in ("truncated", "unreadable")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_at_99_percent_is_refused_though_verify_passes(tmp_path: Path, progressive: bool) -> None:
    whole = save(photo(200, 300), tmp_path / "a.jpg", progressive=progressive).read_bytes()
    (tmp_path / "b.jpg").write_bytes(whole[:int(len(whole) * 0.99)])
    with Image.open(tmp_path / "b.jpg") as image:
        image.verify()  # the reason why this is not enough
    assert reason(tmp_path / "b.jpg") == "truncated"


def test_files_that_are_no_images(tmp_path: Path) -> None:
    for name, content, expected in [("empty", b"", "empty"), ("html", b"<html><body>404", "not-an-image"),
                                    ("noise", bytes(range(1, 200)), "not-an-image"),
                                    ("avi", b"RIFF\0\0\0\0AVI LIST", "not-an-image"),
                                    ("svg", b"<svg/>", "not-an-image"), ("eps", b"%!PS-Adobe", "not-an-image")]:
        (tmp_path / f"{name}.jpg").write_bytes(content)
        assert reason(tmp_path / f"{name}.jpg") == expected
    (tmp_path / "folder.jpg").mkdir()
    assert reason(tmp_path / "folder.jpg") == "not-a-file"
    assert reason(tmp_path / "absent.jpg") == "missing"
    os.mkfifo(tmp_path / "pipe.jpg")
    assert reason(tmp_path / "pipe.jpg") == "not-a-file"


def test_unreadable_without_permission(tmp_path: Path) -> None:
    path = save(photo(), tmp_path / "a.png")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert reason(path) == "no-permission"


def test_a_huge_header_is_refused_before_decoding(tmp_path: Path) -> None:
    # 20000 x 20000 claimed: decoding would take 1.2 GB, the header alone answers
    (tmp_path / "a.png").write_bytes(png(20000, 20000, 8, 2, b"\0" * 100))
    assert reason(tmp_path / "a.png") == "too-large"
    with pytest.raises(BadImage, match="20000x20000"):
        read_size(tmp_path / "a.png")


def test_the_cap_is_ours_not_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(photo(10, 10), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)  # Pillow would refuse at 9 pixels
    assert decode(path, max_pixels=100).shape == (3, 10, 10)
    assert reason(path, max_pixels=99) == "too-large"
    assert Image.MAX_IMAGE_PIXELS == 4


def test_pillows_switch_for_half_images_is_not_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(EnvironmentFault, match="LOAD_TRUNCATED_IMAGES"):
        decode(save(photo(), tmp_path / "a.png"))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    for suffix in ("jpg", "png"):
        path = save(photo(*size), tmp_path / f"a.{suffix}")
        assert decode(path).shape == (3, *size)
        assert read_size(path) == size


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from(["jpg", "png", "tif", "gif", "webp", "bmp"]), at=st.integers(0, 10_000),
       value=st.integers(0, 255))
def test_a_changed_byte_gives_pixels_or_a_typed_error(tmp_path: Path, suffix: str, at: int, value: int) -> None:
    whole = bytearray(save(photo(12, 9), tmp_path / f"a.{suffix}").read_bytes())
    whole[at % len(whole)] = value
    (tmp_path / f"b.{suffix}").write_bytes(whole)
    try:
        pixels = decode(tmp_path / f"b.{suffix}", max_pixels=10_000)
    except BadImage:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[0] == 3


def test_digest_is_of_the_bytes_and_errors_can_be_pickled(tmp_path: Path) -> None:
    path = save(photo(), tmp_path / "a.png")
    assert examine(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    again = pickle.loads(pickle.dumps(BadImage("a", "empty", "b")))
    assert (again.path, again.reason, str(again)) == ("a", "empty", "a: empty: b")


# ---- masks ----

def test_palette_mask_gives_indices_not_colours(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2], [255, 2, 0]], np.uint8)
    image = Image.fromarray(values, mode="P")
    image.putpalette([9, 9, 9] * 256)  # all colours equal: a trip through RGB would lose everything
    assert decode_mask(save(image, tmp_path / "a.png")).tolist() == values.tolist()


@pytest.mark.parametrize(("bits", "packed", "expected"), [(1, 0b10100000, [1, 0, 1]), (2, 0b00011100, [0, 1, 3])])
@pytest.mark.parametrize("colour", [0, 3])
def test_narrow_masks_hold_their_raw_values(tmp_path: Path, bits: int, packed: int, expected: list[int],
                                            colour: int) -> None:
    palette = chunk(b"PLTE", bytes(3 * 2**bits)) if colour == 3 else b""
    (tmp_path / "a.png").write_bytes(png(3, 1, bits, colour, bytes([0, packed]), extra=palette))
    assert decode_mask(tmp_path / "a.png").tolist() == [expected]


def test_four_bit_and_sixteen_bit_grey_masks(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(2, 1, 4, 0, bytes([0, 0x5F])))
    assert decode_mask(tmp_path / "a.png").tolist() == [[5, 15]]
    wide = save(Image.fromarray(np.array([[3, 255]], np.uint16)), tmp_path / "b.png")
    assert decode_mask(wide).tolist() == [[3, 255]]
    with pytest.raises(BadImage, match=r"mask-range.*300"):
        decode_mask(save(Image.fromarray(np.array([[3, 300]], np.uint16)), tmp_path / "c.png"))


def test_coloured_and_lossy_masks_are_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"mask-coloured.*palette"):
        decode_mask(save(photo(), tmp_path / "a.png"))
    with pytest.raises(BadImage, match="three channels are equal"):
        decode_mask(save(Image.new("RGB", (2, 2), (1, 1, 1)), tmp_path / "b.png"))
    with pytest.raises(BadImage, match="mask-format"):
        decode_mask(save(Image.new("L", (2, 2)), tmp_path / "c.jpg"))


def test_every_opened_mask_is_recorded_from_any_thread(tmp_path: Path) -> None:
    paths = [save(Image.new("L", (2, 2)), tmp_path / f"{i}.png") for i in range(4)]
    images.reset_mask_reads()
    workers = [threading.Thread(target=decode_mask, args=(path,)) for path in paths * 5]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(images.mask_reads()) == sorted(str(path) for path in paths * 5)
    decode(paths[0])
    assert len(images.mask_reads()) == 20
    images.reset_mask_reads()
    assert images.mask_reads() == ()
