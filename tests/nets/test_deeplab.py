"""Heads: their grids, their independence of the batch, that they can learn; the tag head's maps are exact CAMs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tagseg.nets.backbones import build
from tagseg.nets.deeplab import DeepLabV3Plus, LargeFov, Segmenter
from tagseg.nets.tag_head import TagHead
from tagseg.ops.geometry import align, resample
from tagseg.ops.pooling import gap, lse, topk


def segmenter(kind: str, name: str = "small", stride: int = 16) -> Segmenter:
    torch.manual_seed(0)
    net = build(name, stride=stride)
    if kind == "fov":
        return Segmenter(net, LargeFov(net.tap("last"), 4, width=32, dilation=2))
    return Segmenter(net, DeepLabV3Plus(net.tap("last"), net.tap("low"), 4, align=align, width=32))


@pytest.mark.parametrize("name", ["small", "squeezenet1_1", "mobilenet_v2"])
@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("kind", ["fov", "plus"])
def test_logits_lie_on_the_grid_that_the_segmenter_states(name: str, stride: int, kind: str) -> None:
    model = segmenter(kind, name, stride)
    tap = model.backbone.tap("last" if kind == "fov" else "low")
    x = torch.randn(2, 3, 49, 65)
    with torch.no_grad():
        logits, feature = model(x), model.backbone(x)[tap.name]
    assert logits.shape == (2, 4, *feature.shape[2:])
    assert (model.stride, model.offset) == (tap.stride, tap.offset)


@pytest.mark.parametrize("kind", ["fov", "plus"])
def test_an_image_gets_the_same_logits_alone_and_in_a_batch_and_in_train_mode(kind: str) -> None:
    model = segmenter(kind, "mobilenet_v2")  # its batch norm is fixed; the small network's learns
    x = torch.randn(3, 3, 64, 48)
    with torch.no_grad():
        together = model.train()(x)
        alone = model.eval()(x[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


def test_dropout_only_where_it_is_asked_for() -> None:
    tap = build("small").tap("last")
    x = {"block5": torch.randn(1, 128, 6, 6)}
    for share, same in ((0.0, True), (0.5, False)):
        head = LargeFov(tap, 4, width=32, dropout=share).train()
        assert torch.equal(head(x), head(x)) is same


@pytest.mark.parametrize("kind", ["fov", "plus"])
def test_the_first_loss_is_near_log_k_and_falls(kind: str) -> None:
    model = segmenter(kind)
    x = torch.zeros(2, 3, 64, 64)
    x[:, :, :, 32:] = 1.0
    target = (x[:, 0] > 0).long() * 2
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    losses = []
    for _ in range(25):
        logits = resample(model(x), stride=model.stride, offset=model.offset, in_size=(64, 64), out_size=(64, 64))
        loss = nn.functional.cross_entropy(logits, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert abs(losses[0] - 1.386) < 0.35
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.head.parameters())


def test_atrous_rates_double_at_stride_8() -> None:
    for stride, rates in ((8, [12, 24, 36]), (16, [6, 12, 18])):
        parts = segmenter("plus", stride=stride).head.modules()
        found = [part.dilation[0] for part in parts if isinstance(part, nn.Conv2d) and part.groups > 1]
        assert found == [*rates, 1, 1]


@pytest.mark.parametrize("kind", ["fov", "plus"])
def test_heads_work_under_bfloat16(kind: str) -> None:
    model = segmenter(kind)
    x = torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        logits = model(x)
    assert torch.isfinite(logits.float()).all()
    torch.testing.assert_close(logits.float(), model(x).detach(), atol=0.05, rtol=0.1)


def test_pooled_maps_plus_bias_are_a_linear_classifier_on_pooled_features() -> None:
    head = TagHead(7, 3)
    head.bias.data.normal_()
    features = torch.randn(2, 7, 5, 6)
    maps = head(features)
    linear = nn.functional.linear(features.mean((2, 3)), head.weight, head.bias)
    torch.testing.assert_close(head.logits(maps, gap), linear)
    torch.testing.assert_close(maps, torch.einsum("cd,ndhw->nchw", head.weight, features))
    assert maps.abs().sum() > 0
    for pool in (lambda m: lse(m, 5.0), lambda m: topk(m, 0.1)):  # the bias may as well be in the maps
        torch.testing.assert_close(head.logits(maps, pool), pool(maps + head.bias.view(3, 1, 1)))
