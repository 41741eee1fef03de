from __future__ import annotations

import numpy as np

from tagseg.report import colours


def _nearest(values: np.ndarray) -> float:
    """The smallest visible distance of any two colours, in the sight where it is smallest."""
    lab = colours.seen(values.astype(np.uint8))
    apart = np.linalg.norm(lab[:, :, None] - lab[:, None], axis=-1) + 1e3 * np.eye(len(values))
    return float(apart.min())


def test_there_are_254_different_colours_and_always_the_same() -> None:
    first = colours.class_colours()
    colours.class_colours.cache_clear()
    assert colours.class_colours() == first
    assert len(set(first)) == 254
    assert not set(first) & {colours.BACKGROUND_COLOUR, colours.IGNORE_COLOUR}


def test_the_first_colours_are_told_apart_with_every_sight() -> None:
    fixed = [colours.BACKGROUND_COLOUR, colours.IGNORE_COLOUR]
    assert _nearest(np.array([*fixed, *colours.class_colours()[:12]])) > 15
    assert _nearest(np.array([*fixed, *colours.class_colours()[:30]])) > 10


def test_red_and_green_of_one_lightness_are_near_for_deuteranopes_alone() -> None:
    pair = np.array([[190, 90, 60], [118, 118, 50]], np.uint8)
    normal, _, deuteranopia = np.linalg.norm(np.diff(colours.seen(pair), axis=1)[:, 0], axis=-1)
    assert normal > 35
    assert deuteranopia < 15


def test_lightness_and_hue_axes_are_those_of_cielab() -> None:
    white, grey, red = colours.seen(np.array([[255, 255, 255], [119, 119, 119], [255, 0, 0]], np.uint8))[0]
    np.testing.assert_allclose(white, [100, 0, 0], atol=0.05)
    np.testing.assert_allclose(grey, [50.03, 0, 0], atol=0.05)
    np.testing.assert_allclose(red, [53.24, 80.09, 67.20], atol=0.1)  # the published values of sRGB red


def test_palette_codes_masks() -> None:
    table = colours.palette()
    assert tuple(table[0]) == colours.BACKGROUND_COLOUR
    assert tuple(table[255]) == colours.IGNORE_COLOUR
    assert colours.hex_colour(1) == colours.PICKED[0] == "#e69f00"
    assert not table.flags.writeable
