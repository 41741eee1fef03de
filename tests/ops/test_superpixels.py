"""Superpixels by hand and against slow references: numbering, regions as scikit-image makes them, means, borders."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.segmentation import felzenszwalb as skimage_felzenszwalb
from skimage.segmentation import slic as skimage_slic

from tagseg.ops.superpixels import _in_reading_order, felzenszwalb, grid, means, neighbours, slic, smooth
from tagseg.types import DataError, UsageError

QUICK = settings(max_examples=40, deadline=None)
HAND = np.array([[0, 0, 1], [2, 0, 1], [2, 2, 1]], np.int32)
labels = hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(0, 9))


def photo(side: int = 96) -> np.ndarray:
    """Four quarters of different colour with noise on them, uint8 (3, side, side + 8)."""
    rng = np.random.default_rng(3)
    image = rng.integers(0, 25, (3, side, side + 8))
    image[0, : side // 2] += 120
    image[1, :, side // 2 :] += 150
    return image.astype(np.uint8)


def same_regions(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two labelings cut an image the same way, whatever the names."""
    pairs = len(np.unique(np.stack([a.ravel(), b.ravel()]), axis=1).T)
    return pairs == len(np.unique(a)) == len(np.unique(b))


def numbered_in_reading_order(ids: np.ndarray) -> bool:
    seen = list(dict.fromkeys(ids.ravel().tolist()))
    return seen == list(range(len(seen)))


# ------------------------------------------------------------------------------------------------------- cutting


@QUICK
@given(labels)
def test_names_follow_the_first_pixels(found: np.ndarray) -> None:
    ids = _in_reading_order(found)
    assert ids.dtype == np.int32
    assert numbered_in_reading_order(ids)
    assert same_regions(ids, found)


CUTS: list[tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = [
    (lambda i: felzenszwalb(i, scale=60.0, sigma=0.6, min_size=20),
     lambda i: skimage_felzenszwalb(i, scale=60.0, sigma=0.6, min_size=20)),
    (lambda i: slic(i, regions=40, compactness=20.0), lambda i: skimage_slic(i, n_segments=40, compactness=20.0)),
]


@pytest.mark.parametrize(("ours", "peer"), CUTS, ids=["felzenszwalb", "slic"])
def test_the_regions_are_those_of_scikit_image(ours: Callable, peer: Callable) -> None:
    image = photo()
    ids = ours(image)
    assert ids.dtype == np.int32
    assert ids.shape == image.shape[1:]
    assert ids.max() > 3
    assert numbered_in_reading_order(ids)
    assert same_regions(ids, peer(image.transpose(1, 2, 0)))
    assert np.array_equal(ids, ours(image.copy()))


def test_felzenszwalb_finds_the_four_quarters() -> None:
    ids = felzenszwalb(photo(), scale=1000.0, min_size=200)
    assert [int(ids[y, x]) for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1))] == [0, 1, 2, 3]
    assert ids.max() == 3


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_the_smallest_images(size: tuple[int, int]) -> None:
    image = np.full((3, *size), 9, np.uint8)
    for ids in (felzenszwalb(image), slic(image), grid(size)):
        assert ids.shape == size
        assert numbered_in_reading_order(ids)


def test_an_even_image_is_one_region() -> None:
    assert felzenszwalb(np.full((3, 30, 40), 9, np.uint8)).max() == 0


def test_grid_by_hand() -> None:
    assert grid((4, 6), regions=6).tolist() == [[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5],
                                                [3, 3, 4, 4, 5, 5]]
    assert grid((3, 3), regions=1).max() == 0
    assert grid((2, 3), regions=1000).tolist() == [[0, 1, 2], [3, 4, 5]]  # never more cells than pixels


@QUICK
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 300))
def test_grid_cells_are_equal_within_a_row_and_column(h: int, w: int, regions: int) -> None:
    ids = grid((h, w), regions=regions)
    assert numbered_in_reading_order(ids)
    rows, columns = len(np.unique(ids[:, 0])), len(np.unique(ids[0]))
    areas = np.bincount(ids.ravel())
    assert len(areas) == rows * columns
    assert areas.max() <= -(-h // rows) * -(-w // columns)
    assert areas.min() >= (h // rows) * (w // columns)


@pytest.mark.parametrize("call", [lambda: grid((4, 4), regions=0), lambda: slic(photo(16), regions=0)])
def test_no_regions_is_an_error(call: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match=r"regions is 0: expected 1 or more"):
        call()


# --------------------------------------------------------------------------------------------- means and borders


def test_means_by_hand() -> None:
    values = np.array([[[0.3, 0.6, 1.0], [0.5, 0.0, 0.5], [0.1, 0.0, 0.0]], np.ones((3, 3))], np.float32)
    assert means(values, HAND) == pytest.approx(np.array([[0.3, 1], [0.5, 1], [0.2, 1]]), abs=1e-7)
    expected = [[0.3, 0.3, 0.5], [0.2, 0.3, 0.5], [0.2, 0.2, 0.5]]
    assert smooth(values, HAND)[0] == pytest.approx(np.array(expected), abs=1e-7)


@QUICK
@given(labels, st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_smoothing_keeps_the_mean_and_does_nothing_twice(found: np.ndarray, k: int, seed: int) -> None:
    ids = _in_reading_order(found)
    values = np.random.default_rng(seed).random((k, *ids.shape), np.float32)
    once = smooth(values, ids)
    assert (once.dtype, once.shape) == (np.float32, values.shape)
    slow = np.array([[one[ids == s].mean(dtype=np.float64) for one in values] for s in range(ids.max() + 1)])
    assert means(values, ids) == pytest.approx(slow.reshape(ids.max() + 1, k), abs=1e-6)
    assert once.mean(axis=(1, 2)) == pytest.approx(values.mean(axis=(1, 2)), abs=1e-6)
    assert smooth(once, ids) == pytest.approx(once, abs=1e-6)


def test_maps_of_another_size_are_an_error() -> None:
    with pytest.raises(DataError, match=r"maps of \(3, 4\) .* superpixels of \(3, 3\)"):
        means(np.zeros((1, 3, 4), np.float32), HAND)


def test_borders_by_hand() -> None:
    pairs, lengths = neighbours(HAND)
    assert pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert lengths.tolist() == [2, 3, 1]
    diagonal = np.array([[0, 1], [2, 0]], np.int32)  # 1 and 2 only touch at a corner
    assert neighbours(diagonal)[0].tolist() == [[0, 1], [0, 2]]
    assert neighbours(np.zeros((3, 3), np.int32))[0].shape == (0, 2)


@QUICK
@given(labels)
def test_borders_as_a_slow_count_finds_them(found: np.ndarray) -> None:
    ids = _in_reading_order(found)
    h, w = ids.shape
    slow: dict[tuple[int, int], int] = {}
    for y in range(h):
        for x in range(w):
            for b in ([int(ids[y + 1, x])] if y + 1 < h else []) + ([int(ids[y, x + 1])] if x + 1 < w else []):
                a = int(ids[y, x])
                if a != b:
                    slow[min(a, b), max(a, b)] = slow.get((min(a, b), max(a, b)), 0) + 1
    pairs, lengths = neighbours(ids)
    assert (pairs.dtype, lengths.dtype) == (np.int32, np.int64)
    assert list(zip(map(tuple, pairs.tolist()), lengths.tolist(), strict=True)) == sorted(slow.items())
