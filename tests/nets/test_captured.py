"""A recorded pass gives what the module gives, shape by shape, and its memory is nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from tagseg.nets import captured
from tagseg.nets.captured import Captured, Pass

card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card")


def again(call: Pass) -> tuple[Tensor, Callable[[], object]]:
    """A recording on the processor: the same input and output memory every time, as a graph has."""
    made = call().clone()
    return made, lambda: made.copy_(call())


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 1))


def photos(n: int, height: int = 9, width: int = 7) -> Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(n + height))


@torch.inference_mode()
def test_outputs_are_the_modules_and_stay_as_they_were(module: nn.Module) -> None:
    net = Captured(module, again)
    given = [photos(2), photos(3), photos(2) + 1, photos(2, 5)]
    found = [net(x) for x in given]
    for x, one in zip(given, found, strict=True):  # after all passes: no later one wrote into an earlier one's output
        torch.testing.assert_close(one, module(x), rtol=0, atol=0)
    assert len(net.held) == 3


@torch.inference_mode()
def test_so_many_shapes_are_recorded_and_others_pass_as_they_come(
    module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured, "MOST", 2)
    net = Captured(module, again)
    for height in (4, 5, 6, 5, 6):
        torch.testing.assert_close(net(photos(1, height)), module(photos(1, height)), rtol=0, atol=0)
    assert [key[0][2] for key in net.held] == [4, 5]  # type: ignore[index]


def test_threads_share_a_recording(module: nn.Module) -> None:
    net = Captured(module, again)

    @torch.inference_mode()
    def differs(seed: int) -> float:
        x = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(seed))
        return float((net(x) - module(x)).abs().max())

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(differs, range(200))) == {0.0}
    assert len(net.held) == 1


@torch.inference_mode()
def test_weights_are_cast_in_every_pass(module: nn.Module) -> None:
    """Autocast forgets its copies after a pass; a recording that read them would read memory of others."""
    kept: list[bool] = []

    def record(call: Pass) -> tuple[Tensor, Callable[[], object]]:
        kept.append(torch.is_autocast_cache_enabled())
        return again(call)

    with torch.autocast("cpu", torch.bfloat16):
        assert Captured(module, record)(photos(2)).dtype == torch.bfloat16
        assert torch.is_autocast_cache_enabled()
    assert kept == [False]


@card
@torch.inference_mode()
@pytest.mark.parametrize("bf16", [False, True])
def test_on_a_card(module: nn.Module, bf16: bool) -> None:
    module.cuda()
    net = Captured(module)
    with torch.autocast("cuda", torch.bfloat16, bf16):
        for n in (2, 3, 2, 1, 3):
            x = photos(n).cuda() + n
            torch.testing.assert_close(net(x), module(x))
