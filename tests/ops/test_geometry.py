"""Resampling against hand-worked cases, linear ramps and torch's own two corner rules where these are exact."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tagseg.ops.geometry import align, areas, corners, enlarge, resample, resize_labels, shrunk


@dataclass(frozen=True)
class Cells:
    stride: int
    offset: float


def test_two_cells_by_hand() -> None:
    row = torch.tensor([[[[0.0, 1.0]]]])  # centres at pixels 1.5 and 5.5
    out = resample(row, stride=4, offset=1.5, in_size=(4, 8), out_size=(4, 8))
    expected = torch.tensor([0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])
    torch.testing.assert_close(out, expected.expand(1, 1, 4, 8))


def test_an_output_of_half_the_size_reads_between_input_pixels() -> None:
    row = torch.arange(8.0).view(1, 1, 1, 8)
    out = resample(row, stride=1, offset=0.0, in_size=(1, 8), out_size=(1, 4))
    torch.testing.assert_close(out, torch.tensor([0.5, 2.5, 4.5, 6.5]).view(1, 1, 1, 4))


def test_vgg_grid_at_a_multiple_of_16_is_interpolation_without_aligned_corners() -> None:
    maps = torch.randn(2, 3, 5, 7)
    out = resample(maps, stride=16, offset=7.5, in_size=(80, 112), out_size=(80, 112))
    torch.testing.assert_close(out, F.interpolate(maps, (80, 112), mode="bilinear", align_corners=False))
    other = resample(maps, stride=16, offset=7.5, in_size=(80, 112), out_size=(55, 190))
    torch.testing.assert_close(other, F.interpolate(maps, (55, 190), mode="bilinear", align_corners=False))


def test_resnet_grid_at_16n_plus_1_is_interpolation_with_aligned_corners() -> None:
    maps = torch.randn(2, 3, 5, 7)
    out = resample(maps, stride=16, offset=0.0, in_size=(65, 97), out_size=(65, 97))
    torch.testing.assert_close(out, F.interpolate(maps, (65, 97), mode="bilinear", align_corners=True))
    assert (out - F.interpolate(maps, (65, 97), mode="bilinear", align_corners=False)).abs().max() > 0.1


SIDES = st.integers(1, 40)


@given(st.sampled_from([1, 4, 8, 16]), st.sampled_from([0.0, 3.5, 7.5, 15.0]), SIDES, SIDES, st.integers(1, 5))
def test_constant_maps_stay_constant(stride: int, offset: float, inside: int, outside: int, cells: int) -> None:
    maps = torch.full((1, 2, cells, cells), 0.3)
    out = resample(maps, stride=stride, offset=offset, in_size=(inside, inside), out_size=(outside, outside))
    assert out.shape == (1, 2, outside, outside)
    torch.testing.assert_close(out, torch.full_like(out, 0.3))


@given(st.sampled_from([4, 8, 16]), st.sampled_from([0.0, 3.5, 7.5, 15.0]), st.integers(40, 90), st.integers(20, 150))
def test_a_ramp_in_the_picture_is_reproduced_between_the_outer_cells(stride: int, offset: float, inside: int,
                                                                    outside: int) -> None:
    centres = torch.arange(5.0) * stride + offset
    maps = centres.view(1, 1, 1, 5).expand(1, 1, 2, 5)
    out = resample(maps, stride=stride, offset=offset, in_size=(inside, inside), out_size=(outside, outside))[0, 0, 0]
    pixels = (torch.arange(outside) + 0.5) * inside / outside - 0.5
    torch.testing.assert_close(out, pixels.clamp(centres[0], centres[-1]), atol=1e-4, rtol=1e-5)


def test_half_precision_is_computed_in_float32_under_autocast_too() -> None:
    maps = torch.randn(1, 1, 4, 4).bfloat16()
    exact = resample(maps.float(), stride=16, offset=7.5, in_size=(64, 64), out_size=(64, 64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = resample(maps, stride=16, offset=7.5, in_size=(64, 64), out_size=(64, 64))
    assert out.dtype == torch.float32
    assert torch.equal(out, exact)


def test_gradients_match_finite_differences() -> None:
    maps = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)

    def read(m: torch.Tensor) -> torch.Tensor:
        return resample(m, stride=4, offset=1.5, in_size=(12, 16), out_size=(7, 9))

    assert torch.autograd.gradcheck(read, (maps,))


def test_align_reads_one_grid_at_the_cells_of_another() -> None:
    coarse, fine = Cells(16, 15.0), Cells(4, 3.0)
    ramp = (torch.arange(4.0) * 16 + 15).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    out = align(ramp, coarse, fine, (14, 14))
    torch.testing.assert_close(out[0, 0, 0], (torch.arange(14.0) * 4 + 3).clamp(15, 63))
    torch.testing.assert_close(align(ramp, coarse, coarse, (4, 4)), ramp)


def test_enlarged_maps_are_interpolation_without_aligned_corners_and_no_maps_stay_none() -> None:
    scores = np.random.default_rng(0).random((2, 5, 7), np.float32)
    expected = F.interpolate(torch.from_numpy(scores)[None], (20, 30), mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(enlarge(scores, (20, 30)), expected.numpy(), atol=1e-6)
    assert np.array_equal(enlarge(scores, (5, 7)), scores)
    assert enlarge(scores[:0], (20, 30)).shape == (0, 20, 30)


def test_labels_by_hand() -> None:
    labels = np.array([[1, 2, 3, 4]], np.uint8)
    assert resize_labels(labels, (1, 2)).tolist() == [[2, 4]]  # centres 1.0 and 3.0: the pixel that begins there
    assert resize_labels(labels, (1, 8)).tolist() == [[1, 1, 2, 2, 3, 3, 4, 4]]
    assert resize_labels(labels, (2, 3)).tolist() == [[1, 3, 4], [1, 3, 4]]


@pytest.mark.parametrize("out", [(5, 7), (30, 11), (13, 40), (1, 1)])
def test_labels_agree_with_torch_for_arrays_and_tensors(out: tuple[int, int]) -> None:
    labels = torch.randint(0, 255, (2, 13, 20), dtype=torch.uint8)
    expected = F.interpolate(labels[:, None].double(), out, mode="nearest-exact")[:, 0].to(torch.uint8)
    assert torch.equal(resize_labels(labels, out), expected)
    assert np.array_equal(resize_labels(labels.numpy(), out), expected.numpy())


def test_means_of_areas_by_hand_and_only_where_the_grid_is_coarser() -> None:
    row = np.array([[[1.0, 2.0, 3.0]]], np.float32)
    np.testing.assert_allclose(shrunk(row, (1, 2)), [[[4 / 3, 8 / 3]]], rtol=1e-6)  # 1.5 pixels each
    np.testing.assert_allclose(shrunk(row.transpose(0, 2, 1), (2, 1)), [[[4 / 3], [8 / 3]]], rtol=1e-6)
    assert np.array_equal(shrunk(row, (1, 3)), row)
    assert np.array_equal(shrunk(row, (5, 4)), row)
    assert shrunk(np.zeros((0, 9, 9), np.float32), (3, 4)).shape == (0, 3, 4)


def test_areas_of_more_cells_than_pixels() -> None:
    np.testing.assert_allclose(areas(1, 3), np.ones((3, 1)))
    np.testing.assert_allclose(areas(2, 3), [[1, 0], [0.5, 0.5], [0, 1]])


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 4, 16]), st.floats(0, 15), st.integers(1, 5))
def test_corners_read_what_resample_reads(out: int, into: int, stride: int, offset: float, cells: int) -> None:
    values = np.random.default_rng(0).random(cells).astype(np.float32)
    low, share = corners(out, into, stride, offset, cells)
    own = values[low] * (1 - share) + values[np.minimum(low + 1, cells - 1)] * share
    row = torch.from_numpy(values).view(1, 1, 1, -1)
    read = resample(row, stride=stride, offset=offset, in_size=(1, into), out_size=(1, out))[0, 0, 0]
    np.testing.assert_allclose(own, read, atol=1e-6)
