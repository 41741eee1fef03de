"""Lab against scikit-image: the corners of the colour cube, the grey line, and many colours at random."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from skimage.color import rgb2lab

from tagseg.ops.colour import lab

DARK = tuple(itertools.product((0, 1, 2, 10, 11), repeat=3))  # both sides of the two places where the curves begin


def peer(image: np.ndarray) -> np.ndarray:
    return np.asarray(rgb2lab(image.transpose(1, 2, 0))).transpose(2, 0, 1)


def test_white_and_black() -> None:
    image = np.array([[[255, 0]], [[255, 0]], [[255, 0]]], np.uint8)
    found = lab(image)[:, 0].T
    assert found == pytest.approx(np.array([[100, 0, 0], [0, 0, 0]]), abs=0.01)


@pytest.mark.parametrize("colours", [
    list(itertools.product((0, 255), repeat=3)), [(v, v, v) for v in range(256)],
    DARK,
    np.random.default_rng(0).integers(0, 256, (30000, 3)).tolist(),
], ids=["corners", "grey", "dark", "random"])
def test_as_scikit_image_has_it(colours: list) -> None:
    image = np.array(colours, np.uint8).T[:, :, None]
    found = lab(image)
    assert found.dtype == np.float32
    assert np.abs(found - peer(image)).max() < 1e-3


def test_a_view_of_a_decoded_image_gives_the_same() -> None:
    image = np.random.default_rng(1).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    assert np.array_equal(lab(image.transpose(2, 0, 1)), lab(np.ascontiguousarray(image.transpose(2, 0, 1))))
