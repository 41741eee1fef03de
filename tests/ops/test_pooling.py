"""Poolings against values worked by hand, and their common property: an added constant passes through."""

from __future__ import annotations

import pytest
import torch

from tagseg.ops.pooling import gap, lse, topk
from tagseg.types import UsageError

PAIR = torch.tensor([0.2, 0.8]).view(1, 1, 1, 2)


@pytest.mark.parametrize(("r", "expected"), [(1.0, 0.5443), (5.0, 0.6711), (1e-2, 0.5005), (1e4, 0.8)])
def test_lse_by_hand(r: float, expected: float) -> None:
    assert lse(PAIR, r).item() == pytest.approx(expected, abs=2e-4)


def test_lse_lies_between_mean_and_maximum_and_survives_large_scores() -> None:
    maps = torch.randn(3, 4, 5, 6) * 1000
    pooled = lse(maps, 5.0)
    assert torch.isfinite(pooled).all()
    assert (pooled >= gap(maps) - 1e-2).all()
    assert (pooled <= maps.amax((2, 3)) + 1e-2).all()


def test_topk_by_hand() -> None:
    maps = torch.tensor([1.0, 5.0, 3.0, -2.0]).view(1, 1, 2, 2)
    assert topk(maps, 0.5).item() == 4.0
    assert topk(maps, 0.01).item() == 5.0
    assert topk(maps, 1.0).item() == gap(maps).item() == 1.75
    ten_percent = topk(torch.arange(30.0).view(1, 1, 5, 6), 0.1)
    assert ten_percent.item() == 28.0


def test_an_added_constant_passes_through() -> None:
    maps = torch.randn(2, 3, 4, 5)
    for pool in (gap, lambda m: lse(m, 4.0), lambda m: topk(m, 0.2)):
        torch.testing.assert_close(pool(maps + 0.7), pool(maps) + 0.7)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="above 0"):
        lse(PAIR, 0.0)
    with pytest.raises(UsageError, match=r"\(0, 1\]"):
        topk(PAIR, 1.5)


def test_dfs_s7_12_log_sum_exp_by_hand_between_mean_and_maximum() -> None:
    pair = torch.tensor([0.0, 2.0], dtype=torch.float64).view(1, 1, 1, 2)
    assert lse(pair, 4.0).item() == pytest.approx(1.8268, abs=5e-5)
    maps = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(lse(maps, 1e-6), gap(maps), atol=1e-5)
    assert torch.allclose(lse(maps, 1e6), maps.amax((2, 3)), atol=1e-4)
    mixed = maps.flatten(2)[:, :, torch.randperm(20)].view_as(maps)
    assert torch.allclose(lse(mixed, 4.0), lse(maps, 4.0))
