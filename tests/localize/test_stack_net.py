"""The stack of levels: heads add up to one head, levels can be dropped, every mechanism counts."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stacks import image, net
from tagseg.localize import stack_maps
from tagseg.localize.stack_net import Stack, StackNet, chosen, pooled
from tagseg.nets.backbones import build
from tagseg.nets.deconvnet import columns_of
from tagseg.ops.geometry import align
from tagseg.types import UsageError


@pytest.mark.parametrize("norm", ["bn", "l2", "none"])
def test_dfs_s7_07_heads_of_levels_equal_one_head_on_the_stack(norm: str) -> None:
    model, x = net(norm=norm), image()
    _, _, (found,) = model.mirror(x)
    size = (found[0].shape[2], found[0].shape[3])
    normed = []
    for level, grid, own in zip(found, model.mirror.grids, model.norms, strict=True):
        level = level / level.square().mean((1, 2, 3), keepdim=True).sqrt() if norm == "l2" else level
        normed.append(align(own(level), grid, model.tap, size))
    weights = torch.cat(list(model.heads), 1)
    stacked = F.conv2d(torch.cat(normed, 1), weights[:, :, None, None]) + model.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(model(x)[0], stacked, atol=1e-5, rtol=1e-5)


def test_dfs_s7_07_dropping_a_level_is_zeroing_its_head() -> None:
    few, all_of_them, x = net(levels=(1, 3)), net(), image()
    all_of_them.load_state_dict(few.state_dict())
    with torch.no_grad():
        for b in (2, 4, 5):
            all_of_them.heads[b - 1].zero_()
    torch.testing.assert_close(few(x)[0], all_of_them(x)[0])


def test_dfs_s7_08_without_a_signal_the_maps_are_the_bias() -> None:
    model = net(norm="none")
    with torch.no_grad():
        model.bias.copy_(torch.tensor([0.5, -1.0, 2.0]))
        zeros = [torch.zeros(1, g.channels, 8, 8) for g in model.mirror.grids]
    assert torch.equal(model.maps(zeros), model.bias.view(1, 3, 1, 1).expand(1, 3, 8, 8))


@pytest.mark.parametrize("norm", ["bn", "l2", "none"])
def test_what_an_empty_cell_says(norm: Any) -> None:
    model = net(norm=norm, levels=(2, 4)).eval()
    with torch.no_grad():
        for parameter in model.new():
            parameter.add_(torch.randn_like(parameter))
        zeros = [torch.zeros(1, g.channels, 8, 8) for g in model.mirror.grids]
        whole, shares = model.empty(), [model.empty(b) for b in (2, 4)]
        torch.testing.assert_close(model.maps(zeros), whole.view(1, 3, 1, 1).expand(1, 3, 8, 8))
    torch.testing.assert_close(sum(shares) + model.bias, whole)
    assert any(share.any() for share in shares) == (norm == "bn")


def test_maps_count_from_what_an_empty_cell_says() -> None:
    model = net(norm="bn").eval()
    with torch.no_grad():
        model.bias.copy_(torch.tensor([5.0, 0.0, -5.0]))  # most images have the first class
    read = stack_maps.network_of(model, stack_maps.StackMaps(smooth=0.0)).read
    raw = model.empty().detach().view(1, 3, 1, 1).expand(1, 3, 8, 8).clone()
    raw[:, :, 2:4, 2:4] += 1  # something that speaks for all three
    side = 8 * model.tap.stride
    first, second, third = read(raw, (side, side), (8, 8))[0, :3]
    assert first[6, 6] == 0
    assert first[2, 2] > 0
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, third)
    plain = stack_maps.network_of(model, stack_maps.StackMaps(smooth=0.0, zero="score")).read(raw, (side, side), (8, 8))
    assert (plain[0, 0] > 0).all()
    assert (plain[0, 2] == 0).all()


@pytest.mark.parametrize("source", ["mirror", "encoder"])
@pytest.mark.parametrize("name", ["small", "squeezenet1_1"])
def test_both_sources_hang_on_every_filter_of_the_network(name: str, source: Any) -> None:
    torch.manual_seed(0)
    model = StackNet(build(name, stride=16), 3, Stack(source=source))
    model(image())[0].square().sum().backward()
    assert [n for n, p in model.backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_the_columns_of_an_encoder_are_the_last_features_of_each_grid() -> None:
    expected = {"small": ("block1", "block2", "block3", "block4", "block5"),
                "squeezenet1_1": ("block2", "block3", "block4", "block5"),
                "mobilenet_v2": ("block1", "block2", "block3", "last")}  # fmt: skip
    for (name, columns), stride in product(expected.items(), (8, 16)):
        backbone = build(name, stride=stride)
        assert columns_of(backbone) == columns
        mirrored, own = (StackNet(backbone, 2, Stack(source=s)).grids for s in ("mirror", "encoder"))  # type: ignore[arg-type]
        assert [g.stride for g in mirrored] == [g.stride for g in own]


@pytest.mark.parametrize("route", ["conv", "vjp"])
@pytest.mark.parametrize("source", ["mirror", "encoder"])
def test_the_auxiliary_branch_averages_the_last_features_not_their_pool(route: Any, source: Any) -> None:
    model, x = net(route=route, source=source), image()
    last = model.backbone(x)["block5"]
    torch.testing.assert_close(model(x)[1], model.aux(last.mean((2, 3))))


def test_a_level_without_any_signal_gives_no_nan() -> None:
    model = net(norm="l2", rectify="mask")
    levels = [torch.zeros(1, g.channels, 8, 8, requires_grad=True) for g in model.grids]
    model.maps(levels).sum().backward()
    assert all(level.grad is not None and torch.isfinite(level.grad).all() for level in levels)


def test_norms_see_the_levels_of_all_classes_together() -> None:
    model, x = net(top="class").train(), image()
    model(x)
    assert [int(own.num_batches_tracked) for own in model.norms] == [1] * len(model.norms)  # type: ignore[arg-type]
    found, _ = model.found(x)
    for b, own in enumerate(model.norms):
        every = torch.cat([levels[b] for levels in found]).transpose(0, 1).flatten(1)
        torch.testing.assert_close(own.running_mean, 0.1 * every.mean(1), atol=1e-6, rtol=1e-4)


def test_dfs_s7_08_without_a_signal_from_the_top_the_maps_of_an_image_are_the_bias() -> None:
    model, x = net(norm="none", top="class"), image()
    with torch.no_grad():
        model.aux.weight.zero_()  # nothing of the top speaks for any class
        model.bias.copy_(torch.tensor([0.5, -1.0, 2.0]))
    found = model(x)[0]
    assert torch.equal(found, model.bias.view(1, 3, 1, 1).expand_as(found))


def test_dfs_s7_10_a_shifted_image_has_shifted_maps() -> None:
    model = net(norm="none")
    x = torch.zeros(1, 3, 160, 160)
    x[:, :, 64:80, 64:80] = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    one, other = model(x)[0], model(torch.roll(x, (16, 16), (2, 3)))[0]
    inner = slice(48, 112)
    torch.testing.assert_close(one[:, :, inner, inner], other[:, :, 64:128, 64:128], atol=1e-6, rtol=1e-5)


def test_dfs_s7_12_the_score_lies_between_mean_and_maximum() -> None:
    maps = 3 * torch.randn(4, 2, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for r in (0.1, 1.0, 4.0, 30.0):
        found = pooled(maps, Stack(lse_r=r))
        assert (found >= maps.mean((2, 3))).all()
        assert (found <= maps.amax((2, 3))).all()


def test_dfs_s7_11_heads_of_levels_that_are_not_taken_learn_nothing() -> None:
    model = net(levels=(2, 4))
    model(image())[0].sum().backward()
    for b, head in enumerate(model.heads, 1):
        assert (head.grad is not None and bool(head.grad.abs().sum() > 0)) == (b in (2, 4))


def test_dfs_s7_01_a_stack_holds_every_tensor_once() -> None:
    model = net()
    where = [t.data_ptr() for t in model.state_dict().values() if t.numel()]
    assert len(where) == len(set(where))
    own = {id(p) for p in model.backbone.parameters()}
    assert {id(p) for p in model.parameters()} == own | {id(p) for p in model.new()}
    assert not own & {id(p) for p in model.new()}


def test_levels_that_a_network_lacks_are_refused() -> None:
    assert chosen((), 5) == (1, 2, 3, 4, 5)
    assert chosen((4, 2, 4), 5) == (2, 4)
    with pytest.raises(UsageError, match=r"found \[0, 2\].*1 \(finest\) to 5"):
        chosen((0, 2), 5)


@pytest.mark.parametrize("settings", [{"source": "encoder"}, {"top": "class"}, {"rectify": "mask"}, {"tie": "free"},
                                      {"unpool": "nearest"}, {"levels": (4, 5)}, {"norm": "l2"}])  # fmt: skip
def test_every_mechanism_changes_the_maps(settings: dict[str, Any]) -> None:
    plain, other = net(), net(**settings)
    same = other.state_dict()
    shared = {n: t for n, t in plain.state_dict().items() if n in same and t.shape == same[n].shape}
    other.load_state_dict({**other.state_dict(), **shared})
    if settings == {"tie": "free"}:
        with torch.no_grad():
            other.mirror.free[0].mul_(0.5)
    a, b = plain(image())[0], other(image())[0]
    assert a.shape[:2] == b.shape[:2]
    assert a.shape != b.shape or not torch.allclose(a, b)


def test_with_a_top_for_each_class_a_map_hangs_on_its_own_class_alone() -> None:
    model, x = net(top="class"), image()
    before = model(x)[0]
    with torch.no_grad():
        model.aux.weight[1].mul_(-1)
    after = model(x)[0]
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.allclose(before[:, 1], after[:, 1])
