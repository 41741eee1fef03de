from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tagseg.report import pictures
from tagseg.report.colours import BACKGROUND_COLOUR, IGNORE_COLOUR, IGNORE_STRIPE, palette
from tagseg.types import DataError


def _square(size: int = 40) -> np.ndarray:
    labels = np.zeros((size, size), np.uint8)
    labels[10:30, 10:30] = 2
    return labels


def test_colour_mask_stripes_only_what_is_ignored() -> None:
    labels = _square()
    labels[:, 35:] = 255
    picture = pictures.colour_mask(labels)
    assert picture.shape == (40, 40, 3)
    assert picture.dtype == np.uint8
    assert tuple(picture[0, 0]) == BACKGROUND_COLOUR
    assert tuple(picture[20, 20]) == tuple(palette()[2])
    assert {tuple(c) for c in picture[:, 35:].reshape(-1, 3)} == {IGNORE_COLOUR, IGNORE_STRIPE}
    assert tuple(palette()[255]) == IGNORE_COLOUR  # the shared table was not written to


def test_overlay_leaves_background_tints_inside_and_outlines() -> None:
    photo = np.full((40, 40, 3), 200, np.uint8)
    drawn = pictures.overlay(photo, _square(), alpha=0.5)
    assert (drawn[:8] == 200).all()
    np.testing.assert_allclose(drawn[20, 20], (200 + palette()[2].astype(float)) / 2, atol=1)
    assert tuple(drawn[10, 20]) == tuple(palette()[2])  # the outline, in full colour
    assert (drawn[9, 20] < 80).all()  # and its dark rim outside
    assert (photo == 200).all()


def test_overlay_without_objects_is_the_photo() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pictures.overlay(photo, np.zeros((20, 30), np.uint8)), photo)


def test_overlay_refuses_another_size() -> None:
    with pytest.raises(DataError, match="same size"):
        pictures.overlay(np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), np.uint8))


def test_heat_shows_the_strongest_class_on_grey() -> None:
    photo = np.zeros((8, 8, 3), np.uint8)
    photo[..., 0] = 200
    scores = np.zeros((2, 8, 8), np.float32)
    scores[0, :, :4], scores[1, :, 4:] = 1.0, 0.5
    drawn = pictures.heat(photo, scores, np.array([3, 7])).astype(float)
    grey = 60.0  # of (200, 0, 0)
    np.testing.assert_allclose(drawn[0, 0], 0.1 * grey + 0.9 * palette()[3], atol=2)
    np.testing.assert_allclose(drawn[0, 7], 0.55 * grey + 0.45 * palette()[7], atol=2)


def test_heat_takes_coarse_maps_nan_and_no_classes() -> None:
    photo = np.full((12, 16, 3), 90, np.uint8)
    coarse = np.full((1, 3, 4), np.nan, np.float32)
    np.testing.assert_array_equal(pictures.heat(photo, coarse, np.array([1])), photo)
    np.testing.assert_array_equal(pictures.heat(photo, np.zeros((0, 3, 4), np.float32), np.zeros(0, np.int64)), photo)


def test_thumbnail_keeps_form_and_exact_colours() -> None:
    mask = pictures.colour_mask(np.kron(_square(), np.ones((10, 20), np.uint8)))
    small = pictures.thumbnail(mask, 100, exact=True)
    assert small.shape == (50, 100, 3)
    assert {tuple(c) for c in small.reshape(-1, 3)} == {BACKGROUND_COLOUR, tuple(palette()[2])}
    assert pictures.thumbnail(small, 240) is small
    assert pictures.thumbnail(np.zeros((1, 999, 3), np.uint8), 100).shape == (1, 100, 3)


def test_contact_sheet_places_cells_in_rows() -> None:
    red, blue = (np.full((10, 10, 3), c, np.uint8) for c in ([200, 0, 0], [0, 0, 200]))
    sheet = pictures.contact_sheet([[red, blue], [blue]], side=20, gap=4)
    assert sheet.shape == (2 * 24 + 4, 2 * 24 + 4, 3)
    assert tuple(sheet[14, 14]) == (200, 0, 0)
    assert tuple(sheet[14, 38]) == tuple(sheet[38, 14]) == (0, 0, 200)
    assert tuple(sheet[38, 38]) == pictures.PAPER
    plain, captioned = pictures.contact_sheet([[red]], side=80), pictures.contact_sheet([[red]], ["photo"], side=80)
    assert captioned.shape[0] > plain.shape[0]
    assert captioned[:10].min() < 200  # something is written over the column
    with pytest.raises(DataError):
        pictures.contact_sheet([])


@pytest.mark.parametrize("colours", [1, 3, 255])
def test_png_of_few_colours_is_small_and_exact(colours: int) -> None:
    rng = np.random.default_rng(colours)
    picture = rng.permutation(palette())[rng.integers(0, colours, (64, 64))]
    image = Image.open(io.BytesIO(pictures.as_png(picture)))
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), picture)


def test_png_of_a_photo_is_exact_too() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(pictures.as_png(picture)))), picture)
