"""Background by its tie to the border: every part by hand, against slow references, and what each is good for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import rgb2lab

from tagseg.ops import background_saliency
from tagseg.ops.background_saliency import Parts, connectivity, contrast, measured, rbd, settled
from tagseg.ops.saliency import stretched
from tagseg.ops.superpixels import grid
from tagseg.types import DataError, UsageError

QUICK = settings(max_examples=30, deadline=None)


def scene(side: int = 48, noise: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """A red square on a grey ground with grain, uint8 (3, side, side), and where it is."""
    image = np.full((3, side, side), 120, np.int64)
    inside = np.zeros((side, side), bool)
    inside[side // 4 : side // 2, side // 3 : 2 * side // 3] = True
    image[:, inside] = np.array([[200], [40], [40]])
    image += np.random.default_rng(0).integers(-noise, noise + 1, image.shape)
    return image.astype(np.uint8), inside


def random_parts(seed: int, n: int = 14) -> Parts:
    """Made-up superpixels: a chain with some further neighbours, every third at the border."""
    rng = np.random.default_rng(seed)
    more = {tuple(sorted(p)) for p in rng.choice(n, (n, 2)).tolist() if p[0] != p[1]}
    pairs = sorted({(i, i + 1) for i in range(n - 1)} | more)
    return Parts(rng.normal(0, 12, (n, 3)), rng.random((n, 2)), rng.integers(20, 200, n).astype(float),
                 np.where(np.arange(n) % 3 == 0, rng.integers(1, 15, n), 0).astype(float), np.array(pairs, np.int32))


def slow_connectivity(found: Parts, sigma: float) -> np.ndarray:
    """Floyd's rule over neighbours and linked border superpixels, then the definition."""
    n = len(found)
    far = np.full((n, n), np.inf)
    linked = {tuple(p) for p in found.pairs.tolist()}
    linked |= {(i, j) for i in range(n) for j in range(i + 1, n) if found.border[i] and found.border[j]}
    for i, j in linked:
        far[i, j] = far[j, i] = np.linalg.norm(found.colour[i] - found.colour[j])
    far[np.arange(n), np.arange(n)] = 0
    for k in range(n):
        far = np.minimum(far, far[:, [k]] + far[[k]])
    share = np.exp(-(far**2) / (2 * sigma**2))
    return share @ found.border / np.sqrt(share @ found.pixels)


def slow_contrast(found: Parts, background: np.ndarray, sigma: float) -> np.ndarray:
    n, total = len(found), found.pixels.sum()
    sums = np.zeros(n)
    for i in range(n):
        for j in range(n):
            near = np.exp(-np.sum((found.place[i] - found.place[j]) ** 2) / (2 * sigma**2))
            apart = np.linalg.norm(found.colour[i] - found.colour[j])
            sums[i] += apart * near * background[j] * found.pixels[j] / total
    return sums


def cost(s: np.ndarray, found: Parts, background: np.ndarray, foreground: np.ndarray, sigma: float) -> float:
    """What `settled` minimises."""
    total = float(background @ s**2 + foreground @ (s - 1) ** 2)
    for i, j in found.pairs.tolist():
        apart = np.sum((found.colour[i] - found.colour[j]) ** 2)
        total += (np.exp(-apart / (2 * sigma**2)) + 0.1) * (s[i] - s[j]) ** 2
    return total


# ----------------------------------------------------------------------------------------------------------- by parts


def test_measured_by_hand() -> None:
    ids = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [2, 2, 2, 2]], np.int32)
    image = np.where(ids == 1, np.uint8(255), np.uint8(0))[None].repeat(3, 0)
    found = measured(image, ids)
    assert found.pixels.tolist() == [6, 2, 4]
    assert found.border.tolist() == [6, 0, 4]
    assert found.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert found.colour == pytest.approx(np.array([[0, 0, 0], [100, 0, 0], [0, 0, 0]]), abs=0.01)
    assert found.place == pytest.approx(np.array([[5 / 18, 0.5], [0.5, 0.5], [5 / 6, 0.5]]), abs=1e-6)


def test_colours_of_superpixels_are_means_of_lab() -> None:
    image, ids = np.random.default_rng(1).integers(0, 256, (3, 8, 9)).astype(np.uint8), grid((8, 9), regions=6)
    peer = np.asarray(rgb2lab(image.transpose(1, 2, 0)))
    assert measured(image, ids).colour == pytest.approx(
        np.array([peer[ids == s].mean(0) for s in range(ids.max() + 1)]), abs=1e-3)


def test_connectivity_by_hand() -> None:
    """A white square of 2x2 in a black image of 4x4: the ring has 12 pixels, all on the border."""
    ids = np.zeros((4, 4), np.int32)
    ids[1:3, 1:3] = 1
    image = np.where(ids == 1, np.uint8(255), np.uint8(0))[None].repeat(3, 0)
    assert connectivity(measured(image, ids), 10.0) == pytest.approx([12 / np.sqrt(12), 0], abs=1e-6)
    share = np.exp(-0.5)  # 100 units away at a deviation of 100
    assert connectivity(measured(image, ids), 100.0) == pytest.approx(
        [12 / np.sqrt(12 + 4 * share), 12 * share / np.sqrt(12 * share + 4)], abs=1e-3)


def test_a_background_that_an_object_cuts_in_two_is_one() -> None:
    ids = np.repeat(np.array([[0] * 4 + [1] + [2] * 4], np.int32), 8, 0)  # halves of 8x4, 14 border pixels each
    image = np.where(ids == 1, np.uint8(255), np.uint8(0))[None].repeat(3, 0)
    assert connectivity(measured(image, ids), 10.0)[[0, 2]] == pytest.approx([28 / np.sqrt(64)] * 2)


@QUICK
@given(st.integers(0, 10**6), st.floats(4, 40))
def test_connectivity_against_a_slow_reference(seed: int, sigma: float) -> None:
    found = random_parts(seed)
    assert connectivity(found, sigma) == pytest.approx(slow_connectivity(found, sigma), rel=1e-5, abs=1e-7)


def test_cutting_an_even_background_into_pieces_changes_no_connectivity() -> None:
    """Areas and lengths are pixels, not superpixels: the paper's count would rise with the number of pieces."""
    image, inside = scene(noise=0)
    whole = np.where(inside, 1, 0).astype(np.int32)
    pieces = np.where(inside, 0, 1 + grid(inside.shape, regions=36)).astype(np.int32)
    pieces = np.unique(pieces, return_inverse=True)[1].reshape(inside.shape).astype(np.int32)
    ground, thing = connectivity(measured(image, whole), 10.0)
    cut = connectivity(measured(image, pieces), 10.0)
    assert len(cut) > 30
    assert cut[0] == pytest.approx(thing, abs=1e-5)
    assert cut[1:] == pytest.approx(np.full(len(cut) - 1, ground), rel=1e-5)


@QUICK
@given(st.integers(0, 10**6), st.floats(0.1, 2))
def test_contrast_against_a_slow_reference(seed: int, sigma: float) -> None:
    found, weight = random_parts(seed), np.random.default_rng(seed).random(14)
    assert contrast(found, weight, sigma) == pytest.approx(slow_contrast(found, weight, sigma), rel=1e-6)


@QUICK
@given(st.integers(0, 10**6))
def test_settled_is_the_least_cost_and_in_0_to_1(seed: int) -> None:
    found, rng = random_parts(seed), np.random.default_rng(seed)
    background, foreground = rng.random(14), rng.random(14)
    s = settled(found, background, foreground, 10.0)
    assert -1e-9 <= s.min() <= s.max() <= 1 + 1e-9
    least = cost(s, found, background, foreground, 10.0)
    for _ in range(20):
        assert cost(s + rng.normal(0, 0.01, 14), found, background, foreground, 10.0) > least


def test_settled_by_hand() -> None:
    """Two neighbours of one colour: w = 1.1, one surely background, one surely object."""
    found = replace(random_parts(0, 2), colour=np.zeros((2, 3)))
    s = settled(found, np.array([1.0, 0]), np.array([0.0, 1]), 10.0)
    assert s == pytest.approx([1.1 / 3.2, 2.1 / 3.2])


def test_rows_are_computed_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found, weight = random_parts(3), np.linspace(0, 1, 14)
    whole = connectivity(found, 10.0), contrast(found, weight, 0.25)
    monkeypatch.setattr(background_saliency, "_ROWS", 3)
    assert np.allclose(connectivity(found, 10.0), whole[0], rtol=1e-12)
    assert np.allclose(contrast(found, weight, 0.25), whole[1], rtol=1e-12)


# -------------------------------------------------------------------------------------------------------- all together


def test_rbd_is_its_parts_put_together() -> None:
    image = np.random.default_rng(5).integers(0, 256, (3, 30, 40)).astype(np.uint8)
    ids = grid((30, 40), regions=48)
    found = measured(image, ids)
    background = 1 - np.exp(-(slow_connectivity(found, 14.0) ** 2) / 2)
    foreground = stretched(slow_contrast(found, background, 0.4))
    s = settled(found, background, foreground, 8.0)
    expected = ((s - s.min()) / np.ptp(s))[ids]
    assert rbd(image, ids, geodesic=14.0, spatial=0.4, colour=8.0) == pytest.approx(expected, abs=1e-5)


def test_names_of_superpixels_do_not_matter() -> None:
    image, _ = scene()
    ids = grid((48, 48), regions=36)
    other = np.random.default_rng(0).permutation(36).astype(np.int32)[ids]
    assert rbd(image, other) == pytest.approx(rbd(image, ids), abs=1e-5)


def test_without_the_background_weight_what_touches_the_border_stands_out_as_well() -> None:
    """A red wall at the left side: in contrast alone it is as salient as the red square."""
    image, inside = scene(noise=4)
    wall = np.zeros_like(inside)
    wall[:, :6] = True
    image[:, wall] = np.array([[200], [40], [40]])
    ids = grid((48, 48), regions=64)  # cells of 6x6
    found = measured(image, ids)
    with_weight = rbd(image, ids)
    without = stretched(settled(found, np.zeros(64), stretched(contrast(found, np.ones(64), 0.25)), 10.0),
                        least=1e-6)[ids]
    apart = [float(m[inside].mean() - m[wall].mean()) for m in (with_weight, without)]
    assert apart[0] > 0.4
    assert apart[0] > apart[1] + 0.2


def test_without_settling_grain_stays_in_the_map() -> None:
    image, inside = scene(noise=45)
    ids = grid((48, 48), regions=256)
    found = measured(image, ids)
    background = 1 - np.exp(-(connectivity(found, 10.0) ** 2) / 2)
    raw, whole = stretched(contrast(found, background, 0.25))[ids], rbd(image, ids)
    core = np.zeros_like(inside)
    core[14:22, 18:30] = True
    assert whole[core].std() / whole[core].mean() < 0.7 * raw[core].std() / raw[core].mean()
    assert whole[core].mean() - whole[~inside].mean() > 0.5


@pytest.mark.parametrize(("size", "regions"), [((1, 1), 1), ((1, 9), 4), ((2, 2), 4), ((3, 5), 1), ((2, 12), 6)])
def test_few_superpixels_all_at_the_border(size: tuple[int, int], regions: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (3, *size)).astype(np.uint8)
    found = rbd(image, grid(size, regions=regions))
    assert np.isfinite(found).all()
    assert found.min() == 0
    assert found.max() == (1 if regions > 1 else 0)


@QUICK
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12), st.integers(1, 20))
def test_values_lie_in_0_to_1(seed: int, h: int, w: int, regions: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.choice(rng.integers(0, 256, 4), (3, h, w)).astype(np.uint8)
    found = rbd(image, grid((h, w), regions=regions))
    assert np.isfinite(found).all()
    assert (found.min(), found.max()) in ((0, 1), (0, 0))


def test_ids_with_gaps_and_impossible_deviations_are_errors() -> None:
    image, _ = scene()
    with pytest.raises(DataError, match=r"superpixels: 1 of the ids 0\.\.2 have no pixel, expected ids without gaps"):
        rbd(image, np.where(grid((48, 48), regions=4) == 1, 2, 0).astype(np.int32))
    for name in ("geodesic", "spatial", "colour"):
        with pytest.raises(UsageError, match=f"{name} is 0.0: expected a standard deviation above 0"):
            rbd(image, grid((48, 48), regions=4), **{name: 0.0})
