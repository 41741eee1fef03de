"""The walk on torch tensors: the numbers of the numpy form, in mixed batches, and in float64 the dense ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks.dense_walk import dense_affinity, transition_matrix

from tagseg.ops import affinity as cpu
from tagseg.ops import affinity_torch as walks
from tagseg.types import DataError, UsageError

SIZES = [(9, 14), (17, 12), (3, 21), (1, 7), (6, 1)]
OFFSETS = cpu.offsets(5)


def grid(size: tuple[int, int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, generator=generator) ** 4, torch.rand((3, *size), generator=generator)


@pytest.mark.parametrize("size", SIZES)
def test_one_image_gives_the_numbers_of_the_numpy_form(size: tuple[int, int]) -> None:
    boundary, values = grid(size)
    expected = cpu.transition_from_boundary(boundary.numpy())
    links = walks.path_affinity(boundary[None])
    np.testing.assert_array_equal(links[0], cpu.path_affinity(boundary.numpy()))
    step = walks.transition(links, OFFSETS)
    np.testing.assert_allclose(walks.walk(step, values[None])[0], cpu.walk(expected, values.numpy()), atol=1e-5)
    np.testing.assert_allclose(walks.chebyshev(step, values[None])[0], cpu.chebyshev(expected, values.numpy()),
                               atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("steps", [1, 2, 9, 256])
def test_float64_is_the_power_of_the_dense_matrix(steps: int) -> None:
    """Within what weights under `FLOOR` carry: 256 steps x 69 neighbours x 1e-10."""
    boundary, values = (t.double() for t in grid((11, 13), seed=1))
    step = walks.transition(walks.path_affinity(boundary[None]), OFFSETS)
    power = torch.linalg.matrix_power(transition_matrix(dense_affinity(boundary)), steps)
    expected = (values.reshape(3, -1) @ power).reshape(values.shape)
    torch.testing.assert_close(walks.walk(step, values[None], steps)[0], expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(walks.chebyshev(step, values[None], steps, 120)[0], expected, atol=2e-6, rtol=0)


def test_images_of_different_size_do_not_leak_into_each_other_or_their_filling() -> None:
    grids = [grid(size, seed) for seed, size in enumerate(SIZES)]
    boundary = walks.stack([b for b, _ in grids], fill=1.0)
    values = walks.stack([v for _, v in grids], fill=0.0)
    step = walks.transition(walks.path_affinity(boundary), OFFSETS)
    for walk in (walks.walk, walks.chebyshev):
        together = walk(step, values)
        for found, (b, v) in zip(together, grids, strict=True):
            h, w = b.shape
            alone = walk(walks.transition(walks.path_affinity(b[None]), OFFSETS), v[None])[0]
            torch.testing.assert_close(found[:, :h, :w], alone, atol=1e-6, rtol=0)
            assert not found[:, h:].any()
            assert not found[:, :, w:].any()


def test_given_affinities_of_different_size_are_filled_with_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    links = [torch.rand((34, *size), generator=generator) for size in ((8, 12), (10, 6))]
    for plane, at in ((link[f], tuple(o)) for link in links for f, o in enumerate(OFFSETS.tolist())):
        h, w = plane.shape
        plane[max(0, h - at[0]) :] = 0
        plane[:, : max(0, -at[1])] = 0
        plane[:, max(0, w - max(0, at[1])) :] = 0
    values = [torch.rand((2, *link.shape[1:]), generator=generator) for link in links]
    together = walks.walk(walks.transition(walks.stack(links, 0.0), OFFSETS), walks.stack(values, 0.0), 30)
    for found, link, value in zip(together, links, values, strict=True):
        h, w = value.shape[1:]
        expected = cpu.walk(cpu.transition(link.numpy(), OFFSETS), value.numpy(), 30)
        np.testing.assert_allclose(found[:, :h, :w], expected, atol=1e-5)


def test_gradients_reach_the_highest_pixel_of_a_path() -> None:
    boundary = torch.tensor([[[0.1, 0.6, 0.2]]], requires_grad=True)
    links = walks.path_affinity(boundary, radius=3)
    far = [tuple(o) for o in cpu.offsets(3).tolist()].index((0, 2))
    links[0, far, 0, 0].backward()
    assert boundary.grad is not None
    assert boundary.grad.tolist() == [[[0, -1, 0]]]


def test_damped_values_vanish_on_boundaries() -> None:
    boundary, values = grid((5, 6))
    expected = cpu.damp(values.numpy(), boundary.numpy())
    np.testing.assert_array_equal(walks.damp(values[None], boundary[None])[0], expected)


def test_errors_name_what_is_wrong() -> None:
    boundary, values = (t[None] for t in grid((8, 8)))
    links = walks.path_affinity(boundary)
    with pytest.raises(DataError, match="boundary map"):
        walks.check(2 * boundary)
    with pytest.raises(DataError, match="found 34 planes"):
        walks.transition(links, cpu.offsets(3))
    with pytest.raises(DataError, match="maps to walk"):
        walks.walk(walks.transition(links, OFFSETS), values[..., :7])
    with pytest.raises(UsageError, match="beta"):
        walks.transition(links, OFFSETS, beta=-1.0)
    with pytest.raises(UsageError, match="steps"):
        walks.walk(walks.transition(links, OFFSETS), values, 0)
