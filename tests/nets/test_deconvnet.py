"""The mirror: adjoints, switches, routes that agree, and that its filters are the encoder's own."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tagseg.nets.backbones import Backbone, build, freeze_batch_norm
from tagseg.nets.deconvnet import Mirror, Mirroring, blocks, encoded, gain, names_of, unpool
from tagseg.nets.two_way import TwoWay
from tagseg.nets.vgg import Block, pooled_net
from tagseg.types import UsageError

RULES = ("relu", "mask", "guided", "none")


def plain(norm: bool = False) -> Backbone:
    """A tiny VGG of three blocks in float64; with batch norm its statistics are drawn, then fixed."""
    torch.manual_seed(0)
    net = pooled_net("tiny", (Block((4, 5), norm), Block((6, 6), norm), Block((7,), norm)), 32, None).double()
    net.min_size = 8
    for part in net.modules():
        if isinstance(part, nn.Conv2d) and part.bias is not None:
            nn.init.normal_(part.bias, std=0.1)
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(std=0.2)
            part.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.2)
    freeze_batch_norm(net)
    return net


def image(h: int = 24, w: int = 24, n: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def levels(net: Backbone, x: Tensor, **settings_: Any) -> tuple[Tensor, list[Tensor]]:
    _, top, (found,) = Mirror(net, Mirroring(**settings_))(x)
    return top, found


# ---- unpooling ----

@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 99))
def test_dfs_s7_03_what_was_pooled_comes_back_from_its_places(h: int, w: int, seed: int) -> None:
    x = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(seed)).relu()
    p, switches = F.max_pool2d(x, 2, 2, return_indices=True)
    back = unpool(p, switches, (h, w))
    assert torch.equal(F.max_pool2d(back, 2, 2), p)
    assert torch.equal(back.flatten(2).gather(2, switches.flatten(2)).view_as(p), p)
    cells = F.avg_pool2d((back != 0).float(), 2, 2) * 4
    assert cells.max() <= 1
    assert (back <= x).all()


def test_dfs_s7_03_negative_values_do_not_come_back() -> None:
    x = -torch.rand(1, 1, 4, 4) - 0.1
    p, switches = F.max_pool2d(x, 2, 2, return_indices=True)
    assert not torch.equal(F.max_pool2d(unpool(p, switches, (4, 4)), 2, 2), p)  # zeros win


def test_dfs_s7_04_an_odd_size_must_be_told() -> None:
    x = torch.rand(1, 1, 7, 7)
    p, switches = F.max_pool2d(x, 2, 2, return_indices=True)
    assert p.shape[2:] == (3, 3)
    assert torch.equal(F.max_pool2d(unpool(p, switches, (7, 7)), 2, 2), p)
    wrong = unpool(p, switches.clamp(max=35), (6, 6))  # what 2 * 3 would suggest
    assert not torch.equal(F.max_pool2d(wrong, 2, 2), p)


def test_dfs_s7_04_a_whole_net_on_odd_sizes() -> None:
    net = plain()
    top, found = levels(net, image(65, 97, 1))
    assert [tuple(f.shape[2:]) for f in found] == [(65, 97), (32, 48), (16, 24)]
    assert top.shape[2:] == (8, 12)


@pytest.mark.parametrize("deterministic", [False, True])
def test_dfs_s7_13_scattered_equals_max_unpool_and_is_deterministic(deterministic: bool) -> None:
    x = torch.rand(2, 4, 9, 12)
    p, switches = F.max_pool2d(x, 2, 2, return_indices=True)
    expected = F.max_unpool2d(p, switches, 2, output_size=(9, 12))
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        for overlap in (False, True):
            assert torch.equal(unpool(p, switches, (9, 12), overlap), expected)
        if deterministic:
            with pytest.raises(RuntimeError, match="deterministic"):
                F.max_unpool2d(p, switches, 2, output_size=(9, 12))
    finally:
        torch.use_deterministic_algorithms(before)


def test_unpooled_is_the_same_however_channels_lie_in_memory() -> None:
    torch.manual_seed(0)
    _, where = F.max_pool2d(torch.randn(2, 5, 9, 11), 2, 2, return_indices=True)
    values = torch.randn(where.shape)
    last = values.contiguous(memory_format=torch.channels_last)
    found = unpool(last, where, (9, 11))
    assert torch.equal(found, unpool(values, where, (9, 11)))
    assert found.is_contiguous(memory_format=torch.channels_last)
    for way in (values, last):  # one switch for all channels
        assert torch.equal(unpool(way, where[:, :1], (9, 11)), unpool(values, where[:, :1].expand_as(values), (9, 11)))



def test_of_overlapping_windows_the_largest_counts_in_any_order() -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 1
    _, switches = F.max_pool2d(x, 3, 1, 1, return_indices=True)
    inner = switches[:, :, 1:4, 1:4]  # nine windows, one winner
    values = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    for order in (values, values.flip(2, 3)):
        back = unpool(order, inner, (5, 5), overlap=True)
        assert back[0, 0, 2, 2] == 9
        assert back.sum() == 9


# ---- adjoints ----

@given(st.integers(5, 9), st.integers(5, 9), st.integers(1, 2), st.integers(0, 99))
@settings(max_examples=20)
def test_dfs_s7_02_the_transposed_convolution_is_the_adjoint(h: int, w: int, dilation: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 3, h, w, dtype=torch.float64, generator=g)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=g)
    v = torch.randn(1, 4, h, w, dtype=torch.float64, generator=g)
    there = (F.conv2d(x, weight, padding=dilation, dilation=dilation) * v).sum()
    back = (x * F.conv_transpose2d(v, weight, padding=dilation, dilation=dilation)).sum()
    assert abs(there - back) < 1e-11 * max(1, abs(there))


def test_dfs_s7_02_unpool_is_the_adjoint_of_the_pool_with_its_switches() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 3, 9, 7, dtype=torch.float64, generator=g) for _ in range(2))
    p, switches = F.max_pool2d(x, 2, 2, return_indices=True)
    v = torch.randn(p.shape, dtype=torch.float64, generator=g)
    fixed = y.flatten(2).gather(2, switches.flatten(2)).view_as(p)  # the pool of y with the switches of x
    assert abs((fixed * v).sum() - (y * unpool(v, switches, (9, 7))).sum()) < 1e-12


def test_dfs_s7_14_with_batch_norm_the_filter_is_scaled() -> None:
    net = plain(norm=True)
    step = blocks(net)[0].steps[1]
    scale = gain(step.norm)
    assert scale is not None
    g = torch.Generator().manual_seed(3)
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=g)
    v = torch.randn(1, 5, 8, 8, dtype=torch.float64, generator=g)
    zero = torch.zeros_like(x)
    assert step.norm is not None
    there = ((step.norm(step.conv(x)) - step.norm(step.conv(zero))) * v).sum()  # without what is constant
    right = (x * F.conv_transpose2d(v * scale, step.conv.weight, padding=1)).sum()
    wrong = (x * F.conv_transpose2d(v, step.conv.weight, padding=1)).sum()
    assert abs(there - right) < 1e-10
    assert abs(there - wrong) > 1e-3


# ---- the mirror ----

def test_dfs_s7_05_masked_it_is_back_propagation() -> None:
    net, x = plain(), image()
    top, found = levels(net, x, rectify="mask")
    *points, _ = Mirror(net, Mirroring()).points(x)
    value = (points[-1] * points[-1].detach()).sum()
    for level, point in zip(found, points[:-1], strict=True):
        (expected,) = torch.autograd.grad(value, point, retain_graph=True)
        torch.testing.assert_close(level, expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(top, points[-1])


def test_dfs_s7_05_continued_to_the_image_it_is_the_saliency_of_a_class() -> None:
    net, x = plain(), image(n=1).requires_grad_()
    weights = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    mirror = Mirror(net, Mirroring(rectify="mask"))
    top, traces = encoded(x, mirror.parts)
    (expected,) = torch.autograd.grad((top * weights.view(1, -1, 1, 1)).sum(), x, retain_graph=True)
    finest = mirror.back(weights.view(1, -1, 1, 1).expand_as(top), traces)[0]
    first = mirror.parts[0].steps[0].conv
    image_ = F.conv_transpose2d(finest * (traces[0].active[0] > 0), first.weight, padding=1)
    torch.testing.assert_close(image_, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("rectify", RULES)
def test_dfs_s7_06_the_routes_agree_in_values_and_gradients(rectify: str, norm: bool) -> None:
    """Eq. 5 cuts at a grid only under "relu"; the other rules differ from it alike in both routes."""
    by_step, by_grad = plain(norm), plain(norm)
    x = image(21, 26)
    outs = [levels(by_step, x, rectify=rectify), levels(by_grad, x, rectify=rectify, route="vjp")]
    torch.testing.assert_close(outs[0][0], outs[1][0])
    noise = torch.Generator().manual_seed(7)
    for a, b in zip(outs[0][1], outs[1][1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    heads = [torch.randn(a.shape, dtype=torch.float64, generator=noise) for a in outs[0][1]]
    for (top, found) in outs:
        (sum((f * h).sum() for f, h in zip(found, heads, strict=True)) + (top**2).sum()).backward()
    for (name, a), (_, b) in zip(by_step.named_parameters(), by_grad.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-6, msg=name)


def test_dfs_s7_08_nothing_in_nothing_out_and_twice_as_much_gives_twice_as_much() -> None:
    net, x = plain(), image()
    for rectify in RULES:
        mirror = Mirror(net, Mirroring(rectify=rectify))  # type: ignore[arg-type]
        top, traces = encoded(x, mirror.parts)
        assert all((level == 0).all() for level in mirror.back(torch.zeros_like(top), traces))
        for once, twice in zip(mirror.back(top, traces), mirror.back(2.5 * top, traces), strict=True):
            torch.testing.assert_close(2.5 * once, twice)


def eye() -> Backbone:
    """Two blocks of identity 1x1 filters (as 3x3 with one weight in the middle)."""
    net = pooled_net("eye", (Block((3, 3)), Block((3,))), 32, None).double()
    net.min_size = 4
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, nn.Conv2d):
                part.weight.zero_()
                part.weight[:, :, 1, 1] = torch.eye(3, dtype=torch.float64)
                assert part.bias is not None
                part.bias.zero_()
    return net


def test_dfs_s7_09_identity_filters_give_back_what_was_pooled_at_its_places() -> None:
    net, x = eye(), image().abs()
    mirror = Mirror(net, Mirroring(rectify="none"))
    top, traces = encoded(x, mirror.parts)
    found = mirror.back(top, traces)
    p1 = F.max_pool2d(x, 2, 2)
    at = found[1] != 0
    torch.testing.assert_close(found[1][at], p1[at])
    assert at.double().mean() == pytest.approx(0.25)
    torch.testing.assert_close(found[0][found[0] != 0], x[found[0] != 0])


def test_dfs_s7_09_orthonormal_filters_without_pooling_give_everything_back() -> None:
    net = eye()
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, nn.Conv2d):
                part.weight[:, :, 1, 1] = turn
    for stage in ("pool1", "pool2"):
        net.body.stages[stage] = nn.MaxPool2d(1, 1)  # type: ignore[union-attr,operator]
    x = image()
    for part in net.modules():  # the biases lift everything above zero, so that no ReLU cuts
        if isinstance(part, nn.Conv2d) and part.bias is not None:
            nn.init.constant_(part.bias, 50.0)
    mirror = Mirror(net, Mirroring(rectify="none"))
    top, traces = encoded(x, mirror.parts)
    step = mirror.parts[1].steps[0].conv
    before = torch.linalg.solve(turn, (traces[1].active[0] - 50.0).movedim(1, -1)[..., None])[..., 0].movedim(-1, 1)
    assert step.bias is not None
    found = mirror.back(top - 50.0, traces)
    torch.testing.assert_close(found[1], before)  # D_2 = P_1, what the second block was given


def test_dfs_s7_10_a_shifted_image_has_shifted_levels() -> None:
    net = plain()
    x = torch.zeros(1, 3, 128, 128, dtype=torch.float64)
    x[:, :, 56:72, 56:72] = image(16, 16, 1)
    for part in net.modules():
        if isinstance(part, nn.Conv2d) and part.bias is not None:
            nn.init.zeros_(part.bias)  # an empty border stays empty
    moved = torch.roll(x, (8, 8), (2, 3))
    for one, other in zip(levels(net, x)[1], levels(net, moved)[1], strict=True):
        shift = 8 * one.shape[2] // 128
        torch.testing.assert_close(torch.roll(one, (shift, shift), (2, 3)), other)


@pytest.mark.parametrize("route", ["conv", "vjp"])
def test_several_signals_go_down_one_encoding(route: str) -> None:
    net, x = plain(), image()
    mirror = Mirror(net, Mirroring(route=route))  # type: ignore[arg-type]
    _, _, (whole, half, first) = mirror(x, lambda top: [top, 0.5 * top, top * (torch.arange(7) == 0).view(1, -1, 1, 1)])
    for a, b, c in zip(whole, half, first, strict=True):
        torch.testing.assert_close(0.5 * a, b)
        assert not torch.allclose(a, c)


# ---- tied filters ----

@pytest.mark.parametrize("route", ["conv", "vjp"])
def test_dfs_s7_01_the_mirror_has_no_filters_of_its_own(route: str) -> None:
    net = plain()
    own = {id(p) for p in net.parameters()}
    mirror = Mirror(net, Mirroring(route=route))  # type: ignore[arg-type]
    assert {id(p) for p in mirror.parameters()} == own
    where = [t.data_ptr() for t in mirror.state_dict().values()]
    assert len(where) == len(set(where))
    rates = torch.optim.SGD(mirror.parameters(), lr=0.1)
    assert sum(len(g["params"]) for g in rates.param_groups) == len(own)
    x = image()
    before = [level.detach() for level in mirror(x).levels[0]]
    sum(level.square().mean() for level in mirror(x).levels[0]).backward()
    rates.step()
    after = mirror(x).levels[0]
    fresh = copy.deepcopy(net)
    for level, expected in zip(after, levels(fresh, x, route=route)[1], strict=True):
        torch.testing.assert_close(level, expected)
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    twin = copy.deepcopy(mirror)
    assert {id(p) for p in twin.parameters()} == {id(p) for p in twin.backbone.parameters()}


def test_dfs_s7_11_filters_learn_through_the_mirror_unless_it_is_detached() -> None:
    for tie, through in (("shared", True), ("detach", False)):
        net, x = plain(), image()
        mirror = Mirror(net, Mirroring(tie=tie))  # type: ignore[arg-type]
        top, traces = encoded(x, mirror.parts)
        found = mirror.back(top.detach(), [t._replace(active=tuple(a.detach() for a in t.active)) for t in traces])
        if through:
            sum(level.sum() for level in found).backward()  # type: ignore[union-attr]
        else:
            assert not any(level.requires_grad for level in found)
            sum(level.sum() for level in mirror.back(top, traces)).backward()  # type: ignore[union-attr]
        grads = {n: p.grad for n, p in net.named_parameters() if "weight" in n}
        walked = [g for n, g in grads.items() if "block1.0" not in n]
        assert all(g is not None and g.abs().sum() > 0 for g in walked)
        assert (grads["body.stages.block1.0.weight"] is None) == through  # the first filter is not walked back


def test_free_filters_begin_as_the_tied_ones_and_are_parameters() -> None:
    for norm in (False, True):
        net, x = plain(norm), image()
        mirror = Mirror(net, Mirroring(tie="free", bias=True))
        for a, b in zip(mirror(x).levels[0], levels(net, x)[1], strict=True):
            torch.testing.assert_close(a, b)
        assert len(list(mirror.parameters())) == len(list(net.parameters())) + 2 * 4


@pytest.mark.parametrize("kind", ["nearest", "bilinear"])
def test_other_ways_to_unpool_change_the_levels(kind: str) -> None:
    net, x = plain(), image()
    for a, b in zip(levels(net, x, unpool=kind)[1], levels(net, x)[1], strict=True):
        assert a.shape == b.shape
        assert not torch.allclose(a, b)


# ---- other networks ----

@pytest.mark.parametrize("name", ["small", "vgg16", "squeezenet1_1", "mobilenet_v2", "timm:resnet10t"])
def test_every_network_has_levels_that_get_finer(name: str) -> None:
    torch.manual_seed(0)
    net = freeze_batch_norm(build(name, stride=16)).eval()
    assert isinstance(net, Backbone)
    mirror = Mirror(net, Mirroring(route="vjp"))
    with torch.inference_mode():
        last, top, (found,) = mirror(torch.randn(1, 3, 65, 97))
    assert [f.shape[1] for f in found] == [g.channels for g in mirror.grids]
    assert top.shape[1] == last.shape[1] == mirror.top.channels
    strides = [g.stride for g in mirror.grids]
    assert strides == sorted(strides)
    assert strides[0] <= 2 or name.startswith("timm")
    assert all((f >= 0).all() and f.sum() > 0 for f in found)
    assert names_of(net)[-1] == mirror.top.name


def test_a_branching_network_has_no_conv_route() -> None:
    with pytest.raises(UsageError, match=r"squeezenet1_1.*route=vjp"):
        Mirror(build("squeezenet1_1"), Mirroring())
    with pytest.raises(UsageError, match="route=conv"):
        Mirror(plain(), Mirroring(route="vjp", tie="free"))


def test_the_classifiers_own_gradient_stays_what_it_was() -> None:
    """Only on the mirror's way do ReLUs follow its rule."""
    net, other, x = plain(), plain(), image()
    mirror = Mirror(net, Mirroring(route="vjp", rectify="relu"))
    *points, _ = mirror.points(x)
    points[-1].sum().backward()
    encoded(x, blocks(other))[0].sum().backward()
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert any(isinstance(part, TwoWay) for part in net.modules())


def test_threads_that_predict_do_not_disturb_each_other() -> None:
    net = plain()
    mirror = Mirror(net, Mirroring(route="vjp"))
    images = [image(16 + 2 * k, 20, 1, seed=k) for k in range(12)]
    with torch.inference_mode():
        alone = [mirror(x).levels[0] for x in images]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(torch.inference_mode()(lambda x: mirror(x).levels[0]), images * 4))
    for expected, found in zip(alone * 4, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
