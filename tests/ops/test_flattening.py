"""The cap on peaks and the area of maps, by hand and as properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tagseg.ops.flattening import area, by_peak, clip_to_peak, clip_to_quantile


def positive(seed: int, shape: tuple[int, ...] = (2, 3, 5, 6)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).relu()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), beta=st.floats(0.05, 1.0))
def test_esol_s7_07_the_cap_lowers_peaks_and_nothing_else(seed: int, beta: float) -> None:
    x = positive(seed)
    found, cap = clip_to_peak(x, beta), beta * x.amax((2, 3), keepdim=True)
    assert (found <= x).all()
    assert torch.equal(found[x < cap.expand_as(x)], x[x < cap.expand_as(x)])
    assert torch.equal(clip_to_peak(x, 1.0), x)
    peaks = x == x.amax((2, 3), keepdim=True)
    assert (found == found.amax((2, 3), keepdim=True))[peaks].all()  # the old maxima are among the new ones
    assert torch.equal(torch.minimum(found, cap), found)  # a fixed cap twice is the cap once
    assert torch.allclose(clip_to_peak(found, beta), clip_to_peak(x, beta * beta))  # a relative one is not


def test_the_cap_by_hand() -> None:
    x = torch.tensor([[[[0.0, 2.0], [8.0, 4.0]]]])
    assert clip_to_peak(x, 0.5).flatten().tolist() == [0, 2, 4, 4]
    assert clip_to_quantile(x, 0.5).flatten().tolist() == [0, 2, 3, 3]
    assert torch.equal(clip_to_quantile(x, 1.0), x)


def test_esol_s7_08_the_area_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 0.0], [0.0, -3.0]], [[2.0, 2.0], [2.0, 2.0]], [[5.0, 5.0], [0.0, 0.0]]]])
    tags = torch.tensor([[True, True, False]])
    shares = by_peak(maps, eps=0.0)
    assert area(shares, tags).tolist() == [(0.25 + 1.0) / 2]  # the absent third class does not count
    assert area(shares, torch.tensor([[False, False, False]])).tolist() == [0.0]
    nothing = by_peak(torch.zeros(1, 3, 2, 2))
    assert torch.isfinite(nothing).all()
    assert area(nothing, tags).tolist() == [0.0]
    assert area(by_peak(torch.full((1, 3, 2, 2), 7.0)), tags).item() == pytest.approx(1, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_esol_s7_08_the_area_is_a_share(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps, tags = torch.randn(4, 3, 5, 5, generator=generator), torch.rand(4, 3, generator=generator) < 0.5
    found = area(by_peak(maps), tags)
    assert ((found >= 0) & (found <= 1)).all()


def test_a_given_peak_takes_the_place_of_the_maximum() -> None:
    maps = positive(0)
    assert torch.allclose(by_peak(maps, torch.full((2, 3), 4.0, dtype=torch.float64)), maps / (4 + 1e-5))
