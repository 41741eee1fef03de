"""Folded and fused networks give the outputs of the originals; what must not be merged is left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagseg.nets import folding
from tagseg.nets.backbones import FixedBatchNorm, build
from tagseg.nets.deeplab import DeepLabV3Plus, LargeFov, Segmenter
from tagseg.nets.folding import ConvAct, folded, fused
from tagseg.ops.geometry import align

NORMS = (nn.BatchNorm2d, FixedBatchNorm)
needs_kernel = pytest.mark.skipif(not folding._kernel_works(), reason="this torch has no fused oneDNN convolution")


def awake(module: nn.Module) -> nn.Module:
    """Statistics, scales and shifts as after training: a fold that forgets one of them must show."""
    g = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, NORMS):
            part.running_mean.normal_(0, 0.3, generator=g)
            part.running_var.uniform_(0.3, 3, generator=g)
            part.weight.data.uniform_(0.5, 1.5, generator=g)
            part.bias.data.normal_(0, 0.3, generator=g)
    return module.eval()


def picture(n: int, h: int, w: int, channels: int = 3) -> Tensor:
    return torch.randn(n, channels, h, w, generator=torch.Generator().manual_seed(2))


def count(module: nn.Module, *kinds: type[nn.Module]) -> int:
    return sum(isinstance(part, kinds) for part in module.modules())


@torch.no_grad()
def error(module: nn.Module, other: nn.Module, x: Tensor) -> float:
    """The largest difference over all outputs, relative to the largest value of that output."""
    pairs = zip(folding._tensors(module(x)), folding._tensors(other(x)), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


@pytest.mark.parametrize(("name", "left", "joined"), [
    ("small", 0, 5),
    ("squeezenet1_1", 0, 25),  # 26 convolutions, each followed by a ReLU; block2 is cut between the first two
    ("mobilenet_v2", 0, 35),
    ("timm:resnet18", 0, 9),  # the ReLUs after a sum stay
    ("timm:resnetv2_50", 16, 32),  # pre-activation: norms that read a sum stay
    ("timm:efficientnet_b0", 0, 0),  # SiLU has no kernel here
])
def test_networks_keep_their_outputs(name: str, left: int, joined: int) -> None:
    torch.manual_seed(0)
    net = awake(build(name))
    x = picture(2, 64, 96)
    small = folded(net, picture(1, 64, 64))
    assert count(small, *NORMS) == left
    assert error(net, small, x) < 1e-5
    quick = fused(small, picture(1, 64, 64))
    assert count(quick, ConvAct) in ({joined} if folding._kernel_works() else {0})
    assert error(net, quick, x) < 1e-5


@pytest.mark.parametrize("head", ["fov", "v3plus"])
def test_segmenters_keep_their_outputs(head: str) -> None:
    torch.manual_seed(0)
    body = build("mobilenet_v2")
    last, low = body.tap("last"), body.tap("low")
    made = LargeFov(last, 4, width=32) if head == "fov" else DeepLabV3Plus(last, low, 4, align=align, width=16)
    net = awake(Segmenter(body, made))
    quick = fused(folded(net, picture(1, 64, 64)), picture(1, 64, 64))
    assert count(quick, *NORMS) == 0
    assert error(net, quick, picture(2, 64, 96)) < 1e-5


def test_a_hand_worked_fold() -> None:
    conv, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)
    net = nn.Sequential(conv, norm).eval()
    with torch.no_grad():
        conv.weight.fill_(3.0)
        conv.bias.fill_(5.0)
        norm.running_mean.fill_(1.0)
        norm.running_var.fill_(4.0)
        norm.weight.fill_(10.0)
        norm.bias.fill_(-2.0)
    made = folded(net, picture(1, 4, 4, channels=1))
    assert float(made[0].weight) == 15.0  # 3 · 10/2
    assert float(made[0].bias) == 18.0  # (5 - 1) · 10/2 - 2
    assert (conv.weight.item(), conv.bias.item(), type(net[1])) == (3.0, 5.0, nn.BatchNorm2d)


class Net(nn.Module):
    """Two convolutions and a norm, put together by `wire(net, x)`."""

    def __init__(self, wire: Callable[[Net, Tensor], object]) -> None:
        super().__init__()
        self.wire = wire
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.other = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> object:
        return self.wire(self, x)


def two_uses(net: Net, x: Tensor) -> object:
    y = net.conv(x)
    return net.norm(y) + y


def also_returned(net: Net, x: Tensor) -> object:
    y = net.conv(x)
    return {"tap": y, "last": net.norm(y)}


def twice_returned(net: Net, x: Tensor) -> object:
    y = net.conv(x)
    return [y, (y, net.norm(y))]


def in_place_between(net: Net, x: Tensor) -> object:
    y = net.conv(x)
    y += x  # the same tensor object reaches the norm
    return net.norm(y)


def view_between(net: Net, x: Tensor) -> object:
    return net.norm(net.conv(x).flip(1))


def shared_conv(net: Net, x: Tensor) -> object:
    return net.norm(net.conv(net.conv(x)))


def tied_weight(net: Net, x: Tensor) -> object:
    return net.norm(net.conv(x)) + F.conv2d(x, net.conv.weight, padding=1)


def shared_norm(net: Net, x: Tensor) -> object:
    return net.norm(net.conv(x)) + net.norm(net.other(x))


def norm_first(net: Net, x: Tensor) -> object:
    return net.conv(net.norm(x))


def hidden_use(net: Net, x: Tensor) -> object:
    y = net.conv(x)
    return net.norm(y) * (y.detach() > 0)  # autograd does not see it: found by comparing outputs


LEFT = [two_uses, also_returned, twice_returned, in_place_between, view_between, shared_conv, tied_weight, shared_norm,
        norm_first, hidden_use]


@pytest.mark.parametrize("wire", LEFT)
def test_a_norm_that_is_not_alone_after_one_convolution_stays(wire: Callable[[Net, Tensor], object]) -> None:
    torch.manual_seed(0)
    net = awake(Net(wire))
    made = folded(net, picture(1, 16, 16))
    assert count(made, nn.BatchNorm2d) == 1
    assert error(net, made, picture(2, 16, 16)) == 0.0


@needs_kernel
@pytest.mark.parametrize("wire", LEFT)
def test_an_activation_that_is_not_alone_after_one_convolution_stays(wire: Callable[[Net, Tensor], object]) -> None:
    torch.manual_seed(0)
    net = Net(wire).eval()
    net.norm = nn.ReLU()
    made = fused(net, picture(1, 16, 16))
    # max(y, 0) · [y > 0] is the same with y replaced by max(y, 0), so there the merge is right
    assert count(made, ConvAct) == (wire is hidden_use)
    assert error(net, made, picture(2, 16, 16)) < 1e-5


def test_an_untouched_branch_does_not_hinder_the_other() -> None:
    net = awake(Net(lambda net, x: net.norm(net.conv(x)) + net.other(x)))
    made = folded(net, picture(1, 16, 16))
    assert count(made, nn.BatchNorm2d) == 0
    assert torch.equal(made.other.weight, net.other.weight)
    assert error(net, made, picture(2, 16, 16)) < 1e-5


@pytest.mark.parametrize("fixed", [False, True])
def test_a_norm_that_carries_its_activation_leaves_it_behind(fixed: bool) -> None:
    from timm.layers import BatchNormAct2d

    norm = BatchNormAct2d(3, act_layer=nn.SiLU)
    net = awake(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), FixedBatchNorm(norm, norm.act)
                              if fixed else norm))
    made = folded(net, picture(1, 16, 16))
    assert (count(made, *NORMS), count(made, nn.SiLU)) == (0, 1)
    assert error(net, made, picture(2, 16, 16)) < 1e-5


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3, track_running_stats=False), nn.GroupNorm(1, 3),
                                  nn.InstanceNorm2d(3, track_running_stats=True)])
def test_norms_without_fixed_statistics_of_a_batch_stay(norm: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), norm).eval()
    made = folded(net, picture(1, 16, 16))
    assert type(made[1]) is type(norm)
    assert error(net, made, picture(2, 16, 16)) == 0.0


def test_a_norm_without_scale_and_a_convolution_without_bias_in_groups() -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2, bias=False, padding=1, padding_mode="reflect"),
                        nn.BatchNorm2d(8, affine=False), nn.ReLU()).eval()
    net[1].running_mean.fill_(0.4)
    net[1].running_var.fill_(0.1)
    made = fused(folded(net, picture(1, 8, 8, channels=4)), picture(1, 8, 8, channels=4))
    assert (count(made, nn.BatchNorm2d), count(made, ConvAct)) == (0, 0)  # reflected borders are not oneDNN's
    assert error(net, made, picture(2, 8, 8, channels=4)) < 1e-5


def test_weights_made_at_run_time_are_not_folded() -> None:
    net = awake(Net(lambda net, x: net.norm(net.conv(x))))
    nn.utils.parametrizations.weight_norm(net.conv)
    assert count(folded(net, picture(1, 16, 16)), nn.BatchNorm2d) == 1


@pytest.mark.parametrize("rewrite", [folded, fused])
def test_the_module_handed_in_is_not_changed(rewrite: Callable[[nn.Module, Tensor], nn.Module]) -> None:
    net = Net(lambda net, x: net.act(net.norm(net.conv(x)))).train()
    before, parts = copy.deepcopy(net.state_dict()), [type(part) for part in net.modules()]
    made = rewrite(net, picture(1, 16, 16))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [type(part) for part in net.modules()] == parts
    assert net.training
    assert not made.training
    assert all(weight.requires_grad for weight in net.parameters())
    assert not any(weight.requires_grad for weight in made.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in [*net.modules(), *made.modules()])


def test_without_the_kernel_the_network_is_a_plain_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()).eval()
    monkeypatch.setattr(folding, "_kernel_works", lambda dtype: False)
    made = fused(net, picture(1, 8, 8))
    assert made is not net
    assert count(made, ConvAct) == 0
    assert error(net, made, picture(1, 8, 8)) == 0.0
