"""Affinity networks: every backbone's stages on one grid in the right place, frozen backbones, distances of pairs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tagseg.nets.affinity_net import EdgeNet, Form, Gather, PairNet, affinity_net, blocks, feature_affinity
from tagseg.nets.backbones import Tap, build
from tagseg.ops.geometry import align


def net(form: Form = "irn", name: str = "small", stride: int = 16, **more: Any) -> EdgeNet | PairNet:
    torch.manual_seed(0)
    return affinity_net(form, build(name, stride=stride), align=align, width=8, **more)


@pytest.mark.parametrize(("name", "stride"), [
    ("small", 8), ("small", 16), ("squeezenet1_1", 16), ("mobilenet_v2", 8), ("mobilenet_v2", 16), ("mobilenet_v2", 32),
    ("timm:resnet18", 16)])
@pytest.mark.parametrize("form", ["irn", "psa"])
def test_any_backbone_gives_the_grid_that_the_tap_states(form: Form, name: str, stride: int) -> None:
    model = net(form, name, stride)
    x = torch.randn(2, 3, 65, 81)
    with torch.no_grad():
        out, own = model(x), model.stages.backbone(x)["low" if form == "irn" else "stride8"]
    assert model.tap.stride == (4 if form == "irn" else 8)
    assert out.shape == (2, 1 if form == "irn" else 56, *own.shape[2:])
    assert all(tap.stride >= 2 for tap in blocks(model.stages.backbone))
    assert len(blocks(model.stages.backbone)) in (4, 5)


def test_stages_of_all_strides_land_in_one_place() -> None:
    taps = tuple(Tap(f"block{k}", 1, s, o) for k, s, o in ((1, 2, 0.5), (2, 4, 1.5), (3, 8, 0.0), (4, 16, 7.5)))
    gather = Gather(taps, taps[1], (1,) * 4, align, nn.Identity())
    for unit in gather.units:
        nn.init.ones_(unit[0].weight)
        unit[1] = nn.Identity()
    # every cell of every stage holds the input column at which it is centred; so must every cell of the result
    columns = {t.name: (t.stride * torch.arange(64 // t.stride) + t.offset).expand(1, 1, 64 // t.stride, -1)
               for t in taps}
    found = gather(columns)
    wanted = (4 * torch.arange(16) + 1.5).expand(1, 4, 16, -1)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found[..., 2:14], wanted[..., 2:14])  # outside the coarsest centres edges are held


@pytest.mark.parametrize("form", ["irn", "psa"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_backbone_does_not_move(form: Form, frozen: bool) -> None:
    model = net(form, frozen=frozen)
    before = {n: t.clone() for n, t in model.stages.state_dict().items()}
    model.train()
    assert model.training
    assert model.stages.backbone.training is not frozen
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    grads = [p.grad is not None for p in model.stages.parameters()]
    assert any(grads) is not frozen
    assert all(torch.equal(t, before[n]) for n, t in model.stages.state_dict().items()) is frozen  # batch statistics
    assert all(p.grad is not None for n, p in model.named_parameters() if not n.startswith("stages."))
    assert model.eval().stages.backbone.training is False


def test_displacement_is_a_second_branch_that_leaves_the_edges_alone() -> None:
    plain, more = net(), net(displacement=True)
    more.load_state_dict({**more.state_dict(), **plain.state_dict()})
    x = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        assert more(x).shape == (1, 3, 16, 12)
        torch.testing.assert_close(more(x)[:, :1], plain(x))
    assert (plain.channels, more.channels) == (1, 3)


def test_pairs_by_hand() -> None:
    features = torch.zeros(1, 2, 1, 3)
    features[0, :, 0] = torch.tensor([[0.0, 1.0, 4.0], [0.0, 3.0, 3.0]])
    found = feature_affinity(features, [(0, 1), (0, 2), (1, 0), (0, 5)])
    wanted = [[math.exp(-2), math.exp(-1.5), 0], [math.exp(-3.5), 0, 0], [0, 0, 0], [0, 0, 0]]
    torch.testing.assert_close(found[0, :, 0], torch.tensor(wanted))


def test_pairs_to_the_lower_left() -> None:
    features = torch.randn(2, 5, 6, 7)
    found = feature_affinity(features, [(2, -3), (1, 2)])
    for f, (dy, dx) in enumerate(((2, -3), (1, 2))):
        for y in range(6):
            for x in range(7):
                there = y + dy < 6 and 0 <= x + dx < 7
                d = (features[1, :, y, x] - features[1, :, y + dy, x + dx]).abs().mean() if there else math.inf
                assert found[1, f, y, x].item() == pytest.approx(math.exp(-d), rel=1e-5)
