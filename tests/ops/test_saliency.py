"""Saliency from colours by hand and against slow references: far from the mean, enclosed, stretched."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.color import rgb2lab

from tagseg.ops.background_saliency import rbd
from tagseg.ops.colour import lab
from tagseg.ops.saliency import barrier, from_mean, ft, mbd, stretched
from tagseg.ops.superpixels import grid
from tagseg.types import UsageError

QUICK = settings(max_examples=40, deadline=None)
Measure = Callable[[np.ndarray], np.ndarray]
EACH: dict[str, Measure] = {
    "ft": ft, "mbd": mbd, "rbd": lambda image: rbd(image, grid((image.shape[1], image.shape[2]), regions=64))}
each = pytest.mark.parametrize("measure", EACH.values(), ids=EACH)
images = hnp.arrays(np.uint8, st.tuples(st.just(3), st.integers(1, 9), st.integers(1, 9)))
grey_steps = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=7),
                        elements=st.integers(0, 6).map(float))


def disc(side: int = 64, noise: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """A yellow disc on grass with grain, uint8 (3, side, side), and where it is."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    inside = y**2 + x**2 < (side / 5) ** 2
    colours = np.where(inside, np.array([230, 200, 60])[:, None, None], np.array([70, 110, 60])[:, None, None])
    grain = np.random.default_rng(0).integers(-noise, noise + 1, colours.shape)
    return (colours + grain).astype(np.uint8), inside


def exact_barrier(channel: np.ndarray) -> np.ndarray:
    """The least range of any path to the border: for each lowest value the least highest one, by Dijkstra's rule."""
    h, w = channel.shape
    best = np.full((h, w), np.inf)
    for low in np.unique(channel):
        high, heap = np.full((h, w), np.inf), []
        for y, x in np.argwhere(channel >= low):
            if y in (0, h - 1) or x in (0, w - 1):
                high[y, x] = channel[y, x]
                heap.append((channel[y, x], y, x))
        heapq.heapify(heap)
        while heap:
            reached, y, x = heapq.heappop(heap)
            for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= ny < h and 0 <= nx < w and channel[ny, nx] >= low:
                    further = max(reached, channel[ny, nx])
                    if further < high[ny, nx]:
                        high[ny, nx] = further
                        heapq.heappush(heap, (further, ny, nx))
        best = np.minimum(best, high - low)
    return best


# ------------------------------------------------------------------------------------------------------ all of them


@each
def test_a_bright_disc_in_the_middle_stands_out(measure: Measure) -> None:
    image, inside = disc()
    found = measure(image)
    rim = np.ones(inside.shape, bool)
    rim[4:-4, 4:-4] = False
    assert (found.dtype, found.shape, found.min(), found.max()) == (np.float32, inside.shape, 0, 1)
    assert found[inside].mean() > 0.6 > 0.3 > found[rim].mean()
    assert np.array_equal(found, measure(np.ascontiguousarray(image.transpose(1, 2, 0)).transpose(2, 0, 1)))


@each
@QUICK
@given(image=images)
def test_values_lie_in_0_to_1_whatever_the_image(measure: Measure, image: np.ndarray) -> None:
    found = measure(image)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert (found.min(), found.max()) in ((0, 1), (0, 0))


@each
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 2), (12, 9)])
def test_nothing_stands_out_of_one_colour(measure: Measure, size: tuple[int, int]) -> None:
    for colour in ((0, 0, 0), (255, 255, 255), (119, 119, 119), (3, 200, 77)):
        assert not measure(np.broadcast_to(np.array(colour, np.uint8)[:, None, None], (3, *size))).any()


@each
def test_grey_images_and_the_faintest_step_are_seen(measure: Measure) -> None:
    image = np.full((3, 24, 24), 128, np.uint8)
    image[:, 9:15, 9:15] += 1
    found = measure(image)
    assert found[9:15, 9:15].mean() > 0.5 > found[0].max()


def test_stretched_by_hand() -> None:
    assert stretched(np.array([2.0, 4.0, 3.0])).tolist() == [0, 1, 0.5]
    assert not stretched(np.array([5.0, 5.0009])).any()
    assert stretched(np.array([5.0, 5.0009]), least=1e-6).tolist() == [0, 1]


# ------------------------------------------------------------------------------------------ far from the mean colour


def test_ft_against_a_slow_reference() -> None:
    image = np.random.default_rng(2).integers(0, 256, (3, 9, 13)).astype(np.uint8)
    colours = np.asarray(rgb2lab(image.transpose(1, 2, 0)))
    held, one = np.pad(colours, ((2, 2), (2, 2), (0, 0)), mode="edge"), np.array([1, 4, 6, 4, 1]) / 16
    slow = np.array([[np.linalg.norm(np.einsum("i,j,ijk->k", one, one, held[y : y + 5, x : x + 5])
                                     - colours.mean((0, 1))) for x in range(13)] for y in range(9)])
    assert from_mean(lab(image)) == pytest.approx(slow, abs=1e-3)
    assert ft(image) == pytest.approx((slow - slow.min()) / np.ptp(slow), abs=1e-4)


@pytest.mark.parametrize("inner", [from_mean, barrier])
def test_shifting_all_colours_changes_nothing(inner: Measure) -> None:
    colours = np.random.default_rng(3).normal(0, 20, (3, 12, 10)).astype(np.float32)
    shift = np.array([30, -12, 5], np.float32)[:, None, None]
    assert inner(colours + shift) == pytest.approx(inner(colours), abs=1e-3)


# --------------------------------------------------------------------------------------------------------- enclosure


def test_barrier_by_hand() -> None:
    room = np.array([[0, 0, 0, 0, 0], [0, 5, 5, 5, 0], [0, 5, 2, 5, 0], [0, 5, 5, 5, 0], [0, 0, 0, 0, 0]], np.float32)
    assert barrier(room[None])[1:4, 1:4].tolist() == [[5, 5, 5], [5, 5, 5], [5, 5, 5]]  # over the wall, whatever inside
    room[1, 2] = 1  # a gap in the wall
    assert barrier(room[None])[1:4, 1:4].tolist() == [[5, 1, 5], [5, 2, 5], [5, 5, 5]]
    assert barrier(np.stack([room, 2 * room]))[2, 2] == 6  # a sum over channels


@QUICK
@given(grey_steps, st.integers(1, 4))
def test_barrier_is_never_under_the_exact_one_and_0_on_the_border(channel: np.ndarray, passes: int) -> None:
    found, exact = barrier(channel[None], passes), exact_barrier(channel)
    assert (found[1:-1, 1:-1] >= exact[1:-1, 1:-1]).all()
    for side in (found[0], found[-1], found[:, 0], found[:, -1]):
        assert not side.any()
    assert not exact[0].any()
    assert np.isfinite(found).all()
    assert (barrier(channel[None], passes + 1) <= found).all()  # a path is only left for a better one


@QUICK
@given(st.lists(st.integers(0, 9), min_size=2, max_size=6), st.booleans())
def test_barrier_is_exact_where_all_ways_are_alike(values: list[int], tall: bool) -> None:
    """Rings around the middle: every way in crosses the same values."""
    size = (2 * len(values), 2 * len(values) + 3)[:: -1 if tall else 1]
    ring = np.minimum.reduce(np.broadcast_arrays(
        *(np.minimum(np.arange(n), np.arange(n)[::-1]).reshape(shape) for n, shape in zip(size, ((-1, 1), (1, -1)),
                                                                                          strict=True))))
    channel = np.array(values, np.float32)[ring]
    assert np.array_equal(barrier(channel[None], 2), exact_barrier(channel))


def test_three_scans_are_nearer_to_the_exact_distance_than_one_and_hardly_above_it_on_smooth_images() -> None:
    noise = np.random.default_rng(5).normal(0, 1, (14, 16))
    smooth = np.array([[noise[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].mean() for x in range(16)]
                       for y in range(14)]).astype(np.float32)
    exact = exact_barrier(smooth)
    excess = [float((barrier(smooth[None], n) - exact).mean()) for n in (2, 3, 6)]
    assert excess[0] >= excess[1] >= excess[2] >= -1e-6
    assert excess[1] < 0.2 * exact.mean()


def test_mbd_takes_three_passes_and_needs_one() -> None:
    image = np.random.default_rng(6).integers(0, 256, (3, 12, 12)).astype(np.uint8)
    assert np.array_equal(mbd(image), mbd(image, 3))
    assert not np.array_equal(mbd(image), mbd(image, 2))
    with pytest.raises(UsageError, match="passes over the image: found 0, expected 1 or more"):
        mbd(disc()[0], passes=0)
