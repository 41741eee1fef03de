"""The deformable sampler against torchvision's operator, a plain gather written here, and shifted convolutions."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tagseg.nets.sampler import TAPS, Sampler, mixed_first, on_card

SIZES = [(7, 9), (1, 5), (6, 1), (1, 1), (12, 4)]


def gathered(x: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Eq. 1 as it is written: for each image, cell and tap four neighbours are read and weighed; outside is 0."""
    n, _, h, w = x.shape
    out = x.new_zeros(n, len(weight), h, w)
    for image, y, k in itertools.product(range(n), range(h), range(w)):
        for tap in range(TAPS):
            at_y = y + tap // 3 - 1 + offsets[image, 2 * tap, y, k]
            at_x = k + tap % 3 - 1 + offsets[image, 2 * tap + 1, y, k]
            top, left = at_y.detach().floor(), at_x.detach().floor()
            value = x.new_zeros(x.shape[1])
            for row, column in itertools.product((top, top + 1), (left, left + 1)):
                if 0 <= row < h and 0 <= column < w:
                    share = (1 - (at_y - row).abs()) * (1 - (at_x - column).abs())
                    value = value + share * x[image, :, int(row), int(column)]
            out[image, :, y, k] = out[image, :, y, k] + weight[:, :, tap // 3, tap % 3] @ value
    return out


def case(size: tuple[int, int], reach: float = 1.5, n: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(size[0] * 100 + size[1])
    x, offsets = torch.randn(n, 3, *size), reach * torch.randn(n, 2 * TAPS, *size)
    return x.requires_grad_(), offsets.requires_grad_(), torch.randn(4, 3, 3, 3, requires_grad=True)


@pytest.mark.parametrize("size", SIZES)
def test_esol_s7_01_zero_offsets_are_a_plain_convolution(size: tuple[int, int]) -> None:
    x, offsets, weight = case(size, 0.0)
    expected = F.conv2d(x, weight, padding=1)
    assert (mixed_first(x, offsets, weight) - expected).abs().max() < 1e-4
    assert (on_card(x, offsets, weight) - expected).abs().max() < 1e-4
    layer = Sampler(3, 4, moves=True)
    assert (layer(x) - F.conv2d(x, layer.weight, padding=1)).abs().max() < 1e-4


@pytest.mark.parametrize(("dy", "dx"), [(0, 1), (2, 0), (-1, 2)])
def test_esol_s7_02_a_constant_offset_is_a_shifted_convolution(dy: int, dx: int) -> None:
    x, offsets, weight = case((11, 12))
    with torch.no_grad():
        offsets[:, 0::2], offsets[:, 1::2] = float(dy), float(dx)
        found = mixed_first(x, offsets, weight)
        expected = F.conv2d(x, weight, padding=1).roll((-dy, -dx), (2, 3))
    inner = (..., slice(4, -4), slice(4, -4))
    assert torch.allclose(found[inner], expected[inner], atol=1e-5)
    assert not torch.allclose(found[inner], F.conv2d(x, weight, padding=1)[inner], atol=1e-2)


def test_esol_s7_05_the_ascent_can_start_at_zero_offsets() -> None:
    torch.manual_seed(0)
    layer = Sampler(3, 4, moves=True)
    layer(torch.randn(2, 3, 6, 6)).square().mean().backward()
    assert layer.offset is not None
    assert layer.offset.weight.grad is not None
    assert layer.offset.weight.grad.abs().max() > 1e-6


@pytest.mark.parametrize("size", SIZES)
def test_esol_s7_13_values_and_gradients_are_torchvisions(size: tuple[int, int]) -> None:
    inputs = case(size)
    ours, theirs = mixed_first(*inputs), on_card(*inputs)
    assert torch.allclose(ours, theirs, atol=1e-5)
    pull = torch.randn_like(ours)
    for mine, other in zip(torch.autograd.grad(ours, inputs, pull), torch.autograd.grad(theirs, inputs, pull),
                           strict=True):  # fmt: skip
        assert torch.allclose(mine, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(4, 5), (1, 3)])
def test_esol_s7_13_values_and_gradients_are_those_of_a_plain_gather(size: tuple[int, int]) -> None:
    inputs = case(size, n=1)
    ours, plain = mixed_first(*inputs), gathered(*inputs)
    assert torch.allclose(ours, plain, atol=1e-5)
    for mine, other in zip(torch.autograd.grad(ours.square().sum(), inputs),
                           torch.autograd.grad(plain.square().sum(), inputs), strict=True):  # fmt: skip
        assert torch.allclose(mine, other, atol=1e-4, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(h=st.integers(1, 8), w=st.integers(1, 8), reach=st.floats(0, 20), seed=st.integers(0, 99))
def test_far_offsets_and_small_grids_agree_with_torchvision(h: int, w: int, reach: float, seed: int) -> None:
    torch.manual_seed(seed)
    x, offsets, weight = torch.randn(1, 2, h, w), reach * torch.randn(1, 2 * TAPS, h, w), torch.randn(3, 2, 3, 3)
    assert torch.allclose(mixed_first(x, offsets, weight), on_card(x, offsets, weight), atol=1e-4)


def test_channels_last_input_is_taken() -> None:
    x, offsets, weight = case((8, 6))
    last = [t.detach().to(memory_format=torch.channels_last) for t in (x, offsets)]
    assert torch.allclose(mixed_first(last[0], last[1], weight), mixed_first(x, offsets, weight), atol=1e-5)


def test_limited_offsets_stay_inside_and_start_as_free_ones() -> None:
    torch.manual_seed(0)
    layer, x = Sampler(3, 4, moves=True, limit=2.0), torch.randn(1, 3, 6, 6)
    assert layer.offset is not None
    torch.nn.init.normal_(layer.offset.weight, std=3.0)
    held = layer.offsets(x)
    assert held is not None
    assert held.abs().max() <= 2.0
    free = layer.offset(x)
    assert (held.abs() <= free.abs() + 1e-6).all()
    layer.limit = None
    assert torch.equal(layer.offsets(x), free)  # type: ignore[arg-type]


def test_a_layer_that_does_not_move_has_no_offsets_to_learn() -> None:
    layer, x = Sampler(3, 4, moves=False), torch.randn(1, 3, 6, 6)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, padding=1))


def test_detached_offsets_pass_no_gradient() -> None:
    layer, x = Sampler(3, 4, moves=True), torch.randn(1, 3, 6, 6)
    layer.detached = True
    layer(x).sum().backward()
    assert layer.offset is not None
    assert layer.offset.weight.grad is None
    assert layer.weight.grad is not None
